//! T5.

use std::collections::BTreeSet;

use ork_state_api::{TaskChange, TaskId, TaskStatus, Text};

use super::super::runs::failed_because;
use super::super::{Answer, Call, Model, TaskRow, Turn};
use super::Fault;
use super::shapes::{after, before, changed, edit_each, put, tasks_of, updated, whole, with_retries};
use crate::Rule::T5;

pub(super) const FAULTS: &[Fault] = &[
    after! { T5, "one-dependent-forgotten", "fails all that depends on a failed task but one",
    |turn, old, Answer::UpdateTasks(Ok(_))| {
        if let Some((old, _)) = cascade(old, turn).pop() {
            put(turn.model, old);
        }
    }},
    after! { T5, "one-step-of-cascade", "fails what depends on a failed task directly, and no further",
    |turn, old, Answer::UpdateTasks(Ok(_))| {
        let fallen = cascade(old, turn);
        let is_fallen = |id| fallen.iter().any(|(old, _)| old.detail.task.id == id);
        let has_failed =
            |id| turn.model.row(id).is_ok_and(|row| row.detail.task.status == TaskStatus::Failed);
        let is_indirect = |row: &&TaskRow| {
            let rows = old.rows(row.detail.task.run);
            let mut dependencies = row.dependencies.iter().map(|&it| rows[it].detail.task.id);
            !dependencies.any(|id| !is_fallen(id) && has_failed(id))
        };
        let kept: Vec<TaskRow> = fallen.iter().map(|(old, _)| old).filter(is_indirect).cloned().collect();
        kept.into_iter().for_each(|row| put(turn.model, row));
    }},
    after! { T5, "culprit-not-named", "does not say which task is to blame",
    |turn, old, Answer::UpdateTasks(Ok(_))| {
        let fallen = cascade(old, turn);
        edit_each(turn.model, fallen.iter().map(|(_, new)| &new.detail.task.id), |row| {
            row.detail.task.error = Some(Text::lossy("dependency failed"));
        });
    }},
    after! { T5, "last-culprit", "blames the last of several failures for the run",
    |turn, Call::UpdateTasks { updates }, _| {
        let is_failure = |end: &TaskChange| matches!(end, TaskChange::Failed { .. });
        if let Some(step) = updates.steps().iter().rfind(|step| step.end.as_ref().is_some_and(is_failure))
            && let Ok(row) = turn.model.row(step.claim.task)
            && row.detail.task.status == TaskStatus::Failed
        {
            let (run, error) = (row.detail.task.run, failed_because(&row.detail.task.name));
            turn.model.edit_run(run, |run| run.error = Some(error));
        }
    }},
    before! { T5, "one-attempt-less", "tries a task as often as it may be retried",
        |turn, Call::UpdateTasks { .. }| return with_retries(turn, |task| task.max_retries.saturating_sub(1))
    },
    before! { T5, "retries-without-end", "tries a task again as often as it fails",
        |turn, Call::UpdateTasks { .. }| return with_retries(turn, |task| task.attempts + 1)
    },
    Fault::new(T5, "retry-by-the-second", "cuts retry times to whole seconds", |turn| {
        updated(turn, |_, new| {
            if let Some(at) = new.detail.task.retry_at {
                new.detail.task.retry_at = Some(whole(at, 1_000_000));
                new.ready_since = whole(at, 1_000_000);
            }
        })
    }),
    after! { T5, "retry-without-delay", "tries again at once", |turn, Answer::UpdateTasks(Ok(_))| {
        let now = turn.now;
        for row in tasks_of(turn.model).filter(|row| row.detail.task.retry_at.is_some_and(|at| at > now)) {
            (row.ready_since, row.detail.task.retry_at) = (now, Some(now));
        }
    }},
    after! { T5, "final-is-retried", "tries again what has failed for good",
    |turn, old, Call::UpdateTasks { updates }, _| {
        let is_final = |end: &TaskChange| matches!(end, TaskChange::Failed { retry_after: None, .. });
        for step in updates.steps().iter().filter(|step| step.end.as_ref().is_some_and(is_final)) {
            let id = step.claim.task;
            let task = turn.model.row(id).map(|row| &row.detail.task);
            if task.is_ok_and(|task| task.attempts <= task.max_retries)
                && let Ok(before) = old.row(id)
            {
                let run = before.detail.task.run;
                turn.model.tasks.insert(run, old.rows(run).to_vec());
                turn.model.runs.extend(old.runs.get(&run).map(|live| (run, live.clone())));
                turn.model.edit_task(id, |row| {
                    (row.detail.task.status, row.detail.task.lease) = (TaskStatus::Pending, None);
                });
            }
        }
    }},
    after! { T5, "failure-in-all-runs",
        "fails the tasks of other runs along that have the name of a failed one",
    |turn, old, Answer::UpdateTasks(Ok(_))| {
        let names: BTreeSet<_> =
            cascade(old, turn).into_iter().map(|(_, new)| new.detail.task.name).collect();
        for task in tasks_of(turn.model).map(|row| &mut row.detail.task) {
            if names.contains(&task.name) && !task.status.is_terminal() {
                task.status = TaskStatus::Failed;
            }
        }
    }},
    Fault::new(T5, "failure-with-lease", "leaves the lease with a failed attempt", |turn| {
        updated(turn, |old, new| new.detail.task.lease.clone_from(&old.detail.task.lease))
    }),
];

/// The tasks that failed because of a call's failures, each before and after.
fn cascade(old: &Model, turn: &Turn<'_>) -> Vec<(TaskRow, TaskRow)> {
    let Call::UpdateTasks { updates } = &turn.call else { return vec![] };
    let reported: BTreeSet<TaskId> = updates.steps().iter().map(|step| step.claim.task).collect();
    let mut fallen = changed(old, turn.model);
    fallen.retain(|(_, new)| {
        new.detail.task.status == TaskStatus::Failed && !reported.contains(&new.detail.task.id)
    });
    fallen
}
