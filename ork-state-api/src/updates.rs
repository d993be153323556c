//! A batch of what happened to claimed tasks, and how it is answered.

use std::collections::HashMap;

use crate::limits::{MAX_BATCH_BYTES, MAX_BATCH_ITEMS};
use crate::{
    Claim, Delay, EndedRun, Entity, Error, ErrorKind, JobId, JobStatus, Json, Label, Result, TaskId,
    TaskStatus, Text,
};

/// What happened to one claimed task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskUpdate {
    /// The claim it was held under.
    pub claim: Claim,
    /// What happened.
    pub change: TaskChange,
}

/// What can happen to a claimed task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskChange {
    /// It was handed to an executor.
    Dispatched {
        /// The executor's name for the execution.
        execution_name: Option<Label>,
    },
    /// It runs.
    Running,
    /// It ended well.
    Succeeded {
        /// What it gave.
        output: Option<Json>,
    },
    /// The attempt ended badly.
    Failed {
        /// Why.
        error: Text,
        /// When to try again if attempts are left; `None` says never, whatever is left.
        retry_after: Option<Delay>,
    },
    /// Nothing came of it (a shutdown, no room): the attempt does not count.
    Released,
}

impl TaskChange {
    fn bytes(&self) -> usize {
        match self {
            Self::Dispatched { execution_name } => execution_name.as_ref().map_or(0, |name| name.len()),
            Self::Succeeded { output } => output.as_ref().map_or(0, |output| output.as_str().len()),
            Self::Failed { error, .. } => error.len(),
            Self::Running | Self::Released => 0,
        }
    }
}

impl TaskUpdate {
    /// It was handed to an executor.
    #[must_use]
    pub const fn dispatched(claim: Claim, execution_name: Option<Label>) -> Self {
        Self { claim, change: TaskChange::Dispatched { execution_name } }
    }

    /// It runs.
    #[must_use]
    pub const fn running(claim: Claim) -> Self {
        Self { claim, change: TaskChange::Running }
    }

    /// It ended well.
    #[must_use]
    pub const fn succeeded(claim: Claim, output: Option<Json>) -> Self {
        Self { claim, change: TaskChange::Succeeded { output } }
    }

    /// The attempt ended badly; if attempts are left the next begins after the delay.
    #[must_use]
    pub const fn failed(claim: Claim, error: Text, retry_after: Delay) -> Self {
        Self { claim, change: TaskChange::Failed { error, retry_after: Some(retry_after) } }
    }

    /// The task failed in a way that trying again will not mend.
    #[must_use]
    pub const fn failed_for_good(claim: Claim, error: Text) -> Self {
        Self { claim, change: TaskChange::Failed { error, retry_after: None } }
    }

    /// Nothing came of it: the attempt does not count.
    #[must_use]
    pub const fn released(claim: Claim) -> Self {
        Self { claim, change: TaskChange::Released }
    }
}

/// What became of one item of a batch: an update of a task, or of a deferred job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOutcome<S = TaskStatus> {
    /// It was applied.
    Applied {
        /// Where the task stands after all that the batch says under this claim, or where the job
        /// stands. After a failure a task is `Pending` if it will be tried again, else `Failed`.
        status: S,
    },
    /// The task or job has ended and stays as it is.
    AlreadyTerminal {
        /// How it ended.
        status: S,
    },
    /// The claim does not hold: its lease lapsed or ended, or somebody else claimed it since.
    LeaseLost,
    /// There is no such task or job.
    NotFound,
}

impl UpdateOutcome {
    /// The status, or an error unless the item about `task` was applied.
    ///
    /// Not for a batch that is repeated after a lost answer: there `AlreadyTerminal` may mean that
    /// the first try was applied (T7), and here it is an error.
    ///
    /// # Errors
    /// `NotFound`, `LeaseLost`, or `InvalidTransition` for a task that has ended.
    pub fn into_result(self, task: TaskId) -> Result<TaskStatus> {
        match self {
            Self::Applied { status } => Ok(status),
            Self::AlreadyTerminal { status } => {
                Err(Error::invalid_transition(Entity::Task, task, status, "anything else"))
            }
            Self::LeaseLost => Err(Error::new(ErrorKind::LeaseLost { task })),
            Self::NotFound => Err(Error::not_found(Entity::Task, task)),
        }
    }
}

impl UpdateOutcome<JobStatus> {
    /// The status, or an error unless the item about `job` was applied.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` for a lost lease, or `InvalidTransition` for a job that has ended.
    pub fn into_result(self, job: JobId) -> Result<JobStatus> {
        match self {
            Self::Applied { status } => Ok(status),
            Self::AlreadyTerminal { status } => {
                Err(Error::invalid_transition(Entity::DeferredJob, job, status, "updated"))
            }
            Self::LeaseLost => Err(Error::conflict(format!("deferred job {job} is no longer yours to poll"))
                .with_hint("Its lease lapsed or another poller took it: drop what the poll told")),
            Self::NotFound => Err(Error::not_found(Entity::DeferredJob, job)),
        }
    }
}

/// What became of a batch: of [`update_tasks`](crate::TaskStore::update_tasks) or
/// [`update_jobs`](crate::DeferredJobStore::update_jobs).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpdateReport<S = TaskStatus> {
    /// One answer per item, in the order of the batch.
    pub outcomes: Vec<UpdateOutcome<S>>,
    /// The runs that ended with it, by id.
    pub ended_runs: Vec<EndedRun>,
}

impl<S> UpdateReport<S> {
    /// These answers, and these runs that ended.
    #[must_use]
    pub const fn new(outcomes: Vec<UpdateOutcome<S>>, ended_runs: Vec<EndedRun>) -> Self {
        Self { outcomes, ended_runs }
    }
}

/// A batch of updates that is within the limits.
///
/// Items about one task are applied one after the other. Those under one claim are taken together,
/// at the place of the first of them; claims come in the order in which they first appear, and each
/// finds what those before it left (**T6**). So with a stale claim S and the current one C of a
/// task, the batch S, C (which ends it), S is answered `LeaseLost`, `Applied`, `LeaseLost`, and C,
/// S is answered `Applied`, `AlreadyTerminal`.
///
/// That is worked out here, once for all backends: [`steps`](Self::steps) has at most one
/// [`UpdateStep`] a claim, and [`outcomes`](Self::outcomes) turns the steps' outcomes into those of
/// the items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskUpdates {
    steps: Vec<UpdateStep>,
    /// For each item: its step, and whether it came after that step's claim had ended.
    items: Vec<(usize, bool)>,
}

/// All that a batch says about one claim, up to the claim's end. To be applied as a whole, if the
/// claim holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateStep {
    /// The claim.
    pub claim: Claim,
    /// Replaces the execution name.
    pub execution_name: Option<Label>,
    /// The task is past `dispatched`.
    pub running: bool,
    /// How the claim ends, if it does: `Succeeded`, `Failed` or `Released`.
    pub end: Option<TaskChange>,
}

/// Checks the length of a batch that comes as a slice, for backends.
///
/// # Errors
/// `InvalidInput` for more than [`MAX_BATCH_ITEMS`].
pub fn check_batch_len(what: &str, items: usize) -> Result<()> {
    if items > MAX_BATCH_ITEMS {
        return Err(Error::invalid(
            what,
            format!("has {items} items, at most {MAX_BATCH_ITEMS} are allowed"),
        ));
    }
    Ok(())
}

/// Checks the size of a batch's payloads together.
pub(crate) fn check_batch_bytes(what: &str, bytes: usize) -> Result<()> {
    if bytes > MAX_BATCH_BYTES {
        let reason = format!("has {bytes} bytes of payload, at most {MAX_BATCH_BYTES} are allowed");
        return Err(Error::invalid(what, reason));
    }
    Ok(())
}

impl TaskUpdates {
    /// Takes a batch; it may be empty.
    ///
    /// # Errors
    /// `InvalidInput` beyond [`MAX_BATCH_ITEMS`] or [`MAX_BATCH_BYTES`].
    pub fn new(updates: Vec<TaskUpdate>) -> Result<Self> {
        check_batch_len("batch of updates", updates.len())?;
        check_batch_bytes("batch of updates", updates.iter().map(|update| update.change.bytes()).sum())?;
        Ok(Self::fold(updates))
    }

    /// A batch of one. By its types it is within the limits.
    #[must_use]
    pub fn one(update: TaskUpdate) -> Self {
        Self::fold(vec![update])
    }

    fn fold(updates: Vec<TaskUpdate>) -> Self {
        let mut by_claim = HashMap::with_capacity(updates.len());
        let mut steps: Vec<UpdateStep> = Vec::with_capacity(updates.len());
        let mut items = Vec::with_capacity(updates.len());
        for TaskUpdate { claim, change } in updates {
            let index = *by_claim.entry(claim).or_insert_with(|| {
                steps.push(UpdateStep { claim, execution_name: None, running: false, end: None });
                steps.len() - 1
            });
            let step = &mut steps[index];
            let after_end = step.end.is_some();
            items.push((index, after_end));
            if after_end {
                continue;
            }
            match change {
                TaskChange::Dispatched { execution_name } => {
                    step.execution_name = execution_name.or(step.execution_name.take());
                }
                TaskChange::Running => step.running = true,
                end => step.end = Some(end),
            }
        }
        Self { steps, items }
    }

    /// What to apply, in the order in which the claims first appear. Two steps may name one task,
    /// with different tokens.
    #[must_use]
    pub fn steps(&self) -> &[UpdateStep] {
        &self.steps
    }

    /// The answers to the items, made of the answers to the [steps](Self::steps), which must be as
    /// many.
    #[must_use]
    pub fn outcomes(&self, steps: &[UpdateOutcome]) -> Vec<UpdateOutcome> {
        debug_assert_eq!(steps.len(), self.steps.len(), "an answer a step");
        self.items
            .iter()
            .map(|&(step, after_end)| match steps[step] {
                UpdateOutcome::Applied { status } if after_end && status.is_terminal() => {
                    UpdateOutcome::AlreadyTerminal { status }
                }
                UpdateOutcome::Applied { .. } if after_end => UpdateOutcome::LeaseLost,
                outcome => outcome,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Token;
    use UpdateOutcome::{AlreadyTerminal, Applied, LeaseLost};

    fn claim(token: i64) -> Claim {
        Claim { task: TaskId::from_uuid(uuid::Uuid::nil()), token: Token::from_stored(token) }
    }

    #[test]
    fn items_about_one_claim_become_one_step() {
        let name: Label = "exec".parse().unwrap();
        let updates = TaskUpdates::new(vec![
            TaskUpdate::dispatched(claim(1), Some(name.clone())),
            TaskUpdate::running(claim(1)),
            TaskUpdate::running(claim(2)),
            TaskUpdate::dispatched(claim(1), None),
            TaskUpdate::succeeded(claim(1), None),
            TaskUpdate::released(claim(1)),
        ])
        .unwrap();
        let [first, second] = updates.steps() else { panic!("{updates:?}") };
        assert_eq!((first.execution_name.as_ref(), first.running), (Some(&name), true));
        assert_eq!(first.end, Some(TaskChange::Succeeded { output: None }));
        assert_eq!(second.end, None);

        let success = Applied { status: TaskStatus::Success };
        assert_eq!(
            updates.outcomes(&[success, LeaseLost]),
            [success, success, LeaseLost, success, success, AlreadyTerminal { status: TaskStatus::Success }]
        );
    }

    #[test]
    fn an_item_after_a_failure_that_is_retried_has_lost_its_lease() {
        let updates = TaskUpdates::new(vec![
            TaskUpdate::failed(claim(1), Text::lossy("x"), Delay::ZERO),
            TaskUpdate::succeeded(claim(1), None),
        ])
        .unwrap();
        let again = Applied { status: TaskStatus::Pending };
        assert_eq!(updates.outcomes(&[again]), [again, LeaseLost]);
    }

    #[test]
    fn batches_beyond_the_limits_are_refused() {
        assert!(TaskUpdates::new(vec![TaskUpdate::running(claim(1)); MAX_BATCH_ITEMS + 1]).is_err());
        let output = Json::parse(format!("\"{}\"", "x".repeat(16 * 1024 * 1024 - 2))).unwrap();
        assert!(TaskUpdates::new(vec![TaskUpdate::succeeded(claim(1), Some(output)); 17]).is_err());
    }
}
