//! R4.

use ork_state_api::{Entity, Error, RunStatus, Task, TaskChange, TaskStatus};

use super::super::{Answer, Call, Model, TaskRow, Turn};
use super::Fault;
use super::runs::set_status;
use super::shapes::{after, before, put, tasks_of_run};
use crate::Rule::R4;

pub(super) const FAULTS: &[Fault] = &[
    after! { R4, "running-tasks-go-on", "cancels what waits and not what runs",
    |turn, old, Answer::CancelRun(Ok(run))| {
        let is_spared = |task: &Task| matches!(task.status, TaskStatus::Dispatched | TaskStatus::Running);
        put_back(turn.model, old.rows(run.id), is_spared);
    }},
    after! { R4, "retries-go-on", "does not cancel a task that waits for a retry",
    |turn, old, Answer::CancelRun(Ok(run))| {
        put_back(turn.model, old.rows(run.id), |task| task.retry_at.is_some());
    }},
    after! { R4, "ends-overwritten", "cancels tasks that have ended too", |turn, Answer::CancelRun(Ok(run))| {
        for row in tasks_of_run(turn.model, run.id) {
            row.detail.task.status = TaskStatus::Cancelled;
        }
    }},
    before! { R4, "revived", "has a late success revive a cancelled run", |turn| {
        let is_success = |end: &TaskChange| matches!(end, TaskChange::Succeeded { .. });
        end_late(turn, is_success, RunStatus::Success);
    }},
    before! { R4, "failed-late", "has a late failure fail a cancelled run", |turn| {
        let is_failure = |end: &TaskChange| matches!(end, TaskChange::Failed { .. });
        end_late(turn, is_failure, RunStatus::Failed);
    }},
    Fault::new(R4, "paused-not-cancelled", "does not cancel a paused run", |turn| {
        refuse_cancel(turn, RunStatus::Paused)
    }),
    Fault::new(R4, "cancelled-once", "refuses to cancel a run again", |turn| {
        refuse_cancel(turn, RunStatus::Cancelled)
    }),
    before! { R4, "ended-cancelled", "cancels a run that has ended", |turn, Call::CancelRun { id }| {
        set_status(turn.model, *id, RunStatus::Success, RunStatus::Running);
        set_status(turn.model, *id, RunStatus::Failed, RunStatus::Running);
    }},
    after! { R4, "attempts-forgotten", "forgets what the cancelled attempts had left",
    |turn, Answer::CancelRun(Ok(run))| {
        for task in tasks_of_run(turn.model, run.id).map(|row| &mut row.detail.task) {
            (task.attempts, task.execution_name, task.error, task.started_at) = (0, None, None, None);
        }
    }},
    after! { R4, "cancel-in-two-steps", "cancels a run a moment before its tasks",
    |turn, old, Answer::CancelRun(Ok(run))| {
        let (id, now) = (run.id, turn.now);
        if let Some(old) = old.tasks.get(&id).cloned()
            && let Some(new) = turn.model.tasks.insert(id, old)
        {
            turn.later(move |model| {
                // Tasks that ended meanwhile stay ended.
                for row in new {
                    if model.row(row.detail.task.id).is_ok_and(|it| !it.detail.task.status.is_terminal()) {
                        put(model, row);
                    }
                }
                model.edit_run(id, |run| run.finished_at = Some(now));
            });
        }
    }},
];

/// Restores the selected tasks of a run.
fn put_back(model: &mut Model, rows: &[TaskRow], is_meant: fn(&Task) -> bool) {
    for row in rows.iter().filter(|row| is_meant(&row.detail.task)) {
        put(model, row.clone());
    }
}

/// Refuses to cancel a run in this status.
fn refuse_cancel(turn: &mut Turn<'_>, status: RunStatus) -> Answer {
    match turn.call {
        Call::CancelRun { id } if turn.model.runs.get(&id).is_some_and(|run| run.status == status) => {
            let to = RunStatus::Cancelled;
            turn.call.fails(Error::invalid_transition(Entity::Run, id, status, to))
        }
        _ => turn.honest(),
    }
}

/// When a selected task ends, ends its cancelled run with this status.
fn end_late(turn: &mut Turn<'_>, is_meant: fn(&TaskChange) -> bool, status: RunStatus) {
    let Call::UpdateTasks { updates } = &turn.call else { return };
    for step in updates.steps().iter().filter(|step| step.end.as_ref().is_some_and(is_meant)) {
        let Some(&(id, _)) = turn.model.places.get(&step.claim.task) else { continue };
        turn.model.edit_run(id, |run| {
            if run.status == RunStatus::Cancelled {
                (run.status, run.finished_at) = (status, Some(turn.now));
            }
        });
    }
}
