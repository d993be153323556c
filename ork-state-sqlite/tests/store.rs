//! What is this backend's own: files, migration, damage, cancellation, sizes. The contract is in
//! `conformance.rs`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ork_state_api::{
    Claim, ClaimJobs, ClaimTasks, Dag, Database, DeferTask, DeferredJobStore, Delay, ErrorKind, Found, Json,
    LeaseTime, Limit, ListTasks, LogChunk, LogPosition, LogRange, LogStore, Maintenance, ManualClock,
    NewDeferredJob, NewRun, NewWorkflow, PageRequest, Prune, Pruned, Result, RetryRun, RunStatus, RunStore,
    StartRun, TaskSpec, TaskStatus, TaskStore, TaskUpdate, TaskUpdates, Text, Topic, UpdateOutcome,
    WorkflowStore,
};
use ork_state_sqlite::{SqliteDatabase, SqliteOptions};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

struct Store {
    directory: TempDir,
    clock: Arc<ManualClock>,
    db: SqliteDatabase,
}

impl Store {
    async fn new() -> Self {
        let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::default()));
        let db = open(&directory.path().join("ork.db")).with_clock(clock.clone()).connect().await.unwrap();
        db.migrate().await.unwrap();
        Self { directory, clock, db }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("ork.db")
    }

    /// Statements past the backend.
    async fn sql(&self, sql: &'static str) {
        run(&self.path(), sql).await;
    }
}

fn open(path: &Path) -> SqliteOptions {
    SqliteOptions::new(path).unwrap()
}

async fn raw(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    options.foreign_keys(false).pragma("ignore_check_constraints", "ON").connect().await.unwrap()
}

async fn run(path: &Path, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&mut raw(path).await).await.unwrap();
}

fn task(name: &str, after: &[&str]) -> TaskSpec {
    let spec = TaskSpec::new(name.parse().unwrap(), "process".parse().unwrap());
    spec.after(after.iter().map(|name| name.parse().unwrap()))
}

async fn started(db: &dyn Database, tasks: Vec<TaskSpec>) -> ork_state_api::Run {
    let dag = Dag::new(tasks).unwrap();
    let name = format!("w{}", ork_state_api::WorkflowId::generate()).parse().unwrap();
    let workflow = db.create_workflow(NewWorkflow::new(name, dag)).await.unwrap();
    let run = db.create_run(NewRun::new(workflow.id)).await.unwrap().into_run();
    db.start_run(StartRun::pinned(run.id)).await.unwrap()
}

async fn claim(db: &dyn Database, limit: usize) -> Vec<ork_state_api::ClaimedTask> {
    let lease = LeaseTime::new(Duration::from_secs(30)).unwrap();
    let ask = ClaimTasks::new("me".parse().unwrap(), lease).with_limit(Limit::new(limit).unwrap());
    db.claim_tasks(ask.with_dependency_outputs()).await.unwrap()
}

async fn lifecycle(db: &dyn Database, clock: &ManualClock) {
    let run =
        started(db, vec![task("a", &[]), task("b", &["a"]).with_max_retries(1), task("c", &["b"])]).await;
    let [a] = &claim(db, 10).await[..] else { panic!("one task is ready") };
    db.append_log(a.task.id, LogChunk::new(b"\0hello").unwrap()).await.unwrap();
    let output = Json::parse("{\"x\": 1e2}").unwrap();
    let report = update(db, vec![TaskUpdate::succeeded(a.claim, Some(output.clone()))]).await;
    assert_eq!(report, [UpdateOutcome::Applied { status: TaskStatus::Success }]);

    let [b] = &claim(db, 10).await[..] else { panic!("b is ready") };
    assert_eq!(b.dependency_outputs["a"], Some(output));
    let delay = Delay::new(Duration::from_secs(5)).unwrap();
    update(db, vec![TaskUpdate::failed(b.claim, Text::lossy(""), delay)]).await;
    assert_eq!(
        db.get_task(b.task.id).await.unwrap().task.error,
        Some(Text::lossy("")),
        "empty is not absent"
    );
    assert!(claim(db, 10).await.is_empty());
    clock.advance(Duration::from_secs(5));
    assert_eq!(claim(db, 10).await.len(), 1);
    clock.advance(Duration::from_secs(30));
    let expired = db.expire_leases(Limit::default()).await.unwrap();
    assert_eq!((expired.failed, expired.ended_runs.len()), (vec![b.task.id], 1));

    let run = db.get_run(run.id).await.unwrap();
    assert_eq!((run.status, run.tasks.failed), (RunStatus::Failed, 2));
    assert_eq!(run.error, Some(Text::lossy("task \"b\" failed")));
    let log = db.read_log(a.task.id, LogRange::new(LogPosition::BeforeEnd(3), 2).unwrap()).await.unwrap();
    assert_eq!((log.offset, &log.bytes[..], log.length), (3, &b"ll"[..], 6));
    assert_eq!(db.verify().await.unwrap(), []);
    db.delete_workflow(run.workflow).await.unwrap();
    assert_eq!(db.verify().await.unwrap(), []);
}

async fn update(db: &dyn Database, updates: Vec<TaskUpdate>) -> Vec<UpdateOutcome> {
    db.update_tasks(TaskUpdates::new(updates).unwrap()).await.unwrap().outcomes
}

#[tokio::test]
async fn a_file_lives() {
    let store = Store::new().await;
    lifecycle(&store.db, &store.clock).await;
}

#[tokio::test]
async fn memory_lives_as_long_as_its_handle() {
    let clock = Arc::new(ManualClock::default());
    let connect = || SqliteOptions::in_memory().with_clock(clock.clone()).connect();
    let (db, other) = (connect().await.unwrap(), connect().await.unwrap());
    db.migrate().await.unwrap();
    lifecycle(&db, &clock).await;
    let error = other.list_workflows(PageRequest::default().into()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::SchemaMismatch { found: 0, .. }), "private: {error}");
}

/// There is no file to be told by.
#[tokio::test]
async fn a_store_in_memory_is_watched() {
    let db = SqliteOptions::in_memory().connect().await.unwrap();
    db.migrate().await.unwrap();
    let (mut ready, mut ended) =
        (db.watch(Topic::Ready).await.unwrap(), db.watch(Topic::RunEnded).await.unwrap());
    let run = started(&db, vec![task("a", &[])]).await;
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, ready.changed()).await.unwrap().unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(50), ended.changed()).await.is_err(),
        "none has ended"
    );
    db.cancel_run(run.id).await.unwrap();
    tokio::time::timeout(patience, ended.changed()).await.unwrap().unwrap();
}

/// A run that ended, was retried and has ended again at the same moment of a standing clock has
/// ended once more.
#[tokio::test]
async fn every_end_of_a_run_is_a_hint() {
    let store = Store::new().await;
    let run = started(&store.db, vec![task("a", &[])]).await;
    store.db.cancel_run(run.id).await.unwrap();
    let mut ended = store.db.watch(Topic::RunEnded).await.unwrap();
    store.db.retry_run(RetryRun::unsuccessful(run.id)).await.unwrap();
    store.db.cancel_run(run.id).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), ended.changed()).await.unwrap().unwrap();
}

/// Rule G8: a job that cannot be read is not handed out and holds up no other.
#[tokio::test]
async fn pollers_pass_over_a_job_that_cannot_be_read() {
    let store = Store::new().await;
    started(&store.db, vec![task("a", &[]), task("b", &[])]).await;
    for claimed in claim(&store.db, 2).await {
        let job =
            || NewDeferredJob::new("s".parse().unwrap(), "j".parse().unwrap(), Json::parse("{}").unwrap());
        store.db.defer_task(DeferTask::new(claimed.claim, [job(), job()]).unwrap()).await.unwrap();
    }
    store.sql("UPDATE deferred_jobs SET job_data = '{' WHERE job_index = 0").await;
    let lease = LeaseTime::new(Duration::from_secs(30)).unwrap();
    for _ in 0..2 {
        let ask = ClaimJobs::new("me".parse().unwrap(), lease).with_limit(Limit::ONE);
        let claimed = store.db.claim_jobs(ask).await.unwrap();
        assert_eq!(claimed.iter().map(|job| job.job.index).collect::<Vec<_>>(), [1]);
    }
    let ask = ClaimJobs::new("me".parse().unwrap(), lease);
    assert_eq!(store.db.claim_jobs(ask).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_deleted_workflow_leaves_nothing() {
    let store = Store::new().await;
    lifecycle(&store.db, &store.clock).await;
    let mut connection = raw(&store.path()).await;
    for sql in [
        "SELECT count(*) FROM workflows",
        "SELECT count(*) FROM workflow_snapshots",
        "SELECT count(*) FROM runs",
        "SELECT count(*) FROM tasks",
        "SELECT count(*) FROM task_edges",
        "SELECT count(*) FROM ready_tasks",
        "SELECT count(*) FROM task_leases",
        "SELECT count(*) FROM task_timeouts",
        "SELECT count(*) FROM deferred_jobs",
        "SELECT coalesce(sum(number), 0) FROM ended_counts WHERE kind <> 'ever'",
        "SELECT count(*) FROM task_logs",
        "SELECT count(*) FROM task_log_chunks",
    ] {
        let left: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        assert_eq!(left, 0, "{sql}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn its_files_are_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let store = Store::new().await;
    store.db.expire_leases(Limit::ONE).await.unwrap();
    for name in ["ork.db", "ork.db-wal", "ork.db-shm", "ork.db-watch"] {
        let mode = store.directory.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = open(&directory.path().join("absent/ork.db")).connect().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable { .. }));
    assert!(
        error.to_string().contains("absent") && error.to_string().contains("Create the directory"),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_file_is_created_only_where_the_mode_allows() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ork.db");
    let url = format!("sqlite://{}", path.display());
    let error = ork_state_api::connect(&format!("{url}?mode=rw")).await.err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::InvalidInput { .. }), "{error}");
    assert!(error.to_string().contains("ork.db") && error.to_string().contains("mode=rwc"), "{error}");
    assert!(!path.exists());
    // As Ork's URLs end.
    drop(ork_state_api::connect(&format!("{url}?mode=rwc")).await.unwrap());
    drop(ork_state_api::connect(&format!("{url}?mode=rw")).await.unwrap());
    assert!(path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_corrupt_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ork.db");
    let content = "not a database, but long enough to have a header ".repeat(100);
    std::fs::write(&path, &content).unwrap();
    let error = open(&path).connect().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("ork.db") && error.to_string().contains("backup"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
}

#[tokio::test]
async fn a_path_that_is_a_directory_is_unavailable() {
    let directory = tempfile::tempdir().unwrap();
    let error = open(directory.path()).connect().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_migrate_at_once_and_one_does_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ork.db");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        // One that does not wait at all must not fail either.
        let options = open(&path).with_busy_timeout(Duration::from_secs(5));
        tasks.spawn(async move { options.connect().await?.migrate().await });
    }
    let reports = tasks.join_all().await.into_iter().collect::<Result<Vec<_>>>().unwrap();
    let did: Vec<_> = reports.iter().filter(|report| !report.applied.is_empty()).collect();
    assert_eq!((did.len(), did[0].found), (1, Found::Nothing));
    assert_eq!(did[0].applied.first().unwrap(), "001_init");
    assert!(reports.iter().all(|report| report.to == did[0].to));
}

#[tokio::test]
async fn a_newer_schema_is_refused_everywhere() {
    let store = Store::new().await;
    let opened_before = open(&store.path()).connect().await.unwrap();
    store.sql("INSERT INTO ork_state_migrations VALUES (999, 'future', x'00', 0)").await;
    let error = open(&store.path()).connect().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::SchemaMismatch { found: 999, .. }), "{error}");
    for error in [
        opened_before.migrate().await.unwrap_err(),
        opened_before.list_workflows(PageRequest::default().into()).await.unwrap_err(),
        opened_before.expire_leases(Limit::ONE).await.unwrap_err(),
    ] {
        assert!(matches!(error.kind(), ErrorKind::SchemaMismatch { found: 999, .. }), "{error}");
    }
    // An older process that sees the newer one's version go away again goes on.
    store.sql("DELETE FROM ork_state_migrations WHERE version = 999").await;
    opened_before.expire_leases(Limit::ONE).await.unwrap();
}

#[tokio::test]
async fn a_step_that_is_not_ours_is_a_conflict() {
    let store = Store::new().await;
    store.sql("UPDATE ork_state_migrations SET checksum = x'00' WHERE version = 5").await;
    let error = open(&store.path()).connect().await.unwrap().migrate().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Conflict { .. }));
    assert!(error.to_string().contains("005_add_pause_status"), "{error}");
}

#[rstest::rstest]
#[case::sqlx("CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY)", "_sqlx_migrations")]
#[case::tables("CREATE TABLE runs (id BLOB)", "runs")]
#[case::foreign("CREATE TABLE photos (id BLOB)", "photos")]
#[tokio::test]
async fn what_something_else_made_is_refused_and_left_as_it_is(
    #[case] sql: &'static str,
    #[case] says: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("old.db");
    run(&path, sql).await;
    let before = std::fs::read(&path).unwrap();
    let db = open(&path).connect().await.unwrap();
    for error in [db.migrate().await.unwrap_err(), db.ready_tasks(Limit::ONE).await.unwrap_err()] {
        assert!(matches!(error.kind(), ErrorKind::Conflict { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// Whoever opened an empty store sees that another has migrated it.
#[tokio::test]
async fn another_ones_migration_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ork.db");
    let (first, second) = (open(&path).connect().await.unwrap(), open(&path).connect().await.unwrap());
    let error = second.ready_tasks(Limit::ONE).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::SchemaMismatch { found: 0, .. }), "{error}");
    first.migrate().await.unwrap();
    assert_eq!(second.ready_tasks(Limit::ONE).await.unwrap(), []);
}

#[tokio::test]
async fn verify_finds_what_only_sql_sees() {
    let store = Store::new().await;
    started(&store.db, vec![task("a", &[]), task("b", &["a"])]).await;
    let [a] = &claim(&store.db, 1).await[..] else { panic!("a is ready") };
    store.db.append_log(a.task.id, LogChunk::new(b"text").unwrap()).await.unwrap();
    assert_eq!(store.db.verify().await.unwrap(), []);
    for (damage, repair, table) in [
        (
            "INSERT INTO ready_tasks SELECT 0, run_id, task_index, id FROM tasks WHERE task_name = 'b'",
            "DELETE FROM ready_tasks",
            "ready_tasks",
        ),
        (
            "UPDATE task_leases SET token = token + 1",
            "UPDATE task_leases SET token = token - 1",
            "task_leases",
        ),
        (
            "INSERT INTO task_edges SELECT run_id, 1, 7 FROM tasks WHERE task_index = 0",
            "DELETE FROM task_edges WHERE dependent_index = 7",
            "task_edges",
        ),
        ("UPDATE task_logs SET length = 5", "UPDATE task_logs SET length = 4", "task_logs"),
        (
            "UPDATE task_log_chunks SET start_offset = 1",
            "UPDATE task_log_chunks SET start_offset = 0",
            "task_logs",
        ),
        (
            "INSERT INTO task_logs VALUES (x'00', 0)",
            "DELETE FROM task_logs WHERE task_id = x'00'",
            "task_logs",
        ),
        (
            "INSERT INTO task_timeouts SELECT id, 0 FROM tasks WHERE task_name = 'b'",
            "DELETE FROM task_timeouts",
            "task_timeouts",
        ),
        (
            "UPDATE tasks SET status = 'running', started_at = 0, timeout_seconds = 1 WHERE task_name = 'a'",
            "UPDATE tasks SET status = 'dispatched', started_at = NULL, timeout_seconds = NULL WHERE task_name = 'a'",
            "tasks",
        ),
        (
            "INSERT INTO deferred_jobs (id, task_id, run_id, job_index, deferral, status, created_at, service_type, job_id, job_data)
                 SELECT id, id, run_id, 0, 1, 'pending', 0, 's', 'j', '{}' FROM tasks WHERE task_name = 'a'",
            "UPDATE deferred_jobs SET status = 'completed'",
            "deferred_jobs",
        ),
        ("UPDATE deferred_jobs SET status = 'polling', poll_at = 0", "DELETE FROM deferred_jobs", "tasks"),
        (
            "INSERT INTO deferred_jobs (id, task_id, run_id, job_index, deferral, status, created_at, service_type, job_id, job_data)
                 VALUES (zeroblob(16), zeroblob(16), zeroblob(16), 0, 1, 'failed', 0, 's', 'j', '{}')",
            "DELETE FROM deferred_jobs",
            "deferred_jobs",
        ),
        (
            "INSERT INTO ended_counts VALUES ('run', 'failed', 1)",
            "DELETE FROM ended_counts",
            "ended_counts run failed",
        ),
        (
            "UPDATE workflow_snapshots SET workflow_id = zeroblob(16)",
            "UPDATE workflow_snapshots SET workflow_id = (SELECT id FROM workflows)",
            "workflow_snapshots",
        ),
    ] {
        store.sql(damage).await;
        let found = store.db.verify().await.unwrap();
        assert!(found.iter().any(|violation| violation.entity.starts_with(table)), "{damage}: {found:?}");
        store.sql(repair).await;
        assert_eq!(store.db.verify().await.unwrap(), [], "{repair}");
    }
}

/// Rule G8, where a claim meets it.
#[rstest::rstest]
#[case::task("UPDATE tasks SET depends_on = 'x' WHERE task_index < 3")]
#[case::payload("UPDATE tasks SET params = '{' WHERE task_index < 3")]
#[case::time("UPDATE tasks SET created_at = 9223372036854775807 WHERE task_index < 3")]
#[case::orphan("UPDATE ready_tasks SET task_id = zeroblob(16) WHERE task_index < 3")]
#[case::not_ready("UPDATE tasks SET unmet_dependencies = 1 WHERE task_index < 3")]
#[tokio::test]
async fn a_claim_passes_over_what_it_cannot_read(#[case] damage: &'static str) {
    let store = Store::new().await;
    started(&store.db, (0..6).map(|n| task(&format!("t{n}"), &[])).collect()).await;
    store.sql(damage).await;
    let claimed = claim(&store.db, 2).await;
    assert_eq!(claimed.iter().map(|task| task.index).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(claim(&store.db, 2).await.len(), 1);
    assert_ne!(store.db.verify().await.unwrap(), []);
}

/// Rule G8: neither does a lease without a task stand in the way of those behind it.
#[tokio::test]
async fn expiry_passes_over_what_it_cannot_read() {
    let store = Store::new().await;
    started(&store.db, (0..4).map(|n| task(&format!("t{n}"), &[]).with_max_retries(1)).collect()).await;
    let claimed = claim(&store.db, 4).await;
    store.sql("DELETE FROM tasks WHERE task_index < 3").await;
    store.clock.advance(Duration::from_secs(30));
    let expired = store.db.expire_leases(Limit::ONE).await.unwrap();
    assert_eq!(expired.requeued, [claimed[3].task.id]);
}

/// Rule G9: dropped after every number of polls, each call has its whole effect or none, and the
/// store goes on.
#[tokio::test]
async fn futures_may_be_dropped_anywhere() {
    let store = Store::new().await;
    let tasks = 40;
    started(&store.db, (0..tasks).map(|n| task(&format!("t{n}"), &[])).collect()).await;
    for polls in 0..tasks {
        let lease = LeaseTime::new(Duration::from_secs(30)).unwrap();
        drop_after(
            polls,
            store.db.claim_tasks(ClaimTasks::new("x".parse().unwrap(), lease).with_limit(Limit::ONE)),
        )
        .await;
        drop_after(polls, store.db.list_workflows(PageRequest::default().into())).await;
        drop_after(polls, store.db.ready_tasks(Limit::default())).await;
        drop_after(polls, store.db.expire_leases(Limit::default())).await;
    }
    // Behind all that is still in the writer's queue.
    let rest = claim(&store.db, 1000).await;
    assert_eq!(store.db.verify().await.unwrap(), []);
    let leased = tasks - rest.len();
    store.clock.advance(Duration::from_secs(60));
    let expired = store.db.expire_leases(Limit::new(1000).unwrap()).await.unwrap();
    assert_eq!(expired.failed.len(), tasks, "{leased} were claimed by calls that were dropped");
    assert_eq!(store.db.verify().await.unwrap(), []);
}

async fn drop_after<F: Future>(polls: usize, call: F) {
    let mut call = std::pin::pin!(call);
    for _ in 0..polls {
        if poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_read() {
    let store = Arc::new(Store::new().await);
    let run = started(&store.db, (0..64).map(|n| task(&format!("t{n}"), &[])).collect()).await;
    let claims: Vec<Claim> = claim(&store.db, 64).await.into_iter().map(|task| task.claim).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for claim in claims {
        let store = store.clone();
        tasks.spawn(async move {
            let outcome = update(&store.db, vec![TaskUpdate::succeeded(claim, None)]).await;
            assert_eq!(outcome, [UpdateOutcome::Applied { status: TaskStatus::Success }]);
            assert_eq!(store.db.get_task(claim.task).await.unwrap().task.status, TaskStatus::Success);
        });
    }
    tasks.join_all().await;
    assert_eq!(store.db.get_run(run.id).await.unwrap().status, RunStatus::Success);
}

/// Every payload is what it was, whatever is in it and however many come at once.
#[tokio::test]
async fn large_and_awkward_payloads_come_back() {
    let store = Store::new().await;
    let run = started(&store.db, (0..100).map(|n| task(&format!("t{n}"), &[])).collect()).await;
    let output = |n: usize| {
        Json::parse(format!("{{\"{}é\\u0000\\\\\": \n-0.0}}", "x\t".trim().repeat(n * 10_000))).unwrap()
    };
    let claimed = claim(&store.db, 100).await;
    let ends =
        claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, Some(output(task.index as usize))));
    assert_eq!(update(&store.db, ends.collect()).await.len(), 100);
    let names: Vec<_> = claimed.iter().map(|task| task.name.clone()).collect();
    let outputs = store.db.task_outputs(run.id, &names).await.unwrap();
    for task in &claimed {
        assert_eq!(outputs[&task.name], Some(output(task.index as usize)), "{}", task.name);
    }
    let error = Text::lossy(&"\u{1}\"\\".repeat(100_000));
    let run = started(&store.db, vec![task("a", &[])]).await;
    let [a] = &claim(&store.db, 1).await[..] else { panic!("a is ready") };
    update(&store.db, vec![TaskUpdate::failed_for_good(a.claim, error.clone())]).await;
    assert_eq!(store.db.get_task(a.task.id).await.unwrap().task.error, Some(error));
    assert_eq!(store.db.get_run(run.id).await.unwrap().status, RunStatus::Failed);
}

/// Rule T5: of several culprits the one with the lowest index, each task once, all that is behind
/// them.
#[tokio::test]
async fn what_depends_on_several_failures_blames_the_first() {
    let store = Store::new().await;
    let tasks = vec![
        task("z", &["b", "y"]),
        task("a", &[]),
        task("b", &[]),
        task("y", &["x"]),
        task("x", &["a", "b"]),
        task("free", &[]),
        task("after", &["free", "z"]),
    ];
    let run = started(&store.db, tasks).await;
    let claimed = claim(&store.db, 10).await;
    let ends = claimed.iter().rev().map(|task| match task.name.as_str() {
        "free" => TaskUpdate::succeeded(task.claim, None),
        _ => TaskUpdate::failed_for_good(task.claim, Text::lossy("own")),
    });
    update(&store.db, ends.collect()).await;
    let tasks = store.db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items;
    let errors: Vec<_> = tasks.iter().map(|task| task.error.as_deref().unwrap_or("")).collect();
    let of_a = "dependency \"a\" failed";
    assert_eq!(errors, [of_a, "own", "own", of_a, of_a, "", of_a]);
    let run = store.db.get_run(run.id).await.unwrap();
    assert_eq!((run.status, run.tasks.unfinished, run.tasks.failed), (RunStatus::Failed, 0, 6));
    assert_eq!(run.error.as_deref(), Some("task \"a\" failed"));
    assert_eq!(store.db.verify().await.unwrap(), []);
}

#[tokio::test]
async fn a_log_is_capped_where_the_option_says() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?max_log_bytes=4", directory.path().join("ork.db").display());
    let db = ork_state_api::connect(&url).await.unwrap();
    db.migrate().await.unwrap();
    started(&*db, vec![task("a", &[])]).await;
    let id = claim(&*db, 1).await[0].task.id;
    for (chunk, dropped) in [("abc", 0), ("def", 2), ("ghi", 3)] {
        let appended = db.append_log(id, LogChunk::new(chunk.as_bytes()).unwrap()).await.unwrap();
        assert_eq!(appended.dropped, dropped, "{chunk}");
    }
    let log = db.read_log(id, LogRange::new(LogPosition::Offset(0), 1000).unwrap()).await.unwrap();
    assert_eq!(log.bytes, format!("abcd{}", ork_state_api::backend::log_cap_note(4)).into_bytes());
    assert_eq!(db.verify().await.unwrap(), []);
}

/// Calls that wait at the same moment are applied together, with the effect of one after the other.
#[tokio::test]
async fn updates_that_wait_together_stand_for_themselves() {
    let store = Store::new().await;
    let run =
        started(&store.db, vec![task("low", &[]), task("high", &[]), task("both", &["low", "high"])]).await;
    let [low, high] = &claim(&store.db, 10).await[..] else { panic!("two are ready") };
    let fail = |claim| {
        let update = TaskUpdate::failed_for_good(claim, Text::lossy("own"));
        store.db.update_tasks(TaskUpdates::one(update))
    };
    // Both are asked before the store's tasks run.
    let (first, again, second) = tokio::join!(fail(high.claim), fail(high.claim), fail(low.claim));
    let (first, again, second) = (first.unwrap(), again.unwrap(), second.unwrap());
    assert_eq!(first.outcomes, [UpdateOutcome::Applied { status: TaskStatus::Failed }]);
    assert_eq!(again.outcomes, [UpdateOutcome::AlreadyTerminal { status: TaskStatus::Failed }]);
    assert_eq!((first.ended_runs, again.ended_runs), (vec![], vec![]));
    assert_eq!(second.ended_runs.len(), 1, "its task was the last");
    let tasks = store.db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items;
    assert_eq!(tasks[2].error.as_deref(), Some("dependency \"high\" failed"), "it failed first");
    assert_eq!(store.db.get_run(run.id).await.unwrap().error.as_deref(), Some("task \"high\" failed"));
    assert_eq!(store.db.verify().await.unwrap(), []);
}

/// Rule G8: what an update need not know need not be readable.
#[rstest::rstest]
#[case::execution_name("UPDATE tasks SET execution_name = '' WHERE task_index = 0")]
#[case::time("UPDATE tasks SET dispatched_at = 9223372036854775807 WHERE task_index = 0")]
#[case::name("UPDATE tasks SET task_name = '../escape' WHERE task_index = 0")]
#[case::bytes("UPDATE tasks SET task_name = CAST(x'ff' AS TEXT) WHERE task_index = 0")]
#[case::dependencies("UPDATE tasks SET depends_on = 'x' WHERE task_index = 0")]
#[case::status("UPDATE tasks SET status = 'nonsense' WHERE task_index = 0")]
#[case::lease("UPDATE task_leases SET owner = ''")]
#[case::run("UPDATE runs SET status = 'nonsense'")]
#[tokio::test]
async fn a_damaged_task_does_not_keep_a_batch_from_being_applied(#[case] damage: &'static str) {
    for succeed in [true, false] {
        let store = Store::new().await;
        started(&store.db, vec![task("a", &[]), task("b", &[]), task("c", &[]), task("d", &["a"])]).await;
        let claimed = claim(&store.db, 10).await;
        store.sql(damage).await;
        let end = |claim| match succeed {
            true => TaskUpdate::succeeded(claim, None),
            false => TaskUpdate::failed_for_good(claim, Text::lossy("own")),
        };
        let status = if succeed { TaskStatus::Success } else { TaskStatus::Failed };
        let outcomes = update(&store.db, claimed.iter().map(|task| end(task.claim)).collect()).await;
        assert_eq!(outcomes, [UpdateOutcome::Applied { status }; 3], "{damage}");
        // Those that can be read are what they were told to be.
        assert_eq!(store.db.get_task(claimed[1].task.id).await.unwrap().task.status, status);
    }
}

/// Rule G8.
#[tokio::test]
async fn an_update_of_what_cannot_be_read_does_not_touch_those_that_wait_with_it() {
    let store = Store::new().await;
    started(&store.db, vec![task("a", &[]), task("b", &[])]).await;
    let [a, b] = &claim(&store.db, 10).await[..] else { panic!("two are ready") };
    store.sql("UPDATE tasks SET status = 'nonsense' WHERE task_index = 0").await;
    let update = |update| store.db.update_tasks(TaskUpdates::one(update));
    // The answer of the first would tell the status.
    let (bad, good) = tokio::join!(
        update(TaskUpdate::dispatched(a.claim, None)),
        update(TaskUpdate::succeeded(b.claim, None)),
    );
    let bad = bad.unwrap_err();
    assert!(matches!(bad.kind(), ErrorKind::Corrupt { column, .. } if column == "status"), "{bad}");
    assert_eq!(good.unwrap().outcomes, [UpdateOutcome::Applied { status: TaskStatus::Success }]);
}

/// A run of one task that has ended and has printed so many chunks of 1 KiB.
async fn ended_with_log(store: &Store, chunks: i64) -> ork_state_api::Run {
    let run = started(&store.db, vec![task("a", &[])]).await;
    let claimed = claim(&store.db, 1).await;
    update(&store.db, vec![TaskUpdate::succeeded(claimed[0].claim, None)]).await;
    let mut connection = raw(&store.path()).await;
    for statement in [
        "INSERT INTO task_logs SELECT id, ?2 * 1024 FROM tasks WHERE run_id = ?1",
        "INSERT INTO task_log_chunks
         WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?2)
         SELECT id, n * 1024, zeroblob(1024) FROM tasks, numbers WHERE run_id = ?1",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ] {
        let query = sqlx::query(statement).bind(run.id.as_uuid().as_bytes().to_vec()).bind(chunks);
        query.execute(&mut connection).await.unwrap();
    }
    run
}

async fn count(store: &Store, table: &'static str) -> i64 {
    let statement = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(statement).fetch_one(&mut raw(&store.path()).await).await.unwrap()
}

fn all_ended() -> Prune {
    Prune::older_than(Duration::ZERO).with_limit(Limit::new(10).unwrap())
}

/// Rule M2: in one transaction it would hold up all who write for seconds a gigabyte, and the WAL
/// would be longer than the log.
#[rstest::rstest]
#[case::prune(false)]
#[case::delete_workflow(true)]
#[tokio::test]
async fn a_long_log_is_freed_in_steps_after_its_run_is_gone(#[case] with_its_workflow: bool) {
    const LOG: i64 = 64 << 20;
    let store = Store::new().await;
    let run = ended_with_log(&store, LOG / 1024).await;
    started(&store.db, vec![task("a", &[])]).await;
    let other = claim(&store.db, 1).await[0].task.id;
    store.db.append_log(other, LogChunk::new(b"stays").unwrap()).await.unwrap();
    store.clock.advance(Duration::from_secs(1));
    if with_its_workflow {
        store.db.delete_workflow(run.workflow).await.unwrap();
    } else {
        assert_eq!(store.db.prune(all_ended()).await.unwrap(), Pruned::new(1, 1));
    }
    assert_eq!(count(&store, "task_log_chunks").await, 1);
    let end = LogRange::new(LogPosition::BeforeEnd(100), 100).unwrap();
    assert_eq!(store.db.read_log(other, end).await.unwrap().bytes, b"stays");
    assert_eq!(count(&store, "deleted_logs").await, 0);
    let wal = std::fs::metadata(store.path().with_extension("db-wal")).unwrap().len();
    assert!(wal < LOG as u64 / 4, "the WAL has {wal} bytes");
}

/// Rule M2: as when its process is killed between two steps.
#[tokio::test]
async fn what_a_deletion_left_of_a_log_is_no_damage_and_goes_with_the_next() {
    let store = Store::new().await;
    ended_with_log(&store, 3).await;
    store.clock.advance(Duration::from_secs(1));
    let leave = "INSERT INTO deleted_logs SELECT id FROM tasks;
        DELETE FROM task_logs; DELETE FROM task_edges; DELETE FROM tasks; DELETE FROM runs; DELETE FROM ended_counts;";
    store.sql(leave).await;
    assert_eq!(store.db.verify().await.unwrap(), []);
    assert_eq!(store.db.prune(all_ended()).await.unwrap(), Pruned::default());
    assert_eq!(count(&store, "task_log_chunks").await, 0);
    assert_eq!(count(&store, "deleted_logs").await, 0);
}

/// Rule M6: the task may come back with its id.
#[tokio::test]
async fn what_a_deletion_left_of_a_log_does_not_mix_with_what_is_imported() {
    let (from, to) = (Store::new().await, Store::new().await);
    let run = ended_with_log(&from, 3).await;
    ork_state_api::copy::copy(&from.db, &to.db, |_| {}).await.unwrap();
    let leave = "INSERT INTO deleted_logs SELECT id FROM tasks;
        DELETE FROM task_logs; DELETE FROM task_edges; DELETE FROM tasks; DELETE FROM runs; DELETE FROM ended_counts;
        DELETE FROM workflow_snapshots; DELETE FROM workflows;";
    to.sql(leave).await;
    ork_state_api::copy::copy(&from.db, &to.db, |_| {}).await.unwrap();
    assert_eq!(to.db.verify().await.unwrap(), []);
    assert_eq!(count(&to, "deleted_logs").await, 0);
    assert_eq!(count(&to, "task_log_chunks").await, 1);
    assert_eq!(to.db.get_run(run.id).await.unwrap().id, run.id);
}
