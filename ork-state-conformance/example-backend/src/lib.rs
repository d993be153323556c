#![doc = include_str!("../README.md")]

mod state;
mod tasks;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ork_state_api::backend::{Backend, Capabilities, Plugin, Transfer};
use ork_state_api::{
    Capability, ClaimTasks, ClaimedTask, Clock, ConnectOptions, CreatedRun, Database, DeferredJobStore,
    Error, ErrorKind, ExpiredTasks, Found, Heartbeat, HeartbeatOutcome, Json, Limit, ListRuns, ListTasks,
    ListWorkflows, LogStore, Maintenance, MigrationReport, NewRun, NewWorkflow, Page, Prune, Pruned,
    ReadyTask, Result, RetryRun, Run, RunFilter, RunId, RunKey, RunStatus, RunStore, ScheduleStore, Snapshot,
    SnapshotId, StartRun, Stats, Task, TaskDetail, TaskId, TaskName, TaskStore, TaskUpdates, UpdateReport,
    UpdateWorkflow, Workflow, WorkflowFilter, WorkflowId, WorkflowName, WorkflowStore,
};

use crate::state::State;

/// What the plugin says about itself. Opting out is said here and nowhere else.
pub static BACKEND: Backend = Backend {
    name: "example",
    package: "ork_state_example",
    schemes: &["example"],
    example: "example:",
    capabilities: Capabilities::all()
        .without(Capability::Durable)
        .without(Capability::MultiProcess)
        .without(Capability::Logs)
        .without(Capability::Schedules)
        .without(Capability::DeferredJobs)
        .without(Capability::Notifications)
        .without(Capability::Transfer),
    options: &[],
    connect: |options| {
        Box::pin(async move { Ok(Arc::new(ExampleDatabase::new(&options)) as Arc<dyn Database>) })
    },
};
ork_state_api::register_backend!(BACKEND);

/// A store in memory.
#[derive(Debug)]
pub struct ExampleDatabase {
    clock: Arc<dyn Clock>,
    /// `None` until it is migrated.
    state: Mutex<Option<State>>,
}

impl ExampleDatabase {
    /// A new store, of which the options say no more than the clock.
    #[must_use]
    pub fn new(options: &ConnectOptions) -> Self {
        Self { clock: options.clock_or_system(), state: Mutex::new(None) }
    }

    /// Does something with the state. The lock makes it one transaction (G1), and as nothing is
    /// awaited while it is held, a dropped future cannot cut it short (G9).
    fn with<T>(&self, action: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        match &mut *self.lock() {
            Some(state) => {
                state.now = self.clock.now();
                action(state)
            }
            None => {
                Err(Error::new(ErrorKind::SchemaMismatch { found: 0, needed: 1 })
                    .with_hint("Call migrate first"))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugin for ExampleDatabase {
    fn backend(&self) -> &'static Backend {
        &BACKEND
    }
}

#[async_trait]
impl WorkflowStore for ExampleDatabase {
    async fn create_workflow(&self, new: NewWorkflow) -> Result<Workflow> {
        self.with(|state| state.create_workflow(&new))
    }

    async fn get_workflow(&self, id: WorkflowId) -> Result<Workflow> {
        self.with(|state| state.workflow(id).cloned())
    }

    async fn find_workflow(&self, name: &WorkflowName) -> Result<Workflow> {
        self.with(|state| state.find_workflow(name).cloned())
    }

    async fn list_workflows(&self, list: ListWorkflows) -> Result<Page<Workflow, WorkflowName>> {
        self.with(|state| Ok(state.list_workflows(&list)))
    }

    async fn count_workflows(&self, filter: WorkflowFilter) -> Result<u64> {
        self.with(|state| Ok(state.count_workflows(&filter)))
    }

    async fn update_workflow(&self, update: UpdateWorkflow) -> Result<Workflow> {
        self.with(|state| state.update_workflow(update))
    }

    async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        self.with(|state| state.snapshot(id).cloned())
    }

    async fn delete_workflow(&self, id: WorkflowId) -> Result<()> {
        self.with(|state| state.delete_workflow(id))
    }
}

#[async_trait]
impl RunStore for ExampleDatabase {
    async fn create_run(&self, new: NewRun) -> Result<CreatedRun> {
        self.with(|state| state.create_run(new))
    }

    async fn get_run(&self, id: RunId) -> Result<Run> {
        self.with(|state| state.run(id).cloned())
    }

    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run, RunKey>> {
        self.with(|state| Ok(state.list_runs(&list)))
    }

    async fn count_runs(&self, filter: RunFilter) -> Result<u64> {
        self.with(|state| Ok(state.count_runs(&filter)))
    }

    async fn start_run(&self, start: StartRun) -> Result<Run> {
        self.with(|state| state.start_run(start))
    }

    async fn cancel_run(&self, id: RunId) -> Result<Run> {
        self.with(|state| state.cancel_run(id))
    }

    async fn pause_run(&self, id: RunId) -> Result<Run> {
        self.with(|state| state.toggle_run(id, RunStatus::Running, RunStatus::Paused))
    }

    async fn resume_run(&self, id: RunId) -> Result<Run> {
        self.with(|state| state.toggle_run(id, RunStatus::Paused, RunStatus::Running))
    }

    async fn retry_run(&self, retry: RetryRun) -> Result<Run> {
        self.with(|state| state.retry_run(&retry))
    }
}

#[async_trait]
impl TaskStore for ExampleDatabase {
    async fn ready_tasks(&self, limit: Limit) -> Result<Vec<ReadyTask>> {
        self.with(|state| Ok(state.ready_tasks(limit)))
    }

    async fn claim_tasks(&self, claim: ClaimTasks) -> Result<Vec<ClaimedTask>> {
        self.with(|state| state.claim_tasks(&claim))
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Vec<HeartbeatOutcome>> {
        self.with(|state| Ok(state.heartbeat(&heartbeat)))
    }

    async fn expire_leases(&self, limit: Limit) -> Result<ExpiredTasks> {
        self.with(|state| Ok(state.expire_leases(limit)))
    }

    async fn expire_timeouts(&self, limit: Limit) -> Result<ExpiredTasks> {
        self.with(|state| Ok(state.expire_timeouts(limit)))
    }

    async fn update_tasks(&self, updates: TaskUpdates) -> Result<UpdateReport> {
        self.with(|state| Ok(state.update_tasks(&updates)))
    }

    async fn get_task(&self, id: TaskId) -> Result<TaskDetail> {
        self.with(|state| state.task(id).cloned())
    }

    async fn list_tasks(&self, list: ListTasks) -> Result<Page<Task, u32>> {
        self.with(|state| state.list_tasks(&list))
    }

    async fn task_outputs(&self, run: RunId, names: &[TaskName]) -> Result<BTreeMap<TaskName, Option<Json>>> {
        self.with(|state| state.task_outputs(run, names))
    }
}

// What it opts out of needs no code: the methods answer `Unsupported` by themselves.
impl LogStore for ExampleDatabase {}
impl ScheduleStore for ExampleDatabase {}
impl DeferredJobStore for ExampleDatabase {}
impl Transfer for ExampleDatabase {}

#[async_trait]
impl Maintenance for ExampleDatabase {
    async fn migrate(&self) -> Result<MigrationReport> {
        let report = self.plan_migration().await?;
        self.lock().get_or_insert_default();
        Ok(report)
    }

    async fn plan_migration(&self) -> Result<MigrationReport> {
        if self.lock().is_some() {
            return Ok(MigrationReport::nothing(1));
        }
        let mut report = MigrationReport::new(Found::Nothing, 1);
        report.applied.push("an empty store".to_owned());
        Ok(report)
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned> {
        self.with(|state| Ok(state.prune(prune)))
    }

    async fn stats(&self) -> Result<Stats> {
        self.with(|state| Ok(state.stats()))
    }

    async fn verify(&self) -> Result<Vec<ork_state_api::Violation>> {
        self.with(|_| Ok(()))?;
        ork_state_api::verify::observe(self).await
    }
}
