//! The files through which a task of an old flow and its executor talk.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ork::{LegacyRunId, LegacyTaskName, LegacyTaskStatus};
use crate::{Json, Label, Result, Text, Timestamp, WorkflowName};

/// What a task is told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacySpec {
    /// The run it belongs to.
    pub run_id: LegacyRunId,
    /// The workflow of the run.
    pub workflow_name: WorkflowName,
    /// Unique within the run.
    pub task_name: LegacyTaskName,
    /// Which attempt this is.
    pub attempt: u32,
    /// What runs it.
    pub executor: Label,
    /// What it is given; JSON `null` if nothing.
    #[serde(default = "Json::null")]
    pub input: Json,
    /// The outputs of the tasks that it depends on, by their names.
    #[serde(default)]
    pub upstream: BTreeMap<LegacyTaskName, Json>,
}

/// How a task is doing, as its executor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyStatus {
    /// Where it stands.
    pub status: LegacyTaskStatus,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When its executor last said that it is alive.
    pub heartbeat_at: Option<Timestamp>,
    /// Why it failed.
    #[serde(default, deserialize_with = "super::any_text")]
    pub error: Option<Text>,
}

impl LegacyStatus {
    /// A status with no times and no error.
    #[must_use]
    pub const fn new(status: LegacyTaskStatus) -> Self {
        Self { status, started_at: None, finished_at: None, heartbeat_at: None, error: None }
    }
}

/// Where the files of old flows' tasks are: `<base>/<run id>/<task
/// name>/{spec,status,output}.json`.
///
/// Share it as `Arc<dyn ObjectStore>`; every method takes `&self` and may be called concurrently.
///
/// # Rules of every method
/// - **LO5** A write replaces the whole file: whoever reads meanwhile has the old one or the new
///   one, also if the writer dies. One that is acknowledged is seen by every call that begins
///   later, in any process; where the store is on disk it survives loss of power.
/// - **LO6** What is there and cannot be read is `Corrupt`, naming the file: never taken for
///   missing, and never a default. That goes for a file that is empty or cut short, and for a spec
///   that is another task's.
///
/// # Errors of every method
/// `Unavailable` when the store cannot be reached; `Corrupt`; `Internal`.
#[async_trait]
pub trait ObjectStore: std::fmt::Debug + Send + Sync {
    /// Writes what a task is told to do, under the run id and the task name in it.
    ///
    /// - **LO1** The spec comes out as it went in, JSON to the byte.
    ///
    /// # Cancel safety
    /// It is written or not. Calling again does no harm.
    async fn write_spec(&self, spec: &LegacySpec) -> Result<()>;

    /// Reads what a task is told to do (LO1).
    ///
    /// # Errors
    /// `NotFound` if it was never written: no task can do without.
    ///
    /// # Cancel safety
    /// It only reads.
    async fn read_spec(&self, run: &LegacyRunId, task: &LegacyTaskName) -> Result<LegacySpec>;

    /// Writes how a task is doing.
    ///
    /// - **LO2** The status comes out as it went in; one that was never written is `None`.
    ///
    /// # Cancel safety
    /// It is written or not. Calling again does no harm.
    async fn write_status(
        &self,
        run: &LegacyRunId,
        task: &LegacyTaskName,
        status: &LegacyStatus,
    ) -> Result<()>;

    /// Reads how a task is doing (LO2).
    ///
    /// # Cancel safety
    /// It only reads.
    async fn read_status(&self, run: &LegacyRunId, task: &LegacyTaskName) -> Result<Option<LegacyStatus>>;

    /// Writes what a task gave.
    ///
    /// - **LO3** The file is the JSON text and comes out to the byte; one that was never written is
    ///   `None`, and JSON `null` is an output.
    ///
    /// # Cancel safety
    /// It is written or not. Calling again does no harm.
    async fn write_output(&self, run: &LegacyRunId, task: &LegacyTaskName, output: &Json) -> Result<()>;

    /// Reads what a task gave (LO3).
    ///
    /// # Cancel safety
    /// It only reads.
    async fn read_output(&self, run: &LegacyRunId, task: &LegacyTaskName) -> Result<Option<Json>>;

    /// Where the files of a task are, for its executor: a path of the file system, or a URL.
    ///
    /// - **LO4** It lies two levels below the base: the run id, then the task name, as they are; in
    ///   a URL, percent-encoded. The files are `spec.json`, `status.json` and `output.json` in it.
    ///   No two tasks share it.
    fn task_dir(&self, run: &LegacyRunId, task: &LegacyTaskName) -> String;

    /// Where the spec of a task is (LO4).
    fn spec_path(&self, run: &LegacyRunId, task: &LegacyTaskName) -> String;

    /// Where the output of a task is, or will be (LO4).
    fn output_path(&self, run: &LegacyRunId, task: &LegacyTaskName) -> String;
}
