//! The options of a store, from a URL or set by hand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::backend::OptionInfo;
use ork_state_api::{Clock, ConnectOptions, Error, Result, SystemClock};

use crate::database::FileDatabase;
use crate::engine::{Engine, Place};
use crate::journal::Sync;
use crate::{BACKEND, MEMORY_BACKEND};

pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) const MAX_LOG_BYTES: OptionInfo =
    OptionInfo { name: "max_log_bytes", help: "cap of each task's log in bytes; default none" };
pub(crate) const FILE_OPTIONS: &[OptionInfo] = &[
    OptionInfo { name: "sync", help: "`full` or `off`: whether a commit waits for the disk; default full" },
    OptionInfo {
        name: "lock_timeout",
        help: "how long to wait for other processes, 1ms to 10m; default 10s",
    },
    MAX_LOG_BYTES,
];
pub(crate) const MEMORY_OPTIONS: &[OptionInfo] = &[MAX_LOG_BYTES];

/// How to open a [`FileDatabase`].
///
/// ```
/// # use ork_state_file::FileOptions;
/// # async fn open() -> ork_state_api::Result<()> {
/// let db = FileOptions::directory("./ork-state").connect().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct FileOptions {
    directory: Option<PathBuf>,
    sync: Sync,
    lock_timeout: Duration,
    max_log_bytes: Option<u64>,
    clock: Arc<dyn Clock>,
}

impl FileOptions {
    /// A store in this directory, which is created if its parent exists.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self { directory: Some(path.into()), ..Self::memory() }
    }

    /// A new store in memory. It is gone when its last handle is dropped.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            directory: None,
            sync: Sync::Full,
            lock_timeout: LOCK_TIMEOUT,
            max_log_bytes: None,
            clock: Arc::new(SystemClock::default()),
        }
    }

    /// Parses a URL: `file:DIRECTORY` or `memory:`, with the options that the backend lists.
    ///
    /// # Errors
    /// `InvalidInput` if the URL or an option is wrong.
    pub fn from_url(options: &ConnectOptions) -> Result<Self> {
        let url = options.url();
        let in_memory = MEMORY_BACKEND.schemes.contains(&url.scheme());
        let parameters = url.parameters(if in_memory { &MEMORY_BACKEND } else { &BACKEND })?;
        if in_memory && !url.location().trim_start_matches('/').is_empty() {
            return Err(Error::invalid("store URL", "names a place, `memory:` has none"));
        }
        let this = if in_memory { Self::memory() } else { Self::directory(url.path()?) };
        let timeouts = Duration::from_millis(1)..=Duration::from_secs(600);
        Ok(Self {
            sync: parameters
                .choice("sync", &[("full", Sync::Full), ("off", Sync::Off)])?
                .unwrap_or(this.sync),
            lock_timeout: parameters.duration("lock_timeout", timeouts)?.unwrap_or(this.lock_timeout),
            max_log_bytes: parameters.number("max_log_bytes", 0..=i64::MAX as u64)?,
            clock: options.clock_or_system(),
            ..this
        })
    }

    /// Sets whether a commit waits for the disk.
    #[must_use]
    pub const fn with_sync(mut self, sync: Sync) -> Self {
        self.sync = sync;
        self
    }

    /// Sets how long to wait for other processes that hold the store's lock.
    #[must_use]
    pub const fn with_lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// Caps each task's log.
    #[must_use]
    pub const fn with_max_log_bytes(mut self, bytes: u64) -> Self {
        self.max_log_bytes = Some(bytes);
        self
    }

    /// Replaces the store's time (rule G4).
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Opens the store, reading all of it. It does not migrate.
    ///
    /// # Errors
    /// `Unavailable` when the directory cannot be read or written. `Corrupt`, with file and offset,
    /// when its contents cannot be understood. `SchemaMismatch` for a newer format, `Conflict` for
    /// a directory of an older Ork.
    pub async fn connect(self) -> Result<FileDatabase> {
        let backend = if self.directory.is_some() { &BACKEND } else { &MEMORY_BACKEND };
        let (lock_timeout, sync) = (self.lock_timeout, self.sync);
        let place = self.directory.map(|directory| Place { directory, lock_timeout, sync });
        Ok(FileDatabase::new(Engine::start(place, self.clock).await?, backend, self.max_log_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn parse(url: &str) -> Result<FileOptions> {
        FileOptions::from_url(&ConnectOptions::new(url)?)
    }

    #[rstest]
    #[case("file:./dir", Some("./dir"))]
    #[case("file:///var/lib/ork", Some("/var/lib/ork"))]
    #[case("file:a%20b?sync=off&lock_timeout=250ms&max_log_bytes=0", Some("a b"))]
    #[case("memory:", None)]
    #[case("memory://?max_log_bytes=9223372036854775807", None)]
    fn good(#[case] url: &str, #[case] directory: Option<&str>) {
        assert_eq!(parse(url).unwrap().directory, directory.map(PathBuf::from));
    }

    #[rstest]
    #[case("file:", "no path")]
    #[case("file:x?sync=maybe", "one of `full`, `off`")]
    #[case("file:x?lock_timeout=0ms", "a duration from 1ms")]
    #[case("file:x?max_log_bytes=-1", "a whole number from 0")]
    #[case("file:x?schema=a", "sync (`full` or `off`")]
    #[case("memory:x", "has none")]
    #[case("memory:?sync=full", "max_log_bytes")]
    fn bad(#[case] url: &str, #[case] says: &str) {
        let error = parse(url).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
