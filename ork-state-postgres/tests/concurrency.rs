//! Many at once: nothing fails, nothing is lost, nothing is left half done.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::common::*;
use ork_state_api::*;
use ork_state_postgres::PostgresDatabase;
use sqlx::Connection;
use tokio::task::JoinSet;

async fn claim_as(db: &PostgresDatabase, owner: usize, limit: usize) -> Vec<ClaimedTask> {
    let lease = LeaseTime::new(LEASE).unwrap();
    let claim = ClaimTasks::new(format!("owner-{owner}").try_into().unwrap(), lease);
    db.claim_tasks(claim.with_limit(Limit::new(limit).unwrap())).await.unwrap()
}

/// Works a store off: claims batches, reports a part one by one and the rest at once.
async fn work(db: PostgresDatabase, owner: usize) -> usize {
    let (mut done, mut idle) = (0, 0);
    while idle < 200 {
        let claimed = claim_as(&db, owner, 7).await;
        if claimed.is_empty() {
            idle += 1;
            // The last tasks may be with others, whose dependents are to come.
            tokio::task::yield_now().await;
            continue;
        }
        idle = 0;
        let (first, rest) = claimed.split_first().unwrap();
        update(&db, vec![TaskUpdate::running(first.claim), TaskUpdate::succeeded(first.claim, None)]).await;
        // In another order than that of their ids.
        let report =
            update(&db, rest.iter().rev().map(|task| TaskUpdate::succeeded(task.claim, None)).collect())
                .await;
        let all_applied =
            report.outcomes.iter().all(|outcome| matches!(outcome, UpdateOutcome::Applied { .. }));
        assert!(all_applied, "{report:?}");
        done += claimed.len();
    }
    done
}

async fn eight_workers_on_shared_runs_do_each_task_once() {
    let (_store, db, _clock) = store().await;
    let text: String = (0..40).map(|i| format!("a{i} b{i}:a{i} c{i}:b{i},a{} ", (i + 1) % 40)).collect();
    let workflow = workflow(&db, "w", &text).await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(start(&db, workflow).await.id);
    }
    let mut workers = JoinSet::new();
    for owner in 0..8 {
        workers.spawn(work(db.clone(), owner));
    }
    assert_eq!(workers.join_all().await.iter().sum::<usize>(), 600);
    for run in runs {
        assert_eq!(db.get_run(run).await.unwrap().status, RunStatus::Success);
    }
    assert_sound(&db).await;
}

async fn a_claim_passes_over_what_another_is_just_taking() {
    let (store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a b c d").await;
    start(&db, workflow).await;
    let mut slow = session(&store).await;
    let mut slow = slow.begin().await.unwrap();
    let taken: Vec<String> = sqlx::query_scalar(
        "SELECT task_name FROM ork_claim_tasks('slow', '1 minute', 2, false, '2030-01-01')",
    )
    .fetch_all(&mut *slow)
    .await
    .unwrap();
    assert_eq!(taken, ["a", "b"]);
    // It has not ended, and may take long.
    let others = tokio::time::timeout(Duration::from_secs(20), claim(&db, 10)).await.unwrap();
    assert_eq!(others.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["c", "d"]);
    slow.rollback().await.unwrap();
    assert_eq!(claim(&db, 10).await.len(), 2);
    assert_sound(&db).await;
}

/// Rules R4 and R5: it is refused for a status that the run has, and not for the one that it has
/// got meanwhile.
async fn a_step_of_a_run_waits_for_the_step_that_it_meets() {
    const START: &str =
        "SELECT ork_start_run($1, ARRAY[gen_random_uuid()], ARRAY['a'], ARRAY['process'], ARRAY['{}'],
             ARRAY[NULL::text], ARRAY[0], ARRAY[NULL::int], ARRAY[0], '{}', '{}', '2030-01-01')";
    const PAUSE: &str = "SELECT ork_pause_run($1)";
    const RETRY: &str = "SELECT ork_retry_run(r.id, r.xmin::text, ARRAY[0], ARRAY[0], NULL, 0, 0, '2030-01-01') FROM runs r WHERE r.id = $1";
    let (store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    for (meets, wanted) in
        [(START, RunStatus::Paused), (PAUSE, RunStatus::Running), (RETRY, RunStatus::Cancelled)]
    {
        let run = db.create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
        if meets != START {
            db.start_run(StartRun::pinned(run)).await.unwrap();
        }
        if meets == RETRY {
            db.cancel_run(run).await.unwrap();
        }
        let mut other = session(&store).await;
        let mut other = other.begin().await.unwrap();
        sqlx::query(meets).bind(run.as_uuid()).execute(&mut *other).await.unwrap();
        let step = tokio::spawn({
            let db = db.clone();
            async move {
                match wanted {
                    RunStatus::Paused => db.pause_run(run).await,
                    RunStatus::Running => db.resume_run(run).await,
                    _ => db.cancel_run(run).await,
                }
            }
        });
        let mut watcher = session(&store).await;
        let is_waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
        while !step.is_finished()
            && !sqlx::query_scalar::<_, bool>(is_waiting).fetch_one(&mut watcher).await.unwrap()
        {
            tokio::task::yield_now().await;
        }
        assert!(!step.is_finished(), "it waits for {meets}");
        other.commit().await.unwrap();
        assert_eq!(step.await.unwrap().unwrap().status, wanted, "{meets}");
    }
    assert_sound(&db).await;
}

/// Both have planned it before either is done. Then the run gets another version three times: by
/// the holder, by the first of the two, and the second finds it going.
async fn of_two_retries_that_were_planned_at_once_one_is_refused() {
    let (store, db, _clock) = store().await;
    let run = start(&db, workflow(&db, "w", "a b:a c:b").await).await.id;
    db.cancel_run(run).await.unwrap();
    let mut holder = session(&store).await;
    let mut holder = holder.begin().await.unwrap();
    sqlx::query("UPDATE runs SET triggered_by = 'holder'").execute(&mut *holder).await.unwrap();
    let mut retries = JoinSet::new();
    for _ in 0..2 {
        let db = db.clone();
        retries.spawn(async move { db.retry_run(RetryRun::unsuccessful(run)).await });
    }
    let mut watcher = session(&store).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watcher).await.unwrap() < 2 {
        tokio::task::yield_now().await;
    }
    holder.commit().await.unwrap();
    let (done, refused): (Vec<_>, Vec<_>) = retries.join_all().await.into_iter().partition(Result::is_ok);
    let done = done[0].as_ref().unwrap();
    assert_eq!((done.status, done.tasks.unfinished), (RunStatus::Running, 3));
    let refused = refused[0].as_ref().unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::InvalidTransition { .. }), "{refused}");
    assert_eq!(claim(&db, 10).await.len(), 1);
    assert_sound(&db).await;
}

async fn an_update_that_waits_for_a_lock_does_not_keep_those_after_it_waiting() {
    let (store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    for _ in 0..2 {
        start(&db, workflow).await;
    }
    let [first, second] = &claim(&db, 2).await[..] else { panic!("two are ready") };
    let done = |task: &ClaimedTask| vec![TaskUpdate::succeeded(task.claim, None)];
    let mut holder = session(&store).await;
    let mut holder = holder.begin().await.unwrap();
    sqlx::query("SELECT FROM runs WHERE id = $1 FOR UPDATE")
        .bind(first.task.run.as_uuid())
        .execute(&mut *holder)
        .await
        .unwrap();
    let waiting = tokio::spawn({
        let (db, updates) = (db.clone(), done(first));
        async move { update(&db, updates).await }
    });
    let mut watcher = session(&store).await;
    let is_waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
    while !sqlx::query_scalar::<_, bool>(is_waiting).fetch_one(&mut watcher).await.unwrap() {
        assert!(!waiting.is_finished(), "it did not wait for the run");
        tokio::task::yield_now().await;
    }
    let other = tokio::time::timeout(Duration::from_secs(20), update(&db, done(second))).await.unwrap();
    assert_eq!(other.ended_runs.len(), 1);
    holder.rollback().await.unwrap();
    assert_eq!(waiting.await.unwrap().ended_runs.len(), 1);
    assert_sound(&db).await;
}

async fn everything_at_once_leaves_a_sound_store() {
    let (_store, db, clock) = store().await;
    let text: String = (0..30).map(|i| format!("a{i}*1 b{i}:a{i} c{i}:b{i},a{} ", (i + 1) % 30)).collect();
    let workflow = workflow(&db, "w", &text).await;
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(start(&db, workflow).await.id);
    }
    let runs = Arc::new(runs);
    let mut all = JoinSet::new();
    for owner in 0..4 {
        let db = db.clone();
        all.spawn(async move {
            for round in 0..60_usize {
                let claimed = claim_as(&db, owner, 5).await;
                let ends =
                    claimed.iter().enumerate().filter_map(|(number, task)| match (round + number) % 5 {
                        0 => Some(TaskUpdate::failed(task.claim, Text::lossy("x"), Delay::ZERO)),
                        1 => Some(TaskUpdate::released(task.claim)),
                        2 => None,
                        _ => Some(TaskUpdate::succeeded(task.claim, None)),
                    });
                update(&db, ends.rev().collect()).await;
                let beat = Heartbeat::new(
                    claimed.iter().map(|task| task.claim).collect::<Vec<_>>(),
                    LeaseTime::new(LEASE).unwrap(),
                );
                db.heartbeat(beat.unwrap()).await.unwrap();
            }
        });
    }
    for part in 0..2 {
        let (db, clock, runs) = (db.clone(), clock.clone(), runs.clone());
        all.spawn(async move {
            for round in 0..40 {
                clock.advance(Duration::from_secs(7));
                db.expire_leases(Limit::new(10).unwrap()).await.unwrap();
                // Only a run that has ended refuses.
                let run = runs[(round + part) % runs.len()];
                for step in [db.pause_run(run).await, db.resume_run(run).await] {
                    if let Err(error) = step {
                        assert!(matches!(error.kind(), ErrorKind::InvalidTransition { .. }), "{error:?}");
                    }
                }
                if round == 25 {
                    let _ = db.cancel_run(runs[part]).await;
                }
            }
        });
    }
    all.join_all().await;
    assert_sound(&db).await;
}

async fn a_run_and_the_deletion_of_its_workflow_never_both_win() {
    let (_store, db, _clock) = store().await;
    for round in 0..40 {
        let id = workflow(&db, &format!("w{round}"), "a").await;
        let (creator, deleter) = (db.clone(), db.clone());
        let key: Label = "key".parse().unwrap();
        let create =
            tokio::spawn(async move { creator.create_run(NewRun::new(id).with_idempotency_key(key)).await });
        let delete = tokio::spawn(async move { deleter.delete_workflow(id).await });
        match (create.await.unwrap(), delete.await.unwrap()) {
            (Ok(_), Err(error)) => assert!(matches!(error.kind(), ErrorKind::Conflict { .. }), "{error:?}"),
            (Err(error), Ok(())) => assert!(matches!(error.kind(), ErrorKind::NotFound { .. }), "{error:?}"),
            both => panic!("{both:?}"),
        }
    }
    assert_sound(&db).await;
}

async fn one_idempotency_key_is_one_run() {
    let (_store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    let mut all = JoinSet::new();
    for _ in 0..16 {
        let db = db.clone();
        all.spawn(async move {
            db.create_run(NewRun::new(workflow).with_idempotency_key("k".parse().unwrap())).await.unwrap()
        });
    }
    let created = all.join_all().await;
    assert_eq!(created.iter().filter(|run| matches!(run, CreatedRun::New(_))).count(), 1);
    assert_eq!(created.into_iter().map(|run| run.into_run().id).collect::<BTreeSet<_>>().len(), 1);
}

async fn appends_to_one_log_are_each_in_one_piece() {
    let (_store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    let run = start(&db, workflow).await;
    let task = db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items[0].id;
    let mut all = JoinSet::new();
    for letter in b'a'..b'i' {
        let db = db.clone();
        all.spawn(async move {
            for _ in 0..20 {
                db.append_log(task, LogChunk::new(&[letter; 100]).unwrap()).await.unwrap();
            }
        });
    }
    all.join_all().await;
    let log = db.read_log(task, LogRange::new(LogPosition::Offset(0), 1 << 20).unwrap()).await.unwrap();
    assert_eq!(log.length, 16_000);
    assert!(log.bytes.chunks(100).all(|chunk| chunk.iter().all(|byte| *byte == chunk[0])));
    let middle = db.read_log(task, LogRange::new(LogPosition::Offset(150), 300).unwrap()).await.unwrap();
    assert_eq!(middle.bytes, log.bytes[150..450]);
    assert_sound(&db).await;
}

/// Polls a future so many times, then drops it.
async fn poll_and_drop<F: Future>(future: F, polls: usize) {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn calls_that_are_dropped_midway_leave_the_store_whole() {
    let (_store, db, clock) = store().await;
    let workflow = workflow(&db, "w", "a*9 b:a c:a,b").await;
    for polls in 0..60 {
        poll_and_drop(db.create_run(NewRun::new(workflow)), polls).await;
        let run = db.create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
        poll_and_drop(db.start_run(StartRun::pinned(run)), polls).await;
        let lease = LeaseTime::new(LEASE).unwrap();
        poll_and_drop(db.claim_tasks(ClaimTasks::new("x".parse().unwrap(), lease)), polls).await;
        poll_and_drop(db.pause_run(run), polls).await;
        poll_and_drop(db.resume_run(run), polls).await;
        poll_and_drop(db.expire_leases(Limit::ONE), polls).await;
        poll_and_drop(db.migrate(), polls).await;
        for task in claim(&db, 3).await {
            let done = TaskUpdates::one(TaskUpdate::succeeded(task.claim, None));
            poll_and_drop(db.update_tasks(done), polls).await;
        }
        clock.advance(LEASE);
        poll_and_drop(db.list_runs(ListRuns::default()), polls).await;
    }
    // More calls than there are connections, each of which must be fit for use.
    let mut all = JoinSet::new();
    for _ in 0..40 {
        let db = db.clone();
        all.spawn(async move { db.create_run(NewRun::new(workflow)).await.unwrap() });
    }
    assert_eq!(all.join_all().await.len(), 40);
    assert_sound(&db).await;
}

ork_state_conformance::own_tests!([
    eight_workers_on_shared_runs_do_each_task_once,
    a_claim_passes_over_what_another_is_just_taking,
    a_step_of_a_run_waits_for_the_step_that_it_meets,
    of_two_retries_that_were_planned_at_once_one_is_refused,
    an_update_that_waits_for_a_lock_does_not_keep_those_after_it_waiting,
    everything_at_once_leaves_a_sound_store,
    a_run_and_the_deletion_of_its_workflow_never_both_win,
    one_idempotency_key_is_one_run,
    appends_to_one_log_are_each_in_one_piece,
    calls_that_are_dropped_midway_leave_the_store_whole,
]);
