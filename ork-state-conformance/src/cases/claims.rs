use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ork_state_api::{
    Heartbeat, HeartbeatOutcome, Json, Label, LeaseTime, Limit, NewRun, NewWorkflow, RunId, StartRun, Target,
    TaskSpec, TaskStatus, TaskUpdate, Text, Timestamp,
};

use super::together;
use crate::case::case;
use crate::{Ctx, LEASE, NotApplicable, claim_request, dag, wide_dag};

async fn ready(t: &Ctx) -> ork_state_api::Result<usize> {
    Ok(t.db().ready_tasks(Limit::MAX).await?.len())
}

case! { T1, t1_tasks_without_dependencies_are_ready(t) {
    let run = t.start("a b c:a").await?;
    let shown = t.db().ready_tasks(Limit::default()).await?;
    let shape: Vec<_> = shown.iter().map(|task| (task.run, task.index, task.ready_at)).collect();
    assert_eq!(shape, [(run.id, 0, t.now()), (run.id, 1, t.now())]);
    assert_eq!(shown[0].task, t.task(run.id, "a").await?.id);
    Ok(())
}}

case! { T1, t1_looking_takes_nothing(t) {
    t.start("a").await?;
    assert_eq!(t.db().ready_tasks(Limit::default()).await?, t.db().ready_tasks(Limit::default()).await?);
    assert_eq!(t.claim(10).await?.len(), 1);
    Ok(())
}}

case! { T1, t1_the_look_shows_what_a_claim_takes_in_its_order(t) {
    for tasks in ["a b", "c d:c", "e*1 f"] {
        t.start(tasks).await?;
        t.advance(Duration::from_millis(1));
    }
    let shown: Vec<_> = t.db().ready_tasks(Limit::default()).await?.iter().map(|task| task.task).collect();
    let taken: Vec<_> = t.claim(100).await?.iter().map(|task| task.id).collect();
    assert_eq!(shown, taken);
    assert_eq!(ready(&t).await?, 0);
    Ok(())
}}

case! { T1, t1_a_pending_run_has_no_ready_task(t) {
    t.pending_run("a").await?;
    assert_eq!(ready(&t).await?, 0);
    Ok(())
}}

case! { T1, t1_every_dependency_must_succeed_first(t) {
    let run = t.start("a b c:a,b").await?;
    let (a, b) = (t.claim_one().await?, t.claim_one().await?);
    t.succeed(&a).await?;
    assert_eq!((ready(&t).await?, t.task(run.id, "c").await?.unmet_dependencies), (0, 1));
    t.advance(Duration::from_secs(2));
    t.succeed(&b).await?;
    let c = t.task(run.id, "c").await?;
    assert_eq!((c.unmet_dependencies, c.ready_at), (0, Some(t.now())));
    assert_eq!(t.claim_one().await?.task.name.as_str(), "c");
    Ok(())
}}

case! { T1, t1_running_is_not_success(t) {
    t.start("a b:a").await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    assert_eq!(ready(&t).await?, 0);
    Ok(())
}}

case! { T1, t1_two_successes_in_one_batch_release_their_dependent_once(t) {
    let run = t.start("a b c:a,b").await?;
    let claimed = t.claim(2).await?;
    t.update(claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None))).await?;
    assert_eq!(t.task(run.id, "c").await?.unmet_dependencies, 0);
    assert_eq!(t.claim(10).await?.len(), 1);
    Ok(())
}}

case! { T1, t1_a_chain_is_worked_off_link_by_link(t) {
    let links: String = (1..50).map(|i| format!(" t{i}:t{}", i - 1)).collect();
    t.start(&format!("t0{links}")).await?;
    for index in 0..50 {
        let task = t.claim_one().await?;
        assert_eq!(task.index, index);
        assert_eq!(ready(&t).await?, 0);
        t.succeed(&task).await?;
    }
    Ok(())
}}

case! { T1, t1_a_fan_out_of_a_thousand_becomes_ready_together(t) {
    let fan: String = (0..1000).map(|i| format!(" t{i}:root")).collect();
    let run = t.start(&format!("root{fan} end:{}", (0..1000).map(|i| format!("t{i}")).collect::<Vec<_>>().join(","))).await?;
    t.succeed(&t.claim_one().await?).await?;
    assert_eq!(ready(&t).await?, 1000);
    assert_eq!(t.task(run.id, "end").await?.unmet_dependencies, 1000);
    assert_eq!(t.work_off().await?, 1001);
    Ok(())
}}

case! { T2, t2_a_claimed_task_is_dispatched_with_a_lease(t) {
    let run = t.start("a").await?;
    let claimed = t.db().claim_tasks(claim_request("worker-7", Duration::from_secs(30))?).await?.remove(0);
    let until = t.now().saturating_add(Duration::from_secs(30));
    let task = &claimed.task;
    assert_eq!((task.status, task.attempts, task.dispatched_at), (TaskStatus::Dispatched, 1, Some(t.now())));
    assert_eq!((task.ready_at, task.started_at, task.finished_at), (None, None, None));
    let lease = task.lease.clone().ok_or("a claimed task has a lease")?;
    assert_eq!((lease.owner.as_str(), lease.token, lease.expires_at), ("worker-7", claimed.claim.token, until));
    assert_eq!(claimed.claim.task, task.id);
    assert_eq!(t.task(run.id, "a").await?, *task, "the answer shows the task as it is stored");
    Ok(())
}}

case! { T2, t2_a_claim_brings_what_a_scheduler_needs(t) {
    let task = TaskSpec::new("a".parse()?, Label::new("python")?)
        .with_params(Json::parse("{\"x\": 1.50}")?)
        .with_max_retries(4)
        .with_timeout_seconds(77);
    let target = Target::new(Label::new("cloudrun")?, Text::new("job")?).with_region(Text::new("eu")?).with_project(Text::new("p")?).with_params(Json::parse("[1,2]")?);
    let new = NewWorkflow::new("w".parse()?, ork_state_api::Dag::new([task])?).with_target(target.clone());
    let workflow = t.db().create_workflow(new).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let claimed = t.claim_one().await?;
    assert_eq!((claimed.workflow, claimed.workflow_name.as_str(), &claimed.target), (workflow.id, "w", &target));
    assert_eq!(claimed.params.as_ref().map(Json::as_str), Some("{\"x\": 1.50}"));
    let task = claimed.task;
    assert_eq!((task.executor_type.as_str(), task.max_retries, task.timeout_seconds), ("python", 4, Some(77)));
    assert_eq!(claimed.dependency_outputs.len(), 0);
    Ok(())
}}

case! { T2, t2_outputs_of_dependencies_come_on_request(t) {
    t.start("a b c d:a,b").await?;
    let claimed = t.claim(3).await?;
    let outputs = [Some(Json::parse("{\"rows\": 3}")?), None, Some(Json::parse("9")?)];
    t.update(claimed.iter().zip(outputs).map(|(task, output)| TaskUpdate::succeeded(task.claim, output))).await?;
    let d = t.db().claim_tasks(claim_request("w", LEASE)?.with_dependency_outputs()).await?.remove(0);
    let shape: Vec<_> = d.dependency_outputs.iter().map(|(name, out)| (name.as_str(), out.as_ref().map(Json::as_str))).collect();
    assert_eq!(shape, [("a", Some("{\"rows\": 3}")), ("b", None)]);
    Ok(())
}}

case! { T2, t2_a_claimed_task_is_not_given_again(t) {
    t.start("a b").await?;
    let first = t.claim(10).await?;
    assert_eq!(first.len(), 2);
    assert!(t.claim(10).await?.is_empty());
    Ok(())
}}

case! { T2, t2_the_limit_is_kept_and_nothing_left_lying(t) {
    t.start("a b c d e").await?;
    let sizes = [t.claim(2).await?.len(), t.claim(2).await?.len(), t.claim(2).await?.len(), t.claim(2).await?.len()];
    assert_eq!(sizes, [2, 2, 1, 0]);
    Ok(())
}}

case! { T2, t2_the_largest_limit_is_fine(t) {
    t.start("a").await?;
    assert_eq!(t.claim(Limit::MAX.get()).await?.len(), 1);
    Ok(())
}}

async fn starts_at(t: &Ctx, tasks: &str) -> ork_state_api::Result<(Timestamp, RunId)> {
    let run = t.start(tasks).await?;
    Ok((t.now(), run.id))
}

case! { T2, t2_the_order_is_ready_time_then_run_then_index(t) {
    let mut expected = Vec::new();
    for step in 0..3 {
        for _ in 0..3 {
            let (at, run) = starts_at(&t, "a b c").await?;
            expected.extend((0..3).map(|index| (at, run, index)));
        }
        t.advance(Duration::from_micros(1 + step));
    }
    expected.sort_unstable();
    let mut taken = Vec::new();
    for limit in [4, 1, 100] {
        taken.extend(t.claim(limit).await?.iter().map(|task| (task.created_at, task.run, task.index)));
    }
    assert_eq!(taken, expected);
    Ok(())
}}

case! { T2, t2_a_task_made_ready_later_comes_later_whatever_its_run(t) {
    let early = t.start("a b:a").await?;
    let a = t.claim_one().await?;
    t.advance(Duration::from_secs(1));
    let late = t.start("c").await?;
    t.advance(Duration::from_secs(1));
    t.succeed(&a).await?;
    let order: Vec<_> = t.claim(10).await?.iter().map(|task| task.run).collect();
    assert_eq!(order, [late.id, early.id]);
    Ok(())
}}

case! { T2, t2_tokens_grow_with_every_claim(t) {
    t.start("a*3").await?;
    let mut last = None;
    for _ in 0..3 {
        let task = t.claim_one().await?;
        assert!(last.is_none_or(|last| task.claim.token > last));
        last = Some(task.claim.token);
        t.update([TaskUpdate::released(task.claim)]).await?;
    }
    let task = t.claim_one().await?;
    t.advance(LEASE);
    t.db().expire_leases(Limit::default()).await?;
    assert!(t.claim_one().await?.claim.token > task.claim.token);
    Ok(())
}}

case! { T2, t2_claimers_at_once_get_disjoint_tasks(t) {
    let workflow = t.workflow(wide_dag(500)?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let claimers = (0..8).map(|_| {
        let t = t.clone();
        async move {
            let mut mine = Vec::new();
            loop {
                let claimed = t.claim(7).await?;
                if claimed.is_empty() {
                    return Ok::<_, ork_state_api::Error>(mine);
                }
                mine.extend(claimed.into_iter().map(|task| task.id));
            }
        }
    });
    let mut all = Vec::new();
    for mine in together(claimers).await? {
        all.extend(mine?);
    }
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (500, 500));
    Ok(())
}}

// Even while the others take theirs, enough tasks are left for each.
case! { T2, t2_claimers_at_once_each_get_as_many_as_they_ask_for(t) {
    let workflow = t.workflow(wide_dag(600)?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    for round in 1..=6 {
        let claimers = (0..10).map(|_| {
            let t = t.clone();
            async move { Ok::<_, ork_state_api::Error>(t.claim(10).await?.len()) }
        });
        for got in together(claimers).await? {
            assert_eq!(got?, 10, "round {round}");
        }
    }
    Ok(())
}}

// Uses real time. Claims wait while long writes run. If a lease is counted from when the wait
// began, it has lapsed by the time of the answer. A heartbeat shows this at once. A claim whose
// answer is late proves nothing and is not counted.
case! { T2, t2_leases_are_live_under_contention(t) {
    let short = Duration::from_millis(250);
    let store = t.fixture().migrated().await?;
    let db = t.connect(&store.url()).await?;
    db.migrate().await?;
    let small = db.create_workflow(NewWorkflow::new("small".parse()?, wide_dag(100)?)).await?;
    let large = db.create_workflow(NewWorkflow::new("large".parse()?, wide_dag(8000)?)).await?;
    let run = db.create_run(NewRun::new(small.id)).await?.into_run();
    db.start_run(StartRun::pinned(run.id)).await?;
    let (mut alive, mut lapsed, mut longest) = (0, 0, Duration::ZERO);
    // The first round has nothing to wait for. It makes connections and plans.
    for round in 0..7 {
        // One write is running when the claims arrive. In every other round a second one waits in
        // the queue behind them.
        let mut busy = Vec::new();
        for _ in 0..if round == 0 { 0 } else { 1 + round % 2 } {
            busy.push(db.create_run(NewRun::new(large.id)).await?.into_run().id);
        }
        let mut writers = busy.into_iter().map(|run| {
            let db = db.clone();
            tokio::spawn(async move { db.start_run(StartRun::pinned(run)).await })
        });
        let first = writers.next();
        tokio::task::yield_now().await;
        let claimers = (0..4).map(|_| {
            let db = db.clone();
            async move {
                let asked = Instant::now();
                let claimed = db.claim_tasks(claim_request("w", short)?.with_limit(Limit::ONE)).await?;
                let answered = Instant::now();
                let claims: Vec<_> = claimed.iter().map(|task| task.claim).collect();
                let answers = db.heartbeat(Heartbeat::new(claims, LeaseTime::new(short)?)?).await?;
                Ok::<_, ork_state_api::Error>((answers, answered - asked, answered.elapsed()))
            }
        });
        let claimers: Vec<_> = claimers.map(tokio::spawn).collect();
        tokio::task::yield_now().await;
        let second = writers.next();
        for claimer in claimers {
            let (answers, waited, took) = claimer.await??;
            assert_eq!(answers.len(), 1);
            if round > 0 && took < short / 2 {
                longest = longest.max(waited);
                let is_alive = matches!(answers[..], [HeartbeatOutcome::Extended { .. }]);
                // Whenever the store began to count, that was less than the lease ago.
                assert!(is_alive || waited + took >= short, "{answers:?} {took:?} after a claim that took {waited:?}");
                match answers[..] {
                    [HeartbeatOutcome::Extended { .. }] => alive += 1,
                    _ => lapsed += 1,
                }
            }
        }
        for writer in first.into_iter().chain(second) {
            writer.await??;
        }
    }
    if alive + lapsed == 0 {
        return Err(NotApplicable("the machine is too busy: no heartbeat was answered in time to tell anything".into()).into());
    }
    // A store that counts leases from the call hands out lapsed leases whenever claims wait. On a
    // busy machine a correct store may do so now and then, when its answer is delayed.
    assert!(alive >= lapsed, "{alive} alive and {lapsed} lapsed, after claims that took up to {longest:?}");
    t.note(format!("{alive} leases of {short:?} were alive when handed out, {lapsed} not, after claims that took up to {longest:?}"));
    Ok(())
}}

case! { [T2, T6], t2_no_ready_task_is_an_empty_answer(t) {
    assert!(t.claim(10).await?.is_empty());
    assert!(t.db().ready_tasks(Limit::ONE).await?.is_empty());
    Ok(())
}}

case! { T2, t2_tasks_of_many_runs_and_workflows_are_claimed_together(t) {
    for _ in 0..20 {
        t.start("a").await?;
    }
    let claimed = t.claim(100).await?;
    assert_eq!(claimed.iter().map(|task| task.workflow).collect::<BTreeSet<_>>().len(), 20);
    for task in &claimed {
        assert_eq!(t.db().get_workflow(task.workflow).await?.name, task.workflow_name);
    }
    Ok(())
}}

case! { T2, t2_a_thousand_waiting_tasks_do_not_hide_a_ready_one(t) {
    let waiting: String = (0..1000).map(|i| format!(" t{i}:root")).collect();
    let first = t.start(&format!("root{waiting}")).await?;
    let root = t.claim_one().await?;
    let second = t.db().create_run(NewRun::new(t.workflow(dag("x")?).await?.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(second.id)).await?;
    assert_eq!(t.claim_one().await?.task.run, second.id);
    t.succeed(&root).await?;
    assert_eq!(t.claim(Limit::MAX.get()).await?.iter().filter(|task| task.run == first.id).count(), 1000);
    Ok(())
}}
