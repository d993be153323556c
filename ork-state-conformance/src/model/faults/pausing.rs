//! R5.

use ork_state_api::{Entity, Error, RunId, RunStatus, TaskStatus};

use super::super::{Answer, Call};
use super::Fault;
use super::runs::{ended, set_status};
use super::shapes::{after, before, never, tasks_of_run};
use crate::Rule::R5;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(R5, "paused-hands-out", "hands out the tasks of a paused run", |turn| {
        let (Call::ClaimTasks { .. } | Call::ReadyTasks { .. }) = turn.call else { return turn.honest() };
        let runs = turn.model.runs.clone();
        for run in turn.model.runs.values_mut().filter(|run| run.status == RunStatus::Paused) {
            run.status = RunStatus::Running;
        }
        let answer = turn.honest();
        turn.model.runs = runs;
        answer
    }),
    after! { R5, "pause-ends-leases", "takes the tasks that run away when a run is paused",
    |turn, Answer::PauseRun(Ok(run))| {
        for task in tasks_of_run(turn.model, run.id).map(|row| &mut row.detail.task) {
            if task.lease.take().is_some() {
                task.status = TaskStatus::Pending;
            }
        }
    }},
    after! { R5, "pause-loses-ready", "loses what was ready when a run is resumed",
    |turn, Answer::ResumeRun(Ok(run))| {
        tasks_of_run(turn.model, run.id).for_each(|row| row.ready_since = never(turn.now));
    }},
    after! { R5, "resumed-to-the-front", "has a resumed run go before those that waited meanwhile",
    |turn, old, Answer::ResumeRun(Ok(run))| {
        turn.model.tasks.extend(old.tasks.get(&run.id).map(|rows| (run.id, rows.clone())));
    }},
    after! { R5, "resumed-before-retry", "tries what waits for a retry at once when its run is resumed",
    |turn, Answer::ResumeRun(Ok(run))| {
        tasks_of_run(turn.model, run.id).for_each(|row| row.ready_since = turn.now);
    }},
    after! { R5, "pause-for-all", "pauses all runs of the workflow", |turn, Answer::PauseRun(Ok(_))| {
        for run in turn.model.runs.values_mut().filter(|run| run.status == RunStatus::Running) {
            run.status = RunStatus::Paused;
        }
    }},
    Fault::new(R5, "paused-never-ends", "does not end a paused run with its last task", |turn| {
        let runs = turn.model.runs.values().filter(|run| run.status == RunStatus::Paused);
        let paused: Vec<RunId> = runs.map(|run| run.id).collect();
        let answer = turn.honest();
        for id in ended(&answer).into_iter().filter(|id| paused.contains(id)) {
            turn.model.edit_run(id, |run| (run.status, run.finished_at) = (RunStatus::Paused, None));
        }
        answer
    }),
    before! { R5, "pending-paused", "pauses a run that has not begun",
        |turn, Call::PauseRun { id }| set_status(turn.model, *id, RunStatus::Pending, RunStatus::Running)
    },
    Fault::new(R5, "paused-once", "refuses to pause a run again", |turn| match turn.call {
        Call::PauseRun { id }
            if turn.model.runs.get(&id).is_some_and(|run| run.status == RunStatus::Paused) =>
        {
            let status = RunStatus::Paused;
            turn.call.fails(Error::invalid_transition(Entity::Run, id, status, status))
        }
        _ => turn.honest(),
    }),
    before! { R5, "ended-resumed", "resumes a run that has ended", |turn, Call::ResumeRun { id }| {
        for status in [RunStatus::Success, RunStatus::Failed, RunStatus::Cancelled] {
            set_status(turn.model, *id, status, RunStatus::Paused);
        }
    }},
    after! { R5, "pause-in-two-steps", "writes a pause over what has happened since it looked",
    |turn, Answer::PauseRun(Ok(run))| {
        let id = run.id;
        turn.model.edit_run(id, |run| run.status = RunStatus::Running);
        turn.later(move |model| {
            model.edit_run(id, |run| (run.status, run.finished_at) = (RunStatus::Paused, None));
        });
    }},
];
