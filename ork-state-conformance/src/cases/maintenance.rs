use std::time::{Duration, Instant};

use ork_state_api::ErrorKind::{SchemaMismatch, Unsupported};
use ork_state_api::{
    Capability, Database, Found, Heartbeat, LeaseTime, Limit, ListRuns, ListTasks, LogChunk, LogPosition,
    LogRange, NewRun, NewWorkflow, PageRequest, RunId, StartRun, TaskId, TaskUpdates, WorkflowId,
};

use super::{assert_fails, together};
use crate::case::case;
use crate::child::{ChildProcess, Role};
use crate::{Damage, LEASE, claim_request, dag};

case! { M1, m1_migrating_tells_what_it_did(t) {
    let store = t.fixture().empty().await?;
    let db = t.connect(&store.url()).await?;
    let report = db.migrate().await?;
    assert_eq!(report.found, Found::Nothing);
    assert!(report.to > 0 && !report.applied.is_empty(), "{report}");
    Ok(())
}}

case! { M1, m1_a_plan_says_what_migrating_does_and_does_nothing(t) {
    let store = t.fixture().empty().await?;
    let db = t.connect(&store.url()).await?;
    let plan = db.plan_migration().await?;
    assert_eq!(db.plan_migration().await?, plan, "the first plan changed nothing");
    assert_fails!(db.list_runs(ListRuns::default()).await, SchemaMismatch { .. });
    assert_eq!(db.migrate().await?, plan);
    let after = db.plan_migration().await?;
    assert_eq!((after.found, after.applied.len()), (Found::OrkState(plan.to), 0));
    Ok(())
}}

case! { M1, m1_migrating_again_does_nothing(t) {
    let run = t.start("a").await?;
    let again = t.db().migrate().await?;
    assert_eq!((again.found, again.applied.len()), (Found::OrkState(again.to), 0), "{again}");
    assert_eq!(t.db().get_run(run.id).await?, run);
    Ok(())
}}

case! { M1, m1_an_unmigrated_store_refuses_every_method(t) {
    let store = t.fixture().empty().await?;
    let db = t.connect(&store.url()).await?;
    let (workflow, run, task) = (WorkflowId::generate(), RunId::generate(), TaskId::generate());
    let new = NewWorkflow::new("w".parse()?, dag("a")?);
    let refused = |what: &str, result: ork_state_api::Result<()>| match result {
        Err(error) if matches!(error.kind(), SchemaMismatch { found: 0, .. }) => Ok(()),
        other => Err(format!("{what}: expected SchemaMismatch from version 0, got {other:?}")),
    };
    refused("create_workflow", db.create_workflow(new).await.map(drop))?;
    refused("get_workflow", db.get_workflow(workflow).await.map(drop))?;
    refused("find_workflow", db.find_workflow(&"w".parse()?).await.map(drop))?;
    refused("list_workflows", db.list_workflows(PageRequest::default().into()).await.map(drop))?;
    refused("get_snapshot", db.get_snapshot(ork_state_api::SnapshotId::generate()).await.map(drop))?;
    refused("delete_workflow", db.delete_workflow(workflow).await)?;
    refused("create_run", db.create_run(NewRun::new(workflow)).await.map(drop))?;
    refused("get_run", db.get_run(run).await.map(drop))?;
    refused("list_runs", db.list_runs(ListRuns::default()).await.map(drop))?;
    refused("start_run", db.start_run(StartRun::pinned(run)).await.map(drop))?;
    refused("cancel_run", db.cancel_run(run).await.map(drop))?;
    refused("pause_run", db.pause_run(run).await.map(drop))?;
    refused("resume_run", db.resume_run(run).await.map(drop))?;
    refused("ready_tasks", db.ready_tasks(Limit::ONE).await.map(drop))?;
    refused("claim_tasks", db.claim_tasks(claim_request("w", LEASE)?).await.map(drop))?;
    refused("expire_leases", db.expire_leases(Limit::ONE).await.map(drop))?;
    refused("update_tasks", db.update_tasks(TaskUpdates::new(vec![])?).await.map(drop))?;
    refused("get_task", db.get_task(task).await.map(drop))?;
    refused("list_tasks", db.list_tasks(ListTasks::of(run, PageRequest::default())).await.map(drop))?;
    refused("task_outputs", db.task_outputs(run, &[]).await.map(drop))?;
    let has = |capability| db.backend().capabilities.has(capability);
    refused("update_workflow", db.update_workflow(ork_state_api::UpdateWorkflow::new(workflow)).await.map(drop))?;
    refused("count_workflows", db.count_workflows(ork_state_api::WorkflowFilter::all()).await.map(drop))?;
    refused("count_runs", db.count_runs(ork_state_api::RunFilter::all()).await.map(drop))?;
    refused("retry_run", db.retry_run(ork_state_api::RetryRun::unsuccessful(run)).await.map(drop))?;
    refused("expire_timeouts", db.expire_timeouts(Limit::ONE).await.map(drop))?;
    refused("prune", db.prune(ork_state_api::Prune::older_than(LEASE).with_limit(Limit::ONE)).await.map(drop))?;
    refused("stats", db.stats().await.map(drop))?;
    if has(Capability::Schedules) {
        refused("set_schedule", db.set_schedule(workflow, None).await.map(drop))?;
        refused("due_schedules", db.due_schedules(Limit::ONE).await.map(drop))?;
    }
    if has(Capability::DeferredJobs) {
        refused("update_jobs", db.update_jobs(ork_state_api::JobUpdates::new(vec![])?).await.map(drop))?;
        refused("list_jobs", db.list_jobs(task).await.map(drop))?;
    }
    refused("heartbeat", db.heartbeat(Heartbeat::new([], LeaseTime::new(LEASE)?)?).await.map(drop))?;
    refused("verify", db.verify().await.map(drop))?;
    let range = LogRange::new(LogPosition::Offset(0), 1)?;
    let logs = [db.append_log(task, LogChunk::new(b"x")?).await.map(drop), db.read_log(task, range).await.map(drop)];
    for result in logs {
        if t.backend().capabilities.has(Capability::Logs) {
            refused("a method about logs", result)?;
        } else {
            assert_fails!(result, Unsupported { capability: Capability::Logs, .. });
        }
    }
    db.migrate().await?;
    assert!(db.list_workflows(PageRequest::default().into()).await?.items.is_empty());
    Ok(())
}}

async fn migrate(db: std::sync::Arc<dyn Database>) -> ork_state_api::Result<usize> {
    Ok(db.migrate().await?.applied.len())
}

case! { M1, m1_migrating_at_once_is_done_once(t) {
    let store = t.fixture().empty().await?;
    let db = t.connect(&store.url()).await?;
    let applied: Result<Vec<usize>, _> = together((0..6).map(|_| migrate(db.clone()))).await?.into_iter().collect();
    assert_eq!(applied?.iter().filter(|steps| **steps > 0).count(), 1);
    assert!(db.verify().await?.is_empty());
    Ok(())
}}

case! { M1 needs [Durable], m1_handles_migrating_at_once_do_it_once(t) {
    let store = t.fixture().empty().await?;
    let mut handles = Vec::new();
    for _ in 0..4 {
        handles.push(t.connect(&store.url()).await?);
    }
    let applied: Result<Vec<usize>, _> = together(handles.clone().into_iter().map(migrate)).await?.into_iter().collect();
    assert_eq!(applied?.iter().filter(|steps| **steps > 0).count(), 1);
    for db in handles {
        assert!(db.list_workflows(PageRequest::default().into()).await?.items.is_empty());
    }
    Ok(())
}}

case! { M1 needs [Durable], m1_a_handle_notices_that_another_has_migrated(t) {
    let store = t.fixture().empty().await?;
    let (first, second) = (t.connect(&store.url()).await?, t.connect(&store.url()).await?);
    assert_fails!(first.list_runs(ListRuns::default()).await, SchemaMismatch { .. });
    second.migrate().await?;
    assert!(first.list_runs(ListRuns::default()).await?.items.is_empty());
    Ok(())
}}

case! { M1 needs [MultiProcess], m1_processes_migrating_at_once_do_it_once(t) {
    let store = t.fixture().empty().await?;
    let mut children = Vec::new();
    for _ in 0..4 {
        children.push(ChildProcess::start(&Role::Migrate { url: store.url() })?);
    }
    let mut did = 0;
    for child in children {
        let said = child.finish().await?;
        did += usize::from(said.first().is_some_and(|steps| steps != "0"));
    }
    assert_eq!(did, 1);
    Ok(())
}}

/// The error of a store with a newer schema. Connecting may already fail with it.
fn newer<T: std::fmt::Debug>(result: ork_state_api::Result<T>) -> Result<i64, String> {
    match result {
        Err(error) => match error.kind() {
            SchemaMismatch { found, needed } if found > needed => Ok(*found),
            _ => Err(format!("expected SchemaMismatch with a newer version, got {error:?}")),
        },
        Ok(value) => Err(format!("expected SchemaMismatch, got {value:?}")),
    }
}

case! { M1 needs [Durable], m1_a_newer_schema_is_refused(t) {
    let run = t.start("a").await?;
    t.damage(Damage::NewerSchema).await?;
    let first = async { t.reopen().await?.get_run(run.id).await };
    let found = newer(first.await)?;
    let writing = async { t.reopen().await?.create_run(NewRun::new(run.workflow)).await };
    assert_eq!(newer(writing.await)?, found);
    Ok(())
}}

case! { M1 needs [Durable], m1_migrating_leaves_a_newer_schema_as_it_is(t) {
    t.start("a").await?;
    t.damage(Damage::NewerSchema).await?;
    let migrating = || async { t.reopen().await?.migrate().await };
    let found = newer(migrating().await)?;
    assert_eq!(newer(migrating().await)?, found, "it is still what it was");
    // A handle that was opened before sees it too, because a migration checks the schema.
    assert_eq!(newer(t.db().migrate().await)?, found);
    Ok(())
}}

/// How soon an open handle must notice that another one has migrated the store.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

case! { M1 needs [Durable], m1_an_open_handle_refuses_a_newer_schema(t) {
    let run = t.start("a").await?;
    let task = t.claim_one().await?;
    t.damage(Damage::NewerSchema).await?;
    let db = t.db();
    let begun = Instant::now();
    // Checking the schema in every call would cost a server one round trip each time.
    while db.get_run(run.id).await.is_ok() {
        assert!(begun.elapsed() < NOTICED_WITHIN, "it is still not noticed");
    }
    let found = newer(db.get_run(run.id).await)?;
    assert_eq!(newer(db.list_runs(ListRuns::default()).await)?, found);
    if t.backend().capabilities.has(Capability::Logs) {
        assert_eq!(newer(db.read_log(task.id, LogRange::new(LogPosition::Offset(0), 1)?).await)?, found);
    }
    assert_eq!(newer(db.create_run(NewRun::new(run.workflow)).await)?, found);
    assert_eq!(newer(db.claim_tasks(claim_request("w", LEASE)?).await)?, found);
    let done = TaskUpdates::one(ork_state_api::TaskUpdate::succeeded(task.claim, None));
    assert_eq!(newer(db.update_tasks(done).await)?, found);
    Ok(())
}}

case! { M4, m4_a_new_store_is_sound(t) {
    assert_eq!(t.db().verify().await?, []);
    Ok(())
}}

case! { M4, m4_a_store_in_the_middle_of_work_is_sound(t) {
    let paused = t.start("a b:a c*1").await?;
    t.pending_run("x").await?;
    let claimed = t.claim(2).await?;
    t.fail(&claimed[1], Duration::from_secs(9)).await?;
    t.start("d e:d f:e").await?;
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    t.db().pause_run(paused.id).await?;
    let cancelled = t.start("g h:g").await?;
    t.db().cancel_run(cancelled.id).await?;
    t.start("").await?;
    t.start("i j:i").await?;
    t.work_off().await?;
    assert_eq!(t.db().verify().await?, []);
    Ok(())
}}

case! { M4, m4_verifying_changes_nothing(t) {
    let run = t.start("a*1 b:a").await?;
    t.claim_one().await?;
    t.advance(LEASE);
    let before = (t.db().get_run(run.id).await?, t.tasks(run.id).await?);
    t.db().verify().await?;
    assert_eq!((t.db().get_run(run.id).await?, t.tasks(run.id).await?), before);
    Ok(())
}}
