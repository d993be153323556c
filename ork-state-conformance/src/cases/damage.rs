use std::fmt::Display;

use ork_state_api::ErrorKind::Corrupt;
use ork_state_api::{
    Limit, ListRuns, ListTasks, NewRun, NewWorkflow, PageRequest, Rule, RunId, StartRun, TaskStatus,
    TaskUpdate, UpdateOutcome, Violation,
};

use super::assert_fails;
use crate::case::case;
use crate::{Ctx, Damage, dag};

/// A corruption must be reported by table, id and column, in the error and in its message. The
/// backend chooses the names.
fn names_it(error: &ork_state_api::Error, wanted: impl Display) -> crate::CaseResult {
    let Corrupt { table, id, column, reason } = error.kind() else { return Err(error.clone().into()) };
    assert_eq!(*id, wanted.to_string(), "{error}");
    let message = error.to_string();
    for part in [table, id, column, reason] {
        assert!(!part.is_empty() && message.contains(part.as_str()), "{error:?} tells {part:?}");
    }
    Ok(())
}

async fn verify_reports(t: &Ctx, id: impl Display) -> ork_state_api::Result<()> {
    let found = t.db().verify().await?;
    let about =
        |violation: &Violation| violation.rule == Rule::G8 && violation.to_string().contains(&id.to_string());
    assert!(found.iter().any(about), "verify reports G8 for {id}: {found:?}");
    Ok(())
}

case! { G8, g8_an_unknown_run_status_is_corrupt(t) {
    let run = t.start("a").await?.id;
    t.damage(Damage::RunStatus(run)).await?;
    names_it(&assert_fails!(t.db().get_run(run).await, Corrupt { .. }), run)?;
    names_it(&assert_fails!(t.db().list_runs(ListRuns::default()).await, Corrupt { .. }), run)?;
    verify_reports(&t, run).await?;
    Ok(())
}}

case! { G8, g8_an_unknown_task_status_is_corrupt(t) {
    let run = t.start("a b:a").await?;
    let task = t.task(run.id, "b").await?.id;
    t.damage(Damage::TaskStatus(task)).await?;
    names_it(&assert_fails!(t.db().get_task(task).await, Corrupt { .. }), task)?;
    names_it(&assert_fails!(t.db().list_tasks(ListTasks::of(run.id, PageRequest::default())).await, Corrupt { .. }), task)?;
    verify_reports(&t, task).await?;
    Ok(())
}}

case! { G8, g8_a_snapshot_that_is_no_dag_is_corrupt(t) {
    let workflow = t.workflow(dag("a")?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.damage(Damage::Dag(workflow.snapshot)).await?;
    names_it(&assert_fails!(t.db().get_snapshot(workflow.snapshot).await, Corrupt { .. }), workflow.snapshot)?;
    names_it(&assert_fails!(t.db().start_run(StartRun::pinned(run.id)).await, Corrupt { .. }), workflow.snapshot)?;
    assert_eq!(t.db().get_run(run.id).await?, run, "it did not start, let alone succeed as an empty DAG");
    verify_reports(&t, workflow.snapshot).await?;
    Ok(())
}}

case! { [G8, T2], g8_a_claim_passes_over_what_it_cannot_read(t) {
    let run = t.start("a b c").await?;
    let bad = t.task(run.id, "a").await?.id;
    t.damage(Damage::TaskName(bad)).await?;
    let other = t.start("d").await?;
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(t.claim_one().await?.task.name.to_string());
    }
    assert_eq!(names, ["b", "c", "d"]);
    assert!(t.claim(10).await?.is_empty());
    assert!(!t.db().ready_tasks(Limit::default()).await?.iter().any(|ready| ready.task == bad));
    verify_reports(&t, bad).await?;
    assert_eq!(t.db().get_run(other.id).await?.tasks.unfinished, 1);
    Ok(())
}}

case! { G8, g8_a_claim_of_many_passes_over_what_it_cannot_read(t) {
    let run = t.start("a b c").await?;
    t.damage(Damage::TaskName(t.task(run.id, "b").await?.id)).await?;
    let names: Vec<_> = t.claim(10).await?.iter().map(|task| task.name.to_string()).collect();
    assert_eq!(names, ["a", "c"]);
    Ok(())
}}

/// Three claimed tasks of one run, of which the second is damaged. Its worker's report may be
/// applied, because that does not need its name.
async fn one_of_three_damaged(
    t: &Ctx,
) -> Result<(RunId, Vec<ork_state_api::ClaimedTask>), Box<dyn std::error::Error + Send + Sync>> {
    let run = t.start("a*1 b*1 c*1").await?.id;
    let claimed = t.claim(3).await?;
    assert_eq!(claimed.len(), 3);
    t.damage(Damage::TaskName(claimed[1].task.id)).await?;
    Ok((run, claimed))
}

case! { [G8, T6], g8_a_batch_with_a_damaged_task_is_applied_to_the_others(t) {
    let (run, claimed) = one_of_three_damaged(&t).await?;
    let outcomes = t.update(claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None))).await?.outcomes;
    let done = UpdateOutcome::Applied { status: TaskStatus::Success };
    assert_eq!((outcomes[0], outcomes[2]), (done, done));
    for task in [&claimed[0], &claimed[2]] {
        assert_eq!(t.db().get_task(task.id).await?.task.status, TaskStatus::Success);
    }
    let left = u32::from(outcomes[1] != done);
    assert_eq!(t.db().get_run(run).await?.tasks.unfinished, left, "{:?}", outcomes[1]);
    Ok(())
}}

case! { [G8, T3], g8_leases_lapse_beside_that_of_a_damaged_task(t) {
    let (_, claimed) = one_of_three_damaged(&t).await?;
    t.advance(crate::LEASE);
    let requeued = t.db().expire_leases(Limit::default()).await?.requeued;
    for task in [&claimed[0], &claimed[2]] {
        assert!(requeued.contains(&task.id), "{requeued:?}");
        assert_eq!(t.db().get_task(task.id).await?.task.status, TaskStatus::Pending);
    }
    Ok(())
}}

case! { G8, g8_the_rest_of_the_store_goes_on(t) {
    let run = t.start("a").await?;
    t.damage(Damage::RunStatus(run.id)).await?;
    t.db().create_workflow(NewWorkflow::new("other".parse()?, dag("x")?)).await?;
    let other = t.start("b c:b").await?;
    t.db().list_workflows(PageRequest::default().into()).await?;
    let b = t.claim(10).await?.into_iter().find(|task| task.run == other.id).ok_or("b is ready")?;
    t.succeed(&b).await?;
    assert_eq!(t.statuses(other.id).await?, "b=success c=pending");
    Ok(())
}}

case! { [G8, T2], g8_dependencies_that_cannot_be_read_are_not_none(t) {
    let run = t.start("a b:a c").await?;
    let bad = t.task(run.id, "b").await?.id;
    t.damage(Damage::DependsOn(bad)).await?;
    names_it(&assert_fails!(t.db().get_task(bad).await, Corrupt { .. }), bad)?;
    names_it(&assert_fails!(t.db().list_tasks(ListTasks::of(run.id, PageRequest::default())).await, Corrupt { .. }), bad)?;
    let other = t.start("d").await?;
    let request = || Ok::<_, ork_state_api::Error>(crate::claim_request("w", crate::LEASE)?.with_dependency_outputs());
    let claimed = t.db().claim_tasks(request()?).await?;
    let names: Vec<_> = claimed.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "d"], "the rest goes on, and it does not run before what it waits for");
    for task in claimed {
        t.succeed(&task).await?;
    }
    assert!(t.db().claim_tasks(request()?).await?.is_empty(), "nor after it");
    assert_eq!((t.db().get_run(run.id).await?.tasks.unfinished, t.db().get_run(other.id).await?.tasks.unfinished), (1, 0));
    verify_reports(&t, bad).await?;
    Ok(())
}}

case! { G8, g8_a_damaged_run_does_not_hide_others_from_verify(t) {
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(t.start("a").await?.id);
    }
    let [first, second, third] = runs[..] else { return Err("three runs".into()) };
    // The list shows the newest first. So the third comes before the second, and the first after
    // it.
    t.damage(Damage::RunStatus(second)).await?;
    t.damage(Damage::RunCount(first)).await?;
    t.damage(Damage::TaskStatus(t.task(third, "a").await?.id)).await?;
    verify_reports(&t, second).await?;
    finds(&t, Rule::R3, first).await
}}

/// `verify` must report that this run breaks this rule.
async fn finds(t: &Ctx, rule: Rule, run: RunId) -> crate::CaseResult {
    let found = t.db().verify().await?;
    let about =
        |violation: &Violation| violation.rule == rule && violation.to_string().contains(&run.to_string());
    assert!(found.iter().any(about), "verify finds that run {run} breaks {rule}: {found:?}");
    Ok(())
}

case! { [M4, R3], m4_a_count_that_disagrees_with_its_tasks_is_found(t) {
    let (good, bad) = (t.start("a b:a").await?.id, t.start("a b:a").await?.id);
    t.damage(Damage::RunCount(bad)).await?;
    finds(&t, Rule::R3, bad).await?;
    assert!(t.db().verify().await?.iter().all(|violation| !violation.to_string().contains(&good.to_string())));
    Ok(())
}}

case! { [M4, R3], m4_a_terminal_run_with_live_tasks_is_found(t) {
    let run = t.start("a b:a").await?.id;
    t.claim_one().await?;
    t.damage(Damage::RunEnded(run)).await?;
    finds(&t, Rule::R3, run).await
}}
