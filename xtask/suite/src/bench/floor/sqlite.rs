//! Hand-written SQL on SQLite. One connection writes, because SQLite allows only one writer.

use std::collections::BTreeMap;

use async_trait::async_trait;
use ork_state_api::Dag;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Executor as _, QueryBuilder, Row as _, Sqlite};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::Rows;
use crate::bench::AnyError;
use crate::bench::queue::{Held, Queue};

/// A statement has at most 32,766 arguments.
const ROWS: usize = 500;

pub(in crate::bench) struct Floor {
    connection: Mutex<SqliteConnection>,
    dag: Dag,
}

impl Floor {
    /// In an empty store, for runs of these tasks.
    pub(in crate::bench) async fn new(url: &str, dag: Dag) -> Result<Self, AnyError> {
        let path = url.strip_prefix("sqlite://").ok_or("no SQLite URL")?;
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging()
            .connect()
            .await?;
        connection
            .execute(
                "INSERT INTO workflows (id, name, job_name, region, project, executor_type, created_at, updated_at)
                 VALUES (x'01', 'floor', '', '', '', 'process', 0, 0)",
            )
            .await?;
        Ok(Self { connection: Mutex::new(connection), dag })
    }
}

fn bytes(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// The list for an `IN`.
fn ids(start: &str, held: &[Held], end: &str) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(start);
    let mut list = query.separated(", ");
    for held in held {
        list.push_bind(bytes(held.task));
    }
    query.push(end);
    query
}

#[async_trait]
impl Queue for Floor {
    async fn start_run(&self) -> Result<(), AnyError> {
        let (run, rows) = (bytes(Uuid::now_v7()), Rows::of(&self.dag));
        let mut guard = self.connection.lock().await;
        let connection = &mut *guard;
        sqlx::query(
            "INSERT INTO runs (id, workflow_id, snapshot_id, status, triggered_by, created_at)
             VALUES (?, x'01', x'01', 'pending', 'manual', 0)",
        )
        .bind(&run)
        .execute(&mut *connection)
        .await?;
        connection.execute("BEGIN IMMEDIATE").await?;
        let numbers: Vec<usize> = (0..self.dag.len()).collect();
        for chunk in numbers.chunks(ROWS) {
            let mut query = QueryBuilder::<Sqlite>::new(
                "INSERT INTO tasks (id, run_id, task_index, task_name, executor_type, depends_on, status, created_at,
                     ready_at, unmet_dependencies) ",
            );
            query.push_values(chunk, |mut row, &number| {
                let waits_for = &rows.waits_for[number];
                let depends_on: Vec<&String> = waits_for.iter().map(|&task| &rows.names[task]).collect();
                row.push_bind(bytes(rows.ids[number]))
                    .push_bind(&run)
                    .push_bind(number as i64)
                    .push_bind(&rows.names[number])
                    .push("'process'")
                    .push_bind(format!("{depends_on:?}"))
                    .push("'pending', 0")
                    .push_bind(waits_for.is_empty().then_some(0_i64))
                    .push_bind(waits_for.len() as i64);
            });
            query.build().execute(&mut *connection).await?;
            let mut query = QueryBuilder::<Sqlite>::new(
                "INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id) ",
            );
            let ready: Vec<usize> =
                chunk.iter().copied().filter(|&number| rows.waits_for[number].is_empty()).collect();
            if ready.is_empty() {
                continue;
            }
            query.push_values(&ready, |mut row, &number| {
                row.push("0").push_bind(&run).push_bind(number as i64).push_bind(bytes(rows.ids[number]));
            });
            query.build().execute(&mut *connection).await?;
        }
        for chunk in rows.edges().collect::<Vec<_>>().chunks(ROWS) {
            let mut query =
                QueryBuilder::<Sqlite>::new("INSERT INTO task_edges (run_id, task_index, dependent_index) ");
            query.push_values(chunk, |mut row, &(task, dependent)| {
                row.push_bind(&run).push_bind(task as i64).push_bind(dependent as i64);
            });
            query.build().execute(&mut *connection).await?;
        }
        sqlx::query("UPDATE runs SET status = 'running', started_at = 0, tasks_total = ?2, tasks_unfinished = ?2 WHERE id = ?1")
            .bind(&run)
            .bind(self.dag.len() as i64)
            .execute(&mut *connection)
            .await?;
        connection.execute("COMMIT").await?;
        Ok(())
    }

    async fn claim(&self, limit: usize) -> Result<Vec<Held>, AnyError> {
        let mut guard = self.connection.lock().await;
        let connection = &mut *guard;
        connection.execute("BEGIN IMMEDIATE").await?;
        let ready = sqlx::query(
            "SELECT q.ready_at, q.run_id, q.task_index, t.id, t.task_name, t.token, t.params
             FROM ready_tasks AS q CROSS JOIN tasks AS t ON t.id = q.task_id
             ORDER BY q.ready_at, q.run_id, q.task_index LIMIT ?",
        )
        .bind(limit as i64)
        .fetch_all(&mut *connection)
        .await?;
        let mut held = Vec::new();
        for row in &ready {
            held.push(Held { task: Uuid::from_slice(row.get("id"))?, token: row.get::<i64, _>("token") + 1 });
        }
        if let Some(last) = ready.last() {
            sqlx::query("DELETE FROM ready_tasks WHERE (ready_at, run_id, task_index) <= (?, ?, ?)")
                .bind(last.get::<i64, _>("ready_at"))
                .bind(last.get::<Vec<u8>, _>("run_id"))
                .bind(last.get::<i64, _>("task_index"))
                .execute(&mut *connection)
                .await?;
            ids(
                "UPDATE tasks SET status = 'dispatched', attempts = attempts + 1, token = token + 1,
                     dispatched_at = 0, ready_at = NULL WHERE id IN (",
                &held,
                ")",
            )
            .build()
            .execute(&mut *connection)
            .await?;
            let mut query = QueryBuilder::<Sqlite>::new(
                "INSERT INTO task_leases (task_id, run_id, owner, token, expires_at) ",
            );
            query.push_values(ready.iter().zip(&held), |mut values, (row, held)| {
                values
                    .push_bind(bytes(held.task))
                    .push_bind(row.get::<Vec<u8>, _>("run_id"))
                    .push("'floor'")
                    .push_bind(held.token)
                    .push("99999999999999");
            });
            query.build().execute(&mut *connection).await?;
        }
        connection.execute("COMMIT").await?;
        Ok(held)
    }

    async fn complete(&self, held: &[Held]) -> Result<(), AnyError> {
        let mut guard = self.connection.lock().await;
        let connection = &mut *guard;
        connection.execute("BEGIN IMMEDIATE").await?;
        ids("DELETE FROM task_leases WHERE task_id IN (", held, ")")
            .build()
            .execute(&mut *connection)
            .await?;
        let ended = ids(
            "UPDATE tasks SET status = 'success', started_at = 0, finished_at = 0 WHERE id IN (",
            held,
            ") RETURNING run_id, task_index",
        )
        .build()
        .fetch_all(&mut *connection)
        .await?;
        let mut runs: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
        let mut query = QueryBuilder::<Sqlite>::new(
            "UPDATE tasks SET unmet_dependencies = unmet_dependencies - 1,
                 ready_at = CASE WHEN unmet_dependencies = 1 THEN 0 END
             WHERE (run_id, task_index) IN (
                 SELECT e.run_id, e.dependent_index
                 FROM (",
        );
        query.push_values(&ended, |mut values, row| {
            values.push_bind(row.get::<Vec<u8>, _>("run_id")).push_bind(row.get::<i64, _>("task_index"));
        });
        query.push(
            ") AS v CROSS JOIN task_edges AS e ON e.run_id = v.column1 AND e.task_index = v.column2)
             RETURNING id, run_id, task_index, ready_at",
        );
        for row in &ended {
            *runs.entry(row.get("run_id")).or_default() += 1;
        }
        let met = query.build().fetch_all(&mut *connection).await?;
        let ready: Vec<_> =
            met.iter().filter(|row| row.get::<Option<i64>, _>("ready_at").is_some()).collect();
        if !ready.is_empty() {
            let mut query = QueryBuilder::<Sqlite>::new(
                "INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id) ",
            );
            query.push_values(ready, |mut values, row| {
                values
                    .push("0")
                    .push_bind(row.get::<Vec<u8>, _>("run_id"))
                    .push_bind(row.get::<i64, _>("task_index"))
                    .push_bind(row.get::<Vec<u8>, _>("id"));
            });
            query.build().execute(&mut *connection).await?;
        }
        let mut query = QueryBuilder::<Sqlite>::new(
            "UPDATE runs SET tasks_unfinished = tasks_unfinished - v.column2,
                 status = CASE WHEN tasks_unfinished = v.column2 THEN 'success' ELSE status END,
                 finished_at = CASE WHEN tasks_unfinished = v.column2 THEN 0 END
             FROM (",
        );
        query.push_values(&runs, |mut values, (run, ended)| {
            values.push_bind(run.clone()).push_bind(*ended);
        });
        query.push(") AS v WHERE runs.id = v.column1");
        query.build().execute(&mut *connection).await?;
        connection.execute("COMMIT").await?;
        Ok(())
    }
}
