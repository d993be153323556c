//! Workflows and runs.

use std::collections::BTreeMap;
use std::ops::Bound;

use ork_state_api::backend::{RetryPlan, has_live_run};
use ork_state_api::{
    CreatedRun, Entity, Error, Limit, ListRuns, ListWorkflows, NewRun, NewWorkflow, Page, Prune, Pruned,
    Result, RetryRun, Run, RunFilter, RunId, RunKey, RunStatus, Snapshot, SnapshotId, StartRun, Stats, Task,
    TaskCounts, TaskDetail, TaskId, TaskStatus, Timestamp, Token, UpdateWorkflow, Workflow, WorkflowFilter,
    WorkflowId, WorkflowName,
};

/// Everything that is stored.
#[derive(Debug)]
pub(crate) struct State {
    /// The time of the call that is under way.
    pub(crate) now: Timestamp,
    workflows: BTreeMap<WorkflowId, Workflow>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) tasks: BTreeMap<TaskId, TaskDetail>,
    /// A run's tasks by their indexes.
    pub(crate) task_ids: BTreeMap<RunId, Vec<TaskId>>,
    /// The last token that a task was claimed with.
    pub(crate) tokens: BTreeMap<TaskId, Token>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            now: Timestamp::MIN,
            workflows: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            runs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            task_ids: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }
}

impl State {
    pub(crate) fn create_workflow(&mut self, new: &NewWorkflow) -> Result<Workflow> {
        if self.find_workflow(&new.name).is_ok() {
            return Err(Error::already_exists(Entity::Workflow, &new.name));
        }
        let (workflow, snapshot) = Workflow::with_snapshot(new, self.now);
        self.snapshots.insert(snapshot.id, snapshot);
        self.workflows.insert(workflow.id, workflow.clone());
        Ok(workflow)
    }

    pub(crate) fn workflow(&self, id: WorkflowId) -> Result<&Workflow> {
        self.workflows.get(&id).ok_or_else(|| Error::not_found(Entity::Workflow, id))
    }

    pub(crate) fn find_workflow(&self, name: &WorkflowName) -> Result<&Workflow> {
        let found = self.workflows.values().find(|workflow| workflow.name == *name);
        found.ok_or_else(|| Error::not_found(Entity::Workflow, name))
    }

    pub(crate) fn list_workflows(&self, list: &ListWorkflows) -> Page<Workflow, WorkflowName> {
        let after = |row: &&Workflow| list.page.after.as_ref().is_none_or(|key| row.name > *key);
        let wanted = self.workflows.values().filter(|row| list.filter.matches(&row.name));
        let mut rows: Vec<Workflow> = wanted.filter(after).cloned().collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Page::from_rows(rows, list.page.limit, |row| row.name.clone())
    }

    pub(crate) fn count_workflows(&self, filter: &WorkflowFilter) -> u64 {
        self.workflows.values().filter(|row| filter.matches(&row.name)).count() as u64
    }

    pub(crate) fn update_workflow(&mut self, update: UpdateWorkflow) -> Result<Workflow> {
        let mut workflow = self.workflow(update.id)?.clone();
        if let Some(dag) = update.dag {
            let content_hash = dag.content_hash();
            let mut own = self.snapshots.values().filter(|snapshot| snapshot.workflow == workflow.id);
            workflow.snapshot = match own.find(|snapshot| snapshot.content_hash == content_hash) {
                Some(there) => there.id,
                None => {
                    let (id, created_at) = (SnapshotId::generate(), self.now);
                    let new = Snapshot::from_stored(id, workflow.id, content_hash, dag, created_at);
                    self.snapshots.insert(id, new);
                    id
                }
            };
        }
        workflow.description = update.description.unwrap_or(workflow.description);
        workflow.target = update.target.unwrap_or(workflow.target);
        workflow.updated_at = self.now;
        self.workflows.insert(workflow.id, workflow.clone());
        Ok(workflow)
    }

    pub(crate) fn snapshot(&self, id: SnapshotId) -> Result<&Snapshot> {
        self.snapshots.get(&id).ok_or_else(|| Error::not_found(Entity::Snapshot, id))
    }

    pub(crate) fn delete_workflow(&mut self, id: WorkflowId) -> Result<()> {
        self.workflow(id)?;
        let runs = self.runs.values().filter(|run| run.workflow == id);
        if let Some(run) = runs.clone().find(|run| !run.status.is_terminal()) {
            return Err(has_live_run(id, run.id, run.status));
        }
        for run in runs.map(|run| run.id).collect::<Vec<_>>() {
            self.remove_run(run);
        }
        self.snapshots.retain(|_, snapshot| snapshot.workflow != id);
        self.workflows.remove(&id);
        Ok(())
    }

    /// Removes a run with its tasks; says how many those were.
    fn remove_run(&mut self, id: RunId) -> u64 {
        self.runs.remove(&id);
        let tasks = self.task_ids.remove(&id).unwrap_or_default();
        for task in &tasks {
            self.tasks.remove(task);
            self.tokens.remove(task);
        }
        tasks.len() as u64
    }

    /// Deletes the runs that ended long ago, the longest ended first.
    pub(crate) fn prune(&mut self, prune: Prune) -> Pruned {
        let before = self.now.saturating_sub(prune.older_than);
        let mut ended: Vec<(Timestamp, RunId)> = self
            .runs
            .values()
            .filter_map(|run| Some((run.finished_at?, run.id)))
            .filter(|(finished_at, _)| *finished_at < before)
            .collect();
        ended.sort_unstable();
        ended.truncate(prune.limit.get());
        let tasks = ended.iter().map(|(_, run)| self.remove_run(*run)).sum();
        Pruned::new(ended.len() as u64, tasks)
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats::none();
        stats.workflows = self.workflows.len() as u64;
        for run in self.runs.values() {
            *stats.runs.entry(run.status).or_default() += 1;
        }
        for detail in self.tasks.values() {
            *stats.tasks.entry(detail.task.status).or_default() += 1;
        }
        stats.oldest_ready_at = self.ready_tasks(Limit::ONE).first().map(|ready| ready.ready_at);
        stats
    }

    pub(crate) fn create_run(&mut self, new: NewRun) -> Result<CreatedRun> {
        let snapshot = self.workflow(new.workflow)?.snapshot;
        let mut runs = self.runs.values().filter(|run| run.workflow == new.workflow);
        if let Some(run) =
            runs.find(|run| run.idempotency_key.is_some() && run.idempotency_key == new.idempotency_key)
        {
            return Ok(CreatedRun::Existing(run.clone()));
        }
        let run = Run::new(new, snapshot, self.now);
        self.runs.insert(run.id, run.clone());
        Ok(CreatedRun::New(run))
    }

    pub(crate) fn run(&self, id: RunId) -> Result<&Run> {
        self.runs.get(&id).ok_or_else(|| Error::not_found(Entity::Run, id))
    }

    pub(crate) fn run_mut(&mut self, id: RunId) -> Result<&mut Run> {
        self.runs.get_mut(&id).ok_or_else(|| Error::not_found(Entity::Run, id))
    }

    pub(crate) fn list_runs(&self, list: &ListRuns) -> Page<Run, RunKey> {
        let after = list.page.after.map_or(Bound::Unbounded, Bound::Excluded);
        let wanted = self.runs.values().filter(|run| list.filter.matches(run));
        let by_key: BTreeMap<RunKey, &Run> = wanted.map(|run| (RunKey::of(run), run)).collect();
        let rows = by_key.range((after, Bound::Unbounded)).map(|(_, run)| (*run).clone()).collect();
        Page::from_rows(rows, list.page.limit, RunKey::of)
    }

    pub(crate) fn count_runs(&self, filter: &RunFilter) -> u64 {
        self.runs.values().filter(|run| filter.matches(run)).count() as u64
    }

    pub(crate) fn retry_run(&mut self, retry: &RetryRun) -> Result<Run> {
        let run = self.run(retry.run)?.clone();
        let ids = self.task_ids.get(&run.id).cloned().unwrap_or_default();
        let tasks = ids.iter().map(|id| Ok(self.task(*id)?.task.clone())).collect::<Result<Vec<_>>>()?;
        let plan = RetryPlan::new(retry, &run, &tasks)?;
        let now = self.now;
        for &(index, unmet) in &plan.again {
            if let Some(detail) = self.tasks.get_mut(&ids[index as usize]) {
                detail.task.do_again(unmet, now);
                detail.output = None;
            }
        }
        let run = self.run_mut(run.id)?;
        plan.apply_to(run);
        Ok(run.clone())
    }

    pub(crate) fn start_run(&mut self, start: StartRun) -> Result<Run> {
        let run = self.run(start.run)?.clone();
        match run.status {
            RunStatus::Pending => {}
            RunStatus::Cancelled => {
                return Err(Error::invalid_transition(Entity::Run, run.id, run.status, RunStatus::Running));
            }
            _ => return Ok(run),
        }
        let dag = match start.dag {
            Some(dag) => dag,
            None => self.snapshot(run.snapshot)?.dag.clone(),
        };
        let tasks: Vec<TaskDetail> = Task::of_run(run.id, &dag, self.now)
            .zip(dag.tasks())
            .map(|(task, spec)| TaskDetail::new(task, spec.params.clone(), None))
            .collect();
        self.task_ids.insert(run.id, tasks.iter().map(|detail| detail.task.id).collect());
        self.tasks.extend(tasks.into_iter().map(|detail| (detail.task.id, detail)));
        let (now, total) = (self.now, u32::try_from(dag.len()).unwrap_or(u32::MAX));
        let run = self.run_mut(run.id)?;
        run.status = RunStatus::Running;
        run.started_at = Some(now);
        run.tasks = TaskCounts::new(total);
        let id = run.id;
        self.end_if_done(id);
        self.run(id).cloned()
    }

    pub(crate) fn cancel_run(&mut self, id: RunId) -> Result<Run> {
        let run = self.run(id)?;
        match run.status {
            RunStatus::Cancelled => return Ok(run.clone()),
            RunStatus::Success | RunStatus::Failed => {
                return Err(Error::invalid_transition(Entity::Run, id, run.status, RunStatus::Cancelled));
            }
            RunStatus::Pending | RunStatus::Running | RunStatus::Paused => {}
        }
        let now = self.now;
        for task in self.tasks_mut(id).filter(|task| !task.status.is_terminal()) {
            task.status = TaskStatus::Cancelled;
            task.finished_at = Some(now);
            (task.lease, task.ready_at, task.retry_at) = (None, None, None);
        }
        let run = self.run_mut(id)?;
        run.status = RunStatus::Cancelled;
        run.finished_at = Some(now);
        run.tasks.cancelled += std::mem::take(&mut run.tasks.unfinished);
        Ok(run.clone())
    }

    /// Pauses or resumes.
    pub(crate) fn toggle_run(&mut self, id: RunId, from: RunStatus, to: RunStatus) -> Result<Run> {
        let (now, run) = (self.now, self.run_mut(id)?);
        if run.status == to {
            return Ok(run.clone());
        }
        if run.status != from {
            return Err(Error::invalid_transition(Entity::Run, id, run.status, to));
        }
        run.status = to;
        let queued = to == RunStatus::Running;
        for task in self
            .tasks_mut(id)
            .filter(|task| task.status == TaskStatus::Pending && task.unmet_dependencies == 0)
        {
            task.ready_at = queued.then(|| task.retry_at.map_or(now, |retry_at| retry_at.max(now)));
        }
        self.run(id).cloned()
    }

    /// A run's tasks in the order of its DAG.
    pub(crate) fn tasks_mut(&mut self, run: RunId) -> impl Iterator<Item = &mut Task> {
        self.tasks.values_mut().map(|detail| &mut detail.task).filter(move |task| task.run == run)
    }

    /// Ends a live run that has no unfinished task (R3), and says so.
    pub(crate) fn end_if_done(&mut self, id: RunId) -> Option<RunStatus> {
        let (now, run) = (self.now, self.runs.get_mut(&id)?);
        if run.status.is_terminal() || run.tasks.unfinished > 0 {
            return None;
        }
        run.status =
            if run.tasks.failed + run.tasks.cancelled > 0 { RunStatus::Failed } else { RunStatus::Success };
        run.finished_at = Some(now);
        Some(run.status)
    }
}
