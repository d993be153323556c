//! Runs of workflows.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Dag, Error, Label, Page, PageRequest, Result, RunId, RunStatus, SnapshotId, Text, Timestamp, WorkflowId,
};

/// A run as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The first task that failed for good, as [`task_failed_message`](crate::task_failed_message)
    /// words it; there as soon as that has happened.
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
        Self {
            id: RunId::generate(),
            workflow: new.workflow,
            snapshot,
            status: RunStatus::Pending,
            triggered_by: new.triggered_by,
            idempotency_key: new.idempotency_key,
            error: None,
            tasks: TaskCounts::default(),
            created_at: now,
            started_at: None,
            finished_at: None,
        }
    }
}

/// How many tasks a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskCounts {
    /// All of them.
    pub total: u32,
    /// Those that are not terminal.
    pub unfinished: u32,
    /// Those that failed, by themselves or because of another.
    pub failed: u32,
}

/// What a run is created from.
#[derive(Debug, Clone, PartialEq, Eq)]
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
pub struct StartRun {
    /// Which.
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

/// Which runs to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListRuns {
    /// Only those of this workflow.
    pub workflow: Option<WorkflowId>,
    /// Which page.
    pub page: PageRequest<RunKey>,
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
/// Every change of a run is decided under a lock of that run, so that calls about one run that
/// race with each other (a pause with the completion of the last task, two starts, a cancellation with
/// a failure) have the effect of one after the other.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// Creates a pending run of a workflow.
    ///
    /// **R1** The run keeps the snapshot that is current now, whatever becomes of the workflow. With an
    /// idempotency key there is one run for a (workflow, key) for ever: the first call makes it, every
    /// other one, also at the same moment, gets it as it stands, and the answer tells which happened. The
    /// same key under another workflow is another key.
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

    /// Runs, newest first ([`RunKey`] is the order, **G6**). A workflow that does not exist has none.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run, RunKey>>;

    /// Makes a run's tasks and sets it going.
    ///
    /// **R2** All tasks come into being and the run becomes `running` together; tasks that depend on
    /// nothing are ready from this moment. A run of no tasks is a `success` at once. A run that was
    /// started before and not cancelled is left as it is and returned, whatever DAG comes with the call, also when two
    /// schedulers start it at the same moment: the tasks are those of one of the calls.
    ///
    /// # Errors
    /// `NotFound`; `InvalidTransition` for a cancelled run, whether or not it was started before.
    ///
    /// # Cancel safety
    /// Started whole or not at all. Repeating it is safe.
    async fn start_run(&self, start: StartRun) -> Result<Run>;

    /// Ends a run and whatever of it has not ended.
    ///
    /// **R4** The run and its unfinished tasks become `cancelled` together, and no lease on them is left: a
    /// worker that reports later is told [`AlreadyTerminal`](crate::UpdateOutcome::AlreadyTerminal) and
    /// changes nothing. A cancelled task keeps what its attempts left (`attempts`, `error`, `execution_name`, their times) but
    /// for `ready_at` and `retry_at`: it is not tried again. Finished tasks stay as they are, and so do the
    /// run's counts of all tasks and of failed ones, and its error. A cancelled run is left as it is and returned.
    ///
    /// # Errors
    /// `NotFound`; `InvalidTransition` for a run that succeeded or failed.
    ///
    /// # Cancel safety
    /// Cancelled whole or not at all. Repeating it is safe.
    async fn cancel_run(&self, id: RunId) -> Result<Run>;

    /// Stops handing out a run's tasks.
    ///
    /// **R5** From here on no task of the run is ready. Tasks that are claimed go on, keep their leases and
    /// may finish; if the last one does, the run ends as if it were running. Claims of other runs cost
    /// the same however many tasks paused runs hold. A paused run is left as it is and returned.
    ///
    /// # Errors
    /// `NotFound`; `InvalidTransition` for a pending or terminal run.
    ///
    /// # Cancel safety
    /// Paused or not. Repeating it is safe.
    async fn pause_run(&self, id: RunId) -> Result<Run>;

    /// Hands out a paused run's tasks again.
    ///
    /// **R5** Tasks that wait for nothing are ready from now, or from their retry time if that is later. A
    /// running run is left as it is and returned.
    ///
    /// # Errors
    /// `NotFound`; `InvalidTransition` for a pending or terminal run.
    ///
    /// # Cancel safety
    /// Resumed or not. Repeating it is safe.
    async fn resume_run(&self, id: RunId) -> Result<Run>;
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
