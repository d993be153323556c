//! A claimed task, and the changes that can be made to it. Pure state, no statements.
//!
//! It reads only what the decision needs. It does not parse what need not be valid for that. So a
//! row that is damaged elsewhere does not block the others of a batch. Everything else stays in
//! SQL.

use ork_state_api::backend::{UpdateStep, lease_lapsed_message, timed_out_message};
use ork_state_api::{
    Error, Json, Label, Result, RunId, TaskChange, TaskId, TaskStatus, Timestamp, UpdateOutcome,
};
use sqlx::sqlite::SqliteRow;

use crate::rows::Cells;

/// The columns of a [`Held`]: a task `t`, its lease `l` and its run `r`.
macro_rules! held_columns {
    () => {
        "t.rowid AS task_row, t.id, t.run_id, t.task_index, t.task_name, t.status, t.attempts, t.max_retries,
         t.timeout_seconds, t.open_jobs,
         l.owner AS lease_owner, l.token AS lease_token, l.expires_at AS lease_expires_at,
         r.status AS run_status, r.tasks_unfinished AS run_unfinished, r.tasks_failed AS run_failed,
         r.tasks_cancelled AS run_cancelled"
    };
}
pub(crate) use held_columns;

/// A task as the transaction finds it, and its changes.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) row: i64,
    pub(crate) id: TaskId,
    pub(crate) run: RunId,
    pub(crate) index: i64,
    pub(crate) name: String,
    /// The status that was found; `None` if it cannot be read.
    found: Option<TaskStatus>,
    attempts: i64,
    max_retries: i64,
    timeout_seconds: Option<i64>,
    pub(crate) open_jobs: i64,
    lease: Option<HeldLease>,
    pub(crate) of_run: RunFound,
    /// Replaces the execution name.
    pub(crate) execution_name: Option<Label>,
    /// It was reported as running.
    pub(crate) began: bool,
    pub(crate) end: Option<End>,
    /// Which of the combined calls changed it last, if any.
    pub(crate) changed_by: Option<usize>,
}

#[derive(Debug)]
struct HeldLease {
    owner: String,
    token: i64,
    expires_at: i64,
}

/// The task's run as the transaction finds it.
#[derive(Debug, Clone)]
pub(crate) struct RunFound {
    /// Empty if there is none.
    pub(crate) status: String,
    pub(crate) unfinished: i64,
    pub(crate) failed: i64,
    pub(crate) cancelled: i64,
}

impl RunFound {
    fn is_running(&self) -> bool {
        self.status == "running"
    }

    /// Whether it may end. A run that has ended, or whose status cannot be read, stays as it is.
    pub(crate) fn is_live(&self) -> bool {
        self.is_running() || self.status == "paused"
    }
}

/// How an attempt ends.
#[derive(Debug)]
pub(crate) enum End {
    Succeeded { output: Option<Json> },
    Failed { error: String, again: Option<Again> },
    Released { ready_at: Option<Timestamp> },
}

/// When a failed task is retried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Again {
    /// None while its run is paused.
    pub(crate) ready_at: Option<Timestamp>,
    pub(crate) retry_at: Option<Timestamp>,
}

impl End {
    pub(crate) const fn status(&self) -> TaskStatus {
        match self {
            Self::Succeeded { .. } => TaskStatus::Success,
            Self::Failed { again: None, .. } => TaskStatus::Failed,
            Self::Failed { again: Some(_), .. } | Self::Released { .. } => TaskStatus::Pending,
        }
    }
}

impl Held {
    pub(crate) fn from_row(row: &SqliteRow) -> Result<Self> {
        let cells = Cells::new(row, "tasks");
        let leases = Cells::new(row, "task_leases");
        let runs = Cells::new(row, "runs").identified_by("run_id");
        let lease = match leases.optional("lease_token")? {
            None => None,
            Some(token) => Some(HeldLease {
                owner: leases.lossy("lease_owner")?,
                token,
                expires_at: leases.required("lease_expires_at")?,
            }),
        };
        Ok(Self {
            row: cells.required("task_row")?,
            id: TaskId::from_uuid(cells.uuid("id")?),
            run: RunId::from_uuid(cells.uuid("run_id")?),
            index: cells.required("task_index")?,
            name: cells.lossy("task_name")?,
            found: cells.lossy("status")?.parse().ok(),
            attempts: cells.required("attempts")?,
            max_retries: cells.required("max_retries")?,
            timeout_seconds: cells.optional("timeout_seconds")?,
            open_jobs: cells.required("open_jobs")?,
            lease,
            of_run: RunFound {
                status: runs.lossy("run_status")?,
                unfinished: runs.optional("run_unfinished")?.unwrap_or(0),
                failed: runs.optional("run_failed")?.unwrap_or(0),
                cancelled: runs.optional("run_cancelled")?.unwrap_or(0),
            },
            execution_name: None,
            began: false,
            end: None,
            changed_by: None,
        })
    }

    /// Its new status, if it gets one.
    pub(crate) fn new_status(&self) -> Option<TaskStatus> {
        match &self.end {
            Some(end) => Some(end.status()),
            None => self.began.then_some(TaskStatus::Running),
        }
    }

    /// Whether the task has ended for good, not only its attempt.
    pub(crate) fn has_failed(&self) -> bool {
        self.new_status() == Some(TaskStatus::Failed)
    }

    pub(crate) const fn has_timeout(&self) -> bool {
        self.timeout_seconds.is_some()
    }

    /// Applies a step of a call if its claim holds (rule T4).
    pub(crate) fn apply(&mut self, step: &UpdateStep, call: usize, now: Timestamp) -> Result<UpdateOutcome> {
        let ended = self.end.as_ref().map(End::status).or(self.found).filter(|status| status.is_terminal());
        if let Some(status) = ended {
            return Ok(UpdateOutcome::AlreadyTerminal { status });
        }
        // A lapsed lease is lost, whether or not anybody has noticed.
        let holds =
            |lease: &HeldLease| lease.token == step.claim.token.get() && now.as_micros() < lease.expires_at;
        if self.end.is_some() || !self.lease.as_ref().is_some_and(holds) {
            return Ok(UpdateOutcome::LeaseLost);
        }
        self.changed_by = Some(call);
        if let Some(name) = &step.execution_name {
            self.execution_name = Some(name.clone());
        }
        self.began |= step.running;
        match &step.end {
            None | Some(TaskChange::Dispatched { .. } | TaskChange::Running) => {}
            Some(TaskChange::Succeeded { output }) => self.succeed(output.clone()),
            Some(TaskChange::Failed { error, retry_after }) => {
                let retry_at = retry_after.map(|delay| now.saturating_add(delay.get()));
                self.fail(error.to_string(), retry_at, retry_at);
            }
            Some(TaskChange::Released) => {
                self.end = Some(End::Released { ready_at: Some(now).filter(|_| self.of_run.is_running()) });
            }
        }
        match self.new_status().or(self.found) {
            Some(status) => Ok(UpdateOutcome::Applied { status }),
            None => Err(Error::corrupt("tasks", self.id, "status", "is not one that a task can have")),
        }
    }

    /// Ends the attempt as a success.
    pub(crate) fn succeed(&mut self, output: Option<Json>) {
        self.end = Some(End::Succeeded { output });
    }

    /// Takes back a lapsed lease (rule T3). The attempt is spent, and there is no delay before the
    /// next.
    pub(crate) fn lapse(&mut self, now: Timestamp) {
        let owner = self.lease.as_ref().map_or("", |lease| &lease.owner);
        let error = lease_lapsed_message(owner);
        self.fail_now(error, now);
    }

    /// Ends an overdue attempt (rule T8).
    pub(crate) fn time_out(&mut self, now: Timestamp) {
        let seconds = u32::try_from(self.timeout_seconds.unwrap_or_default()).unwrap_or(u32::MAX);
        self.fail_now(timed_out_message(seconds), now);
    }

    /// Ends the attempt as a failure that no worker reported. It is retried from now if attempts
    /// are left.
    pub(crate) fn fail_now(&mut self, error: String, now: Timestamp) {
        self.changed_by = Some(0);
        self.fail(error, Some(now), None);
    }

    fn fail(&mut self, error: String, again_at: Option<Timestamp>, retry_at: Option<Timestamp>) {
        let again_at = again_at.filter(|_| self.attempts <= self.max_retries);
        let ready_at = again_at.filter(|_| self.of_run.is_running());
        let again = again_at.map(|_| Again { ready_at, retry_at });
        self.end = Some(End::Failed { error, again });
    }
}
