#![doc = include_str!("../README.md")]
//!
//! ## The types by purpose
//!
//! | for | types |
//! |---|---|
//! | workflows | [`NewWorkflow`], [`UpdateWorkflow`], [`Workflow`], [`Target`], [`Dag`], [`TaskSpec`], [`Snapshot`] |
//! | runs | [`NewRun`], [`StartRun`], [`RetryRun`], [`Run`], [`RunStatus`], [`TaskCounts`], [`CreatedRun`] |
//! | claims | [`ClaimTasks`], [`ClaimedTask`], [`Claim`], [`Lease`], [`Token`], [`Heartbeat`], [`HeartbeatOutcome`], [`ExpiredTasks`] |
//! | what became of a task | [`TaskUpdate`], [`TaskUpdates`], [`UpdateReport`], [`UpdateOutcome`], [`EndedRun`] |
//! | tasks | [`Task`], [`TaskDetail`], [`TaskStatus`], [`ReadyTask`] |
//! | logs | [`LogChunk`], [`LogRange`], [`LogPosition`], [`LogSlice`] |
//! | schedules | [`Schedule`], [`DueSchedule`], [`FireSchedule`], [`FiredSchedule`] |
//! | deferred jobs | [`DeferTask`], [`DeferredJob`], [`ClaimJobs`], [`JobUpdates`] |
//! | lists | [`ListWorkflows`], [`ListRuns`], [`RunFilter`], [`ListTasks`], [`PageRequest`], [`Page`] |
//! | upkeep | [`MigrationReport`], [`Prune`], [`Stats`], [`Violation`], [`Topic`], [`Watch`] |
//! | values | [`Json`], [`Text`], [`Label`], [`WorkflowName`], [`TaskName`], [`Limit`], [`LeaseTime`], [`Delay`], [`Timestamp`] |
//! | opening a store | [`connect`], [`ConnectOptions`], [`Registry`], [`ManualClock`] |
//! | errors | [`Error`], [`ErrorKind`], [`Effect`] |
//!
//! ## The life of a run
//!
//! ```text
#![doc = include_str!("../docs/run-states.txt")]
//! ```
//!
//! ## The life of a task
//!
//! ```text
#![doc = include_str!("../docs/task-states.txt")]
//! ```
//!
//! ## The rules
//!
//! Each rule begins at the linked method. Parts of it may stand at methods beside that one. The general
//! rules stand at [`Database`].
//!
#![doc = include_str!("../docs/rules.md")]

pub mod backend;
pub mod copy;
mod dag;
mod database;
mod deferred_jobs;
mod error;
mod ids;
mod json;
pub mod layer;
pub mod limits;
mod logs;
mod maintenance;
mod options;
#[cfg(feature = "ork")]
pub mod ork;
mod page;
mod plugin;
mod registry;
mod retry;
mod rule;
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

pub use dag::{Dag, TaskSpec};
pub use database::Database;
pub use deferred_jobs::{
    ClaimJobs, ClaimedJob, DeferTask, DeferredJob, DeferredJobStore, JobChange, JobClaim, JobUpdate,
    JobUpdates, NewDeferredJob,
};
pub use error::{Effect, Entity, Error, ErrorKind, Result};
pub use ids::{JobId, RunId, SnapshotId, TaskId, WorkflowId};
pub use json::Json;
#[doc(inline)]
pub use limits::{Delay, LeaseTime, Limit};
pub use logs::{LogAppended, LogChunk, LogPosition, LogRange, LogSlice, LogStore};
pub use maintenance::{Found, Maintenance, MigrationReport, Prune, Pruned, Stats, Violation};
pub use options::ConnectOptions;
pub use page::{Page, PageRequest};
pub use plugin::Capability;
pub use registry::{Registry, connect};
pub use rule::Rule;
pub use runs::{
    CreatedRun, EndedRun, ListRuns, NewRun, RetryRun, Run, RunFilter, RunKey, RunStore, StartRun, TaskCounts,
};
pub use schedules::{DueSchedule, FireSchedule, FiredSchedule, SCHEDULE_TRIGGER, Schedule, ScheduleStore};
pub use status::{JobStatus, RunStatus, TaskStatus};
pub use tasks::{
    Claim, ClaimTasks, ClaimedTask, DependencyOutputs, ExpiredTasks, Heartbeat, HeartbeatOutcome, Lease,
    ListTasks, ReadyTask, Task, TaskDetail, TaskStore, Token,
};
pub use text::{Label, TaskName, Text, WorkflowName};
pub use time::{Clock, ManualClock, SystemClock, Timestamp};
pub use updates::{TaskChange, TaskUpdate, TaskUpdates, UpdateOutcome, UpdateReport};
pub use watch::{Topic, Watch};
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
