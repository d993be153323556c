//! Runs of workflows.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Dag, Error, Label, Page, PageRequest, Result, RunId, RunStatus, SnapshotId, TaskName, Text, Timestamp,
    WorkflowId,
};

/// A run as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Run {
    /// Made by the store.
    pub id: RunId,
    /// What it is a run of.
    pub workflow: WorkflowId,
    /// The DAG that was current when it was created.
    pub snapshot: SnapshotId,
    /// Where it stands.
    pub status: RunStatus,
    /// Who or what asked for it, such as `manual`.
    pub triggered_by: Label,
    /// The key it was created under, see [`RunStore::create_run`].
    pub idempotency_key: Option<Label>,
    /// The first task that failed for good, as
    /// [`task_failed_message`](crate::backend::task_failed_message) words it; there as soon as that
    /// has happened. Of several in one call the one with the lowest index.
    pub error: Option<Text>,
    /// How its tasks stand; all zero before it is started.
    pub tasks: TaskCounts,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its tasks were made.
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    pub finished_at: Option<Timestamp>,
}

impl Run {
    /// A run as it is created (R1). For backends.
    #[must_use]
    pub fn new(new: NewRun, snapshot: SnapshotId, now: Timestamp) -> Self {
        let run = Self::from_stored(RunId::generate(), new.workflow, snapshot, new.triggered_by, now);
        Self { idempotency_key: new.idempotency_key, ..run }
    }

    /// A pending run without tasks and key. Backends set the rest.
    #[must_use]
    pub fn from_stored(
        id: RunId,
        workflow: WorkflowId,
        snapshot: SnapshotId,
        triggered_by: Label,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            workflow,
            snapshot,
            status: RunStatus::Pending,
            triggered_by,
            idempotency_key: None,
            error: None,
            tasks: TaskCounts::default(),
            created_at,
            started_at: None,
            finished_at: None,
        }
    }
}

/// How many tasks a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskCounts {
    /// All of them.
    pub total: u32,
    /// Those that are not terminal.
    pub unfinished: u32,
    /// Those that failed, by themselves or because of another.
    pub failed: u32,
    /// Those that were cancelled with the run.
    pub cancelled: u32,
}

impl TaskCounts {
    /// The counts of a run that begins with so many tasks.
    #[must_use]
    pub const fn new(total: u32) -> Self {
        Self { total, unfinished: total, failed: 0, cancelled: 0 }
    }

    /// Those that succeeded.
    #[must_use]
    pub const fn succeeded(self) -> u32 {
        self.total.saturating_sub(self.unfinished).saturating_sub(self.failed).saturating_sub(self.cancelled)
    }
}

/// A run that ended in a call about tasks or jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct EndedRun {
    /// The run.
    pub run: RunId,
    /// `Success` or `Failed`.
    pub status: RunStatus,
}

impl EndedRun {
    /// This run, which ended so.
    #[must_use]
    pub const fn new(run: RunId, status: RunStatus) -> Self {
        Self { run, status }
    }
}

/// What a run is created from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewRun {
    /// What to run.
    pub workflow: WorkflowId,
    /// Who or what asks for it.
    pub triggered_by: Label,
    /// Makes the call repeatable: see [`RunStore::create_run`].
    pub idempotency_key: Option<Label>,
}

impl NewRun {
    /// A run that was asked for by hand.
    #[must_use]
    pub fn new(workflow: WorkflowId) -> Self {
        Self { workflow, triggered_by: Label::constant("manual"), idempotency_key: None }
    }

    /// Sets who or what asks for it.
    #[must_use]
    pub fn with_trigger(mut self, trigger: Label) -> Self {
        self.triggered_by = trigger;
        self
    }

    /// Sets the idempotency key.
    #[must_use]
    pub fn with_idempotency_key(mut self, key: Label) -> Self {
        self.idempotency_key = Some(key);
        self
    }
}

/// What [`RunStore::create_run`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreatedRun {
    /// It made this run.
    New(Run),
    /// It found this run under the idempotency key and made none.
    Existing(Run),
}

impl CreatedRun {
    /// The run, whichever it was.
    #[must_use]
    pub fn into_run(self) -> Run {
        match self {
            Self::New(run) | Self::Existing(run) => run,
        }
    }
}

/// A run to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartRun {
    /// The run to start.
    pub run: RunId,
    /// The tasks to make; those of the pinned snapshot if `None`.
    pub dag: Option<Dag>,
}

impl StartRun {
    /// With the tasks of the pinned snapshot.
    #[must_use]
    pub const fn pinned(run: RunId) -> Self {
        Self { run, dag: None }
    }

    /// With these tasks, such as the snapshot's with parameters filled in for this run.
    #[must_use]
    pub const fn with_dag(run: RunId, dag: Dag) -> Self {
        Self { run, dag: Some(dag) }
    }
}

/// A run to be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryRun {
    /// The run to retry.
    pub run: RunId,
    /// The tasks to do again, with all that depends on them; those that failed or were cancelled if
    /// `None`.
    pub tasks: Option<Vec<TaskName>>,
}

impl RetryRun {
    /// All of its tasks that failed or were cancelled.
    #[must_use]
    pub const fn unsuccessful(run: RunId) -> Self {
        Self { run, tasks: None }
    }

    /// These tasks, whatever they came to, and all that depends on them.
    #[must_use]
    pub fn from_tasks(run: RunId, tasks: impl IntoIterator<Item = TaskName>) -> Self {
        Self { run, tasks: Some(tasks.into_iter().collect()) }
    }
}

/// Which runs. All conditions that are set must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunFilter {
    /// Only those of this workflow. One that does not exist has none.
    pub workflow: Option<WorkflowId>,
    /// Only those of these statuses. None of them if the set is empty.
    pub statuses: Option<BTreeSet<RunStatus>>,
    /// Only those created from a time on.
    pub created_from: Option<Timestamp>,
    /// Only those created before a time.
    pub created_before: Option<Timestamp>,
    /// Only those that this asked for.
    pub triggered_by: Option<Label>,
}

impl RunFilter {
    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Those of a workflow.
    #[must_use]
    pub fn of(workflow: WorkflowId) -> Self {
        Self { workflow: Some(workflow), ..Self::default() }
    }

    /// Only those of these statuses.
    #[must_use]
    pub fn with_statuses(mut self, statuses: impl IntoIterator<Item = RunStatus>) -> Self {
        self.statuses = Some(statuses.into_iter().collect());
        self
    }

    /// Only those created in this time: its start is in it, its end is not.
    #[must_use]
    pub const fn created_in(mut self, time: Range<Timestamp>) -> Self {
        self.created_from = Some(time.start);
        self.created_before = Some(time.end);
        self
    }

    /// Only those that this asked for.
    #[must_use]
    pub fn with_trigger(mut self, trigger: Label) -> Self {
        self.triggered_by = Some(trigger);
        self
    }

    /// Whether a run is one of them. For backends.
    #[must_use]
    pub fn matches(&self, run: &Run) -> bool {
        self.workflow.is_none_or(|workflow| workflow == run.workflow)
            && self.statuses.as_ref().is_none_or(|statuses| statuses.contains(&run.status))
            && self.created_from.is_none_or(|from| from <= run.created_at)
            && self.created_before.is_none_or(|before| run.created_at < before)
            && self.triggered_by.as_ref().is_none_or(|trigger| *trigger == run.triggered_by)
    }
}

/// A page of runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ListRuns {
    /// The runs.
    pub filter: RunFilter,
    /// The page.
    pub page: PageRequest<RunKey>,
}

impl ListRuns {
    /// This page of these runs.
    #[must_use]
    pub const fn new(filter: RunFilter, page: PageRequest<RunKey>) -> Self {
        Self { filter, page }
    }
}

/// All of them, by pages.
impl From<PageRequest<RunKey>> for ListRuns {
    fn from(page: PageRequest<RunKey>) -> Self {
        Self { filter: RunFilter::all(), page }
    }
}

/// A run's place in the list: newest first, and among runs of one microsecond the greater id first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunKey {
    /// When the run was created.
    pub created_at: Timestamp,
    /// Its id.
    pub id: RunId,
}

impl RunKey {
    /// The place of this run.
    #[must_use]
    pub const fn of(run: &Run) -> Self {
        Self { created_at: run.created_at, id: run.id }
    }
}

/// Newest first.
impl Ord for RunKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.created_at, other.id).cmp(&(self.created_at, self.id))
    }
}

impl PartialOrd for RunKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A form for URLs: `1767225600000000-0198…`, microseconds and id.
impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.created_at.as_micros(), self.id)
    }
}

impl FromStr for RunKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid("page key", "is not one that a list of runs gave");
        // Times before 1970 have a minus sign of their own.
        let split = text.get(1..).and_then(|rest| rest.find('-')).ok_or_else(bad)? + 1;
        let micros = text[..split].parse().map_err(|source| bad().with_source(source))?;
        Ok(Self { created_at: Timestamp::from_micros(micros)?, id: text[split + 1..].parse()? })
    }
}

/// Keeps runs. The [general rules](crate::Database#general-rules) hold for every method.
///
/// Every change of a run is decided under a lock of that run. So calls about one run that meet take
/// effect one after the other: a pause and the end of the last task, two starts, a cancellation and
/// a failure.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// Creates a pending run of a workflow.
    ///
    /// **R1** The run keeps the snapshot that is current now, whatever becomes of the workflow.
    ///
    /// With an idempotency key there is one run per (workflow, key), for as long as that run
    /// exists. The first call makes it. Every other call gets it as it stands, even at the same
    /// moment. The answer tells which happened. The same key under another workflow is another key.
    ///
    /// # Errors
    /// `NotFound` for the workflow.
    ///
    /// # Cancel safety
    /// The run is there or not. With an idempotency key a repeated call cannot make a second one.
    ///
    /// # Example
    /// ```
    /// # use ork_state_api::*;
    /// async fn nightly(db: &dyn Database, workflow: WorkflowId, day: &str) -> Result<Run> {
    ///     let new = NewRun::new(workflow).with_idempotency_key(format!("nightly-{day}").try_into()?);
    ///     let run = db.create_run(new).await?.into_run();
    ///     db.start_run(StartRun::pinned(run.id)).await
    /// }
    /// ```
    async fn create_run(&self, new: NewRun) -> Result<CreatedRun>;

    /// The run with this id.
    ///
    /// # Errors
    /// `NotFound`.
    async fn get_run(&self, id: RunId) -> Result<Run>;

    /// Runs, newest first ([`RunKey`] is the order, **G6**).
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run, RunKey>>;

    /// How many runs match. It counts them, so the cost grows with their number.
    /// [`stats`](crate::Maintenance::stats) costs the same however many there are.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn count_runs(&self, filter: RunFilter) -> Result<u64>;

    /// Makes a run's tasks and sets it going.
    ///
    /// **R2** All tasks come into being and the run becomes `running` together. Tasks without
    /// dependencies are ready from this moment. A run without tasks is a `success` at once.
    ///
    /// A run that was started before, and not cancelled, is left as it is and returned, whatever
    /// DAG comes with the call. If two schedulers start a run at the same moment, its tasks are
    /// those of one of the two calls.
    ///
    /// # Errors
    /// `NotFound`. `InvalidTransition` for a cancelled run, started before or not.
    ///
    /// # Cancel safety
    /// Started whole or not at all. Repeating it is safe.
    async fn start_run(&self, start: StartRun) -> Result<Run>;

    /// Ends a run and whatever of it has not ended.
    ///
    /// **R4** The run and its unfinished tasks become `cancelled` together, and their leases are
    /// gone. A worker that reports later is told
    /// [`AlreadyTerminal`](crate::UpdateOutcome::AlreadyTerminal) and changes nothing.
    ///
    /// A cancelled task keeps what its attempts left: `attempts`, `error`, `execution_name` and
    /// their times. Only `ready_at` and `retry_at` are emptied, since it is not tried again.
    /// Finished tasks stay as they are. So do the run's error and its counts of all and of failed
    /// tasks. A cancelled run is left as it is and returned.
    ///
    /// # Errors
    /// `NotFound`. `InvalidTransition` for a run that succeeded or failed.
    ///
    /// # Cancel safety
    /// Cancelled whole or not at all. Repeating it is safe.
    async fn cancel_run(&self, id: RunId) -> Result<Run>;

    /// Stops handing out a run's tasks.
    ///
    /// **R5** From here on no task of the run is ready. Claimed tasks go on, keep their leases, and
    /// may finish. If the last one finishes, the run ends as if it were running. Claims of other
    /// runs cost the same however many tasks paused runs hold. A paused run is left as it is and
    /// returned.
    ///
    /// Pausing, resuming or cancelling waits for a concurrent change of the run instead of failing.
    ///
    /// # Errors
    /// `NotFound`. `InvalidTransition` for a pending or ended run.
    ///
    /// # Cancel safety
    /// Paused or not. Repeating it is safe.
    async fn pause_run(&self, id: RunId) -> Result<Run>;

    /// Hands out a paused run's tasks again.
    ///
    /// **R5** Tasks that wait for nothing are ready from now, or from their retry time if that is
    /// later. A running run is left as it is and returned.
    ///
    /// # Errors
    /// `NotFound`. `InvalidTransition` for a pending or ended run.
    ///
    /// # Cancel safety
    /// Resumed or not. Repeating it is safe.
    async fn resume_run(&self, id: RunId) -> Result<Run>;

    /// Does a part of an ended run again.
    ///
    /// **R6** The run is running again, and the chosen tasks become pending together.
    ///
    /// - Chosen are the tasks that failed or were cancelled, or else the named ones. Whatever
    ///   depends on a chosen task, however far, is chosen too. All others stay as they are.
    /// - A chosen task is as if it had never been claimed: it has no attempt, error, output or time
    ///   of the last time. Its tokens go on growing, and its log and ended jobs stay.
    /// - Chosen tasks that wait for nothing are ready from now.
    /// - The run's [`error`](Run::error) is that of the failed tasks that stay, if there are any.
    ///   It names the one with the lowest index among those that failed by themselves. If only
    ///   cancelled tasks stay, it names the first of them, also if a task fails later.
    /// - A run in which a failed or cancelled task stays cannot succeed (R3).
    ///
    /// # Errors
    /// - `NotFound` for the run, or for a name that is not a task of it.
    /// - `InvalidTransition` for a run that has not ended, that was never started, or that has
    ///   nothing to do again.
    /// - `Conflict` if a chosen task depends on one that neither succeeded nor is chosen. It names
    ///   both: name that other task too.
    ///
    /// # Cancel safety
    /// Retried whole or not at all. Repeated after a lost answer it is `InvalidTransition` while
    /// the run goes on.
    async fn retry_run(&self, retry: RetryRun) -> Result<Run>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn run_keys_parse_back() {
        for created_at in [Timestamp::MIN, Timestamp::MAX] {
            let key = RunKey { created_at, id: RunId::generate() };
            assert_eq!(key.to_string().parse::<RunKey>().unwrap(), key);
        }
    }

    #[rstest]
    #[case("")]
    #[case("-")]
    #[case("12")]
    #[case("12-34")]
    #[case("é-0")]
    #[case("99999999999999999999-00000000-0000-0000-0000-000000000000")]
    fn bad_run_keys(#[case] text: &str) {
        assert!(text.parse::<RunKey>().is_err());
    }
}
