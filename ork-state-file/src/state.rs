//! What is stored, in memory, with the indexes that make every operation cheap. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ork_state_api::{
    Entity, Error, Json, Label, ReadyTask, Result, Run, RunId, RunKey, RunStatus, Snapshot, SnapshotId, Task,
    TaskId, TaskName, TaskStatus, Timestamp, Token, Workflow, WorkflowId, WorkflowName,
};

use crate::change::{Change, NewTask, TaskPatch};

/// Everything that is stored.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) workflows: BTreeMap<WorkflowId, Workflow>,
    pub(crate) workflow_names: BTreeMap<WorkflowName, WorkflowId>,
    pub(crate) snapshots: BTreeMap<SnapshotId, Snapshot>,
    pub(crate) runs: BTreeMap<RunId, RunRow>,
    /// All runs, newest first.
    pub(crate) run_keys: BTreeSet<RunKey>,
    /// The same by workflow; every workflow has an entry.
    pub(crate) workflow_runs: BTreeMap<WorkflowId, BTreeSet<RunKey>>,
    pub(crate) idempotency_keys: HashMap<(WorkflowId, Label), RunId>,
    pub(crate) tasks: HashMap<TaskId, TaskRow>,
    /// The pending tasks of running runs that wait for no other task, in the order of claims.
    pub(crate) ready: BTreeSet<ReadyTask>,
    /// The leases of claimed tasks, the first to lapse first.
    pub(crate) leases: BTreeSet<(Timestamp, TaskId)>,
}

/// A run with the tasks that it owns.
#[derive(Debug)]
pub(crate) struct RunRow {
    pub(crate) run: Run,
    /// By index.
    pub(crate) tasks: Vec<TaskId>,
    pub(crate) task_names: HashMap<TaskName, u32>,
}

/// A task with what it does not show.
#[derive(Debug)]
pub(crate) struct TaskRow {
    pub(crate) task: Task,
    pub(crate) params: Option<Json>,
    pub(crate) output: Option<Json>,
    /// The last token that it was claimed with.
    pub(crate) token: Token,
    /// The indexes of the tasks that wait for it.
    pub(crate) dependents: Vec<u32>,
    pub(crate) log_length: u64,
}

impl State {
    pub(crate) fn workflow(&self, id: WorkflowId) -> Result<&Workflow> {
        self.workflows.get(&id).ok_or_else(|| Error::not_found(Entity::Workflow, id))
    }

    pub(crate) fn run(&self, id: RunId) -> Result<&RunRow> {
        self.runs.get(&id).ok_or_else(|| Error::not_found(Entity::Run, id))
    }

    pub(crate) fn task(&self, id: TaskId) -> Result<&TaskRow> {
        self.tasks.get(&id).ok_or_else(|| Error::not_found(Entity::Task, id))
    }

    /// Whether the run hands out tasks.
    pub(crate) fn is_running(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|row| row.run.status == RunStatus::Running)
    }

    /// Applies what a transaction recorded. Says what is wrong if it does not fit the state: then the journal has
    /// been tampered with.
    pub(crate) fn apply(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::Workflow(workflow) => self.put_workflow(workflow),
            Change::Snapshot { id, workflow, created_at, dag } => {
                let content_hash = dag.content_hash();
                self.put_snapshot(Snapshot { id, workflow, content_hash, dag, created_at });
            }
            Change::Run(run) => self.put_run(run),
            Change::Tasks { run, tasks } => self.put_tasks(run, tasks)?,
            Change::Task(patch) => {
                let id = patch.id;
                self.edit_task(id, |row| patch.write_to(row)).ok_or_else(|| format!("no task {id}"))?;
            }
            Change::Output { task, output } => {
                self.tasks.get_mut(&task).ok_or_else(|| format!("no task {task}"))?.output = Some(output);
            }
            Change::LogLength { task, length } => {
                self.tasks.get_mut(&task).ok_or_else(|| format!("no task {task}"))?.log_length = length;
            }
            Change::DeleteWorkflow(id) => {
                self.remove_workflow(id);
            }
        }
        Ok(())
    }

    pub(crate) fn put_workflow(&mut self, workflow: Workflow) {
        self.workflow_names.insert(workflow.name.clone(), workflow.id);
        self.workflow_runs.entry(workflow.id).or_default();
        self.workflows.insert(workflow.id, workflow);
    }

    pub(crate) fn put_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshots.insert(snapshot.id, snapshot);
    }

    pub(crate) fn put_run(&mut self, run: Run) {
        if let Some(row) = self.runs.get_mut(&run.id) {
            row.run = run;
            return;
        }
        let key = RunKey::of(&run);
        self.run_keys.insert(key);
        self.workflow_runs.entry(run.workflow).or_default().insert(key);
        if let Some(idempotency_key) = &run.idempotency_key {
            self.idempotency_keys.insert((run.workflow, idempotency_key.clone()), run.id);
        }
        self.runs.insert(run.id, RunRow { run, tasks: Vec::new(), task_names: HashMap::new() });
    }

    /// Gives a run its tasks, which come in the order of their indexes.
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
        let row = self.runs.get_mut(&run).ok_or_else(|| format!("no run {run}"))?;
        row.tasks = tasks.iter().map(|new| new.task.id).collect();
        row.task_names = names;
        for (NewTask { task, params }, dependents) in tasks.into_iter().zip(dependents) {
            let id = task.id;
            let row = TaskRow {
                task,
                params,
                output: None,
                token: Token::from_stored(0),
                dependents,
                log_length: 0,
            };
            self.index(&row.task);
            self.tasks.insert(id, row);
        }
        Ok(())
    }

    /// Changes a task and keeps the indexes right.
    pub(crate) fn edit_task(&mut self, id: TaskId, edit: impl FnOnce(&mut TaskRow)) -> Option<&TaskRow> {
        let row = self.tasks.get_mut(&id)?;
        let before = (row.task.ready_at, row.task.lease.as_ref().map(|lease| lease.expires_at));
        edit(row);
        let after = (row.task.ready_at, row.task.lease.as_ref().map(|lease| lease.expires_at));
        if before != after {
            let (run, index) = (row.task.run, row.task.index);
            let place = |ready_at| ReadyTask { ready_at, run, index, task: id };
            before.0.map(|ready_at| self.ready.remove(&place(ready_at)));
            before.1.map(|expires_at| self.leases.remove(&(expires_at, id)));
            self.ready.extend(after.0.map(place));
            self.leases.extend(after.1.map(|expires_at| (expires_at, id)));
        }
        self.tasks.get(&id)
    }

    fn index(&mut self, task: &Task) {
        let place = |ready_at| ReadyTask { ready_at, run: task.run, index: task.index, task: task.id };
        self.ready.extend(task.ready_at.map(place));
        self.leases.extend(task.lease.as_ref().map(|lease| (lease.expires_at, task.id)));
    }

    /// Removes a workflow with all that is its own; gives the tasks that had a log.
    pub(crate) fn remove_workflow(&mut self, id: WorkflowId) -> Vec<TaskId> {
        let mut logged = Vec::new();
        for key in self.workflow_runs.remove(&id).unwrap_or_default() {
            self.run_keys.remove(&key);
            let Some(row) = self.runs.remove(&key.id) else { continue };
            if let Some(idempotency_key) = row.run.idempotency_key {
                self.idempotency_keys.remove(&(id, idempotency_key));
            }
            for task in row.tasks {
                self.edit_task(task, |row| (row.task.ready_at, row.task.lease) = (None, None));
                let removed = self.tasks.remove(&task);
                logged.extend(removed.filter(|row| row.log_length > 0).map(|row| row.task.id));
            }
        }
        if let Some(workflow) = self.workflows.remove(&id) {
            self.workflow_names.remove(&workflow.name);
        }
        self.snapshots.retain(|_, snapshot| snapshot.workflow != id);
        logged
    }

    /// The whole state as changes that make it anew, owners before what they own.
    pub(crate) fn dump(&self) -> impl Iterator<Item = Vec<Change>> {
        let snapshots = self.snapshots.values().map(|snapshot| {
            vec![Change::Snapshot {
                id: snapshot.id,
                workflow: snapshot.workflow,
                created_at: snapshot.created_at,
                dag: snapshot.dag.clone(),
            }]
        });
        let workflows = self.workflows.values().map(|workflow| vec![Change::Workflow(workflow.clone())]);
        let runs = self.runs.values().map(|row| {
            let rows = || row.tasks.iter().filter_map(|id| self.tasks.get(id));
            let mut changes = vec![Change::Run(row.run.clone())];
            if !row.tasks.is_empty() {
                let new = |row: &TaskRow| NewTask { task: row.task.clone(), params: row.params.clone() };
                changes.push(Change::Tasks { run: row.run.id, tasks: rows().map(new).collect() });
            }
            for row in rows() {
                // What a new task has not: the token of an earlier claim, an output, a log.
                if row.token.get() != 0 {
                    changes.push(Change::Task(TaskPatch::of(row)));
                }
                changes.extend(row.output.clone().map(|output| Change::Output { task: row.task.id, output }));
                if row.log_length > 0 {
                    changes.push(Change::LogLength { task: row.task.id, length: row.log_length });
                }
            }
            changes
        });
        workflows.chain(snapshots).chain(runs)
    }

    /// What only the indexes can show to be wrong.
    pub(crate) fn disagreements(&self) -> Vec<String> {
        let mut found = Vec::new();
        let ready: BTreeSet<ReadyTask> = self
            .tasks
            .values()
            .filter(|row| {
                let task = &row.task;
                task.status == TaskStatus::Pending
                    && task.unmet_dependencies == 0
                    && self.is_running(task.run)
            })
            .filter_map(|row| {
                let task = &row.task;
                Some(ReadyTask { ready_at: task.ready_at?, run: task.run, index: task.index, task: task.id })
            })
            .collect();
        if ready != self.ready {
            found.push(format!("the queue holds {} tasks, {} are ready", self.ready.len(), ready.len()));
        }
        let leased = self.tasks.values().filter(|row| row.task.lease.is_some()).count();
        if leased != self.leases.len() {
            found.push(format!("the index holds {} leases, {leased} tasks are leased", self.leases.len()));
        }
        found
    }
}
