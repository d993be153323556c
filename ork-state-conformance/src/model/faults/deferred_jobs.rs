//! D1 and D2.

use ork_state_api::{
    DeferredJob, Entity, Error, JobChange, JobId, JobStatus, JobUpdates, Json, Limit, RunId, RunStatus,
    TaskId, TaskStatus, Text, UpdateOutcome,
};

use super::super::{Answer, Call, JobRow, Model, Turn};
use super::Fault;
use super::shapes::{after, before, edit_each, never, next, with_retries, with_token};
use crate::Rule::{D1, D2};

pub(super) const FAULTS: &[Fault] = &[
    // D1
    after! { D1, "first-job-ends-task", "ends a task with the first of its jobs",
        |turn, Answer::UpdateJobs(Ok(_))| end_alone(turn, JobStatus::Completed)
    },
    after! { D1, "failed-job-ends-task", "fails a task with the first job that fails",
        |turn, Answer::UpdateJobs(Ok(_))| end_alone(turn, JobStatus::Failed)
    },
    before! { D1, "failed-job-forgotten", "has a task succeed of whose jobs one has failed",
    |turn, Call::UpdateJobs { updates }| {
        let ending = ids_of(updates);
        for JobRow { job, .. } in turn.model.jobs.iter_mut().filter(|row| !ending.contains(&row.job.id)) {
            if job.status == JobStatus::Failed {
                job.status = JobStatus::Completed;
            }
        }
    }},
    before! { D1, "job-for-everybody", "gives a job to everybody who asks",
        |turn, Call::ClaimJobs { .. }| return turn.model.clone().answer(turn.now, turn.call.clone(), None)
    },
    after! { D1, "poll-checked-before", "looks which jobs are due, and takes them a moment later",
        |turn, old, Answer::ClaimJobs(Ok(_))| postpone_jobs(turn, old)
    },
    before! { D1, "poller-for-ever", "leaves a job to a poller that has died",
    |turn, Call::ClaimJobs { .. }| {
        for JobRow { job, .. } in turn.model.jobs.iter_mut().filter(|row| row.job.owner.is_some()) {
            job.poll_at = job.poll_at.map(|at| if at <= turn.now { never(turn.now) } else { at });
        }
    }},
    after! { D1, "polled-once", "does not poll a job again",
    |turn, Call::UpdateJobs { updates }, Answer::UpdateJobs(Ok(_))| {
        for update in updates.items() {
            if let JobChange::Polled { .. } = update.change {
                edit_job(turn.model, update.claim.job, |row| row.job.poll_at = None);
            }
        }
    }},
    before! { D1, "polled-at-once", "polls a job before its time", |turn, Call::ClaimJobs { .. }| {
        for JobRow { job, .. } in turn.model.jobs.iter_mut().filter(|row| row.job.owner.is_none()) {
            job.poll_at = job.poll_at.map(|at| at.min(turn.now));
        }
    }},
    after! { D1, "newest-job-first", "polls the job that is due last first",
        |turn, Answer::ClaimJobs(Ok(claimed))| claimed.reverse()
    },
    before! { D1, "job-end-not-final", "takes another end of a job that has ended",
    |turn, Call::UpdateJobs { updates }| {
        for update in updates.items() {
            let status = match update.change {
                JobChange::Completed { .. } => JobStatus::Completed,
                JobChange::Failed { .. } => JobStatus::Failed,
                JobChange::Polled { .. } => continue,
            };
            edit_job(turn.model, update.claim.job, |row| {
                if row.job.status.is_terminal() {
                    (row.job.status, row.job.finished_at) = (status, Some(turn.now));
                }
            });
        }
    }},
    before! { D1, "stale-poller", "takes what a poller says whose lease has lapsed",
    |turn, Call::UpdateJobs { updates }| {
        for update in updates.items() {
            edit_job(turn.model, update.claim.job, |row| {
                row.token = update.claim.token.get();
                if row.job.owner.is_some() {
                    row.job.poll_at = row.job.poll_at.map(|at| at.max(next(turn.now)));
                }
            });
        }
    }},
    Fault::new(D1, "paused-not-polled", "does not poll the jobs of a paused run", |turn| {
        let Call::ClaimJobs { .. } = turn.call else { return turn.honest() };
        let is_paused =
            |id: &RunId| turn.model.runs.get(id).is_some_and(|run| run.status == RunStatus::Paused);
        let jobs = turn.model.jobs.iter_mut().map(|row| &mut row.job);
        let right: Vec<_> =
            jobs.filter(|job| is_paused(&job.run)).map(|job| (job.id, job.poll_at.take())).collect();
        let answer = turn.honest();
        for (id, at) in right {
            edit_job(turn.model, id, |row| row.job.poll_at = at);
        }
        answer
    }),
    after! { D1, "deferred-with-lease", "has the lease of a deferred task lapse",
    |turn, old, Call::DeferTask { defer }, Answer::DeferTask(Ok(_))| {
        let task = defer.claim().task;
        let lease = old.row(task).ok().and_then(|row| row.detail.task.lease.clone());
        turn.model.edit_task(task, |row| row.detail.task.lease = lease);
    }},
    before! { D1, "anybody-defers", "defers a task by any token",
        |turn, Call::DeferTask { defer }| with_token(turn.model, defer.claim())
    },
    after! { D1, "output-not-passed", "does not give a task the output of its job",
    |turn, Call::UpdateJobs { updates }, Answer::UpdateJobs(Ok(_))| {
        let tasks = tasks_of_jobs(turn.model, updates);
        edit_each(turn.model, &tasks, |row| row.detail.output = None);
    }},
    after! { D1, "job-output-null", "has a job without output put out null",
    |turn, Call::UpdateJobs { updates }, Answer::UpdateJobs(Ok(_))| {
        let tasks = tasks_of_jobs(turn.model, updates);
        edit_each(turn.model, &tasks, |row| {
            if row.detail.task.status == TaskStatus::Success {
                row.detail.output.get_or_insert_with(Json::null);
            }
        });
    }},
    after! { D1, "job-data-rewritten", "keeps what a job is known by as values",
    |turn, Answer::ListJobs(Ok(jobs))| {
        for job in jobs {
            let value = job.job_data.to::<serde_json::Value>();
            if let Ok(rewritten) = value.and_then(|value| Json::from_value(&value)) {
                job.job_data = rewritten;
            }
        }
    }},
    before! { D1, "jobs-failure-is-final", "does not try again a task whose job failed",
        |turn, Call::UpdateJobs { .. }| return with_retries(turn, |_| 0)
    },
    after! { D1, "unknown-job-stops-batch", "applies nothing of a batch with an unknown job in it",
    |turn, old, Answer::UpdateJobs(report)| {
        if report.as_ref().is_ok_and(|report| report.outcomes.contains(&UpdateOutcome::NotFound)) {
            turn.model.clone_from(old);
            *report = Err(Error::not_found(Entity::DeferredJob, "of the batch"));
        }
    }},
    after! { D1, "two-pollers-end-nothing", "leaves a task waiting whose last two jobs end at once",
        |turn, old, Answer::UpdateJobs(Ok(_))| postpone_jobs(turn, old)
    },
    before! { D1, "job-limit-ignored", "gives a poller all jobs that are due",
        |turn, Call::ClaimJobs { claim }| claim.limit = Limit::MAX
    },
    after! { D1, "jobs-run-not-ended", "leaves a run going whose last task ends with a job",
    |turn, Answer::UpdateJobs(Ok(report))| {
        for ended in &report.ended_runs {
            turn.model.edit_run(ended.run, |run| {
                (run.status, run.finished_at) = (RunStatus::Running, None);
            });
        }
    }},
    // D2
    after! { D2, "jobs-outlive-cancel", "leaves the jobs of a cancelled run",
        |turn, old, Answer::CancelRun(Ok(_))| turn.model.jobs.clone_from(&old.jobs)
    },
    after! { D2, "jobs-outlive-timeout", "leaves the jobs of an attempt that has timed out",
        |turn, old, Answer::ExpireTimeouts(Ok(_))| turn.model.jobs.clone_from(&old.jobs)
    },
    before! { D2, "cancelled-job-revives", "has a job that ends late revive a cancelled task",
    |turn, Call::UpdateJobs { updates }| {
        for id in completed_of(updates) {
            let job = turn.model.jobs.iter().map(|row| &row.job).find(|job| job.id == id);
            if let Some(task) = job.filter(|job| job.status == JobStatus::Cancelled).map(|job| job.task) {
                turn.model.edit_task(task, |row| {
                    if row.detail.task.status == TaskStatus::Cancelled {
                        row.detail.task.status = TaskStatus::Success;
                    }
                });
            }
        }
    }},
    before! { D2, "cancelled-job-completes", "has a cancelled job complete",
    |turn, Call::UpdateJobs { updates }| {
        for id in completed_of(updates) {
            edit_job(turn.model, id, |row| {
                if row.job.status == JobStatus::Cancelled {
                    row.job.status = JobStatus::Completed;
                }
            });
        }
    }},
    after! { D2, "retry-with-old-jobs", "has a retried task wait for its old jobs",
    |turn, Answer::RetryRun(Ok(run))| {
        for JobRow { job, .. } in turn.model.jobs.iter_mut().filter(|row| row.job.run == run.id) {
            (job.status, job.poll_at, job.finished_at) = (JobStatus::Pending, Some(turn.now), None);
        }
    }},
    after! { D2, "cancel-before-jobs", "cancels a run a moment before its jobs",
    |turn, old, Answer::CancelRun(Ok(_))| {
        let jobs = std::mem::replace(&mut turn.model.jobs, old.jobs.clone());
        turn.later(move |model| model.jobs = jobs);
    }},
];

fn edit_job(model: &mut Model, id: JobId, edit: impl FnOnce(&mut JobRow)) {
    if let Some(row) = model.jobs.iter_mut().find(|row| row.job.id == id) {
        edit(row);
    }
}

fn ids_of(updates: &JobUpdates) -> Vec<JobId> {
    updates.items().iter().map(|update| update.claim.job).collect()
}

/// The jobs that a poller reports as completed.
fn completed_of(updates: &JobUpdates) -> impl Iterator<Item = JobId> {
    let completed = updates.items().iter().filter(|it| matches!(it.change, JobChange::Completed { .. }));
    completed.map(|update| update.claim.job)
}

fn tasks_of_jobs(model: &Model, updates: &JobUpdates) -> Vec<TaskId> {
    let ids = ids_of(updates);
    model.jobs.iter().map(|row| &row.job).filter(|job| ids.contains(&job.id)).map(|job| job.task).collect()
}

/// Delays the job changes of a call by a moment.
fn postpone_jobs(turn: &mut Turn<'_>, old: &Model) {
    let rows = turn.model.jobs.iter_mut().zip(&old.jobs).filter(|(new, old)| new.job != old.job);
    let changed: Vec<JobRow> = rows.map(|(new, old)| std::mem::replace(new, old.clone())).collect();
    for new in changed {
        turn.later(move |model| edit_job(model, new.job.id, |row| *row = new));
    }
}

/// Makes each of these jobs that ended in this way end its task, whatever other jobs do.
fn end_alone(turn: &mut Turn<'_>, status: JobStatus) {
    let Call::UpdateJobs { updates } = &turn.call else { return };
    let ids = ids_of(updates);
    let jobs = turn.model.jobs.iter().map(|row| &row.job);
    let ended: Vec<DeferredJob> =
        jobs.filter(|job| ids.contains(&job.id) && job.status == status).cloned().collect();
    for job in ended {
        if turn.model.row(job.task).is_ok_and(|row| row.detail.task.status == TaskStatus::Running) {
            if status == JobStatus::Failed {
                let error = job.error.unwrap_or_else(|| Text::lossy(""));
                turn.model.fail_unreported(turn.now, job.task, error);
            } else {
                turn.model.succeed(turn.now, job.task, job.output);
            }
            turn.model.settle(turn.now, &[job.task]);
        }
    }
}
