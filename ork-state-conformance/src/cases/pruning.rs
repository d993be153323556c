use std::time::Duration;

use ork_state_api::ErrorKind::NotFound;
use ork_state_api::{Limit, NewRun, Prune, Pruned, RetryRun, RunFilter, RunId, StartRun, TaskUpdate, Text};

use super::{assert_fails, together};
use crate::case::case;
use crate::{Ctx, LEASE, dag};

const HOUR: Duration = Duration::from_secs(3600);

async fn prune(t: &Ctx, older_than: Duration, limit: usize) -> ork_state_api::Result<Pruned> {
    t.db().prune(Prune::older_than(older_than).with_limit(Limit::new(limit)?)).await
}

/// An ended run with these tasks.
async fn ended(t: &Ctx, tasks: &str) -> ork_state_api::Result<RunId> {
    let run = t.start(tasks).await?.id;
    t.work_off().await?;
    Ok(run)
}

case! { M2, m2_runs_that_ended_long_ago_are_deleted(t) {
    let old = ended(&t, "a b:a").await?;
    let failed = t.start("a").await?.id;
    t.update([TaskUpdate::failed_for_good(t.claim_one().await?.claim, Text::lossy("x"))]).await?;
    let cancelled = t.start("a").await?.id;
    t.db().cancel_run(cancelled).await?;
    t.advance(HOUR);
    let young = ended(&t, "c").await?;
    t.advance(Duration::from_micros(1));
    assert_eq!(prune(&t, HOUR, 100).await?, Pruned::new(3, 4));
    for gone in [old, failed, cancelled] {
        assert_fails!(t.db().get_run(gone).await, NotFound { .. });
    }
    assert_eq!(t.db().get_run(young).await?.tasks.total, 1);
    assert_eq!(t.db().count_runs(RunFilter::all()).await?, 1);
    Ok(())
}}

case! { M2, m2_the_age_is_exact(t) {
    ended(&t, "a").await?;
    t.advance(HOUR);
    assert_eq!(prune(&t, HOUR, 100).await?, Pruned::default(), "it ended just so long ago");
    t.advance(Duration::from_micros(1));
    assert_eq!(prune(&t, HOUR, 100).await?.runs, 1);
    Ok(())
}}

case! { M2, m2_live_runs_stay_however_old(t) {
    let pending = t.pending_run("a").await?.id;
    let paused = t.start("a").await?.id;
    t.db().pause_run(paused).await?;
    let running = t.start("a").await?.id;
    t.claim_one().await?;
    t.advance(HOUR * 10_000);
    assert_eq!(prune(&t, Duration::ZERO, 100).await?, Pruned::default());
    for run in [pending, paused, running] {
        t.db().get_run(run).await?;
    }
    Ok(())
}}

case! { M2, m2_a_batch_is_bounded_longest_ended_first(t) {
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(ended(&t, "a").await?);
        t.advance(Duration::from_secs(1));
    }
    assert_eq!(prune(&t, Duration::ZERO, 2).await?, Pruned::new(2, 2));
    assert_fails!(t.db().get_run(runs[1]).await, NotFound { .. });
    t.db().get_run(runs[2]).await?;
    assert_eq!(prune(&t, Duration::ZERO, 2).await?.runs, 2);
    assert_eq!(prune(&t, Duration::ZERO, 2).await?.runs, 1);
    assert_eq!(prune(&t, Duration::ZERO, 2).await?, Pruned::default());
    Ok(())
}}

case! { M2, m2_all_that_was_the_runs_is_gone(t) {
    let workflow = t.workflow(dag("a b:a")?).await?;
    let new = NewRun::new(workflow.id).with_idempotency_key("k".parse()?);
    let run = t.db().create_run(new.clone()).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let task = t.task(run.id, "a").await?.id;
    t.work_off().await?;
    t.advance(LEASE);
    assert_eq!(prune(&t, Duration::ZERO, 100).await?, Pruned::new(1, 2));
    assert_fails!(t.db().get_task(task).await, NotFound { .. });
    assert_eq!(t.db().get_workflow(workflow.id).await?, workflow);
    let again = t.db().create_run(new).await?;
    assert!(matches!(again, ork_state_api::CreatedRun::New(_)), "its key is free again");
    Ok(())
}}

case! { [M2, L2] needs [Logs], m2_logs_go_with_their_run(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.db().append_log(a.task.id, ork_state_api::LogChunk::new(b"x")?).await?;
    t.succeed(&a).await?;
    t.advance(LEASE);
    prune(&t, Duration::ZERO, 1).await?;
    let range = ork_state_api::LogRange::new(ork_state_api::LogPosition::Offset(0), 1)?;
    assert_fails!(t.db().read_log(a.task.id, range).await, NotFound { .. });
    assert_fails!(t.db().get_run(run.id).await, NotFound { .. });
    Ok(())
}}

case! { [M2, R6], m2_a_retried_run_is_live_again(t) {
    let run = t.start("a").await?.id;
    t.db().cancel_run(run).await?;
    t.advance(HOUR);
    t.db().retry_run(RetryRun::unsuccessful(run)).await?;
    assert_eq!(prune(&t, Duration::ZERO, 100).await?, Pruned::default());
    t.work_off().await?;
    assert_eq!(prune(&t, Duration::from_secs(1), 100).await?, Pruned::default(), "it ended just now");
    Ok(())
}}

case! { M2, m2_several_callers_share_the_work(t) {
    for _ in 0..30 {
        ended(&t, "a").await?;
    }
    t.advance(LEASE);
    let calls = (0..4).map(|_| {
        let t = t.clone();
        async move {
            let mut all = 0;
            loop {
                match prune(&t, Duration::ZERO, 3).await?.runs {
                    0 => return Ok::<u64, ork_state_api::Error>(all),
                    runs => all += runs,
                }
            }
        }
    });
    let mut all = 0;
    for runs in together(calls).await? {
        all += runs?;
    }
    assert_eq!((all, t.db().count_runs(RunFilter::all()).await?), (30, 0));
    Ok(())
}}
