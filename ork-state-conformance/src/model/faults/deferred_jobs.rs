//! D1 and D2.

use std::time::Duration;

use ork_state_api::{
    DeferredJob, JobChange, JobStatus, Json, Limit, TaskId, TaskStatus, Timestamp, UpdateOutcome,
};

use super::super::{Answer, Call, JobRow, Turn};
use super::{Fault, tasks_of};
use crate::Rule::{D1, D2};

pub(super) const FAULTS: &[Fault] = &[
    // D1
    Fault::new(D1, "first-job-ends-task", "ends a task with the first of its jobs", |turn| {
        ended_alone(turn, |status| status == JobStatus::Completed)
    }),
    Fault::new(D1, "failed-job-ends-task", "fails a task with the first job that fails", |turn| {
        ended_alone(turn, |status| status == JobStatus::Failed)
    }),
    Fault::new(D1, "failed-job-forgotten", "has a task succeed of whose jobs one has failed", |turn| {
        if let Call::UpdateJobs { updates } = turn.call.clone() {
            let ending: Vec<_> = updates.items().iter().map(|update| update.claim.job).collect();
            for row in turn.model.jobs.iter_mut().filter(|row| !ending.contains(&row.job.id)) {
                if row.job.status == JobStatus::Failed {
                    row.job.status = JobStatus::Completed;
                }
            }
        }
        turn.honest()
    }),
    Fault::new(D1, "job-for-everybody", "gives a job to everybody who asks", |turn| match turn.call {
        Call::ClaimJobs { .. } => turn.model.clone().answer(turn.now, turn.call.clone(), None),
        _ => turn.honest(),
    }),
    Fault::new(
        D1,
        "poll-checked-before",
        "looks which jobs are due, and takes them a moment later",
        |turn| {
            let before = turn.model.jobs.clone();
            let answer = turn.honest();
            if let Answer::ClaimJobs(Ok(claimed)) = &answer {
                for claim in claimed {
                    let id = claim.job.id;
                    let old = before.iter().find(|row| row.job.id == id).cloned();
                    let new = turn.model.jobs.iter().find(|row| row.job.id == id).cloned();
                    place(&mut turn.model.jobs, old);
                    turn.later(move |model| place(&mut model.jobs, new));
                }
            }
            answer
        },
    ),
    Fault::new(D1, "poller-for-ever", "leaves a job to a poller that has died", |turn| {
        let Call::ClaimJobs { .. } = turn.call else { return turn.honest() };
        let now = turn.now;
        let never = now.saturating_add(Duration::from_secs(1_000_000_000));
        for row in turn.model.jobs.iter_mut().filter(|row| row.job.owner.is_some()) {
            row.job.poll_at = row.job.poll_at.map(|at| if at <= now { never } else { at });
        }
        turn.honest()
    }),
    Fault::new(D1, "polled-once", "does not poll a job again", |turn| {
        let answer = turn.honest();
        if let (Call::UpdateJobs { updates }, Answer::UpdateJobs(Ok(_))) = (turn.call.clone(), &answer) {
            for update in updates.items() {
                if matches!(update.change, JobChange::Polled { .. }) {
                    let jobs = turn.model.jobs.iter_mut().filter(|row| row.job.id == update.claim.job);
                    jobs.for_each(|row| row.job.poll_at = None);
                }
            }
        }
        answer
    }),
    Fault::new(D1, "polled-at-once", "polls a job before its time", |turn| {
        if let Call::ClaimJobs { .. } = turn.call {
            let now = turn.now;
            for row in turn.model.jobs.iter_mut().filter(|row| row.job.owner.is_none()) {
                row.job.poll_at = row.job.poll_at.map(|at| at.min(now));
            }
        }
        turn.honest()
    }),
    Fault::new(D1, "newest-job-first", "polls the job that is due last first", |turn| match turn.honest() {
        Answer::ClaimJobs(Ok(mut claimed)) => {
            claimed.reverse();
            Answer::ClaimJobs(Ok(claimed))
        }
        answer => answer,
    }),
    Fault::new(D1, "job-end-not-final", "takes another end of a job that has ended", |turn| {
        let Call::UpdateJobs { updates } = turn.call.clone() else { return turn.honest() };
        let now = turn.now;
        for update in updates.items() {
            let status = match update.change {
                JobChange::Completed { .. } => JobStatus::Completed,
                JobChange::Failed { .. } => JobStatus::Failed,
                JobChange::Polled { .. } => continue,
            };
            for row in turn.model.jobs.iter_mut().filter(|row| row.job.id == update.claim.job) {
                if row.job.status.is_terminal() {
                    (row.job.status, row.job.finished_at) = (status, Some(now));
                }
            }
        }
        turn.honest()
    }),
    Fault::new(D1, "stale-poller", "takes what a poller says whose lease has lapsed", |turn| {
        if let Call::UpdateJobs { updates } = turn.call.clone() {
            let next = turn.now.saturating_add(Duration::from_micros(1));
            for update in updates.items() {
                for row in turn.model.jobs.iter_mut().filter(|row| row.job.id == update.claim.job) {
                    row.token = update.claim.token.get();
                    if row.job.owner.is_some() {
                        row.job.poll_at = row.job.poll_at.map(|at| at.max(next));
                    }
                }
            }
        }
        turn.honest()
    }),
    Fault::new(D1, "paused-not-polled", "does not poll the jobs of a paused run", |turn| {
        let Call::ClaimJobs { .. } = turn.call else { return turn.honest() };
        let paused: Vec<_> = turn
            .model
            .runs
            .values()
            .filter(|run| run.status == ork_state_api::RunStatus::Paused)
            .map(|run| run.id)
            .collect();
        let before: Vec<(ork_state_api::JobId, Option<Timestamp>)> = turn
            .model
            .jobs
            .iter_mut()
            .filter(|row| paused.contains(&row.job.run))
            .map(|row| (row.job.id, row.job.poll_at.take()))
            .collect();
        let answer = turn.honest();
        for (id, at) in before {
            turn.model.jobs.iter_mut().filter(|row| row.job.id == id).for_each(|row| row.job.poll_at = at);
        }
        answer
    }),
    Fault::new(D1, "deferred-with-lease", "has the lease of a deferred task lapse", |turn| {
        let Call::DeferTask { defer } = turn.call.clone() else { return turn.honest() };
        let lease = turn.model.row(defer.claim().task).ok().and_then(|row| row.detail.task.lease.clone());
        let answer = turn.honest();
        if let Answer::DeferTask(Ok(_)) = &answer {
            turn.model.edit_task(defer.claim().task, |row| row.detail.task.lease = lease);
        }
        answer
    }),
    Fault::new(D1, "anybody-defers", "defers a task by any token", |turn| {
        if let Call::DeferTask { defer } = turn.call.clone() {
            turn.model.edit_task(defer.claim().task, |row| {
                if let Some(lease) = &mut row.detail.task.lease {
                    lease.token = defer.claim().token;
                }
            });
        }
        turn.honest()
    }),
    Fault::new(D1, "output-not-passed", "does not give a task the output of its job", |turn| {
        let answer = turn.honest();
        if let (Call::UpdateJobs { updates }, Answer::UpdateJobs(Ok(_))) = (turn.call.clone(), &answer) {
            for task in tasks_of_jobs(turn, &updates) {
                turn.model.edit_task(task, |row| row.detail.output = None);
            }
        }
        answer
    }),
    Fault::new(D1, "job-output-null", "has a job without output put out null", |turn| {
        let answer = turn.honest();
        if let (Call::UpdateJobs { updates }, Answer::UpdateJobs(Ok(_))) = (turn.call.clone(), &answer) {
            for task in tasks_of_jobs(turn, &updates) {
                turn.model.edit_task(task, |row| {
                    if row.detail.task.status == TaskStatus::Success {
                        row.detail.output.get_or_insert_with(Json::null);
                    }
                });
            }
        }
        answer
    }),
    Fault::new(D1, "job-data-rewritten", "keeps what a job is known by as values", |turn| {
        let mut answer = turn.honest();
        if let Answer::ListJobs(Ok(jobs)) = &mut answer {
            for job in jobs {
                let value: Option<serde_json::Value> = job.job_data.to().ok();
                job.job_data =
                    value.and_then(|it| Json::from_value(&it).ok()).unwrap_or(job.job_data.clone());
            }
        }
        answer
    }),
    Fault::new(D1, "jobs-failure-is-final", "does not try again a task whose job failed", |turn| {
        let Call::UpdateJobs { .. } = turn.call else { return turn.honest() };
        let max: Vec<(TaskId, u32)> =
            tasks_of(turn.model).map(|row| (row.detail.task.id, row.detail.task.max_retries)).collect();
        for row in tasks_of(turn.model) {
            row.detail.task.max_retries = 0;
        }
        let answer = turn.honest();
        for (id, max) in max {
            turn.model.edit_task(id, |row| row.detail.task.max_retries = max);
        }
        answer
    }),
    Fault::new(
        D1,
        "unknown-job-stops-batch",
        "applies nothing of a batch with an unknown job in it",
        |turn| {
            let before = turn.model.clone();
            match turn.honest() {
                Answer::UpdateJobs(Ok(report)) if report.outcomes.contains(&UpdateOutcome::NotFound) => {
                    *turn.model = before;
                    turn.call.fails(ork_state_api::Error::not_found(
                        ork_state_api::Entity::DeferredJob,
                        "of the batch",
                    ))
                }
                answer => answer,
            }
        },
    ),
    Fault::new(
        D1,
        "two-pollers-end-nothing",
        "leaves a task waiting whose last two jobs end at once",
        |turn| {
            let Call::UpdateJobs { .. } = turn.call else { return turn.honest() };
            let before = turn.model.jobs.clone();
            let answer = turn.honest();
            let after = turn.model.jobs.clone();
            for (old, new) in before.into_iter().zip(after) {
                if old.job != new.job {
                    place(&mut turn.model.jobs, Some(old));
                    turn.later(move |model| place(&mut model.jobs, Some(new)));
                }
            }
            answer
        },
    ),
    Fault::new(D1, "job-limit-ignored", "gives a poller all jobs that are due", |turn| {
        if let Call::ClaimJobs { claim } = &mut turn.call {
            claim.limit = Limit::new(Limit::MAX).unwrap_or(claim.limit);
        }
        turn.honest()
    }),
    Fault::new(D1, "jobs-run-not-ended", "leaves a run going whose last task ends with a job", |turn| {
        let answer = turn.honest();
        if let Answer::UpdateJobs(Ok(report)) = &answer {
            for ended in report.ended_runs.clone() {
                turn.model.edit_run(ended.run, |run| {
                    (run.status, run.finished_at) = (ork_state_api::RunStatus::Running, None);
                });
            }
        }
        answer
    }),
    // D2
    Fault::new(D2, "jobs-outlive-cancel", "leaves the jobs of a cancelled run", |turn| {
        with_jobs(turn, |answer| matches!(answer, Answer::CancelRun(Ok(_))))
    }),
    Fault::new(D2, "jobs-outlive-timeout", "leaves the jobs of an attempt that has timed out", |turn| {
        with_jobs(turn, |answer| matches!(answer, Answer::ExpireTimeouts(Ok(_))))
    }),
    Fault::new(D2, "cancelled-job-revives", "has a job that ends late revive a cancelled task", |turn| {
        let Call::UpdateJobs { updates } = turn.call.clone() else { return turn.honest() };
        for update in updates.items().iter().filter(|it| matches!(it.change, JobChange::Completed { .. })) {
            let of_job =
                |row: &&JobRow| row.job.id == update.claim.job && row.job.status == JobStatus::Cancelled;
            if let Some(task) = turn.model.jobs.iter().find(of_job).map(|row| row.job.task) {
                turn.model.edit_task(task, |row| {
                    if row.detail.task.status == TaskStatus::Cancelled {
                        row.detail.task.status = TaskStatus::Success;
                    }
                });
            }
        }
        turn.honest()
    }),
    Fault::new(D2, "cancelled-job-completes", "has a cancelled job complete", |turn| {
        let Call::UpdateJobs { updates } = turn.call.clone() else { return turn.honest() };
        for update in updates.items().iter().filter(|it| matches!(it.change, JobChange::Completed { .. })) {
            for row in turn.model.jobs.iter_mut().filter(|row| row.job.id == update.claim.job) {
                if row.job.status == JobStatus::Cancelled {
                    row.job.status = JobStatus::Completed;
                }
            }
        }
        turn.honest()
    }),
    Fault::new(D2, "retry-with-old-jobs", "has a retried task wait for its old jobs", |turn| {
        let answer = turn.honest();
        if let Answer::RetryRun(Ok(run)) = &answer {
            let now = turn.now;
            for row in turn.model.jobs.iter_mut().filter(|row| row.job.run == run.id) {
                (row.job.status, row.job.poll_at, row.job.finished_at) =
                    (JobStatus::Pending, Some(now), None);
            }
        }
        answer
    }),
    Fault::new(D2, "cancel-before-jobs", "cancels a run a moment before its jobs", |turn| {
        let before = turn.model.jobs.clone();
        let answer = turn.honest();
        if let Answer::CancelRun(Ok(_)) = &answer {
            let after = std::mem::replace(&mut turn.model.jobs, before);
            turn.later(move |model| model.jobs = after);
        }
        answer
    }),
];

/// Puts a job in its place.
fn place(jobs: &mut [JobRow], row: Option<JobRow>) {
    let Some(row) = row else { return };
    if let Some(place) = jobs.iter_mut().find(|it| it.job.id == row.job.id) {
        *place = row;
    }
}

fn tasks_of_jobs(turn: &Turn<'_>, updates: &ork_state_api::JobUpdates) -> Vec<TaskId> {
    let ids: Vec<_> = updates.items().iter().map(|update| update.claim.job).collect();
    turn.model.jobs.iter().filter(|row| ids.contains(&row.job.id)).map(|row| row.job.task).collect()
}

/// Applies what pollers say; a job that ends in one of these ways ends its task whatever other jobs
/// do.
fn ended_alone(turn: &mut Turn<'_>, alone: fn(JobStatus) -> bool) -> Answer {
    let Call::UpdateJobs { updates } = turn.call.clone() else { return turn.honest() };
    let answer = turn.honest();
    let ids: Vec<_> = updates.items().iter().map(|update| update.claim.job).collect();
    let ended: Vec<DeferredJob> = turn
        .model
        .jobs
        .iter()
        .map(|row| row.job.clone())
        .filter(|job| ids.contains(&job.id) && alone(job.status))
        .collect();
    for job in ended {
        if turn.model.row(job.task).is_ok_and(|row| row.detail.task.status == TaskStatus::Running) {
            if job.status == JobStatus::Failed {
                let error = job.error.clone().unwrap_or_else(|| ork_state_api::Text::lossy(""));
                turn.model.fail_unreported(turn.now, job.task, error);
            } else {
                turn.model.succeed(turn.now, job.task, job.output.clone());
            }
            turn.model.settle(turn.now, &[job.task]);
        }
    }
    answer
}

/// Makes a call and leaves the jobs as they were.
fn with_jobs(turn: &mut Turn<'_>, meant: fn(&Answer) -> bool) -> Answer {
    let before = turn.model.jobs.clone();
    let answer = turn.honest();
    if meant(&answer) {
        turn.model.jobs = before;
    }
    answer
}
