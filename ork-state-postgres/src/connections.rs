//! The store's pool of connections.
//!
//! This is not the driver's pool. That one asks the server whether a connection still works each
//! time it is returned: a second round trip for every call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};

/// A connection that was idle for longer is tested before use, because the server may be gone. The
/// test costs a round trip.
const TRUSTED_IDLE: Duration = Duration::from_secs(5);
/// How long the server may take to show that such a connection still works.
const PATIENCE: Duration = Duration::from_secs(5);
/// An older connection is replaced, because what a server keeps for a session grows.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// How long to wait before retrying a server that refused. Doubles with each retry.
const AGAIN: Duration = Duration::from_millis(10);

/// Hands out connections.
#[derive(Debug)]
pub(crate) struct Connections {
    pool: Pool<Opener>,
    timeout: Duration,
}

/// A pooled connection. It returns to the pool when it is dropped.
pub(crate) type Held = Object<Opener>;

#[derive(Debug)]
pub(crate) struct Opener {
    options: PgConnectOptions,
    /// Connections made before this are not used any more.
    distrusted: Arc<Mutex<Option<Instant>>>,
}

impl Manager for Opener {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        let mut pause = AGAIN;
        loop {
            match PgConnection::connect_with(&self.options).await {
                // The caller that waits for a connection sets the limit.
                Err(error) if is_starting(&error) => tokio::time::sleep(pause).await,
                connected => return connected,
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn recycle(&self, connection: &mut PgConnection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        let since = *self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        if metrics.age() > LIFETIME || since.is_some_and(|since| since.elapsed() < metrics.age()) {
            return Err(RecycleError::message("it is too old"));
        }
        if metrics.last_used() > TRUSTED_IDLE {
            match tokio::time::timeout(PATIENCE, connection.ping()).await {
                Ok(works) => works?,
                Err(_) => return Err(RecycleError::message("the server does not answer")),
            }
        }
        Ok(())
    }
}

/// Whether the server seems to be starting or restarting.
fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.is_transient_in_connect_phase(),
        _ => false,
    }
}

impl Connections {
    /// Opens at most this many connections. A call waits for one no longer than the timeout.
    pub(crate) fn new(
        options: PgConnectOptions,
        most: u32,
        timeout: Duration,
    ) -> Result<Self, deadpool::managed::BuildError> {
        let opener = Opener { options, distrusted: Arc::default() };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Ok(Self { pool: Pool::builder(opener).max_size(most).build()?, timeout })
    }

    pub(crate) fn options(&self) -> &PgConnectOptions {
        &self.pool.manager().options
    }

    /// How many connections there are.
    pub(crate) fn size(&self) -> usize {
        self.pool.status().size
    }

    pub(crate) async fn get(&self) -> Result<Held, sqlx::Error> {
        match tokio::time::timeout(self.timeout, self.pool.get()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(PoolError::Backend(error))) => Err(error),
            Ok(Err(PoolError::Closed)) => Err(sqlx::Error::PoolClosed),
            Ok(Err(_)) | Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    /// After a failover the server behind a connection may live on as a standby.
    pub(crate) fn distrust(&self) {
        *self.pool.manager().distrusted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}
