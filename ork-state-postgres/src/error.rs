//! Maps the driver's errors to the API's.

use std::fmt;

use ork_state_api::Error;
use sqlx::error::DatabaseError;

/// The SQLSTATEs that we handle: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
mod sqlstate {
    pub(super) const READ_ONLY: &str = "25006";
    pub(super) const INVALID_AUTHORIZATION: &str = "28000";
    pub(super) const INVALID_PASSWORD: &str = "28P01";
    pub(super) const UNKNOWN_SCHEMA: &str = "3F000";
    pub(super) const UNKNOWN_DATABASE: &str = "3D000";
    pub(super) const SERIALIZATION_FAILURE: &str = "40001";
    pub(super) const COMPLETION_UNKNOWN: &str = "40003";
    pub(super) const DEADLOCK: &str = "40P01";
    pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub(super) const UNKNOWN_COLUMN: &str = "42703";
    pub(super) const UNKNOWN_FUNCTION: &str = "42883";
    pub(super) const UNKNOWN_TABLE: &str = "42P01";
    pub(super) const LOCK_NOT_AVAILABLE: &str = "55P03";
    pub(super) const QUERY_CANCELED: &str = "57014";
    pub(super) const ADMIN_SHUTDOWN: &str = "57P01";
    pub(super) const CRASH_SHUTDOWN: &str = "57P02";
    pub(super) const CANNOT_CONNECT_NOW: &str = "57P03";
    /// Lost connections.
    pub(super) const CLASS_CONNECTION: &str = "08";
    /// Bad input to a statement. The server's messages quote it.
    pub(super) const CLASS_DATA: &str = "22";
    /// Disk full, out of memory, too many connections.
    pub(super) const CLASS_RESOURCES: &str = "53";
}

/// Whether a statement may have changed something by the time its connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// What to do about a failure besides reporting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Nothing.
    Tell,
    /// The statement was rolled back because of another one. Send it again.
    Repeat,
    /// The server has changed. Connections made before now must not be used again.
    Reconnect,
    /// The schema has changed.
    LookAtSchema,
}

/// The server's message, without anything that could quote a payload: no detail, and no message
/// about data.
#[derive(Debug)]
struct ServerSaid {
    code: String,
    message: String,
}

impl fmt::Display for ServerSaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server said {}: {}", self.code, self.message)
    }
}

impl std::error::Error for ServerSaid {}

impl ServerSaid {
    fn new(error: &dyn DatabaseError) -> Self {
        let code = error.code().unwrap_or_default().into_owned();
        let quotes_data = code.starts_with(sqlstate::CLASS_DATA);
        let message =
            if quotes_data { "(withheld: it may quote data)".into() } else { error.message().to_owned() };
        Self { code, message }
    }
}

/// What to do about a failed statement.
pub(crate) fn remedy(error: &sqlx::Error) -> Remedy {
    let Some(code) = error.as_database_error().and_then(DatabaseError::code) else {
        return if is_broken(error) { Remedy::Reconnect } else { Remedy::Tell };
    };
    match &*code {
        sqlstate::SERIALIZATION_FAILURE | sqlstate::DEADLOCK => Remedy::Repeat,
        sqlstate::READ_ONLY | sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN => Remedy::Reconnect,
        sqlstate::UNKNOWN_TABLE
        | sqlstate::UNKNOWN_SCHEMA
        | sqlstate::UNKNOWN_FUNCTION
        | sqlstate::UNKNOWN_COLUMN => Remedy::LookAtSchema,
        _ => Remedy::Tell,
    }
}

/// Whether the connection is gone, which leaves it unknown how far the statement got.
fn is_broken(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed
    )
}

/// The error of a statement that was sent to the store at `place`.
pub(crate) fn of_statement(place: &str, access: Access, error: sqlx::Error) -> Error {
    let broken = |reason: String| match access {
        Access::Read => Error::unavailable(reason),
        Access::Write => Error::unknown_effect(reason),
    };
    let Some(said) = error.as_database_error() else {
        return match &error {
            error if is_broken(error) => broken(format!("the connection to {place} broke")),
            // We decode the columns ourselves, so this is about the protocol or one of our
            // statements.
            _ => Error::internal(format!("the driver failed at a statement for {place}")),
        }
        .with_source(error);
    };
    let said = ServerSaid::new(said);
    match said.code.as_str() {
        sqlstate::SERIALIZATION_FAILURE | sqlstate::DEADLOCK => {
            Error::unavailable(format!("too much goes on at once at {place}"))
        }
        sqlstate::LOCK_NOT_AVAILABLE => Error::unavailable(format!("a lock at {place} was not had in time"))
            .with_hint("Try again, or raise the option `lock_timeout`"),
        sqlstate::QUERY_CANCELED => Error::unavailable(format!(
            "a statement at {place} was cancelled or took too long"
        ))
        .with_hint("Try again, with a smaller limit or batch, or raise the option `statement_timeout`"),
        sqlstate::READ_ONLY => {
            Error::unavailable(format!("the server at {place} is read-only: a standby, or demoted"))
                .with_hint("Try again: new connections may find the new primary")
        }
        sqlstate::CANNOT_CONNECT_NOW => {
            Error::unavailable(format!("the server at {place} is starting or stopping"))
        }
        // It may also come after the commit, before the answer has arrived.
        sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN | sqlstate::COMPLETION_UNKNOWN => {
            broken(format!("the server at {place} ended the connection"))
        }
        sqlstate::INSUFFICIENT_PRIVILEGE => {
            Error::conflict(format!("the user may not do this in the database at {place}"))
                .with_hint("Have the owner of the schema grant what the message below names")
        }
        code if code.starts_with(sqlstate::CLASS_CONNECTION) => {
            broken(format!("the connection to {place} broke"))
        }
        code if code.starts_with(sqlstate::CLASS_RESOURCES) => {
            Error::unavailable(format!("the server at {place} is out of a resource"))
                .with_hint("The message below names it: disk, memory or connections")
        }
        code => Error::internal(format!("a statement failed at {place} with SQLSTATE {code}")),
    }
    .with_source(said)
}

/// The error of a statement that got no answer.
pub(crate) fn no_answer(place: &str, access: Access, limit: std::time::Duration) -> Error {
    let reason = format!("no answer from {place} within {limit:?}");
    let error = match access {
        Access::Read => Error::unavailable(reason),
        Access::Write => Error::unknown_effect(reason),
    };
    error.with_hint(
        "The server or the network may be gone, or the call is too large for the option `call_timeout`",
    )
}

/// The error of failing to connect to the store at `place` as this user.
pub(crate) fn of_connecting(place: &str, user: &str, error: sqlx::Error) -> Error {
    let Some(said) = error.as_database_error() else {
        return match &error {
            sqlx::Error::PoolTimedOut => Error::unavailable(format!("no connection to {place} in time"))
                .with_hint("The server does not answer, or all connections are busy: see the options `connect_timeout` and `max_connections`"),
            sqlx::Error::Tls(_) => Error::unavailable(format!("no encrypted connection to {place}"))
                .with_hint("See the options `sslmode` and `sslrootcert`, and whether the crate was built with its feature `tls`"),
            _ => Error::unavailable(format!("no connection to {place}"))
                .with_hint("Check that the server runs there and that host and port of the URL are right"),
        }
        .with_source(error);
    };
    let said = ServerSaid::new(said);
    match said.code.as_str() {
        sqlstate::INVALID_PASSWORD | sqlstate::INVALID_AUTHORIZATION => {
            Error::conflict(format!("the server at {place} does not let the user {user:?} in"))
                .with_hint("Check user and password of the URL, and the server's pg_hba.conf")
        }
        sqlstate::UNKNOWN_DATABASE => Error::conflict(format!("there is no such database at {place}"))
            .with_hint("Create it, such as by `createdb --encoding=UTF8`, or correct the URL"),
        sqlstate::INSUFFICIENT_PRIVILEGE => {
            Error::conflict(format!("the user {user:?} may not connect to the database at {place}"))
                .with_hint("Have its owner grant CONNECT")
        }
        _ => Error::unavailable(format!("the server at {place} takes no connection now")),
    }
    .with_source(said)
}
