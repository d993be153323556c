//! How tasks end, and what follows from it.

use std::collections::BTreeMap;

use ork_state_api::backend::{
    UpdateStep, dependency_failed_message, lease_lapsed_message, task_failed_message, timed_out_message,
};
use ork_state_api::{
    Claim, Delay, EndedRun, ExpiredTasks, JobStatus, Limit, Result, RunId, RunStatus, Task, TaskChange,
    TaskId, TaskName, TaskStatus, TaskUpdates, Text, Timestamp, UpdateOutcome, UpdateReport,
};

use crate::change::Change;
use crate::state::{JobRow, TaskRow};
use crate::transaction::Transaction;

/// The check before every write by a worker: the token is current and the lease has not lapsed.
pub(crate) fn holds(tx: &Transaction<'_>, claim: Claim) -> bool {
    let lease = tx.state.find_task(claim.task).and_then(|row| row.task.lease.as_ref());
    lease.is_some_and(|lease| lease.token == claim.token && tx.now < lease.expires_at)
}

pub(crate) fn apply(tx: &mut Transaction<'_>, updates: &TaskUpdates) -> Result<UpdateReport> {
    let mut ended = Vec::new();
    let outcomes =
        updates.steps().iter().map(|step| apply_step(tx, step, &mut ended)).collect::<Result<Vec<_>>>()?;
    Ok(UpdateReport::new(updates.outcomes(&outcomes), settle(tx, &ended)))
}

/// Applies one step. If this ends a task, the task is added to `ended` and settled with the others
/// of the batch.
fn apply_step(tx: &mut Transaction<'_>, step: &UpdateStep, ended: &mut Vec<TaskId>) -> Result<UpdateOutcome> {
    let id = step.claim.task;
    let Some(row) = tx.state.find_task(id) else { return Ok(UpdateOutcome::NotFound) };
    if row.task.status.is_terminal() {
        return Ok(UpdateOutcome::AlreadyTerminal { status: row.task.status });
    }
    if !holds(tx, step.claim) {
        return Ok(UpdateOutcome::LeaseLost);
    }
    if let Some(TaskChange::Succeeded { output: Some(output) }) = &step.end {
        tx.apply(Change::Output { task: id, output: Some(output.clone()) })?;
    }
    let (now, running) = (tx.now, tx.state.is_running(tx.state.task(id)?.task.run));
    tx.edit_task(id, |row| {
        let task = &mut row.task;
        if let Some(name) = &step.execution_name {
            task.execution_name = Some(name.clone());
        }
        if step.running {
            task.status = TaskStatus::Running;
            task.started_at.get_or_insert(now);
        }
        match &step.end {
            None | Some(TaskChange::Dispatched { .. } | TaskChange::Running) => {}
            Some(TaskChange::Succeeded { .. }) => succeed(task, now),
            Some(TaskChange::Failed { error, retry_after }) => {
                end_attempt(task, error.clone(), *retry_after, now, running);
            }
            Some(TaskChange::Released) => {
                task.status = TaskStatus::Pending;
                task.attempts = task.attempts.saturating_sub(1);
                task.ready_at = running.then_some(now);
                (task.lease, task.execution_name, task.started_at, task.dispatched_at) =
                    (None, None, None, None);
            }
        }
    });
    let status = tx.state.task(id)?.task.status;
    if status.is_terminal() {
        ended.push(id);
    }
    Ok(UpdateOutcome::Applied { status })
}

/// Ends a failed attempt (T5): the task is retried, or failed.
fn end_attempt(task: &mut Task, error: Text, retry_after: Option<Delay>, now: Timestamp, running: bool) {
    task.error = Some(error);
    (task.lease, task.open_jobs) = (None, 0);
    task.started_at.get_or_insert(now);
    match retry_after {
        Some(delay) if task.attempts <= task.max_retries => {
            let retry_at = now.saturating_add(delay.get());
            task.status = TaskStatus::Pending;
            task.retry_at = Some(retry_at);
            task.ready_at = running.then_some(retry_at);
        }
        _ => {
            task.status = TaskStatus::Failed;
            task.finished_at = Some(now);
        }
    }
}

/// Takes lapsed claims back.
pub(crate) fn expire_leases(tx: &mut Transaction<'_>, limit: Limit) -> ExpiredTasks {
    let lapsed = tx.state.leases.iter().take_while(|(at, _)| *at <= tx.now).take(limit.get());
    let lapsed: Vec<TaskId> = lapsed.map(|(_, id)| *id).collect();
    expire(tx, lapsed, |task| {
        lease_lapsed_message(task.lease.as_ref().map_or("", |lease| lease.owner.as_str()))
    })
}

/// Ends overdue attempts (T8).
pub(crate) fn expire_timeouts(tx: &mut Transaction<'_>, limit: Limit) -> ExpiredTasks {
    let overdue = tx.state.deadlines.iter().take_while(|(at, _)| *at <= tx.now).take(limit.get());
    let overdue: Vec<TaskId> = overdue.map(|(_, id)| *id).collect();
    expire(tx, overdue, |task| timed_out_message(task.timeout_seconds.unwrap_or_default()))
}

/// Ends attempts that nobody reports on, each with an error.
fn expire(tx: &mut Transaction<'_>, tasks: Vec<TaskId>, error: fn(&Task) -> String) -> ExpiredTasks {
    let mut expired = ExpiredTasks::default();
    for id in tasks {
        if let Some(status) = fail_attempt(tx, id, |task| Text::lossy(&error(task))) {
            let list = if status.is_terminal() { &mut expired.failed } else { &mut expired.requeued };
            list.push(id);
        }
    }
    expired.ended_runs = settle(tx, &expired.failed);
    expired.requeued.sort_unstable();
    expired.failed.sort_unstable();
    expired
}

/// Ends the attempt as a failure that no worker reported. It is retried from now if attempts are
/// left. Returns the task's status.
pub(crate) fn fail_attempt(
    tx: &mut Transaction<'_>,
    id: TaskId,
    error: impl FnOnce(&Task) -> Text,
) -> Option<TaskStatus> {
    cancel_jobs(tx, id);
    let task = &tx.state.find_task(id)?.task;
    let (error, now, running) = (error(task), tx.now, tx.state.is_running(task.run));
    tx.edit_task(id, |row| {
        end_attempt(&mut row.task, error, Some(Delay::ZERO), now, running);
        // Only a failure that a worker reported has a retry time.
        row.task.retry_at = None;
    });
    Some(tx.state.find_task(id)?.task.status)
}

/// Ends an attempt as a success.
pub(crate) fn succeed(task: &mut Task, now: Timestamp) {
    task.status = TaskStatus::Success;
    task.started_at.get_or_insert(now);
    task.finished_at = Some(now);
    (task.error, task.lease, task.open_jobs) = (None, None, 0);
}

/// Cancels the open jobs of a task whose attempt ends without them (D2).
pub(crate) fn cancel_jobs(tx: &mut Transaction<'_>, id: TaskId) {
    let Some(row) = tx.state.find_task(id).filter(|row| row.task.open_jobs > 0) else { return };
    let now = tx.now;
    for job in row.jobs.clone() {
        if tx.state.job(job).is_some_and(|row| !row.job.status.is_terminal()) {
            tx.edit_job(job, |JobRow { job, .. }| {
                job.status = JobStatus::Cancelled;
                job.finished_at = Some(now);
                (job.poll_at, job.owner) = (None, None);
            });
        }
    }
}

/// Applies the consequences of tasks that have ended: counts, dependents, runs.
pub(crate) fn settle(tx: &mut Transaction<'_>, ended: &[TaskId]) -> Vec<EndedRun> {
    // By index: of several culprits the lowest is named, because it is the first to fail its
    // dependents.
    let mut of_runs: BTreeMap<RunId, BTreeMap<u32, TaskStatus>> = BTreeMap::new();
    for row in ended.iter().filter_map(|id| tx.state.find_task(*id)) {
        of_runs.entry(row.task.run).or_default().insert(row.task.index, row.task.status);
    }
    let mut ended_runs = Vec::new();
    for (run, tasks) in of_runs {
        let (succeeded, failed): (Vec<u32>, Vec<u32>) =
            tasks.keys().partition(|index| tasks[index] == TaskStatus::Success);
        for &index in &succeeded {
            release_dependents(tx, run, index);
        }
        let mut all_failed = failed.len();
        for &index in &failed {
            all_failed += fail_dependents(tx, run, index);
        }
        let error =
            failed.first().and_then(|index| name_of(tx, run, *index)).map(|name| task_failed_message(&name));
        tx.edit_run(run, |run| {
            let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            run.tasks.unfinished = run.tasks.unfinished.saturating_sub(number(succeeded.len() + all_failed));
            run.tasks.failed += number(all_failed);
            if run.error.is_none() {
                run.error = error.map(|error| Text::lossy(&error));
            }
        });
        ended_runs.extend(end_if_done(tx, run));
    }
    ended_runs
}

/// Ends a live run that has no unfinished task (R3), and returns it.
pub(crate) fn end_if_done(tx: &mut Transaction<'_>, id: RunId) -> Option<EndedRun> {
    let run = &tx.state.runs.get(&id)?.run;
    if run.status.is_terminal() || run.tasks.unfinished > 0 {
        return None;
    }
    let status =
        if run.tasks.failed + run.tasks.cancelled > 0 { RunStatus::Failed } else { RunStatus::Success };
    let now = tx.now;
    tx.edit_run(id, |run| {
        run.status = status;
        run.finished_at = Some(now);
    });
    Some(EndedRun::new(id, status))
}

fn name_of(tx: &Transaction<'_>, run: RunId, index: u32) -> Option<TaskName> {
    Some(tx.state.task_at(run, index)?.task.name.clone())
}

fn dependents_of(tx: &Transaction<'_>, run: RunId, index: u32) -> Vec<u32> {
    tx.state.task_at(run, index).map(|row| row.dependents.clone()).unwrap_or_default()
}

fn release_dependents(tx: &mut Transaction<'_>, run: RunId, index: u32) {
    let (now, running) = (tx.now, tx.state.is_running(run));
    for dependent in dependents_of(tx, run, index) {
        let Some(id) = tx.state.task_at(run, dependent).map(|row| row.task.id) else { continue };
        tx.edit_task(id, |TaskRow { task, .. }| {
            task.unmet_dependencies = task.unmet_dependencies.saturating_sub(1);
            if task.unmet_dependencies == 0 && task.status == TaskStatus::Pending {
                task.ready_at = running.then_some(now);
            }
        });
    }
}

/// Fails everything that depends, directly or not, on a task that failed for good (T5). Returns how
/// many tasks that were.
fn fail_dependents(tx: &mut Transaction<'_>, run: RunId, culprit: u32) -> usize {
    let (now, mut failed) = (tx.now, 0);
    let Some(name) = name_of(tx, run, culprit) else { return 0 };
    let error = Text::lossy(&dependency_failed_message(&name));
    let mut reached = dependents_of(tx, run, culprit);
    while let Some(index) = reached.pop() {
        let Some(Task { id, status, .. }) = tx.state.task_at(run, index).map(|row| &row.task) else {
            continue;
        };
        // The dependents of an ended task were failed with it.
        if status.is_terminal() {
            continue;
        }
        let id = *id;
        failed += 1;
        let error = error.clone();
        tx.edit_task(id, |TaskRow { task, .. }| {
            task.status = TaskStatus::Failed;
            task.error = Some(error);
            task.finished_at = Some(now);
            (task.ready_at, task.retry_at) = (None, None);
        });
        reached.extend(dependents_of(tx, run, index));
    }
    failed
}
