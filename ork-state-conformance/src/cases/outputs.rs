use ork_state_api::ErrorKind::{InvalidInput, NotFound};
use ork_state_api::limits::MAX_BATCH_ITEMS;
use ork_state_api::{Entity, Json, RunId, TaskName, TaskUpdate};

use super::assert_fails;
use crate::case::case;

fn names(list: &str) -> ork_state_api::Result<Vec<TaskName>> {
    list.split_whitespace().map(str::parse).collect()
}

case! { L1, l1_outputs_of_named_tasks_come_in_one_call(t) {
    let run = t.start("a b c").await?;
    let claimed = t.claim(3).await?;
    let outputs = ["{\"n\":1}", "[2]", "\"three\""];
    t.update(claimed.iter().zip(outputs).map(|(task, out)| TaskUpdate::succeeded(task.claim, Json::parse(out).ok()))).await?;
    let found = t.db().task_outputs(run.id, &names("c a")?).await?;
    let shape: Vec<_> = found.iter().map(|(name, out)| (name.as_str(), out.as_ref().map(Json::as_str))).collect();
    assert_eq!(shape, [("a", Some("{\"n\":1}")), ("c", Some("\"three\""))]);
    Ok(())
}}

case! { L1, l1_a_task_without_output_is_there_with_none(t) {
    let run = t.start("done waiting:done").await?;
    t.succeed(&t.claim_one().await?).await?;
    let found = t.db().task_outputs(run.id, &names("done waiting")?).await?;
    assert_eq!(found.into_values().collect::<Vec<_>>(), [None, None]);
    Ok(())
}}

case! { [L1, G5], l1_null_is_an_output(t) {
    let run = t.start("null none b:null,none").await?;
    let (first, second) = (t.claim_one().await?, t.claim_one().await?);
    t.update([TaskUpdate::succeeded(first.claim, Some(Json::parse("null")?)), TaskUpdate::succeeded(second.claim, None)]).await?;
    let found = t.db().task_outputs(run.id, &names("null none")?).await?;
    assert_eq!(found[&names("null")?[0]].as_ref().map(Json::as_str), Some("null"));
    assert_eq!(found[&names("none")?[0]], None);
    assert_eq!(t.db().get_task(first.task.id).await?.output.as_ref().map(Json::as_str), Some("null"));
    let claim = crate::claim_request("w", crate::LEASE)?.with_dependency_outputs();
    let b = t.db().claim_tasks(claim).await?.remove(0);
    assert_eq!(b.dependency_outputs[&names("null")?[0]].as_ref().map(Json::as_str), Some("null"));
    Ok(())
}}

case! { L1, l1_unknown_names_are_left_out_and_doubles_answered_once(t) {
    let run = t.start("a b").await?;
    let found = t.db().task_outputs(run.id, &names("a nobody a A")?).await?;
    assert_eq!(found.into_keys().collect::<Vec<_>>(), names("a")?);
    Ok(())
}}

case! { [L1, T6], l1_no_names_are_an_empty_answer(t) {
    let run = t.start("a").await?;
    assert!(t.db().task_outputs(run.id, &[]).await?.is_empty());
    Ok(())
}}

case! { L1, l1_an_unknown_run_is_not_found(t) {
    assert_fails!(t.db().task_outputs(RunId::generate(), &names("a")?).await, NotFound { entity: Entity::Run, .. });
    assert_fails!(t.db().task_outputs(RunId::generate(), &[]).await, NotFound { entity: Entity::Run, .. });
    Ok(())
}}

case! { L1, l1_runs_do_not_see_each_others_outputs(t) {
    let (one, two) = (t.start("a").await?, t.start("a").await?);
    for task in t.claim(2).await? {
        let output = Json::from_value(&(task.run == one.id))?;
        t.update([TaskUpdate::succeeded(task.claim, Some(output))]).await?;
    }
    for (run, expected) in [(one.id, "true"), (two.id, "false")] {
        let found = t.db().task_outputs(run, &names("a")?).await?;
        assert_eq!(found[&names("a")?[0]].as_ref().map(Json::as_str), Some(expected));
    }
    Ok(())
}}

case! { L1, l1_a_failed_attempt_leaves_no_output(t) {
    let run = t.start("a").await?;
    t.fail(&t.claim_one().await?, std::time::Duration::ZERO).await?;
    assert_eq!(t.db().task_outputs(run.id, &names("a")?).await?.into_values().collect::<Vec<_>>(), [None]);
    Ok(())
}}

case! { [L1, T6], l1_as_many_names_as_the_limit_go_in_one_call(t) {
    let run = t.start("a b").await?;
    let mut names: Vec<TaskName> = (0..MAX_BATCH_ITEMS - 1).map(|number| format!("nobody{number}").try_into()).collect::<Result<_, _>>()?;
    names.push("b".parse()?);
    let found = t.db().task_outputs(run.id, &names).await?;
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["b".parse()?]);
    Ok(())
}}

case! { [L1, G7], l1_more_names_than_the_limit_are_refused(t) {
    let run = t.start("a").await?;
    let names = vec!["a".parse()?; MAX_BATCH_ITEMS + 1];
    assert_fails!(t.db().task_outputs(run.id, &names).await, InvalidInput { .. });
    Ok(())
}}
