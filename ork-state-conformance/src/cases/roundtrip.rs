use ork_state_api::{
    ClaimJobs, Dag, DeferTask, JobUpdate, JobUpdates, Json, Label, LeaseTime, NewDeferredJob, NewRun,
    NewWorkflow, StartRun, Target, TaskSpec, TaskUpdate, Text, UpdateWorkflow, WorkflowName,
};

use crate::Ctx;
use crate::case::case;

/// Passes the value as parameters and as an output, through every way in and out.
async fn json_comes_back(t: &Ctx, text: &str) -> crate::CaseResult {
    let json = Json::parse(text)?;
    let spec = TaskSpec::new("a".parse()?, "process".parse()?)
        .with_params(json.clone())
        .with_signature(json.clone());
    let workflow = t.workflow(Dag::new([spec])?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let task = t.claim_one().await?;
    t.update([TaskUpdate::succeeded(task.claim, Some(json.clone()))]).await?;
    let detail = t.db().get_task(task.id).await?;
    let outputs = t.db().task_outputs(run.id, &["a".parse()?]).await?;
    let snapshot = t.db().get_snapshot(workflow.snapshot).await?;
    // Not assert_eq: the values may be 16 MiB long.
    assert!(task.params.as_ref() == Some(&json), "the parameters of the claim differ");
    assert!(
        detail.params.as_ref() == Some(&json) && detail.output.as_ref() == Some(&json),
        "the task's payloads differ"
    );
    assert!(outputs.into_values().next().flatten().as_ref() == Some(&json), "the output differs");
    assert!(snapshot.dag.tasks()[0].params.as_ref() == Some(&json), "the snapshot's parameters differ");
    assert!(snapshot.dag.tasks()[0].signature.as_ref() == Some(&json), "the snapshot's signature differs");
    Ok(())
}

case! { G5, g5_json_comes_back_as_it_was(t, text: &str) {
    json_comes_back(&t, text).await
}
    negative_zero => "-0.0",
    exponent => "1e2",
    trailing_zeros => "1.500",
    beyond_float_precision => "9007199254740993",
    twenty_digits => "12345678901234567890",
    beyond_float_range => "1e400",
    key_order_and_space => r#"{"b": 1, "a": [ ], "": {}}"#,
    line_feeds => "[\n\n1,\n2 ]",
    line_ends_of_every_kind => "{\"a\":\r\n\r1,\n\r\"b\"\t:\t[\r\r\t]}",
    pretty_printed => "{\n  \"rows\": 3,\n  \"of\": [\n    \"a\\nb\"\n  ]\n}",
    escapes => r#""\u0000 \ud83d\ude00 \/ \" \\ \n""#,
    lone_surrogate => r#""\ud800""#,
    unicode => "\"\u{e9} \u{1F600} \u{202e}\"",
    looks_like_sql => r#""'; DROP TABLE tasks; -- $1 ?1 :x %s""#,
    empty_string => "\"\"",
    false_value => "false",
}

/// Text with several lines.
const LINES: &str = "{\r\n  \"rows\": [\n\t1,\r2\n]\n}";

case! { [G5, G2] needs [Durable], g5_json_of_many_lines_is_there_after_reopening(t) {
    let json = Json::parse(LINES)?;
    let spec = |name: &str| Ok::<_, ork_state_api::Error>(TaskSpec::new(name.parse()?, "process".parse()?));
    let dag = Dag::new([spec("a")?.with_params(json.clone()).with_signature(json.clone()), spec("b")?])?;
    let mut new = NewWorkflow::new("w".parse()?, dag.clone());
    new.target.params = Some(json.clone());
    let target: Target = new.target.clone();
    let workflow = t.db().create_workflow(new).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::succeeded(a.claim, Some(json.clone()))]).await?;
    t.db().update_workflow(UpdateWorkflow::new(workflow.id).with_target(target.clone())).await?;
    let db = t.reopen().await?;
    assert_eq!(db.get_workflow(workflow.id).await?.target, target);
    assert_eq!(db.get_snapshot(workflow.snapshot).await?.dag, dag);
    let task = db.get_task(a.task.id).await?;
    assert_eq!(task.params.as_ref().map(Json::as_str), Some(LINES));
    assert_eq!(task.output.as_ref().map(Json::as_str), Some(LINES));
    // Both continue: neither has lost its place in what is stored.
    t.claim_one().await?;
    assert_eq!(db.list_tasks(ork_state_api::ListTasks::of(run.id, Default::default())).await?.items, t.tasks(run.id).await?);
    Ok(())
}}

case! { [G5, D1] needs [Durable, DeferredJobs], g5_a_jobs_json_of_many_lines_is_there_after_reopening(t) {
    let json = Json::parse(LINES)?;
    t.start("a").await?;
    let a = t.claim_one().await?;
    let job = NewDeferredJob::new("bigquery".parse()?, Text::new("1")?, json.clone());
    t.db().defer_task(DeferTask::new(a.claim, [job])?).await?;
    let claimed = t.db().claim_jobs(ClaimJobs::new("p".parse()?, LeaseTime::new(crate::LEASE)?)).await?.remove(0);
    t.db().update_jobs(JobUpdates::new(vec![JobUpdate::completed(claimed.claim, Some(json.clone()))])?).await?;
    let job = t.reopen().await?.list_jobs(a.task.id).await?.remove(0);
    assert_eq!((job.job_data.as_str(), job.output.as_ref().map(Json::as_str)), (LINES, Some(LINES)));
    Ok(())
}}

case! { G5, g5_json_nested_a_hundred_deep_comes_back(t) {
    json_comes_back(&t, &format!("{}1{}", r#"{"k":["#.repeat(50), "]}".repeat(50))).await
}}

case! { G5 heavy, g5_json_of_16_mib_comes_back(t) {
    json_comes_back(&t, &format!("\"{}\"", "\u{e9}x".repeat(16 * 1024 * 1024 / 3 - 2))).await
}}

case! { G5, g5_text_comes_back_as_it_was(t, text: &str) {
    let text = Text::new(text)?;
    let new = NewWorkflow::new("w".parse()?, crate::dag("a")?).with_description(text.clone());
    let workflow = t.db().create_workflow(new).await?;
    assert_eq!(t.db().get_workflow(workflow.id).await?.description, Some(text.clone()));
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let task = t.claim_one().await?;
    t.update([TaskUpdate::failed_for_good(task.claim, text.clone())]).await?;
    assert_eq!(t.task(run.id, "a").await?.error, Some(text));
    Ok(())
}
    empty => "",
    space => "  \t\r\n ",
    quotes => r#"it's "quoted" \ `back`"#,
    looks_like_sql => "'; DROP TABLE tasks; -- $1 ?1 :x %s {s}",
    emoji_and_combining => "\u{1F469}\u{200D}\u{1F680} e\u{301} \u{e9}",
    right_to_left => "\u{202e}\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
    control_characters => "\u{1}\u{7f}\u{85}\u{feff}",
    last_code_point => "\u{10FFFF}\u{FFFE}",
    array_syntax => "{a,b,NULL,\"c\"}",
}

case! { G5, g5_the_longest_text_comes_back(t) {
    let text = Text::new("\u{e9}".repeat(ork_state_api::limits::MAX_TEXT_BYTES / 2))?;
    let new = NewWorkflow::new("w".parse()?, crate::dag("a")?).with_description(text.clone());
    let workflow = t.db().create_workflow(new).await?;
    assert!(t.db().get_workflow(workflow.id).await?.description == Some(text));
    Ok(())
}}

case! { G5, g5_awkward_names_come_back(t, name: &str) {
    let second = TaskSpec::new("plain".parse()?, Label::new(name)?).after([name.parse()?]);
    let dag = Dag::new([TaskSpec::new(name.parse()?, Label::new(name)?), second])?;
    let workflow = t.db().create_workflow(NewWorkflow::new(WorkflowName::new(name)?, dag)).await?;
    assert_eq!(t.db().find_workflow(&workflow.name).await?, workflow);
    let new = NewRun::new(workflow.id).with_trigger(Label::new(name)?).with_idempotency_key(Label::new(name)?);
    let run = t.db().create_run(new).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let claimed = t.db().claim_tasks(crate::claim_request(name, crate::LEASE)?).await?.remove(0);
    t.update([TaskUpdate::dispatched(claimed.claim, Some(Label::new(name)?))]).await?;
    let task = t.task(run.id, name).await?;
    assert_eq!(task.execution_name.as_deref(), Some(name));
    assert_eq!((task.executor_type.as_str(), task.lease.map(|lease| String::from(lease.owner))), (name, Some(name.to_owned())));
    assert_eq!(t.task(run.id, "plain").await?.depends_on, [name.parse()?]);
    t.succeed(&claimed).await?;
    let claim = crate::claim_request("w", crate::LEASE)?.with_dependency_outputs();
    assert_eq!(t.db().claim_tasks(claim).await?.remove(0).dependency_outputs.into_keys().collect::<Vec<_>>(), [name.parse()?]);
    let run = t.db().get_run(run.id).await?;
    assert_eq!((run.triggered_by.as_str(), run.idempotency_key.as_deref()), (name, Some(name)));
    Ok(())
}
    quotes => "it's \"x\"",
    array_syntax => "{a,b}",
    json_syntax => "[\"a\"]",
    null_word => "NULL",
    spaces => " two  words ",
    comma => "a,b",
    percent => "%_%",
    unicode => "\u{5e9}\u{1F600}\u{e9}",
    longest => "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
}
