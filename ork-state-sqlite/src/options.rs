//! The options of a store, from a URL or set by hand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::backend::{Backend, Capabilities, OptionInfo};
use ork_state_api::{Clock, ConnectOptions, Database, Error, Result, SystemClock};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

/// The backend's entry in the registry.
pub static BACKEND: Backend = Backend {
    name: "sqlite",
    package: "ork_state_sqlite",
    schemes: &["sqlite"],
    example: "sqlite://ork.db",
    capabilities: Capabilities::all(),
    options: &[
        OptionInfo { name: "synchronous", help: "`full` or `normal`; default `full`" },
        OptionInfo { name: "busy_timeout", help: "how long to wait for another process, such as `10s`" },
        OptionInfo { name: "readers", help: "most reads at the same time, 1 to 64; default 4" },
        OptionInfo { name: "max_log_bytes", help: "where a task's log is capped; default no cap" },
        OptionInfo { name: "mode", help: "`rwc` creates a missing file, `rw` does not; default `rwc`" },
    ],
    connect: |options| {
        Box::pin(async move {
            let database = SqliteOptions::from_url(&options)?.connect().await?;
            Ok(Arc::new(database) as Arc<dyn Database>)
        })
    },
};

/// The location in a URL that means a database in memory.
const IN_MEMORY: &str = ":memory:";

/// After a large transaction, the WAL is truncated to this size.
const WAL_BYTES_KEPT: &str = "67108864";

/// When a commit is synced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// Before it is acknowledged. It survives a loss of power.
    #[default]
    Full,
    /// At the next checkpoint. It survives a crash of the process, but a loss of power may lose the
    /// last writes.
    Normal,
}

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// In this file; the path is absolute.
    File(PathBuf),
    /// In memory.
    Memory,
}

/// How to open a store.
///
/// ```
/// # async fn example() -> ork_state_api::Result<()> {
/// use ork_state_api::Maintenance as _;
/// use ork_state_sqlite::SqliteOptions;
///
/// let db = SqliteOptions::new("ork.db")?.with_readers(8).connect().await?;
/// db.migrate().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    pub(crate) location: Location,
    pub(crate) synchronous: Synchronous,
    pub(crate) busy_timeout: Duration,
    pub(crate) readers: u32,
    pub(crate) max_log_bytes: Option<u64>,
    pub(crate) creates: bool,
    pub(crate) clock: Arc<dyn Clock>,
}

impl SqliteOptions {
    /// The largest `busy_timeout`.
    pub const MAX_BUSY_TIMEOUT: Duration = Duration::from_secs(600);
    /// The most `readers`.
    pub const MAX_READERS: u32 = 64;

    /// The database in this file, which is created if it does not exist.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is empty or not UTF-8.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self> {
        // Absolute, so that the store stays the same when the process changes its directory. It
        // also keeps SQLite from reading a name as one of its URIs.
        let path = std::path::absolute(path.into())
            .map_err(|source| Error::invalid("database path", "cannot be used").with_source(source))?;
        if path.to_str().is_none() {
            return Err(Error::invalid("database path", format!("{} is not UTF-8", path.display())));
        }
        Ok(Self::at(Location::File(path)))
    }

    /// A new, private database in memory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::at(Location::Memory)
    }

    fn at(location: Location) -> Self {
        Self {
            location,
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_secs(10),
            readers: 4,
            max_log_bytes: None,
            creates: true,
            clock: Arc::new(SystemClock::default()),
        }
    }

    /// Parses a URL.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid path or option.
    pub fn from_url(options: &ConnectOptions) -> Result<Self> {
        let path = options.url().path()?;
        let mut this = if path == IN_MEMORY { Self::in_memory() } else { Self::new(path)? };
        let parameters = options.url().parameters(&BACKEND)?;
        let choices = [("full", Synchronous::Full), ("normal", Synchronous::Normal)];
        if let Some(synchronous) = parameters.choice("synchronous", &choices)? {
            this.synchronous = synchronous;
        }
        if let Some(timeout) = parameters.duration("busy_timeout", Duration::ZERO..=Self::MAX_BUSY_TIMEOUT)? {
            this.busy_timeout = timeout;
        }
        if let Some(readers) = parameters.number("readers", 1..=u64::from(Self::MAX_READERS))? {
            this.readers = u32::try_from(readers).unwrap_or(Self::MAX_READERS);
        }
        this.max_log_bytes = parameters.number("max_log_bytes", 0..=i64::MAX.unsigned_abs())?;
        // The names of SQLite's own URIs. Ork's URLs end in `mode=rwc`.
        this.creates = parameters.choice("mode", &[("rwc", true), ("rw", false)])?.unwrap_or(true);
        this.clock = options.clock_or_system();
        Ok(this)
    }

    /// Sets when a commit is synced to disk.
    #[must_use]
    pub const fn with_synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Sets how long a call waits for another process's write, at most
    /// [`MAX_BUSY_TIMEOUT`](Self::MAX_BUSY_TIMEOUT).
    #[must_use]
    pub fn with_busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout.min(Self::MAX_BUSY_TIMEOUT);
        self
    }

    /// Sets how many reads may run at the same time: 1 to [`MAX_READERS`](Self::MAX_READERS).
    #[must_use]
    pub fn with_readers(mut self, readers: u32) -> Self {
        self.readers = readers.clamp(1, Self::MAX_READERS);
        self
    }

    /// Caps every task's log at this many bytes.
    #[must_use]
    pub fn with_max_log_bytes(mut self, bytes: u64) -> Self {
        self.max_log_bytes = Some(bytes.min(i64::MAX.unsigned_abs()));
        self
    }

    /// Does not create the file if it is missing: connecting then fails.
    #[must_use]
    pub const fn existing(mut self) -> Self {
        self.creates = false;
        self
    }

    /// Replaces the machine's clock, for tests.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The driver's options for inspecting a file that may not be ours. They change nothing in it.
    pub(crate) fn look(&self) -> SqliteConnectOptions {
        let options = self.connection();
        match &self.location {
            Location::File(path) => options.filename(path).create_if_missing(false),
            Location::Memory => options.in_memory(true),
        }
    }

    /// The driver's options for the connection that writes.
    pub(crate) fn writer(&self) -> SqliteConnectOptions {
        let options = self.look();
        match self.location {
            Location::File(_) => {
                options.journal_mode(SqliteJournalMode::Wal).pragma("journal_size_limit", WAL_BYTES_KEPT)
            }
            Location::Memory => options,
        }
    }

    fn connection(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .foreign_keys(true)
            .busy_timeout(self.busy_timeout)
            .synchronous(match self.synchronous {
                Synchronous::Full => SqliteSynchronous::Full,
                Synchronous::Normal => SqliteSynchronous::Normal,
            })
            // With a memory-mapped file, an I/O error is a crash.
            .pragma("mmap_size", "0")
            .disable_statement_logging()
    }

    /// The driver's options for a connection that only reads.
    pub(crate) fn reader(&self) -> SqliteConnectOptions {
        self.writer().pragma("query_only", "ON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn parse(url: &str) -> Result<SqliteOptions> {
        SqliteOptions::from_url(&ConnectOptions::new(url)?)
    }

    #[rstest]
    #[case("sqlite:///var/lib/ork.db", "/var/lib/ork.db")]
    #[case("sqlite:///with%20space%3F.db", "/with space?.db")]
    #[case("SQLite:/x.db", "/x.db")]
    fn absolute_paths(#[case] url: &str, #[case] path: &str) {
        assert_eq!(parse(url).unwrap().location, Location::File(path.into()));
    }

    #[rstest]
    #[case("sqlite://ork.db", "ork.db")]
    #[case("sqlite:ork.db", "ork.db")]
    #[case("sqlite://./dir/ork.db", "dir/ork.db")]
    #[case("sqlite://file:ork.db", "file:ork.db")]
    fn relative_paths_are_made_absolute(#[case] url: &str, #[case] path: &str) {
        let expected = std::env::current_dir().unwrap().join(path);
        assert_eq!(parse(url).unwrap().location, Location::File(expected));
    }

    #[rstest]
    #[case("sqlite::memory:")]
    #[case("sqlite://:memory:")]
    fn memory(#[case] url: &str) {
        assert_eq!(parse(url).unwrap().location, Location::Memory);
    }

    #[tokio::test]
    async fn every_connection_has_every_setting() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("ork.db")).unwrap();
        options.clone().connect().await.unwrap();
        for (connection, query_only) in [(options.writer(), 0), (options.reader(), 1), (options.reader(), 1)]
        {
            let mut connection = connection.connect().await.unwrap();
            let expected = [
                ("synchronous", 2),
                ("foreign_keys", 1),
                ("busy_timeout", 10_000),
                ("mmap_size", 0),
                ("query_only", query_only),
            ];
            for (pragma, value) in expected {
                let ask = sqlx::AssertSqlSafe(format!("PRAGMA {pragma}"));
                let found: i64 = sqlx::query_scalar(ask).fetch_one(&mut connection).await.unwrap();
                assert_eq!(found, value, "{pragma}");
            }
            let mode: String =
                sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
            assert_eq!(mode, "wal");
        }
    }

    #[test]
    fn defaults() {
        let options = parse("sqlite://x").unwrap();
        assert_eq!(
            (options.synchronous, options.busy_timeout, options.readers, options.max_log_bytes),
            (Synchronous::Full, Duration::from_secs(10), 4, None)
        );
        assert!(options.creates && parse("sqlite://ork.db?mode=rwc").unwrap().creates);
        assert!(!parse("sqlite://ork.db?mode=rw").unwrap().creates);
    }

    #[test]
    fn every_option_is_read() {
        let options =
            parse("sqlite://x?synchronous=normal&busy_timeout=250ms&readers=9&max_log_bytes=0").unwrap();
        assert_eq!(
            (options.synchronous, options.busy_timeout, options.readers, options.max_log_bytes),
            (Synchronous::Normal, Duration::from_millis(250), 9, Some(0))
        );
    }

    #[rstest]
    #[case("sqlite:")]
    #[case("sqlite://")]
    #[case("sqlite://x?synchronous=off")]
    #[case("sqlite://x?busy_timeout=10")]
    #[case("sqlite://x?busy_timeout=11m")]
    #[case("sqlite://x?readers=0")]
    #[case("sqlite://x?readers=65")]
    #[case("sqlite://x?max_log_bytes=-1")]
    #[case("sqlite://x?max_log_bytes=9223372036854775808")]
    #[case("sqlite://x?mode=ro")]
    fn refused(#[case] url: &str) {
        let error = parse(url).unwrap_err();
        assert!(matches!(error.kind(), ork_state_api::ErrorKind::InvalidInput { .. }), "{error}");
    }
}
