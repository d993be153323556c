//! What a transaction changed, in the form that is kept in the journal.
//!
//! A change holds the new contents, not the request. So reading a journal needs none of the rules
//! that led to the change. A later release reads it as it was meant.

use ork_state_api::backend::ImportProgress;
use ork_state_api::{
    Dag, DeferredJob, JobId, JobStatus, Json, Label, Lease, Run, RunId, Schedule, SnapshotId, Task, TaskId,
    TaskStatus, Text, Timestamp, Token, Workflow, WorkflowId,
};
use serde::{Deserialize, Serialize};

/// One entity as a transaction left it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    /// A workflow, new or changed.
    Workflow(Workflow),
    /// The parts of a workflow's schedule that change when it fires.
    Schedule { workflow: WorkflowId, schedule: Option<Schedule> },
    /// A new snapshot.
    Snapshot { id: SnapshotId, workflow: WorkflowId, created_at: Timestamp, dag: Dag },
    /// A run, new or changed.
    Run(Run),
    /// All tasks of a run that was started.
    Tasks { run: RunId, tasks: Vec<NewTask> },
    /// The fields of a task that can change.
    Task(TaskPatch),
    /// A task's output, or that it no longer has one.
    Output {
        task: TaskId,
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some")]
        output: Option<Json>,
    },
    /// New deferred jobs of a task, in order.
    Jobs(Vec<NewJob>),
    /// The fields of a deferred job that can change.
    Job(JobPatch),
    /// How much of a task's log file counts.
    LogLength { task: TaskId, length: u64 },
    /// A workflow is deleted, with everything that belongs to it.
    DeleteWorkflow(WorkflowId),
    /// Runs are deleted, with everything that belongs to them.
    DeleteRuns(Vec<RunId>),
    /// Records of an import, in their encoded form, and the lengths of its logs.
    Imported { progress: ImportProgress, records: Vec<String>, logs: Vec<LogLength> },
    /// The imported records become the contents of the store.
    ImportFinished,
    /// The imported records are dropped.
    ImportAbandoned,
}

/// A task's log and its length.
pub(crate) type LogLength = (TaskId, u64);

/// A deferred job, with the fields that the API does not show.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewJob {
    pub(crate) job: DeferredJob,
    pub(crate) token: Token,
}

/// All fields of a deferred job that can change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JobPatch {
    pub(crate) id: JobId,
    token: Token,
    status: JobStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Label>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    poll_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    output: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_polled_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
}

impl JobPatch {
    /// Takes the fields from the job.
    pub(crate) fn of(job: &DeferredJob, token: Token) -> Self {
        Self {
            id: job.id,
            token,
            status: job.status,
            owner: job.owner.clone(),
            poll_at: job.poll_at,
            output: job.output.clone(),
            error: job.error.clone(),
            started_at: job.started_at,
            last_polled_at: job.last_polled_at,
            finished_at: job.finished_at,
        }
    }

    /// Writes the fields to the job.
    pub(crate) fn write_to(self, job: &mut DeferredJob, token: &mut Token) {
        *token = self.token;
        job.status = self.status;
        job.owner = self.owner;
        job.poll_at = self.poll_at;
        job.output = self.output;
        job.error = self.error;
        job.started_at = self.started_at;
        job.last_polled_at = self.last_polled_at;
        job.finished_at = self.finished_at;
    }
}

/// A task as it was created.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewTask {
    pub(crate) task: Task,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    pub(crate) params: Option<Json>,
}

/// For `Option<Json>`: a `null` that is present is a value, not an absence.
fn some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// All fields of a task that can change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TaskPatch {
    pub(crate) id: TaskId,
    status: TaskStatus,
    unmet_dependencies: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    open_jobs: u32,
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
    /// Takes the fields from the task.
    pub(crate) fn of(task: &Task, token: Token) -> Self {
        Self {
            id: task.id,
            status: task.status,
            unmet_dependencies: task.unmet_dependencies,
            open_jobs: task.open_jobs,
            attempts: task.attempts,
            token,
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

    /// Writes the fields to the task.
    pub(crate) fn write_to(self, task: &mut Task, token: &mut Token) {
        task.status = self.status;
        task.unmet_dependencies = self.unmet_dependencies;
        task.open_jobs = self.open_jobs;
        task.attempts = self.attempts;
        *token = self.token;
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
