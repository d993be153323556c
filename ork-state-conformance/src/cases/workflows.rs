use ork_state_api::ErrorKind::{AlreadyExists, Conflict, NotFound};
use ork_state_api::{
    Dag, Entity, Json, Label, ListTasks, NewRun, NewWorkflow, PageRequest, RunId, SnapshotId, StartRun,
    Target, Text, WorkflowId, WorkflowName,
};

use super::{assert_fails, together};
use crate::case::case;
use crate::{Ctx, dag};

fn new(name: &str, dag: Dag) -> ork_state_api::Result<NewWorkflow> {
    Ok(NewWorkflow::new(name.parse()?, dag))
}

case! { W1, w1_a_created_workflow_is_found_by_id_and_by_name(t) {
    let made = t.workflow(dag("a b:a")?).await?;
    assert_eq!(t.db().get_workflow(made.id).await?, made);
    assert_eq!(t.db().find_workflow(&made.name).await?, made);
    Ok(())
}}

case! { W1, w1_every_field_comes_back(t) {
    let target = Target::new(Label::new("cloudrun")?, Text::new("job-7")?).with_region(Text::new("europe-west1")?).with_project(Text::new("")?).with_params(Json::parse("{\"retries\": 1e2}")?);
    let wanted = new("whole", dag("a")?)?.with_description(Text::new("two\nlines")?).with_target(target.clone());
    let made = t.db().create_workflow(wanted).await?;
    let there = t.db().get_workflow(made.id).await?;
    assert_eq!((there.name.as_str(), there.description.as_deref(), &there.target), ("whole", Some("two\nlines"), &target));
    assert_eq!((there.created_at, there.updated_at), (t.now(), t.now()));
    Ok(())
}}

case! { W1, w1_absent_fields_stay_absent(t) {
    let made = t.workflow(dag("a")?).await?;
    assert_eq!((made.description, made.target.params), (None, None));
    Ok(())
}}

case! { W1, w1_the_dag_is_stored_with_it(t) {
    let wanted = dag("a b*3:a c:a,b")?;
    let made = t.workflow(wanted.clone()).await?;
    let snapshot = t.db().get_snapshot(made.snapshot).await?;
    assert_eq!((snapshot.workflow, &snapshot.dag), (made.id, &wanted));
    assert_eq!(snapshot.content_hash, wanted.content_hash());
    Ok(())
}}

case! { W1, w1_a_dag_of_no_tasks_is_stored(t) {
    let made = t.workflow(dag("")?).await?;
    assert!(t.db().get_snapshot(made.snapshot).await?.dag.is_empty());
    Ok(())
}}

case! { W1, w1_a_taken_name_is_refused(t) {
    let first = t.db().create_workflow(new("taken", dag("a")?)?).await?;
    let error = assert_fails!(t.db().create_workflow(new("taken", dag("b")?)?).await, AlreadyExists { entity: Entity::Workflow, .. });
    assert!(error.to_string().contains("taken"), "{error}");
    assert_eq!(t.db().find_workflow(&"taken".parse()?).await?, first);
    Ok(())
}}

case! { W1, w1_one_of_two_callers_gets_the_name(t) {
    let callers = (0..8).map(|_| {
        let db = t.db().clone();
        async move { db.create_workflow(new("wanted", dag("a b:a")?)?).await }
    });
    let results = together(callers).await?;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results {
        if let Err(error) = result {
            assert!(matches!(error.kind(), AlreadyExists { .. }), "{error:?}");
        }
    }
    assert_eq!(t.db().list_workflows(PageRequest::default().into()).await?.items.len(), 1);
    Ok(())
}}

case! { W1, w1_names_are_case_sensitive(t) {
    for name in ["report", "Report", "REPORT", "rÉport", "réport"] {
        t.db().create_workflow(new(name, dag("a")?)?).await?;
    }
    assert_eq!(t.db().find_workflow(&"Report".parse()?).await?.name.as_str(), "Report");
    Ok(())
}}

case! { W1, w1_a_deleted_name_is_free_again(t) {
    let first = t.db().create_workflow(new("again", dag("a")?)?).await?;
    t.db().delete_workflow(first.id).await?;
    let second = t.db().create_workflow(new("again", dag("a")?)?).await?;
    assert_ne!(first.id, second.id);
    Ok(())
}}

case! { G7, g7_an_unknown_workflow_is_not_found(t) {
    let id = WorkflowId::generate();
    let error = assert_fails!(t.db().get_workflow(id).await, NotFound { entity: Entity::Workflow, .. });
    assert!(error.to_string().contains(&id.to_string()), "{error}");
    assert_fails!(t.db().find_workflow(&"nobody".parse()?).await, NotFound { entity: Entity::Workflow, .. });
    assert_fails!(t.db().delete_workflow(id).await, NotFound { entity: Entity::Workflow, .. });
    assert_fails!(t.db().get_snapshot(SnapshotId::generate()).await, NotFound { entity: Entity::Snapshot, .. });
    Ok(())
}}

case! { W1, w1_a_name_is_not_a_pattern(t) {
    t.db().create_workflow(new("abc", dag("a")?)?).await?;
    for name in ["a%", "a_c", "ABC", "abc ", "ab"] {
        assert_fails!(t.db().find_workflow(&WorkflowName::new(name)?).await, NotFound { .. });
    }
    Ok(())
}}

case! { W3, w3_deleting_removes_runs_and_tasks(t) {
    let run = t.start("a b:a").await?;
    t.work_off().await?;
    let task = t.task(run.id, "a").await?;
    t.db().delete_workflow(run.workflow).await?;
    assert_fails!(t.db().get_workflow(run.workflow).await, NotFound { .. });
    assert_fails!(t.db().get_run(run.id).await, NotFound { entity: Entity::Run, .. });
    assert_fails!(t.db().get_task(task.id).await, NotFound { entity: Entity::Task, .. });
    assert_fails!(t.db().get_snapshot(run.snapshot).await, NotFound { .. });
    assert_fails!(t.db().list_tasks(ListTasks::of(run.id, PageRequest::default())).await, NotFound { entity: Entity::Run, .. });
    Ok(())
}}

async fn refuses_deletion(t: &Ctx, run: RunId, workflow: WorkflowId) -> crate::CaseResult {
    let error = assert_fails!(t.db().delete_workflow(workflow).await, Conflict { .. });
    assert!(
        error.to_string().contains(&run.to_string()),
        "the error names the run that stands in the way: {error}"
    );
    t.db().get_workflow(workflow).await?;
    t.db().get_run(run).await?;
    Ok(())
}

case! { W3, w3_a_pending_run_stands_in_the_way(t) {
    let run = t.pending_run("a").await?;
    refuses_deletion(&t, run.id, run.workflow).await
}}

case! { W3, w3_a_running_run_stands_in_the_way(t) {
    let run = t.start("a").await?;
    refuses_deletion(&t, run.id, run.workflow).await
}}

case! { W3, w3_a_paused_run_stands_in_the_way(t) {
    let run = t.start("a").await?;
    t.db().pause_run(run.id).await?;
    refuses_deletion(&t, run.id, run.workflow).await
}}

case! { W3, w3_one_live_run_among_ended_ones_stands_in_the_way(t) {
    let ended = t.start("a").await?;
    t.db().cancel_run(ended.id).await?;
    let live = t.db().create_run(NewRun::new(ended.workflow)).await?.into_run();
    refuses_deletion(&t, live.id, ended.workflow).await?;
    assert_eq!(t.statuses(ended.id).await?, "a=cancelled");
    Ok(())
}}

case! { W3, w3_cancelled_runs_do_not_stand_in_the_way(t) {
    let run = t.start("a b:a").await?;
    t.claim_one().await?;
    t.db().cancel_run(run.id).await?;
    t.db().delete_workflow(run.workflow).await?;
    assert!(t.claim(10).await?.is_empty());
    Ok(())
}}

case! { W3, w3_other_workflows_stay(t) {
    let (gone, stays, ended) = (t.start("a").await?, t.start("a b:a").await?, t.start("a").await?);
    t.db().cancel_run(gone.id).await?;
    let ended = t.db().cancel_run(ended.id).await?;
    t.db().delete_workflow(gone.workflow).await?;
    assert_eq!(t.db().get_run(ended.id).await?, ended);
    assert_eq!(t.statuses(ended.id).await?, "a=cancelled");
    assert_eq!(t.work_off().await?, 2);
    assert_eq!(t.statuses(stays.id).await?, "a=success b=success");
    Ok(())
}}

case! { W3, w3_a_run_created_meanwhile_stops_it_or_finds_nothing(t) {
    for round in 0..20 {
        let workflow = t.workflow(dag("a")?).await?.id;
        let (db, other) = (t.db().clone(), t.db().clone());
        let delete = async move { db.delete_workflow(workflow).await };
        let create = async move { other.create_run(NewRun::new(workflow)).await };
        // The task spawned last often runs first.
        let (deleting, creating) = if round % 2 == 0 {
            let creating = tokio::spawn(create);
            (tokio::spawn(delete), creating)
        } else {
            (tokio::spawn(delete), tokio::spawn(create))
        };
        match (deleting.await?, creating.await?) {
            (Ok(()), Err(error)) => assert!(matches!(error.kind(), NotFound { entity: Entity::Workflow, .. }), "{error:?}"),
            (Err(error), Ok(created)) => {
                assert!(matches!(error.kind(), Conflict { .. }), "{error:?}");
                t.db().start_run(StartRun::pinned(created.into_run().id)).await?;
            }
            both => return Err(format!("one must win: {both:?}").into()),
        }
    }
    Ok(())
}}

case! { W3, w3_deleted_once_is_gone(t) {
    let workflow = t.workflow(dag("a")?).await?;
    t.db().delete_workflow(workflow.id).await?;
    assert_fails!(t.db().delete_workflow(workflow.id).await, NotFound { .. });
    assert_fails!(t.db().create_run(NewRun::new(workflow.id)).await, NotFound { entity: Entity::Workflow, .. });
    Ok(())
}}
