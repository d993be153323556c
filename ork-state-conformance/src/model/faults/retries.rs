//! R6.

use ork_state_api::{ErrorKind, RetryRun, RunId, RunStatus, TaskStatus};

use super::super::{Answer, Call, Model, TaskRow};
use super::Fault;
use super::runs::set_status;
use super::shapes::{after, before, put, tasks_of_run};
use crate::Rule::R6;

pub(super) const FAULTS: &[Fault] = &[
    before! { R6, "successes-again", "does successes again",
    |turn, Call::RetryRun { retry: RetryRun { run, tasks: tasks @ None, .. } }| {
        *tasks = Some(turn.model.rows(*run).iter().map(|row| row.detail.task.name.clone()).collect());
    }},
    after! { R6, "without-what-follows", "does named tasks again and not what follows them",
    |turn, old, Call::RetryRun { retry: RetryRun { run, tasks: Some(names), .. } }, Answer::RetryRun(Ok(_))| {
        for row in old.rows(*run).iter().filter(|row| !names.contains(&row.detail.task.name)) {
            put(turn.model, row.clone());
        }
    }},
    after! { R6, "attempts-stay", "counts the attempts of a retried task on",
    |turn, old, Answer::RetryRun(Ok(run))| {
        retried(turn.model, old, run.id, |old, new| new.detail.task.attempts = old.detail.task.attempts);
    }},
    after! { R6, "errors-stay", "keeps the error of a retried task", |turn, old, Answer::RetryRun(Ok(run))| {
        retried(turn.model, old, run.id, |old, new| new.detail.task.error.clone_from(&old.detail.task.error));
    }},
    after! { R6, "outputs-stay", "keeps the output of a task that is done again",
    |turn, old, Answer::RetryRun(Ok(run))| {
        retried(turn.model, old, run.id, |old, new| new.detail.output.clone_from(&old.detail.output));
    }},
    after! { R6, "logs-go", "empties the log of a retried task", |turn, old, Answer::RetryRun(Ok(run))| {
        retried(turn.model, old, run.id, |old, new| {
            if old.detail.task.status != new.detail.task.status {
                new.log.clear();
            }
        });
    }},
    after! { R6, "cancelled-stay", "does not do cancelled tasks again",
    |turn, old, Answer::RetryRun(Ok(run))| {
        retried(turn.model, old, run.id, |old, new| {
            if old.detail.task.status == TaskStatus::Cancelled {
                new.clone_from(old);
            }
        });
    }},
    after! { R6, "retry-with-old-end", "keeps the end of a run that is live again",
    |turn, old, Answer::RetryRun(Ok(run))| {
        if let Some(old) = old.runs.get(&run.id) {
            turn.model.edit_run(run.id, |run| {
                (run.finished_at, run.error) = (old.finished_at, old.error.clone());
            });
        }
    }},
    before! { R6, "live-retried", "retries a run that has not ended", |turn, Call::RetryRun { retry }| {
        set_status(turn.model, retry.run, RunStatus::Running, RunStatus::Failed);
    }},
    after! { R6, "nothing-retried", "sets a run going that has nothing to do again",
    |turn, Call::RetryRun { retry: RetryRun { run, tasks: None, .. } }, Answer::RetryRun(retried @ Err(_))| {
        if let Ok(run) = turn.model.get_run(*run)
            && run.status == RunStatus::Success
        {
            *retried = Ok(run);
        }
    }},
    before! { R6, "unknown-names-ignored", "retries what it knows of several named tasks",
    |turn, Call::RetryRun { retry: RetryRun { run, tasks: Some(names), .. } }| {
        let rows = turn.model.rows(*run);
        names.retain(|name| rows.iter().any(|row| row.detail.task.name == *name));
    }},
    after! { R6, "retry-checked-before", "looks whether a run has ended, and retries it a moment later",
    |turn, old, Call::RetryRun { retry }, Answer::RetryRun(Ok(_))| {
        let (retry, now) = (retry.clone(), turn.now);
        *turn.model = old.clone();
        turn.later(move |model| {
            model.retry_run(now, &retry).ok();
            model.edit_run(retry.run, |run| run.status = RunStatus::Running);
        });
    }},
    after! { R6, "behind-a-failure", "does a task again though what it depends on has failed",
    |turn, Call::RetryRun { retry }, Answer::RetryRun(retried)| {
        if retried.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Conflict { .. })) {
            *retried = turn.model.get_run(retry.run);
        }
    }},
];

/// Changes each task of a retried run, given the task before and after the retry.
fn retried(model: &mut Model, old: &Model, run: RunId, change: fn(&TaskRow, &mut TaskRow)) {
    for (old, new) in old.rows(run).iter().zip(tasks_of_run(model, run)) {
        change(old, new);
    }
}
