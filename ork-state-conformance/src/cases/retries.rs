use ork_state_api::ErrorKind::{Conflict, InvalidTransition, NotFound};
use ork_state_api::backend::{task_cancelled_message, task_failed_message};
use ork_state_api::{
    Json, LogChunk, LogPosition, LogRange, RetryRun, Run, RunId, RunStatus, TaskName, TaskStatus, TaskUpdate,
    Text,
};

use super::{assert_fails, together};
use crate::case::case;
use crate::ctx::counts;
use crate::{CaseResult, Ctx};

/// Works a run off. The named tasks fail for good and all others succeed.
async fn work_off_failing(t: &Ctx, failing: &[&str]) -> CaseResult {
    loop {
        let claimed = t.claim(100).await?;
        if claimed.is_empty() {
            return Ok(());
        }
        let updates = claimed.iter().map(|task| {
            if failing.contains(&task.name.as_str()) {
                TaskUpdate::failed_for_good(task.claim, Text::lossy("broken"))
            } else {
                TaskUpdate::succeeded(task.claim, Json::parse("1").ok())
            }
        });
        t.update(updates.collect::<Vec<_>>()).await?;
    }
}

async fn failed_run(
    t: &Ctx,
    tasks: &str,
    failing: &[&str],
) -> Result<Run, Box<dyn std::error::Error + Send + Sync>> {
    let run = t.start(tasks).await?;
    work_off_failing(t, failing).await?;
    Ok(t.db().get_run(run.id).await?)
}

async fn retry_named(t: &Ctx, run: RunId, names: &[&str]) -> ork_state_api::Result<Run> {
    let names: ork_state_api::Result<Vec<TaskName>> = names.iter().map(|name| name.parse()).collect();
    t.db().retry_run(RetryRun::from_tasks(run, names?)).await
}

case! { R6, r6_what_failed_is_done_again_and_successes_stay(t) {
    let run = failed_run(&t, "a b c:b d:a,c e:a", &["b"]).await?;
    assert_eq!(t.statuses(run.id).await?, "a=success b=failed c=failed d=failed e=success");
    t.advance(crate::LEASE);
    let again = t.db().retry_run(RetryRun::unsuccessful(run.id)).await?;
    assert_eq!((again.status, again.error.clone(), again.finished_at), (RunStatus::Running, None, None));
    assert_eq!(again.tasks, counts(5, 3, 0, 0));
    assert_eq!((again.started_at, again.created_at), (run.started_at, run.created_at));
    assert_eq!(t.db().get_run(run.id).await?, again);
    assert_eq!(t.statuses(run.id).await?, "a=success b=pending c=pending d=pending e=success");
    let (b, d) = (t.task(run.id, "b").await?, t.task(run.id, "d").await?);
    assert_eq!((b.ready_at, b.attempts, b.error.clone(), b.unmet_dependencies), (Some(t.now()), 0, None, 0));
    assert_eq!((b.started_at, b.finished_at, b.dispatched_at, b.retry_at), (None, None, None, None));
    assert_eq!((d.ready_at, d.unmet_dependencies, d.error, d.finished_at), (None, 1, None, None));
    assert_eq!(t.work_off().await?, 3);
    let ended = t.db().get_run(run.id).await?;
    assert_eq!((ended.status, ended.finished_at, ended.error), (RunStatus::Success, Some(t.now()), None));
    Ok(())
}}

case! { R6, r6_a_cancelled_run_goes_on(t) {
    let run = t.start("a b:a c").await?;
    let a = t.claim_one().await?;
    t.succeed(&a).await?;
    let c = t.claim_one().await?;
    t.db().cancel_run(run.id).await?;
    let again = t.db().retry_run(RetryRun::unsuccessful(run.id)).await?;
    assert_eq!(again.tasks, counts(3, 2, 0, 0));
    assert_eq!(t.statuses(run.id).await?, "a=success b=pending c=pending");
    let taken = t.claim(10).await?;
    let newer = taken.iter().find(|task| task.id == c.task.id).ok_or("c is ready")?;
    assert!(newer.claim.token > c.claim.token, "the tokens of a task grow over retries");
    t.update([TaskUpdate::succeeded(c.claim, None)]).await?;
    assert_eq!(t.statuses(run.id).await?, "a=success b=dispatched c=dispatched", "the old claim changes nothing");
    t.update(taken.iter().map(|task| TaskUpdate::succeeded(task.claim, None))).await?;
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { R6, r6_named_tasks_are_done_again_with_all_that_follows(t) {
    let run = failed_run(&t, "a b:a c:b d:a e", &[]).await?;
    assert_eq!(run.status, RunStatus::Success);
    let again = retry_named(&t, run.id, &["b"]).await?;
    assert_eq!(again.tasks, counts(5, 2, 0, 0));
    assert_eq!(t.statuses(run.id).await?, "a=success b=pending c=pending d=success e=success");
    let outputs = t.db().task_outputs(run.id, &["a".parse()?, "b".parse()?, "c".parse()?]).await?;
    let there: Vec<bool> = outputs.values().map(Option::is_some).collect();
    assert_eq!(there, [true, false, false], "what is done again has no output");
    assert_eq!(t.work_off().await?, 2);
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { [R3, R6], r3_a_run_in_which_a_cancelled_task_stays_does_not_succeed(t) {
    let run = t.start("a b c").await?;
    let b = t.claim(2).await?.pop().ok_or("two tasks are ready")?;
    t.succeed(&b).await?;
    t.db().cancel_run(run.id).await?;
    let again = retry_named(&t, run.id, &["a"]).await?;
    assert_eq!(again.tasks, counts(3, 1, 0, 1));
    assert_eq!(again.error.as_deref(), Some(&*task_cancelled_message("c")));
    assert_eq!(t.work_off().await?, 1);
    let ended = t.db().get_run(run.id).await?;
    assert_eq!((ended.status, ended.error), (RunStatus::Failed, again.error), "c never succeeded");
    t.db().retry_run(RetryRun::unsuccessful(run.id)).await?;
    assert_eq!(t.work_off().await?, 1);
    let ended = t.db().get_run(run.id).await?;
    assert_eq!((ended.status, ended.error), (RunStatus::Success, None));
    Ok(())
}}

case! { R6, r6_failures_that_are_not_named_stay(t) {
    let run = failed_run(&t, "a b c:a", &["a", "b"]).await?;
    assert_eq!(run.error.as_deref(), Some(&*task_failed_message("a")));
    let again = retry_named(&t, run.id, &["a"]).await?;
    assert_eq!(again.tasks, counts(3, 2, 1, 0));
    assert_eq!(again.error.as_deref(), Some(&*task_failed_message("b")));
    assert_eq!(t.work_off().await?, 2);
    let ended = t.db().get_run(run.id).await?;
    assert_eq!((ended.status, ended.error.as_deref()), (RunStatus::Failed, Some(&*task_failed_message("b"))));
    Ok(())
}}

case! { R6, r6_a_task_behind_another_failure_is_not_done_alone(t) {
    let run = failed_run(&t, "a b:a c:b", &["a"]).await?;
    let error = assert_fails!(retry_named(&t, run.id, &["b"]).await, Conflict { .. });
    let message = error.to_string();
    assert!(message.contains("\"b\"") && message.contains("\"a\""), "{message}");
    assert_eq!(t.db().get_run(run.id).await?, run);
    assert_eq!(t.statuses(run.id).await?, "a=failed b=failed c=failed");
    assert_eq!(retry_named(&t, run.id, &["b", "a"]).await?.tasks.unfinished, 3);
    Ok(())
}}

case! { R6, r6_a_dependent_of_two_failures_needs_both(t) {
    let run = failed_run(&t, "a b c:a,b", &["a", "b"]).await?;
    assert_fails!(retry_named(&t, run.id, &["a"]).await, Conflict { .. });
    retry_named(&t, run.id, &["a", "b"]).await?;
    assert_eq!(t.task(run.id, "c").await?.unmet_dependencies, 2);
    assert_eq!(t.work_off().await?, 3);
    Ok(())
}}

case! { [R6, T5], r6_a_task_done_again_has_all_its_attempts(t) {
    let run = t.start("a*1").await?;
    for _ in 0..2 {
        t.fail(&t.claim_one().await?, std::time::Duration::ZERO).await?;
    }
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Failed);
    t.db().retry_run(RetryRun::unsuccessful(run.id)).await?;
    t.fail(&t.claim_one().await?, std::time::Duration::ZERO).await?;
    assert_eq!(t.statuses(run.id).await?, "a=pending");
    t.fail(&t.claim_one().await?, std::time::Duration::ZERO).await?;
    let ended = t.db().get_run(run.id).await?;
    assert_eq!((ended.status, ended.tasks), (RunStatus::Failed, counts(1, 0, 1, 0)));
    Ok(())
}}

case! { R6, r6_a_retry_may_fail_and_be_retried(t) {
    let run = failed_run(&t, "a b:a c:b", &["b"]).await?;
    for _ in 0..3 {
        t.db().retry_run(RetryRun::unsuccessful(run.id)).await?;
        work_off_failing(&t, &["b"]).await?;
        let ended = t.db().get_run(run.id).await?;
        assert_eq!((ended.status, ended.error.as_deref()), (RunStatus::Failed, Some(&*task_failed_message("b"))));
        assert_eq!(t.statuses(run.id).await?, "a=success b=failed c=failed");
    }
    Ok(())
}}

case! { R6 needs [Logs], r6_logs_go_on(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.db().append_log(a.task.id, LogChunk::new(b"first ")?).await?;
    t.update([TaskUpdate::failed_for_good(a.claim, Text::lossy("x"))]).await?;
    t.db().retry_run(RetryRun::unsuccessful(run.id)).await?;
    t.db().append_log(a.task.id, LogChunk::new(b"second")?).await?;
    let log = t.db().read_log(a.task.id, LogRange::new(LogPosition::Offset(0), 100)?).await?;
    assert_eq!(log.bytes, b"first second");
    Ok(())
}}

case! { R6, r6_only_an_ended_run_with_something_to_do_is_retried(t) {
    let pending = t.pending_run("a").await?.id;
    let running = t.start("a").await?.id;
    let paused = t.start("a").await?.id;
    t.db().pause_run(paused).await?;
    let never_started = t.pending_run("a").await?.id;
    t.db().cancel_run(never_started).await?;
    let empty = t.start("").await?.id;
    t.db().cancel_run(running).await?;
    t.db().retry_run(RetryRun::unsuccessful(running)).await?;
    let success = t.start("a").await?.id;
    for run in [pending, running, paused, never_started, empty, success] {
        let before = t.db().get_run(run).await?;
        assert_fails!(t.db().retry_run(RetryRun::unsuccessful(run)).await, InvalidTransition { .. });
        assert_eq!(t.db().get_run(run).await?, before);
    }
    t.work_off().await?;
    assert_fails!(t.db().retry_run(RetryRun::unsuccessful(success)).await, InvalidTransition { .. });
    assert_fails!(retry_named(&t, success, &[]).await, InvalidTransition { .. });
    Ok(())
}}

case! { [R6, G7], r6_unknown_runs_and_names_are_not_found(t) {
    let run = failed_run(&t, "a", &["a"]).await?;
    assert_fails!(t.db().retry_run(RetryRun::unsuccessful(RunId::generate())).await, NotFound { .. });
    assert_fails!(retry_named(&t, run.id, &["a", "nobody"]).await, NotFound { .. });
    assert_eq!(t.db().get_run(run.id).await?, run);
    Ok(())
}}

case! { R6, r6_of_two_at_once_one_retries(t) {
    let run = failed_run(&t, "a b:a", &["a"]).await?;
    let retries = (0..4).map(|_| {
        let db = t.db().clone();
        async move { db.retry_run(RetryRun::unsuccessful(run.id)).await }
    });
    let answers = together(retries).await?;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    assert_eq!(t.work_off().await?, 2);
    Ok(())
}}

case! { R6, r6_a_thousand_tasks_are_done_again_in_one_call(t) {
    let fan: String = (0..1000).map(|i| format!(" t{i}:root")).collect();
    let run = failed_run(&t, &format!("root{fan}"), &["root"]).await?;
    assert_eq!(t.db().retry_run(RetryRun::unsuccessful(run.id)).await?.tasks.unfinished, 1001);
    assert_eq!(t.task(run.id, "t7").await?.status, TaskStatus::Pending);
    assert_eq!(t.work_off().await?, 1001);
    Ok(())
}}
