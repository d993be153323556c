//! How what was printed is freed once its run is gone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::time::Duration;

use crate::common::proxy::Proxy;
use crate::common::*;
use ork_state_api::*;
use ork_state_postgres::PostgresDatabase;
use sqlx::Connection;

/// A run that has ended and whose task has printed so many chunks of 1 MiB.
async fn ended_with_log(store: &Store, db: &PostgresDatabase, chunks: usize) -> Run {
    let run = start(db, workflow(db, "long", "a").await).await;
    let claimed = claim(db, 1).await.remove(0);
    update(db, vec![TaskUpdate::succeeded(claimed.claim, None)]).await;
    let task = claimed.id;
    execute(
        store,
        format!(
            "INSERT INTO task_logs VALUES ('{task}', {chunks} << 20);
             INSERT INTO task_log_chunks
             SELECT '{task}', n << 20, convert_to(repeat('x', 1 << 20), 'UTF8') FROM generate_series(0, {chunks} - 1) n"
        ),
    )
    .await;
    run
}

async fn count(store: &Store, table: &str) -> i64 {
    let statement = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(statement).fetch_one(&mut session(store).await).await.unwrap()
}

fn all_ended() -> Prune {
    Prune::older_than(Duration::ZERO).with_limit(Limit::new(10).unwrap())
}

/// What a call leaves that is killed after its deletion.
const LEAVE: &str = "INSERT INTO deleted_logs SELECT task_id FROM task_logs;
    DELETE FROM task_logs; DELETE FROM task_edges; DELETE FROM tasks; DELETE FROM runs; DELETE FROM ended_counts;";

/// Rule M2: in one statement a log of some gigabytes would take longer than a call may.
async fn a_long_log_is_freed_in_steps_after_its_run_is_gone() {
    for with_its_workflow in [false, true] {
        let (store, _, clock) = store().await;
        let proxy = Proxy::start(&store).await;
        let options =
            ork_state_postgres::PostgresOptions::new(&proxy.url(&store, "max_connections=1")).unwrap();
        let db = options.with_clock(clock.clone()).connect().await.unwrap();
        let run = ended_with_log(&store, &db, 64).await;
        start(&db, workflow(&db, "other", "a").await).await;
        let other = claim(&db, 1).await[0].task.id;
        db.append_log(other, LogChunk::new(b"stays").unwrap()).await.unwrap();
        clock.advance(Duration::from_secs(1));
        proxy.take_trips();
        if with_its_workflow {
            WorkflowStore::delete_workflow(&db, run.workflow).await.unwrap();
        } else {
            assert_eq!(db.prune(all_ended()).await.unwrap(), Pruned::new(1, 1));
        }
        // The deletion and three steps more, and the two statements are prepared.
        assert_eq!(proxy.take_trips(), 4 + 2);
        assert_eq!(count(&store, "task_log_chunks").await, 1);
        assert_eq!(count(&store, "deleted_logs").await, 0);
        let end = LogRange::new(LogPosition::BeforeEnd(100), 100).unwrap();
        assert_eq!(db.read_log(other, end).await.unwrap().bytes, b"stays");
        assert_sound(&db).await;
    }
}

/// Rule M2: as when its process is killed between two steps.
async fn what_a_deletion_left_of_a_log_is_no_damage_and_goes_with_the_next() {
    let (store, db, _clock) = store().await;
    ended_with_log(&store, &db, 3).await;
    execute(&store, LEAVE).await;
    assert_sound(&db).await;
    assert_eq!(db.prune(all_ended()).await.unwrap(), Pruned::default());
    assert_eq!(count(&store, "task_log_chunks").await, 0);
    assert_eq!(count(&store, "deleted_logs").await, 0);
}

/// Rule M2: two that free at once do not wait for each other, and neither goes on for ever for what
/// the other has.
async fn what_another_call_is_freeing_is_left_to_it() {
    let (store, db, _clock) = store().await;
    ended_with_log(&store, &db, 3).await;
    execute(&store, LEAVE).await;
    let mut session = session(&store).await;
    let mut freeing = session.begin().await.unwrap();
    let left: bool = sqlx::query_scalar("SELECT ork_free_logs()").fetch_one(&mut *freeing).await.unwrap();
    assert!(!left);
    assert_eq!(db.prune(all_ended()).await.unwrap(), Pruned::default());
    freeing.rollback().await.unwrap();
    assert_eq!(count(&store, "task_log_chunks").await, 3);
    assert_eq!(db.prune(all_ended()).await.unwrap(), Pruned::default());
    assert_eq!(count(&store, "task_log_chunks").await, 0);
}

/// Rule M6: the task may come back with its id.
async fn what_a_deletion_left_of_a_log_does_not_mix_with_what_is_imported() {
    let ((from, source, _), (to, target, _)) = (store().await, store().await);
    let run = ended_with_log(&from, &source, 3).await;
    copy::copy(&source, &target, |_| {}).await.unwrap();
    execute(&to, format!("{LEAVE} DELETE FROM workflows;")).await;
    copy::copy(&source, &target, |_| {}).await.unwrap();
    assert_sound(&target).await;
    assert_eq!(count(&to, "deleted_logs").await, 0);
    assert_eq!(target.get_run(run.id).await.unwrap().id, run.id);
}

ork_state_conformance::own_tests!([
    a_long_log_is_freed_in_steps_after_its_run_is_gone,
    what_a_deletion_left_of_a_log_is_no_damage_and_goes_with_the_next,
    what_another_call_is_freeing_is_left_to_it,
    what_a_deletion_left_of_a_log_does_not_mix_with_what_is_imported,
]);
