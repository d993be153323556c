//! `runs/<run>.json`, `runs/<run>/tasks/<task>.json`, and `state.lock`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ork_state_api::ork::{
    LegacyRun, LegacyRunId, LegacyTaskName, LegacyTaskRun, LegacyTaskStatus, StateStore, newest_first,
};
use ork_state_api::{
    Clock, Entity, Error, Json, Result, RunStatus, SystemClock, Text, Timestamp, WorkflowName,
};
use serde::{Deserialize, Serialize};

use super::{blocking, files};
use crate::error::io_at;
use crate::lock::{self, Deadline};
use crate::options::LOCK_TIMEOUT;

/// Ork locked this file too, in the same way. So an Ork that still runs on the directory and this
/// store lock each other out.
const LOCK: &str = "state.lock";
const RUNS: &str = "runs";
const TASKS: &str = "tasks";

/// Runs of old flows in a directory, as Ork kept them: `runs/<id>.json` and
/// `runs/<id>/tasks/<task>.json`.
///
/// Directories that Ork wrote are read as they are. Any number of processes may share one on a
/// local file system. A write holds the lock of `state.lock` and is synced. Only the owner can read
/// its files (0600, in directories of 0700). Cheap to clone.
///
/// ```
/// # use ork_state_file::FileStateStore;
/// use ork_state_api::ork::StateStore;
///
/// # async fn open() -> ork_state_api::Result<()> {
/// let store = FileStateStore::open("./ork-legacy").await?;
/// let run = store.create_run("nightly".parse()?).await?;
/// assert_eq!(store.get_run(&run.id).await?, Some(run));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct FileStateStore {
    directory: PathBuf,
    lock_timeout: Duration,
    clock: Arc<dyn Clock>,
    /// Held by the caller that is next to have the lock. Otherwise readers, which share the lock,
    /// could keep a writer out for ever.
    turnstile: Arc<Mutex<()>>,
}

impl FileStateStore {
    /// Opens the store in this directory, which is created if its parent exists.
    ///
    /// # Errors
    /// `Unavailable` if the directory cannot be created or found. `InvalidInput` if it is a file.
    pub async fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        let directory = blocking(move || files::base_directory(&directory)).await?;
        Ok(Self {
            directory,
            lock_timeout: LOCK_TIMEOUT,
            clock: Arc::new(SystemClock::default()),
            turnstile: Arc::default(),
        })
    }

    /// Sets how long to wait for others that hold the store's lock; 10 seconds unless set.
    #[must_use]
    pub const fn with_lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// Replaces the store's time (rule G4).
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Runs work with the lock held, shared if the work only reads. A reader needs the lock because
    /// Ork writes in place. It also needs it because files may be renamed while their directory is
    /// listed. Then some would seem to be missing.
    async fn locked<T: Send + 'static>(
        &self,
        try_lock: fn(&File) -> Result<(), TryLockError>,
        work: impl FnOnce(&Self, Deadline) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        blocking(move || {
            let path = this.directory.join(LOCK);
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
            let file = Arc::new(file.map_err(|source| io_at("open", &path, source))?);
            let deadline = Deadline::after(this.lock_timeout);
            let next = this.turnstile.lock().unwrap_or_else(PoisonError::into_inner);
            let _locked = lock::wait(&file, &path, try_lock, deadline)?;
            drop(next);
            work(&this, deadline)
        })
        .await
    }

    async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.locked(File::try_lock_shared, |this, _| work(this)).await
    }

    async fn writing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self, Deadline) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.locked(File::try_lock, work).await
    }

    fn run_path(&self, id: &LegacyRunId) -> PathBuf {
        self.directory.join(RUNS).join(json_name(id))
    }

    fn read_run(&self, id: &LegacyRunId) -> Result<Option<LegacyRun>> {
        let path = self.run_path(id);
        let Some(bytes) = files::read(&path)? else { return Ok(None) };
        let file = path.display().to_string();
        let run: LegacyRun = files::parse(&bytes, &file, "a run")?;
        if run.id == *id { Ok(Some(run)) } else { Err(files::misplaced(&file, "id")) }
    }

    fn write_run(&self, run: &LegacyRun, deadline: Deadline) -> Result<()> {
        files::replace(&self.directory, &[RUNS], &json_name(&run.id), &files::print(run)?, deadline)
    }

    /// Checks that the run exists, without reading its file.
    fn check_run(&self, id: &LegacyRunId) -> Result<()> {
        let path = self.run_path(id);
        match path.try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::not_found(Entity::Run, id)),
            Err(source) => Err(io_at("find", &path, source)),
        }
    }
}

fn json_name(name: &str) -> String {
    format!("{name}.json")
}

/// The values in a directory, by file name. Everything with the extension `.json` that is not a
/// directory must be one.
fn read_all<N, T>(
    directory: &Path,
    name: fn(&str) -> Result<N>,
    read: impl Fn(&N) -> Result<Option<T>>,
) -> Result<Vec<T>> {
    let failed = |source| io_at("read", directory, source);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // The directory is created with its first file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if path.extension() != Some(OsStr::new("json")) || entry.file_type().map_err(failed)?.is_dir() {
            continue;
        }
        let stem = path.file_stem().and_then(OsStr::to_str).ok_or_else(|| "is not UTF-8".to_owned());
        let name = stem.and_then(|stem| name(stem).map_err(|error| error.to_string())).map_err(|reason| {
            Error::corrupt(path.display().to_string(), "as a whole", "name", reason)
                .with_hint("Give the file its name back, or remove it")
        })?;
        // A file that is gone meanwhile was removed by hand.
        found.extend(read(&name)?);
    }
    Ok(found)
}

/// A task as its file holds it. Ork had no output of JSON `null`: it wrote `null` for no output.
#[derive(Serialize, Deserialize)]
struct TaskFile {
    run_id: LegacyRunId,
    task: LegacyTaskName,
    status: LegacyTaskStatus,
    attempt: u32,
    max_retries: u32,
    created_at: Timestamp,
    dispatched_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    /// Any text: Ork did not check that it is a [`Text`].
    error: Option<String>,
    output: Option<Json>,
    /// Present only where the output is JSON `null`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    output_is_null: bool,
}

impl From<&LegacyTaskRun> for TaskFile {
    fn from(task: &LegacyTaskRun) -> Self {
        Self {
            run_id: task.run_id.clone(),
            task: task.task.clone(),
            status: task.status,
            attempt: task.attempt,
            max_retries: task.max_retries,
            created_at: task.created_at,
            dispatched_at: task.dispatched_at,
            started_at: task.started_at,
            finished_at: task.finished_at,
            error: task.error.clone().map(String::from),
            output: task.output.clone(),
            output_is_null: task.output == Some(Json::null()),
        }
    }
}

impl From<TaskFile> for LegacyTaskRun {
    fn from(file: TaskFile) -> Self {
        Self {
            run_id: file.run_id,
            task: file.task,
            status: file.status,
            attempt: file.attempt,
            max_retries: file.max_retries,
            created_at: file.created_at,
            dispatched_at: file.dispatched_at,
            started_at: file.started_at,
            finished_at: file.finished_at,
            error: file.error.map(|error| Text::lossy(&error)),
            output: file.output.or_else(|| file.output_is_null.then(Json::null)),
        }
    }
}

#[async_trait]
impl StateStore for FileStateStore {
    async fn create_run(&self, workflow: WorkflowName) -> Result<LegacyRun> {
        self.writing(|this, deadline| {
            let run = LegacyRun::new(workflow, this.clock.now());
            this.write_run(&run, deadline)?;
            Ok(run)
        })
        .await
    }

    async fn get_run(&self, id: &LegacyRunId) -> Result<Option<LegacyRun>> {
        let id = id.clone();
        self.reading(move |this| this.read_run(&id)).await
    }

    async fn list_runs(&self) -> Result<Vec<LegacyRun>> {
        self.reading(|this| {
            let directory = this.directory.join(RUNS);
            let mut runs = read_all(&directory, |name| LegacyRunId::new(name), |id| this.read_run(id))?;
            newest_first(&mut runs);
            Ok(runs)
        })
        .await
    }

    async fn list_task_runs(&self, run: &LegacyRunId) -> Result<Vec<LegacyTaskRun>> {
        let run = run.clone();
        self.reading(move |this| {
            this.check_run(&run)?;
            let directory = this.directory.join(RUNS).join(&*run).join(TASKS);
            let read = |name: &LegacyTaskName| {
                let path = directory.join(json_name(name));
                let Some(bytes) = files::read(&path)? else { return Ok(None) };
                let file = path.display().to_string();
                let task: TaskFile = files::parse(&bytes, &file, "a task's run")?;
                match (task.run_id == run, task.task == *name) {
                    (true, true) => Ok(Some(LegacyTaskRun::from(task))),
                    (false, _) => Err(files::misplaced(&file, "run_id")),
                    (true, false) => Err(files::misplaced(&file, "task")),
                }
            };
            let mut tasks = read_all(&directory, |name| LegacyTaskName::new(name), read)?;
            tasks.sort_unstable_by(|a, b| a.task.cmp(&b.task));
            Ok(tasks)
        })
        .await
    }

    async fn upsert_task_run(&self, task: &LegacyTaskRun) -> Result<()> {
        let (run, name) = (task.run_id.clone(), json_name(&task.task));
        let bytes = files::print(&TaskFile::from(task))?;
        self.writing(move |this, deadline| {
            this.check_run(&run)?;
            files::replace(&this.directory, &[RUNS, &run, TASKS], &name, &bytes, deadline)
        })
        .await
    }

    async fn update_run_status(&self, run: &LegacyRunId, status: RunStatus) -> Result<LegacyRun> {
        let id = run.clone();
        self.writing(move |this, deadline| {
            let mut run = this.read_run(&id)?.ok_or_else(|| Error::not_found(Entity::Run, &id))?;
            run.set_status(status, this.clock.now());
            this.write_run(&run, deadline)?;
            Ok(run)
        })
        .await
    }
}
