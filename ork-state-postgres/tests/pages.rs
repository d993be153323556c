//! Where updates leave the new versions of rows. Run by `alone.rs`, so that it has its server for
//! itself: a transaction open in any database of a server can keep another's old versions from
//! being pruned, and a page is then full sooner.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use crate::common::*;
use ork_state_api::*;
use sqlx::Row;

async fn updates_of_tasks_stay_on_their_pages() {
    let (store, db, _clock) = store().await;
    let text: String = (0..200).map(|i| format!("t{i} ")).collect();
    let workflow = workflow(&db, "w", &text).await;
    start(&db, workflow).await;
    for _ in 0..4 {
        let claimed = claim(&db, 50).await;
        let done = claimed
            .iter()
            .flat_map(|task| [TaskUpdate::running(task.claim), TaskUpdate::succeeded(task.claim, None)]);
        update(&db, done.collect()).await;
    }
    // The counters of other sessions show when those have sent them in; dropping the connections
    // makes them.
    drop(db);
    let mut session = session(&store).await;
    let (mut updates, mut hot) = (0_i64, 0_i64);
    for _ in 0..200 {
        let row =
            sqlx::query("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'tasks'")
                .fetch_one(&mut session)
                .await
                .unwrap();
        (updates, hot) = (row.get(0), row.get(1));
        if updates >= 400 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(updates >= 400 && hot * 10 >= updates * 9, "{hot} of {updates} updates were HOT");
}

ork_state_conformance::own_tests!([updates_of_tasks_stay_on_their_pages]);
