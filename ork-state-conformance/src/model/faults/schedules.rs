//! S1.

use std::time::Duration;

use ork_state_api::{FiredSchedule, Label, Limit, Schedule, Text, WorkflowId};

use super::super::{Answer, Call, Model};
use super::Fault;
use super::runs::pin_first_snapshot;
use super::shapes::{after, before, in_seconds};
use crate::Rule::S1;

pub(super) const FAULTS: &[Fault] = &[
    before! { S1, "any-slot", "fires whatever slot is named", |turn, Call::FireSchedule { fire }| {
        edit_schedule(turn.model, fire.workflow(), |schedule| schedule.next_at = Some(fire.slot()));
    }},
    after! { S1, "slot-checked-before", "looks which slot is due, and moves on a moment later",
    |turn, old, Answer::FireSchedule(Ok(FiredSchedule::Fired(run)))| {
        if let Some(old) = old.workflows.get(&run.workflow).cloned()
            && let Some(new) = turn.model.workflows.insert(old.id, old)
        {
            turn.later(move |model| drop(model.workflows.insert(new.id, new)));
        }
    }},
    after! { S1, "not-moved-on", "fires a slot and does not move on",
    |turn, old, Answer::FireSchedule(Ok(FiredSchedule::Fired(_)))| {
        turn.model.workflows.clone_from(&old.workflows);
    }},
    Fault::new(S1, "no-next-is-due", "has a schedule without a next slot due at once", |turn| {
        let Call::DueSchedules { .. } = turn.call else { return turn.honest() };
        let workflows = turn.model.workflows.clone();
        for schedule in turn.model.workflows.values_mut().filter_map(|it| it.schedule.as_mut()) {
            schedule.next_at.get_or_insert(turn.now);
        }
        let answer = turn.honest();
        turn.model.workflows = workflows;
        answer
    }),
    Fault::new(S1, "disabled-is-due", "fires schedules that are disabled", |turn| {
        let workflows = turn.model.workflows.clone();
        if let Call::DueSchedules { .. } | Call::FireSchedule { .. } = turn.call {
            for schedule in turn.model.workflows.values_mut().filter_map(|it| it.schedule.as_mut()) {
                schedule.enabled = true;
            }
        }
        let answer = turn.honest();
        if let Answer::DueSchedules(_) = answer {
            turn.model.workflows = workflows;
        }
        answer
    }),
    before! { S1, "early", "has a schedule due a minute before its slot", |turn| {
        if let Call::DueSchedules { .. } | Call::FireSchedule { .. } = turn.call {
            turn.now = in_seconds(turn.now, 60);
        }
    }},
    before! { S1, "late", "has a schedule due after its slot", |turn| {
        if let Call::DueSchedules { .. } | Call::FireSchedule { .. } = turn.call {
            turn.now = turn.now.saturating_sub(Duration::from_micros(1));
        }
    }},
    after! { S1, "newest-slot-first", "tells the schedules that are due the latest first",
        |turn, Answer::DueSchedules(Ok(due))| due.reverse()
    },
    after! { S1, "fired-by-nobody", "does not say that a run comes from a schedule",
    |turn, Answer::FireSchedule(Ok(FiredSchedule::Fired(run)))| {
        run.triggered_by = Label::lossy("manual");
        turn.model.runs.insert(run.id, run.clone());
    }},
    after! { S1, "last-slot-forgotten", "does not keep which slot was fired last",
    |turn, Answer::FireSchedule(Ok(FiredSchedule::Fired(run)))| {
        edit_schedule(turn.model, run.workflow, |schedule| schedule.last_at = None);
    }},
    after! { S1, "fired-without-run", "moves a schedule on and makes no run",
        |turn, Answer::FireSchedule(Ok(FiredSchedule::Fired(run)))| turn.model.runs.remove(&run.id)
    },
    after! { S1, "fired-with-first-dag", "fires runs with the workflow's first DAG",
        |turn, Answer::FireSchedule(Ok(FiredSchedule::Fired(run)))| pin_first_snapshot(turn.model, run)
    },
    before! { S1, "expression-read", "rewrites the expressions of schedules",
    |turn, Call::SetSchedule { schedule: Some(schedule), .. }| {
        let words: Vec<&str> = schedule.expression.split_whitespace().collect();
        schedule.expression = Text::lossy(&words.join(" ").to_lowercase());
    }},
    Fault::new(S1, "schedule-stays", "does not take a schedule away", |turn| match turn.call {
        Call::SetSchedule { workflow, schedule: None } => {
            turn.instead(Call::GetWorkflow { id: workflow });
            Answer::SetSchedule(turn.model.get_workflow(workflow))
        }
        _ => turn.honest(),
    }),
    before! { S1, "due-limit-ignored", "tells all schedules that are due",
        |turn, Call::DueSchedules { limit }| *limit = Limit::MAX
    },
    after! { S1, "looking-fires", "moves a schedule on when it is only looked at",
    |turn, Answer::DueSchedules(Ok(due))| {
        for it in due {
            edit_schedule(turn.model, it.workflow, |schedule| schedule.next_at = None);
        }
    }},
];

fn edit_schedule(model: &mut Model, workflow: WorkflowId, edit: impl FnOnce(&mut Schedule)) {
    if let Some(schedule) = model.workflows.get_mut(&workflow).and_then(|it| it.schedule.as_mut()) {
        edit(schedule);
    }
}
