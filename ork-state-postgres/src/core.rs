//! What every call needs: connections, the store's location and its clock.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ork_state_api::{Clock, Error, Result};
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};

use crate::connections::{Connections, Held};
use crate::error::{Access, Remedy, no_answer, of_connecting, of_statement, remedy};
use crate::options::PostgresOptions;
use crate::rows::Stamp;
use crate::schema;
use crate::site::{Query, Site};
use crate::statement::Statement;

/// How often a statement is retried after the server rolled it back because of another one.
const REPETITIONS: u32 = 8;
/// How long a check of the schema counts before it is repeated.
const TRUSTED_SCHEMA: Duration = Duration::from_secs(5);

/// What calls work with.
pub(crate) struct Core {
    connections: Connections,
    pub(crate) site: Site,
    clock: Option<Arc<dyn Clock>>,
    pub(crate) max_log_bytes: Option<u64>,
    user: String,
    /// When the schema was last seen to match this code.
    current_at: Mutex<Option<Instant>>,
    /// How long to wait for the answer to a statement.
    call_timeout: Duration,
}

impl Core {
    pub(crate) fn new(options: PostgresOptions) -> Result<Self> {
        let connections =
            Connections::new(options.session(), options.max_connections, options.connect_timeout)
                .map_err(|source| Error::internal("the connections cannot be kept").with_source(source))?;
        Ok(Self {
            connections,
            site: Site::new(options.place(), options.schema.clone()),
            user: options.driver.get_username().to_owned(),
            clock: options.clock,
            max_log_bytes: options.max_log_bytes,
            current_at: Mutex::new(None),
            call_timeout: options.call_timeout,
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.size()
    }

    /// Checks whether the server and the store are usable, over a new connection.
    ///
    /// A pooled connection would not do: getting one waits until the timeout, and then cannot say
    /// why.
    pub(crate) async fn look(&self, timeout: Duration) -> Result<()> {
        let options = self.connections.options();
        let mut connection = tokio::time::timeout(timeout, PgConnection::connect_with(options))
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
            .map_err(|error| self.cannot_connect(error))?;
        schema::check_at_connect(&self.site, &mut connection).await?;
        // It served its purpose. How the close goes does not matter.
        let _ = connection.close().await;
        Ok(())
    }

    /// A statement to bind arguments to.
    pub(crate) fn query(&self, statement: Statement) -> Query {
        self.site.query(statement)
    }

    /// The injected clock's time, to be bound as a statement's `now`. `None` means the server's
    /// time.
    pub(crate) fn now(&self) -> Option<Stamp> {
        self.clock.as_ref().map(|clock| Stamp(clock.now()))
    }

    pub(crate) async fn acquire(&self) -> Result<Held> {
        self.connections.get().await.map_err(|error| self.cannot_connect(error))
    }

    /// How to open a separate connection.
    pub(crate) fn connect_options(&self) -> PgConnectOptions {
        self.connections.options().clone()
    }

    pub(crate) fn cannot_connect(&self, error: sqlx::Error) -> Error {
        of_connecting(&self.site.place, &self.user, error)
    }

    /// Refuses any schema but this code's. A schema that matched a moment ago is trusted. If a
    /// newer program migrates the store, this is noticed soon, and anything it removes is noticed
    /// at once.
    pub(crate) async fn require_current(&self) -> Result<()> {
        let seen = *self.current_at.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_none_or(|seen| seen.elapsed() > TRUSTED_SCHEMA) {
            self.check_schema().await?;
            *self.current_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(())
    }

    async fn check_schema(&self) -> Result<()> {
        let mut connection = self.acquire().await?;
        schema::check(&self.site, &mut connection).await
    }

    /// All rows of one statement, in a transaction of its own.
    pub(crate) async fn rows(&self, access: Access, query: impl Fn() -> Query + Send) -> Result<Vec<PgRow>> {
        self.rows_within(self.call_timeout, access, query).await
    }

    /// Like `rows`, with another limit on the wait for the answer.
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
                    // The server may have gone silently. The connection is in the middle of
                    // something, so it does not go back to the pool. Nor is it closed gracefully,
                    // which might wait as long again.
                    drop(Held::take(connection));
                    self.connections.distrust();
                    return Err(no_answer(&self.site.place, access, limit));
                }
            };
            // Other statements may use it while this one waits or gives up.
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
                    // If the schema is the cause, report that as the error.
                    self.check_schema().await?;
                }
            }
            return Err(of_statement(&self.site.place, access, error));
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

/// 1 to 2 ms, doubled with each repetition. Random, so that statements that collided do not collide
/// again.
fn pause(repetition: u32) -> Duration {
    let chance = RandomState::new().hash_one(repetition) % 1000;
    Duration::from_micros(1000 + chance) * 2_u32.saturating_pow(repetition)
}
