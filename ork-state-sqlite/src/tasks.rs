//! Tasks: claiming them, renewing their leases, and reading them.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use ork_state_api::backend::check_batch_len;
use ork_state_api::{
    ClaimTasks, ClaimedTask, Entity, Error, ExpiredTasks, Heartbeat, HeartbeatOutcome, Json, Limit,
    ListTasks, Page, ReadyTask, Result, RunId, Task, TaskDetail, TaskId, TaskName, TaskStatus, TaskStore,
    TaskUpdates, Timestamp, UpdateReport,
};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::batch;
use crate::claims;
use crate::database::SqliteDatabase;
use crate::error::Attempt;
use crate::rows::{self, Cells, bytes, hex, one_more, task_columns};
use crate::updates;

#[async_trait]
impl TaskStore for SqliteDatabase {
    async fn ready_tasks(&self, limit: Limit) -> Result<Vec<ReadyTask>> {
        // The table holds only tasks that wait for nothing except their time.
        const READY: &str =
            "SELECT ready_at, run_id, task_index, task_id FROM ready_tasks WHERE ready_at <= ?1
             ORDER BY ready_at, run_id, task_index LIMIT ?2";
        let clock = self.clock();
        self.read(move |connection| {
            Box::pin(async move {
                let found = sqlx::query(READY)
                    .bind(clock.now().as_micros())
                    .bind(i64::try_from(limit.get()).unwrap_or(i64::MAX))
                    .fetch_all(connection)
                    .await?;
                Ok(found.iter().map(ready_task).collect::<Result<_>>()?)
            })
        })
        .await
    }

    async fn claim_tasks(&self, claim: ClaimTasks) -> Result<Vec<ClaimedTask>> {
        let clock = self.clock();
        self.lease(move |connection| {
            // The clock is read when the write lock is held, so that the whole length of the lease
            // lies ahead.
            Box::pin(async move { claims::claim(connection, &claim, clock.now()).await })
        })
        .await
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Vec<HeartbeatOutcome>> {
        if heartbeat.claims().is_empty() {
            self.require_current().await?;
            return Ok(Vec::new());
        }
        let clock = self.clock();
        self.lease(move |connection| {
            Box::pin(async move { renew(connection, &heartbeat, clock.now()).await })
        })
        .await
    }

    async fn expire_leases(&self, limit: Limit) -> Result<ExpiredTasks> {
        let clock = self.clock();
        self.write(move |connection| {
            Box::pin(async move { updates::expire_leases(connection, limit, clock.now()).await })
        })
        .await
    }

    async fn expire_timeouts(&self, limit: Limit) -> Result<ExpiredTasks> {
        let clock = self.clock();
        self.write(move |connection| {
            Box::pin(async move { updates::expire_timeouts(connection, limit, clock.now()).await })
        })
        .await
    }

    async fn update_tasks(&self, updates: TaskUpdates) -> Result<UpdateReport> {
        if updates.steps().is_empty() {
            self.require_current().await?;
            return Ok(UpdateReport::new(Vec::new(), Vec::new()));
        }
        self.update(updates).await
    }

    async fn get_task(&self, id: TaskId) -> Result<TaskDetail> {
        const GET: &str = concat!(
            "SELECT ",
            task_columns!(),
            ", t.params, t.output
             FROM tasks AS t LEFT JOIN task_leases AS l ON l.task_id = t.id WHERE t.id = ?1"
        );
        self.read(move |connection| {
            Box::pin(async move {
                let row = sqlx::query(GET).bind(bytes(id.as_uuid())).fetch_optional(connection).await?;
                let row = row.ok_or_else(|| Error::not_found(Entity::Task, id))?;
                let cells = Cells::new(&row, "tasks");
                Ok(TaskDetail::new(rows::task(&row)?, cells.json("params")?, cells.json("output")?))
            })
        })
        .await
    }

    async fn list_tasks(&self, list: ListTasks) -> Result<Page<Task, u32>> {
        const LIST: &str = concat!(
            "SELECT ",
            task_columns!(),
            " FROM tasks AS t LEFT JOIN task_leases AS l ON l.task_id = t.id
             WHERE t.run_id = ?1 AND t.task_index > ?2
                 AND (?4 IS NULL OR t.status IN (SELECT value FROM json_each(?4)))
             ORDER BY t.task_index LIMIT ?3"
        );
        let ListTasks { run, statuses, page, .. } = list;
        self.read(move |connection| {
            Box::pin(async move {
                let found = sqlx::query(LIST)
                    .bind(bytes(run.as_uuid()))
                    .bind(page.after.map_or(-1, i64::from))
                    .bind(one_more(page.limit))
                    .bind(batch::words(statuses, TaskStatus::as_str)?)
                    .fetch_all(&mut *connection)
                    .await?;
                if found.is_empty() {
                    require_run(connection, run).await?;
                }
                let tasks = found.iter().map(rows::task).collect::<Result<_>>()?;
                Ok(Page::from_rows(tasks, page.limit, |task: &Task| task.index))
            })
        })
        .await
    }

    async fn task_outputs(&self, run: RunId, names: &[TaskName]) -> Result<BTreeMap<TaskName, Option<Json>>> {
        const OUTPUTS: &str = "SELECT id, task_name, output FROM tasks
             WHERE run_id = ?1 AND task_name IN (SELECT value FROM json_each(?2))";
        check_batch_len("list of tasks", names.len())?;
        let names: Vec<Value> = names.iter().map(|name| Value::from(name.as_str())).collect();
        self.read(move |connection| {
            Box::pin(async move {
                let found = sqlx::query(OUTPUTS)
                    .bind(bytes(run.as_uuid()))
                    .bind(batch::json(&names)?)
                    .fetch_all(&mut *connection)
                    .await?;
                if found.is_empty() {
                    require_run(connection, run).await?;
                }
                Ok(found.iter().map(output).collect::<Result<_>>()?)
            })
        })
        .await
    }
}

fn ready_task(row: &SqliteRow) -> Result<ReadyTask> {
    let cells = Cells::new(row, "ready_tasks").identified_by("task_id");
    Ok(ReadyTask::new(
        cells.time("ready_at")?,
        RunId::from_uuid(cells.uuid("run_id")?),
        cells.number("task_index")?,
        TaskId::from_uuid(cells.uuid("task_id")?),
    ))
}

fn output(row: &SqliteRow) -> Result<(TaskName, Option<Json>)> {
    let cells = Cells::new(row, "tasks");
    Ok((cells.text("task_name")?, cells.json("output")?))
}

async fn require_run(connection: &mut SqliteConnection, run: RunId) -> Attempt<()> {
    const EXISTS: &str = "SELECT 1 FROM runs WHERE id = ?1";
    let found: Option<i64> =
        sqlx::query_scalar(EXISTS).bind(bytes(run.as_uuid())).fetch_optional(connection).await?;
    match found {
        Some(_) => Ok(()),
        None => Err(Error::not_found(Entity::Run, run).into()),
    }
}

/// Renews the leases that are live and have the claim's token.
async fn renew(
    connection: &mut SqliteConnection,
    heartbeat: &Heartbeat,
    now: Timestamp,
) -> Attempt<Vec<HeartbeatOutcome>> {
    const RENEW: &str = "UPDATE task_leases SET expires_at = ?2
         FROM json_each(?1) AS claim
         WHERE task_leases.task_id = unhex(claim.value ->> 0)
             AND token = claim.value ->> 1
             AND expires_at > ?3
         RETURNING task_id, token";
    let claims: Vec<Value> = heartbeat
        .claims()
        .iter()
        .map(|claim| json!([hex(claim.task.as_uuid()), claim.token.get()]))
        .collect();
    let expires_at = now.saturating_add(heartbeat.lease().get());
    let renewed: Vec<(Vec<u8>, i64)> = sqlx::query_as(RENEW)
        .bind(batch::json(&claims)?)
        .bind(expires_at.as_micros())
        .bind(now.as_micros())
        .fetch_all(connection)
        .await?;
    let renewed: HashMap<Vec<u8>, i64> = renewed.into_iter().collect();
    let outcome = |claim: &ork_state_api::Claim| match renewed.get(claim.task.as_uuid().as_bytes().as_slice())
    {
        Some(token) if *token == claim.token.get() => HeartbeatOutcome::Extended { expires_at },
        _ => HeartbeatOutcome::Lost,
    };
    Ok(heartbeat.claims().iter().map(outcome).collect())
}
