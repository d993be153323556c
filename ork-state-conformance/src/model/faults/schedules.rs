//! S1.

use std::time::Duration;

use ork_state_api::{FireSchedule, FiredSchedule, Label, Schedule, Text, Workflow};

use super::super::{Answer, Call, Turn};
use super::Fault;
use crate::Rule::S1;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(S1, "any-slot", "fires whatever slot is named", |turn| {
        if let Call::FireSchedule { fire } = turn.call.clone() {
            scheduled(turn, &fire, |schedule, fire| schedule.next_at = Some(fire.slot()));
        }
        turn.honest()
    }),
    Fault::new(S1, "slot-checked-before", "looks which slot is due, and moves on a moment later", |turn| {
        let before = turn.model.workflows.clone();
        let answer = turn.honest();
        if let Answer::FireSchedule(Ok(FiredSchedule::Fired(run))) = &answer
            && let Some(old) = before.get(&run.workflow).cloned()
            && let Some(new) = turn.model.workflows.insert(old.id, old)
        {
            turn.later(move |model| drop(model.workflows.insert(new.id, new)));
        }
        answer
    }),
    Fault::new(S1, "not-moved-on", "fires a slot and does not move on", |turn| {
        let before = turn.model.workflows.clone();
        let answer = turn.honest();
        if let Answer::FireSchedule(Ok(FiredSchedule::Fired(_))) = &answer {
            turn.model.workflows = before;
        }
        answer
    }),
    Fault::new(S1, "no-next-is-due", "has a schedule without a next slot due at once", |turn| {
        let now = turn.now;
        if let Call::DueSchedules { .. } = turn.call {
            let before = turn.model.workflows.clone();
            for schedule in turn.model.workflows.values_mut().filter_map(|it| it.schedule.as_mut()) {
                schedule.next_at.get_or_insert(now);
            }
            let answer = turn.honest();
            turn.model.workflows = before;
            return answer;
        }
        turn.honest()
    }),
    Fault::new(S1, "disabled-is-due", "fires schedules that are disabled", |turn| {
        let before = turn.model.workflows.clone();
        if let Call::DueSchedules { .. } | Call::FireSchedule { .. } = turn.call {
            for schedule in turn.model.workflows.values_mut().filter_map(|it| it.schedule.as_mut()) {
                schedule.enabled = true;
            }
        }
        let answer = turn.honest();
        if let Answer::DueSchedules(_) = answer {
            turn.model.workflows = before;
        }
        answer
    }),
    Fault::new(S1, "early", "has a schedule due a minute before its slot", |turn| {
        if let Call::DueSchedules { .. } | Call::FireSchedule { .. } = turn.call {
            turn.now = turn.now.saturating_add(Duration::from_secs(60));
        }
        turn.honest()
    }),
    Fault::new(S1, "late", "has a schedule due after its slot", |turn| {
        if let Call::DueSchedules { .. } | Call::FireSchedule { .. } = turn.call {
            turn.now = turn.now.saturating_sub(Duration::from_micros(1));
        }
        turn.honest()
    }),
    Fault::new(
        S1,
        "newest-slot-first",
        "tells the schedules that are due the latest first",
        |turn| match turn.honest() {
            Answer::DueSchedules(Ok(mut due)) => {
                due.reverse();
                Answer::DueSchedules(Ok(due))
            }
            answer => answer,
        },
    ),
    Fault::new(S1, "fired-by-nobody", "does not say that a run comes from a schedule", |turn| {
        let mut answer = turn.honest();
        if let Answer::FireSchedule(Ok(FiredSchedule::Fired(run))) = &mut answer {
            run.triggered_by = Label::lossy("manual");
            turn.model.runs.insert(run.id, run.clone());
        }
        answer
    }),
    Fault::new(S1, "last-slot-forgotten", "does not keep which slot was fired last", |turn| {
        let answer = turn.honest();
        if let Answer::FireSchedule(Ok(FiredSchedule::Fired(run))) = &answer
            && let Some(Workflow { schedule: Some(schedule), .. }) =
                turn.model.workflows.get_mut(&run.workflow)
        {
            schedule.last_at = None;
        }
        answer
    }),
    Fault::new(S1, "fired-without-run", "moves a schedule on and makes no run", |turn| {
        let answer = turn.honest();
        if let Answer::FireSchedule(Ok(FiredSchedule::Fired(run))) = &answer {
            turn.model.runs.remove(&run.id);
        }
        answer
    }),
    Fault::new(S1, "fired-with-first-dag", "fires runs with the workflow's first DAG", |turn| {
        let mut answer = turn.honest();
        if let Answer::FireSchedule(Ok(FiredSchedule::Fired(run))) = &mut answer
            && let Some(first) = turn.model.snapshots.values().find(|it| it.workflow == run.workflow)
        {
            run.snapshot = first.id;
            turn.model.runs.insert(run.id, run.clone());
        }
        answer
    }),
    Fault::new(S1, "expression-read", "rewrites the expressions of schedules", |turn| {
        if let Call::SetSchedule { schedule: Some(schedule), .. } = &mut turn.call {
            let words: Vec<&str> = schedule.expression.split_whitespace().collect();
            schedule.expression = Text::lossy(&words.join(" ").to_lowercase());
        }
        turn.honest()
    }),
    Fault::new(S1, "schedule-stays", "does not take a schedule away", |turn| match turn.call {
        Call::SetSchedule { workflow, schedule: None } => {
            turn.instead(Call::GetWorkflow { id: workflow });
            Answer::SetSchedule(turn.model.get_workflow(workflow))
        }
        _ => turn.honest(),
    }),
    Fault::new(S1, "due-limit-ignored", "tells all schedules that are due", |turn| {
        if let Call::DueSchedules { limit } = &mut turn.call {
            *limit = ork_state_api::Limit::new(ork_state_api::Limit::MAX).unwrap_or(*limit);
        }
        turn.honest()
    }),
    Fault::new(S1, "looking-fires", "moves a schedule on when it is only looked at", |turn| {
        let answer = turn.honest();
        if let Answer::DueSchedules(Ok(due)) = &answer {
            for it in due {
                if let Some(Workflow { schedule: Some(schedule), .. }) =
                    turn.model.workflows.get_mut(&it.workflow)
                {
                    schedule.next_at = None;
                }
            }
        }
        answer
    }),
];

fn scheduled(turn: &mut Turn<'_>, fire: &FireSchedule, change: fn(&mut Schedule, &FireSchedule)) {
    if let Some(Workflow { schedule: Some(schedule), .. }) = turn.model.workflows.get_mut(&fire.workflow()) {
        change(schedule, fire);
    }
}
