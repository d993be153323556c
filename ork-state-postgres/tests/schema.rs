//! Migrating, other schemas, and stores that are not ours.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::time::Duration;

use crate::common::*;
use ork_state_api::ErrorKind::{Conflict, SchemaMismatch, Unavailable};
use ork_state_api::*;
use ork_state_postgres::PostgresOptions;

async fn of_many_that_migrate_at_once_one_does_it() {
    let store = empty().await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let options = options(&store);
        tasks.push(tokio::spawn(async move { options.connect().await.unwrap().migrate().await.unwrap() }));
    }
    let mut applied = Vec::new();
    for task in tasks {
        applied.push(task.await.unwrap().applied.len());
    }
    applied.sort_unstable();
    assert_eq!((&applied[..7], applied[7] == 17), (&[0; 7][..], true), "{applied:?}");
}

async fn migrating_tells_the_steps_by_name_and_does_them_once() {
    let store = empty().await;
    let db = options(&store).connect().await.unwrap();
    assert!(matches!(
        db.list_runs(ListRuns::default()).await.unwrap_err().kind(),
        SchemaMismatch { found: 0, needed } if *needed == 17
    ));
    let report = db.migrate().await.unwrap();
    assert_eq!((report.found, report.applied[0].as_str()), (Found::Nothing, "001_init"));
    let again = db.migrate().await.unwrap();
    assert_eq!((again.found, again.applied.len()), (Found::OrkState(report.to), 0));
}

async fn a_newer_schema_is_refused_and_left_alone() {
    let store = empty().await;
    let db = options(&store).connect().await.unwrap();
    db.migrate().await.unwrap();
    let other = options(&store).connect().await.unwrap();
    execute(&store, "INSERT INTO ork_state_migrations VALUES (999, 'x', '')").await;
    let newer = |error: Error| assert!(matches!(error.kind(), SchemaMismatch { found: 999, .. }), "{error}");
    newer(db.migrate().await.unwrap_err());
    newer(other.list_runs(ListRuns::default()).await.unwrap_err());
    newer(options(&store).connect().await.unwrap_err());
}

async fn a_migration_of_another_form_is_refused() {
    let store = empty().await;
    let db = options(&store).connect().await.unwrap();
    db.migrate().await.unwrap();
    execute(&store, "UPDATE ork_state_migrations SET checksum = 'x' WHERE version = 16").await;
    let error = db.migrate().await.unwrap_err();
    assert!(matches!(error.kind(), Conflict { reason } if reason.contains("016_constraints")), "{error}");
}

const OF_ANOTHER_MAKER: &[&str] =
    &["CREATE TABLE _sqlx_migrations (version bigint)", "CREATE TABLE workflows (id uuid)"];

async fn a_store_of_another_maker_is_refused_and_left_alone() {
    for &table in OF_ANOTHER_MAKER {
        let store = empty().await;
        execute(&store, table).await;
        let db = options(&store).connect().await.unwrap();
        for error in [db.migrate().await.unwrap_err(), db.list_runs(ListRuns::default()).await.unwrap_err()] {
            assert!(
                matches!(error.kind(), Conflict { .. }) && error.to_string().contains("made neither by"),
                "{error}"
            );
        }
        // Beside it there is room.
        let beside = options(&store).with_schema("beside").unwrap().connect().await.unwrap();
        beside.migrate().await.unwrap();
    }
}

async fn any_schema_will_do_and_two_do_not_meet() {
    let store = empty().await;
    let odd = PostgresOptions::new(&url_with(&store, "schema=odd%20Schema%22%27%3B--%C3%A9")).unwrap();
    let (odd, plain) = (odd.connect().await.unwrap(), options(&store).connect().await.unwrap());
    for db in [&odd, &plain] {
        db.migrate().await.unwrap();
        let workflow = workflow(db, "w", "a*1 b:a").await;
        let run = start(db, workflow).await;
        let claimed = claim(db, 10).await;
        assert_eq!(claimed.len(), 1, "only its own");
        update(db, vec![TaskUpdate::failed_for_good(claimed[0].claim, Text::lossy("x"))]).await;
        db.append_log(claimed[0].task.id, LogChunk::new(b"x").unwrap()).await.unwrap();
        assert_eq!(db.get_run(run.id).await.unwrap().status, RunStatus::Failed);
        assert_sound(db).await;
        WorkflowStore::delete_workflow(db, workflow).await.unwrap();
    }
}

async fn a_schema_that_goes_away_is_missed() {
    let (store, db, _clock) = store().await;
    db.list_runs(ListRuns::default()).await.unwrap();
    execute(&store, "DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    let error = db.list_runs(ListRuns::default()).await.unwrap_err();
    assert!(matches!(error.kind(), SchemaMismatch { found: 0, .. }), "{error}");
    db.migrate().await.unwrap();
    assert!(db.list_runs(ListRuns::default()).await.unwrap().items.is_empty());
}

async fn a_lock_on_a_table_is_not_waited_for_for_ever() {
    let (store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    let run = start(&db, workflow).await;
    let hasty =
        PostgresOptions::new(&url_with(&store, "lock_timeout=50ms")).unwrap().connect().await.unwrap();
    let mut session = session(&store).await;
    let mut lock = sqlx::Connection::begin(&mut session).await.unwrap();
    sqlx::query("SELECT FROM runs FOR UPDATE").execute(&mut *lock).await.unwrap();
    let error = hasty.pause_run(run.id).await.unwrap_err();
    assert!(matches!(error.kind(), Unavailable { effect: Effect::NotApplied, .. }), "{error}");
    assert!(error.to_string().contains("lock_timeout"), "{error}");
    lock.rollback().await.unwrap();
    hasty.pause_run(run.id).await.unwrap();
}

async fn what_keeps_from_connecting_is_told_without_the_password() {
    let store = empty().await;
    let url = store.url().replace("ork_state_test_", "no_such_database_");
    let error = PostgresOptions::new(&url).unwrap().connect().await.unwrap_err();
    assert!(matches!(error.kind(), Conflict { .. }) && error.to_string().contains("createdb"), "{error}");

    let nowhere = "postgres://me:sesame@127.0.0.1:1/db?connect_timeout=2s&password=sesame&sslmode=disable";
    let error = connect(nowhere).await.unwrap_err();
    assert!(matches!(error.kind(), Unavailable { effect: Effect::NotApplied, .. }), "{error}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("127.0.0.1:1/db") && !shown.contains("sesame"), "{shown}");
}

async fn a_database_of_another_encoding_is_refused() {
    let store = empty().await;
    execute(
        &store,
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0",
    )
    .await;
    let url = {
        let url = store.url();
        let at = url.find("ork_state_test_").unwrap();
        format!("{}latin", &url[..at])
    };
    let error = PostgresOptions::new(&url).unwrap().connect().await.unwrap_err();
    execute(&store, "DROP DATABASE latin WITH (FORCE)").await;
    assert!(matches!(error.kind(), Conflict { .. }) && error.to_string().contains("UTF8"), "{error}");
}

async fn a_store_goes_on_after_its_connections_were_ended() {
    let (store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    execute(&store, end).await;
    let error = db.create_run(NewRun::new(workflow)).await.unwrap_err();
    assert!(matches!(error.kind(), Unavailable { effect: Effect::Unknown, .. }), "{error}");
    assert_eq!(db.list_runs(ListRuns::default()).await.unwrap().items, []);
    db.create_run(NewRun::new(workflow)).await.unwrap();
    execute(&store, end).await;
    let error = db.list_runs(ListRuns::default()).await.unwrap_err();
    assert!(matches!(error.kind(), Unavailable { effect: Effect::NotApplied, .. }), "{error}");
}

async fn a_read_only_server_is_unavailable_and_its_connections_are_not_used_again() {
    let (store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&mut session(&store).await)
        .await
        .unwrap();
    execute(&store, format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    let demoted = options(&store).connect().await.unwrap();
    let error = demoted.create_run(NewRun::new(workflow)).await.unwrap_err();
    assert!(matches!(error.kind(), Unavailable { effect: Effect::NotApplied, .. }), "{error}");
    execute(&store, format!("BEGIN READ WRITE; ALTER DATABASE {name} RESET ALL; COMMIT")).await;
    // Connections from before are still read-only: only new ones will do.
    tokio::time::timeout(Duration::from_secs(30), demoted.create_run(NewRun::new(workflow)))
        .await
        .unwrap()
        .unwrap();
}

ork_state_conformance::own_tests!([
    of_many_that_migrate_at_once_one_does_it,
    migrating_tells_the_steps_by_name_and_does_them_once,
    a_newer_schema_is_refused_and_left_alone,
    a_migration_of_another_form_is_refused,
    a_store_of_another_maker_is_refused_and_left_alone,
    any_schema_will_do_and_two_do_not_meet,
    a_schema_that_goes_away_is_missed,
    a_lock_on_a_table_is_not_waited_for_for_ever,
    what_keeps_from_connecting_is_told_without_the_password,
    a_database_of_another_encoding_is_refused,
    a_store_goes_on_after_its_connections_were_ended,
    a_read_only_server_is_unavailable_and_its_connections_are_not_used_again,
]);
