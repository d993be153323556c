//! A fixture with one database per case.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use ork_state_api::{ConnectOptions, Error, Registry, Result};
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{PostgresServer, Unavailable};
use crate::{Damage, Fixture, ServerFailure, TestStore};

/// Stores in databases of one server, which is found when the first store is requested. A migrated
/// store is copied from a template that is migrated once.
#[derive(Debug)]
pub struct PostgresFixture {
    backend: &'static str,
    /// The query that is added to every URL.
    query: &'static str,
    server: OnceCell<Result<Arc<PostgresServer>, Unavailable>>,
    template: OnceCell<Template>,
}

/// A migrated database, and how it is copied.
#[derive(Debug)]
struct Template {
    name: String,
    /// From version 15 on a copy goes through the log unless told otherwise, which takes several
    /// times as long where nothing is synced.
    strategy: &'static str,
}

impl PostgresFixture {
    /// Stores of this backend, which takes `postgres://` URLs.
    #[must_use]
    pub const fn new(backend: &'static str) -> Self {
        Self { backend, query: "", server: OnceCell::const_new(), template: OnceCell::const_new() }
    }

    /// Adds parameters to every URL, such as `schema=other`.
    #[must_use]
    pub const fn with_query(mut self, query: &'static str) -> Self {
        self.query = query;
        self
    }

    async fn server(&self) -> Result<&Arc<PostgresServer>> {
        let found = self.server.get_or_init(|| async { PostgresServer::find().await.map(Arc::new) }).await;
        found.as_ref().map_err(|unavailable| Error::unavailable(unavailable.to_string()))
    }

    async fn create(&self, template: Option<&Template>) -> Result<Arc<PostgresStore>> {
        let server = self.server().await?.clone();
        let name = format!("ork_state_test_{}", Uuid::new_v4().simple());
        let template = template.map(|Template { name, strategy }| format!(" TEMPLATE {name}{strategy}"));
        let template = template.unwrap_or_default();
        let failed = |source| Error::unavailable("no database can be created").with_source(source);
        server.administer(format!("CREATE DATABASE {name}{template}")).await.map_err(failed)?;
        Ok(Arc::new(PostgresStore { server, name, query: self.query, keep: OnceLock::new() }))
    }

    async fn make_template(&self) -> Result<Template> {
        let store = self.create(None).await?;
        let db = Registry::linked()?.connect(ConnectOptions::new(&store.url())?).await?;
        db.migrate().await?;
        drop(db);
        // A template cannot be copied while anybody is connected to it, and a pool closes its
        // connections later.
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
            store.name
        );
        let failed = |source| Error::unavailable("no template").with_source(source);
        store.server.administer(end).await.map_err(failed)?;
        let strategy = match store.server.version().await.map_err(failed)? {
            150_000.. => " STRATEGY file_copy",
            _ => "",
        };
        let _ = store.keep.set(());
        Ok(Template { name: store.name.clone(), strategy })
    }
}

#[async_trait]
impl Fixture for PostgresFixture {
    fn backend(&self) -> &'static str {
        self.backend
    }

    async fn empty(&self) -> Result<Arc<dyn TestStore>> {
        Ok(self.create(None).await?)
    }

    async fn migrated(&self) -> Result<Arc<dyn TestStore>> {
        let template = self.template.get_or_try_init(|| self.make_template()).await?;
        Ok(self.create(Some(template)).await?)
    }

    async fn unavailable(&self) -> Option<String> {
        self.server().await.err().map(|error| error.to_string())
    }

    async fn origin(&self) -> Option<String> {
        self.server().await.ok().map(|server| server.origin().to_owned())
    }

    async fn fail_server(&self, failure: ServerFailure) -> Result<bool> {
        self.server().await?.fail(failure).await.map_err(Error::unavailable)
    }

    async fn finish(&self) {
        if let Some(Ok(server)) = self.server.get() {
            if let Some(template) = self.template.get() {
                let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", template.name);
                let _ = server.administer(drop).await;
            }
            server.stop().await;
        }
    }
}

/// A database, which is dropped with this value.
#[derive(Debug)]
struct PostgresStore {
    server: Arc<PostgresServer>,
    name: String,
    query: &'static str,
    keep: OnceLock<()>,
}

#[async_trait]
impl TestStore for PostgresStore {
    fn url(&self) -> String {
        let url = self.server.url(&self.name);
        match (self.query, url.contains('?')) {
            ("", _) => url,
            (query, false) => format!("{url}?{query}"),
            (query, true) => format!("{url}&{query}"),
        }
    }

    fn keep(&self) -> Option<String> {
        let _ = self.keep.set(());
        Some(format!("database {} of {}", self.name, self.server.origin()))
    }

    async fn damage(&self, damage: Damage) -> Result<bool> {
        let (statement, id) = match damage {
            Damage::RunStatus(run) => ("UPDATE runs SET status = 'nonsense' WHERE id = $1", run.as_uuid()),
            Damage::TaskStatus(task) => {
                ("UPDATE tasks SET status = 'nonsense' WHERE id = $1", task.as_uuid())
            }
            Damage::TaskName(task) => {
                ("UPDATE tasks SET task_name = '../escape' WHERE id = $1", task.as_uuid())
            }
            Damage::Dag(snapshot) => {
                ("UPDATE workflow_snapshots SET tasks_json = '{}' WHERE id = $1", snapshot.as_uuid())
            }
            Damage::DependsOn(task) => {
                ("UPDATE tasks SET depends_on = ARRAY['../escape'] WHERE id = $1", task.as_uuid())
            }
            Damage::RunCount(run) => {
                ("UPDATE runs SET tasks_unfinished = tasks_unfinished + 1 WHERE id = $1", run.as_uuid())
            }
            Damage::RunEnded(run) => (
                "UPDATE runs SET status = 'success', finished_at = created_at WHERE id = $1",
                run.as_uuid(),
            ),
            // The id is not needed here.
            Damage::NewerSchema => (
                "INSERT INTO ork_state_migrations (version, name, checksum)
                 SELECT max(version) + 1, 'from_the_future', '\\x00' FROM ork_state_migrations WHERE $1 IS NOT NULL",
                Uuid::nil(),
            ),
        };
        let failed = |source| Error::unavailable("the damage cannot be done").with_source(source);
        let mut connection = PgConnection::connect(&self.server.url(&self.name)).await.map_err(failed)?;
        for table in ["runs", "tasks"] {
            let drop = format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_status_check");
            connection.execute(sqlx::AssertSqlSafe(drop)).await.map_err(failed)?;
        }
        let done = sqlx::query(statement).bind(id).execute(&mut connection).await.map_err(failed)?;
        if done.rows_affected() != 1 {
            return Err(Error::internal(format!("{damage:?} met {} rows", done.rows_affected())));
        }
        Ok(true)
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        if self.keep.get().is_some() {
            return;
        }
        let (server, statement) =
            (self.server.clone(), format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        // Dropping is not async, and this thread may be inside a runtime.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime
                && let Err(error) = runtime.block_on(server.administer(statement))
            {
                eprintln!("a test database was left behind: {error}");
            }
        });
        let _ = dropping.join();
    }
}
