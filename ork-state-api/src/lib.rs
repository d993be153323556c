#![doc = include_str!("../README.md")]

mod backend;
mod dag;
mod database;
mod error;
mod ids;
mod json;
pub mod limits;
mod logs;
mod maintenance;
mod options;
mod page;
mod registry;
mod runs;
mod status;
mod tasks;
mod text;
mod time;
mod updates;
pub mod verify;
mod workflows;

pub use backend::{Backend, Capabilities, Capability, Connecting, OptionInfo};
pub use dag::{Dag, TaskSpec};
pub use database::Database;
pub use error::{Entity, Error, ErrorKind, Outcome, Result};
pub use ids::{RunId, SnapshotId, TaskId, WorkflowId};
pub use json::Json;
pub use limits::{Delay, LeaseTime, Limit};
pub use logs::{
    CappedAppend, LogAppended, LogChunk, LogPosition, LogRange, LogSlice, LogStore, log_cap_note,
};
pub use maintenance::{Maintenance, MigrationReport, Violation};
pub use options::{ConnectOptions, Parameters, StoreUrl};
pub use page::{Page, PageRequest};
pub use registry::{Registry, connect};
pub use runs::{CreatedRun, ListRuns, NewRun, Run, RunKey, RunStore, StartRun, TaskCounts};
pub use status::{RunStatus, TaskStatus};
pub use tasks::{
    Claim, ClaimTasks, ClaimedTask, DependencyOutputs, EndedRun, ExpiredLeases, Heartbeat, HeartbeatOutcome,
    Lease, ReadyTask, Task, TaskDetail, TaskStore, Token, UpdateReport, dependency_failed_message,
    lease_lapsed_message, task_failed_message,
};
pub use text::{Label, TaskName, Text, WorkflowName};
pub use time::{Clock, ManualClock, SystemClock, Timestamp};
pub use updates::{TaskChange, TaskUpdate, TaskUpdates, UpdateOutcome, UpdateStep, check_batch_len};
pub use workflows::{NewWorkflow, Snapshot, Target, Workflow, WorkflowStore};

/// What the macros expand to. Not part of the contract.
#[doc(hidden)]
pub mod __private {
    pub use crate::registry::Registration;
    pub use inventory;
}
