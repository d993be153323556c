//! The store: its connections, and how a call is run.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ork_state_api::backend::{Backend, Plugin};
use ork_state_api::{Clock, Error, Result};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::{Connection, Postgres};
use tokio::runtime::Handle;

use crate::connections::{Connections, Held};
use crate::error::{Access, Remedy, no_answer, of_connecting, of_statement, remedy};
use crate::gather::Gather;
use crate::options::Schema;
use crate::queue::{self, Queue};
use crate::rows::Stamp;
use crate::watch::{self, Listeners};
use crate::{
    BACKEND, PostgresOptions, claims, deferred_jobs, logs, maintenance, runs, schedules, schema, tasks,
    transfer, updates, workflows,
};

/// A statement with its arguments.
pub(crate) type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

/// How often a statement is repeated that the server rolled back because of another one.
const REPETITIONS: u32 = 8;
/// The schema is looked at again after so long.
const TRUSTED_SCHEMA: Duration = Duration::from_secs(5);

/// A store in a PostgreSQL database. Cheap to clone; clones share its connections.
///
/// Calls run to their end in tasks of their own, on the tokio runtime they are made on: dropping the future of a call
/// interrupts nothing (rule G9).
#[derive(Clone)]
pub struct PostgresDatabase(Arc<Inner>);

/// What calls work with.
pub(crate) struct Inner {
    connections: Connections,
    pub(crate) schema: Schema,
    pub(crate) sql: Statements,
    clock: Option<Arc<dyn Clock>>,
    pub(crate) max_log_bytes: Option<u64>,
    /// What to call the store in messages.
    pub(crate) place: String,
    user: String,
    /// When the schema was last seen to be this code's.
    current_at: Mutex<Option<Instant>>,
    /// How long to wait for the answer to a statement.
    call_timeout: Duration,
    pub(crate) listeners: Listeners,
    pub(crate) queue: Queue,
    pub(crate) gather: Gather,
}

/// The statements, written once with the name of the schema in them.
pub(crate) struct Statements {
    pub(crate) schema: schema::Statements,
    pub(crate) workflows: workflows::Statements,
    pub(crate) runs: runs::Statements,
    pub(crate) tasks: tasks::Statements,
    pub(crate) claims: claims::Statements,
    pub(crate) queue: queue::Statements,
    pub(crate) updates: updates::Statements,
    pub(crate) logs: logs::Statements,
    pub(crate) schedules: schedules::Statements,
    pub(crate) deferred_jobs: deferred_jobs::Statements,
    pub(crate) maintenance: maintenance::Statements,
    pub(crate) transfer: transfer::Statements,
    pub(crate) watch: watch::Statements,
}

impl Statements {
    fn new(schema: &Schema) -> Self {
        Self {
            schema: schema::Statements::new(schema),
            workflows: workflows::Statements::new(schema),
            runs: runs::Statements::new(schema),
            tasks: tasks::Statements::new(schema),
            claims: claims::Statements::new(schema),
            queue: queue::Statements::new(schema),
            updates: updates::Statements::new(schema),
            logs: logs::Statements::new(schema),
            schedules: schedules::Statements::new(schema),
            deferred_jobs: deferred_jobs::Statements::new(schema),
            maintenance: maintenance::Statements::new(schema),
            transfer: transfer::Statements::new(schema),
            watch: watch::Statements::new(schema),
        }
    }
}

impl fmt::Debug for PostgresDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresDatabase")
            .field("server", &self.0.place)
            .field("schema", &self.0.schema.name())
            .field("connections", &self.0.connections.size())
            .finish_non_exhaustive()
    }
}

impl Plugin for PostgresDatabase {
    fn backend(&self) -> &'static Backend {
        &BACKEND
    }
}

impl PostgresDatabase {
    pub(crate) async fn open(options: PostgresOptions) -> Result<Self> {
        let timeout = options.connect_timeout;
        let inner = Arc::new(Inner::new(options)?);
        let looking = inner.clone();
        run(async move {
            // Not as for a call, which waits until the time is over and then cannot say why.
            let options = looking.connections.options();
            let mut connection = tokio::time::timeout(timeout, PgConnection::connect_with(options))
                .await
                .unwrap_or(Err(sqlx::Error::PoolTimedOut))
                .map_err(|error| looking.cannot_connect(error))?;
            schema::check_at_connect(&looking, &mut connection).await?;
            // It served its purpose, whatever becomes of its end.
            let _ = connection.close().await;
            Ok(())
        })
        .await?;
        Ok(Self(inner))
    }

    /// Runs a call on a migrated store, to its end whether or not the caller waits for it.
    pub(crate) async fn call<T, F>(&self, body: impl FnOnce(Arc<Inner>) -> F + Send) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let inner = self.0.clone();
        let body = body(inner.clone());
        run(async move {
            inner.require_current().await?;
            body.await
        })
        .await
    }

    /// Runs a call that does not need the store to be migrated.
    pub(crate) async fn call_unmigrated<T, F>(&self, body: impl FnOnce(Arc<Inner>) -> F + Send) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        run(body(self.0.clone())).await
    }
}

/// Runs a future in a task of its own.
async fn run<T: Send + 'static>(body: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let runtime = Handle::try_current().map_err(|source| {
        Error::internal("a call was made outside of a tokio runtime").with_source(source)
    })?;
    match runtime.spawn(body).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(Error::internal("a call panicked").with_source(error)),
        Err(error) => Err(Error::unknown_effect("the runtime is shutting down").with_source(error)),
    }
}

impl Inner {
    fn new(options: PostgresOptions) -> Result<Self> {
        let connections =
            Connections::new(options.session(), options.max_connections, options.connect_timeout)
                .map_err(|source| Error::internal("the connections cannot be kept").with_source(source))?;
        Ok(Self {
            connections,
            sql: Statements::new(&options.schema),
            place: options.place(),
            user: options.driver.get_username().to_owned(),
            schema: options.schema,
            clock: options.clock,
            max_log_bytes: options.max_log_bytes,
            current_at: Mutex::new(None),
            call_timeout: options.call_timeout,
            listeners: Listeners::default(),
            queue: Queue::default(),
            gather: Gather::default(),
        })
    }

    /// The injected clock's time, to be bound as the `now` of a statement; `None` leaves it to the server.
    pub(crate) fn now(&self) -> Option<Stamp> {
        self.clock.as_ref().map(|clock| Stamp(clock.now()))
    }

    pub(crate) async fn acquire(&self) -> Result<Held> {
        self.connections.get().await.map_err(|error| self.cannot_connect(error))
    }

    /// How to open a connection of one's own.
    pub(crate) fn connect_options(&self) -> PgConnectOptions {
        self.connections.options().clone()
    }

    pub(crate) fn cannot_connect(&self, error: sqlx::Error) -> Error {
        of_connecting(&self.place, &self.user, error)
    }

    /// Refuses any schema but this code's. One that was it a moment ago is trusted: a newer program that migrates the store is noticed
    /// soon, and what it takes away at once.
    async fn require_current(&self) -> Result<()> {
        let seen = *self.current_at.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_none_or(|seen| seen.elapsed() > TRUSTED_SCHEMA) {
            schema::check(self).await?;
            *self.current_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(())
    }

    /// All rows of one statement, in a transaction of its own.
    pub(crate) async fn rows(&self, access: Access, query: impl Fn() -> Query + Send) -> Result<Vec<PgRow>> {
        self.rows_within(self.call_timeout, access, query).await
    }

    /// The same, with another limit of how long to wait for the answer.
    pub(crate) async fn rows_within(
        &self,
        limit: Duration,
        access: Access,
        query: impl Fn() -> Query + Send,
    ) -> Result<Vec<PgRow>> {
        let mut repetition = 0;
        loop {
            let mut connection = self.acquire().await?;
            let answer = tokio::time::timeout(limit, query().fetch_all(&mut *connection)).await;
            let error = match answer {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => error,
                Err(_) => {
                    // The server may have gone without a word. The connection is in the middle of something: it does not go
                    // back to the pool, and is not closed in order, which might wait as long again.
                    drop(Held::take(connection));
                    self.connections.distrust();
                    return Err(no_answer(&self.place, access, limit));
                }
            };
            // Other statements may have it while this one waits or gives up.
            drop(connection);
            match remedy(&error) {
                Remedy::Repeat if repetition < REPETITIONS => {
                    tokio::time::sleep(pause(repetition)).await;
                    repetition += 1;
                    continue;
                }
                Remedy::Repeat | Remedy::Tell => {}
                Remedy::Reconnect => self.connections.distrust(),
                Remedy::LookAtSchema => {
                    *self.current_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    // If it can be told what is wrong with the schema, that is the error.
                    schema::check(self).await?;
                }
            }
            return Err(of_statement(&self.place, access, error));
        }
    }

    /// The first row of one statement, in a transaction of its own.
    pub(crate) async fn row(
        &self,
        access: Access,
        query: impl Fn() -> Query + Send,
    ) -> Result<Option<PgRow>> {
        Ok(self.rows(access, query).await?.into_iter().next())
    }
}

/// 1 to 2 ms, doubled with each repetition: by chance, so that those who met do not meet again.
fn pause(repetition: u32) -> Duration {
    let chance = RandomState::new().hash_one(repetition) % 1000;
    Duration::from_micros(1000 + chance) * 2_u32.saturating_pow(repetition)
}
