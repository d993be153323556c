use std::time::Duration;

use ork_state_api::UpdateOutcome::Applied;
use ork_state_api::{Limit, RunStatus, TaskStatus, TaskUpdate, Text};

use crate::Ctx;
use crate::case::case;
use crate::ctx::counts;

async fn error_of(t: &Ctx, run: ork_state_api::RunId, task: &str) -> ork_state_api::Result<Option<String>> {
    Ok(t.task(run, task).await?.error.map(String::from))
}

case! { T5, t5_a_failure_with_attempts_left_is_retried_after_the_delay(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    assert_eq!(t.fail(&a, Duration::from_secs(10)).await?.outcomes, [Applied { status: TaskStatus::Pending }]);
    let at = t.now().saturating_add(Duration::from_secs(10));
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.attempts, task.error.as_deref()), (TaskStatus::Pending, 1, Some("broken")));
    assert_eq!((task.retry_at, task.ready_at, task.finished_at, task.lease), (Some(at), Some(at), None, None));
    t.advance(Duration::from_secs(10) - Duration::from_micros(1));
    assert!(t.claim(1).await?.is_empty() && t.db().ready_tasks(Limit::ONE).await?.is_empty());
    t.advance(Duration::from_micros(1));
    assert_eq!(t.claim_one().await?.task.attempts, 2);
    Ok(())
}}

case! { T5, t5_retry_times_keep_their_microseconds(t) {
    let run = t.start("a*1").await?;
    t.fail(&t.claim_one().await?, Duration::from_micros(1_500_001)).await?;
    assert_eq!(t.task(run.id, "a").await?.retry_at, Some(t.now().saturating_add(Duration::from_micros(1_500_001))));
    Ok(())
}}

case! { T5, t5_a_retry_without_delay_is_ready_at_once(t) {
    t.start("a*1").await?;
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    assert_eq!(t.claim(1).await?.len(), 1);
    Ok(())
}}

case! { T5, t5_the_last_attempt_fails_for_good(t) {
    let run = t.start("a*1").await?;
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    assert_eq!(t.fail(&t.claim_one().await?, Duration::ZERO).await?.outcomes, [Applied { status: TaskStatus::Failed }]);
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.attempts, task.finished_at), (TaskStatus::Failed, 2, Some(t.now())));
    assert_eq!((task.retry_at, task.ready_at), (None, None));
    assert!(t.claim(1).await?.is_empty());
    Ok(())
}}

case! { T5, t5_one_retry_means_two_attempts(t) {
    let run = t.start("a*1").await?;
    let mut attempts = 0;
    while let Some(task) = t.claim(1).await?.pop() {
        attempts += 1;
        assert_eq!(task.attempts, attempts);
        t.fail(&task, Duration::ZERO).await?;
    }
    assert_eq!((attempts, t.task(run.id, "a").await?.attempts), (2, 2));
    Ok(())
}}

case! { T5, t5_no_retry_is_made_where_none_is_wanted(t) {
    let run = t.start("a*9").await?;
    let a = t.claim_one().await?;
    let report = t.update([TaskUpdate::failed_for_good(a.claim, Text::new("hopeless")?)]).await?;
    assert_eq!(report.outcomes, [Applied { status: TaskStatus::Failed }]);
    assert_eq!((error_of(&t, run.id, "a").await?.as_deref(), report.ended_runs.len()), (Some("hopeless"), 1));
    Ok(())
}}

case! { T5, t5_what_depends_on_a_failed_task_fails_however_far(t) {
    let run = t.start("a b:a c:b d:c other").await?;
    t.advance(Duration::from_secs(1));
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    assert_eq!(t.statuses(run.id).await?, "a=failed b=failed c=failed d=failed other=pending");
    for task in ["b", "c", "d"] {
        assert_eq!(error_of(&t, run.id, task).await?.as_deref(), Some("dependency \"a\" failed"));
    }
    let d = t.task(run.id, "d").await?;
    assert_eq!((d.finished_at, d.attempts, d.started_at), (Some(t.now()), 0, None));
    let run = t.db().get_run(run.id).await?;
    assert_eq!((run.status, run.tasks), (RunStatus::Running, counts(5, 1, 4, 0)));
    Ok(())
}}

case! { T5, t5_a_retried_failure_leaves_dependents_waiting(t) {
    let run = t.start("a*1 b:a").await?;
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    assert_eq!(t.statuses(run.id).await?, "a=pending b=pending");
    assert_eq!(t.work_off().await?, 2);
    Ok(())
}}

case! { T5, t5_one_failed_dependency_of_many_is_enough(t) {
    let run = t.start("a b c:a,b").await?;
    let (a, b) = (t.claim_one().await?, t.claim_one().await?);
    t.fail(&a, Duration::ZERO).await?;
    assert_eq!(t.statuses(run.id).await?, "a=failed b=dispatched c=failed");
    t.succeed(&b).await?;
    assert_eq!(t.statuses(run.id).await?, "a=failed b=success c=failed");
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Failed);
    Ok(())
}}

case! { T5, t5_a_success_and_a_failure_in_one_batch_fail_their_dependent(t) {
    let run = t.start("a b c:a,b d:c").await?;
    let (a, b) = (t.claim_one().await?, t.claim_one().await?);
    let report = t
        .update([TaskUpdate::succeeded(a.claim, None), TaskUpdate::failed_for_good(b.claim, Text::new("x")?)])
        .await?;
    assert_eq!(report.ended_runs.len(), 1);
    assert_eq!(t.statuses(run.id).await?, "a=success b=failed c=failed d=failed");
    assert_eq!(t.task(run.id, "c").await?.unmet_dependencies, 1);
    Ok(())
}}

case! { T5, t5_of_several_culprits_the_lowest_index_is_named(t) {
    let run = t.start("a b c d:c,b e:a f:d,e").await?;
    let claimed = t.claim(3).await?;
    t.update(claimed.iter().rev().map(|task| TaskUpdate::failed_for_good(task.claim, Text::lossy("x")))).await?;
    assert_eq!(error_of(&t, run.id, "d").await?.as_deref(), Some("dependency \"b\" failed"));
    assert_eq!(error_of(&t, run.id, "e").await?.as_deref(), Some("dependency \"a\" failed"));
    assert_eq!(error_of(&t, run.id, "f").await?.as_deref(), Some("dependency \"a\" failed"));
    assert_eq!(t.db().get_run(run.id).await?.error.as_deref(), Some("task \"a\" failed"));
    Ok(())
}}

case! { T5, t5_the_first_culprit_stays_named(t) {
    let run = t.start("a b c:a,b").await?;
    let (a, b) = (t.claim_one().await?, t.claim_one().await?);
    t.fail(&b, Duration::ZERO).await?;
    t.fail(&a, Duration::ZERO).await?;
    assert_eq!(error_of(&t, run.id, "c").await?.as_deref(), Some("dependency \"b\" failed"));
    assert_eq!(t.db().get_run(run.id).await?.error.as_deref(), Some("task \"b\" failed"));
    Ok(())
}}

case! { T5, t5_a_diamond_fails_each_task_once(t) {
    let run = t.start("a b:a c:a d:b,c e:d,b").await?;
    let report = t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    assert_eq!(report.ended_runs.len(), 1);
    assert_eq!(t.db().get_run(run.id).await?.tasks, counts(5, 0, 5, 0));
    Ok(())
}}

case! { T5, t5_a_thousand_dependents_fail_in_the_same_call(t) {
    let fan: String = (0..1000).map(|i| format!(" t{i}:root")).collect();
    let run = t.start(&format!("root{fan}")).await?;
    assert_eq!(t.fail(&t.claim_one().await?, Duration::ZERO).await?.ended_runs.len(), 1);
    assert_eq!(t.db().get_run(run.id).await?.tasks, counts(1001, 0, 1001, 0));
    Ok(())
}}

case! { T5, t5_a_long_chain_fails_in_the_same_call(t) {
    let links: String = (1..2000).map(|i| format!(" t{i}:t{}", i - 1)).collect();
    let run = t.start(&format!("t0{links}")).await?;
    assert_eq!(t.fail(&t.claim_one().await?, Duration::ZERO).await?.ended_runs.len(), 1);
    assert_eq!(error_of(&t, run.id, "t1999").await?.as_deref(), Some("dependency \"t0\" failed"));
    Ok(())
}}

case! { T5, t5_failures_in_other_runs_do_not_matter(t) {
    let (bad, good) = (t.start("a b:a").await?, t.start("a b:a").await?);
    let claimed = t.claim(2).await?;
    for task in &claimed {
        if task.run == bad.id { t.fail(task, Duration::ZERO).await? } else { t.succeed(task).await? };
    }
    assert_eq!(t.statuses(bad.id).await?, "a=failed b=failed");
    assert_eq!(t.statuses(good.id).await?, "a=success b=pending");
    Ok(())
}}

case! { T5, t5_names_in_errors_are_taken_literally(t) {
    let name = "it's \"50%\" {done} $1 \u{1F600}";
    let first = ork_state_api::TaskSpec::new(name.parse()?, "process".parse()?);
    let second = ork_state_api::TaskSpec::new("b".parse()?, "process".parse()?).after([name.parse()?]);
    let workflow = t.workflow(ork_state_api::Dag::new([first, second])?).await?;
    let run = t.db().create_run(ork_state_api::NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(ork_state_api::StartRun::pinned(run.id)).await?;
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    assert_eq!(error_of(&t, run.id, "b").await?, Some(ork_state_api::backend::dependency_failed_message(name)));
    assert_eq!(t.db().get_run(run.id).await?.error.as_deref(), Some(ork_state_api::backend::task_failed_message(name).as_str()));
    Ok(())
}}
