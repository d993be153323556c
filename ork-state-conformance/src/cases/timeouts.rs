use std::time::Duration;

use ork_state_api::backend::{dependency_failed_message, timed_out_message};
use ork_state_api::{
    Dag, ExpiredTasks, Limit, Run, RunStatus, TaskSpec, TaskStatus, TaskUpdate, TaskUpdates, UpdateOutcome,
};

use super::together;
use crate::case::case;
use crate::ctx::with;
use crate::{Ctx, LEASE};

const TIMEOUT: Duration = Duration::from_secs(10);

/// A started run of `a` (10 s, retried this often) and `b`, which depends on it.
async fn start(t: &Ctx, retries: u32) -> ork_state_api::Result<Run> {
    let a =
        TaskSpec::new("a".parse()?, "process".parse()?).with_timeout_seconds(10).with_max_retries(retries);
    let b = TaskSpec::new("b".parse()?, "process".parse()?).after(["a".parse()?]);
    let workflow = t.workflow(Dag::new([a, b])?).await?;
    let run = t.db().create_run(ork_state_api::NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(ork_state_api::StartRun::pinned(run.id)).await
}

async fn expire(t: &Ctx) -> ork_state_api::Result<ExpiredTasks> {
    t.db().expire_timeouts(Limit::new(100)?).await
}

case! { T8, t8_an_attempt_that_runs_too_long_is_tried_again(t) {
    let run = start(&t, 1).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT - Duration::from_micros(1));
    assert_eq!(expire(&t).await?, ExpiredTasks::default(), "its time is not over");
    t.advance(Duration::from_micros(1));
    let expired = expire(&t).await?;
    assert_eq!(expired, with(ExpiredTasks::default(), |expired| expired.requeued = vec![a.task.id]));
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.attempts, task.ready_at), (TaskStatus::Pending, 1, Some(t.now())));
    assert_eq!((task.lease, task.retry_at, task.error.as_deref()), (None, None, Some(&*timed_out_message(10))));
    assert_eq!(expire(&t).await?, ExpiredTasks::default(), "once");
    assert_eq!(t.work_off().await?, 2);
    Ok(())
}}

case! { [T8, T5], t8_without_attempts_left_it_fails_with_what_depends_on_it(t) {
    let run = start(&t, 0).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT);
    let expired = expire(&t).await?;
    assert_eq!((expired.requeued.len(), &expired.failed[..]), (0, &[a.task.id][..]));
    assert_eq!(expired.ended_runs.iter().map(|ended| (ended.run, ended.status)).collect::<Vec<_>>(), [(run.id, RunStatus::Failed)]);
    assert_eq!(t.statuses(run.id).await?, "a=failed b=failed");
    assert_eq!(t.task(run.id, "b").await?.error.as_deref(), Some(&*dependency_failed_message("a")));
    Ok(())
}}

case! { T8, t8_heartbeats_do_not_help(t) {
    start(&t, 0).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT / 2);
    t.heartbeat(&[a.claim]).await?;
    t.advance(TIMEOUT / 2);
    t.heartbeat(&[a.claim]).await?;
    assert_eq!(expire(&t).await?.failed, [a.task.id]);
    Ok(())
}}

case! { T8, t8_the_time_begins_when_it_runs(t) {
    start(&t, 0).await?;
    let a = t.claim_one().await?;
    t.advance(TIMEOUT * 2);
    assert_eq!(expire(&t).await?, ExpiredTasks::default(), "a dispatched task may wait for its executor");
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT / 2);
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT / 2);
    assert_eq!(expire(&t).await?.failed, [a.task.id], "reporting it again does not begin anew");
    Ok(())
}}

case! { T8, t8_every_attempt_has_the_whole_time(t) {
    start(&t, 1).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT);
    expire(&t).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT - Duration::from_micros(1));
    assert_eq!(expire(&t).await?, ExpiredTasks::default());
    t.advance(Duration::from_micros(1));
    assert_eq!(expire(&t).await?.failed, [a.task.id]);
    Ok(())
}}

case! { T8, t8_a_task_without_a_limit_runs_on(t) {
    t.start("a").await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(LEASE * 1_000_000);
    assert_eq!(expire(&t).await?, ExpiredTasks::default());
    Ok(())
}}

case! { T8, t8_until_it_is_ended_it_may_succeed(t) {
    let run = start(&t, 0).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT * 2);
    t.succeed(&a).await?;
    assert_eq!(expire(&t).await?, ExpiredTasks::default());
    assert_eq!(t.statuses(run.id).await?, "a=success b=pending");
    Ok(())
}}

case! { [T8, T4], t8_afterwards_its_claim_is_over(t) {
    start(&t, 1).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(TIMEOUT);
    expire(&t).await?;
    let report = t.update([TaskUpdate::succeeded(a.claim, None)]).await?;
    assert_eq!(report.outcomes, [UpdateOutcome::LeaseLost]);
    Ok(())
}}

case! { [T8, T3], t8_a_lapsed_lease_and_a_timeout_are_one_end(t) {
    let run = start(&t, 5).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(LEASE + TIMEOUT);
    let first = t.db().expire_leases(Limit::new(10)?).await?;
    assert_eq!((first.requeued, expire(&t).await?), (vec![a.task.id], ExpiredTasks::default()));
    assert_eq!(t.task(run.id, "a").await?.attempts, 1);
    Ok(())
}}

case! { [T8, R5], t8_in_a_paused_run_it_waits_for_the_resumption(t) {
    let run = start(&t, 1).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.db().pause_run(run.id).await?;
    t.advance(TIMEOUT);
    assert_eq!(expire(&t).await?.requeued, [a.task.id]);
    assert!(t.claim(10).await?.is_empty());
    t.db().resume_run(run.id).await?;
    assert_eq!(t.work_off().await?, 2);
    Ok(())
}}

case! { T8, t8_the_limit_is_kept_longest_overdue_first(t) {
    let mut claimed = Vec::new();
    for _ in 0..3 {
        start(&t, 0).await?;
        let a = t.claim_one().await?;
        t.update([TaskUpdate::running(a.claim)]).await?;
        t.advance(Duration::from_secs(1));
        claimed.push(a.task.id);
    }
    t.advance(TIMEOUT);
    for id in claimed {
        assert_eq!(t.db().expire_timeouts(Limit::ONE).await?.failed, [id]);
    }
    assert_eq!(expire(&t).await?, ExpiredTasks::default());
    Ok(())
}}

case! { [T8, T4], t8_it_races_with_completion(t) {
    for _ in 0..10 {
        let run = start(&t, 0).await?;
        let a = t.claim_one().await?;
        t.update([TaskUpdate::running(a.claim)]).await?;
        t.advance(TIMEOUT);
        let (one, other) = (t.db().clone(), t.db().clone());
        let expiring = tokio::spawn(async move { one.expire_timeouts(Limit::default()).await });
        let updates = TaskUpdates::one(TaskUpdate::succeeded(a.claim, None));
        let updated = tokio::spawn(async move { other.update_tasks(updates).await }).await??;
        let expired = expiring.await??;
        let succeeded = matches!(updated.outcomes[0], UpdateOutcome::Applied { .. });
        assert_eq!(expired.failed.len(), usize::from(!succeeded), "one of the two ended it");
        let wanted = if succeeded { "a=success b=pending" } else { "a=failed b=failed" };
        assert_eq!(t.statuses(run.id).await?, wanted);
        t.work_off().await?;
    }
    Ok(())
}}

case! { T8, t8_several_callers_share_the_work(t) {
    for _ in 0..20 {
        start(&t, 0).await?;
    }
    let claimed = t.claim(100).await?;
    t.update(claimed.iter().map(|task| TaskUpdate::running(task.claim))).await?;
    t.advance(TIMEOUT);
    let calls = (0..4).map(|_| {
        let db = t.db().clone();
        async move { db.expire_timeouts(Limit::new(100)?).await }
    });
    let mut failed = Vec::new();
    for expired in together(calls).await? {
        failed.extend(expired?.failed);
    }
    failed.sort_unstable();
    let mut wanted: Vec<_> = claimed.iter().map(|task| task.id).collect();
    wanted.sort_unstable();
    assert_eq!(failed, wanted);
    Ok(())
}}
