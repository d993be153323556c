//! Databases that Ork made before ork-state, at each of its versions, with rows that nobody would
//! write today.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::collections::BTreeMap;
use std::time::Duration;

use ork_state_api::ErrorKind::Conflict;
use ork_state_api::*;
use ork_state_sqlite::MIGRATOR;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection, Executor};
use tempfile::TempDir;
use uuid::Uuid;

const LAST: i64 = 9;
const LEASE: Duration = Duration::from_secs(60);

/// An entity's id by a number of our own.
const fn id(number: u128) -> Uuid {
    Uuid::from_u128(0xabcd_0000_0000_4000_8000_0000_0000_0000 + number)
}

/// As it is written in a statement.
fn blob(number: u128) -> String {
    format!("x'{}'", id(number).simple())
}

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
async fn ork_at(version: i64) -> TempDir {
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
    execute(&directory, rows(version)).await;
    directory
}

struct OldTask<'a> {
    run: u128,
    index: u128,
    status: &'a str,
    depends_on: &'a str,
}

/// The forms of time that stand in one column.
const TIMES: [&str; 3] =
    ["2026-02-01T11:00:02.123456789+00:00", "2026-02-01 11:00:02", "2026-02-01T11:00:02.123Z"];

impl OldTask<'_> {
    fn number(&self) -> u128 {
        self.run * 1000 + self.index + 500
    }

    fn insert(&self, version: i64) -> String {
        let Self { run, index, status, depends_on } = self;
        let (id, run) = (blob(self.number()), blob(*run));
        let at = format!("'{}'", TIMES[usize::try_from(*index % 3).unwrap()]);
        let times = match *status {
            "pending" | "paused" => "NULL, NULL, NULL".to_owned(),
            "dispatched" => format!("{at}, NULL, NULL"),
            "running" => format!("{at}, {at}, NULL"),
            _ => format!("{at}, {at}, {at}"),
        };
        let output =
            if *status == "success" { "'{\"rows\": 12345678901234567890, \"f\": 1.50}'" } else { "NULL" };
        let mut columns = "id, run_id, task_index, status, params, output, dispatched_at, started_at, finished_at, task_name, \
            depends_on, executor_type, created_at"
            .to_owned();
        let mut values = format!(
            "{id}, {run}, {index}, '{status}', '{{\"i\": {index}}}', {output}, {times}, 'task_{index}', '{depends_on}', 'python', \
             '2026-02-01 11:00:00'"
        );
        if version >= 3 {
            columns += ", attempts, max_retries, timeout_seconds";
            values += ", 78874, 10, 60";
        }
        format!("INSERT INTO tasks ({columns}) VALUES ({values});")
    }
}

/// A run's number and status, and the status and dependencies of each of its tasks.
type OldRun = (u128, &'static str, &'static [(&'static str, &'static str)]);

const RUNS: &[OldRun] = &[
    (1, "success", &[("success", "[]"), ("success", "[\"task_0\"]")]),
    // Every task has finished, and nobody ended the run.
    (2, "running", &[("success", "[]"), ("success", "[]")]),
    (3, "running", &[("success", "[]"), ("failed", "[]")]),
    // A pending task under a cancelled run.
    (4, "cancelled", &[("success", "[]"), ("pending", "[\"task_0\"]"), ("running", "[]")]),
    // The middle of work, of a scheduler that is gone.
    (
        5,
        "running",
        &[
            ("success", "[]"),
            ("dispatched", "[\"task_0\"]"),
            ("running", "[]"),
            ("pending", "[\"task_1\",\"task_2\"]"),
        ],
    ),
    (6, "pending", &[]),
    // Failed for a reason of its own.
    (7, "failed", &[]),
];

const RUNS_WITH_DEPENDENCIES: &[OldRun] = &[
    // On no task; what follows it; and one that has nothing to do with it.
    (20, "running", &[("pending", "[\"gone\"]"), ("pending", "[\"task_0\"]"), ("pending", "[]")]),
    (
        21,
        "running",
        &[
            ("pending", "[\"task_1\"]"),
            ("pending", "[\"task_0\"]"),
            ("pending", "[\"task_1\"]"),
            ("pending", "[]"),
        ],
    ),
    (22, "success", &[("success", "[\"gone\"]"), ("success", "[\"task_0\",\"task_0\"]")]),
    // The failure was not passed on.
    (
        23,
        "running",
        &[("failed", "[]"), ("pending", "[\"task_0\"]"), ("pending", "[\"task_1\"]"), ("running", "[]")],
    ),
];

fn rows(version: i64) -> String {
    let mut sql = format!(
        "INSERT INTO workflows (id, name, job_name, region, project, task_params, description, executor_type, created_at, updated_at)
         VALUES ({}, 'orders', 'job', 'eu', 'p', '{{\"big\": 12345678901234567890, \"e\": 1e2}}', 'Ünïcode', 'python',
             '2026-02-01 10:00:00', '2026-02-01T10:00:00.5Z');
         INSERT INTO workflows (id, name, job_name, region, project, executor_type, created_at, updated_at)
         VALUES ({}, 'Orders', 'job', '', 'p', 'python', '2026-02-01 10:00:00', '2026-02-01 10:00:00');",
        blob(90), blob(91)
    );
    let mut tasks = Vec::new();
    for (run, status, of) in RUNS.iter().chain(RUNS_WITH_DEPENDENCIES) {
        let error = if *run == 7 { "'no compiler'" } else { "NULL" };
        sql += &format!(
            "INSERT INTO runs (id, workflow_id, status, triggered_by, error, created_at)
             VALUES ({}, {}, '{status}', 'cli', {error}, '2026-02-01T11:00:00Z');",
            blob(*run),
            blob(90)
        );
        for (index, (status, depends_on)) in (0_u128..).zip(*of) {
            tasks.push(OldTask { run: *run, index, status, depends_on });
        }
    }
    if version >= 5 {
        sql += &format!(
            "INSERT INTO runs (id, workflow_id, status, triggered_by, created_at) VALUES ({}, {}, 'paused', 'cli', '2026-02-01 11:00:00');",
            blob(30),
            blob(90)
        );
        tasks.extend(
            [("success", "[]"), ("paused", "[\"task_0\"]"), ("pending", "[\"task_1\"]")]
                .iter()
                .zip(0..)
                .map(|((status, depends_on), index)| OldTask { run: 30, index, status, depends_on }),
        );
    }
    for task in &tasks {
        sql += &task.insert(version);
    }
    sql += &format!(
        "INSERT INTO workflow_tasks (id, workflow_id, task_index, task_name, executor_type, depends_on, params, created_at) VALUES
         (randomblob(16), {0}, 3, 'load', 'python', '[\"extract\"]', '{{\"x\": 1.0}}', '2026-02-01 11:00:00'),
         (randomblob(16), {0}, 1, 'extract', 'python', '[]', NULL, '2026-02-01 11:00:00');", blob(90)
    );
    if version >= 2 {
        sql += &format!(
            "UPDATE tasks SET logs = replace(hex(zeroblob(200000)), '00', 'línea \n') WHERE id = {};",
            blob(1500)
        );
    }
    if version >= 3 {
        sql += &format!(
            "UPDATE tasks SET attempts = 1, retry_at = '2099-01-01 00:00:00', error = 'first' WHERE id = {};",
            blob(30502)
        );
    }
    if version >= 4 {
        sql += &format!(
            "UPDATE workflows SET schedule = '* * * * *', schedule_enabled = 1 WHERE id = {};",
            blob(91)
        );
    }
    if version >= 7 {
        for (number, task, status) in [(1, 5502, "polling"), (2, 5502, "completed"), (3, 4502, "pending")] {
            sql += &format!(
                "INSERT INTO deferred_jobs (id, task_id, service_type, job_id, job_data, status, created_at)
                 VALUES ({}, {}, 'bigquery', 'j{number}', '{{\"n\": 1.50}}', '{status}', '2026-02-01 11:00:0{number}');",
                blob(70 + number), blob(task)
            );
        }
    }
    if version >= 8 {
        let tasks = r#"[{"task_index": 0, "task_name": "extract", "executor_type": "python", "depends_on": [], "params": null, "signature": null},
            {"task_index": 1, "task_name": "load", "executor_type": "python", "depends_on": ["extract", "gone"], "params": {"x": 1.0}, "signature": null}]"#;
        // The second workflow's reference names no snapshot: there was no foreign key.
        sql += &format!(
            "INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at) VALUES
                 ({0}, {1}, 'orks hash', '{tasks}', '2026-02-01 11:00:00'), ({2}, {1}, 'another', '{{}}', '2026-02-01 11:00:00');
             UPDATE workflows SET current_snapshot_id = {0} WHERE id = {1};
             UPDATE workflows SET current_snapshot_id = {4} WHERE id = {5};
             UPDATE runs SET snapshot_id = {0} WHERE id = {3};",
            blob(80), blob(90), blob(81), blob(6), blob(82), blob(91)
        );
    }
    sql
}

#[tokio::test]
async fn every_version_is_taken_over_and_nothing_is_lost() {
    for version in 1..=LAST {
        let store = ork_at(version).await;
        let db = open(&store).await;
        let plan = db.plan_migration().await.unwrap();
        assert_eq!(plan.found, Found::Ork(version));
        assert!(db.get_run(RunId::from_uuid(id(1))).await.is_err(), "a plan changes nothing");
        let report = db.migrate().await.unwrap();
        assert_eq!((report.found, &report.applied), (Found::Ork(version), &plan.applied));
        assert_eq!(report.adjusted.len(), plan.adjusted.len());
        assert_eq!(db.migrate().await.unwrap().applied.len(), 0);
        compare(&*db, version, &report).await;
        goes_on(&*db, version).await;
    }
}

/// What is there now is what was there, but for what `adjusted` says.
async fn compare(db: &dyn Database, version: i64, report: &MigrationReport) {
    let at = |number| RunId::from_uuid(id(number));
    let verified = db.verify().await.unwrap();
    let about_snapshot =
        |violation: &Violation| version >= 8 && violation.entity.contains(&id(81).to_string());
    assert!(verified.iter().all(about_snapshot), "version {version}: {verified:?}");

    let workflow = db.get_workflow(WorkflowId::from_uuid(id(90))).await.unwrap();
    assert_eq!((workflow.name.as_str(), workflow.description.as_deref()), ("orders", Some("Ünïcode")));
    assert_eq!(
        workflow.target.params.as_ref().unwrap().as_str(),
        r#"{"big": 12345678901234567890, "e": 1e2}"#
    );
    let dag = db.get_snapshot(workflow.snapshot).await.unwrap();
    assert_eq!(dag.content_hash, dag.dag.content_hash());
    let names: Vec<&str> = dag.dag.tasks().iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["extract", "load"]);

    let mut statuses: BTreeMap<u128, String> = BTreeMap::new();
    for number in [1, 2, 3, 4, 5, 6, 7, 20, 21, 22, 23, 30] {
        let Ok(run) = db.get_run(at(number)).await else { continue };
        let tasks = db.list_tasks(ListTasks::of(at(number), PageRequest::default())).await.unwrap().items;
        let tasks: Vec<&str> = tasks.iter().map(|task| task.status.as_str()).collect();
        statuses.insert(number, format!("{}: {}", run.status, tasks.join(" ")));
    }
    let mut expected = BTreeMap::from([
        (1, "success: success success"),
        (2, "success: success success"),
        (3, "failed: success failed"),
        (4, "cancelled: success cancelled cancelled"),
        (5, "running: success dispatched running pending"),
        (6, "pending: "),
        (7, "failed: "),
    ]);
    {
        expected.extend([
            (20, "running: failed failed pending"),
            (21, "running: failed failed failed pending"),
            (22, "success: success success"),
            (23, "running: failed failed failed running"),
        ]);
    }
    if version >= 5 {
        expected.insert(30, "paused: success pending pending");
    }
    assert_eq!(
        statuses.iter().map(|(run, status)| (*run, status.as_str())).collect::<BTreeMap<_, _>>(),
        expected,
        "version {version}"
    );

    let first = db.get_task(TaskId::from_uuid(id(1500))).await.unwrap();
    assert_eq!(first.task.name.as_str(), "task_0");
    assert_eq!(first.output.unwrap().as_str(), r#"{"rows": 12345678901234567890, "f": 1.50}"#);
    assert_eq!(first.params.unwrap().as_str(), r#"{"i": 0}"#);
    assert_eq!(first.task.started_at.unwrap().to_string(), "2026-02-01T11:00:02.123456Z");
    assert_eq!(db.get_run(at(7)).await.unwrap().error.as_deref(), Some("no compiler"));
    assert_eq!(db.get_run(at(1)).await.unwrap().triggered_by.as_str(), "cli");
    if version >= 2 {
        let whole = LogRange::new(LogPosition::Offset(0), 16 * 1024 * 1024).unwrap();
        let log = db.read_log(first.task.id, whole).await.unwrap();
        assert_eq!(log.bytes, "línea \n".repeat(200_000).as_bytes());
    }
    if version >= 4 {
        let due = db.due_schedules(Limit::default()).await.unwrap();
        assert_eq!(due.iter().map(|due| due.workflow.as_uuid()).collect::<Vec<_>>(), [id(91)]);
    }
    if version >= 7 {
        let jobs = db.list_jobs(TaskId::from_uuid(id(5502))).await.unwrap();
        let told: Vec<_> = jobs.iter().map(|job| (job.job_id.to_string(), job.status)).collect();
        assert_eq!(told, [("j1".to_owned(), JobStatus::Polling), ("j2".to_owned(), JobStatus::Completed)]);
        assert_eq!(jobs[0].job_data.as_str(), r#"{"n": 1.50}"#);
        assert_eq!(db.get_task(TaskId::from_uuid(id(5502))).await.unwrap().task.open_jobs, 1);
        assert_eq!(db.list_jobs(TaskId::from_uuid(id(4502))).await.unwrap()[0].status, JobStatus::Cancelled);
    }

    // All that was not kept as it was is told, by id.
    let mut told = vec![("run", 2), ("run", 3), ("task", 4501), ("task", 4502)];
    {
        told.extend([
            ("task", 20500),
            ("task", 20501),
            ("task", 21500),
            ("task", 21502),
            ("task", 22500),
            ("task", 23502),
        ]);
    }
    if version >= 4 {
        told.push(("workflow", 91));
    }
    if version >= 7 {
        told.push(("deferred job", 73));
    }
    if version >= 8 {
        told.extend([("snapshot", 80), ("snapshot", 81)]);
    }
    for (entity, number) in told {
        let entity = format!("{entity} {}", id(number));
        assert!(
            report.adjusted.iter().any(|adjusted| adjusted.entity == entity),
            "{entity}, version {version}: {report}"
        );
    }
    assert!(!report.to_string().contains(&id(1).to_string()), "what was in order is not mentioned");
}

/// A scheduler takes up where Ork's left off, and every run comes to its end.
async fn goes_on(db: &dyn Database, version: i64) {
    let expired = db.expire_leases(Limit::default()).await.unwrap();
    assert!(!expired.requeued.is_empty() || !expired.failed.is_empty());
    for run in db.list_runs(ListRuns::default()).await.unwrap().items {
        match run.status {
            RunStatus::Paused => drop(db.resume_run(run.id).await.unwrap()),
            RunStatus::Pending => drop(db.start_run(StartRun::pinned(run.id)).await.unwrap()),
            _ => {}
        }
    }
    let poll = ClaimJobs::new("p".parse().unwrap(), LeaseTime::new(LEASE).unwrap());
    let jobs = db.claim_jobs(poll).await.unwrap();
    assert_eq!(jobs.len(), usize::from(version >= 7));
    let ended = jobs.iter().map(|job| JobUpdate::completed(job.claim, None)).collect();
    db.update_jobs(JobUpdates::new(ended).unwrap()).await.unwrap();
    loop {
        let claimed = claim(db).await;
        if claimed.is_empty() {
            break;
        }
        let done = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
        db.update_tasks(TaskUpdates::new(done).unwrap()).await.unwrap();
    }
    let live: Vec<Run> = db
        .list_runs(ListRuns::new(
            RunFilter::all().with_statuses([RunStatus::Running, RunStatus::Paused]),
            PageRequest::default(),
        ))
        .await
        .unwrap()
        .items;
    // One waits for a retry time that has not come.
    assert!(live.iter().all(|run| version >= 3 && run.id.as_uuid() == id(30)), "version {version}: {live:?}");
    let found = db.verify().await.unwrap();
    assert!(
        found.iter().all(|violation| version >= 8 && violation.entity.contains(&id(81).to_string())),
        "{found:?}"
    );
}

async fn claim(db: &dyn Database) -> Vec<ClaimedTask> {
    db.claim_tasks(ClaimTasks::new("tester".parse().unwrap(), LeaseTime::new(LEASE).unwrap())).await.unwrap()
}

#[tokio::test]
async fn of_many_that_take_over_at_once_one_does_it() {
    let store = ork_at(6).await;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let db = open(&store).await;
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
    let url = format!("sqlite://{}/ork.db", store.path().display());
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
    assert_eq!(open(&store).await.plan_migration().await.unwrap().applied.len(), 0);
}

#[tokio::test]
async fn what_orks_migrations_left_unfinished_or_unknown_is_not_taken_over() {
    for change in [
        "UPDATE _sqlx_migrations SET success = FALSE WHERE version = 3",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (10, '', TRUE, x'', 1)",
    ] {
        let store = ork_at(9).await;
        execute(&store, change.to_owned()).await;
        let error = open(&store).await.migrate().await.unwrap_err();
        assert!(matches!(error.kind(), Conflict { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_takeover_that_fails_leaves_everything_as_it_was() {
    let store = ork_at(7).await;
    // A table of somebody else's in the way.
    execute(&store, "CREATE TABLE ready_tasks (x)".to_owned()).await;
    open(&store).await.migrate().await.unwrap_err();
    execute(&store, "DROP TABLE ready_tasks".to_owned()).await;
    let db = open(&store).await;
    let report = db.migrate().await.unwrap();
    assert_eq!(report.found, Found::Ork(7));
    compare(&*db, 7, &report).await;
}
