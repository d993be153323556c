use std::sync::Arc;
use std::time::Duration;

use ork_state_api::ErrorKind::{NotFound, Unsupported};
use ork_state_api::{
    Capability, Database, DueSchedule, FireSchedule, FiredSchedule, Limit, ListRuns, Run, RunFilter,
    RunStatus, SCHEDULE_TRIGGER, Schedule, StartRun, Text, Timestamp, Workflow, WorkflowId,
};

use super::{assert_fails, together};
use crate::case::case;
use crate::ctx::with;
use crate::{Ctx, dag};

const SECOND: Duration = Duration::from_secs(1);

async fn scheduled(t: &Ctx, schedule: Schedule) -> ork_state_api::Result<Workflow> {
    let workflow = t.workflow(dag("a")?).await?;
    t.db().set_schedule(workflow.id, Some(schedule)).await
}

fn every_minute(next_at: Option<Timestamp>) -> Schedule {
    Schedule::new(Text::lossy("* * * * *"), next_at)
}

async fn due(t: &Ctx) -> ork_state_api::Result<Vec<DueSchedule>> {
    t.db().due_schedules(Limit::new(100)?).await
}

async fn fire(
    db: &Arc<dyn Database>,
    workflow: WorkflowId,
    slot: Timestamp,
    next: Option<Timestamp>,
) -> ork_state_api::Result<Option<Run>> {
    match db.fire_schedule(FireSchedule::new(workflow, slot, next)?).await? {
        FiredSchedule::Fired(run) => Ok(Some(run)),
        FiredSchedule::NotDue => Ok(None),
    }
}

case! { S1 needs [Schedules], s1_a_schedule_comes_back_as_it_was_set(t) {
    let later = t.now().saturating_add(SECOND);
    let schedule = with(Schedule::new(Text::new("CRON_TZ=Europe/Zürich */5 * * * *")?, Some(later)), |schedule| { schedule.enabled = false; schedule.last_at = Some(t.now()); });
    let workflow = t.workflow(dag("a")?).await?;
    assert_eq!(workflow.schedule, None);
    t.advance(SECOND);
    let set = t.db().set_schedule(workflow.id, Some(schedule.clone())).await?;
    assert_eq!((&set.schedule, set.updated_at), (&Some(schedule), t.now()));
    assert_eq!(t.db().get_workflow(workflow.id).await?, set);
    let none = t.db().set_schedule(workflow.id, None).await?;
    assert_eq!(none.schedule, None);
    assert_eq!(t.db().find_workflow(&workflow.name).await?, none);
    Ok(())
}}

case! { S1 needs [Schedules], s1_a_schedule_is_due_when_its_slot_has_come(t) {
    let slot = t.now().saturating_add(SECOND);
    let workflow = scheduled(&t, every_minute(Some(slot))).await?;
    t.advance(SECOND - Duration::from_micros(1));
    assert_eq!(due(&t).await?, []);
    t.advance(Duration::from_micros(1));
    let expression = Text::new("* * * * *")?;
    assert_eq!(due(&t).await?, [DueSchedule::new(workflow.id, expression, slot)]);
    Ok(())
}}

case! { S1 needs [Schedules], s1_without_a_next_slot_it_is_never_due(t) {
    let workflow = scheduled(&t, every_minute(None)).await?;
    t.advance(SECOND * 1_000_000);
    assert_eq!(due(&t).await?, []);
    assert_eq!(fire(t.db(), workflow.id, t.now(), None).await?, None);
    Ok(())
}}

case! { S1 needs [Schedules], s1_a_disabled_schedule_is_never_due(t) {
    let slot = t.now();
    let workflow = scheduled(&t, every_minute(Some(slot)).disabled()).await?;
    assert_eq!(due(&t).await?, []);
    assert_eq!(fire(t.db(), workflow.id, slot, None).await?, None);
    t.db().set_schedule(workflow.id, Some(every_minute(Some(slot)))).await?;
    assert_eq!(due(&t).await?.len(), 1);
    Ok(())
}}

case! { S1 needs [Schedules], s1_firing_makes_a_run_and_moves_the_schedule_on(t) {
    let (slot, next) = (t.now(), t.now().saturating_add(SECOND * 60));
    let workflow = scheduled(&t, every_minute(Some(slot))).await?;
    t.advance(SECOND);
    let run = fire(t.db(), workflow.id, slot, Some(next)).await?.ok_or("it is due")?;
    assert_eq!((run.workflow, run.snapshot, run.status), (workflow.id, workflow.snapshot, RunStatus::Pending));
    assert_eq!((run.triggered_by.as_str(), run.created_at), (SCHEDULE_TRIGGER, t.now()));
    assert_eq!(t.db().get_run(run.id).await?, run);
    let moved = t.db().get_workflow(workflow.id).await?;
    let schedule = moved.schedule.ok_or("it has a schedule")?;
    assert_eq!((schedule.last_at, schedule.next_at, schedule.enabled), (Some(slot), Some(next), true));
    assert_eq!(moved.updated_at, workflow.updated_at, "firing is not a change by its author");
    assert_eq!(due(&t).await?, []);
    t.db().start_run(StartRun::pinned(run.id)).await?;
    assert_eq!(t.work_off().await?, 1);
    Ok(())
}}

case! { S1 needs [Schedules], s1_a_slot_is_fired_once(t) {
    let (slot, next) = (t.now(), t.now().saturating_add(SECOND));
    let workflow = scheduled(&t, every_minute(Some(slot))).await?;
    assert!(fire(t.db(), workflow.id, slot, Some(next)).await?.is_some());
    assert_eq!(fire(t.db(), workflow.id, slot, Some(next)).await?, None, "it was fired");
    assert_eq!(fire(t.db(), workflow.id, next, None).await?, None, "its time has not come");
    t.advance(SECOND);
    assert!(fire(t.db(), workflow.id, next, None).await?.is_some());
    assert_eq!(t.db().count_runs(RunFilter::of(workflow.id)).await?, 2);
    assert_eq!(due(&t).await?, []);
    Ok(())
}}

case! { S1 needs [Schedules], s1_another_slot_than_the_due_one_changes_nothing(t) {
    let slot = t.now();
    let workflow = scheduled(&t, every_minute(Some(slot))).await?;
    t.advance(SECOND);
    for wrong in [slot.saturating_add(Duration::from_micros(1)), slot.saturating_sub(SECOND)] {
        assert_eq!(fire(t.db(), workflow.id, wrong, None).await?, None);
    }
    assert_eq!(t.db().get_workflow(workflow.id).await?, workflow);
    assert_eq!(t.db().count_runs(RunFilter::all()).await?, 0);
    Ok(())
}}

case! { [S1, G6] needs [Schedules], s1_due_schedules_come_longest_due_first(t) {
    let mut wanted = Vec::new();
    for seconds in [3_u32, 1, 2, 1] {
        let slot = t.now().saturating_add(SECOND * seconds);
        wanted.push((slot, scheduled(&t, every_minute(Some(slot))).await?.id));
    }
    wanted.sort_unstable();
    t.advance(SECOND * 10);
    let found: Vec<_> = due(&t).await?.into_iter().map(|due| (due.slot, due.workflow)).collect();
    assert_eq!(found, wanted);
    let two = t.db().due_schedules(Limit::new(2)?).await?;
    assert_eq!(two.iter().map(|due| (due.slot, due.workflow)).collect::<Vec<_>>(), wanted[..2]);
    Ok(())
}}

/// One of two schedulers that look and fire, over and over.
async fn fire_to_the_end(db: Arc<dyn Database>, last: Timestamp) -> ork_state_api::Result<usize> {
    let mut fired = 0;
    loop {
        let due = db.due_schedules(Limit::ONE).await?;
        let Some(due) = due.first() else { return Ok(fired) };
        let next = Some(due.slot.saturating_add(SECOND)).filter(|next| *next <= last);
        fired += usize::from(fire(&db, due.workflow, due.slot, next).await?.is_some());
    }
}

case! { S1 needs [Schedules], s1_two_schedulers_fire_a_thousand_slots_once_each(t) {
    const SLOTS: u32 = 1000;
    let first = t.now();
    let last = first.saturating_add(SECOND * (SLOTS - 1));
    let workflow = scheduled(&t, every_minute(Some(first))).await?;
    t.advance(SECOND * SLOTS);
    let other = if t.backend().capabilities.has(Capability::Durable) { t.reopen().await? } else { t.db().clone() };
    let fired = together([t.db().clone(), other].map(|db| fire_to_the_end(db, last))).await?;
    let fired: Result<Vec<usize>, _> = fired.into_iter().collect();
    let fired = fired?;
    assert_eq!(fired.iter().sum::<usize>(), SLOTS as usize, "{fired:?}");
    assert_eq!(t.db().count_runs(RunFilter::of(workflow.id)).await?, u64::from(SLOTS));
    t.note(format!("two schedulers fired {SLOTS} slots, each once: {fired:?}"));
    Ok(())
}}

case! { [S1, W2] needs [Schedules], s1_a_fired_run_gets_the_current_dag(t) {
    let slot = t.now();
    let workflow = scheduled(&t, every_minute(Some(slot))).await?;
    let updated = t.db().update_workflow(ork_state_api::UpdateWorkflow::new(workflow.id).with_dag(dag("x y")?)).await?;
    assert_eq!(updated.schedule, workflow.schedule, "an update leaves the schedule");
    let run = fire(t.db(), workflow.id, slot, None).await?.ok_or("it is due")?;
    assert_eq!(run.snapshot, updated.snapshot);
    Ok(())
}}

case! { [S1, W3] needs [Schedules], s1_a_deleted_workflow_is_not_due(t) {
    let slot = t.now();
    let workflow = scheduled(&t, every_minute(Some(slot))).await?;
    t.db().delete_workflow(workflow.id).await?;
    assert_eq!(due(&t).await?, []);
    assert_fails!(fire(t.db(), workflow.id, slot, None).await, NotFound { .. });
    Ok(())
}}

case! { [S1, G7] needs [Schedules], s1_an_unknown_workflow_is_not_found(t) {
    let nobody = WorkflowId::generate();
    assert_fails!(t.db().set_schedule(nobody, None).await, NotFound { .. });
    assert_fails!(fire(t.db(), nobody, t.now(), None).await, NotFound { .. });
    Ok(())
}}

case! { [S1, G7] without Schedules, s1_an_opt_out_is_refused_and_changes_nothing(t) {
    let workflow = t.workflow(dag("a")?).await?;
    let schedule = every_minute(Some(t.now()));
    assert_fails!(t.db().set_schedule(workflow.id, Some(schedule)).await, Unsupported { capability: Capability::Schedules, .. });
    assert_fails!(due(&t).await, Unsupported { capability: Capability::Schedules, .. });
    assert_fails!(fire(t.db(), workflow.id, t.now(), None).await, Unsupported { capability: Capability::Schedules, .. });
    assert_eq!(t.db().get_workflow(workflow.id).await?, workflow);
    assert!(t.db().list_runs(ListRuns::default()).await?.items.is_empty());
    Ok(())
}}
