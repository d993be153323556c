//! A PostgreSQL server for the suite: an existing one, or one that is started and stopped.

mod docker;
mod fixture;
mod local;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection, Executor, PgConnection};
use tokio::task::JoinHandle;

use crate::ServerFailure;
pub use fixture::PostgresFixture;
use local::Order;

/// A server's URL, to use instead of starting one. Its user must be allowed to create databases.
pub const URL: &str = "ORK_STATE_POSTGRES_URL";
/// The image for a container.
pub const IMAGE: &str = "ORK_STATE_POSTGRES_IMAGE";
/// Restricts the search to one way: `environment`, `docker` or `local`.
pub const VIA: &str = "ORK_STATE_POSTGRES_VIA";

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL server. If it was started here, it ends with [`stop`](Self::stop), or with this
/// process.
#[derive(Debug)]
pub struct PostgresServer {
    origin: String,
    /// The URL up to the slash before the database's name, and the part after that name.
    url: (String, String),
    started: Mutex<Started>,
}

/// What has to be stopped.
#[derive(Debug)]
enum Started {
    Nothing,
    Container(Box<docker::Container>),
    Process(local::Process),
}

/// Why no server is available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Unavailable {
    tried: Vec<(&'static str, String)>,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no PostgreSQL server could be had")?;
        for (way, why) in &self.tried {
            writeln!(f, "  {way}: {}", why.replace('\n', "\n    "))?;
        }
        write!(
            f,
            "To mend it: install PostgreSQL (Debian: apt-get install postgresql), or start Docker, or set {URL} to a server's URL"
        )
    }
}

static SYNCS_TO_DISK: AtomicBool = AtomicBool::new(false);

/// Makes the servers that are started here from now on sync to disk, for whoever measures.
///
/// Tests do without. They kill processes, not machines, and the kernel still has what a killed
/// server wrote. Creating and dropping its database is most of a test's time.
pub fn sync_to_disk() {
    SYNCS_TO_DISK.store(true, Ordering::Relaxed);
}

impl PostgresServer {
    /// Finds a server: the one in [`URL`], or one in a container of [`IMAGE`]. Otherwise one from
    /// the binaries on this machine, in a temporary directory.
    ///
    /// # Errors
    /// What was tried and why it failed. A server in [`URL`] must answer: nothing else is tried
    /// then.
    pub async fn find() -> Result<Self, Unavailable> {
        let via = std::env::var(VIA).ok();
        let allowed = |way: &str| via.as_deref().is_none_or(|via| via == way);
        let mut tried = Vec::new();
        if let Some(via) = via.as_deref().filter(|via| !["environment", "docker", "local"].contains(via)) {
            tried.push((VIA, format!("is `{via}`, it takes `environment`, `docker` or `local`")));
            return Err(Unavailable { tried });
        }
        if allowed("environment") {
            match std::env::var(URL) {
                Ok(url) => match Self::at(&url).await {
                    Ok(server) => return Ok(server),
                    Err(why) => {
                        tried.push((URL, why));
                        return Err(Unavailable { tried });
                    }
                },
                Err(_) => tried.push((URL, "is not set".to_owned())),
            }
        }
        if allowed("docker") {
            match docker::start().await {
                Ok(server) => return Ok(server),
                Err(why) => tried.push(("Docker", why)),
            }
        }
        if allowed("local") {
            match local::start().await {
                Ok(server) => return Ok(server),
                Err(why) => tried.push(("local binaries", why)),
            }
        }
        Err(Unavailable { tried })
    }

    /// The server in a URL. The URL itself is in no message, because it may hold a password.
    async fn at(url: &str) -> Result<Self, String> {
        let options: PgConnectOptions =
            url.parse().map_err(|_| "is not the URL of a PostgreSQL server".to_owned())?;
        let (before, after) = url.split_once('?').unwrap_or((url, ""));
        let authority = before.find("://").map_or(0, |at| at + 3);
        let end = before[authority..].find('/').map_or(before.len(), |at| authority + at);
        let after = if after.is_empty() { String::new() } else { format!("?{after}") };
        let origin = format!("the server at {}:{} of {URL}", options.get_host(), options.get_port());
        let server = Self {
            origin,
            url: (format!("{}/", &before[..end]), after),
            started: Mutex::new(Started::Nothing),
        };
        connect(&options).await.map_err(|error| format!("names a server that does not answer: {error}"))?;
        Ok(server)
    }

    /// Where the server comes from, for people to read.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The URL of a database of this server.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("{}{database}{}", self.url.0, self.url.1)
    }

    /// Executes a statement in the database `postgres`. Only for this crate's own statements.
    async fn administer(&self, statement: String) -> Result<(), sqlx::Error> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        connection.execute(AssertSqlSafe(statement)).await?;
        connection.close().await
    }

    /// Such as 150018.
    async fn version(&self) -> Result<i32, sqlx::Error> {
        const VERSION: &str = "SELECT current_setting('server_version_num')::int";
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let version = sqlx::query_scalar(VERSION).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(version)
    }

    /// Makes the server fail, and waits until it answers again. Returns `false` if it was not
    /// started here, because only such a server is ours to break. It must also be a process of this
    /// machine: a container has another address when it starts again.
    pub(crate) async fn fail(self: &Arc<Self>, failure: ServerFailure) -> Result<bool, String> {
        let (ours, process) = match &*self.started.lock().unwrap_or_else(PoisonError::into_inner) {
            Started::Nothing => (false, false),
            Started::Container(_) => (true, false),
            Started::Process(_) => (true, true),
        };
        match failure {
            ServerFailure::Crash if process => self.order(Order::Crash).await?,
            ServerFailure::Failover if process => {
                if let Err(error) = self.fail_over().await {
                    // Otherwise every commit would wait for a standby for ever.
                    for undo in ["ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"] {
                        self.administer(undo.to_owned())
                            .await
                            .map_err(|undoing| format!("{error}; {undoing}"))?;
                    }
                    return Err(error);
                }
            }
            ServerFailure::ConnectionsCut if ours => {
                let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                           WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
                self.administer(cut.to_owned()).await.map_err(|error| error.to_string())?;
            }
            _ => return Ok(false),
        }
        let url = self.url("postgres");
        wait_until_it_answers(&url.parse().map_err(|error: sqlx::Error| error.to_string())?).await?;
        Ok(true)
    }

    /// Starts a synchronous standby, and makes it take over once it has everything that was ever
    /// acknowledged.
    async fn fail_over(self: &Arc<Self>) -> Result<(), String> {
        let failed = |error: sqlx::Error| format!("no standby can be had: {error}");
        self.order(Order::Prepare).await?;
        // Once this takes effect, no commit is acknowledged until a standby has it.
        self.administer("ALTER SYSTEM SET synchronous_standby_names = '*'".to_owned())
            .await
            .map_err(failed)?;
        self.administer("SELECT pg_reload_conf()".to_owned()).await.map_err(failed)?;
        let begun = Instant::now();
        let mut waiting = self.commit();
        while !self.somebody_waits_for_a_standby().await.map_err(failed)? {
            if waiting.is_finished() {
                waiting = self.commit();
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("no commit waits for a standby after {PATIENCE:?}"));
            }
        }
        // This commit begins now. So it is acknowledged only when the standby has it and everything
        // before.
        let last = self.commit();
        self.order(Order::Follow).await?;
        for commit in [waiting, last] {
            commit.await.map_err(|error| error.to_string())?.map_err(failed)?;
        }
        self.order(Order::TakeOver).await
    }

    /// A commit that changes nothing.
    fn commit(self: &Arc<Self>) -> JoinHandle<Result<(), sqlx::Error>> {
        let server = self.clone();
        tokio::spawn(async move {
            server.administer("SELECT pg_logical_emit_message(true, 'ork-state', '')".to_owned()).await
        })
    }

    async fn somebody_waits_for_a_standby(&self) -> Result<bool, sqlx::Error> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')";
        let waits = sqlx::query_scalar(waits).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(waits)
    }

    async fn order(self: &Arc<Self>, order: Order) -> Result<(), String> {
        let server = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            match &mut *server.started.lock().unwrap_or_else(PoisonError::into_inner) {
                Started::Process(process) => process.order(order).map_err(|error| error.to_string()),
                Started::Nothing | Started::Container(_) => Err("the server is gone".to_owned()),
            }
        });
        done.await.map_err(|error| error.to_string())?
    }

    /// Stops what was started. The server is gone after the first call.
    pub async fn stop(&self) {
        let started = std::mem::replace(
            &mut *self.started.lock().unwrap_or_else(PoisonError::into_inner),
            Started::Nothing,
        );
        match started {
            Started::Nothing => {}
            Started::Container(container) => container.stop().await,
            Started::Process(process) => process.stop(),
        }
    }
}

/// Connects once.
async fn connect(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    options.connect().await?.close().await
}

/// Waits until a server that was just started answers.
async fn wait_until_it_answers(options: &PgConnectOptions) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        match connect(options).await {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => {
                return Err(format!("does not answer after {PATIENCE:?}: {error}"));
            }
            // The only sign that it is ready is that it answers.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
