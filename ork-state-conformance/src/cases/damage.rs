use std::fmt::Display;

use ork_state_api::ErrorKind::Corrupt;
use ork_state_api::{Limit, ListRuns, ListTasks, NewRun, NewWorkflow, PageRequest, StartRun, Violation};

use super::assert_fails;
use crate::case::case;
use crate::{Ctx, Damage, dag};

/// A corruption must be told by table, id and column.
fn names_it(error: &ork_state_api::Error, id: impl Display, wanted: &str) {
    let id = id.to_string();
    let message = error.to_string();
    assert!(message.contains(&id) && message.contains(wanted), "names id {id} and {wanted}: {message}");
}

async fn verify_reports(t: &Ctx, id: impl Display) -> ork_state_api::Result<()> {
    let found = t.db().verify().await?;
    let about =
        |violation: &Violation| violation.rule == "G8" && violation.to_string().contains(&id.to_string());
    assert!(found.iter().any(about), "verify reports G8 for {id}: {found:?}");
    Ok(())
}

case! { G8, g8_an_unknown_run_status_is_corrupt(t) {
    let run = t.start("a").await?.id;
    t.damage(Damage::RunStatus(run)).await?;
    names_it(&assert_fails!(t.db().get_run(run).await, Corrupt { .. }), run, "status");
    names_it(&assert_fails!(t.db().list_runs(ListRuns::default()).await, Corrupt { .. }), run, "status");
    verify_reports(&t, run).await?;
    Ok(())
}}

case! { G8, g8_an_unknown_task_status_is_corrupt(t) {
    let run = t.start("a b:a").await?;
    let task = t.task(run.id, "b").await?.id;
    t.damage(Damage::TaskStatus(task)).await?;
    names_it(&assert_fails!(t.db().get_task(task).await, Corrupt { .. }), task, "status");
    names_it(&assert_fails!(t.db().list_tasks(ListTasks::of(run.id, PageRequest::default())).await, Corrupt { .. }), task, "status");
    verify_reports(&t, task).await?;
    Ok(())
}}

case! { G8, g8_a_snapshot_that_is_no_dag_is_corrupt(t) {
    let workflow = t.workflow(dag("a")?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.damage(Damage::Dag(workflow.snapshot)).await?;
    names_it(&assert_fails!(t.db().get_snapshot(workflow.snapshot).await, Corrupt { .. }), workflow.snapshot, "tasks_json");
    names_it(&assert_fails!(t.db().start_run(StartRun::pinned(run.id)).await, Corrupt { .. }), workflow.snapshot, "tasks_json");
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
    let names: Vec<_> = t.claim(10).await?.iter().map(|task| task.task.name.to_string()).collect();
    assert_eq!(names, ["a", "c"]);
    Ok(())
}}

case! { G8, g8_the_rest_of_the_store_goes_on(t) {
    let run = t.start("a").await?;
    t.damage(Damage::RunStatus(run.id)).await?;
    t.db().create_workflow(NewWorkflow::new("other".parse()?, dag("x")?)).await?;
    let other = t.start("b c:b").await?;
    t.db().list_workflows(PageRequest::default().into()).await?;
    let b = t.claim(10).await?.into_iter().find(|task| task.task.run == other.id).ok_or("b is ready")?;
    t.succeed(&b).await?;
    assert_eq!(t.statuses(other.id).await?, "b=success c=pending");
    Ok(())
}}
