//! Runs of old flows, and their tasks.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ork::{LegacyRunId, LegacyTaskName, LegacyTaskStatus};
use crate::{Json, Result, RunStatus, Text, Timestamp, WorkflowName};

/// A run of an old flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyRun {
    /// Made by the store.
    pub id: LegacyRunId,
    /// The workflow that it runs, by its name.
    pub workflow: WorkflowName,
    /// Where it stands.
    pub status: RunStatus,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was first `running`.
    pub started_at: Option<Timestamp>,
    /// When it was last given a terminal status.
    pub finished_at: Option<Timestamp>,
}

impl LegacyRun {
    /// A new run (LS1). For stores.
    #[must_use]
    pub fn new(workflow: WorkflowName, now: Timestamp) -> Self {
        Self {
            id: LegacyRunId::generate(),
            workflow,
            status: RunStatus::Pending,
            created_at: now,
            started_at: None,
            finished_at: None,
        }
    }

    /// Gives it a status (LS6). For stores.
    pub fn set_status(&mut self, status: RunStatus, now: Timestamp) {
        self.status = status;
        if status == RunStatus::Running && self.started_at.is_none() {
            self.started_at = Some(now);
        }
        if status.is_terminal() {
            self.finished_at = Some(now);
        }
    }
}

/// Puts runs in the order of [`StateStore::list_runs`] (LS3). For stores.
pub fn newest_first(runs: &mut [LegacyRun]) {
    runs.sort_unstable_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
}

/// A task of a run of an old flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyTaskRun {
    /// The run it belongs to.
    pub run_id: LegacyRunId,
    /// Unique within the run.
    pub task: LegacyTaskName,
    /// Where it stands.
    pub status: LegacyTaskStatus,
    /// Which attempt this is.
    pub attempt: u32,
    /// How many attempts may follow the first.
    pub max_retries: u32,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was handed to its executor.
    pub dispatched_at: Option<Timestamp>,
    /// When its executor began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Why it failed.
    #[serde(default, deserialize_with = "super::any_text")]
    pub error: Option<Text>,
    /// What it gave. JSON `null` is an output, and another thing than none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::some")]
    pub output: Option<Json>,
}

impl LegacyTaskRun {
    /// A pending task, before its first attempt.
    #[must_use]
    pub const fn new(run_id: LegacyRunId, task: LegacyTaskName, created_at: Timestamp) -> Self {
        Self {
            run_id,
            task,
            status: LegacyTaskStatus::Pending,
            attempt: 0,
            max_retries: 0,
            created_at,
            dispatched_at: None,
            started_at: None,
            finished_at: None,
            error: None,
            output: None,
        }
    }
}

/// Where old flows keep their runs.
///
/// Share it as `Arc<dyn StateStore>`; every method takes `&self` and may be called concurrently.
///
/// # Rules of every method
/// - **LS7** What is stored and cannot be read is `Corrupt`, naming the file: it is never left out
///   of a list, taken for missing, or replaced by a default. That goes for a file that is empty or
///   cut short, and for one that lies under another name than it says.
/// - **LS8** A write is whole or not there, also if the process dies within it, and two at once
///   come one after the other. One that is acknowledged is seen by every call that begins later,
///   through any handle and, where the store is shared, in any process; where it is on disk it
///   survives loss of power.
///
/// # Errors of every method
/// `Unavailable` when the store cannot be reached, or others hold it for too long; `Corrupt`;
/// `Internal`.
#[async_trait]
pub trait StateStore: std::fmt::Debug + Send + Sync {
    /// Creates a run of a workflow.
    ///
    /// - **LS1** The run is `pending`, was created now, and has an id that no other run has or had.
    ///
    /// # Cancel safety
    /// The run is created or not; [`list_runs`](Self::list_runs) tells. Calling again creates
    /// another.
    async fn create_run(&self, workflow: WorkflowName) -> Result<LegacyRun>;

    /// Finds a run.
    ///
    /// - **LS2** A run that is not there is `None`, not an error.
    ///
    /// # Cancel safety
    /// It only reads.
    async fn get_run(&self, id: &LegacyRunId) -> Result<Option<LegacyRun>>;

    /// Lists all runs.
    ///
    /// - **LS3** The newest first, by `created_at`; of those created at the same moment the one
    ///   with the greatest id, byte by byte.
    ///
    /// # Cancel safety
    /// It only reads.
    async fn list_runs(&self) -> Result<Vec<LegacyRun>>;

    /// Lists the tasks of a run.
    ///
    /// - **LS5** All of them, by name, byte by byte. A run without tasks has an empty list.
    ///
    /// # Errors
    /// `NotFound` if there is no such run.
    ///
    /// # Cancel safety
    /// It only reads.
    async fn list_task_runs(&self, run: &LegacyRunId) -> Result<Vec<LegacyTaskRun>>;

    /// Writes a task of a run, whether or not it is there.
    ///
    /// - **LS4** The key is the run's id and the task's name. What was there under it is replaced
    ///   by exactly what is given, no field is merged, and nothing else changes.
    ///
    /// # Errors
    /// `NotFound` if there is no such run.
    ///
    /// # Cancel safety
    /// It is written or not. Calling again with the same does no harm.
    async fn upsert_task_run(&self, task: &LegacyTaskRun) -> Result<()>;

    /// Gives a run a status, and gives back the run as it then is.
    ///
    /// - **LS6** Any status may follow any. The first `running` sets `started_at`, which then
    ///   stays; every terminal status sets `finished_at`, also the second. Nothing else changes.
    ///
    /// # Errors
    /// `NotFound` if there is no such run.
    ///
    /// # Cancel safety
    /// It is written or not. Calling again is harmless, but that `finished_at` moves.
    async fn update_run_status(&self, run: &LegacyRunId, status: RunStatus) -> Result<LegacyRun>;
}
