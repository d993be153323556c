//! Workflows and the snapshots of their DAGs.

use std::fmt::Display;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Dag, Error, Json, Label, Page, PageRequest, Result, RunId, Schedule, SnapshotId, Text, Timestamp,
    WorkflowId, WorkflowName,
};

/// A workflow as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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
    /// When it is run automatically, if it is: see [`ScheduleStore`](crate::ScheduleStore).
    pub schedule: Option<Schedule>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed by [`update_workflow`](WorkflowStore::update_workflow) or
    /// [`set_schedule`](crate::ScheduleStore::set_schedule).
    pub updated_at: Timestamp,
}

impl Workflow {
    /// A workflow and the snapshot of its DAG as they are created together (W1). For backends.
    #[must_use]
    pub fn with_snapshot(new: &NewWorkflow, now: Timestamp) -> (Self, Snapshot) {
        let workflow = Self::new(new, SnapshotId::generate(), now);
        let (hash, dag) = (new.dag.content_hash(), new.dag.clone());
        let snapshot = Snapshot::from_stored(workflow.snapshot, workflow.id, hash, dag, now);
        (workflow, snapshot)
    }

    /// A workflow as it is created (W1), of which this snapshot will be made. For backends.
    #[must_use]
    pub fn new(new: &NewWorkflow, snapshot: SnapshotId, now: Timestamp) -> Self {
        let (name, target) = (new.name.clone(), new.target.clone());
        let workflow = Self::from_stored(WorkflowId::generate(), name, target, snapshot, now);
        Self { description: new.description.clone(), ..workflow }
    }

    /// A workflow without description and schedule, unchanged since it was created. Backends set
    /// the rest.
    #[must_use]
    pub const fn from_stored(
        id: WorkflowId,
        name: WorkflowName,
        target: Target,
        snapshot: SnapshotId,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            name,
            description: None,
            target,
            snapshot,
            schedule: None,
            created_at,
            updated_at: created_at,
        }
    }
}

/// How and where a workflow's tasks are run. The store keeps it for the executors and gives it no
/// meaning of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Target {
    /// What runs the workflow as a whole, such as `process` or `cloudrun`; each task says its own.
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

impl Target {
    /// This job of this executor, in no region and no project, without parameters.
    #[must_use]
    pub fn new(executor_type: Label, job_name: Text) -> Self {
        Self { executor_type, job_name, region: Text::default(), project: Text::default(), params: None }
    }

    /// Sets the region.
    #[must_use]
    pub fn with_region(mut self, region: Text) -> Self {
        self.region = region;
        self
    }

    /// Sets the project.
    #[must_use]
    pub fn with_project(mut self, project: Text) -> Self {
        self.project = project;
        self
    }

    /// Sets what every task is given.
    #[must_use]
    pub fn with_params(mut self, params: Json) -> Self {
        self.params = Some(params);
        self
    }
}

/// What a workflow is created from.
#[derive(Debug, Clone)]
#[non_exhaustive]
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
        let target = Target::new(Label::constant("process"), Text::lossy(&name));
        Self { name, description: None, target, dag }
    }

    /// The same, for a name that is still to be checked.
    ///
    /// # Errors
    /// `InvalidInput` for what is no [`WorkflowName`].
    pub fn named(name: &str, dag: Dag) -> Result<Self> {
        Ok(Self::new(name.parse()?, dag))
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

/// What to change of a workflow; what is `None` stays as it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UpdateWorkflow {
    /// The workflow to change.
    pub id: WorkflowId,
    /// The description; `Some(None)` takes it away.
    pub description: Option<Option<Text>>,
    /// How and where its tasks are run.
    pub target: Option<Target>,
    /// The DAG that its next run gets.
    pub dag: Option<Dag>,
}

impl UpdateWorkflow {
    /// Changes nothing yet.
    #[must_use]
    pub const fn new(id: WorkflowId) -> Self {
        Self { id, description: None, target: None, dag: None }
    }

    /// Replaces the DAG.
    #[must_use]
    pub fn with_dag(mut self, dag: Dag) -> Self {
        self.dag = Some(dag);
        self
    }

    /// Replaces the description, or takes it away.
    #[must_use]
    pub fn with_description(mut self, description: Option<Text>) -> Self {
        self.description = Some(description);
        self
    }

    /// Replaces how and where its tasks are run.
    #[must_use]
    pub fn with_target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }
}

/// Which workflows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WorkflowFilter {
    /// Only those whose name contains this text, as [`matches`](Self::matches) says.
    pub name_contains: Option<Text>,
}

impl WorkflowFilter {
    /// All of them.
    #[must_use]
    pub const fn all() -> Self {
        Self { name_contains: None }
    }

    /// Those whose name contains a text.
    #[must_use]
    pub const fn name_contains(text: Text) -> Self {
        Self { name_contains: Some(text) }
    }

    /// Whether a workflow of this name is one of them. For backends: this is the one rule of all
    /// searches.
    ///
    /// The text is literal (`%`, `_`, `\` and `*` mean themselves), and the case of letters of any
    /// script does not matter: both sides are compared after Unicode's full lower-casing, as
    /// [`str::to_lowercase`] does it. Accents matter.
    ///
    /// ```
    /// # use ork_state_api::WorkflowFilter;
    /// let filter = WorkflowFilter::name_contains("ÉTL_".parse()?);
    /// assert!(filter.matches("daily-étl_orders") && !filter.matches("daily-etl_orders"));
    /// assert!(!filter.matches("étlX"));
    /// # Ok::<(), ork_state_api::Error>(())
    /// ```
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.name_contains.as_ref().is_none_or(|text| name.to_lowercase().contains(&text.to_lowercase()))
    }
}

/// A page of workflows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ListWorkflows {
    /// The workflows.
    pub filter: WorkflowFilter,
    /// The page.
    pub page: PageRequest<WorkflowName>,
}

impl ListWorkflows {
    /// This page of these workflows.
    #[must_use]
    pub const fn new(filter: WorkflowFilter, page: PageRequest<WorkflowName>) -> Self {
        Self { filter, page }
    }
}

/// All of them, by pages.
impl From<PageRequest<WorkflowName>> for ListWorkflows {
    fn from(page: PageRequest<WorkflowName>) -> Self {
        Self { filter: WorkflowFilter::all(), page }
    }
}

/// A DAG as it was stored for a workflow. It never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Made by the store.
    pub id: SnapshotId,
    /// Whose it is.
    pub workflow: WorkflowId,
    /// [`Dag::content_hash`].
    pub content_hash: String,
    /// The tasks.
    pub dag: Dag,
    /// When it was stored.
    pub created_at: Timestamp,
}

impl Snapshot {
    /// A snapshot of a DAG as it is created (W2). For backends.
    #[must_use]
    pub fn new(workflow: WorkflowId, dag: Dag, now: Timestamp) -> Self {
        Self::from_stored(SnapshotId::generate(), workflow, dag.content_hash(), dag, now)
    }

    /// A snapshot as a backend has stored it.
    #[must_use]
    pub const fn from_stored(
        id: SnapshotId,
        workflow: WorkflowId,
        content_hash: String,
        dag: Dag,
        created_at: Timestamp,
    ) -> Self {
        Self { id, workflow, content_hash, dag, created_at }
    }
}

/// The error of deleting a workflow while a run of it is live (**W3**), for backends.
#[must_use]
pub fn has_live_run(workflow: WorkflowId, run: RunId, status: impl Display) -> Error {
    Error::conflict(format!("run {run} of workflow {workflow} is {status}")).with_hint(
        "No run may be pending, running or paused: find them with `list_runs`, and call `cancel_run` or wait until they have ended",
    )
}

/// Keeps workflows. The [general rules](crate::Database#general-rules) hold for every method.
#[async_trait]
pub trait WorkflowStore: Send + Sync {
    /// Stores a workflow with its DAG.
    ///
    /// **W1** The workflow and the snapshot of its DAG come into being together. A taken name is
    /// refused. If two callers create it at once, one of them gets it. Names are case-sensitive.
    ///
    /// # Errors
    /// `AlreadyExists` for a taken name.
    ///
    /// # Cancel safety
    /// The workflow is there whole or not at all. Repeated after a lost answer it is
    /// `AlreadyExists`.
    ///
    /// # Example
    /// ```
    /// # use ork_state_api::*;
    /// async fn create(db: &dyn Database) -> Result<Workflow> {
    ///     let extract = TaskSpec::named("extract")?;
    ///     let load = TaskSpec::named("load")?.after_named(["extract"])?;
    ///     db.create_workflow(NewWorkflow::named("orders", Dag::new([extract, load])?)?).await
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

    /// Workflows, in the byte order of their names (**G6**): `B` before `a`, whatever the
    /// database's collation.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn list_workflows(&self, list: ListWorkflows) -> Result<Page<Workflow, WorkflowName>>;

    /// How many workflows there are of this kind.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn count_workflows(&self, filter: WorkflowFilter) -> Result<u64>;

    /// Changes a workflow.
    ///
    /// **W2** Everything that is given is replaced together. A DAG becomes the workflow's current
    /// snapshot. That is a new snapshot, or an earlier one of this workflow with the very same
    /// [content](Dag::content_hash). Snapshots never change, and runs keep the one they were
    /// created with.
    ///
    /// # Errors
    /// `NotFound`.
    ///
    /// # Cancel safety
    /// Changed whole or not at all. Repeating it is safe.
    ///
    /// # Example
    /// ```
    /// # use ork_state_api::*;
    /// async fn deploy(db: &dyn Database, name: &WorkflowName, dag: Dag) -> Result<Workflow> {
    ///     match db.find_workflow(name).await {
    ///         Ok(there) => db.update_workflow(UpdateWorkflow::new(there.id).with_dag(dag)).await,
    ///         Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => {
    ///             db.create_workflow(NewWorkflow::new(name.clone(), dag)).await
    ///         }
    ///         Err(error) => Err(error),
    ///     }
    /// }
    /// ```
    async fn update_workflow(&self, update: UpdateWorkflow) -> Result<Workflow>;

    /// The snapshot with this id.
    ///
    /// # Errors
    /// `NotFound`.
    async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot>;

    /// Deletes a workflow with its schedule, snapshots, runs, tasks, outputs, logs and deferred
    /// jobs.
    ///
    /// **W3** All of it goes or none. It is refused while a run of it is pending, running or
    /// paused. A run that is created meanwhile either stops the deletion or finds no workflow.
    ///
    /// # Errors
    /// `NotFound`. `Conflict` that names a run that has not ended.
    ///
    /// # Cancel safety
    /// The workflow is gone whole or not at all. Repeated after a lost answer it is `NotFound`.
    async fn delete_workflow(&self, id: WorkflowId) -> Result<()>;
}
