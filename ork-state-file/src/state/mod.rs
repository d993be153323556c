//! The contents of the store in memory, with the indexes that make every operation cheap. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{
    DeferredJob, Entity, Error, JobId, JobStatus, Json, Label, ReadyTask, Result, Run, RunId, RunKey,
    RunStatus, Schedule, Snapshot, SnapshotId, Task, TaskId, TaskName, TaskStatus, Timestamp, Token,
    Workflow, WorkflowId, WorkflowName,
};

use crate::change::{Change, NewJob, NewTask, TaskPatch};

mod import;

pub(crate) use self::import::Import;

/// The contents of the store.
///
/// The maps that grow are trees. A full hash table is moved as a whole, and all calls would wait
/// for that.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) workflows: BTreeMap<WorkflowId, Workflow>,
    pub(crate) workflow_names: BTreeMap<WorkflowName, WorkflowId>,
    pub(crate) snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Snapshots by workflow and content hash.
    pub(crate) snapshot_hashes: BTreeMap<(WorkflowId, String), SnapshotId>,
    pub(crate) runs: BTreeMap<RunId, Arc<RunRow>>,
    /// All runs, newest first.
    pub(crate) run_keys: BTreeSet<RunKey>,
    /// Runs by workflow. Every workflow has an entry.
    pub(crate) workflow_runs: BTreeMap<WorkflowId, BTreeSet<RunKey>>,
    pub(crate) idempotency_keys: BTreeMap<(WorkflowId, Label), RunId>,
    /// The position of each task.
    places: BTreeMap<TaskId, (RunId, u32)>,
    /// The pending tasks of running runs that wait for no other task, in the order of claims.
    pub(crate) ready: BTreeSet<ReadyTask>,
    /// The leases of claimed tasks, in order of expiry.
    pub(crate) leases: BTreeSet<(Timestamp, TaskId)>,
    /// The running tasks with a deadline, in order of deadlines.
    pub(crate) deadlines: BTreeSet<(Timestamp, TaskId)>,
    /// The active schedules with a next slot, in order of slots.
    pub(crate) slots: BTreeSet<(Timestamp, WorkflowId)>,
    pub(crate) jobs: BTreeMap<JobId, Arc<JobRow>>,
    /// The open jobs, in order of the next poll.
    pub(crate) polls: BTreeSet<(Timestamp, JobId)>,
    /// The runs that have ended, the longest ended first.
    pub(crate) ended: BTreeSet<(Timestamp, RunId)>,
    pub(crate) counts: Counts,
    /// An import that is not finished.
    pub(crate) import: Option<Import>,
    /// What has happened since the last look.
    pub(crate) news: News,
}

/// How many there are of each status.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) runs: BTreeMap<RunStatus, u64>,
    pub(crate) tasks: BTreeMap<TaskStatus, u64>,
    pub(crate) jobs: BTreeMap<JobStatus, u64>,
}

fn one_more<K: Ord>(counts: &mut BTreeMap<K, u64>, status: K) {
    *counts.entry(status).or_default() += 1;
}

fn one_less<K: Ord>(counts: &mut BTreeMap<K, u64>, status: &K) {
    if let Some(count) = counts.get_mut(status) {
        *count = count.saturating_sub(1);
    }
}

/// What watchers are notified of.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) ready: bool,
    pub(crate) ended: bool,
}

/// A deferred job, with the fields that the API does not show.
#[derive(Debug, Clone)]
pub(crate) struct JobRow {
    pub(crate) job: DeferredJob,
    /// The token of its last claim.
    pub(crate) token: Token,
}

/// A run with the tasks that it owns.
#[derive(Debug, Clone)]
pub(crate) struct RunRow {
    pub(crate) run: Run,
    /// By index.
    pub(crate) tasks: Vec<Arc<TaskRow>>,
    pub(crate) task_names: Arc<HashMap<TaskName, u32>>,
}

impl RunRow {
    /// The tasks, by index.
    pub(crate) fn task_ids(&self) -> Vec<TaskId> {
        self.tasks.iter().map(|row| row.task.id).collect()
    }
}

/// A task, with the fields that the API does not show.
#[derive(Debug, Clone)]
pub(crate) struct TaskRow {
    pub(crate) task: Task,
    pub(crate) params: Option<Json>,
    pub(crate) output: Option<Json>,
    /// The token of its last claim.
    pub(crate) token: Token,
    /// The indexes of the tasks that wait for it.
    pub(crate) dependents: Vec<u32>,
    pub(crate) log_length: u64,
    /// In order of creation.
    pub(crate) jobs: Vec<JobId>,
}

/// A task's entries in the indexes.
#[derive(PartialEq, Eq)]
struct Places {
    ready: Option<ReadyTask>,
    lease: Option<Timestamp>,
    deadline: Option<Timestamp>,
    status: TaskStatus,
}

impl Places {
    fn of(task: &Task) -> Self {
        let ready = |ready_at| ReadyTask::new(ready_at, task.run, task.index, task.id);
        Self {
            ready: task.ready_at.map(ready),
            lease: task.lease.as_ref().map(|lease| lease.expires_at),
            deadline: deadline(task),
            status: task.status,
        }
    }
}

/// When a task's attempt is overdue (T8).
fn deadline(task: &Task) -> Option<Timestamp> {
    let allowed = Duration::from_secs(task.timeout_seconds?.into());
    let started_at = task.started_at.filter(|_| task.status == TaskStatus::Running)?;
    Some(started_at.saturating_add(allowed))
}

/// The next slot of a workflow's schedule.
fn slot(workflow: &Workflow) -> Option<Timestamp> {
    workflow.schedule.as_ref().filter(|schedule| schedule.enabled)?.next_at
}

impl State {
    pub(crate) fn workflow(&self, id: WorkflowId) -> Result<&Workflow> {
        self.workflows.get(&id).ok_or_else(|| Error::not_found(Entity::Workflow, id))
    }

    pub(crate) fn run(&self, id: RunId) -> Result<&RunRow> {
        self.runs.get(&id).map(Arc::as_ref).ok_or_else(|| Error::not_found(Entity::Run, id))
    }

    pub(crate) fn task(&self, id: TaskId) -> Result<&TaskRow> {
        self.find_task(id).ok_or_else(|| Error::not_found(Entity::Task, id))
    }

    pub(crate) fn find_task(&self, id: TaskId) -> Option<&TaskRow> {
        let (run, index) = self.places.get(&id)?;
        self.task_at(*run, *index)
    }

    /// The task at an index of a run.
    pub(crate) fn task_at(&self, run: RunId, index: u32) -> Option<&TaskRow> {
        self.runs.get(&run)?.tasks.get(index as usize).map(Arc::as_ref)
    }

    /// All tasks, run by run.
    pub(crate) fn all_tasks(&self) -> impl Iterator<Item = &TaskRow> {
        self.runs.values().flat_map(|row| &row.tasks).map(Arc::as_ref)
    }

    /// A task to change. It is copied if an image shares it.
    fn task_mut(&mut self, id: TaskId) -> Option<&mut TaskRow> {
        let (run, index) = self.places.get(&id)?;
        Arc::make_mut(self.runs.get_mut(run)?).tasks.get_mut(*index as usize).map(Arc::make_mut)
    }

    pub(crate) fn job(&self, id: JobId) -> Option<&JobRow> {
        self.jobs.get(&id).map(Arc::as_ref)
    }

    /// Whether the run's tasks can be claimed.
    pub(crate) fn is_running(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|row| row.run.status == RunStatus::Running)
    }

    /// Applies a recorded change. Says what is wrong if it does not fit the state. In that case the
    /// journal has been tampered with.
    pub(crate) fn apply(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::Workflow(workflow) => self.put_workflow(workflow),
            Change::Schedule { workflow, schedule } => {
                self.put_schedule(workflow, schedule).ok_or_else(|| format!("no workflow {workflow}"))?;
            }
            Change::Snapshot { id, workflow, created_at, dag } => {
                let content_hash = dag.content_hash();
                self.put_snapshot(Snapshot::from_stored(id, workflow, content_hash, dag, created_at));
            }
            Change::Run(run) => self.put_run(run),
            Change::Tasks { run, tasks } => self.put_tasks(run, tasks)?,
            Change::Task(patch) => {
                let id = patch.id;
                self.edit_task(id, |row| patch.write_to(&mut row.task, &mut row.token))
                    .ok_or_else(|| format!("no task {id}"))?;
            }
            Change::Output { task, output } => {
                self.task_mut(task).ok_or_else(|| format!("no task {task}"))?.output = output;
            }
            Change::Jobs(jobs) => self.put_jobs(jobs)?,
            Change::Job(patch) => {
                let id = patch.id;
                self.edit_job(id, |row| patch.write_to(&mut row.job, &mut row.token))
                    .ok_or_else(|| format!("no deferred job {id}"))?;
            }
            Change::LogLength { task, length } => {
                self.task_mut(task).ok_or_else(|| format!("no task {task}"))?.log_length = length;
            }
            Change::DeleteWorkflow(id) => {
                self.remove_workflow(id);
            }
            Change::DeleteRuns(runs) => {
                for run in runs {
                    self.remove_run(run);
                }
            }
            Change::Imported { progress, records, logs } => {
                let import = self.import.get_or_insert_default();
                import.progress = progress;
                import.records.extend(records.into_iter().map(Arc::from));
                import.logs.extend(logs);
            }
            Change::ImportFinished => {
                let import = self.import.as_ref().ok_or("no import")?;
                self.replace(import.finished().map_err(|error| format!("{error:?}"))?);
            }
            Change::ImportAbandoned => self.import = None,
        }
        Ok(())
    }

    /// Replaces the contents.
    pub(crate) fn replace(&mut self, other: Self) {
        *self = Self { news: News { ready: true, ended: true }, ..other };
    }

    pub(crate) fn put_workflow(&mut self, workflow: Workflow) {
        self.workflow_names.insert(workflow.name.clone(), workflow.id);
        self.workflow_runs.entry(workflow.id).or_default();
        let (id, next) = (workflow.id, slot(&workflow));
        if let Some(before) = self.workflows.insert(id, workflow)
            && let Some(slot) = slot(&before)
        {
            self.slots.remove(&(slot, id));
        }
        self.slots.extend(next.map(|slot| (slot, id)));
    }

    pub(crate) fn put_schedule(&mut self, id: WorkflowId, schedule: Option<Schedule>) -> Option<()> {
        let workflow = self.workflows.get_mut(&id)?;
        if let Some(slot) = slot(workflow) {
            self.slots.remove(&(slot, id));
        }
        workflow.schedule = schedule;
        self.slots.extend(slot(workflow).map(|slot| (slot, id)));
        Some(())
    }

    fn put_jobs(&mut self, jobs: Vec<NewJob>) -> Result<(), String> {
        for NewJob { job, token } in jobs {
            let task = self.task_mut(job.task).ok_or_else(|| format!("no task {}", job.task))?;
            task.jobs.push(job.id);
            one_more(&mut self.counts.jobs, job.status);
            self.polls.extend(job.poll_at.map(|poll_at| (poll_at, job.id)));
            self.jobs.insert(job.id, Arc::new(JobRow { job, token }));
        }
        Ok(())
    }

    /// Changes a deferred job and updates the indexes.
    pub(crate) fn edit_job(&mut self, id: JobId, edit: impl FnOnce(&mut JobRow)) -> Option<&JobRow> {
        let row = Arc::make_mut(self.jobs.get_mut(&id)?);
        if let Some(poll_at) = row.job.poll_at {
            self.polls.remove(&(poll_at, id));
        }
        one_less(&mut self.counts.jobs, &row.job.status);
        edit(row);
        one_more(&mut self.counts.jobs, row.job.status);
        self.polls.extend(row.job.poll_at.map(|poll_at| (poll_at, id)));
        Some(row)
    }

    pub(crate) fn put_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshot_hashes.insert((snapshot.workflow, snapshot.content_hash.clone()), snapshot.id);
        self.snapshots.insert(snapshot.id, snapshot);
    }

    pub(crate) fn put_run(&mut self, run: Run) {
        if self.runs.contains_key(&run.id) {
            self.edit_run(run.id, |there| *there = run);
            return;
        }
        one_more(&mut self.counts.runs, run.status);
        self.ended.extend(run.finished_at.map(|finished_at| (finished_at, run.id)));
        let key = RunKey::of(&run);
        self.run_keys.insert(key);
        self.workflow_runs.entry(run.workflow).or_default().insert(key);
        if let Some(idempotency_key) = &run.idempotency_key {
            self.idempotency_keys.insert((run.workflow, idempotency_key.clone()), run.id);
        }
        self.runs.insert(run.id, Arc::new(RunRow { run, tasks: Vec::new(), task_names: Arc::default() }));
    }

    /// Changes a run and updates the indexes. Its id and its creation time do not change.
    pub(crate) fn edit_run(&mut self, id: RunId, edit: impl FnOnce(&mut Run)) -> Option<&Run> {
        let run = &mut Arc::make_mut(self.runs.get_mut(&id)?).run;
        let (status, finished_at) = (run.status, run.finished_at);
        edit(run);
        if run.status != status {
            one_less(&mut self.counts.runs, &status);
            one_more(&mut self.counts.runs, run.status);
            self.news.ended |= run.status.is_terminal();
        }
        if run.finished_at != finished_at {
            finished_at.map(|finished_at| self.ended.remove(&(finished_at, id)));
            self.ended.extend(run.finished_at.map(|finished_at| (finished_at, id)));
        }
        Some(run)
    }

    /// Adds the tasks of a run, which come in the order of their indexes.
    pub(crate) fn put_tasks(&mut self, run: RunId, tasks: Vec<NewTask>) -> Result<(), String> {
        let mut names = HashMap::with_capacity(tasks.len());
        for (index, new) in (0_u32..).zip(&tasks) {
            if new.task.index != index || new.task.run != run {
                return Err(format!("task {} is out of place", new.task.id));
            }
            names.insert(new.task.name.clone(), index);
        }
        let mut dependents = vec![Vec::new(); tasks.len()];
        for new in &tasks {
            for name in &new.task.depends_on {
                let index = names
                    .get(name)
                    .ok_or_else(|| format!("task {} depends on no task {name:?}", new.task.id))?;
                dependents[*index as usize].push(new.task.index);
            }
        }
        if !self.runs.contains_key(&run) {
            return Err(format!("no run {run}"));
        }
        let mut rows = Vec::with_capacity(tasks.len());
        for (NewTask { task, params }, dependents) in tasks.into_iter().zip(dependents) {
            let (id, index) = (task.id, task.index);
            let row = TaskRow {
                task,
                params,
                output: None,
                token: Token::from_stored(0),
                dependents,
                log_length: 0,
                jobs: Vec::new(),
            };
            self.place(None, &Places::of(&row.task), id);
            self.places.insert(id, (run, index));
            rows.push(Arc::new(row));
        }
        if let Some(row) = self.runs.get_mut(&run).map(Arc::make_mut) {
            (row.tasks, row.task_names) = (rows, Arc::new(names));
        }
        Ok(())
    }

    /// Changes a task and updates the indexes.
    pub(crate) fn edit_task(&mut self, id: TaskId, edit: impl FnOnce(&mut TaskRow)) -> Option<&TaskRow> {
        let row = self.task_mut(id)?;
        let before = Places::of(&row.task);
        edit(row);
        let after = Places::of(&row.task);
        if before != after {
            self.place(Some(before), &after, id);
        }
        self.find_task(id)
    }

    /// Moves a task in the indexes.
    fn place(&mut self, before: Option<Places>, after: &Places, id: TaskId) {
        self.news.ready |=
            after.ready.is_some() && before.as_ref().is_none_or(|before| before.ready.is_none());
        if let Some(before) = before {
            self.unplace(&before, id);
        }
        one_more(&mut self.counts.tasks, after.status);
        self.ready.extend(after.ready);
        self.leases.extend(after.lease.map(|expires_at| (expires_at, id)));
        self.deadlines.extend(after.deadline.map(|deadline| (deadline, id)));
    }

    fn unplace(&mut self, before: &Places, id: TaskId) {
        one_less(&mut self.counts.tasks, &before.status);
        before.ready.map(|ready| self.ready.remove(&ready));
        before.lease.map(|expires_at| self.leases.remove(&(expires_at, id)));
        before.deadline.map(|deadline| self.deadlines.remove(&(deadline, id)));
    }

    /// Removes a workflow with everything that belongs to it. Returns the tasks that had a log.
    pub(crate) fn remove_workflow(&mut self, id: WorkflowId) -> Vec<TaskId> {
        let mut logged = Vec::new();
        for key in self.workflow_runs.remove(&id).unwrap_or_default() {
            logged.extend(self.remove_run(key.id).1);
        }
        if let Some(workflow) = self.workflows.remove(&id) {
            self.workflow_names.remove(&workflow.name);
            slot(&workflow).map(|slot| self.slots.remove(&(slot, id)));
        }
        let snapshots =
            self.snapshot_hashes.range((id, String::new())..).take_while(|((of, _), _)| *of == id);
        for ((of, hash), snapshot) in snapshots.map(|(key, id)| (key.clone(), *id)).collect::<Vec<_>>() {
            self.snapshot_hashes.remove(&(of, hash));
            self.snapshots.remove(&snapshot);
        }
        logged
    }

    /// Removes a run with everything that belongs to it. Returns how many tasks it had, and which
    /// of them had a log.
    pub(crate) fn remove_run(&mut self, id: RunId) -> (usize, Vec<TaskId>) {
        let Some(row) = self.runs.remove(&id) else { return (0, Vec::new()) };
        let RunRow { run, tasks, .. } = row.as_ref();
        let key = RunKey::of(run);
        self.run_keys.remove(&key);
        if let Some(keys) = self.workflow_runs.get_mut(&run.workflow) {
            keys.remove(&key);
        }
        one_less(&mut self.counts.runs, &run.status);
        run.finished_at.map(|finished_at| self.ended.remove(&(finished_at, id)));
        if let Some(idempotency_key) = &run.idempotency_key {
            self.idempotency_keys.remove(&(run.workflow, idempotency_key.clone()));
        }
        let mut logged = Vec::new();
        for row in tasks {
            let id = row.task.id;
            self.places.remove(&id);
            self.unplace(&Places::of(&row.task), id);
            for job in &row.jobs {
                let Some(row) = self.jobs.remove(job) else { continue };
                one_less(&mut self.counts.jobs, &row.job.status);
                row.job.poll_at.map(|poll_at| self.polls.remove(&(poll_at, *job)));
            }
            logged.extend((row.log_length > 0).then_some(id));
        }
        (tasks.len(), logged)
    }

    /// A copy of the current contents that stays as it is while the state changes. It costs a
    /// little for each run. Anything that changes from now on is copied first.
    pub(crate) fn image(&self) -> Image {
        Image {
            workflows: self.workflows.values().cloned().collect(),
            snapshots: self.snapshots.values().cloned().collect(),
            runs: self.runs.values().cloned().collect(),
            jobs: self.jobs.clone(),
            import: self.import.clone(),
        }
    }

    /// Finds wrong indexes: they are built anew and compared.
    pub(crate) fn disagreements(&self) -> Vec<String> {
        let mut anew = Self::default();
        for workflow in self.workflows.values() {
            anew.slots.extend(slot(workflow).map(|slot| (slot, workflow.id)));
        }
        for run in self.runs.values().map(|row| &row.run) {
            one_more(&mut anew.counts.runs, run.status);
            anew.ended.extend(run.finished_at.map(|finished_at| (finished_at, run.id)));
        }
        for row in self.all_tasks() {
            let task = &row.task;
            let mut places = Places::of(task);
            let may_be_ready = task.status == TaskStatus::Pending && task.unmet_dependencies == 0;
            places.ready.take_if(|_| !may_be_ready || !self.is_running(task.run));
            anew.place(None, &places, task.id);
        }
        for (id, row) in &self.jobs {
            let job = &row.job;
            one_more(&mut anew.counts.jobs, job.status);
            anew.polls.extend(job.poll_at.map(|poll_at| (poll_at, *id)));
        }
        let mut found = Vec::new();
        let mut compare = |what: &str, is_equal: bool| {
            if !is_equal {
                found.push(format!("the index of {what} is not what the rows say"));
            }
        };
        compare("ready tasks", self.ready == anew.ready);
        compare("leases", self.leases == anew.leases);
        compare("deadlines", self.deadlines == anew.deadlines);
        compare("slots", self.slots == anew.slots);
        compare("polls", self.polls == anew.polls);
        compare("ended runs", self.ended == anew.ended);
        compare("statuses", self.counts.without_zeros() == anew.counts.without_zeros());
        found
    }
}

/// The contents of a state at one moment.
#[derive(Debug)]
pub(crate) struct Image {
    workflows: Vec<Workflow>,
    snapshots: Vec<Snapshot>,
    runs: Vec<Arc<RunRow>>,
    jobs: BTreeMap<JobId, Arc<JobRow>>,
    import: Option<Import>,
}

impl Image {
    /// All contents as changes that build them anew, owners before what they own.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Vec<Change>> {
        let snapshots = self.snapshots.iter().map(|snapshot| {
            vec![Change::Snapshot {
                id: snapshot.id,
                workflow: snapshot.workflow,
                created_at: snapshot.created_at,
                dag: snapshot.dag.clone(),
            }]
        });
        let workflows = self.workflows.iter().map(|workflow| vec![Change::Workflow(workflow.clone())]);
        let runs = self.runs.iter().map(|row| {
            let mut changes = vec![Change::Run(row.run.clone())];
            if !row.tasks.is_empty() {
                let new = |row: &Arc<TaskRow>| NewTask { task: row.task.clone(), params: row.params.clone() };
                changes.push(Change::Tasks { run: row.run.id, tasks: row.tasks.iter().map(new).collect() });
            }
            for row in &row.tasks {
                // What a new task does not have: the token of an earlier claim, an output, a log.
                if row.token.get() != 0 {
                    changes.push(Change::Task(TaskPatch::of(&row.task, row.token)));
                }
                if row.output.is_some() {
                    changes.push(Change::Output { task: row.task.id, output: row.output.clone() });
                }
                if row.log_length > 0 {
                    changes.push(Change::LogLength { task: row.task.id, length: row.log_length });
                }
                let jobs = row.jobs.iter().filter_map(|id| self.jobs.get(id));
                let jobs: Vec<NewJob> =
                    jobs.map(|row| NewJob { job: row.job.clone(), token: row.token }).collect();
                if !jobs.is_empty() {
                    changes.push(Change::Jobs(jobs));
                }
            }
            changes
        });
        let import = self.import.as_ref().map(|import| {
            let Import { progress, records, logs } = import;
            vec![Change::Imported {
                progress: progress.clone(),
                records: records.iter().map(ToString::to_string).collect(),
                logs: logs.clone(),
            }]
        });
        workflows.chain(snapshots).chain(runs).chain(import)
    }
}

impl Counts {
    fn without_zeros(&self) -> Self {
        fn kept<K: Ord + Copy>(counts: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
            counts.iter().filter(|(_, count)| **count > 0).map(|(status, count)| (*status, *count)).collect()
        }
        Self { runs: kept(&self.runs), tasks: kept(&self.tasks), jobs: kept(&self.jobs) }
    }
}
