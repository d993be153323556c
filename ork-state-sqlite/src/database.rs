//! The store: its connections, and how calls run on them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use ork_state_api::backend::{Backend, Plugin};
use ork_state_api::{Clock, Error, Result, TaskUpdates, UpdateReport};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions};

use crate::error::{self, Fault, Stage};
use crate::gather::Gather;
use crate::options::{BACKEND, Location, SqliteOptions};
use crate::schema::{self, Schema};
use crate::signal::{FileWatcher, Signal};
use crate::writer::{Work, Writer, guarded, reading};

/// Older versions can corrupt the file when two connections reset the WAL at the same moment.
const OLDEST_SOUND_SQLITE: [u32; 3] = [3, 51, 3];

/// A store in a SQLite file. See the [crate's documentation](crate).
#[derive(Debug)]
pub struct SqliteDatabase {
    writer: Writer,
    updates: Arc<Gather>,
    /// None for a database in memory, which lives in the writer's connection, and for one that is
    /// not ours.
    readers: Option<SqlitePool>,
    location: Location,
    clock: Arc<dyn Clock>,
    max_log_bytes: Option<u64>,
    /// Whether a check of all steps found the schema that this code needs. Each transaction checks
    /// that this still holds.
    is_current: Arc<AtomicBool>,
    signal: Signal,
    /// Watches the file that other processes touch, while anybody watches the store.
    watcher: Arc<Mutex<Weak<FileWatcher>>>,
}

impl SqliteOptions {
    /// Opens the store. It does not migrate.
    ///
    /// # Errors
    /// `Unavailable` when the file cannot be opened, `Corrupt` when it is not a database,
    /// `SchemaMismatch` when it is newer than this code, `InvalidInput` when it is missing and may
    /// not be created.
    pub async fn connect(self) -> Result<SqliteDatabase> {
        SqliteDatabase::open(self).await
    }
}

impl SqliteDatabase {
    async fn open(options: SqliteOptions) -> Result<Self> {
        if let Location::File(path) = &options.location {
            if options.creates {
                create_private(path)?;
            } else if !path.exists() {
                let reason = format!("names the file {}, which does not exist", path.display());
                return Err(Error::invalid("database path", reason)
                    .with_hint("Check the path, or let `mode=rwc` create the file"));
            }
        }
        let fail = |fault: Fault| fault.into_error(&options.location);
        let mut connection = connect(&options, &options.look()).await.map_err(fail)?;
        require_sound_sqlite(&mut connection).await.map_err(fail)?;
        let schema = schema::look(&mut connection).await.map_err(fail)?;
        let is_ours = match schema {
            Schema::Newer { .. } => return Err(schema.error()),
            Schema::Current | Schema::Older { .. } | Schema::Begun { .. } | Schema::Changed { .. } => true,
            // Nothing is changed in a database of Ork that cannot be taken over, not even the
            // journal mode.
            Schema::Ork { .. } => schema.can_be_taken_over(),
            Schema::Foreign { .. } => false,
        };
        let readers = (is_ours && matches!(options.location, Location::File(_))).then(|| {
            SqlitePoolOptions::new()
                .max_connections(options.readers)
                .min_connections(0)
                .acquire_timeout(options.busy_timeout.max(Duration::from_secs(1)))
                // A local file's connection does not go stale.
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_lazy_with(options.reader())
        });
        // A foreign file keeps its journal mode, and every call on it is refused.
        let opened = if readers.is_some() { options.writer() } else { options.look() };
        if readers.is_some() {
            connection = connect(&options, &opened).await.map_err(fail)?;
        }
        let signal = Signal::new(&options.location);
        Ok(Self {
            readers,
            location: options.location.clone(),
            clock: Arc::clone(&options.clock),
            max_log_bytes: options.max_log_bytes,
            is_current: Arc::new(AtomicBool::new(schema == Schema::Current)),
            writer: Writer::start(options.location, opened, connection, signal.clone()),
            signal,
            updates: Arc::default(),
            watcher: Arc::default(),
        })
    }

    /// Another handle of the same store, with the same connections.
    pub(crate) fn another(&self) -> Self {
        Self {
            writer: self.writer.clone(),
            updates: Arc::clone(&self.updates),
            readers: self.readers.clone(),
            location: self.location.clone(),
            clock: Arc::clone(&self.clock),
            max_log_bytes: self.max_log_bytes,
            is_current: Arc::clone(&self.is_current),
            signal: self.signal.clone(),
            watcher: Arc::clone(&self.watcher),
        }
    }

    pub(crate) const fn signal(&self) -> &Signal {
        &self.signal
    }

    /// The watcher of the file that other processes touch after they commit. A store in memory has
    /// none.
    pub(crate) fn file_watcher(&self) -> Option<Arc<FileWatcher>> {
        let mut shared = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = shared.upgrade() {
            return Some(watcher);
        }
        let watcher = Arc::new(FileWatcher::new(&self.signal)?);
        *shared = Arc::downgrade(&watcher);
        Some(watcher)
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    pub(crate) const fn location(&self) -> &Location {
        &self.location
    }

    pub(crate) const fn max_log_bytes(&self) -> Option<u64> {
        self.max_log_bytes
    }

    /// Runs work that writes, all or nothing, and answers when it is durable.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.require_current().await?;
        self.writer.run(work).await
    }

    /// A write that hands out leases.
    pub(crate) async fn lease<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.require_current().await?;
        self.writer.run_lease(work).await
    }

    /// Applies a batch of updates, together with other waiting batches.
    pub(crate) async fn update(&self, updates: TaskUpdates) -> Result<UpdateReport> {
        self.require_current().await?;
        self.updates.update(&self.writer, self.clock(), updates).await
    }

    /// Runs work that makes its own transaction, whatever the schema is.
    pub(crate) async fn write_alone<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.writer.run_alone(work).await
    }

    /// Runs a statement that reads. If the work has several statements, each may see a different
    /// state.
    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.require_current().await?;
        if self.readers.is_none() {
            // The writer checks the schema.
            return self.writer.run(work).await;
        }
        self.read_any(move |connection| {
            Box::pin(async move {
                schema::check(connection).await?;
                work(connection).await
            })
        })
        .await
    }

    /// Runs work that reads with several statements from one state of the store.
    pub(crate) async fn read_one_state<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.require_current().await?;
        if self.readers.is_none() {
            // The writer checks the schema, and runs it within a transaction.
            return self.writer.run(work).await;
        }
        self.read_any(move |connection| {
            Box::pin(reading(connection, move |connection| {
                Box::pin(async move {
                    schema::check(connection).await?;
                    work(connection).await
                })
            }))
        })
        .await
    }

    /// Runs work that reads, whatever the schema is.
    async fn read_any<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        let Some(readers) = self.readers.clone() else { return self.writer.run_alone(work).await };
        // In its own task: if the caller's future is dropped, a connection must not return to the
        // pool in the middle of something (rule G9).
        let task = tokio::spawn(async move {
            let mut connection = readers.acquire().await?;
            let result = guarded(work(&mut connection)).await;
            if matches!(result, Err(Fault::Driver(_))) {
                // The connection may be broken, or in a transaction. The next call gets another
                // one.
                drop(connection.close().await);
            }
            result
        });
        match task.await {
            Ok(result) => result.map_err(|fault| fault.into_error(&self.location)),
            Err(_) => Err(error::gone()),
        }
    }

    /// Refuses any schema except the one that this code needs.
    pub(crate) async fn require_current(&self) -> Result<()> {
        if self.is_current.load(Ordering::Acquire) {
            return Ok(());
        }
        // Not confirmed yet: another process may have migrated meanwhile.
        match self.read_any(|connection| Box::pin(schema::look(connection))).await? {
            Schema::Current => {
                self.is_current.store(true, Ordering::Release);
                Ok(())
            }
            schema => Err(schema.error()),
        }
    }
}

impl Plugin for SqliteDatabase {
    fn backend(&self) -> &'static Backend {
        &BACKEND
    }
}

/// Opens the connection that writes. The first connections to a new file switch it to WAL. SQLite
/// itself does not wait for others when it does that.
async fn connect(options: &SqliteOptions, how: &SqliteConnectOptions) -> Result<SqliteConnection, Fault> {
    const PAUSE: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + options.busy_timeout;
    loop {
        match how.connect().await {
            Err(error) if error::is_busy(&error) && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Creates the file if it does not exist, for its owner alone. SQLite gives the files beside it the
/// same mode.
fn create_private(path: &Path) -> Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    if let Some(directory) = directory.filter(|directory| !directory.is_dir()) {
        return Err(Error::unavailable(format!(
            "the database {} cannot be opened: there is no directory {}",
            path.display(),
            directory.display()
        ))
        .with_hint("Create the directory, or correct the path"));
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            Err(error::describe(&Location::File(path.to_owned()), &Arc::new(error.into()), Stage::Work))
        }
    }
}

async fn require_sound_sqlite(connection: &mut SqliteConnection) -> Result<(), Fault> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(connection).await?;
    if is_sound(&version) {
        return Ok(());
    }
    let [major, minor, patch] = OLDEST_SOUND_SQLITE;
    Err(Error::unavailable(format!("SQLite {version} is linked, which can corrupt a database in WAL mode"))
        .with_hint(format!("Link SQLite {major}.{minor}.{patch} or newer"))
        .into())
}

fn is_sound(version: &str) -> bool {
    let numbers: Option<Vec<u32>> = version.split('.').map(|number| number.parse().ok()).collect();
    numbers.is_some_and(|numbers| numbers >= OLDEST_SOUND_SQLITE.to_vec())
}

#[cfg(test)]
mod tests {
    use super::is_sound;
    use rstest::rstest;

    #[rstest]
    #[case("3.51.3", true)]
    #[case("3.51.4", true)]
    #[case("3.52.0", true)]
    #[case("4.0.0", true)]
    #[case("3.51.2", false)]
    #[case("3.9.9", false)]
    #[case("nonsense", false)]
    fn versions(#[case] version: &str, #[case] sound: bool) {
        assert_eq!(is_sound(version), sound);
    }
}
