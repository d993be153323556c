//! T4.

use std::collections::BTreeSet;

use ork_state_api::{Label, Lease, TaskChange, TaskId, TaskStatus, UpdateOutcome};

use super::super::{Answer, Call, TaskRow, Turn};
use super::Fault;
use super::shapes::{after, all_live, before, change_again, changed, in_seconds, put, updated, with_token};
use crate::Rule::T4;

pub(super) const FAULTS: &[Fault] = &[
    before! { T4, "stale-token-counts", "takes an update by any token",
    |turn, Call::UpdateTasks { updates }| {
        updates.steps().iter().for_each(|step| with_token(turn.model, step.claim));
    }},
    before! { T4, "lapsed-updates", "takes an update by a lapsed lease",
        |turn, Call::UpdateTasks { .. }| all_live(turn.model, turn.now)
    },
    before! { T4, "unclaimed-updates", "takes an update of a task that nobody has claimed",
    |turn, Call::UpdateTasks { updates }| {
        for step in updates.steps() {
            turn.model.edit_task(step.claim.task, |row| {
                if row.detail.task.status == TaskStatus::Pending && row.token == 0 {
                    let (owner, until) = (Label::lossy("nobody"), in_seconds(turn.now, 1));
                    row.detail.task.lease = Some(Lease::new(owner, step.claim.token, until));
                }
            });
        }
    }},
    before! { T4, "end-not-final", "moves a task that has ended back to running",
    |turn, Call::UpdateTasks { updates }| {
        for step in updates.steps().iter().filter(|step| step.running) {
            turn.model.edit_task(step.claim.task, |row| {
                if row.detail.task.status.is_terminal() {
                    row.detail.task.status = TaskStatus::Running;
                }
            });
        }
    }},
    before! { T4, "later-end-wins", "has a later end replace the first",
    |turn, Call::UpdateTasks { updates }| {
        for step in updates.steps() {
            let status = match &step.end {
                Some(TaskChange::Succeeded { .. }) => TaskStatus::Success,
                Some(TaskChange::Failed { .. }) => TaskStatus::Failed,
                _ => continue,
            };
            turn.model.edit_task(step.claim.task, |row| {
                if row.detail.task.status.is_terminal() {
                    (row.detail.task.status, row.detail.task.finished_at) = (status, Some(turn.now));
                }
            });
        }
    }},
    after! { T4, "ended-is-lost", "says of a task that has ended that its lease is lost",
    |turn, Answer::UpdateTasks(Ok(report))| {
        for outcome in &mut report.outcomes {
            if let UpdateOutcome::AlreadyTerminal { .. } = outcome {
                *outcome = UpdateOutcome::LeaseLost;
            }
        }
    }},
    after! { T4, "back-to-dispatched", "moves a running task back to dispatched",
    |turn, Call::UpdateTasks { updates }, _| {
        for step in updates.steps().iter().filter(|step| !step.running && step.end.is_none()) {
            turn.model.edit_task(step.claim.task, |row| {
                if row.detail.task.status == TaskStatus::Running {
                    row.detail.task.status = TaskStatus::Dispatched;
                }
            });
        }
    }},
    Fault::new(T4, "execution-forgotten", "does not keep the execution's name", |turn| {
        updated(turn, |_, new| new.detail.task.execution_name = None)
    }),
    Fault::new(T4, "start-forgotten", "does not keep when a task began to run", |turn| {
        updated(turn, |_, new| new.detail.task.started_at = None)
    }),
    Fault::new(T4, "end-forgotten", "does not keep when a task ended", |turn| {
        updated(turn, |_, new| new.detail.task.finished_at = None)
    }),
    Fault::new(T4, "release-spends", "spends an attempt on a task that is given back", |turn| {
        released(turn, |old, new| new.detail.task.attempts = old.detail.task.attempts)
    }),
    Fault::new(
        T4,
        "release-clears-error",
        "drops the error of an earlier attempt when a task is given back",
        |turn| released(turn, |_, new| new.detail.task.error = None),
    ),
    Fault::new(T4, "release-keeps-traces", "leaves the traces of an attempt that is given back", |turn| {
        released(turn, |old, new| new.detail.task.dispatched_at = old.detail.task.dispatched_at)
    }),
    Fault::new(T4, "success-keeps-error", "keeps the error of an earlier attempt with a success", |turn| {
        updated(turn, |old, new| new.detail.task.error.clone_from(&old.detail.task.error))
    }),
    Fault::new(T4, "output-forgotten", "does not keep outputs", |turn| {
        updated(turn, |_, new| new.detail.output = None)
    }),
    after! { T4, "attempt-not-clean", "has a new attempt begin with the traces of the last",
    |turn, old, Answer::ClaimTasks(Ok(_))| {
        change_again(old, turn.model, |old, new| {
            new.detail.task.execution_name.clone_from(&old.detail.task.execution_name);
        });
    }},
];

/// Applies updates and then changes each task that they released once more, given the task before
/// and after.
fn released(turn: &mut Turn<'_>, change: fn(&TaskRow, &mut TaskRow)) -> Answer {
    let Call::UpdateTasks { updates } = &turn.call else { return turn.honest() };
    let steps = updates.steps().iter().filter(|step| matches!(step.end, Some(TaskChange::Released)));
    let released: BTreeSet<TaskId> = steps.map(|step| step.claim.task).collect();
    let old = turn.model.clone();
    let answer = turn.honest();
    for (old, mut new) in changed(&old, turn.model) {
        if released.contains(&new.detail.task.id) {
            change(&old, &mut new);
            put(turn.model, new);
        }
    }
    answer
}
