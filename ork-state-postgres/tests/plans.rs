//! How the server finds what it is asked for. A plan inside a function is not shown by EXPLAIN: it
//! is told by the extension `auto_explain`, and by the counters that the server keeps of what a
//! transaction read.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::sync::Mutex;

use crate::common::*;
use ork_state_api::*;
use ork_state_postgres::PostgresDatabase;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};

/// What one transaction read of a table.
#[derive(Debug, PartialEq, Eq)]
struct Scans {
    whole: i64,
    rows_by_index: i64,
}

async fn scans(transaction: &mut PgConnection, table: &str) -> Scans {
    let row = sqlx::query(
        "SELECT coalesce(seq_scan, 0), coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = $1",
    )
    .bind(table)
    .fetch_one(transaction)
    .await
    .unwrap();
    Scans { whole: row.get(0), rows_by_index: row.get(1) }
}

/// One ready task and 20,000 that wait.
const CHAIN: usize = 20_000;

async fn chain(db: &PostgresDatabase) -> WorkflowId {
    let text: String =
        (0..CHAIN).map(|i| if i == 0 { "t0 ".into() } else { format!("t{i}:t{} ", i - 1) }).collect();
    let workflow = workflow(db, "chain", &text).await;
    start(db, workflow).await;
    workflow
}

const CLAIM: &str = "SELECT count(*) FROM ork_claim_tasks('me', '1 minute', 100, false, '2030-01-01')";

async fn a_claim_reads_the_ready_tasks_only_whatever_the_statistics() {
    let (store, db, _clock) = store().await;
    // A session that makes its plans, and statistics that are made, while there is nothing.
    execute(&store, "VACUUM ANALYZE").await;
    let mut early = session(&store).await;
    for _ in 0..10 {
        sqlx::query(CLAIM).execute(&mut early).await.unwrap();
    }
    execute(&store, "ALTER TABLE tasks SET (autovacuum_enabled = off); ALTER TABLE ready_tasks SET (autovacuum_enabled = off)").await;
    chain(&db).await;
    look(&mut early).await;
    execute(&store, "ANALYZE").await;
    look(&mut early).await;
    look(&mut session(&store).await).await;
}

async fn look(session: &mut PgConnection) {
    let mut transaction = session.begin().await.unwrap();
    let claimed: i64 = sqlx::query_scalar(CLAIM).fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(claimed, 1);
    let tasks = scans(&mut transaction, "tasks").await;
    assert!(tasks.whole == 0 && tasks.rows_by_index <= 2, "{tasks:?}");
    let ready = scans(&mut transaction, "ready_tasks").await;
    assert!(ready.whole == 0 && ready.rows_by_index <= 2, "{ready:?}");
    transaction.rollback().await.unwrap();
}

/// What the server sends besides rows: the driver logs it.
struct Notices(Mutex<Vec<String>>);

static NOTICES: Notices = Notices(Mutex::new(Vec::new()));

impl log::Log for Notices {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "sqlx::postgres::notice"
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

async fn the_explained_claim_searches_ready_tasks_and_no_pending_ones() {
    let (store, db, _clock) = store().await;
    chain(&db).await;
    execute(&store, "ANALYZE").await;
    log::set_logger(&NOTICES).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let mut session = session(&store).await;
    for setting in [
        "LOAD 'auto_explain'",
        "SET auto_explain.log_level = notice",
        "SET auto_explain.log_nested_statements = on",
        "SET auto_explain.log_min_duration = 0",
    ] {
        session.execute(setting).await.unwrap();
    }
    session.execute(CLAIM).await.unwrap();
    let plans = NOTICES.0.lock().unwrap().join("\n");
    let scans: Vec<&str> = plans
        .lines()
        .map(|line| line.trim_start_matches([' ', '-', '>']))
        .filter(|line| line.contains("Scan") && line.contains(" on "))
        .map(|line| line.split("  (").next().unwrap_or(line))
        .filter(|line| {
            !line.starts_with("CTE Scan")
                && !line.starts_with("Function Scan")
                && !line.starts_with("Subquery")
        })
        .collect();
    let by_key = [
        // In the order of the queue; rows that are taken are then known by their place.
        "Index Scan using ready_tasks_pkey on ready_tasks q",
        "Tid Scan on ready_tasks",
        "Index Only Scan using task_leases_pkey on task_leases k",
        "Index Scan using tasks_pkey on tasks k_2",
        "Tid Scan on tasks t",
        "Index Scan using runs_pkey on runs k_3",
        "Index Scan using workflows_pkey on workflows k_1",
    ];
    assert_eq!(scans, by_key, "{plans}");
}

async fn an_update_reads_the_tasks_it_is_about_and_their_dependents() {
    let (store, db, _clock) = store().await;
    execute(&store, "VACUUM ANALYZE").await;
    execute(&store, "ALTER TABLE tasks SET (autovacuum_enabled = off)").await;
    let mut session = session(&store).await;
    let update = "SELECT count(*) FROM ork_update_tasks(
        ARRAY(SELECT task_id FROM task_leases), ARRAY(SELECT token FROM task_leases), ARRAY[NULL::text], ARRAY[true],
        ARRAY['success'], ARRAY[NULL::text], ARRAY[NULL::text], ARRAY[NULL::interval], '2026-01-01')";
    for _ in 0..10 {
        sqlx::query(update).execute(&mut session).await.unwrap();
    }
    chain(&db).await;
    claim(&db, 1).await;
    let mut transaction = session.begin().await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i64>(update).fetch_one(&mut *transaction).await.unwrap(), 1);
    let tasks = scans(&mut transaction, "tasks").await;
    assert!(tasks.whole == 0 && tasks.rows_by_index < 10, "{tasks:?}");
    assert_eq!(scans(&mut transaction, "runs").await.whole, 0);
    assert_eq!(scans(&mut transaction, "task_edges").await.whole, 0);
}

async fn an_append_reads_nothing_of_the_log_it_adds_to() {
    let (store, db, _clock) = store().await;
    start(&db, workflow(&db, "w", "t").await).await;
    let task = claim(&db, 1).await[0].task.id;
    for _ in 0..200 {
        db.append_log(task, LogChunk::new(&[b'x'; 1000]).unwrap()).await.unwrap();
    }
    let mut session = session(&store).await;
    let mut transaction = session.begin().await.unwrap();
    let append = "SELECT new_length FROM ork_append_log($1, 'y', NULL, NULL)";
    let length: i64 =
        sqlx::query_scalar(append).bind(task.as_uuid()).fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(length, 200_001);
    assert_eq!(scans(&mut transaction, "task_log_chunks").await, Scans { whole: 0, rows_by_index: 0 });
    let lengths = scans(&mut transaction, "task_logs").await;
    assert!(lengths.whole == 0 && lengths.rows_by_index <= 2, "{lengths:?}");
}

/// An old transaction keeps the chunks that are freed from being vacuumed.
async fn a_step_of_freeing_logs_reads_neither_those_of_others_nor_what_was_freed_before() {
    let (store, _db, _clock) = store().await;
    execute(&store, "VACUUM ANALYZE").await;
    execute(&store, "ALTER TABLE task_log_chunks SET (autovacuum_enabled = off)").await;
    let (mut session, mut old) = (session(&store).await, session(&store).await);
    let mut old = old.begin().await.unwrap();
    old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM runs").await.unwrap();
    for _ in 0..10 {
        sqlx::query("SELECT ork_free_logs()").execute(&mut session).await.unwrap();
    }
    execute(
        &store,
        "INSERT INTO task_log_chunks SELECT md5((n % 2)::text)::uuid, n, 'x' FROM generate_series(1, 70000) n;
         INSERT INTO deleted_logs VALUES (md5('1')::uuid)",
    )
    .await;
    let mut before = 0;
    for left in [true, true, true, false] {
        let mut transaction = session.begin().await.unwrap();
        let step = sqlx::query_scalar("SELECT ork_free_logs()").fetch_one(&mut *transaction).await;
        assert_eq!(step.map_err(|error| error.to_string()), Ok(left));
        assert_eq!(scans(&mut transaction, "task_log_chunks").await.whole, 0);
        // Entries of the index, those of dead rows too. The server counts on where a transaction
        // soon follows another.
        let read =
            sqlx::query_scalar("SELECT pg_stat_get_xact_tuples_returned('task_log_chunks_pkey'::regclass)");
        let read: i64 = read.fetch_one(&mut *transaction).await.unwrap();
        // Its 10,000, and once more to see whether there are others.
        assert!(read - before <= 20_010, "{read} after {before}");
        before = read;
        transaction.commit().await.unwrap();
    }
}

ork_state_conformance::own_tests!([
    a_claim_reads_the_ready_tasks_only_whatever_the_statistics,
    the_explained_claim_searches_ready_tasks_and_no_pending_ones,
    an_update_reads_the_tasks_it_is_about_and_their_dependents,
    an_append_reads_nothing_of_the_log_it_adds_to,
    a_step_of_freeing_logs_reads_neither_those_of_others_nor_what_was_freed_before,
]);
