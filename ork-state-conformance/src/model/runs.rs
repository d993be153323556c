use std::collections::BTreeSet;

use ork_state_api::{
    CreatedRun, Dag, EndedRun, Entity, Error, Label, ListRuns, NewRun, Page, RetryRun, Run, RunFilter, RunId,
    RunKey, RunStatus, StartRun, Task, TaskCounts, TaskDetail, TaskId, TaskStatus, Text, Timestamp,
};

use super::{Expected, Model, TaskRow};

use crate::ctx::with;

impl Model {
    /// R1
    pub(super) fn create_run(
        &mut self,
        now: Timestamp,
        new: NewRun,
        seen: Option<&CreatedRun>,
    ) -> Expected<CreatedRun> {
        let workflow = self.get_workflow(new.workflow)?;
        let there = self
            .runs
            .values()
            .find(|run| run.workflow == new.workflow && run.idempotency_key == new.idempotency_key);
        if let Some(run) = there.filter(|_| new.idempotency_key.is_some()) {
            return Ok(CreatedRun::Existing(self.show_run(run)));
        }
        let seen = seen.map(|created| match created {
            CreatedRun::New(run) | CreatedRun::Existing(run) => run.id,
        });
        let run = self.new_run(now, &workflow, new.triggered_by, new.idempotency_key, seen);
        Ok(CreatedRun::New(run))
    }

    pub(super) fn new_run(
        &mut self,
        now: Timestamp,
        workflow: &ork_state_api::Workflow,
        triggered_by: Label,
        idempotency_key: Option<Label>,
        seen: Option<RunId>,
    ) -> Run {
        let run = with(
            Run::from_stored(self.fresh_run(seen), workflow.id, workflow.snapshot, triggered_by, now),
            |run| run.idempotency_key = idempotency_key,
        );
        self.runs.insert(run.id, run.clone());
        run
    }

    pub(super) fn get_run(&self, id: RunId) -> Expected<Run> {
        let run = self.runs.get(&id).ok_or_else(|| Error::not_found(Entity::Run, id))?;
        Ok(self.show_run(run))
    }

    /// A run with its counts.
    pub(super) fn show_run(&self, run: &Run) -> Run {
        let mut tasks = TaskCounts::default();
        for TaskRow { detail, .. } in self.rows(run.id) {
            tasks.total += 1;
            match detail.task.status {
                TaskStatus::Pending | TaskStatus::Dispatched | TaskStatus::Running => tasks.unfinished += 1,
                TaskStatus::Failed => tasks.failed += 1,
                TaskStatus::Cancelled => tasks.cancelled += 1,
                TaskStatus::Success => {}
            }
        }
        with(run.clone(), |run| run.tasks = tasks)
    }

    /// G6: newest first. For equal times the greater id comes first.
    pub(super) fn list_runs(&self, list: &ListRuns) -> Page<Run, RunKey> {
        let mut rows: Vec<Run> =
            self.runs.values().filter(|run| is_wanted(run, &list.filter)).cloned().collect();
        if let Some(after) = list.page.after {
            rows.retain(|run| (run.created_at, run.id) < (after.created_at, after.id));
        }
        rows.sort_by_key(|run| (run.created_at, run.id));
        rows.reverse();
        rows.truncate(list.page.limit.get() + 1);
        let rows = rows.iter().map(|run| self.show_run(run)).collect();
        Page::from_rows(rows, list.page.limit, |run| RunKey { created_at: run.created_at, id: run.id })
    }

    pub(super) fn count_runs(&self, filter: &RunFilter) -> u64 {
        self.runs.values().filter(|run| is_wanted(run, filter)).count() as u64
    }

    /// R2
    pub(super) fn start_run(&mut self, now: Timestamp, start: StartRun) -> Expected<Run> {
        let run = self.get_run(start.run)?;
        match run.status {
            RunStatus::Pending => {}
            RunStatus::Cancelled => {
                return Err(Error::invalid_transition(Entity::Run, run.id, run.status, RunStatus::Running));
            }
            RunStatus::Running | RunStatus::Paused | RunStatus::Success | RunStatus::Failed => {
                return Ok(run);
            }
        }
        let dag = match start.dag {
            Some(dag) => dag,
            None => {
                self.corrupt_snapshot(run.snapshot)?;
                self.get_snapshot(run.snapshot)?.dag
            }
        };
        let rows = rows_of(run.id, &dag, now);
        for row in &rows {
            self.places.insert(row.detail.task.id, (run.id, row.detail.task.index as usize));
        }
        self.tasks.insert(run.id, rows);
        self.edit_run(run.id, |run| {
            run.status = RunStatus::Running;
            run.started_at = Some(now);
        });
        self.end_if_done(now, run.id);
        self.get_run(run.id)
    }

    /// R4
    pub(super) fn cancel_run(&mut self, now: Timestamp, id: RunId) -> Expected<Run> {
        let run = self.get_run(id)?;
        match run.status {
            RunStatus::Cancelled => return Ok(run),
            RunStatus::Success | RunStatus::Failed => {
                return Err(Error::invalid_transition(Entity::Run, id, run.status, RunStatus::Cancelled));
            }
            RunStatus::Pending | RunStatus::Running | RunStatus::Paused => {}
        }
        for index in 0..self.rows(id).len() {
            if self.rows(id)[index].detail.task.status.is_terminal() {
                continue;
            }
            let task = self.rows(id)[index].detail.task.id;
            self.cancel_jobs(now, task);
            self.edit(id, index, |row| {
                let task = &mut row.detail.task;
                task.status = TaskStatus::Cancelled;
                task.finished_at = Some(now);
                (task.lease, task.retry_at) = (None, None);
            });
        }
        self.edit_run(id, |run| {
            run.status = RunStatus::Cancelled;
            run.finished_at = Some(now);
        });
        self.get_run(id)
    }

    /// R5
    pub(super) fn pause_run(&mut self, id: RunId) -> Expected<Run> {
        let run = self.get_run(id)?;
        match run.status {
            RunStatus::Paused => {}
            RunStatus::Running => self.edit_run(id, |run| run.status = RunStatus::Paused),
            from => return Err(Error::invalid_transition(Entity::Run, id, from, RunStatus::Paused)),
        }
        self.get_run(id)
    }

    /// R5
    pub(super) fn resume_run(&mut self, now: Timestamp, id: RunId) -> Expected<Run> {
        let run = self.get_run(id)?;
        match run.status {
            RunStatus::Running => {}
            RunStatus::Paused => {
                self.edit_run(id, |run| run.status = RunStatus::Running);
                for index in 0..self.rows(id).len() {
                    self.edit(id, index, |row| {
                        row.ready_since = row.detail.task.retry_at.map_or(now, |retry_at| retry_at.max(now));
                    });
                }
            }
            from => return Err(Error::invalid_transition(Entity::Run, id, from, RunStatus::Running)),
        }
        self.get_run(id)
    }

    /// R6
    pub(super) fn retry_run(&mut self, now: Timestamp, retry: &RetryRun) -> Expected<Run> {
        let run = self.get_run(retry.run)?;
        let refused = || Error::invalid_transition(Entity::Run, run.id, run.status, RunStatus::Running);
        if !run.status.is_terminal() {
            return Err(refused());
        }
        let rows = self.rows(run.id);
        let mut again = BTreeSet::new();
        match &retry.tasks {
            None => again.extend((0..rows.len()).filter(|&index| {
                matches!(rows[index].detail.task.status, TaskStatus::Failed | TaskStatus::Cancelled)
            })),
            Some(names) => {
                for name in names {
                    let index = rows.iter().position(|row| row.detail.task.name == *name);
                    again.insert(index.ok_or_else(|| Error::not_found(Entity::Task, name))?);
                }
                again = dependents(rows, again);
            }
        }
        if again.is_empty() {
            return Err(refused().with_hint("No task of it is to be done again"));
        }
        for &index in &again {
            let stays = rows[index].dependencies.iter().filter(|dependency| !again.contains(dependency));
            for &dependency in stays {
                if rows[dependency].detail.task.status != TaskStatus::Success {
                    let (task, other) = (&rows[index].detail.task.name, &rows[dependency].detail.task.name);
                    return Err(Error::conflict(format!("task {task:?} depends on {other:?}")));
                }
            }
        }
        for &index in &again {
            self.edit(run.id, index, |row| {
                let task = &mut row.detail.task;
                (task.status, task.attempts) = (TaskStatus::Pending, 0);
                (task.lease, task.execution_name, task.error) = (None, None, None);
                (task.retry_at, task.dispatched_at, task.started_at, task.finished_at) =
                    (None, None, None, None);
                row.detail.output = None;
                row.ready_since = now;
            });
        }
        // A task that failed because of another has a dependency that did not succeed.
        let by_itself = |row: &&TaskRow| row.detail.task.status == TaskStatus::Failed && self.unmet(row) == 0;
        let error = self.rows(run.id).iter().find(by_itself).map(|row| failed_because(&row.detail.task.name));
        let cancelled = |row: &&TaskRow| row.detail.task.status == TaskStatus::Cancelled;
        let error = error.or_else(|| {
            let left = self.rows(run.id).iter().find(cancelled)?;
            Some(Text::lossy(&format!("task \"{}\" was cancelled", left.detail.task.name)))
        });
        self.edit_run(run.id, |run| {
            run.status = RunStatus::Running;
            (run.error, run.finished_at) = (error, None);
        });
        self.get_run(run.id)
    }

    /// R3: ends a live run that has no live task.
    pub(super) fn end_if_done(&mut self, now: Timestamp, id: RunId) -> Option<EndedRun> {
        let run = self.get_run(id).ok()?;
        if run.status.is_terminal() || run.tasks.unfinished > 0 {
            return None;
        }
        let status =
            if run.tasks.failed + run.tasks.cancelled > 0 { RunStatus::Failed } else { RunStatus::Success };
        self.edit_run(id, |run| (run.status, run.finished_at) = (status, Some(now)));
        Some(EndedRun::new(id, status))
    }

    pub(super) fn delete_run(&mut self, id: RunId) {
        for row in self.tasks.remove(&id).unwrap_or_default() {
            self.places.remove(&row.detail.task.id);
        }
        self.jobs.retain(|row| row.job.run != id);
        self.runs.remove(&id);
    }

    pub(super) fn edit_run(&mut self, id: RunId, edit: impl FnOnce(&mut Run)) {
        if let Some(run) = self.runs.get_mut(&id) {
            edit(run);
        }
    }
}

fn is_wanted(run: &Run, filter: &RunFilter) -> bool {
    filter.workflow.is_none_or(|workflow| run.workflow == workflow)
        && filter.statuses.as_ref().is_none_or(|statuses| statuses.contains(&run.status))
        && filter.created_from.is_none_or(|from| run.created_at >= from)
        && filter.created_before.is_none_or(|before| run.created_at < before)
        && filter.triggered_by.as_ref().is_none_or(|trigger| run.triggered_by == *trigger)
}

/// R3: the text of a run's error.
pub(super) fn failed_because(culprit: &str) -> Text {
    Text::lossy(&format!("task \"{culprit}\" failed"))
}

/// These tasks with everything that depends on them, directly or not.
pub(super) fn dependents(rows: &[TaskRow], mut reached: BTreeSet<usize>) -> BTreeSet<usize> {
    loop {
        let more: Vec<usize> = (0..rows.len())
            .filter(|index| !reached.contains(index))
            .filter(|&index| rows[index].dependencies.iter().any(|it| reached.contains(it)))
            .collect();
        if more.is_empty() {
            return reached;
        }
        reached.extend(more);
    }
}

fn rows_of(run: RunId, dag: &Dag, now: Timestamp) -> Vec<TaskRow> {
    let specs = dag.tasks();
    let places: std::collections::BTreeMap<_, _> =
        specs.iter().enumerate().map(|(index, spec)| (&spec.name, index)).collect();
    let row = |(index, spec): (u32, &ork_state_api::TaskSpec)| {
        let (name, executor_type) = (spec.name.clone(), spec.executor_type.clone());
        let mut task = Task::from_stored(TaskId::generate(), run, index, name, executor_type, now);
        task.depends_on.clone_from(&spec.depends_on);
        (task.max_retries, task.timeout_seconds) = (spec.max_retries, spec.timeout_seconds);
        TaskRow {
            detail: TaskDetail::new(task, spec.params.clone(), None),
            dependencies: spec.depends_on.iter().filter_map(|name| places.get(name).copied()).collect(),
            ready_since: now,
            token: 0,
            log: Vec::new(),
            is_told: false,
        }
    };
    (0..).zip(specs).map(row).collect()
}
