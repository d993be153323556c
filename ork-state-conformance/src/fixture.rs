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

/// Provides fresh stores of one backend.
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

    /// A new, empty store that is not migrated.
    async fn empty(&self) -> Result<Arc<dyn TestStore>>;

    /// A new, migrated store without rows. Override this where there is a faster way.
    async fn migrated(&self) -> Result<Arc<dyn TestStore>> {
        let store = self.empty().await?;
        self.connect(ConnectOptions::new(&store.url())?).await?.migrate().await?;
        Ok(store)
    }

    /// What the backend says about itself. Override this if it is not a plugin.
    ///
    /// # Errors
    /// A message if it is not linked, or the registry is broken.
    fn plugin(&self) -> std::result::Result<&'static Backend, String> {
        linked(self.backend())
    }

    /// Opens a store at a URL of this backend. Override this if the plugin would do something else,
    /// for example for a store with a [layer](ork_state_api::layer) around it.
    async fn connect(&self, options: ConnectOptions) -> Result<Arc<dyn Database>> {
        Registry::linked()?.connect(options).await
    }

    /// Whether stores are available. If not, why, and how to fix it.
    async fn unavailable(&self) -> Option<String> {
        None
    }

    /// Makes the server behind all the stores fail, and waits until it works again. Returns `false`
    /// if that is not possible. Either there is no server, or it is not the suite's to break.
    async fn fail_server(&self, failure: ServerFailure) -> Result<bool> {
        let _ = failure;
        Ok(false)
    }

    /// Stops what was started for the stores. Nothing is requested after it.
    async fn finish(&self) {}

    /// Where stores come from, for the report, such as which server is used.
    async fn origin(&self) -> Option<String> {
        None
    }
}

/// How a server fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerFailure {
    /// It dies at once, without a clean shutdown, as in a power failure, and starts again.
    Crash,
    /// It ends every connection.
    ConnectionsCut,
    /// It dies for good. A synchronous standby takes its place, at the same URL.
    Failover,
}

/// A store for one case. Dropping it removes it.
#[async_trait]
pub trait TestStore: Send + Sync {
    /// The URL to open it with, any number of times and from any process.
    fn url(&self) -> String;

    /// Keeps the store when this is dropped, for a person to look at after a failure. Returns where
    /// it is.
    fn keep(&self) -> Option<String> {
        None
    }

    /// Writes something into the store, behind the backend's back, that no backend would write
    /// (rules G8, M1, M4). Returns `false` if that is not possible, because the store's format
    /// cannot hold such a thing.
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
    /// The task's name becomes `../escape`, which is not a task name.
    TaskName(TaskId),
    /// The snapshot's tasks become the JSON `{}`, which is not a DAG.
    Dag(SnapshotId),
    /// The task's list of dependencies becomes unreadable: not JSON, or with an invalid name in it.
    DependsOn(TaskId),
    /// The run's count of unfinished tasks becomes one too large. Everything else stays.
    RunCount(RunId),
    /// The run becomes a success that finished when it was created. Its tasks stay as they are, and
    /// live.
    RunEnded(RunId),
    /// The store's schema becomes newer than the code: it records at least one step that the code
    /// does not know.
    NewerSchema,
}

/// Names the damage, without the id.
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

/// Stores that are files or directories, each in its own temporary directory.
pub struct DirectoryFixture<F> {
    backend: &'static str,
    url: F,
    damage: Option<DamageDirectory>,
}

/// Damages the store in a directory, behind the backend's back. See [`TestStore::damage`].
pub type DamageDirectory = fn(PathBuf, Damage) -> Pin<Box<dyn Future<Output = Result<bool>> + Send>>;

impl<F: Fn(&Path) -> String + Send + Sync> DirectoryFixture<F> {
    /// Stores of this backend. The function makes the URL from a new directory.
    pub const fn new(backend: &'static str, url: F) -> Self {
        Self { backend, url, damage: None }
    }

    /// Sets how a store of this backend is damaged. The cases of rules G8, M1 and M4 that need
    /// damage then apply.
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

/// A store in its own temporary directory.
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

/// Stores that live as long as a connection. Every one is new.
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

/// The plugin with this name.
///
/// # Errors
/// A message if it is not linked, or the registry is broken.
pub fn linked(name: &str) -> Result<&'static Backend, String> {
    let registry = Registry::linked().map_err(|error| error.to_string())?;
    registry.backends().find(|backend| backend.name == name).ok_or_else(|| {
        format!("no plugin `{name}` is linked: name its crate, as in `use ork_state_{name} as _;`, and register its backend")
    })
}
