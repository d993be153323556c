//! The errors of this crate, and the one place that maps the driver's errors to the API's.

use std::sync::Arc;

use ork_state_api::Error;

use crate::options::Location;

// Primary result codes, https://sqlite.org/rescode.html
const PERM: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const NOTADB: i32 = 26;

/// The result of work on a connection.
pub(crate) type Attempt<T> = Result<T, Fault>;

/// Why work on a connection failed. It becomes an [`Error`] where the database's location is known.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The answer to the caller.
    Answer(Error),
    /// The driver failed. Shared, because it may be the answer to all calls of a transaction.
    Driver(Arc<sqlx::Error>),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Answer(error)
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Driver(Arc::new(error))
    }
}

impl Fault {
    pub(crate) fn into_error(self, location: &Location) -> Error {
        match self {
            Self::Answer(error) => error,
            Self::Driver(error) => describe(location, &error, Stage::Work),
        }
    }
}

/// Where in a transaction the driver failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before its commit: nothing was applied.
    Work,
    /// In its commit.
    Commit,
}

/// SQLite's primary result code, if the error is one of SQLite's.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// Whether somebody else held a lock for too long.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(BUSY | LOCKED))
}

/// Maps the driver's error to the API's, which names the file and what to do.
///
/// SQLite's messages name tables and columns, never values. So the driver's error may be the
/// source.
pub(crate) fn describe(location: &Location, error: &Arc<sqlx::Error>, stage: Stage) -> Error {
    let place = match location {
        Location::File(path) => format!("the database {}", path.display()),
        Location::Memory => "the database in memory".to_owned(),
    };
    let unavailable =
        |reason: &str, hint: &str| Error::unavailable(format!("{place} {reason}")).with_hint(hint);
    let error_out = match primary_code(error) {
        Some(BUSY | LOCKED) => unavailable(
            "is locked by another process",
            "Try again; if it stays so, find who holds it, or connect with a longer `busy_timeout`",
        ),
        Some(FULL) => unavailable("cannot grow: the disk is full", "Make room on the disk, then try again"),
        Some(READONLY | PERM) => unavailable(
            "cannot be written",
            "Let the user of this process write the file, its -wal and -shm, and their directory",
        ),
        Some(CANTOPEN) => unavailable(
            "cannot be opened",
            "Check that its directory is there and that the user of this process may write in it",
        ),
        // The WAL may hold the whole commit although the disk did not confirm it.
        Some(IOERR) if stage == Stage::Commit => {
            Error::unknown_effect(format!("the disk failed while {place} was committing"))
                .with_hint("Check the disk, then repeat the call")
        }
        Some(IOERR) => {
            unavailable("cannot be read or written: the disk failed", "Check the disk, then try again")
        }
        Some(CORRUPT) => broken(location, "the database disk image is malformed"),
        Some(NOTADB) => broken(location, "the file is not a SQLite database"),
        _ => match &**error {
            sqlx::Error::PoolTimedOut => unavailable(
                "has more reads waiting than it can serve",
                "Try again, or connect with more `readers`",
            ),
            sqlx::Error::WorkerCrashed | sqlx::Error::PoolClosed if stage == Stage::Commit => {
                Error::unknown_effect(format!("{place} was closed while it was committing"))
                    .with_hint("Connect again, then repeat the call")
            }
            sqlx::Error::WorkerCrashed | sqlx::Error::PoolClosed => {
                unavailable("is being closed", "Connect again")
            }
            sqlx::Error::Io(_) => unavailable("cannot be opened", "Check the file and its directory"),
            _ => Error::internal(format!("{place} refused a statement"))
                .with_hint("Please report this, with the cause that the error's debug form shows"),
        },
    };
    error_out.with_source(Arc::clone(error))
}

fn broken(location: &Location, reason: &str) -> Error {
    let file = match location {
        Location::File(path) => path.display().to_string(),
        Location::Memory => "memory".to_owned(),
    };
    Error::corrupt(file, "as a whole", "the file", reason)
        .with_hint("Restore it from a backup, or move it away to begin with an empty store")
}

/// The writer or a reader ended before it answered. The runtime is shutting down, or there is a
/// bug.
pub(crate) fn gone() -> Error {
    Error::unknown_effect("the store was closed before it answered")
        .with_hint("Keep the Tokio runtime that connected the store, or connect again")
}
