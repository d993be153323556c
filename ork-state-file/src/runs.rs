use std::ops::Bound;

use async_trait::async_trait;
use ork_state_api::backend::RetryPlan;
use ork_state_api::{
    CreatedRun, Entity, Error, ListRuns, NewRun, Page, Result, RetryRun, Run, RunFilter, RunId, RunKey,
    RunStatus, RunStore, StartRun, Task, TaskCounts, TaskStatus,
};
use uuid::Uuid;

use crate::change::{Change, NewTask};
use crate::database::FileDatabase;
use crate::state::{State, TaskRow};
use crate::transaction::Transaction;
use crate::updates::{cancel_jobs, end_if_done};

#[async_trait]
impl RunStore for FileDatabase {
    async fn create_run(&self, new: NewRun) -> Result<CreatedRun> {
        self.write(|tx| create(tx, new)).await
    }

    async fn get_run(&self, id: RunId) -> Result<Run> {
        self.read(move |state, _| Ok(state.run(id)?.run.clone())).await
    }

    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run, RunKey>> {
        self.read(move |state, _| Ok(list_runs(state, &list))).await
    }

    async fn count_runs(&self, filter: RunFilter) -> Result<u64> {
        self.read(move |state, _| Ok(runs(state, &filter, None).count() as u64)).await
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

    async fn retry_run(&self, retry: RetryRun) -> Result<Run> {
        self.write(move |tx| retry_run(tx, &retry)).await
    }
}

pub(crate) fn create(tx: &mut Transaction<'_>, new: NewRun) -> Result<CreatedRun> {
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

fn list_runs(state: &State, list: &ListRuns) -> Page<Run, RunKey> {
    let rows = runs(state, &list.filter, list.page.after).take(list.page.limit.get() + 1).cloned().collect();
    Page::from_rows(rows, list.page.limit, RunKey::of)
}

/// The matching runs after a key, newest first.
fn runs<'s>(state: &'s State, filter: &'s RunFilter, after: Option<RunKey>) -> impl Iterator<Item = &'s Run> {
    let keys = match filter.workflow {
        None => Some(&state.run_keys),
        Some(workflow) => state.workflow_runs.get(&workflow),
    };
    // Newest first: the wanted keys come after the last one that is too new.
    let newest =
        filter.created_before.map(|time| RunKey { created_at: time, id: RunId::from_uuid(Uuid::nil()) });
    let after = after.max(newest).map_or(Bound::Unbounded, Bound::Excluded);
    let keys = keys.into_iter().flat_map(move |keys| keys.range((after, Bound::Unbounded)));
    keys.take_while(|key| filter.created_from.is_none_or(|from| from <= key.created_at))
        .filter_map(|key| Some(&state.runs.get(&key.id)?.run))
        .filter(|run| filter.matches(run))
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
        Some(dag) => dag,
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
        run.tasks = TaskCounts::new(total);
    });
    end_if_done(tx, id);
    Ok(tx.state.run(id)?.run.clone())
}

/// The limit on a DAG's tasks is far below the maximum here.
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
    for task in row.task_ids() {
        if tx.state.task(task)?.task.status.is_terminal() {
            continue;
        }
        cancel_jobs(tx, task);
        tx.edit_task(task, |TaskRow { task, .. }| {
            task.status = TaskStatus::Cancelled;
            task.finished_at = Some(now);
            (task.lease, task.ready_at, task.retry_at, task.open_jobs) = (None, None, None, 0);
        });
    }
    tx.edit_run(id, |run| {
        run.status = RunStatus::Cancelled;
        run.finished_at = Some(now);
        run.tasks.cancelled += std::mem::take(&mut run.tasks.unfinished);
    });
    Ok(tx.state.run(id)?.run.clone())
}

fn retry_run(tx: &mut Transaction<'_>, retry: &RetryRun) -> Result<Run> {
    let row = tx.state.run(retry.run)?;
    let ids = row.task_ids();
    let tasks: Vec<Task> = row.tasks.iter().map(|row| row.task.clone()).collect();
    let plan = RetryPlan::new(retry, &row.run, &tasks)?;
    let now = tx.now;
    for &(index, unmet) in &plan.again {
        let id = ids[index as usize];
        tx.edit_task(id, |row| row.task.do_again(unmet, now));
        if tx.state.task(id)?.output.is_some() {
            tx.apply(Change::Output { task: id, output: None })?;
        }
    }
    tx.edit_run(retry.run, |run| plan.apply_to(run));
    Ok(tx.state.run(retry.run)?.run.clone())
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
    for task in row.task_ids() {
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
