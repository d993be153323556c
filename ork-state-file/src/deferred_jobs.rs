use async_trait::async_trait;
use ork_state_api::backend::{DeferredEnd, cannot_defer, deferred_end};
use ork_state_api::{
    ClaimJobs, ClaimedJob, DeferTask, DeferredJob, DeferredJobStore, JobChange, JobId, JobStatus, JobUpdate,
    JobUpdates, Result, TaskId, TaskStatus, Token, UpdateOutcome, UpdateReport,
};

use crate::change::{Change, NewJob};
use crate::database::FileDatabase;
use crate::state::JobRow;
use crate::transaction::Transaction;
use crate::updates::{fail_attempt, holds, settle, succeed};

#[async_trait]
impl DeferredJobStore for FileDatabase {
    async fn defer_task(&self, defer: DeferTask) -> Result<Vec<DeferredJob>> {
        self.write(move |tx| defer_task(tx, &defer)).await
    }

    async fn claim_jobs(&self, claim: ClaimJobs) -> Result<Vec<ClaimedJob>> {
        self.write(move |tx| {
            let due = tx.state.polls.iter().take_while(|(poll_at, _)| *poll_at <= tx.now);
            let due: Vec<JobId> = due.take(claim.limit.get()).map(|(_, id)| *id).collect();
            Ok(due.into_iter().filter_map(|id| claim_job(tx, id, &claim)).collect())
        })
        .await
    }

    async fn update_jobs(&self, updates: JobUpdates) -> Result<UpdateReport<JobStatus>> {
        self.write(move |tx| update_jobs(tx, &updates)).await
    }

    async fn list_jobs(&self, task: TaskId) -> Result<Vec<DeferredJob>> {
        self.read(move |state, _| {
            let jobs = state.task(task)?.jobs.iter().filter_map(|id| state.job(*id));
            Ok(jobs.map(|row| row.job.clone()).collect())
        })
        .await
    }
}

fn defer_task(tx: &mut Transaction<'_>, defer: &DeferTask) -> Result<Vec<DeferredJob>> {
    let (claim, now) = (defer.claim(), tx.now);
    if !holds(tx, claim) {
        return Err(cannot_defer(claim.task, tx.state.find_task(claim.task).map(|row| row.task.status)));
    }
    let run = tx.state.task(claim.task)?.task.run;
    let jobs: Vec<DeferredJob> = (0..)
        .zip(defer.jobs())
        .map(|(index, new)| DeferredJob::new(new, claim.task, run, index, now))
        .collect();
    let open_jobs = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
    tx.edit_task(claim.task, |row| {
        row.task.status = TaskStatus::Running;
        row.task.started_at.get_or_insert(now);
        (row.task.lease, row.task.open_jobs) = (None, open_jobs);
    });
    let new = jobs.iter().map(|job| NewJob { job: job.clone(), token: Token::from_stored(0) });
    tx.apply(Change::Jobs(new.collect()))?;
    Ok(jobs)
}

fn claim_job(tx: &mut Transaction<'_>, id: JobId, claim: &ClaimJobs) -> Option<ClaimedJob> {
    let now = tx.now;
    tx.edit_job(id, |row| {
        row.token = Token::from_stored(row.token.get() + 1);
        row.job.status = JobStatus::Polling;
        row.job.owner = Some(claim.owner.clone());
        row.job.poll_at = Some(now.saturating_add(claim.lease.get()));
        row.job.started_at.get_or_insert(now);
    });
    let row = tx.state.job(id)?;
    Some(ClaimedJob::new(row.job.clone(), row.token))
}

fn update_jobs(tx: &mut Transaction<'_>, updates: &JobUpdates) -> Result<UpdateReport<JobStatus>> {
    let mut ended = Vec::new();
    let outcomes =
        updates.items().iter().map(|update| update_job(tx, update, &mut ended)).collect::<Result<_>>();
    Ok(UpdateReport::new(outcomes?, settle(tx, &ended)))
}

/// Applies one item. If this ends a task, the task is added to `ended` and settled with the others
/// of the batch.
fn update_job(
    tx: &mut Transaction<'_>,
    update: &JobUpdate,
    ended: &mut Vec<TaskId>,
) -> Result<UpdateOutcome<JobStatus>> {
    let (id, now) = (update.claim.job, tx.now);
    let Some(JobRow { job, token }) = tx.state.job(id) else { return Ok(UpdateOutcome::NotFound) };
    if job.status.is_terminal() {
        return Ok(UpdateOutcome::AlreadyTerminal { status: job.status });
    }
    let is_live = job.owner.is_some() && job.poll_at.is_some_and(|expires_at| now < expires_at);
    if *token != update.claim.token || !is_live {
        return Ok(UpdateOutcome::LeaseLost);
    }
    let task = job.task;
    let status = match &update.change {
        JobChange::Polled { .. } => JobStatus::Polling,
        JobChange::Completed { .. } => JobStatus::Completed,
        JobChange::Failed { .. } => JobStatus::Failed,
    };
    tx.edit_job(id, |JobRow { job, .. }| {
        job.status = status;
        job.last_polled_at = Some(now);
        (job.owner, job.poll_at) = (None, None);
        match &update.change {
            JobChange::Polled { next_after } => job.poll_at = Some(now.saturating_add(next_after.get())),
            JobChange::Completed { output } => job.output.clone_from(output),
            JobChange::Failed { error } => job.error = Some(error.clone()),
        }
        job.finished_at = status.is_terminal().then_some(now);
    });
    if status.is_terminal() {
        end_job(tx, task, ended)?;
    }
    Ok(UpdateOutcome::Applied { status })
}

/// One job less to wait for. The last one ends the task's attempt.
fn end_job(tx: &mut Transaction<'_>, id: TaskId, ended: &mut Vec<TaskId>) -> Result<()> {
    tx.edit_task(id, |row| row.task.open_jobs = row.task.open_jobs.saturating_sub(1));
    let row = tx.state.task(id)?;
    if row.task.open_jobs > 0 {
        return Ok(());
    }
    // A task keeps the jobs of all its deferrals. Those of the latest begin at the last job with
    // index 0.
    let jobs: Vec<&DeferredJob> = row.jobs.iter().filter_map(|id| Some(&tx.state.job(*id)?.job)).collect();
    let first = jobs.iter().rposition(|job| job.index == 0).unwrap_or(0);
    match deferred_end(&jobs[first..]) {
        DeferredEnd::Succeeded { output } => {
            let now = tx.now;
            if output.is_some() {
                tx.apply(Change::Output { task: id, output })?;
            }
            tx.edit_task(id, |row| succeed(&mut row.task, now));
            ended.push(id);
        }
        DeferredEnd::Failed { error } => {
            if fail_attempt(tx, id, |_| error).is_some_and(TaskStatus::is_terminal) {
                ended.push(id);
            }
        }
    }
    Ok(())
}
