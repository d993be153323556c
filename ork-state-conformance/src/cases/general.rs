use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{
    Capability, Claim, CreatedRun, Database, Json, Limit, ListRuns, ListTasks, LogChunk, NewRun, NewWorkflow,
    PageRequest, RetryRun, RunStatus, StartRun, TaskStatus, TaskUpdate, Token,
};

use super::together;
use crate::case::case;
use crate::{Ctx, claim_request, dag, wide_dag};

/// A handle to read with while another one writes. It is a separate one where the store can be
/// opened twice, otherwise the same.
async fn reader(t: &Ctx) -> ork_state_api::Result<Arc<dyn Database>> {
    let shared = [Capability::Durable, Capability::MultiProcess]
        .iter()
        .all(|needed| t.backend().capabilities.has(*needed));
    if shared { t.reopen().await } else { Ok(t.db().clone()) }
}

fn all_tasks() -> ork_state_api::Result<PageRequest<u32>> {
    Ok(PageRequest::first(Limit::MAX))
}

case! { G1, g1_no_reader_sees_a_run_half_started(t) {
    let (db, mut looks) = (reader(&t).await?, 0);
    for _ in 0..5 {
        let run = t.pending_run(&(0..200).map(|i| format!("t{i} ")).collect::<String>()).await?.id;
        let starter = { let t = t.clone(); tokio::spawn(async move { t.db().start_run(StartRun::pinned(run)).await }) };
        while !starter.is_finished() {
            let status = db.get_run(run).await?.status;
            let tasks = db.list_tasks(ListTasks::of(run, all_tasks()?)).await?.items.len();
            looks += 1;
            // The run may start between the two reads, but a running run has all its tasks.
            assert!(tasks == 0 || tasks == 200, "{tasks} tasks");
            assert!(status == RunStatus::Pending || tasks == 200, "{status} with {tasks} tasks");
            tokio::task::yield_now().await;
        }
        starter.await??;
    }
    assert!(looks > 0, "nobody looked while a run was started");
    Ok(())
}}

case! { G1, g1_no_reader_sees_a_cascade_half_done(t) {
    let (db, mut looks) = (reader(&t).await?, 0);
    for _ in 0..5 {
        let fan: String = (0..200).map(|i| format!(" t{i}:root")).collect();
        let run = t.start(&format!("root{fan}")).await?.id;
        let root = t.claim_one().await?;
        let failing = { let t = t.clone(); tokio::spawn(async move { t.fail(&root, Duration::ZERO).await }) };
        while !failing.is_finished() {
            let counts = db.get_run(run).await?.tasks;
            assert!(matches!((counts.unfinished, counts.failed), (201, 0) | (0, 201)), "{counts:?}");
            let tasks = db.list_tasks(ListTasks::of(run, all_tasks()?)).await?.items;
            let failed = tasks.iter().filter(|task| task.status == TaskStatus::Failed).count();
            looks += 1;
            assert!(failed == 0 || failed == 201, "{failed} failed");
            tokio::task::yield_now().await;
        }
        failing.await??;
    }
    assert!(looks > 0, "nobody looked while tasks failed");
    Ok(())
}}

case! { [G1, R4], g1_no_reader_sees_a_cancellation_half_done(t) {
    let (db, mut looks) = (reader(&t).await?, 0);
    for _ in 0..5 {
        let run = t.start(&(0..200).map(|i| format!("t{i} ")).collect::<String>()).await?.id;
        let canceller = { let t = t.clone(); tokio::spawn(async move { t.db().cancel_run(run).await }) };
        while !canceller.is_finished() {
            let status = db.get_run(run).await?.status;
            let tasks = db.list_tasks(ListTasks::of(run, all_tasks()?)).await?.items;
            let live = tasks.iter().filter(|task| !task.status.is_terminal()).count();
            looks += 1;
            assert!(live == 0 || live == 200, "{live} of 200 tasks live");
            assert!(status == RunStatus::Running || live == 0, "{status} with {live} live tasks");
            tokio::task::yield_now().await;
        }
        canceller.await??;
    }
    assert!(looks > 0, "nobody looked while runs were cancelled");
    Ok(())
}}

case! { G1, g1_a_workflow_and_its_snapshot_appear_together(t) {
    let (db, mut looks) = (reader(&t).await?, 0);
    let creating = { let t = t.clone(); tokio::spawn(async move {
        for _ in 0..50 {
            t.workflow(wide_dag(50)?).await?;
        }
        Ok::<_, ork_state_api::Error>(())
    }) };
    while !creating.is_finished() {
        for workflow in db.list_workflows(PageRequest::default().into()).await?.items {
            assert_eq!(db.get_snapshot(workflow.snapshot).await?.dag.len(), 50);
        }
        looks += 1;
        tokio::task::yield_now().await;
    }
    creating.await??;
    assert!(looks > 0, "nobody looked while workflows were created");
    Ok(())
}}

case! { G1, g1_a_batch_over_many_runs_is_seen_whole(t) {
    let (db, mut looks) = (reader(&t).await?, 0);
    for _ in 0..20 {
        t.start("a").await?;
    }
    let claimed = t.claim(100).await?;
    let finishing = { let t = t.clone(); tokio::spawn(async move {
        t.update(claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None))).await
    }) };
    while !finishing.is_finished() {
        let page = db.list_runs(ListRuns::default()).await?.items;
        looks += 1;
        let done = page.iter().filter(|run| run.status == RunStatus::Success).count();
        assert!(done == 0 || done == 20, "one list shows {done} of the 20 runs that end together");
        tokio::task::yield_now().await;
    }
    finishing.await??;
    assert!(looks > 0, "nobody looked while the batch was applied");
    Ok(())
}}

case! { G2 needs [Durable], g2_everything_is_there_after_reopening(t) {
    let run = t.start("a b*1 c:a").await?;
    let (a, b) = (t.claim_one().await?, t.claim_one().await?);
    t.update([TaskUpdate::succeeded(a.claim, Some(Json::parse("{\"x\": 1}")?)), TaskUpdate::running(b.claim)]).await?;
    let (before, tasks, queue) =
        (t.db().get_run(run.id).await?, t.tasks(run.id).await?, t.db().ready_tasks(Limit::default()).await?);
    let db = t.reopen().await?;
    assert_eq!(db.get_run(run.id).await?, before);
    assert_eq!(db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await?.items, tasks);
    assert_eq!(db.ready_tasks(Limit::default()).await?, queue);
    assert_eq!(db.get_task(a.task.id).await?.output.as_ref().map(Json::as_str), Some("{\"x\": 1}"));
    assert_eq!(db.get_workflow(run.workflow).await?, t.db().get_workflow(run.workflow).await?);
    Ok(())
}}

case! { G2 needs [Durable], g2_what_waits_waits_on_after_reopening(t) {
    let (waits, paused) = (t.start("a*1").await?.id, t.start("b").await?.id);
    t.fail(&t.claim_one().await?, Duration::from_secs(60)).await?;
    t.db().pause_run(paused).await?;
    let db = t.reopen().await?;
    assert_eq!(db.get_run(paused).await?.status, RunStatus::Paused);
    let claim = || claim_request("w", crate::LEASE);
    assert!(db.claim_tasks(claim()?).await?.is_empty(), "nothing is ready");
    t.advance(Duration::from_secs(60));
    let claimed = t.reopen().await?.claim_tasks(claim()?).await?;
    assert_eq!(claimed.iter().map(|task| task.run).collect::<Vec<_>>(), [waits]);
    t.reopen().await?.resume_run(paused).await?;
    assert_eq!(t.reopen().await?.claim_tasks(claim()?).await?.len(), 1);
    Ok(())
}}

case! { [G2, R1] needs [Durable], g2_an_idempotency_key_is_known_after_reopening(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let new = NewRun::new(workflow).with_idempotency_key("key".parse()?);
    let run = t.db().create_run(new.clone()).await?.into_run();
    assert_eq!(t.reopen().await?.create_run(new).await?, CreatedRun::Existing(run));
    Ok(())
}}

case! { [G2, T2] needs [Durable], g2_tokens_grow_on_after_reopening(t) {
    t.start("a*9").await?;
    let mut last = 0;
    for _ in 0..4 {
        let claimed = t.reopen().await?.claim_tasks(claim_request("w", crate::LEASE)?).await?;
        let token = claimed[0].claim.token.get();
        assert!(token > last, "token {token} after {last}");
        last = token;
        t.advance(crate::LEASE);
        t.reopen().await?.expire_leases(Limit::default()).await?;
    }
    Ok(())
}}

case! { [G2, S1] needs [Durable, Schedules], g2_a_schedule_is_there_after_reopening(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let schedule = ork_state_api::Schedule::new("@daily".parse()?, Some(t.now()));
    let set = t.db().set_schedule(workflow, Some(schedule)).await?;
    assert_eq!(t.reopen().await?.get_workflow(workflow).await?, set);
    assert_eq!(t.reopen().await?.due_schedules(Limit::default()).await?.len(), 1);
    Ok(())
}}

case! { G2 needs [Durable], g2_work_goes_on_after_reopening(t) {
    t.start("a b:a c:b").await?;
    let a = t.claim_one().await?;
    let db = t.reopen().await?;
    let done = |claim| ork_state_api::TaskUpdates::one(TaskUpdate::succeeded(claim, None));
    db.update_tasks(done(a.claim)).await?;
    let b = db.claim_tasks(claim_request("w", crate::LEASE)?).await?.remove(0);
    t.succeed(&b).await?;
    let db = t.reopen().await?;
    let c = db.claim_tasks(claim_request("w", crate::LEASE)?).await?.remove(0);
    assert_eq!(db.update_tasks(done(c.claim)).await?.ended_runs.len(), 1);
    Ok(())
}}

case! { G2 needs [Durable, Logs], g2_logs_are_there_after_reopening(t) {
    let run = t.start("a").await?;
    let task = t.task(run.id, "a").await?.id;
    t.db().append_log(task, LogChunk::new(b"before\0")?).await?;
    let db = t.reopen().await?;
    db.append_log(task, LogChunk::new(b"after")?).await?;
    let range = ork_state_api::LogRange::new(ork_state_api::LogPosition::Offset(0), 100)?;
    assert_eq!(t.db().read_log(task, range).await?.bytes, b"before\0after");
    Ok(())
}}

case! { G2 needs [Durable], g2_two_handles_see_each_others_writes_at_once(t) {
    let other = t.reopen().await?;
    for round in 0..20 {
        let name: ork_state_api::WorkflowName = format!("w{round}").try_into()?;
        let (writer, reader) = if round % 2 == 0 { (t.db(), &other) } else { (&other, t.db()) };
        let made = writer.create_workflow(NewWorkflow::new(name.clone(), dag("a")?)).await?;
        assert_eq!(reader.find_workflow(&name).await?, made);
    }
    Ok(())
}}

case! { G7, g7_a_failing_call_changes_nothing(t) {
    let run = t.start("a b:a").await?;
    t.work_off().await?;
    let (before, tasks) = (t.db().get_run(run.id).await?, t.tasks(run.id).await?);
    t.advance(Duration::from_secs(1));
    assert!(t.db().cancel_run(run.id).await.is_err());
    assert!(t.db().pause_run(run.id).await.is_err());
    assert!(t.db().resume_run(run.id).await.is_err());
    assert_eq!((t.db().get_run(run.id).await?, t.tasks(run.id).await?), (before, tasks));
    Ok(())
}}

case! { G7, g7_errors_tell_the_id_and_not_the_payload(t) {
    let run = t.start("a").await?;
    t.work_off().await?;
    let error = format!("{:?}", t.db().cancel_run(run.id).await.err().ok_or("a success cannot be cancelled")?);
    assert!(error.contains(&run.id.to_string()), "{error}");
    let secret = "s3cr3t-payload";
    let spec = ork_state_api::TaskSpec::new("a".parse()?, "process".parse()?).with_params(Json::from_value(secret)?);
    let new = NewWorkflow::new("w".parse()?, ork_state_api::Dag::new([spec])?);
    t.db().create_workflow(new.clone()).await?;
    let error = format!("{:?}", t.db().create_workflow(new).await.err().ok_or("the name is taken")?);
    assert!(!error.contains(secret), "{error}");
    Ok(())
}}

case! { G7, g7_a_refused_step_says_what_to_call_instead(t) {
    let (pending, live, ended) = (t.pending_run("a").await?.id, t.start("a").await?, t.start("").await?.id);
    let cancelled = t.db().cancel_run(t.start("a").await?.id).await?.id;
    let workflow = t.db().get_workflow(live.workflow).await?;
    let taken = NewWorkflow::new(workflow.name.clone(), dag("a")?);
    let refused = [
        (t.db().resume_run(pending).await.err(), "call `start_run`"),
        (t.db().pause_run(pending).await.err(), "call `start_run`"),
        (t.db().retry_run(RetryRun::unsuccessful(pending)).await.err(), "call `start_run`"),
        (t.db().retry_run(RetryRun::unsuccessful(live.id)).await.err(), "call `cancel_run`"),
        (t.db().start_run(StartRun::pinned(cancelled)).await.err(), "`create_run` makes a new run"),
        (t.db().resume_run(cancelled).await.err(), "`retry_run` does again what did not succeed"),
        (t.db().cancel_run(ended).await.err(), "It has ended"),
        (t.db().create_workflow(taken).await.err(), "`find_workflow`"),
        (t.db().delete_workflow(live.workflow).await.err(), "pending, running or paused: find them with `list_runs`"),
    ];
    for (error, says) in refused {
        let error = error.ok_or_else(|| format!("it is not refused: {says}"))?.to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    Ok(())
}}

case! { G7, g7_an_unknown_option_lists_the_known_ones(t) {
    let url = t.url();
    let separator = if url.contains('?') { '&' } else { '?' };
    let error = match t.connect(&format!("{url}{separator}no_such_option=1")).await {
        Err(error) => error,
        Ok(_) => return Err("an unknown option was accepted".into()),
    };
    assert!(matches!(error.kind(), ork_state_api::ErrorKind::InvalidInput { .. }), "{error:?}");
    assert!(error.to_string().contains("no_such_option"), "{error}");
    for option in t.backend().options {
        assert!(error.to_string().contains(option.name), "{error} does not name {}", option.name);
    }
    Ok(())
}}

/// Drops a call's future after this many polls. Returns its result if it had ended by then.
async fn poll_times<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        let polled =
            std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context))).await;
        if let std::task::Poll::Ready(value) = polled {
            return Some(value);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// Waits until none of the dropped calls is running any more: a write goes through.
async fn settled(t: &Ctx) -> ork_state_api::Result<()> {
    for _ in 0..20 {
        t.workflow(dag("")?).await?;
    }
    Ok(())
}

case! { G9, g9_a_dropped_creation_is_there_whole_or_not_at_all(t) {
    for polls in 0..60 {
        let name: ork_state_api::WorkflowName = format!("dropped-{polls}").try_into()?;
        poll_times(t.db().create_workflow(NewWorkflow::new(name, wide_dag(20)?)), polls).await;
    }
    settled(&t).await?;
    for workflow in t.db().list_workflows(PageRequest::default().into()).await?.items {
        t.db().get_snapshot(workflow.snapshot).await?;
    }
    Ok(())
}}

case! { G9, g9_a_dropped_start_starts_all_or_nothing(t) {
    let mut runs = Vec::new();
    for polls in 0..60 {
        let run = t.pending_run("a b:a c:a").await?.id;
        poll_times(t.db().start_run(StartRun::pinned(run)), polls).await;
        runs.push(run);
    }
    settled(&t).await?;
    for run in runs {
        let started = t.db().start_run(StartRun::pinned(run)).await?;
        assert_eq!((started.status, started.tasks.total, t.tasks(run).await?.len()), (RunStatus::Running, 3, 3));
    }
    assert_eq!(t.work_off().await?, 180);
    Ok(())
}}

case! { G9, g9_dropped_claims_lose_no_task(t) {
    let workflow = t.workflow(wide_dag(300)?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id).with_trigger("x".parse()?)).await?.into_run();
    t.db().start_run(StartRun::with_dag(run.id, dag(&(0..300).map(|i| format!("t{i}*9 ")).collect::<String>())?)).await?;
    let mut mine = 0;
    for polls in 0..60 {
        let claim = claim_request("dropper", crate::LEASE)?.with_limit(Limit::new(3)?);
        if let Some(claimed) = poll_times(t.db().claim_tasks(claim), polls).await {
            let claimed = claimed?;
            mine += claimed.len();
            t.update(claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None))).await?;
        }
    }
    settled(&t).await?;
    t.advance(crate::LEASE);
    t.db().expire_leases(Limit::new(1000)?).await?;
    assert_eq!(t.work_off().await? + mine, 300);
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { G9, g9_dropped_updates_apply_whole_or_not_at_all(t) {
    for polls in 0..40 {
        let run = t.start("a b c:a,b").await?;
        let claimed = t.claim(2).await?;
        let updates: Vec<_> = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
        poll_times(t.update(updates), polls).await;
        settled(&t).await?;
        let done = t.statuses(run.id).await?.matches("=success").count();
        assert!(done == 0 || done == 2, "{done} of a batch of two");
        t.update(claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None))).await?;
        assert_eq!(t.work_off().await?, 1);
    }
    Ok(())
}}

case! { G9, g9_the_store_goes_on_after_many_dropped_calls(t) {
    let calls = (0..200).map(|call| {
        let t = t.clone();
        async move {
            let claim = Claim { task: ork_state_api::TaskId::generate(), token: Token::from_stored(1) };
            match call % 4 {
                0 => drop(poll_times(t.workflow(dag("a")?), call / 8).await),
                1 => drop(poll_times(t.db().list_runs(ListRuns::default()), call / 8).await),
                2 => drop(poll_times(t.heartbeat(&[claim]), call / 8).await),
                _ => drop(poll_times(t.claim(5), call / 8).await),
            }
            Ok::<_, ork_state_api::Error>(())
        }
    });
    for result in together(calls).await? {
        result?;
    }
    t.start("a b:a").await?;
    assert_eq!(t.work_off().await?, 2);
    Ok(())
}}

case! { G1, g1_a_mixed_load_keeps_every_rule(t) {
    let workers = (0..6_u64).map(|worker| {
        let t = t.clone();
        async move {
            for round in 0..6 {
                let run = t.start("a*1 b:a c:a d:b,c").await?;
                for step in 0..12 {
                    let claimed = t.claim(3).await?;
                    for (nth, task) in (0_u64..).zip(&claimed) {
                        match (worker + round + step + nth) % 5 {
                            0 => t.fail(task, Duration::ZERO).await?,
                            1 => t.update([TaskUpdate::released(task.claim)]).await?,
                            _ => t.succeed(task).await?,
                        };
                    }
                    match (worker * 7 + step) % 6 {
                        0 => drop(t.db().pause_run(run.id).await),
                        1 => drop(t.db().resume_run(run.id).await),
                        2 if round == 5 => drop(t.db().cancel_run(run.id).await),
                        _ => {}
                    }
                }
                drop(t.db().resume_run(run.id).await);
            }
            Ok::<_, ork_state_api::Error>(())
        }
    });
    for result in together(workers).await? {
        result?;
    }
    // The verification after every case checks the other rules.
    t.work_off().await?;
    for run in t.db().list_runs(ListRuns::default()).await?.items {
        assert!(run.status.is_terminal(), "run {} is {}", run.id, run.status);
    }
    Ok(())
}}
