//! Hand-written SQL on PostgreSQL.

use std::str::FromStr;

use async_trait::async_trait;
use ork_state_api::Dag;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Executor as _, Row as _};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::Rows;
use crate::bench::AnyError;
use crate::bench::queue::{Held, Queue};

const INSERT_RUN: &str = "INSERT INTO runs (id, workflow_id, snapshot_id, status, triggered_by, created_at)
    SELECT $1, id, current_snapshot_id, 'pending', 'manual', now() FROM workflows";

const START: &str = "WITH task AS (
        SELECT * FROM unnest($2::uuid[], $3::text[], $4::text[], $5::int[]) WITH ORDINALITY
            AS t (id, name, depends_on, unmet, number)
    ),
    made AS (
        INSERT INTO tasks (
            id, run_id, task_index, task_name, executor_type, depends_on, status, created_at, ready_at,
            unmet_dependencies, attempts, max_retries
        )
        SELECT id, $1, number - 1, name, 'process', depends_on::text[],
            'pending', now(), CASE WHEN unmet = 0 THEN now() END, unmet, 0, 0
        FROM task
    ),
    edges AS (
        INSERT INTO task_edges (run_id, task_index, dependent_index, dependent_id)
        SELECT $1, o.task, o.dependent, ($2::uuid[])[o.dependent + 1] FROM unnest($6::int[], $7::int[]) AS o (task, dependent)
    ),
    ready AS (
        INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
        SELECT now(), $1, number - 1, id FROM task WHERE unmet = 0
    )
    UPDATE runs
    SET status = 'running', started_at = now(), tasks_total = cardinality($2), tasks_unfinished = cardinality($2)
    WHERE id = $1";

const CLAIM: &str = "WITH taken AS (
        DELETE FROM ready_tasks WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM ready_tasks ORDER BY ready_at, run_id, task_index LIMIT $1 FOR UPDATE SKIP LOCKED
        ))
        RETURNING task_id
    ),
    claimed AS (
        UPDATE tasks t
        SET status = 'dispatched', attempts = attempts + 1, token = token + 1, dispatched_at = now(), ready_at = NULL
        FROM taken WHERE t.id = taken.task_id
        RETURNING t.id, t.run_id, t.task_name, t.token, t.params
    ),
    leased AS (
        INSERT INTO task_leases (task_id, run_id, owner, token, expires_at)
        SELECT id, run_id, 'floor', token, now() + interval '1 day' FROM claimed
    )
    SELECT id, run_id, task_name, token, params::text FROM claimed";

const COMPLETE: &str = "WITH done AS (
        DELETE FROM task_leases l USING unnest($1::uuid[], $2::bigint[]) AS c (task_id, token)
        WHERE l.task_id = c.task_id AND l.token = c.token
        RETURNING l.task_id, l.run_id
    ),
    ended AS (
        UPDATE tasks t SET status = 'success', started_at = now(), finished_at = now()
        FROM done WHERE t.id = done.task_id
        RETURNING t.run_id, t.task_index
    ),
    met AS (
        UPDATE tasks t
        SET unmet_dependencies = t.unmet_dependencies - d.met,
            ready_at = CASE WHEN t.unmet_dependencies = d.met THEN now() END
        FROM (
            SELECT o.dependent_id, count(*)::int AS met
            FROM ended e JOIN task_edges o ON o.run_id = e.run_id AND o.task_index = e.task_index
            GROUP BY o.dependent_id
        ) d
        WHERE t.id = d.dependent_id
        RETURNING t.id, t.run_id, t.task_index, t.ready_at
    ),
    queued AS (
        INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
        SELECT ready_at, run_id, task_index, id FROM met WHERE ready_at IS NOT NULL
    ),
    -- In one order, or else callers that end tasks of the same runs deadlock.
    locked AS MATERIALIZED (
        SELECT id FROM runs WHERE id IN (SELECT run_id FROM done) ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE runs r
    SET tasks_unfinished = r.tasks_unfinished - d.ended,
        status = CASE WHEN r.tasks_unfinished = d.ended THEN 'success' ELSE r.status END,
        finished_at = CASE WHEN r.tasks_unfinished = d.ended THEN now() END
    FROM (SELECT run_id, count(*)::int AS ended FROM done GROUP BY run_id) d JOIN locked ON locked.id = d.run_id
    WHERE r.id = d.run_id";

pub(in crate::bench) struct Floor {
    options: PgConnectOptions,
    /// The unused connections.
    idle: Mutex<Vec<PgConnection>>,
    dag: Dag,
}

impl Floor {
    /// In an empty store, for runs of these tasks.
    pub(in crate::bench) async fn new(url: &str, dag: Dag) -> Result<Self, AnyError> {
        let options = PgConnectOptions::from_str(url)?.disable_statement_logging();
        let floor = Self { options, idle: Mutex::default(), dag };
        let mut connection = floor.connection().await?;
        connection
            .execute(
                "SET CONSTRAINTS ALL DEFERRED; WITH w AS (
                     INSERT INTO workflows (id, name, job_name, region, project, executor_type, current_snapshot_id)
                     VALUES (gen_random_uuid(), 'floor', '', '', '', 'process', gen_random_uuid())
                     RETURNING id, current_snapshot_id
                 )
                 INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
                 SELECT current_snapshot_id, id, 'floor', '[]', now() FROM w",
            )
            .await?;
        floor.idle.lock().await.push(connection);
        Ok(floor)
    }

    async fn connection(&self) -> Result<PgConnection, AnyError> {
        if let Some(connection) = self.idle.lock().await.pop() {
            return Ok(connection);
        }
        let mut connection = self.options.connect().await?;
        // The tables are empty when the plans are made.
        connection
            .execute("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off")
            .await?;
        Ok(connection)
    }
}

#[async_trait]
impl Queue for Floor {
    async fn start_run(&self) -> Result<(), AnyError> {
        let (run, rows) = (Uuid::now_v7(), Rows::of(&self.dag));
        let depends_on: Vec<String> = rows
            .waits_for
            .iter()
            .map(|tasks| {
                format!("{{{}}}", tasks.iter().map(|&task| &*rows.names[task]).collect::<Vec<_>>().join(","))
            })
            .collect();
        let unmet: Vec<i32> = rows.waits_for.iter().map(|tasks| tasks.len() as i32).collect();
        let (tasks, dependents): (Vec<i32>, Vec<i32>) =
            rows.edges().map(|(task, dependent)| (task as i32, dependent as i32)).unzip();
        let mut connection = self.connection().await?;
        sqlx::query(INSERT_RUN).bind(run).execute(&mut connection).await?;
        sqlx::query(START)
            .bind(run)
            .bind(&rows.ids)
            .bind(&rows.names)
            .bind(&depends_on)
            .bind(&unmet)
            .bind(&tasks)
            .bind(&dependents)
            .execute(&mut connection)
            .await?;
        self.idle.lock().await.push(connection);
        Ok(())
    }

    async fn claim(&self, limit: usize) -> Result<Vec<Held>, AnyError> {
        let mut connection = self.connection().await?;
        let claimed = sqlx::query(CLAIM).bind(i64::try_from(limit)?).fetch_all(&mut connection).await?;
        self.idle.lock().await.push(connection);
        Ok(claimed.iter().map(|row| Held { task: row.get("id"), token: row.get("token") }).collect())
    }

    async fn complete(&self, held: &[Held]) -> Result<(), AnyError> {
        let (tasks, tokens): (Vec<Uuid>, Vec<i64>) = held.iter().map(|held| (held.task, held.token)).unzip();
        let mut connection = self.connection().await?;
        sqlx::query(COMPLETE).bind(&tasks).bind(&tokens).execute(&mut connection).await?;
        self.idle.lock().await.push(connection);
        Ok(())
    }
}
