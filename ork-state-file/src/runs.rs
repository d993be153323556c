use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use ork_state_api::{
    CreatedRun, EndedRun, Entity, Error, ListRuns, NewRun, Page, Result, Run, RunId, RunKey, RunStatus,
    RunStore, StartRun, Task, TaskCounts, TaskStatus,
};

use crate::change::{Change, NewTask};
use crate::database::FileDatabase;
use crate::state::{State, TaskRow};
use crate::transaction::Transaction;

#[async_trait]
impl RunStore for FileDatabase {
    async fn create_run(&self, new: NewRun) -> Result<CreatedRun> {
        self.write(|tx| create(tx, new)).await
    }

    async fn get_run(&self, id: RunId) -> Result<Run> {
        self.read(move |state, _| Ok(state.run(id)?.run.clone())).await
    }

    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run, RunKey>> {
        self.read(move |state, _| Ok(list_runs(state, list))).await
    }

    async fn start_run(&self, start: StartRun) -> Result<Run> {
        self.write(|tx| start_run(tx, start)).await
    }

    async fn cancel_run(&self, id: RunId) -> Result<Run> {
        self.write(move |tx| cancel(tx, id)).await
    }

    async fn pause_run(&self, id: RunId) -> Result<Run> {
        self.write(move |tx| toggle(tx, id, RunStatus::Running, RunStatus::Paused)).await
    }

    async fn resume_run(&self, id: RunId) -> Result<Run> {
        self.write(move |tx| toggle(tx, id, RunStatus::Paused, RunStatus::Running)).await
    }
}

fn create(tx: &mut Transaction<'_>, new: NewRun) -> Result<CreatedRun> {
    let snapshot = tx.state.workflow(new.workflow)?.snapshot;
    if let Some(key) = &new.idempotency_key
        && let Some(existing) = tx.state.idempotency_keys.get(&(new.workflow, key.clone()))
    {
        return Ok(CreatedRun::Existing(tx.state.run(*existing)?.run.clone()));
    }
    let run = Run::new(new, snapshot, tx.now);
    tx.apply(Change::Run(run.clone()))?;
    Ok(CreatedRun::New(run))
}

fn list_runs(state: &State, list: ListRuns) -> Page<Run, RunKey> {
    let keys = match list.workflow {
        None => Some(&state.run_keys),
        Some(workflow) => state.workflow_runs.get(&workflow),
    };
    let after = list.page.after.map_or(Bound::Unbounded, Bound::Excluded);
    let keys = keys.into_iter().flat_map(|keys| keys.range((after, Bound::Unbounded)));
    let rows = keys.filter_map(|key| state.runs.get(&key.id)).take(list.page.limit.get() + 1);
    Page::from_rows(rows.map(|row| row.run.clone()).collect(), list.page.limit, RunKey::of)
}

fn start_run(tx: &mut Transaction<'_>, start: StartRun) -> Result<Run> {
    let run = &tx.state.run(start.run)?.run;
    let id = run.id;
    match run.status {
        RunStatus::Pending => {}
        RunStatus::Cancelled => {
            return Err(Error::invalid_transition(Entity::Run, id, run.status, RunStatus::Running));
        }
        RunStatus::Running | RunStatus::Paused | RunStatus::Success | RunStatus::Failed => {
            return Ok(run.clone());
        }
    }
    let dag = match start.dag {
        Some(dag) => Arc::new(dag),
        None => {
            let snapshot = tx.state.snapshots.get(&run.snapshot);
            snapshot
                .ok_or_else(|| Error::corrupt("runs", id, "snapshot_id", "names no snapshot"))?
                .dag
                .clone()
        }
    };
    let tasks = Task::of_run(id, &dag, tx.now).zip(dag.tasks());
    tx.put_tasks(id, tasks.map(|(task, spec)| NewTask { task, params: spec.params.clone() }).collect())?;
    let (now, total) = (tx.now, count(dag.len()));
    tx.edit_run(id, |run| {
        run.status = RunStatus::Running;
        run.started_at = Some(now);
        run.tasks = TaskCounts { total, unfinished: total, failed: 0 };
    });
    end_if_done(tx, id);
    Ok(tx.state.run(id)?.run.clone())
}

/// A DAG has far fewer tasks than this can hold.
fn count(tasks: usize) -> u32 {
    u32::try_from(tasks).unwrap_or(u32::MAX)
}

fn cancel(tx: &mut Transaction<'_>, id: RunId) -> Result<Run> {
    let row = tx.state.run(id)?;
    match row.run.status {
        RunStatus::Cancelled => return Ok(row.run.clone()),
        status @ (RunStatus::Success | RunStatus::Failed) => {
            return Err(Error::invalid_transition(Entity::Run, id, status, RunStatus::Cancelled));
        }
        RunStatus::Pending | RunStatus::Running | RunStatus::Paused => {}
    }
    let now = tx.now;
    for task in row.tasks.clone() {
        if tx.state.task(task)?.task.status.is_terminal() {
            continue;
        }
        tx.edit_task(task, |TaskRow { task, .. }| {
            task.status = TaskStatus::Cancelled;
            task.finished_at = Some(now);
            (task.lease, task.ready_at, task.retry_at) = (None, None, None);
        });
    }
    tx.edit_run(id, |run| {
        run.status = RunStatus::Cancelled;
        run.finished_at = Some(now);
        run.tasks.unfinished = 0;
    });
    Ok(tx.state.run(id)?.run.clone())
}

/// Pauses or resumes.
fn toggle(tx: &mut Transaction<'_>, id: RunId, from: RunStatus, to: RunStatus) -> Result<Run> {
    let row = tx.state.run(id)?;
    if row.run.status == to {
        return Ok(row.run.clone());
    }
    if row.run.status != from {
        return Err(Error::invalid_transition(Entity::Run, id, row.run.status, to));
    }
    let now = tx.now;
    for task in row.tasks.clone() {
        let Task { status, unmet_dependencies, .. } = tx.state.task(task)?.task;
        if status != TaskStatus::Pending || unmet_dependencies > 0 {
            continue;
        }
        tx.edit_task(task, |TaskRow { task, .. }| {
            let resumed = to == RunStatus::Running;
            task.ready_at = resumed.then(|| task.retry_at.map_or(now, |retry_at| retry_at.max(now)));
        });
    }
    tx.edit_run(id, |run| run.status = to);
    Ok(tx.state.run(id)?.run.clone())
}

/// Ends a live run that has no unfinished task (R3), and says so.
pub(crate) fn end_if_done(tx: &mut Transaction<'_>, id: RunId) -> Option<EndedRun> {
    let run = &tx.state.runs.get(&id)?.run;
    if run.status.is_terminal() || run.tasks.unfinished > 0 {
        return None;
    }
    let status = if run.tasks.failed > 0 { RunStatus::Failed } else { RunStatus::Success };
    let now = tx.now;
    tx.edit_run(id, |run| {
        run.status = status;
        run.finished_at = Some(now);
    });
    Some(EndedRun { run: id, status })
}
