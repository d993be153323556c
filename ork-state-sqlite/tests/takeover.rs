//! Databases that Ork made before ork-state, at each of its versions, with rows that nobody would
//! write today.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeSet;

use ork_state_api::ErrorKind::Conflict;
use ork_state_api::{Database, Found, ListRuns, MigrationReport, connect};
use ork_state_conformance::ork::takeover::{Column, Form, OldRow, OldStore, check_plan};
use ork_state_sqlite::MIGRATOR;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection, Executor};
use tempfile::TempDir;

const LAST: i64 = 9;

async fn session(directory: &TempDir) -> SqliteConnection {
    let options =
        SqliteConnectOptions::new().filename(directory.path().join("ork.db")).create_if_missing(true);
    options.foreign_keys(false).connect().await.unwrap()
}

async fn execute(directory: &TempDir, statements: String) {
    let mut session = session(directory).await;
    session.execute(sqlx::raw_sql(AssertSqlSafe(statements))).await.unwrap();
    session.close().await.unwrap();
}

async fn open(directory: &TempDir) -> std::sync::Arc<dyn Database> {
    connect(&format!("sqlite://{}/ork.db", directory.path().display())).await.unwrap()
}

/// The schema that Ork's own migrations left at this version, with its table of them: other
/// checksums than ours.
async fn ork_at(version: i64) -> Ork {
    let directory = tempfile::tempdir().unwrap();
    let mut statements = String::new();
    for migration in MIGRATOR.iter().filter(|migration| (1..=version).contains(&migration.version)) {
        statements += migration.sql.as_str();
        statements += "\n;\n";
    }
    statements += "CREATE TABLE _sqlx_migrations (
        version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
        success BOOLEAN NOT NULL, checksum BLOB NOT NULL, execution_time BIGINT NOT NULL);";
    for number in 1..=version {
        statements += &format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ({number}, 'orks', TRUE, x'77', 1);"
        );
    }
    execute(&directory, statements).await;
    let mut session = session(&directory).await;
    let mut columns = BTreeSet::new();
    for table in ["workflows", "workflow_tasks", "workflow_snapshots", "runs", "tasks", "deferred_jobs"] {
        let names = "SELECT name FROM pragma_table_info(?1)";
        let names: Vec<String> = sqlx::query_scalar(names).bind(table).fetch_all(&mut session).await.unwrap();
        columns.extend(names.into_iter().map(|column| (table.to_owned(), column)));
    }
    let ork = Ork { directory, columns, version };
    let rows = ork.with_form(OldStore::rows);
    ork.insert(&mut session, &rows.workflows).await;
    ork.insert(&mut session, &rows.workflow_tasks).await;
    ork.insert(&mut session, &rows.workflow_snapshots).await;
    ork.insert(&mut session, &rows.runs).await;
    ork.insert(&mut session, &rows.tasks).await;
    ork.insert(&mut session, &rows.deferred_jobs).await;
    session.close().await.unwrap();
    ork
}

/// A database of Ork's.
struct Ork {
    directory: TempDir,
    /// With their tables.
    columns: BTreeSet<(String, String)>,
    version: i64,
}

impl Ork {
    fn has(&self, table: &str, column: &str) -> bool {
        self.columns.contains(&(table.to_owned(), column.to_owned()))
    }

    fn with_form<T>(&self, f: impl FnOnce(&Form<'_>) -> T) -> T {
        let has = |table: &str, column: &str| self.has(table, column);
        f(&self.form(&has))
    }

    fn form<'a>(&self, has: &'a (dyn Fn(&str, &str) -> bool + Sync)) -> Form<'a> {
        Form {
            has,
            paused: self.version >= 5,
            any_executor: true,
            any_text: true,
            infinity: false,
            orphans: true,
            repeated_names: false,
            large: self.version == LAST,
            keeps: true,
        }
    }

    async fn insert<R: OldRow>(&self, session: &mut SqliteConnection, rows: &[R]) {
        for row in rows {
            let columns: Vec<_> =
                row.columns().into_iter().filter(|(name, _)| self.has(R::TABLE, name)).collect();
            if columns.is_empty() {
                continue;
            }
            let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
            let places = vec!["?"; names.len()].join(", ");
            let insert = format!("INSERT INTO {} ({}) VALUES ({places})", R::TABLE, names.join(", "));
            let mut insert = sqlx::query(AssertSqlSafe(insert));
            for (_, column) in columns {
                insert = match column {
                    Column::Id(id) => insert.bind(id.map(|id| id.as_bytes().to_vec())),
                    Column::Integer(integer) => insert.bind(integer),
                    Column::Flag(flag) => insert.bind(flag),
                    Column::Text(text) | Column::Json(text) | Column::Names(text) | Column::Time(text) => {
                        insert.bind(text)
                    }
                };
            }
            insert.execute(&mut *session).await.unwrap();
        }
    }

    /// What could not be held: whose, and which column.
    async fn kept(&self) -> Vec<(String, String)> {
        let kept = "SELECT entity, field FROM ork_kept";
        sqlx::query_as(kept).fetch_all(&mut session(&self.directory).await).await.unwrap()
    }
}

#[tokio::test]
async fn every_version_is_taken_over_and_nothing_is_lost() {
    for version in 1..=LAST {
        let store = ork_at(version).await;
        let db = open(&store.directory).await;
        let plan = db.plan_migration().await.unwrap();
        assert!(db.list_runs(ListRuns::default()).await.is_err(), "a plan changes nothing");
        let report = db.migrate().await.unwrap();
        check_plan(&plan, &report, Found::Ork(version)).unwrap();
        assert_eq!(db.migrate().await.unwrap().applied.len(), 0);
        check(&store, &*db, &report).await;
    }
}

async fn check(store: &Ork, db: &dyn Database, report: &MigrationReport) {
    let has = |table: &str, column: &str| store.has(table, column);
    let form = store.form(&has);
    let rows = OldStore::rows(&form);
    let checked = rows.check(&form, db, report, &store.kept().await).await;
    assert!(checked.is_ok(), "version {}: {checked:?}", store.version);
    let worked_off = rows.work_off(&form, db).await;
    assert!(worked_off.is_ok(), "version {}: {worked_off:?}", store.version);
}

/// They would go with Ork's tables.
#[tokio::test]
async fn what_others_added_to_orks_tables_is_named_and_nothing_is_done() {
    for version in [1, LAST] {
        let store = ork_at(version).await;
        let own = "ALTER TABLE tasks ADD COLUMN team TEXT DEFAULT 'a'; CREATE INDEX by_team ON tasks (team);
            CREATE TRIGGER audit AFTER UPDATE ON runs BEGIN SELECT 1; END;
            CREATE VIEW failed AS SELECT id FROM tasks WHERE status = 'failed'";
        execute(&store.directory, own.to_owned()).await;
        let db = open(&store.directory).await;
        for error in [db.plan_migration().await.unwrap_err(), db.migrate().await.unwrap_err()] {
            assert!(matches!(error.kind(), Conflict { .. }), "{error}");
            for name in ["column team of tasks", "index by_team of tasks", "trigger audit of runs"] {
                assert!(error.to_string().contains(name), "{name}: {error}");
            }
        }
        let drop = "DROP INDEX by_team; DROP TRIGGER audit; ALTER TABLE tasks DROP COLUMN team";
        execute(&store.directory, drop.to_owned()).await;
        let report = db.migrate().await.unwrap();
        check(&store, &*db, &report).await;
        // A view stays, and sees the tables of the same names.
        let failed = sqlx::query_scalar::<_, bool>("SELECT count(*) > 0 FROM failed");
        assert!(failed.fetch_one(&mut session(&store.directory).await).await.unwrap());
    }
}

/// SQLite stores any value in any column.
#[tokio::test]
async fn a_value_of_another_kind_is_told_and_kept() {
    use ork_state_conformance::ork::takeover::{id, task_id};
    let store = ork_at(LAST).await;
    let blob = |id: uuid::Uuid| format!("x'{}'", id.simple());
    execute(
        &store.directory,
        format!(
            "UPDATE tasks SET attempts = 'many' WHERE id = {0}; UPDATE tasks SET error = x'ff' WHERE id = {0};
             UPDATE runs SET snapshot_id = 'nonsense' WHERE id = {1}",
            blob(task_id(3, 1)),
            blob(id(6))
        ),
    )
    .await;
    let db = open(&store.directory).await;
    let report = db.migrate().await.unwrap();
    let kept = store.kept().await;
    for (entity, column) in [
        (format!("task {}", task_id(3, 1)), "attempts"),
        (format!("task {}", task_id(3, 1)), "error"),
        (format!("run {}", id(6)), "snapshot_id"),
    ] {
        let told = |line: &&ork_state_api::Violation| line.entity == entity && line.problem.contains(column);
        assert!(report.adjusted.iter().find(told).is_some(), "{column} of {entity}: {report}");
        assert!(kept.contains(&(entity.clone(), column.to_owned())), "{column} of {entity}");
    }
    assert_eq!(db.verify().await.unwrap(), []);
}

#[tokio::test]
async fn of_many_that_take_over_at_once_one_does_it() {
    let store = ork_at(6).await;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let db = open(&store.directory).await;
        tasks.push(tokio::spawn(async move { db.migrate().await.unwrap() }));
    }
    let mut found = Vec::new();
    for task in tasks {
        found.push(task.await.unwrap().found);
    }
    assert_eq!(found.iter().filter(|found| **found == Found::Ork(6)).count(), 1, "{found:?}");
}

/// Names the store to a process that is to migrate it.
const CHILD: &str = "ORK_STATE_TAKEOVER_CHILD";

/// What the processes of the next test do; in the test's own process nothing.
#[tokio::test]
async fn a_child_migrates() {
    if let Ok(url) = std::env::var(CHILD) {
        println!("child: {:?}", connect(&url).await.unwrap().migrate().await.unwrap().found);
    }
}

#[tokio::test]
async fn of_many_processes_that_take_over_at_once_one_does_it() {
    let store = ork_at(9).await;
    let url = format!("sqlite://{}/ork.db", store.directory.path().display());
    let start = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["a_child_migrates", "--exact", "--nocapture"])
            .env(CHILD, &url)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..4).map(|_| start()).collect();
    let mut did = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("child: "), "{said}");
        did += usize::from(said.contains("child: Ork(9)"));
    }
    assert_eq!(did, 1);
    assert_eq!(open(&store.directory).await.plan_migration().await.unwrap().applied.len(), 0);
}

#[tokio::test]
async fn what_orks_migrations_left_unfinished_or_unknown_is_not_taken_over() {
    for change in [
        "UPDATE _sqlx_migrations SET success = FALSE WHERE version = 3",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (10, '', TRUE, x'', 1)",
    ] {
        let store = ork_at(9).await;
        execute(&store.directory, change.to_owned()).await;
        let error = open(&store.directory).await.migrate().await.unwrap_err();
        assert!(matches!(error.kind(), Conflict { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_takeover_that_fails_leaves_everything_as_it_was() {
    let store = ork_at(7).await;
    // A table of somebody else's in the way.
    execute(&store.directory, "CREATE TABLE ready_tasks (x)".to_owned()).await;
    open(&store.directory).await.migrate().await.unwrap_err();
    execute(&store.directory, "DROP TABLE ready_tasks".to_owned()).await;
    let db = open(&store.directory).await;
    let report = db.migrate().await.unwrap();
    assert_eq!(report.found, Found::Ork(7));
    check(&store, &*db, &report).await;
}
