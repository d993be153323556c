//! What a transaction changed: the form in which it is kept in the journal.
//!
//! A change says what is there now, not what was asked for, so that reading a journal needs none of
//! the rules that led to it, and a later release reads it as it was meant.

use std::sync::Arc;

use ork_state_api::{
    Dag, Json, Label, Lease, Run, RunId, SnapshotId, Task, TaskId, TaskStatus, Text, Timestamp, Token,
    Workflow, WorkflowId,
};
use serde::{Deserialize, Serialize};

use crate::state::TaskRow;

/// One entity as a transaction left it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    /// A workflow, new or changed.
    Workflow(Workflow),
    /// A new snapshot.
    Snapshot { id: SnapshotId, workflow: WorkflowId, created_at: Timestamp, dag: Arc<Dag> },
    /// A run, new or changed.
    Run(Run),
    /// All tasks of a run that was started.
    Tasks { run: RunId, tasks: Vec<NewTask> },
    /// What can change of a task.
    Task(TaskPatch),
    /// A task's output.
    Output { task: TaskId, output: Json },
    /// How much of a task's log file counts.
    LogLength { task: TaskId, length: u64 },
    /// A workflow is gone, with all that was its own.
    DeleteWorkflow(WorkflowId),
}

/// A task as it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewTask {
    pub(crate) task: Task,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    pub(crate) params: Option<Json>,
}

/// For `Option<Json>`: a `null` that is there is a value, not an absence.
fn some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

/// What can change of a task, in full.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TaskPatch {
    pub(crate) id: TaskId,
    status: TaskStatus,
    unmet_dependencies: u32,
    attempts: u32,
    token: Token,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<Lease>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    execution_name: Option<Label>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ready_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dispatched_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
}

impl TaskPatch {
    /// The task as it is.
    pub(crate) fn of(row: &TaskRow) -> Self {
        let task = &row.task;
        Self {
            id: task.id,
            status: task.status,
            unmet_dependencies: task.unmet_dependencies,
            attempts: task.attempts,
            token: row.token,
            lease: task.lease.clone(),
            execution_name: task.execution_name.clone(),
            error: task.error.clone(),
            ready_at: task.ready_at,
            retry_at: task.retry_at,
            dispatched_at: task.dispatched_at,
            started_at: task.started_at,
            finished_at: task.finished_at,
        }
    }

    /// Makes the task so.
    pub(crate) fn write_to(self, row: &mut TaskRow) {
        let task = &mut row.task;
        task.status = self.status;
        task.unmet_dependencies = self.unmet_dependencies;
        task.attempts = self.attempts;
        row.token = self.token;
        task.lease = self.lease;
        task.execution_name = self.execution_name;
        task.error = self.error;
        task.ready_at = self.ready_at;
        task.retry_at = self.retry_at;
        task.dispatched_at = self.dispatched_at;
        task.started_at = self.started_at;
        task.finished_at = self.finished_at;
    }
}
