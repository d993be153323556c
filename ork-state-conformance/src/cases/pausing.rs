use std::time::Duration;

use ork_state_api::{HeartbeatOutcome, Limit, RunStatus, TaskStatus, TaskUpdate, UpdateOutcome};

use crate::case::case;

case! { R5, r5_a_paused_run_hands_out_nothing(t) {
    let run = t.start("a b").await?;
    t.db().pause_run(run.id).await?;
    assert!(t.db().ready_tasks(Limit::default()).await?.is_empty());
    assert!(t.claim(10).await?.is_empty());
    assert_eq!(t.task(run.id, "a").await?.ready_at, None);
    Ok(())
}}

case! { R5, r5_other_runs_go_on(t) {
    let (paused, going) = (t.start("a").await?, t.start("b").await?);
    t.db().pause_run(paused.id).await?;
    assert_eq!(t.claim_one().await?.task.run, going.id);
    assert!(t.claim(10).await?.is_empty());
    Ok(())
}}

case! { R5, r5_resumed_tasks_are_ready_from_now(t) {
    let run = t.start("a b:a").await?;
    t.db().pause_run(run.id).await?;
    t.advance(Duration::from_secs(9));
    t.db().resume_run(run.id).await?;
    assert_eq!(t.task(run.id, "a").await?.ready_at, Some(t.now()));
    assert_eq!(t.work_off().await?, 2);
    Ok(())
}}

case! { R5, r5_a_resumed_run_goes_to_the_end_of_the_queue(t) {
    let first = t.start("a").await?;
    t.advance(Duration::from_secs(1));
    let second = t.start("b").await?;
    t.db().pause_run(first.id).await?;
    t.advance(Duration::from_secs(1));
    t.db().resume_run(first.id).await?;
    let order: Vec<_> = t.claim(10).await?.iter().map(|task| task.run).collect();
    assert_eq!(order, [second.id, first.id]);
    Ok(())
}}

case! { R5, r5_what_runs_keeps_its_lease_and_finishes(t) {
    let run = t.start("a b:a").await?;
    let a = t.claim_one().await?;
    t.db().pause_run(run.id).await?;
    assert!(matches!(t.heartbeat(&[a.claim]).await?[..], [HeartbeatOutcome::Extended { .. }]));
    t.update([TaskUpdate::running(a.claim)]).await?;
    assert_eq!(t.succeed(&a).await?.outcomes, [UpdateOutcome::Applied { status: TaskStatus::Success }]);
    let b = t.task(run.id, "b").await?;
    assert_eq!((b.unmet_dependencies, b.ready_at), (0, None));
    assert!(t.claim(1).await?.is_empty(), "the dependent waits for the resumption");
    t.db().resume_run(run.id).await?;
    assert_eq!(t.claim_one().await?.task.name.as_str(), "b");
    Ok(())
}}

case! { [R5, R3], r5_the_last_task_ends_a_paused_run(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.db().pause_run(run.id).await?;
    assert_eq!(t.succeed(&a).await?.ended_runs[0].status, RunStatus::Success);
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { R5, r5_a_released_task_waits_for_the_resumption(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.db().pause_run(run.id).await?;
    t.update([TaskUpdate::released(a.claim)]).await?;
    assert!(t.claim(1).await?.is_empty());
    t.db().resume_run(run.id).await?;
    assert_eq!(t.claim_one().await?.task.attempts, 1);
    Ok(())
}}

case! { R5, r5_a_retry_waits_for_both_its_time_and_the_resumption(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    t.db().pause_run(run.id).await?;
    t.fail(&a, Duration::from_secs(100)).await?;
    let retry_at = t.task(run.id, "a").await?.retry_at;
    assert_eq!(retry_at, Some(t.now().saturating_add(Duration::from_secs(100))));
    t.advance(Duration::from_secs(50));
    t.db().resume_run(run.id).await?;
    assert_eq!(t.task(run.id, "a").await?.ready_at, retry_at);
    assert!(t.claim(1).await?.is_empty(), "not before its time");
    t.advance(Duration::from_secs(50));
    assert_eq!(t.claim_one().await?.task.attempts, 2);
    Ok(())
}}

case! { [R5, T3], r5_a_lapsed_lease_of_a_paused_run_waits_for_the_resumption(t) {
    let run = t.start("a*1").await?;
    t.claim_one().await?;
    t.db().pause_run(run.id).await?;
    t.advance(crate::LEASE);
    assert_eq!(t.db().expire_leases(Limit::default()).await?.requeued.len(), 1);
    assert!(t.claim(1).await?.is_empty());
    t.db().resume_run(run.id).await?;
    assert_eq!(t.claim(1).await?.len(), 1);
    Ok(())
}}

case! { R5, r5_pausing_many_times_loses_no_task(t) {
    let run = t.start("a b c:a,b d:c e:c f:d,e").await?;
    let mut done = 0;
    while done < 6 {
        t.db().pause_run(run.id).await?;
        assert!(t.claim(10).await?.is_empty());
        t.db().resume_run(run.id).await?;
        let task = t.claim_one().await?;
        t.db().pause_run(run.id).await?;
        t.succeed(&task).await?;
        done += 1;
        if done < 6 {
            t.db().resume_run(run.id).await?;
        }
    }
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { R5, r5_pausing_races_with_completion(t) {
    for _ in 0..20 {
        let run = t.start("a b:a c:b").await?;
        let a = t.claim_one().await?;
        let (first, second) = (t.clone(), t.clone());
        let pausing = tokio::spawn(async move { first.db().pause_run(run.id).await });
        let completing = tokio::spawn(async move { second.succeed(&a).await });
        pausing.await??;
        completing.await??;
        assert!(t.claim(10).await?.is_empty(), "whichever came first, the run is paused now");
        t.db().resume_run(run.id).await?;
        assert_eq!(t.work_off().await?, 2);
    }
    Ok(())
}}

case! { [R5, T2], r5_a_claim_races_with_a_pause(t) {
    for _ in 0..20 {
        let run = t.start("a b c:a,b").await?.id;
        let (first, second) = (t.clone(), t.db().clone());
        let claiming = tokio::spawn(async move { first.claim(1).await });
        let pausing = tokio::spawn(async move { second.pause_run(run).await });
        let (claimed, paused) = (claiming.await??, pausing.await??);
        assert_eq!(paused.status, RunStatus::Paused);
        assert!(t.claim(10).await?.is_empty(), "what was not claimed before waits");
        // Not always `a`: the pause may already hold it while `b` can still be claimed.
        let taken = |name: &str| claimed.iter().any(|task| task.name.as_str() == name);
        let status = |name: &str| if taken(name) { "dispatched" } else { "pending" };
        assert_eq!(t.statuses(run).await?, format!("a={} b={} c=pending", status("a"), status("b")));
        for task in &claimed {
            t.succeed(task).await?;
        }
        t.db().resume_run(run).await?;
        assert_eq!(t.work_off().await? + claimed.len(), 3);
    }
    Ok(())
}}
