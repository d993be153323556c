use std::collections::BTreeMap;
use std::time::Duration;

use ork_state_api::{JobStatus, Limit, Prune, RetryRun, RunStatus, Stats, TaskStatus, TaskUpdate, Text};

use crate::case::case;
use crate::{CaseResult, Ctx, LEASE};

/// Counts by listing, and compares.
async fn check(t: &Ctx) -> CaseResult {
    let mut counted = Stats::none();
    counted.workflows = t.db().count_workflows(ork_state_api::WorkflowFilter::all()).await?;
    let mut page = ork_state_api::PageRequest::default();
    loop {
        let runs = t.db().list_runs(page.into()).await?;
        for run in &runs.items {
            *counted.runs.entry(run.status).or_default() += 1;
            for task in t.tasks(run.id).await? {
                *counted.tasks.entry(task.status).or_default() += 1;
            }
        }
        match runs.next {
            Some(key) => page = ork_state_api::PageRequest::after(key, Limit::default()),
            None => break,
        }
    }
    let stats = t.db().stats().await?;
    counted.open_jobs.clone_from(&stats.open_jobs);
    counted.oldest_ready_at = t.db().ready_tasks(Limit::ONE).await?.first().map(|ready| ready.ready_at);
    assert_eq!(stats, counted);
    Ok(())
}

case! { M3, m3_an_empty_store_has_nothing(t) {
    let stats = t.db().stats().await?;
    assert_eq!(stats, Stats::none());
    assert!(RunStatus::ALL.iter().all(|status| stats.runs[status] == 0));
    assert!(TaskStatus::ALL.iter().all(|status| stats.tasks[status] == 0));
    Ok(())
}}

case! { M3, m3_every_step_is_counted(t) {
    t.pending_run("x").await?;
    check(&t).await?;
    let run = t.start("a b:a c*1 d").await?.id;
    check(&t).await?;
    let claimed = t.claim(2).await?;
    check(&t).await?;
    t.update([TaskUpdate::running(claimed[0].claim)]).await?;
    check(&t).await?;
    t.db().pause_run(run).await?;
    check(&t).await?;
    t.succeed(&claimed[0]).await?;
    check(&t).await?;
    t.db().resume_run(run).await?;
    t.fail(&claimed[1], Duration::ZERO).await?;
    check(&t).await?;
    let next = t.claim(1).await?.remove(0);
    t.update([TaskUpdate::failed_for_good(next.claim, Text::lossy("x"))]).await?;
    check(&t).await?;
    t.work_off().await?;
    check(&t).await?;
    Ok(())
}}

case! { [M3, R4, R6], m3_cancelling_retrying_and_deleting_are_counted(t) {
    let run = t.start("a b:a c").await?;
    t.succeed(&t.claim_one().await?).await?;
    t.claim_one().await?;
    t.db().cancel_run(run.id).await?;
    check(&t).await?;
    t.db().retry_run(RetryRun::from_tasks(run.id, ["c".parse()?])).await?;
    check(&t).await?;
    t.db().cancel_run(run.id).await?;
    t.db().retry_run(RetryRun::unsuccessful(run.id)).await?;
    check(&t).await?;
    t.work_off().await?;
    check(&t).await?;
    let other = t.start("x y").await?;
    t.work_off().await?;
    t.advance(LEASE);
    t.db().prune(Prune::older_than(Duration::ZERO).with_limit(Limit::ONE)).await?;
    check(&t).await?;
    t.db().delete_workflow(other.workflow).await?;
    check(&t).await?;
    let left = t.db().stats().await?;
    assert_eq!((left.runs.values().sum::<u64>(), left.tasks.values().sum::<u64>()), (0, 0));
    Ok(())
}}

case! { [M3, T3], m3_expiry_is_counted(t) {
    t.start("a*1 b c:b").await?;
    t.claim(10).await?;
    t.advance(LEASE);
    t.db().expire_leases(Limit::default()).await?;
    check(&t).await?;
    Ok(())
}}

case! { M3, m3_the_oldest_ready_task_tells_how_far_behind_schedulers_are(t) {
    t.start("a b").await?;
    let since = t.now();
    t.advance(Duration::from_secs(5));
    t.start("c").await?;
    assert_eq!(t.db().stats().await?.oldest_ready_at, Some(since));
    t.work_off().await?;
    assert_eq!(t.db().stats().await?.oldest_ready_at, None);
    t.start("a*1").await?;
    t.fail(&t.claim_one().await?, Duration::from_secs(60)).await?;
    assert_eq!(t.db().stats().await?.oldest_ready_at, None, "one whose time has not come is not ready");
    Ok(())
}}

case! { M3 needs [DeferredJobs], m3_open_jobs_are_counted(t) {
    let new = |name: &str| Ok::<_, ork_state_api::Error>(ork_state_api::NewDeferredJob::new("s".parse()?, name.parse()?, ork_state_api::Json::parse("{}")?));
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.db().defer_task(ork_state_api::DeferTask::new(a.claim, [new("1")?, new("2")?, new("3")?])?).await?;
    let request = ork_state_api::ClaimJobs::new("p".parse()?, ork_state_api::LeaseTime::new(LEASE)?);
    t.db().claim_jobs(request.with_limit(Limit::ONE)).await?;
    assert_eq!(t.db().stats().await?.open_jobs, BTreeMap::from([(JobStatus::Pending, 2), (JobStatus::Polling, 1)]));
    check(&t).await?;
    t.db().cancel_run(run.id).await?;
    assert_eq!(t.db().stats().await?.open_jobs, BTreeMap::from([(JobStatus::Pending, 0), (JobStatus::Polling, 0)]));
    Ok(())
}}
