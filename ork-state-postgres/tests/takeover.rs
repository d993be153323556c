//! Databases that Ork made before ork-state, at each of its versions, with rows that nobody would
//! write today.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::collections::BTreeSet;

use crate::common::*;
use ork_state_api::ErrorKind::{Conflict, Unavailable};
use ork_state_api::{Database, Found, ListRuns, Maintenance, MigrationReport, RunStore, connect};
use ork_state_conformance::ork::takeover::{Column, Form, OldRow, OldStore, check_plan};
use ork_state_postgres::MIGRATOR;

const LAST: i64 = 14;

/// The schema that Ork's own migrations left at this version, with its table of them: other
/// checksums than ours.
async fn ork_at(version: i64) -> Ork {
    let store = empty().await;
    let mut statements = String::new();
    for migration in MIGRATOR.iter().filter(|migration| (1..=version).contains(&migration.version)) {
        statements += migration.sql.as_str();
        statements += "\n;\n";
    }
    statements += "CREATE TABLE _sqlx_migrations (
        version bigint PRIMARY KEY, description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(),
        success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL);";
    for number in 1..=version {
        statements +=
            &format!("INSERT INTO _sqlx_migrations VALUES ({number}, 'orks', now(), true, 'theirs', 1);");
    }
    execute(&store, statements).await;
    let columns = "SELECT table_name::text, column_name::text FROM information_schema.columns
         WHERE table_schema = 'public'";
    let columns = sqlx::query_as(columns).fetch_all(&mut session(&store).await).await.unwrap();
    let ork = Ork { store, columns: columns.into_iter().collect(), version };
    let has = |table: &str, column: &str| ork.has(table, column);
    let rows = OldStore::rows(&ork.form(&has));
    // A workflow's snapshots come after it, and its reference to them last.
    let mut statements = vec![ork.insert(&rows.workflows)];
    statements.push(ork.insert(&rows.workflow_tasks));
    statements.push(ork.insert(&rows.workflow_snapshots));
    for workflow in &rows.workflows {
        if let Some(current) = workflow.current_snapshot_id {
            let id = workflow.id;
            statements
                .push(format!("UPDATE workflows SET current_snapshot_id = '{current}' WHERE id = '{id}';"));
        }
    }
    statements.push(ork.insert(&rows.runs));
    statements.push(ork.insert(&rows.tasks));
    if version >= 12 {
        // Made by hand, before there was a migration that made it.
        statements.push("ALTER TABLE deferred_jobs DROP CONSTRAINT deferred_jobs_task_id_fkey;".to_owned());
        statements.push(ork.insert(&rows.deferred_jobs));
    }
    execute(&ork.store, statements.concat()).await;
    ork
}

/// A database of Ork's.
struct Ork {
    store: Store,
    /// With their tables.
    columns: BTreeSet<(String, String)>,
    version: i64,
}

impl Ork {
    /// Three columns had other names.
    fn old_name<'a>(&self, table: &str, column: &'a str) -> &'a str {
        match column {
            _ if self.version >= 4 => column,
            "job_name" => "cloud_run_job_name",
            "region" => "cloud_run_region",
            "project" => "cloud_run_project",
            "execution_name" if table == "tasks" => "cloud_run_execution_name",
            column => column,
        }
    }

    fn has(&self, table: &str, column: &str) -> bool {
        self.columns.contains(&(table.to_owned(), self.old_name(table, column).to_owned()))
    }

    fn form<'a>(&self, has: &'a (dyn Fn(&str, &str) -> bool + Sync)) -> Form<'a> {
        Form {
            has,
            paused: self.version >= 10,
            any_executor: self.version >= 6,
            any_text: false,
            infinity: true,
            orphans: self.version >= 12,
            repeated_names: false,
            large: self.version == LAST,
            keeps: true,
        }
    }

    fn insert<R: OldRow>(&self, rows: &[R]) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let literal = |column: Column| match column {
            Column::Id(Some(id)) => format!("'{id}'"),
            Column::Integer(Some(integer)) => integer.to_string(),
            Column::Flag(flag) => flag.to_string(),
            Column::Text(Some(text)) | Column::Json(Some(text)) => quoted(&text),
            // The server would round to microseconds.
            Column::Time(Some(text)) => quoted(&text.replace("123456789", "123456")),
            Column::Names(Some(names)) => {
                format!("ARRAY(SELECT jsonb_array_elements_text({}))", quoted(&names))
            }
            Column::Id(None)
            | Column::Integer(None)
            | Column::Text(None)
            | Column::Json(None)
            | Column::Time(None)
            | Column::Names(None) => "NULL".to_owned(),
        };
        let mut statements = String::new();
        for row in rows {
            let columns = row.columns().into_iter().filter(|(name, _)| {
                self.has(R::TABLE, name) && (R::TABLE, *name) != ("workflows", "current_snapshot_id")
            });
            let (names, values): (Vec<&str>, Vec<String>) =
                columns.map(|(name, column)| (self.old_name(R::TABLE, name), literal(column))).unzip();
            if !names.is_empty() {
                let (names, values) = (names.join(", "), values.join(", "));
                statements += &format!("INSERT INTO {} ({names}) VALUES ({values});\n", R::TABLE);
            }
        }
        statements
    }

    /// What could not be held: whose, and which column.
    async fn kept(&self) -> Vec<(String, String)> {
        let kept = "SELECT entity, field FROM ork_kept";
        sqlx::query_as(kept).fetch_all(&mut session(&self.store).await).await.unwrap()
    }
}

async fn every_version_is_taken_over_and_nothing_is_lost() {
    for version in 1..=LAST {
        let ork = ork_at(version).await;
        let db = options(&ork.store).connect().await.unwrap();
        let plan = db.plan_migration().await.unwrap();
        assert!(db.list_runs(ListRuns::default()).await.is_err(), "a plan changes nothing");
        let report = db.migrate().await.unwrap();
        check_plan(&plan, &report, Found::Ork(version)).unwrap();
        assert_eq!(db.migrate().await.unwrap().applied.len(), 0);
        check(&ork, &db, &report).await;
    }
}

async fn check(ork: &Ork, db: &dyn Database, report: &MigrationReport) {
    let has = |table: &str, column: &str| ork.has(table, column);
    let form = ork.form(&has);
    let rows = OldStore::rows(&form);
    let checked = rows.check(&form, db, report, &ork.kept().await).await;
    assert!(checked.is_ok(), "version {}: {checked:?}", ork.version);
    let worked_off = rows.work_off(&form, db).await;
    assert!(worked_off.is_ok(), "version {}: {worked_off:?}", ork.version);
}

async fn of_many_that_take_over_at_once_one_does_it() {
    let store = ork_at(9).await;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let options = options(&store.store);
        tasks.push(tokio::spawn(async move { options.connect().await.unwrap().migrate().await.unwrap() }));
    }
    let mut found = Vec::new();
    for task in tasks {
        found.push(task.await.unwrap().found);
    }
    assert_eq!(found.iter().filter(|found| **found == Found::Ork(9)).count(), 1, "{found:?}");
}

/// Names the store to a process that is to migrate it.
const CHILD: &str = "ORK_STATE_TAKEOVER_CHILD";

/// What the processes of the next test do; in the test's own process nothing.
async fn a_child_migrates() {
    if let Ok(url) = std::env::var(CHILD) {
        println!("child: {:?}", connect(&url).await.unwrap().migrate().await.unwrap().found);
    }
}

async fn of_many_processes_that_take_over_at_once_one_does_it() {
    let store = ork_at(14).await;
    let url = store.store.url();
    let start = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["takeover::a_child_migrates", "--exact"])
            .env(CHILD, &url)
            // It has its store and needs no server of its own.
            .env("ORK_STATE_POSTGRES_URL", &url)
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
        did += usize::from(said.contains("child: Ork(14)"));
    }
    assert_eq!(did, 1);
    assert_eq!(
        options(&store.store).connect().await.unwrap().plan_migration().await.unwrap().applied.len(),
        0
    );
}

async fn an_old_process_in_the_middle_of_something_makes_it_fail_cleanly() {
    let store = ork_at(14).await;
    let db = options(&store.store).connect().await.unwrap();
    let mut old = session(&store.store).await;
    let mut transaction = sqlx::Connection::begin(&mut old).await.unwrap();
    sqlx::query("UPDATE tasks SET status = 'running' WHERE status = 'pending'")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let error = db.migrate().await.unwrap_err();
    assert!(
        matches!(error.kind(), Unavailable { .. }) && error.to_string().contains("Stop the programs of Ork"),
        "{error}"
    );
    transaction.rollback().await.unwrap();
    assert_eq!(db.migrate().await.unwrap().found, Found::Ork(14));
}

async fn a_migration_of_orks_that_failed_is_not_taken_over() {
    let store = ork_at(3).await;
    execute(&store.store, "UPDATE _sqlx_migrations SET success = false WHERE version = 3").await;
    let error = options(&store.store).connect().await.unwrap().migrate().await.unwrap_err();
    assert!(matches!(error.kind(), Conflict { .. }), "{error}");
}

async fn a_version_of_ork_that_nobody_knows_is_not_taken_over() {
    let store = ork_at(14).await;
    execute(&store.store, "INSERT INTO _sqlx_migrations VALUES (15, '', now(), true, '', 1)").await;
    let error = options(&store.store).connect().await.unwrap().migrate().await.unwrap_err();
    assert!(
        matches!(error.kind(), Conflict { .. }) && error.to_string().contains("version 15 of Ork"),
        "{error}"
    );
}

async fn a_takeover_that_fails_leaves_everything_as_it_was() {
    let store = ork_at(12).await;
    // A table of somebody else's in the way.
    execute(&store.store, "CREATE TABLE ready_tasks (x int)").await;
    let db = options(&store.store).connect().await.unwrap();
    db.migrate().await.unwrap_err();
    execute(&store.store, "DROP TABLE ready_tasks").await;
    let report = db.migrate().await.unwrap();
    assert_eq!(report.found, Found::Ork(12));
    check(&store, &db, &report).await;
}

ork_state_conformance::own_tests!([
    every_version_is_taken_over_and_nothing_is_lost,
    of_many_that_take_over_at_once_one_does_it,
    a_child_migrates,
    of_many_processes_that_take_over_at_once_one_does_it,
    an_old_process_in_the_middle_of_something_makes_it_fail_cleanly,
    a_migration_of_orks_that_failed_is_not_taken_over,
    a_version_of_ork_that_nobody_knows_is_not_taken_over,
    a_takeover_that_fails_leaves_everything_as_it_was,
]);
