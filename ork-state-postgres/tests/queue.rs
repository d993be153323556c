//! Claims look at the queue from where it begins, by the clock of the server. What is told here:
//! nothing is left out by that.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::time::{Duration, Instant};

use crate::common::*;
use ork_state_api::*;
use ork_state_conformance::Fixture;
use ork_state_postgres::PostgresDatabase;
use sqlx::{Connection, Executor};

async fn on_the_servers_clock() -> (Store, PostgresDatabase) {
    let store = FIXTURE.migrated().await.unwrap();
    let db = options(&store).connect().await.unwrap();
    (store, db)
}

/// Claims one by one for so long that the beginning of the queue is looked for several times.
async fn work(db: &PostgresDatabase, workflow: WorkflowId) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        start(db, workflow).await;
        assert_eq!(claim(db, 1).await.len(), 1);
    }
}

async fn what_becomes_ready_in_a_transaction_that_is_long_comes_in_its_order() {
    let (store, db) = on_the_servers_clock().await;
    let workflow = workflow(&db, "w", "a").await;
    let late = db.create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
    let mut session = session(&store).await;
    let mut transaction = session.begin().await.unwrap();
    sqlx::query(
        "SELECT ork_start_run($1, ARRAY[gen_random_uuid()], ARRAY['a'], ARRAY['process'], ARRAY['{}'], ARRAY[NULL::text],
             ARRAY[0], ARRAY[NULL::int], ARRAY[0], '{}', '{}', NULL)",
    )
    .bind(late.as_uuid())
    .execute(&mut *transaction)
    .await
    .unwrap();
    // It became ready before all of these.
    work(&db, workflow).await;
    start(&db, workflow).await;
    transaction.commit().await.unwrap();
    let first = claim(&db, 1).await;
    assert_eq!(first[0].task.run, late);
    assert_sound(&db).await;
}

async fn what_a_claim_that_was_taken_back_had_taken_comes_first_again() {
    let (store, db) = on_the_servers_clock().await;
    let workflow = workflow(&db, "w", "a").await;
    let first = start(&db, workflow).await;
    let mut session = session(&store).await;
    let mut transaction = session.begin().await.unwrap();
    transaction.execute("SELECT ork_claim_tasks('me', '1 minute', 1, false, NULL)").await.unwrap();
    work(&db, workflow).await;
    start(&db, workflow).await;
    transaction.rollback().await.unwrap();
    assert_eq!(claim(&db, 1).await[0].task.run, first.id);
}

async fn a_clock_that_was_set_back_hides_no_task_for_long() {
    let (store, db) = on_the_servers_clock().await;
    let workflow = workflow(&db, "w", "a b").await;
    work(&db, workflow).await;
    claim(&db, 10_000).await;
    start(&db, workflow).await;
    execute(
        &store,
        "UPDATE ready_tasks SET ready_at = ready_at - interval '1 hour';
         UPDATE tasks SET ready_at = ready_at - interval '1 hour' WHERE ready_at IS NOT NULL",
    )
    .await;
    let begun = Instant::now();
    let mut found = 0;
    while found < 2 {
        found += claim(&db, 10).await.len();
        assert!(begun.elapsed() < Duration::from_secs(20), "{found} tasks were found");
    }
    assert_sound(&db).await;
}

/// Claims that get all they ask for do not put off the look at all of the queue.
async fn a_clock_that_was_set_back_hides_no_task_behind_those_that_come_after() {
    let (store, db) = on_the_servers_clock().await;
    let workflow = workflow(&db, "w", "a").await;
    work(&db, workflow).await;
    let hidden = start(&db, workflow).await.id;
    execute(
        &store,
        "UPDATE ready_tasks SET ready_at = ready_at - interval '1 hour';
         UPDATE tasks SET ready_at = ready_at - interval '1 hour' WHERE ready_at IS NOT NULL",
    )
    .await;
    let begun = Instant::now();
    loop {
        let mut claimed = Vec::new();
        for _ in 0..100 {
            start(&db, workflow).await;
            claimed.extend(claim(&db, 1).await);
        }
        claimed.extend(claim(&db, 10).await);
        if claimed.iter().any(|task| task.run == hidden) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "it was not found");
    }
}

ork_state_conformance::own_tests!([
    what_becomes_ready_in_a_transaction_that_is_long_comes_in_its_order,
    what_a_claim_that_was_taken_back_had_taken_comes_first_again,
    a_clock_that_was_set_back_hides_no_task_for_long,
    a_clock_that_was_set_back_hides_no_task_behind_those_that_come_after,
]);
