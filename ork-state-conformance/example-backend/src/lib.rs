#![doc = include_str!("../README.md")]

mod state;
mod tasks;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ork_state_api::{
    Backend, Capabilities, Capability, ClaimJobs, ClaimTasks, ClaimedJob, ClaimedTask, Clock, ConnectOptions,
    CreatedRun, Database, DeferTask, DeferredJob, DeferredJobStore, DueSchedule, Error, ErrorKind,
    ExpiredTasks, FireSchedule, FiredSchedule, Found, Heartbeat, HeartbeatOutcome, ImportPage,
    ImportProgress, JobReport, JobUpdates, Json, Limit, ListRuns, ListTasks, ListWorkflows, LogAppended,
    LogChunk, LogRange, LogSlice, LogStore, Maintenance, MigrationReport, NewRun, NewWorkflow, Page, Prune,
    Pruned, ReadyTask, Result, RetryRun, Run, RunFilter, RunId, RunKey, RunStatus, RunStore, Schedule,
    ScheduleStore, Snapshot, SnapshotId, StartRun, Stats, Task, TaskDetail, TaskId, TaskName, TaskStore,
    TaskUpdates, Topic, Transfer, UpdateReport, UpdateWorkflow, Watch, Workflow, WorkflowFilter, WorkflowId,
    WorkflowName, WorkflowStore,
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

    /// Does something with the state. The lock makes it one transaction (G1), and as nothing is awaited while it
    /// is held, a dropped future cannot cut it short (G9).
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

impl Database for ExampleDatabase {
    fn backend(&self) -> &'static Backend {
        &BACKEND
    }
}

#[async_trait]
impl WorkflowStore for ExampleDatabase {
    async fn create_workflow(&self, new: NewWorkflow) -> Result<Workflow> {
        self.with(|state| state.create_workflow(new))
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

/// Opted out of: refused, and nothing changed.
#[async_trait]
impl LogStore for ExampleDatabase {
    async fn append_log(&self, _: TaskId, _: LogChunk<'_>) -> Result<LogAppended> {
        Err(without(Capability::Logs))
    }

    async fn read_log(&self, _: TaskId, _: LogRange) -> Result<LogSlice> {
        Err(without(Capability::Logs))
    }
}

#[async_trait]
impl ScheduleStore for ExampleDatabase {
    async fn set_schedule(&self, _: WorkflowId, _: Option<Schedule>) -> Result<Workflow> {
        Err(without(Capability::Schedules))
    }

    async fn due_schedules(&self, _: Limit) -> Result<Vec<DueSchedule>> {
        Err(without(Capability::Schedules))
    }

    async fn fire_schedule(&self, _: FireSchedule) -> Result<FiredSchedule> {
        Err(without(Capability::Schedules))
    }
}

#[async_trait]
impl DeferredJobStore for ExampleDatabase {
    async fn defer_task(&self, _: DeferTask) -> Result<Vec<DeferredJob>> {
        Err(without(Capability::DeferredJobs))
    }

    async fn claim_jobs(&self, _: ClaimJobs) -> Result<Vec<ClaimedJob>> {
        Err(without(Capability::DeferredJobs))
    }

    async fn update_jobs(&self, _: JobUpdates) -> Result<JobReport> {
        Err(without(Capability::DeferredJobs))
    }

    async fn list_jobs(&self, _: TaskId) -> Result<Vec<DeferredJob>> {
        Err(without(Capability::DeferredJobs))
    }
}

#[async_trait]
impl Transfer for ExampleDatabase {
    async fn import_progress(&self) -> Result<Option<ImportProgress>> {
        Err(without(Capability::Transfer))
    }

    async fn import(&self, _: ImportPage) -> Result<()> {
        Err(without(Capability::Transfer))
    }

    async fn finish_import(&self) -> Result<()> {
        Err(without(Capability::Transfer))
    }

    async fn abandon_import(&self) -> Result<()> {
        Err(without(Capability::Transfer))
    }
}

fn without(capability: Capability) -> Error {
    Error::new(ErrorKind::Unsupported { backend: BACKEND.name, capability })
}

#[async_trait]
impl Maintenance for ExampleDatabase {
    async fn migrate(&self) -> Result<MigrationReport> {
        let report = self.plan_migration().await?;
        self.lock().get_or_insert_default();
        Ok(report)
    }

    async fn plan_migration(&self) -> Result<MigrationReport> {
        let (found, applied) = match &*self.lock() {
            Some(_) => (Found::OrkState(1), vec![]),
            None => (Found::Nothing, vec!["an empty store".to_owned()]),
        };
        Ok(MigrationReport { found, to: 1, applied, adjusted: vec![] })
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned> {
        self.with(|state| Ok(state.prune(prune)))
    }

    async fn stats(&self) -> Result<Stats> {
        self.with(|state| Ok(state.stats()))
    }

    async fn watch(&self, _: Topic) -> Result<Watch> {
        Err(without(Capability::Notifications))
    }

    async fn verify(&self) -> Result<Vec<ork_state_api::Violation>> {
        self.with(|_| Ok(()))?;
        ork_state_api::verify::observe(self).await
    }
}
