//! T6 and T7.

use ork_state_api::{Entity, Error, TaskChange, TaskStatus, TaskUpdates, UpdateOutcome};

use super::super::{Answer, Call, Model, TaskRow};
use super::Fault;
use super::shapes::{after, before, put};
use crate::Rule::{T6, T7};

pub(super) const FAULTS: &[Fault] = &[
    // T6
    before! { T6, "unknown-stops-batch", "applies nothing of a batch with an unknown id in it",
    |turn, Call::UpdateTasks { updates }| {
        let mut ids = updates.steps().iter().map(|step| step.claim.task);
        if let Some(unknown) = ids.find(|id| turn.model.row(*id).is_err()) {
            return Answer::UpdateTasks(Err(Error::not_found(Entity::Task, unknown)));
        }
    }},
    after! { T6, "unknown-not-answered", "gives no answer to an unknown id in a batch",
    |turn, Answer::UpdateTasks(Ok(report))| {
        report.outcomes.retain(|outcome| *outcome != UpdateOutcome::NotFound);
    }},
    after! { T6, "up-to-the-first", "applies a batch up to its first item that cannot be",
    |turn, old, Call::UpdateTasks { updates }, Answer::UpdateTasks(Ok(report))| {
        let is_applied = |outcome: &UpdateOutcome| matches!(outcome, UpdateOutcome::Applied { .. });
        if let Some(stop) = report.outcomes.iter().position(|outcome| !is_applied(outcome)) {
            for outcome in report.outcomes[stop..].iter_mut().filter(|outcome| is_applied(outcome)) {
                *outcome = UpdateOutcome::LeaseLost;
            }
            for row in updates.steps().iter().skip(stop).filter_map(|step| old.row(step.claim.task).ok()) {
                put(turn.model, row.clone());
            }
        }
    }},
    after! { T6, "twice-counts-twice", "spends two attempts on a failure that is in a batch twice",
    |turn, Call::UpdateTasks { updates }, Answer::UpdateTasks(Ok(report))| {
        if updates.steps().len() < report.outcomes.len() {
            for step in updates.steps() {
                if matches!(step.end, Some(TaskChange::Failed { .. })) {
                    turn.model.edit_task(step.claim.task, |row| row.detail.task.attempts += 1);
                }
            }
        }
    }},
    after! { T6, "twice-answered-once", "answers an item that is in a batch twice once",
    |turn, Call::UpdateTasks { updates }, Answer::UpdateTasks(Ok(report))| {
        report.outcomes.truncate(updates.steps().len());
    }},
    after! { T6, "answers-in-other-order", "answers the items of a batch in another order",
        |turn, Answer::UpdateTasks(Ok(report))| report.outcomes.reverse()
    },
    after! { T6, "heartbeats-in-other-order", "answers heartbeats in another order",
        |turn, Answer::Heartbeat(Ok(outcomes))| outcomes.reverse()
    },
    before! { T6, "empty-batch-fails", "refuses a batch of nothing", |turn, Call::UpdateTasks { updates }| {
        if updates.steps().is_empty() {
            return Answer::UpdateTasks(Err(Error::invalid("updates", "are none")));
        }
    }},
    before! { T6, "empty-heartbeat-fails", "refuses a heartbeat of nothing",
    |turn, Call::Heartbeat { heartbeat }| {
        if heartbeat.claims().is_empty() {
            return Answer::Heartbeat(Err(Error::invalid("heartbeat", "is of no claim")));
        }
    }},
    before! { T6, "thousands-fail", "refuses a batch of more than 32,766 items", |turn| {
        let items = match &turn.call {
            Call::UpdateTasks { updates } => updates.steps().len(),
            Call::Heartbeat { heartbeat } => heartbeat.claims().len(),
            Call::TaskOutputs { names, .. } => names.len(),
            _ => 0,
        };
        if items > 32_766 {
            return turn.call.fails(Error::internal("too many parameters"));
        }
    }},
    // T7
    before! { T7, "failure-repeated", "spends another attempt on a failure that is reported again",
    |turn, Call::UpdateTasks { updates }| {
        let is_failure = |end: &TaskChange| matches!(end, TaskChange::Failed { .. });
        repeat(turn.model, updates, is_failure, |row| row.detail.task.attempts += 1);
    }},
    before! { T7, "release-repeated", "takes another attempt back when a task is given back again",
    |turn, Call::UpdateTasks { updates }| {
        let is_release = |end: &TaskChange| matches!(end, TaskChange::Released);
        repeat(turn.model, updates, is_release, |row| {
            row.detail.task.attempts = row.detail.task.attempts.saturating_sub(1);
        });
    }},
    after! { T7, "success-repeated", "dates a success again when it is reported again",
    |turn, Call::UpdateTasks { updates }, _| {
        for step in updates.steps() {
            if matches!(step.end, Some(TaskChange::Succeeded { .. })) {
                let now = turn.now;
                turn.model.edit_task(step.claim.task, |row| row.detail.task.finished_at = Some(now));
            }
        }
    }},
];

/// Changes a task once more when the end of its last attempt is reported again.
fn repeat(
    model: &mut Model,
    updates: &TaskUpdates,
    is_meant: fn(&TaskChange) -> bool,
    change: fn(&mut TaskRow),
) {
    for step in updates.steps().iter().filter(|step| step.end.as_ref().is_some_and(is_meant)) {
        model.edit_task(step.claim.task, |row| {
            if row.detail.task.status == TaskStatus::Pending && row.token == step.claim.token.get() {
                change(row);
            }
        });
    }
}
