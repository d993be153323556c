#![doc = include_str!("../README.md")]

mod backend;
pub mod copy;
mod dag;
mod database;
mod deferred_jobs;
mod error;
mod ids;
mod json;
pub mod layer;
pub mod legacy;
pub mod limits;
mod logs;
mod maintenance;
mod options;
mod page;
mod registry;
mod retry;
mod runs;
mod schedules;
mod status;
mod tasks;
mod text;
mod time;
mod transfer;
mod updates;
pub mod verify;
mod watch;
mod workflows;

pub use backend::{Backend, Capabilities, Capability, Connecting, OptionInfo};
pub use dag::{Dag, TaskSpec};
pub use database::Database;
pub use deferred_jobs::{
    ClaimJobs, ClaimedJob, DeferTask, DeferredEnd, DeferredJob, DeferredJobStore, JobChange, JobClaim,
    JobOutcome, JobReport, JobUpdate, JobUpdates, NewDeferredJob, cannot_defer, deferred_end,
};
pub use error::{Entity, Error, ErrorKind, Outcome, Result};
pub use ids::{JobId, RunId, SnapshotId, TaskId, WorkflowId};
pub use json::Json;
pub use limits::{Delay, LeaseTime, Limit};
pub use logs::{
    CappedAppend, LogAppended, LogChunk, LogPosition, LogRange, LogSlice, LogStore, log_cap_note,
};
pub use maintenance::{Found, Maintenance, MigrationReport, Prune, Pruned, Stats, Violation};
pub use options::{ConnectOptions, Parameters, StoreUrl};
pub use page::{Page, PageRequest};
pub use registry::{Registry, connect};
pub use retry::RetryPlan;
pub use runs::{
    CreatedRun, ListRuns, NewRun, RetryRun, Run, RunFilter, RunKey, RunStore, StartRun, TaskCounts,
};
pub use schedules::{DueSchedule, FireSchedule, FiredSchedule, SCHEDULE_TRIGGER, Schedule, ScheduleStore};
pub use status::{JobStatus, RunStatus, TaskStatus};
pub use tasks::{
    Claim, ClaimTasks, ClaimedTask, DependencyOutputs, EndedRun, ExpiredTasks, Heartbeat, HeartbeatOutcome,
    Lease, ListTasks, ReadyTask, Task, TaskDetail, TaskStore, Token, UpdateReport, dependency_failed_message,
    lease_lapsed_message, task_failed_message, timed_out_message,
};
pub use text::{Label, TaskName, Text, WorkflowName};
pub use time::{Clock, ManualClock, SystemClock, Timestamp};
pub use transfer::{ImportPage, ImportProgress, Record, Transfer, no_import, not_empty};
pub use updates::{TaskChange, TaskUpdate, TaskUpdates, UpdateOutcome, UpdateStep, check_batch_len};
pub use watch::{Topic, Watch, WatchSource};
pub use workflows::{
    ListWorkflows, NewWorkflow, Snapshot, Target, UpdateWorkflow, Workflow, WorkflowFilter, WorkflowStore,
};

/// The version of this crate, for reports.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the macros expand to. Not part of the contract.
#[doc(hidden)]
pub mod __private {
    pub use crate::registry::Registration;
    pub use inventory;
}
