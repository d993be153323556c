use std::time::Duration;

use ork_state_api::ErrorKind::Unsupported;
use ork_state_api::{Capability, RetryRun, TaskUpdate, Text, Topic, Watch};

use super::assert_fails;
use crate::CaseResult;
use crate::case::case;

/// Far longer than a hint may take. Cases wait for hints in real time.
const PATIENCE: Duration = Duration::from_secs(20);

async fn is_told(watch: &mut Watch, of: &str) -> CaseResult {
    match tokio::time::timeout(PATIENCE, watch.changed()).await {
        Ok(told) => Ok(told?),
        Err(_) => Err(format!("no hint of {of} within {PATIENCE:?}").into()),
    }
}

case! { M5 needs [Notifications], m5_a_started_run_is_a_hint(t) {
    let mut ready = t.db().watch(Topic::Ready).await?;
    t.start("a").await?;
    is_told(&mut ready, "a started run").await
}}

case! { M5 needs [Notifications], m5_a_dependent_that_becomes_ready_is_a_hint(t) {
    t.start("a b:a").await?;
    let a = t.claim_one().await?;
    let mut ready = t.db().watch(Topic::Ready).await?;
    t.succeed(&a).await?;
    is_told(&mut ready, "a ready dependent").await
}}

case! { M5 needs [Notifications], m5_a_released_task_is_a_hint(t) {
    t.start("a").await?;
    let a = t.claim_one().await?;
    let mut ready = t.db().watch(Topic::Ready).await?;
    t.update([TaskUpdate::released(a.claim)]).await?;
    is_told(&mut ready, "a released task").await
}}

case! { M5 needs [Notifications], m5_a_resumed_or_retried_run_is_a_hint(t) {
    let run = t.start("a").await?.id;
    t.db().pause_run(run).await?;
    let mut ready = t.db().watch(Topic::Ready).await?;
    t.db().resume_run(run).await?;
    is_told(&mut ready, "a resumed run").await?;
    t.db().cancel_run(run).await?;
    let mut ready = t.db().watch(Topic::Ready).await?;
    t.db().retry_run(RetryRun::unsuccessful(run)).await?;
    is_told(&mut ready, "a retried run").await
}}

case! { M5 needs [Notifications], m5_an_ended_run_is_a_hint(t) {
    for how in ["success", "failed", "cancelled"] {
        let run = t.start("a").await?.id;
        let a = t.claim_one().await?;
        let mut ended = t.db().watch(Topic::RunEnded).await?;
        match how {
            "success" => drop(t.succeed(&a).await?),
            "failed" => drop(t.update([TaskUpdate::failed_for_good(a.claim, Text::lossy("x"))]).await?),
            _ => drop(t.db().cancel_run(run).await?),
        }
        is_told(&mut ended, how).await?;
    }
    Ok(())
}}

case! { M5 needs [Notifications, MultiProcess, Durable], m5_hints_come_from_other_handles(t) {
    let other = t.reopen().await?;
    let (mut ready, mut ended) = (other.watch(Topic::Ready).await?, other.watch(Topic::RunEnded).await?);
    t.start("a b:a").await?;
    is_told(&mut ready, "a run that another handle started").await?;
    let a = t.claim_one().await?;
    let mut ready = other.watch(Topic::Ready).await?;
    t.succeed(&a).await?;
    is_told(&mut ready, "a task that another handle made ready").await?;
    t.succeed(&t.claim_one().await?).await?;
    is_told(&mut ended, "a run that another handle ended").await
}}

case! { M5 needs [Notifications], m5_every_watcher_is_told(t) {
    let mut watches = Vec::new();
    for _ in 0..5 {
        watches.push(t.db().watch(Topic::Ready).await?);
    }
    t.start("a").await?;
    for watch in &mut watches {
        is_told(watch, "a started run").await?;
    }
    Ok(())
}}

case! { [M5, G9] needs [Notifications], m5_a_dropped_wait_loses_no_hint(t) {
    let mut ready = t.db().watch(Topic::Ready).await?;
    for _ in 0..5 {
        drop(tokio::time::timeout(Duration::ZERO, ready.changed()).await);
    }
    t.start("a").await?;
    is_told(&mut ready, "a started run").await
}}

case! { [M5, G7] without Notifications, m5_an_opt_out_is_refused(t) {
    for topic in [Topic::Ready, Topic::RunEnded] {
        assert_fails!(t.db().watch(topic).await, Unsupported { capability: Capability::Notifications, .. });
    }
    t.start("a").await?;
    assert_eq!(t.work_off().await?, 1);
    Ok(())
}}
