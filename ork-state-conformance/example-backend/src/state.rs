//! Workflows and runs.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use ork_state_api::{
    CreatedRun, Entity, Error, ListRuns, NewRun, NewWorkflow, Page, PageRequest, Result, Run, RunId, RunKey,
    RunStatus, Snapshot, SnapshotId, StartRun, Task, TaskCounts, TaskDetail, TaskId, TaskStatus, Timestamp,
    Token, Workflow, WorkflowId, WorkflowName,
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
    pub(crate) fn create_workflow(&mut self, new: NewWorkflow) -> Result<Workflow> {
        if self.find_workflow(&new.name).is_ok() {
            return Err(Error::already_exists(Entity::Workflow, &new.name));
        }
        let snapshot = Snapshot {
            id: SnapshotId::generate(),
            workflow: WorkflowId::generate(),
            content_hash: new.dag.content_hash(),
            dag: Arc::new(new.dag),
            created_at: self.now,
        };
        let workflow = Workflow {
            id: snapshot.workflow,
            name: new.name,
            description: new.description,
            target: new.target,
            snapshot: snapshot.id,
            created_at: self.now,
            updated_at: self.now,
        };
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

    pub(crate) fn list_workflows(&self, page: &PageRequest<WorkflowName>) -> Page<Workflow, WorkflowName> {
        let mut rows: Vec<Workflow> = self
            .workflows
            .values()
            .filter(|row| page.after.as_ref().is_none_or(|key| row.name > *key))
            .cloned()
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Page::from_rows(rows, page.limit, |row| row.name.clone())
    }

    pub(crate) fn snapshot(&self, id: SnapshotId) -> Result<&Snapshot> {
        self.snapshots.get(&id).ok_or_else(|| Error::not_found(Entity::Snapshot, id))
    }

    pub(crate) fn delete_workflow(&mut self, id: WorkflowId) -> Result<()> {
        self.workflow(id)?;
        let runs = self.runs.values().filter(|run| run.workflow == id);
        if let Some(run) = runs.clone().find(|run| !run.status.is_terminal()) {
            return Err(Error::conflict(format!("run {} of workflow {id} is {}", run.id, run.status))
                .with_hint("Cancel it, or wait until it has ended"));
        }
        for run in runs.map(|run| run.id).collect::<Vec<_>>() {
            self.runs.remove(&run);
            for task in self.task_ids.remove(&run).unwrap_or_default() {
                self.tasks.remove(&task);
                self.tokens.remove(&task);
            }
        }
        self.snapshots.retain(|_, snapshot| snapshot.workflow != id);
        self.workflows.remove(&id);
        Ok(())
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

    pub(crate) fn list_runs(&self, list: ListRuns) -> Page<Run, RunKey> {
        let wanted = |run: &&Run| list.workflow.is_none_or(|workflow| run.workflow == workflow);
        let after = list.page.after.map_or(Bound::Unbounded, Bound::Excluded);
        let by_key: BTreeMap<RunKey, &Run> =
            self.runs.values().filter(wanted).map(|run| (RunKey::of(run), run)).collect();
        let rows = by_key.range((after, Bound::Unbounded)).map(|(_, run)| (*run).clone()).collect();
        Page::from_rows(rows, list.page.limit, RunKey::of)
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
            Some(dag) => Arc::new(dag),
            None => self.snapshot(run.snapshot)?.dag.clone(),
        };
        let tasks: Vec<TaskDetail> = Task::of_run(run.id, &dag, self.now)
            .zip(dag.tasks())
            .map(|(task, spec)| TaskDetail { task, params: spec.params.clone(), output: None })
            .collect();
        self.task_ids.insert(run.id, tasks.iter().map(|detail| detail.task.id).collect());
        self.tasks.extend(tasks.into_iter().map(|detail| (detail.task.id, detail)));
        let (now, total) = (self.now, u32::try_from(dag.len()).unwrap_or(u32::MAX));
        let run = self.run_mut(run.id)?;
        run.status = RunStatus::Running;
        run.started_at = Some(now);
        run.tasks = TaskCounts { total, unfinished: total, failed: 0 };
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
        run.tasks.unfinished = 0;
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
        run.status = if run.tasks.failed > 0 { RunStatus::Failed } else { RunStatus::Success };
        run.finished_at = Some(now);
        Some(run.status)
    }
}
