//! `MIGRATOR`, run by sqlx, and `migrate`: on one database, in either order, now and after an
//! upgrade.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::borrow::Cow;
use std::sync::Arc;

use ork_state_api::ErrorKind::SchemaMismatch;
use ork_state_api::{Dag, Database, Found, ListRuns, NewRun, NewWorkflow, StartRun, TaskSpec, connect};
use ork_state_sqlite::MIGRATOR;
use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, SqlSafeStr, SqliteConnection};
use tempfile::TempDir;

/// The number of the last step.
const LAST: i64 = 11;

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

async fn session(directory: &TempDir) -> SqliteConnection {
    let path = directory.path().join("ork.db");
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

async fn open(directory: &TempDir) -> Arc<dyn Database> {
    connect(&format!("sqlite://{}/ork.db", directory.path().display())).await.unwrap()
}

async fn run(directory: &TempDir) -> Result<(), MigrateError> {
    MIGRATOR.run(&mut session(directory).await).await
}

/// The first line of why it refuses.
async fn refusal(directory: &TempDir) -> String {
    let error = run(directory).await.unwrap_err();
    assert!(matches!(error, MigrateError::ExecuteMigration(_, 0)), "{error}");
    error.to_string().lines().next().unwrap().to_owned()
}

async fn catalog(directory: &TempDir) -> Vec<(String, String, Option<String>)> {
    const CATALOG: &str = "SELECT type, name, sql FROM sqlite_schema WHERE tbl_name <> '_sqlx_migrations'
        UNION ALL SELECT 'step', version || ' ' || name, hex(checksum) FROM ork_state_migrations
        ORDER BY 1, 2";
    sqlx::query_as(CATALOG).fetch_all(&mut session(directory).await).await.unwrap()
}

async fn assert_usable(db: &dyn Database, name: &str) {
    let task = TaskSpec::new("a".parse().unwrap(), "process".parse().unwrap());
    let new = NewWorkflow::new(name.parse().unwrap(), Dag::new([task]).unwrap());
    let workflow = db.create_workflow(new).await.unwrap().id;
    let run = db.create_run(NewRun::new(workflow)).await.unwrap().into_run();
    db.start_run(StartRun::pinned(run.id)).await.unwrap();
    assert_eq!(db.ready_tasks(ork_state_api::Limit::ONE).await.unwrap().len(), 1);
    assert_eq!(db.verify().await.unwrap(), []);
}

#[tokio::test]
async fn it_makes_the_store_that_migrate_makes_and_both_find_it_current() {
    let (ours, sqlx) = (directory(), directory());
    open(&ours).await.migrate().await.unwrap();
    run(&sqlx).await.unwrap();
    assert_eq!(catalog(&ours).await, catalog(&sqlx).await);
    let db = open(&sqlx).await;
    assert_usable(&*db, "one").await;
    assert_eq!(db.migrate().await.unwrap().applied, Vec::<String>::new());
    run(&sqlx).await.unwrap();
    assert_usable(&*db, "two").await;
}

#[tokio::test]
async fn it_refuses_a_store_of_migrate_and_changes_nothing() {
    let store = directory();
    let db = open(&store).await;
    db.migrate().await.unwrap();
    let before = catalog(&store).await;
    let line = refusal(&store).await;
    assert!(
        line.contains("call `Maintenance::migrate` instead") && line.contains("made this store"),
        "{line}"
    );
    assert_eq!(catalog(&store).await, before);
    assert_eq!(db.migrate().await.unwrap().applied, Vec::<String>::new());
    assert_usable(&*db, "one").await;
}

#[tokio::test]
async fn it_refuses_a_database_of_ork_and_changes_nothing() {
    for version in [1, 5, 9] {
        let store = directory();
        let steps = MIGRATOR.iter().filter(|step| (1..=version).contains(&step.version));
        let mut statements: String = steps.map(|step| format!("{};\n", step.sql.as_str())).collect();
        statements += "CREATE TABLE _sqlx_migrations (
            version BIGINT PRIMARY KEY, description TEXT NOT NULL,
            installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
            success BOOLEAN NOT NULL, checksum BLOB NOT NULL, execution_time BIGINT NOT NULL);";
        for number in 1..=version {
            statements += &format!(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES ({number}, 'orks', TRUE, x'77', 1);"
            );
        }
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut session(&store).await).await.unwrap();
        let line = refusal(&store).await;
        assert!(line.contains("call `Maintenance::migrate` instead") && line.contains("of Ork"), "{line}");
        let db = open(&store).await;
        assert_eq!(db.migrate().await.unwrap().found, Found::Ork(version));
        let line = refusal(&store).await;
        assert!(line.contains("call `Maintenance::migrate` instead"), "{line}");
        assert_usable(&*db, "one").await;
    }
}

#[tokio::test]
async fn a_store_that_it_has_begun_is_refused_until_it_has_run_to_its_end() {
    let store = directory();
    MIGRATOR.run_to(7, &mut session(&store).await).await.unwrap();
    let db = open(&store).await;
    for error in [db.list_runs(ListRuns::default()).await.unwrap_err(), db.migrate().await.unwrap_err()] {
        assert!(matches!(error.kind(), SchemaMismatch { found: 7, needed: LAST }), "{error}");
        assert!(error.to_string().contains("run it to its end"), "{error}");
    }
    run(&store).await.unwrap();
    assert_usable(&*open(&store).await, "one").await;
}

/// As an older version of this crate would have left it.
#[tokio::test]
async fn migrate_brings_its_store_up_to_date_for_both() {
    let store = directory();
    MIGRATOR.run_to(LAST - 1, &mut session(&store).await).await.unwrap();
    let db = open(&store).await;
    let error = db.list_runs(ListRuns::default()).await.unwrap_err();
    assert!(matches!(error.kind(), SchemaMismatch { found: 10, needed: LAST }), "{error}");
    assert_eq!(db.migrate().await.unwrap().applied, ["011_queues_and_counts"]);
    run(&store).await.unwrap();
    assert_usable(&*db, "one").await;
}

#[tokio::test]
async fn after_an_upgrade_the_older_version_refuses_both_ways() {
    let mut steps: Vec<Migration> = MIGRATOR.iter().cloned().collect();
    let last = steps.last().unwrap().clone();
    let sql = "CREATE TABLE later (x INTEGER) STRICT;
        INSERT INTO ork_state_migrations (version, name, checksum, applied_at) VALUES (12, '012_later', x'', 0)";
    let sql = AssertSqlSafe(sql.to_owned()).into_sql_str();
    steps.push(Migration { version: 12, sql, checksum: Cow::Owned(vec![1; 48]), ..last });
    let later = Migrator::with_migrations(steps);
    let (upgraded, new) = (directory(), directory());
    run(&upgraded).await.unwrap();
    for store in [upgraded, new] {
        later.run(&mut session(&store).await).await.unwrap();
        let error = run(&store).await.unwrap_err();
        assert!(matches!(error, MigrateError::VersionMissing(12)), "{error}");
        let url = format!("sqlite://{}/ork.db", store.path().display());
        let Err(error) = connect(&url).await else { panic!("it opens") };
        assert!(matches!(error.kind(), SchemaMismatch { found: 12, needed: LAST }), "{error}");
    }
}
