//! Where a fresh store comes from.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ork_state_api::backend::Backend;
use ork_state_api::{ConnectOptions, Database, Error, Registry, Result, RunId, SnapshotId, TaskId};
use tempfile::TempDir;

/// Says how to get fresh stores of one backend.
///
/// ```
/// use ork_state_conformance::{DirectoryFixture, UrlFixture};
///
/// // A backend that keeps a store in a file or a directory:
/// let sqlite = DirectoryFixture::new("sqlite", |dir| format!("sqlite://{}/ork.db", dir.display()));
/// // One whose every connection is a new, empty store:
/// let memory = UrlFixture::new("memory", "memory:");
/// ```
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The name of the backend's plugin.
    fn backend(&self) -> &'static str;

    /// A new store with nothing in it, not migrated.
    async fn empty(&self) -> Result<Arc<dyn TestStore>>;

    /// A new store, migrated, with no rows. To be overridden where there is a faster way.
    async fn migrated(&self) -> Result<Arc<dyn TestStore>> {
        let store = self.empty().await?;
        self.connect(ConnectOptions::new(&store.url())?).await?.migrate().await?;
        Ok(store)
    }

    /// What the backend says about itself. To be overridden by what is no plugin.
    ///
    /// # Errors
    /// A message if it is not linked, or the registry is broken.
    fn plugin(&self) -> std::result::Result<&'static Backend, String> {
        linked(self.backend())
    }

    /// Opens a store at a URL of this backend. To be overridden where that is not what its plugin
    /// does, such as for a store with a [layer](ork_state_api::layer) around it.
    async fn connect(&self, options: ConnectOptions) -> Result<Arc<dyn Database>> {
        Registry::linked()?.connect(options).await
    }

    /// Whether stores can be had at all; if not, why, and how to mend it.
    async fn unavailable(&self) -> Option<String> {
        None
    }

    /// Has what serves the stores fail, for all of them, and waits until it serves again. Says
    /// `false` if that cannot be done, because there is no server, or it is not the suite's to
    /// break.
    async fn fail_server(&self, failure: ServerFailure) -> Result<bool> {
        let _ = failure;
        Ok(false)
    }

    /// Ends what was started for the stores. Nothing is asked for after it.
    async fn finish(&self) {}

    /// How stores are had, for the report, such as which server serves.
    async fn origin(&self) -> Option<String> {
        None
    }
}

/// How a server fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerFailure {
    /// It dies at once, without putting anything in order, as with the power, and starts again.
    Crash,
    /// It ends every connection.
    ConnectionsCut,
    /// It dies for good, and a synchronous standby takes its place, at the same URL.
    Failover,
}

/// A store for one case. Dropping it removes it.
#[async_trait]
pub trait TestStore: Send + Sync {
    /// The URL to open it with, as often as wanted and from any process.
    fn url(&self) -> String;

    /// Has it left in place when it is dropped, for a person to look at after a failure, and says
    /// where it is.
    fn keep(&self) -> Option<String> {
        None
    }

    /// Puts something into the store, past the backend, that no backend would write (rules G8, M1,
    /// M4). Says `false` if that cannot be done, because what the store keeps can hold no such
    /// thing.
    async fn damage(&self, damage: Damage) -> Result<bool> {
        let _ = damage;
        Ok(false)
    }
}

/// Something that cannot be read, or that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The run's status becomes the word `nonsense`.
    RunStatus(RunId),
    /// The task's status becomes the word `nonsense`.
    TaskStatus(TaskId),
    /// The task's name becomes `../escape`, which is no task name.
    TaskName(TaskId),
    /// The snapshot's tasks become the JSON `{}`, which is no DAG.
    Dag(SnapshotId),
    /// The task's list of dependencies becomes one that cannot be read: no JSON, or with a name in
    /// it that is none.
    DependsOn(TaskId),
    /// The run's count of unfinished tasks becomes one more than it has; all else stays.
    RunCount(RunId),
    /// The run becomes a success that finished when it was created; its tasks stay as they are, and
    /// alive.
    RunEnded(RunId),
    /// The store's schema becomes one that is newer than the code: at least one step is recorded
    /// that it does not know.
    NewerSchema,
}

/// What is damaged, without the id.
impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RunStatus(_) => "a run's status damaged",
            Self::TaskStatus(_) => "a task's status damaged",
            Self::TaskName(_) => "a task's name damaged",
            Self::Dag(_) => "a snapshot's tasks damaged",
            Self::DependsOn(_) => "a task's dependencies damaged",
            Self::RunCount(_) => "a run's count wrong",
            Self::RunEnded(_) => "a run ended and its tasks alive",
            Self::NewerSchema => "a newer schema",
        })
    }
}

/// Stores that are files or directories: each lives in a temporary directory of its own.
pub struct DirectoryFixture<F> {
    backend: &'static str,
    url: F,
    damage: Option<DamageDirectory>,
}

/// Damages the store in a directory, past the backend. See [`TestStore::damage`].
pub type DamageDirectory = fn(PathBuf, Damage) -> Pin<Box<dyn Future<Output = Result<bool>> + Send>>;

impl<F: Fn(&Path) -> String + Send + Sync> DirectoryFixture<F> {
    /// Stores of this backend, at the URL that the function makes of a new directory.
    pub const fn new(backend: &'static str, url: F) -> Self {
        Self { backend, url, damage: None }
    }

    /// Says how a store of this backend is damaged, so that the cases of rules G8, M1 and M4 that
    /// need it apply.
    #[must_use]
    pub const fn with_damage(mut self, damage: DamageDirectory) -> Self {
        self.damage = Some(damage);
        self
    }
}

impl<F> fmt::Debug for DirectoryFixture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryFixture").field("backend", &self.backend).finish_non_exhaustive()
    }
}

#[async_trait]
impl<F: Fn(&Path) -> String + Send + Sync> Fixture for DirectoryFixture<F> {
    fn backend(&self) -> &'static str {
        self.backend
    }

    async fn empty(&self) -> Result<Arc<dyn TestStore>> {
        let directory = tempfile::Builder::new()
            .prefix("ork-state-")
            .tempdir()
            .map_err(|source| Error::unavailable("no temporary directory").with_source(source))?;
        let url = (self.url)(directory.path());
        Ok(Arc::new(DirectoryStore { url, directory: Mutex::new(directory), damage: self.damage }))
    }
}

/// A store in a temporary directory of its own.
struct DirectoryStore {
    url: String,
    directory: Mutex<TempDir>,
    damage: Option<DamageDirectory>,
}

#[async_trait]
impl TestStore for DirectoryStore {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn keep(&self) -> Option<String> {
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        directory.disable_cleanup(true);
        Some(directory.path().display().to_string())
    }

    async fn damage(&self, damage: Damage) -> Result<bool> {
        let Some(inflict) = self.damage else { return Ok(false) };
        let path = self.directory.lock().unwrap_or_else(PoisonError::into_inner).path().to_owned();
        inflict(path, damage).await
    }
}

/// Stores that live as long as a connection: every one is new.
#[derive(Debug)]
pub struct UrlFixture {
    backend: &'static str,
    url: String,
}

impl UrlFixture {
    /// Stores of this backend, at this URL.
    pub fn new(backend: &'static str, url: impl Into<String>) -> Self {
        Self { backend, url: url.into() }
    }
}

#[async_trait]
impl Fixture for UrlFixture {
    fn backend(&self) -> &'static str {
        self.backend
    }

    async fn empty(&self) -> Result<Arc<dyn TestStore>> {
        Ok(Arc::new(UrlStore(self.url.clone())))
    }

    /// There is nothing to migrate before the case connects.
    async fn migrated(&self) -> Result<Arc<dyn TestStore>> {
        self.empty().await
    }
}

struct UrlStore(String);

#[async_trait]
impl TestStore for UrlStore {
    fn url(&self) -> String {
        self.0.clone()
    }
}

/// The plugin of this name.
///
/// # Errors
/// A message if it is not linked, or the registry is broken.
pub fn linked(name: &str) -> Result<&'static Backend, String> {
    let registry = Registry::linked().map_err(|error| error.to_string())?;
    registry.backends().find(|backend| backend.name == name).ok_or_else(|| {
        format!("no plugin `{name}` is linked: name its crate, as in `use ork_state_{name} as _;`, and register its backend")
    })
}
