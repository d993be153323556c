use std::time::Duration;

use ork_state_api::limits::MAX_BATCH_ITEMS;
use ork_state_api::{
    Claim, ExpiredTasks, HeartbeatOutcome, Limit, RunStatus, TaskId, TaskStatus, TaskUpdate, Token,
    UpdateOutcome,
};

use super::together;
use crate::case::case;
use crate::{Ctx, LEASE};

const MICRO: Duration = Duration::from_micros(1);

fn extended(t: &Ctx) -> HeartbeatOutcome {
    HeartbeatOutcome::Extended { expires_at: t.now().saturating_add(LEASE) }
}

case! { T3, t3_a_heartbeat_renews_from_now(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.advance(Duration::from_secs(40));
    assert_eq!(t.heartbeat(&[a.claim]).await?, [extended(&t)]);
    let lease = t.task(run.id, "a").await?.lease.ok_or("it is claimed")?;
    assert_eq!((lease.expires_at, lease.token, lease.owner.as_str()), (t.now().saturating_add(LEASE), a.claim.token, "tester"));
    t.advance(Duration::from_secs(59));
    assert_eq!(t.db().expire_leases(Limit::default()).await?, ExpiredTasks::default());
    Ok(())
}}

case! { T3, t3_a_heartbeat_may_shorten_a_lease(t) {
    t.start("a*1").await?;
    let a = t.claim_one().await?;
    let short = ork_state_api::LeaseTime::new(Duration::from_secs(1))?;
    t.db().heartbeat(ork_state_api::Heartbeat::new([a.claim], short)?).await?;
    t.advance(Duration::from_secs(1));
    assert_eq!(t.db().expire_leases(Limit::default()).await?.requeued, [a.task.id]);
    Ok(())
}}

case! { T3, t3_a_lease_is_live_until_its_last_microsecond(t) {
    t.start("a").await?;
    let a = t.claim_one().await?;
    t.advance(LEASE - MICRO);
    assert_eq!(t.db().expire_leases(Limit::default()).await?, ExpiredTasks::default());
    assert_eq!(t.heartbeat(&[a.claim]).await?, [extended(&t)]);
    Ok(())
}}

case! { T3, t3_a_lapsed_lease_is_not_renewed_though_nobody_took_the_task(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    t.advance(LEASE);
    assert_eq!(t.heartbeat(&[a.claim]).await?, [HeartbeatOutcome::Lost]);
    assert_eq!(t.task(run.id, "a").await?.lease, a.task.lease, "a refused renewal changes nothing");
    assert_eq!(t.db().expire_leases(Limit::default()).await?.requeued, [a.task.id]);
    Ok(())
}}

case! { T3, t3_a_stale_owner_cannot_renew(t) {
    let run = t.start("a*1").await?;
    let first = t.claim_one().await?;
    t.advance(LEASE);
    t.db().expire_leases(Limit::default()).await?;
    let second = t.claim_one().await?;
    t.advance(Duration::from_secs(1));
    assert_eq!(t.heartbeat(&[first.claim]).await?, [HeartbeatOutcome::Lost]);
    assert_eq!(t.task(run.id, "a").await?.lease, second.task.lease);
    Ok(())
}}

case! { T3, t3_an_invented_token_is_lost(t) {
    t.start("a").await?;
    let a = t.claim_one().await?;
    for token in [0, -1, a.claim.token.get() - 1, a.claim.token.get() + 1, i64::MAX, i64::MIN] {
        let claim = Claim { task: a.task.id, token: Token::from_stored(token) };
        assert_eq!(t.heartbeat(&[claim]).await?, [HeartbeatOutcome::Lost], "token {token}");
    }
    Ok(())
}}

case! { T3, t3_the_lease_of_an_ended_task_is_lost(t) {
    t.start("a b").await?;
    let (a, b) = (t.claim_one().await?, t.claim_one().await?);
    t.succeed(&a).await?;
    t.update([TaskUpdate::released(b.claim)]).await?;
    assert_eq!(t.heartbeat(&[a.claim, b.claim]).await?, [HeartbeatOutcome::Lost; 2]);
    Ok(())
}}

case! { T3, t3_the_lease_of_a_cancelled_task_is_lost(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.db().cancel_run(run.id).await?;
    assert_eq!(t.heartbeat(&[a.claim]).await?, [HeartbeatOutcome::Lost]);
    Ok(())
}}

case! { [T6, T3], t6_heartbeats_are_answered_one_by_one_in_order(t) {
    t.start("a b").await?;
    let (a, b) = (t.claim_one().await?, t.claim_one().await?);
    let unknown = Claim { task: TaskId::generate(), token: a.claim.token };
    let stale = Claim { task: b.task.id, token: Token::from_stored(b.claim.token.get() + 1) };
    let answers = t.heartbeat(&[b.claim, unknown, a.claim, stale, a.claim]).await?;
    let (live, lost) = (extended(&t), HeartbeatOutcome::Lost);
    assert_eq!(answers, [live, lost, live, lost, live]);
    Ok(())
}}

case! { T6, t6_an_empty_heartbeat_is_an_empty_answer(t) {
    assert!(t.heartbeat(&[]).await?.is_empty());
    Ok(())
}}

case! { T3, t3_an_expired_task_is_ready_again_with_an_attempt_spent(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    t.advance(LEASE);
    let expired = t.db().expire_leases(Limit::default()).await?;
    assert_eq!((expired.requeued, expired.failed.len(), expired.ended_runs.len()), (vec![a.task.id], 0, 0));
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.attempts, task.lease), (TaskStatus::Pending, 1, None));
    assert_eq!((task.ready_at, task.error.as_deref()), (Some(t.now()), Some("the lease of \"tester\" lapsed")));
    assert_eq!(t.claim_one().await?.task.attempts, 2);
    Ok(())
}}

case! { T3, t3_an_attempt_that_nobody_saw_run_began_when_it_lapsed(t) {
    let run = t.start("unseen*1 seen*1").await?;
    let claimed = t.claim(2).await?;
    t.advance(LEASE / 2);
    t.update([TaskUpdate::running(claimed[1].claim)]).await?;
    let seen_at = t.now();
    t.advance(LEASE / 2);
    t.db().expire_leases(Limit::default()).await?;
    assert_eq!(t.task(run.id, "unseen").await?.started_at, Some(t.now()));
    assert_eq!(t.task(run.id, "seen").await?.started_at, Some(seen_at));
    Ok(())
}}

case! { T3, t3_a_task_without_attempts_left_fails(t) {
    let run = t.start("a b:a").await?;
    let a = t.claim_one().await?;
    t.advance(LEASE);
    let expired = t.db().expire_leases(Limit::default()).await?;
    assert_eq!((expired.requeued.len(), expired.failed), (0, vec![a.task.id]));
    assert_eq!(expired.ended_runs.iter().map(|ended| (ended.run, ended.status)).collect::<Vec<_>>(), [(run.id, RunStatus::Failed)]);
    let (task, dependent) = (t.task(run.id, "a").await?, t.task(run.id, "b").await?);
    assert_eq!((task.status, task.error.as_deref()), (TaskStatus::Failed, Some("the lease of \"tester\" lapsed")));
    assert_eq!((dependent.status, dependent.error.as_deref()), (TaskStatus::Failed, Some("dependency \"a\" failed")));
    assert_eq!(t.db().get_run(run.id).await?.error.as_deref(), Some("task \"a\" failed"));
    Ok(())
}}

case! { T3, t3_a_running_task_expires_as_well(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    t.advance(LEASE);
    assert_eq!(t.db().expire_leases(Limit::default()).await?.requeued, [a.task.id]);
    assert_eq!(t.statuses(run.id).await?, "a=pending");
    Ok(())
}}

case! { T3, t3_live_leases_stay(t) {
    t.start("a*1 b*1").await?;
    let a = t.claim_one().await?;
    t.advance(Duration::from_secs(30));
    let b = t.claim_one().await?;
    t.advance(Duration::from_secs(30));
    assert_eq!(t.db().expire_leases(Limit::default()).await?.requeued, [a.task.id]);
    assert_eq!(t.heartbeat(&[b.claim]).await?, [extended(&t)]);
    Ok(())
}}

case! { T3, t3_the_limit_is_kept_longest_lapsed_first(t) {
    t.start("a*1 b*1 c*1").await?;
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(t.claim_one().await?.task.id);
        t.advance(Duration::from_secs(1));
    }
    t.advance(LEASE);
    for id in order {
        assert_eq!(t.db().expire_leases(Limit::ONE).await?.requeued, [id]);
    }
    assert!(t.db().expire_leases(Limit::ONE).await?.requeued.is_empty());
    Ok(())
}}

case! { T3, t3_several_callers_share_the_work(t) {
    t.start(&(0..100).map(|i| format!("t{i}*1 ")).collect::<String>()).await?;
    assert_eq!(t.claim(1000).await?.len(), 100);
    t.advance(LEASE);
    let callers = (0..6).map(|_| {
        let db = t.db().clone();
        async move {
            let mut mine = Vec::new();
            // Another caller may be taking the remaining tasks, so it asks until its share is
            // empty.
            loop {
                let expired = db.expire_leases(Limit::new(10)?).await?;
                if expired.requeued.is_empty() {
                    return Ok::<_, ork_state_api::Error>(mine);
                }
                mine.extend(expired.requeued);
            }
        }
    });
    let mut all = Vec::new();
    for mine in together(callers).await? {
        all.extend(mine?);
    }
    all.extend(t.db().expire_leases(Limit::new(1000)?).await?.requeued);
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    assert_eq!((count, all.len()), (100, 100));
    assert_eq!(t.claim(1000).await?.len(), 100);
    Ok(())
}}

case! { T3, t3_attempts_never_run_past_their_number(t) {
    let run = t.start("a*2").await?;
    for attempt in 1..=3 {
        assert_eq!(t.claim_one().await?.task.attempts, attempt);
        t.advance(LEASE);
        t.db().expire_leases(Limit::default()).await?;
        t.db().expire_leases(Limit::default()).await?;
    }
    let a = t.task(run.id, "a").await?;
    assert_eq!((a.status, a.attempts), (TaskStatus::Failed, 3));
    assert!(t.claim(1).await?.is_empty());
    Ok(())
}}

case! { [T3, T4], t3_expiry_races_with_completion(t) {
    for _ in 0..20 {
        let run = t.start("a*1").await?;
        let a = t.claim_one().await?;
        t.advance(LEASE - MICRO);
        let (first, second) = (t.clone(), t.clone());
        let completing = tokio::spawn(async move { first.succeed(&a).await });
        let expiring = tokio::spawn(async move {
            second.advance(MICRO);
            second.db().expire_leases(Limit::default()).await
        });
        let (report, expired) = (completing.await??, expiring.await??);
        match report.outcomes[0] {
            UpdateOutcome::Applied { .. } => assert_eq!((expired.requeued.len(), t.statuses(run.id).await?.as_str()), (0, "a=success")),
            _ => assert_eq!(report.outcomes, [UpdateOutcome::LeaseLost]),
        }
        t.db().expire_leases(Limit::default()).await?;
        t.work_off().await?;
        assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    }
    Ok(())
}}

case! { T3, t3_leases_that_lapsed_at_once_are_taken_back_by_id(t) {
    t.start("a*1 b*1 c*1 d*1").await?;
    let mut claimed = t.claim(4).await?;
    t.advance(Duration::from_secs(1));
    // Renewed from last to first, because the order must differ from that of the writes.
    claimed.sort_unstable_by_key(|task| std::cmp::Reverse(task.id));
    for task in &claimed {
        t.heartbeat(&[task.claim]).await?;
    }
    t.advance(LEASE);
    let mut order = Vec::new();
    for _ in 0..4 {
        order.extend(t.db().expire_leases(Limit::ONE).await?.requeued);
    }
    assert_eq!(order, claimed.iter().rev().map(|task| task.id).collect::<Vec<_>>());
    Ok(())
}}

case! { [T2, T3], t2_a_lapsed_task_is_not_ready_until_it_is_taken_back(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    t.advance(LEASE * 2);
    assert!(t.claim(10).await?.is_empty());
    assert!(t.db().ready_tasks(Limit::default()).await?.is_empty());
    assert_eq!(t.task(run.id, "a").await?, a.task);
    t.db().expire_leases(Limit::default()).await?;
    assert_eq!(t.claim(10).await?.len(), 1);
    Ok(())
}}

case! { [T5, T3], t5_several_tasks_fail_in_one_expiry(t) {
    let run = t.start("a b c:a d:b e:c,d other").await?;
    let mut claimed = t.claim(2).await?;
    claimed.sort_unstable_by_key(|task| task.id);
    t.advance(LEASE);
    let expired = t.db().expire_leases(Limit::default()).await?;
    assert_eq!(expired.failed, claimed.iter().map(|task| task.id).collect::<Vec<_>>());
    assert_eq!((expired.requeued.len(), expired.ended_runs.len()), (0, 0));
    assert_eq!(t.statuses(run.id).await?, "a=failed b=failed c=failed d=failed e=failed other=pending");
    for (task, error) in [("c", "dependency \"a\" failed"), ("d", "dependency \"b\" failed"), ("e", "dependency \"a\" failed")] {
        assert_eq!(t.task(run.id, task).await?.error.as_deref(), Some(error), "{task}");
    }
    let run = t.db().get_run(run.id).await?;
    assert_eq!((run.tasks.unfinished, run.tasks.failed, run.error.as_deref()), (1, 5, Some("task \"a\" failed")));
    Ok(())
}}

case! { T3, t3_a_heartbeat_races_with_expiry(t) {
    for _ in 0..20 {
        let run = t.start("a*1").await?;
        let a = t.claim_one().await?;
        t.advance(LEASE - MICRO);
        let (first, second, claim) = (t.clone(), t.clone(), a.claim);
        let renewing = tokio::spawn(async move { first.heartbeat(&[claim]).await });
        let expiring = tokio::spawn(async move {
            second.advance(MICRO);
            second.db().expire_leases(Limit::default()).await
        });
        let (renewed, mut expired) = (renewing.await??, expiring.await??);
        // The expiry may skip a lease while a heartbeat, though in vain, is looking at it.
        expired.requeued.extend(t.db().expire_leases(Limit::default()).await?.requeued);
        match renewed[..] {
            [HeartbeatOutcome::Extended { .. }] => {
                assert_eq!(expired, ExpiredTasks::default());
                t.succeed(&a).await?;
            }
            _ => {
                assert_eq!((renewed, expired.requeued), (vec![HeartbeatOutcome::Lost], vec![a.task.id]));
                t.work_off().await?;
            }
        }
        assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    }
    Ok(())
}}

case! { [T3, T6], t3_the_largest_heartbeat_goes_in_one_call(t) {
    t.start("a b").await?;
    let claimed = t.claim(2).await?;
    let nobody = |_| Claim { task: TaskId::generate(), token: claimed[0].claim.token };
    let mut claims: Vec<Claim> = (0..MAX_BATCH_ITEMS - 2).map(nobody).collect();
    claims.insert(40_000, claimed[0].claim);
    claims.push(claimed[1].claim);
    t.advance(Duration::from_secs(1));
    let answers = t.heartbeat(&claims).await?;
    assert_eq!(answers.len(), MAX_BATCH_ITEMS);
    assert_eq!((answers[40_000], answers[MAX_BATCH_ITEMS - 1]), (extended(&t), extended(&t)));
    assert_eq!(answers.iter().filter(|answer| **answer == HeartbeatOutcome::Lost).count(), MAX_BATCH_ITEMS - 2);
    Ok(())
}}

case! { T3, t3_nothing_lapsed_is_an_empty_answer(t) {
    t.start("a").await?;
    assert_eq!(t.db().expire_leases(Limit::default()).await?, ExpiredTasks::default());
    Ok(())
}}

case! { G4, g4_time_passes_only_with_the_injected_clock(t) {
    t.start("a*1 b*1").await?;
    let claimed = t.claim(2).await?;
    assert!(claimed.iter().all(|task| task.task.dispatched_at == Some(t.now())));
    assert_eq!(t.db().expire_leases(Limit::default()).await?, ExpiredTasks::default());
    t.advance(Duration::from_secs(86_400 * 365));
    assert_eq!(t.db().expire_leases(Limit::default()).await?.requeued.len(), 2);
    let again = t.claim(2).await?;
    assert!(again.iter().all(|task| task.task.dispatched_at == Some(t.now())));
    Ok(())
}}

case! { G4, g4_every_step_is_stamped_with_the_stores_time(t) {
    let run = t.start("a").await?;
    let mut stamps = vec![run.created_at];
    let step = |t: &Ctx| {
        t.advance(Duration::from_micros(7));
        t.now()
    };
    let dispatched = step(&t);
    let a = t.claim_one().await?;
    let started = step(&t);
    t.update([TaskUpdate::running(a.claim)]).await?;
    let finished = step(&t);
    t.succeed(&a).await?;
    let task = t.task(run.id, "a").await?;
    stamps.extend([task.dispatched_at, task.started_at, task.finished_at].into_iter().flatten());
    assert_eq!(stamps, [run.created_at, dispatched, started, finished]);
    assert_eq!(t.db().get_run(run.id).await?.finished_at, Some(finished));
    Ok(())
}}

case! { G4, g4_without_an_injected_clock_time_is_real(t) {
    let store = t.fixture().migrated().await?;
    let db = t.connect(&store.url()).await?;
    db.migrate().await?;
    let before = ork_state_api::Clock::now(&ork_state_api::SystemClock::default());
    let workflow = db.create_workflow(ork_state_api::NewWorkflow::new("w".parse()?, crate::dag("a")?)).await?;
    let difference = workflow.created_at.saturating_since(before).max(before.saturating_since(workflow.created_at));
    assert!(difference < Duration::from_secs(60), "{} against {before}", workflow.created_at);
    Ok(())
}}
