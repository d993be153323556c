//! A transaction: changes the state and records what it changed.

use ork_state_api::{Error, JobId, Result, Run, RunId, TaskId, Timestamp};

use crate::change::{Change, JobPatch, NewTask, TaskPatch};
use crate::log_files::Logs;
use crate::state::{JobRow, State, TaskRow};

/// The state as one call works on it. A call first checks, then changes: an error after a change
/// would leave it half done.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) logs: &'a mut Logs,
    /// The time of the call.
    pub(crate) now: Timestamp,
    /// The changes so far, for the journal.
    pub(crate) changes: Vec<Change>,
}

impl Transaction<'_> {
    /// Applies a change that only adds a row.
    pub(crate) fn apply(&mut self, change: Change) -> Result<()> {
        self.changes.push(change.clone());
        self.state.apply(change).map_err(Error::internal)
    }

    /// Changes a task, which must exist.
    pub(crate) fn edit_task(&mut self, id: TaskId, edit: impl FnOnce(&mut TaskRow)) {
        if let Some(row) = self.state.edit_task(id, edit) {
            self.changes.push(Change::Task(TaskPatch::of(&row.task, row.token)));
        }
    }

    /// Changes a run, which must exist.
    pub(crate) fn edit_run(&mut self, id: RunId, edit: impl FnOnce(&mut Run)) {
        if let Some(run) = self.state.edit_run(id, edit) {
            self.changes.push(Change::Run(run.clone()));
        }
    }

    /// Changes a deferred job, which must exist.
    pub(crate) fn edit_job(&mut self, id: JobId, edit: impl FnOnce(&mut JobRow)) {
        if let Some(row) = self.state.edit_job(id, edit) {
            self.changes.push(Change::Job(JobPatch::of(&row.job, row.token)));
        }
    }

    /// Adds the tasks of a run.
    pub(crate) fn put_tasks(&mut self, run: RunId, tasks: Vec<NewTask>) -> Result<()> {
        self.apply(Change::Tasks { run, tasks })
    }
}
