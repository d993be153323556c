//! The rules of the contract as an executable model: a store that is as simple as possible.
//!
//! It is written from the rustdoc of the traits alone and shares no code with any backend. It
//! stores only what cannot be derived. It computes the rest on each call: what a task waits for,
//! the counts of a run's tasks, what is ready. It has no index, queue or counter, so none can be
//! wrong.
//!
//! A store chooses its ids and tokens itself. So the model gets the answer that a store has given.
//! It checks that the chosen values are new and adopts them. Then it says what the whole answer
//! should have been.

mod call;
mod contention;
mod damage;
mod deferred_jobs;
mod faults;
mod logs;
mod maintenance;
mod runs;
mod schedules;
mod store;
mod tasks;
mod transfer;
mod workflows;

use std::collections::{BTreeMap, BTreeSet};

use ork_state_api::{
    DeferredJob, Error, ErrorKind, JobId, Run, RunId, Snapshot, SnapshotId, Task, TaskDetail, TaskId,
    Timestamp, Workflow, WorkflowId, WorkflowName,
};

use crate::Damage;

pub use call::{Answer, Answers, Call, Calls};
pub(crate) use contention::Contention;
pub use faults::Fault;
pub(crate) use store::LESSER;
pub use store::{MODEL, ModelFixture, ModelStore, Tamper, Turn};

/// The whole state of a store.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    /// Whether there is a schema.
    pub(crate) is_migrated: bool,
    pub(crate) workflows: BTreeMap<WorkflowId, Workflow>,
    pub(crate) snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Their counts are not updated: see [`Model::show_run`].
    pub(crate) runs: BTreeMap<RunId, Run>,
    /// The tasks of started runs, in the order of their DAGs.
    pub(crate) tasks: BTreeMap<RunId, Vec<TaskRow>>,
    /// The position of each task.
    pub(crate) places: BTreeMap<TaskId, (RunId, usize)>,
    /// In order of creation.
    pub(crate) jobs: Vec<JobRow>,
    /// An import that is not finished.
    pub(crate) import: Option<transfer::Import>,
    /// The cap of each log, in bytes.
    pub(crate) max_log_bytes: Option<u64>,
    /// Damage that no store would write itself.
    pub(crate) damaged: Vec<Damage>,
    /// How many rows came before a page. A store that cannot page by key keeps this.
    pub(crate) pages: BTreeMap<WorkflowName, usize>,
    /// What concurrent calls are working on.
    pub(crate) contention: Contention,
    /// Every id that was ever used.
    used: BTreeSet<[u8; 16]>,
}

/// A task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TaskRow {
    /// Its waiting and counting fields are not updated: see [`Model::show_task`].
    pub(crate) detail: TaskDetail,
    /// The indexes of its dependencies.
    pub(crate) dependencies: Vec<usize>,
    /// When it became ready, if nothing else were in the way.
    pub(crate) ready_since: Timestamp,
    /// The greatest token that it was claimed with.
    pub(crate) token: i64,
    pub(crate) log: Vec<u8>,
    /// Whether a store has told its id, which appears only in answers after the start.
    is_told: bool,
}

/// A deferred job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JobRow {
    pub(crate) job: DeferredJob,
    pub(crate) token: i64,
}

/// The result of a call in the model.
pub(crate) type Expected<T> = ork_state_api::Result<T>;

impl Model {
    /// The answer to a call at this time, given the store's own answer. Values that the store chose
    /// are taken from there. Without a store's answer, the model chooses.
    pub fn answer(&mut self, now: Timestamp, call: Call, seen: Option<&Answer>) -> Answer {
        if self.is_newer() {
            return damage::newer(&call);
        }
        if !self.is_migrated && !matches!(call, Call::Migrate {} | Call::PlanMigration {}) {
            return call.fails(Error::new(ErrorKind::SchemaMismatch { found: 0, needed: 1 }));
        }
        self.learn_task_ids(seen);
        /// The store's answer, if it is to this call and not an error.
        macro_rules! seen {
            ($call:ident) => {
                match seen {
                    Some(Answer::$call(Ok(seen))) => Some(seen),
                    _ => None,
                }
            };
        }
        let answer = match call {
            Call::CreateWorkflow { new } => {
                Answer::CreateWorkflow(self.create_workflow(now, &new, seen!(CreateWorkflow)))
            }
            Call::GetWorkflow { id } => Answer::GetWorkflow(self.get_workflow(id)),
            Call::FindWorkflow { name } => Answer::FindWorkflow(self.find_workflow(&name)),
            Call::ListWorkflows { list } => Answer::ListWorkflows(Ok(self.list_workflows(&list))),
            Call::CountWorkflows { filter } => Answer::CountWorkflows(Ok(self.count_workflows(&filter))),
            Call::UpdateWorkflow { update } => {
                Answer::UpdateWorkflow(self.update_workflow(now, update, seen!(UpdateWorkflow)))
            }
            Call::GetSnapshot { id } => Answer::GetSnapshot(self.get_snapshot(id)),
            Call::DeleteWorkflow { id } => Answer::DeleteWorkflow(self.delete_workflow(id)),
            Call::CreateRun { new } => Answer::CreateRun(self.create_run(now, new, seen!(CreateRun))),
            Call::GetRun { id } => Answer::GetRun(self.get_run(id)),
            Call::ListRuns { list } => Answer::ListRuns(Ok(self.list_runs(&list))),
            Call::CountRuns { filter } => Answer::CountRuns(Ok(self.count_runs(&filter))),
            Call::StartRun { start } => Answer::StartRun(self.start_run(now, start)),
            Call::CancelRun { id } => Answer::CancelRun(self.cancel_run(now, id)),
            Call::PauseRun { id } => Answer::PauseRun(self.pause_run(id)),
            Call::ResumeRun { id } => Answer::ResumeRun(self.resume_run(now, id)),
            Call::RetryRun { retry } => Answer::RetryRun(self.retry_run(now, &retry)),
            Call::ReadyTasks { limit } => Answer::ReadyTasks(Ok(self.ready_tasks(now, limit))),
            Call::ClaimTasks { claim } => {
                Answer::ClaimTasks(Ok(self.claim_tasks(now, &claim, seen!(ClaimTasks))))
            }
            Call::Heartbeat { heartbeat } => Answer::Heartbeat(Ok(self.heartbeat(now, &heartbeat))),
            Call::ExpireLeases { limit } => {
                Answer::ExpireLeases(Ok(self.expire_leases(now, limit, seen!(ExpireLeases))))
            }
            Call::ExpireTimeouts { limit } => {
                Answer::ExpireTimeouts(Ok(self.expire_timeouts(now, limit, seen!(ExpireTimeouts))))
            }
            Call::UpdateTasks { updates } => Answer::UpdateTasks(Ok(self.update_tasks(now, &updates))),
            Call::GetTask { id } => Answer::GetTask(self.get_task(id)),
            Call::ListTasks { list } => Answer::ListTasks(self.list_tasks(&list)),
            Call::TaskOutputs { run, names } => Answer::TaskOutputs(self.task_outputs(run, &names)),
            Call::AppendLog { task, chunk } => Answer::AppendLog(self.append_log(task, &chunk)),
            Call::ReadLog { task, range } => Answer::ReadLog(self.read_log(task, range)),
            Call::SetSchedule { workflow, schedule } => {
                Answer::SetSchedule(self.set_schedule(now, workflow, schedule))
            }
            Call::DueSchedules { limit } => Answer::DueSchedules(Ok(self.due_schedules(now, limit))),
            Call::FireSchedule { fire } => {
                Answer::FireSchedule(self.fire_schedule(now, fire, seen!(FireSchedule)))
            }
            Call::DeferTask { defer } => Answer::DeferTask(self.defer_task(now, &defer, seen!(DeferTask))),
            Call::ClaimJobs { claim } => {
                Answer::ClaimJobs(Ok(self.claim_jobs(now, &claim, seen!(ClaimJobs))))
            }
            Call::UpdateJobs { updates } => Answer::UpdateJobs(Ok(self.update_jobs(now, &updates))),
            Call::ListJobs { task } => Answer::ListJobs(self.list_jobs(task)),
            Call::Migrate {} => Answer::Migrate(Ok(self.migrate())),
            Call::PlanMigration {} => Answer::PlanMigration(Ok(self.plan_migration())),
            Call::ImportProgress {} => Answer::ImportProgress(Ok(self.import_progress())),
            Call::Import { page } => Answer::Import(self.import(&page)),
            Call::FinishImport {} => Answer::FinishImport(self.finish_import()),
            Call::AbandonImport {} => {
                self.abandon_import();
                Answer::AbandonImport(Ok(()))
            }
            Call::Prune { prune } => Answer::Prune(Ok(self.prune(now, prune))),
            Call::Stats {} => Answer::Stats(Ok(self.stats(now))),
            Call::Verify {} => Answer::Verify(Ok(self.verify())),
        };
        self.readable(answer)
    }

    /// An id that a store chose, if it is new (G3). Otherwise a different one, so that the error
    /// shows.
    fn fresh<T>(&mut self, seen: Option<T>, generate: fn() -> T, bytes: fn(&T) -> [u8; 16]) -> T {
        let chosen = seen.filter(|id| !self.used.contains(&bytes(id))).unwrap_or_else(generate);
        self.used.insert(bytes(&chosen));
        chosen
    }

    fn fresh_workflow(&mut self, seen: Option<WorkflowId>) -> WorkflowId {
        self.fresh(seen, WorkflowId::generate, |id| *id.as_uuid().as_bytes())
    }

    fn fresh_snapshot(&mut self, seen: Option<SnapshotId>) -> SnapshotId {
        self.fresh(seen, SnapshotId::generate, |id| *id.as_uuid().as_bytes())
    }

    fn fresh_run(&mut self, seen: Option<RunId>) -> RunId {
        self.fresh(seen, RunId::generate, |id| *id.as_uuid().as_bytes())
    }

    fn fresh_job(&mut self, seen: Option<JobId>) -> JobId {
        self.fresh(seen, JobId::generate, |id| *id.as_uuid().as_bytes())
    }

    /// A store creates the ids of tasks when it starts their run. It first tells them later,
    /// together with the task's position in the run.
    fn learn_task_ids(&mut self, seen: Option<&Answer>) {
        let told: Vec<(RunId, u32, TaskId)> = match seen {
            Some(Answer::ListTasks(Ok(page))) => page.items.iter().map(place).collect(),
            Some(Answer::ClaimTasks(Ok(claimed))) => claimed.iter().map(|it| place(&it.task)).collect(),
            Some(Answer::ReadyTasks(Ok(ready))) => {
                ready.iter().map(|it| (it.run, it.index, it.task)).collect()
            }
            _ => return,
        };
        for (run, index, id) in told {
            let row = self.tasks.get_mut(&run).and_then(|rows| rows.get_mut(index as usize));
            let Some(row) = row.filter(|row| !row.is_told) else { continue };
            row.is_told = true;
            if self.used.insert(*id.as_uuid().as_bytes()) {
                self.places.remove(&row.detail.task.id);
                row.detail.task.id = id;
                self.places.insert(id, (run, index as usize));
            }
        }
    }
}

fn place(task: &Task) -> (RunId, u32, TaskId) {
    (task.run, task.index, task.id)
}
