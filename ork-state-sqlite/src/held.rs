//! A claimed task, and what can become of it: pure state, no statement.

use ork_state_api::{
    Delay, Json, Label, Lease, Result, RunId, RunStatus, TaskChange, TaskId, TaskName, TaskStatus, Timestamp,
    UpdateOutcome, UpdateStep, lease_lapsed_message,
};
use sqlx::sqlite::SqliteRow;

use crate::rows::{self, Cells};

/// The columns of a [`Held`]: a task `t`, its lease `l` and its run `r`.
macro_rules! held_columns {
    () => {
        "t.rowid AS task_row, t.id, t.run_id, t.task_index, t.task_name, t.status, t.attempts, t.max_retries,
         t.execution_name, t.dispatched_at, t.started_at, t.retry_at,
         l.owner AS lease_owner, l.token AS lease_token, l.expires_at AS lease_expires_at,
         r.status AS run_status"
    };
}
pub(crate) use held_columns;

/// A task as the transaction finds it, and then as it will leave it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) row: i64,
    pub(crate) id: TaskId,
    pub(crate) run: RunId,
    pub(crate) index: u32,
    pub(crate) name: TaskName,
    pub(crate) status: TaskStatus,
    pub(crate) attempts: u32,
    max_retries: u32,
    pub(crate) execution_name: Option<Label>,
    pub(crate) dispatched_at: Option<Timestamp>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) lease: Option<Lease>,
    run_is_running: bool,
    pub(crate) ready_at: Option<Timestamp>,
    pub(crate) error: NewError,
    pub(crate) output: Option<Json>,
    pub(crate) changed: bool,
    /// Which of the calls that are applied together ended it, if one did.
    pub(crate) ended_by: usize,
}

/// What becomes of a task's error.
#[derive(Debug)]
pub(crate) enum NewError {
    Keep,
    Clear,
    Set(String),
}

impl Held {
    pub(crate) fn from_row(row: &SqliteRow) -> Result<Self> {
        let cells = Cells::new(row, "tasks");
        let run_status: RunStatus = Cells::new(row, "runs").identified_by("run_id").text("run_status")?;
        Ok(Self {
            row: cells.required("task_row")?,
            id: TaskId::from_uuid(cells.uuid("id")?),
            run: RunId::from_uuid(cells.uuid("run_id")?),
            index: cells.number("task_index")?,
            name: cells.text("task_name")?,
            status: cells.text("status")?,
            attempts: cells.number("attempts")?,
            max_retries: cells.number("max_retries")?,
            execution_name: cells.optional_text("execution_name")?,
            dispatched_at: cells.optional_time("dispatched_at")?,
            started_at: cells.optional_time("started_at")?,
            retry_at: cells.optional_time("retry_at")?,
            lease: rows::lease(row)?,
            run_is_running: run_status == RunStatus::Running,
            ready_at: None,
            error: NewError::Keep,
            output: None,
            changed: false,
            ended_by: 0,
        })
    }

    /// Applies a step of a call if its claim holds (rule T4).
    pub(crate) fn apply(&mut self, step: &UpdateStep, call: usize, now: Timestamp) -> UpdateOutcome {
        if self.status.is_terminal() {
            return UpdateOutcome::AlreadyTerminal { status: self.status };
        }
        // A lapsed lease is lost, whether or not anybody has noticed.
        let holds = |lease: &Lease| lease.token == step.claim.token && now < lease.expires_at;
        if !self.lease.as_ref().is_some_and(holds) {
            return UpdateOutcome::LeaseLost;
        }
        self.changed = true;
        self.ended_by = call;
        if let Some(name) = &step.execution_name {
            self.execution_name = Some(name.clone());
        }
        if step.running {
            self.status = TaskStatus::Running;
            self.started_at.get_or_insert(now);
        }
        match &step.end {
            None | Some(TaskChange::Dispatched { .. } | TaskChange::Running) => {}
            Some(TaskChange::Succeeded { output }) => {
                self.status = TaskStatus::Success;
                self.started_at.get_or_insert(now);
                self.output.clone_from(output);
                self.error = NewError::Clear;
                self.lease = None;
            }
            Some(TaskChange::Failed { error, retry_after }) => {
                self.started_at.get_or_insert(now);
                let retry_at = retry_after.map(|delay: Delay| now.saturating_add(delay.get()));
                self.fail(error.to_string(), retry_at.filter(|_| self.has_attempts_left()));
                self.retry_at = retry_at.filter(|_| self.status == TaskStatus::Pending);
            }
            Some(TaskChange::Released) => {
                self.status = TaskStatus::Pending;
                self.attempts = self.attempts.saturating_sub(1);
                (self.execution_name, self.dispatched_at, self.started_at) = (None, None, None);
                self.ready_at = Some(now).filter(|_| self.run_is_running);
                self.lease = None;
            }
        }
        UpdateOutcome::Applied { status: self.status }
    }

    /// Takes back a lapsed lease (rule T3): the attempt is spent, and there is no delay before the next.
    pub(crate) fn lapse(&mut self, now: Timestamp) {
        let owner = self.lease.as_ref().map(|lease| lease.owner.to_string()).unwrap_or_default();
        self.changed = true;
        self.started_at.get_or_insert(now);
        self.fail(lease_lapsed_message(&owner), Some(now).filter(|_| self.has_attempts_left()));
        self.retry_at = None;
    }

    const fn has_attempts_left(&self) -> bool {
        self.attempts <= self.max_retries
    }

    /// Ends the attempt: the task is ready again at this time, or failed.
    fn fail(&mut self, error: String, again_at: Option<Timestamp>) {
        self.error = NewError::Set(error);
        self.lease = None;
        self.status = if again_at.is_some() { TaskStatus::Pending } else { TaskStatus::Failed };
        self.ready_at = again_at.filter(|_| self.run_is_running);
    }
}
