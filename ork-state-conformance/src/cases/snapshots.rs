use ork_state_api::ErrorKind::NotFound;
use ork_state_api::{Json, NewRun, StartRun, TaskSpec, Text, UpdateWorkflow, WorkflowId};

use super::{assert_fails, together};
use crate::case::case;
use crate::dag;

case! { W2, w2_a_replaced_dag_is_the_new_snapshot(t) {
    let made = t.workflow(dag("a")?).await?;
    t.advance(crate::LEASE);
    let wanted = dag("b c:b")?;
    let updated = t.db().update_workflow(UpdateWorkflow::new(made.id).with_dag(wanted.clone())).await?;
    assert_ne!(updated.snapshot, made.snapshot);
    assert_eq!((updated.created_at, updated.updated_at), (made.created_at, t.now()));
    assert_eq!(t.db().get_workflow(made.id).await?, updated);
    let snapshot = t.db().get_snapshot(updated.snapshot).await?;
    assert_eq!((snapshot.workflow, &snapshot.dag, snapshot.created_at), (made.id, &wanted, t.now()));
    assert_eq!(snapshot.content_hash, wanted.content_hash());
    assert_eq!(t.db().get_snapshot(made.snapshot).await?.dag, dag("a")?, "the old one stays as it was");
    Ok(())
}}

case! { W2, w2_runs_keep_the_snapshot_they_were_created_with(t) {
    let workflow = t.workflow(dag("a")?).await?;
    let old = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    let updated = t.db().update_workflow(UpdateWorkflow::new(workflow.id).with_dag(dag("b c")?)).await?;
    let new = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    assert_eq!((old.snapshot, new.snapshot), (workflow.snapshot, updated.snapshot));
    for run in [old.id, new.id] {
        t.db().start_run(StartRun::pinned(run)).await?;
    }
    assert_eq!(t.statuses(old.id).await?, "a=pending");
    assert_eq!(t.statuses(new.id).await?, "b=pending c=pending");
    Ok(())
}}

case! { W2, w2_the_same_dag_is_the_same_snapshot(t) {
    let workflow = t.workflow(dag("a b:a")?).await?;
    let again = t.db().update_workflow(UpdateWorkflow::new(workflow.id).with_dag(dag("a b:a")?)).await?;
    assert_eq!(again.snapshot, workflow.snapshot);
    let other = t.db().update_workflow(UpdateWorkflow::new(workflow.id).with_dag(dag("a")?)).await?;
    let back = t.db().update_workflow(UpdateWorkflow::new(workflow.id).with_dag(dag("a b:a")?)).await?;
    assert_ne!(other.snapshot, workflow.snapshot);
    assert_eq!(back.snapshot, workflow.snapshot, "and so is one from before");
    Ok(())
}}

case! { W2, w2_every_byte_of_a_dag_counts(t) {
    let task = |params: &str| -> ork_state_api::Result<_> {
        ork_state_api::Dag::new([TaskSpec::new("a".parse()?, "process".parse()?).with_params(Json::parse(params)?)])
    };
    let workflow = t.workflow(task("[1]")?).await?;
    let mut snapshots = std::collections::BTreeSet::from([workflow.snapshot]);
    for params in ["[1.0]", "[ 1]", "[1,1]", "[\n1]"] {
        let updated = t.db().update_workflow(UpdateWorkflow::new(workflow.id).with_dag(task(params)?)).await?;
        assert!(snapshots.insert(updated.snapshot), "{params}");
        assert_eq!(t.db().get_snapshot(updated.snapshot).await?.dag, task(params)?);
    }
    Ok(())
}}

case! { W2, w2_workflows_do_not_share_snapshots(t) {
    let (one, other) = (t.workflow(dag("a")?).await?, t.workflow(dag("b")?).await?);
    let updated = t.db().update_workflow(UpdateWorkflow::new(other.id).with_dag(dag("a")?)).await?;
    assert_ne!(updated.snapshot, one.snapshot);
    assert_eq!(t.db().get_snapshot(updated.snapshot).await?.workflow, other.id);
    Ok(())
}}

case! { W2, w2_what_is_not_given_stays(t) {
    let made = t.workflow(dag("a")?).await?;
    let described = t.db().update_workflow(UpdateWorkflow::new(made.id).with_description(Some(Text::new("new")?))).await?;
    assert_eq!(described.description.as_deref(), Some("new"));
    assert_eq!((described.snapshot, &described.target, &described.name), (made.snapshot, &made.target, &made.name));
    let target = made.target.with_region(Text::new("eu")?).with_params(Json::parse("{\"x\": 1.0}")?);
    let moved = t.db().update_workflow(UpdateWorkflow::new(made.id).with_target(target.clone())).await?;
    assert_eq!((moved.target, moved.description.as_deref()), (target, Some("new")));
    let bare = t.db().update_workflow(UpdateWorkflow::new(made.id).with_description(None)).await?;
    assert_eq!(bare.description, None);
    Ok(())
}}

case! { W2, w2_replacing_at_once_leaves_one_of_them(t) {
    let workflow = t.workflow(dag("a")?).await?;
    let updates = ["b", "c", "d", "b"].map(|name| {
        let db = t.db().clone();
        async move { db.update_workflow(UpdateWorkflow::new(workflow.id).with_dag(dag(name)?)).await }
    });
    let answers: Result<Vec<_>, _> = together(updates).await?.into_iter().collect();
    let answers = answers?;
    let last = t.db().get_workflow(workflow.id).await?;
    assert!(answers.contains(&last), "{last:?} is what one of them was told");
    assert_eq!(answers[0].snapshot, answers[3].snapshot);
    Ok(())
}}

case! { W2, w2_updates_of_different_parts_at_once_all_count(t) {
    for _ in 0..10 {
        let workflow = t.workflow(dag("a")?).await?;
        let updates = [
            UpdateWorkflow::new(workflow.id).with_dag(dag("b")?),
            UpdateWorkflow::new(workflow.id).with_description(Some(Text::lossy("new"))),
            UpdateWorkflow::new(workflow.id).with_target(workflow.target.clone().with_region(Text::lossy("new"))),
        ];
        let updates = updates.map(|update| {
            let db = t.db().clone();
            async move { db.update_workflow(update).await }
        });
        together(updates).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
        let last = t.db().get_workflow(workflow.id).await?;
        assert_ne!(last.snapshot, workflow.snapshot, "the DAG was replaced");
        assert_eq!((last.description.as_deref(), last.target.region.as_str()), (Some("new"), "new"));
    }
    Ok(())
}}

case! { [W2, G7], w2_an_unknown_workflow_is_not_found(t) {
    assert_fails!(t.db().update_workflow(UpdateWorkflow::new(WorkflowId::generate()).with_dag(dag("a")?)).await, NotFound { .. });
    Ok(())
}}
