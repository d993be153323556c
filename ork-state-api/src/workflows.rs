//! Workflows and the snapshots of their DAGs.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Dag, Json, Label, Page, PageRequest, Result, SnapshotId, Text, Timestamp, WorkflowId, WorkflowName,
};

/// A workflow as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workflow {
    /// Made by the store.
    pub id: WorkflowId,
    /// Unique in the store.
    pub name: WorkflowName,
    /// For people.
    pub description: Option<Text>,
    /// How and where its tasks are run.
    pub target: Target,
    /// The DAG that its next run gets.
    pub snapshot: SnapshotId,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// How and where a workflow's tasks are run. The store keeps it for the executors and gives it no
/// meaning of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What runs tasks that do not say it themselves, such as `process` or `cloudrun`.
    pub executor_type: Label,
    /// The executor's name for the job.
    pub job_name: Text,
    /// The executor's region; may be empty.
    pub region: Text,
    /// The executor's project; may be empty.
    pub project: Text,
    /// What every task of the workflow is given besides its own parameters.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::some")]
    pub params: Option<Json>,
}

/// What a workflow is created from.
#[derive(Debug, Clone)]
pub struct NewWorkflow {
    /// Must be free.
    pub name: WorkflowName,
    /// For people.
    pub description: Option<Text>,
    /// How and where its tasks are run.
    pub target: Target,
    /// Its tasks.
    pub dag: Dag,
}

impl NewWorkflow {
    /// A workflow of local processes: executor type `process`, a job named after the workflow, no
    /// region, no project.
    #[must_use]
    pub fn new(name: WorkflowName, dag: Dag) -> Self {
        let target = Target {
            executor_type: Label::constant("process"),
            job_name: Text::lossy(&name),
            region: Text::lossy(""),
            project: Text::lossy(""),
            params: None,
        };
        Self { name, description: None, target, dag }
    }

    /// Sets the description.
    #[must_use]
    pub fn with_description(mut self, description: Text) -> Self {
        self.description = Some(description);
        self
    }

    /// Sets how and where its tasks are run.
    #[must_use]
    pub fn with_target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }
}

/// A DAG as it was stored for a workflow. It never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Made by the store.
    pub id: SnapshotId,
    /// Whose it is.
    pub workflow: WorkflowId,
    /// [`Dag::content_hash`].
    pub content_hash: String,
    /// The tasks.
    pub dag: Arc<Dag>,
    /// When it was stored.
    pub created_at: Timestamp,
}

/// Keeps workflows. The [general rules](crate::Database#general-rules) hold for every method.
#[async_trait]
pub trait WorkflowStore: Send + Sync {
    /// Stores a workflow with its DAG.
    ///
    /// **W1** The workflow and the snapshot of its DAG come into being together. A taken name is
    /// refused, also when two callers create it at once: one of them gets it. Names are
    /// case-sensitive.
    ///
    /// # Errors
    /// `AlreadyExists` for a taken name.
    ///
    /// # Cancel safety
    /// The workflow is there whole or not at all. Repeated after a lost answer it is `AlreadyExists`.
    ///
    /// # Example
    /// ```
    /// # use ork_state_api::*;
    /// async fn create(db: &dyn Database) -> Result<Workflow> {
    ///     let extract = TaskSpec::new("extract".parse()?, "process".parse()?);
    ///     let load = TaskSpec::new("load".parse()?, "process".parse()?).after(["extract".parse()?]);
    ///     db.create_workflow(NewWorkflow::new("orders".parse()?, Dag::new([extract, load])?)).await
    /// }
    /// ```
    async fn create_workflow(&self, new: NewWorkflow) -> Result<Workflow>;

    /// The workflow with this id.
    ///
    /// # Errors
    /// `NotFound`.
    async fn get_workflow(&self, id: WorkflowId) -> Result<Workflow>;

    /// The workflow with exactly this name.
    ///
    /// # Errors
    /// `NotFound`.
    async fn find_workflow(&self, name: &WorkflowName) -> Result<Workflow>;

    /// All workflows, in the byte order of their names (**G6**): `B` before `a`, whatever the
    /// database's collation.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn list_workflows(&self, page: PageRequest<WorkflowName>) -> Result<Page<Workflow, WorkflowName>>;

    /// The snapshot with this id.
    ///
    /// # Errors
    /// `NotFound`.
    async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot>;

    /// Deletes a workflow with its snapshots, runs, tasks, outputs and logs.
    ///
    /// **W3** All of it goes or none. While a run of it is pending, running or paused it is refused; a
    /// run that is created meanwhile either stops the deletion or finds no workflow.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` that names a run that has not ended.
    ///
    /// # Cancel safety
    /// The workflow is gone whole or not at all. Repeated after a lost answer it is `NotFound`.
    async fn delete_workflow(&self, id: WorkflowId) -> Result<()>;
}
