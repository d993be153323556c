//! `MIGRATOR`, run by sqlx, and `migrate`: on one store, in either order, now and after an upgrade.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::borrow::Cow;
use std::error::Error as _;
use std::path::{Path, PathBuf};

use crate::common::*;
use ork_state_api::ErrorKind::{Conflict, SchemaMismatch};
use ork_state_api::{ListRuns, LogChunk, Maintenance, RunStatus, RunStore, Text, WorkflowStore};
use ork_state_api::{LogStore, TaskUpdate};
use ork_state_conformance::Fixture as _;
use ork_state_postgres::{MIGRATOR, PostgresDatabase};
use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, SqlSafeStr};

/// The number of the last step, which installs the functions.
const FUNCTIONS: i64 = 17;

async fn pool(store: &Store) -> PgPool {
    PgPoolOptions::new().max_connections(1).connect(&store.url()).await.unwrap()
}

async fn by_migrator() -> Store {
    let store = empty().await;
    MIGRATOR.run(&pool(&store).await).await.unwrap();
    store
}

async fn open(store: &Store) -> PostgresDatabase {
    options(store).connect().await.unwrap()
}

/// A run from its beginning to its end, and its deletion.
async fn assert_usable(db: &PostgresDatabase) {
    let workflow = workflow(db, "w", "a b:a").await;
    let run = start(db, workflow).await;
    let claimed = claim(db, 10).await;
    assert_eq!(claimed.len(), 1, "only its own");
    update(db, vec![TaskUpdate::failed_for_good(claimed[0].claim, Text::lossy("x"))]).await;
    db.append_log(claimed[0].task.id, LogChunk::new(b"x").unwrap()).await.unwrap();
    assert_eq!(db.get_run(run.id).await.unwrap().status, RunStatus::Failed);
    assert_sound(db).await;
    WorkflowStore::delete_workflow(db, workflow).await.unwrap();
}

/// Everything that a schema consists of, a line a thing. Objects are told by name, so that two
/// databases can be compared.
async fn catalog(store: &Store) -> Vec<String> {
    const CATALOG: &str = "
        SELECT format('column %s.%s %s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
            a.attnotnull, a.attcollation::regcollation, a.attstorage, pg_get_expr(d.adbin, d.adrelid))
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND c.relname <> '_sqlx_migrations'
        UNION ALL
        SELECT format('table %s %s', c.relname, c.reloptions)
        FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND c.relname <> '_sqlx_migrations'
        UNION ALL
        SELECT i.indexdef FROM pg_indexes i
        WHERE i.schemaname = current_schema() AND i.tablename <> '_sqlx_migrations'
        UNION ALL
        SELECT format('constraint %s of %s: %s', k.conname, k.conrelid::regclass, pg_get_constraintdef(k.oid))
        FROM pg_constraint k
        WHERE k.connamespace = current_schema()::regnamespace AND k.conrelid::regclass::text <> '_sqlx_migrations'
        UNION ALL
        SELECT pg_get_functiondef(p.oid) || obj_description(p.oid, 'pg_proc')
        FROM pg_proc p
        WHERE p.pronamespace = current_schema()::regnamespace
        UNION ALL
        SELECT format('step %s %s %s', m.version, m.name, m.checksum) FROM ork_state_migrations m
        ORDER BY 1";
    sqlx::query_scalar(CATALOG).fetch_all(&mut session(store).await).await.unwrap()
}

async fn it_makes_the_store_that_migrate_makes() {
    let (ours, sqlx) = (FIXTURE.migrated().await.unwrap(), by_migrator().await);
    let (ours, sqlx) = (catalog(&ours).await, catalog(&sqlx).await);
    assert!(ours.len() > 200, "{} lines", ours.len());
    for (ours, sqlx) in ours.iter().zip(&sqlx) {
        assert_eq!(ours, sqlx);
    }
    assert_eq!(ours.len(), sqlx.len());
}

async fn its_store_is_current_for_both() {
    let store = by_migrator().await;
    let db = open(&store).await;
    assert_usable(&db).await;
    assert_eq!(db.migrate().await.unwrap().applied, Vec::<String>::new());
    MIGRATOR.run(&pool(&store).await).await.unwrap();
    assert_usable(&db).await;
}

/// The first line of why it refuses.
async fn refusal(store: &Store) -> String {
    let error = MIGRATOR.run(&pool(store).await).await.unwrap_err();
    assert!(matches!(error, MigrateError::ExecuteMigration(_, 0)), "{error}");
    error.to_string().lines().next().unwrap().to_owned()
}

async fn it_refuses_a_store_of_migrate_and_changes_nothing() {
    let store = FIXTURE.migrated().await.unwrap();
    let before = catalog(&store).await;
    let line = refusal(&store).await;
    assert!(
        line.contains("call `Maintenance::migrate` instead") && line.contains("made this store"),
        "{line}"
    );
    assert_eq!(catalog(&store).await, before);
    let db = open(&store).await;
    assert_eq!(db.migrate().await.unwrap().applied, Vec::<String>::new());
    assert_usable(&db).await;
    refusal(&store).await;
}

/// Ork's own table of its migrations, at this version.
async fn ork_at(version: i64) -> Store {
    let store = empty().await;
    let steps = MIGRATOR.iter().filter(|step| (1..=version).contains(&step.version));
    let mut statements: String = steps.map(|step| format!("{};\n", step.sql.as_str())).collect();
    statements += "CREATE TABLE _sqlx_migrations (
        version bigint PRIMARY KEY, description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(),
        success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL);";
    statements += &format!(
        "INSERT INTO _sqlx_migrations SELECT n, 'orks', now(), true, 'theirs', 1 FROM generate_series(1, {version}) n;"
    );
    execute(&store, statements).await;
    store
}

async fn it_refuses_a_database_of_ork_and_changes_nothing() {
    for version in [1, 9, 14] {
        let store = ork_at(version).await;
        let line = refusal(&store).await;
        assert!(line.contains("call `Maintenance::migrate` instead") && line.contains("of Ork"), "{line}");
        let report = open(&store).await.migrate().await.unwrap();
        assert_eq!(report.found, ork_state_api::Found::Ork(version));
        // It was taken over meanwhile.
        let line = refusal(&store).await;
        assert!(line.contains("call `Maintenance::migrate` instead"), "{line}");
        assert_usable(&open(&store).await).await;
    }
}

async fn a_store_that_it_has_begun_is_refused_until_it_has_run_to_its_end() {
    let store = empty().await;
    let pool = pool(&store).await;
    MIGRATOR.run_to(9, &pool).await.unwrap();
    let db = open(&store).await;
    for error in [db.list_runs(ListRuns::default()).await.unwrap_err(), db.migrate().await.unwrap_err()] {
        assert!(matches!(error.kind(), SchemaMismatch { found: 9, needed: FUNCTIONS }), "{error}");
        assert!(error.to_string().contains("run it to its end"), "{error}");
    }
    MIGRATOR.run(&pool).await.unwrap();
    assert_usable(&db).await;
}

async fn of_both_at_once_one_makes_the_store() {
    for _ in 0..5 {
        let store = empty().await;
        let (pool, db) = (pool(&store).await, open(&store).await);
        let (sqlx, ours) = tokio::join!(MIGRATOR.run(&pool), db.migrate());
        assert!(sqlx.is_ok() || ours.is_ok(), "{sqlx:?} {ours:?}");
        assert_usable(&db).await;
        assert_eq!(db.migrate().await.unwrap().applied, Vec::<String>::new());
    }
}

/// As an older version of this crate would have left it.
async fn migrate_brings_its_store_up_to_date_for_both() {
    let store = empty().await;
    let pool = pool(&store).await;
    MIGRATOR.run_to(FUNCTIONS - 1, &pool).await.unwrap();
    let db = open(&store).await;
    let error = db.list_runs(ListRuns::default()).await.unwrap_err();
    assert!(matches!(error.kind(), SchemaMismatch { found, .. } if *found == FUNCTIONS - 1), "{error}");
    assert_eq!(db.migrate().await.unwrap().applied, ["017_functions"]);
    MIGRATOR.run(&pool).await.unwrap();
    assert_usable(&db).await;
    assert_eq!(catalog(&store).await, catalog(&by_migrator().await).await);
}

/// What a later version of this crate would have: a step for a table, then the functions anew. The
/// step of functions that is released now does nothing any more.
fn a_later_version() -> Migrator {
    let text = |text: String| AssertSqlSafe(text).into_sql_str();
    let mut steps: Vec<Migration> = MIGRATOR.iter().cloned().collect();
    let functions = steps.pop().unwrap();
    let recorded = |as_step: i64, sql: &str| {
        let record = format!(
            "INSERT INTO ork_state_migrations (version, name, checksum) VALUES ({as_step}, '{as_step:03}', '')"
        );
        text(format!("{sql};\n{record} ON CONFLICT (version) DO NOTHING"))
    };
    let (made, _) = functions.sql.as_str().split_once("INSERT INTO ork_state_migrations").unwrap();
    steps.push(Migration { sql: recorded(FUNCTIONS, "SELECT"), ..functions.clone() });
    for (version, sql, checksum) in [(18, "CREATE TABLE later (x int)", 1), (19, made, 2)] {
        let checksum = Cow::Owned(vec![checksum; 48]);
        steps.push(Migration { version, sql: recorded(version, sql), checksum, ..functions.clone() });
    }
    Migrator::with_migrations(steps)
}

async fn after_an_upgrade_the_older_version_refuses_both_ways() {
    let (upgraded, new) = (by_migrator().await, empty().await);
    for store in [upgraded, new] {
        let pool = pool(&store).await;
        a_later_version().run(&pool).await.unwrap();
        let error = MIGRATOR.run(&pool).await.unwrap_err();
        assert!(matches!(error, MigrateError::VersionMissing(18)), "{error}");
        let error = options(&store).connect().await.unwrap_err();
        assert!(matches!(error.kind(), SchemaMismatch { found: 19, needed: FUNCTIONS }), "{error}");
    }
}

async fn functions_of_another_build_are_noticed_and_made_anew() {
    for store in [by_migrator().await, FIXTURE.migrated().await.unwrap()] {
        let sound = catalog(&store).await;
        execute(
            &store,
            "CREATE FUNCTION ork_mine() RETURNS int LANGUAGE sql RETURN 1;
             CREATE FUNCTION ork_gone() RETURNS int LANGUAGE sql RETURN 1;
             COMMENT ON FUNCTION ork_gone IS 'ork-state: Did something once.';
             DROP FUNCTION ork_free_logs;
             CREATE FUNCTION ork_free_logs() RETURNS int LANGUAGE sql RETURN 1;
             COMMENT ON FUNCTION ork_free_logs IS 'ork-state: Had another result.';
             UPDATE ork_state_migrations SET checksum = 'x' WHERE version = 17",
        )
        .await;
        let db = open(&store).await;
        let error = db.list_runs(ListRuns::default()).await.unwrap_err();
        assert!(
            matches!(error.kind(), Conflict { .. }) && error.to_string().contains("Call `migrate`"),
            "{error}"
        );
        assert_eq!(db.plan_migration().await.unwrap().applied, ["017_functions"]);
        assert_eq!(db.migrate().await.unwrap().applied, ["017_functions"]);
        assert_eq!(db.migrate().await.unwrap().applied, Vec::<String>::new());
        assert_usable(&db).await;
        execute(&store, "DROP FUNCTION ork_mine").await;
        assert_eq!(catalog(&store).await, sound);
    }
}

async fn a_function_of_somebody_else_is_not_replaced() {
    let store = empty().await;
    execute(&store, "CREATE FUNCTION ork_later(timestamptz, interval) RETURNS int LANGUAGE sql RETURN 1")
        .await;
    let error = open(&store).await.migrate().await.unwrap_err();
    let whole = format!("{error} {}", error.source().map(ToString::to_string).unwrap_or_default());
    assert!(whole.contains("017_functions"), "{whole}");
}

async fn another_schema_is_the_first_of_the_search_path() {
    let store = empty().await;
    execute(&store, "CREATE SCHEMA \"odd Schema\"").await;
    let url: PgConnectOptions = store.url().parse().unwrap();
    let driver = url.options([("search_path", "\"odd Schema\"")]);
    MIGRATOR.run(&PgPoolOptions::new().connect_with(driver).await.unwrap()).await.unwrap();
    let db = options(&store).with_schema("odd Schema").unwrap().connect().await.unwrap();
    assert_usable(&db).await;
    assert_eq!(db.migrate().await.unwrap().applied, Vec::<String>::new());
    assert!(open(&store).await.list_runs(ListRuns::default()).await.is_err(), "nothing is in `public`");
}

/// The files of functions, by name.
fn files(directory: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "sql") {
            found.push((path.file_stem().unwrap().to_string_lossy().into_owned(), path));
        }
    }
    found.sort();
    found
}

async fn definitions(store: &Store) -> Vec<(String, String)> {
    const DEFINITIONS: &str = "SELECT p.proname::text, pg_get_functiondef(p.oid) FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace ORDER BY p.proname::text COLLATE \"C\"";
    sqlx::query_as(DEFINITIONS).fetch_all(&mut session(store).await).await.unwrap()
}

/// The server reads each file by itself, and must get what the store has.
async fn what_is_installed_is_what_the_files_say() {
    let store = empty().await;
    MIGRATOR.run_to(FUNCTIONS - 1, &pool(&store).await).await.unwrap();
    let files = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("functions"));
    for (_, path) in &files {
        let text = std::fs::read_to_string(path).unwrap();
        execute(&store, format!("SET search_path TO public, pg_temp; {text}")).await;
    }
    let (installed, told) =
        (definitions(&FIXTURE.migrated().await.unwrap()).await, definitions(&store).await);
    let names: Vec<&str> = installed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    for (installed, told) in installed.iter().zip(&told) {
        assert_eq!(installed.1, told.1, "{} is installed in another form than its file has", installed.0);
    }
}

ork_state_conformance::own_tests!([
    it_makes_the_store_that_migrate_makes,
    its_store_is_current_for_both,
    it_refuses_a_store_of_migrate_and_changes_nothing,
    it_refuses_a_database_of_ork_and_changes_nothing,
    a_store_that_it_has_begun_is_refused_until_it_has_run_to_its_end,
    of_both_at_once_one_makes_the_store,
    migrate_brings_its_store_up_to_date_for_both,
    after_an_upgrade_the_older_version_refuses_both_ways,
    functions_of_another_build_are_noticed_and_made_anew,
    a_function_of_somebody_else_is_not_replaced,
    another_schema_is_the_first_of_the_search_path,
    what_is_installed_is_what_the_files_say,
]);
