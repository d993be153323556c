//! Tasks: reading them, and everything that a scheduler does with them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use ork_state_api::backend::check_batch_len;
use ork_state_api::{
    ClaimTasks, ClaimedTask, Entity, Error, ExpiredTasks, Heartbeat, HeartbeatOutcome, Json, Limit,
    ListTasks, Page, ReadyTask, Result, RunId, Task, TaskDetail, TaskId, TaskName, TaskStore, TaskUpdates,
    UpdateReport,
};
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::database::PostgresDatabase;
use crate::error::Access;
use crate::rows::{self, Reader, fetch_limit, int_limit};
use crate::statement::Statement;
use crate::{claims, updates};

#[async_trait]
impl TaskStore for PostgresDatabase {
    async fn ready_tasks(&self, limit: Limit) -> Result<Vec<ReadyTask>> {
        // `now()`, not `clock_timestamp()`: an index cannot be searched by the latter.
        const READY: Statement = Statement::new(
            "SELECT q.ready_at, q.run_id, q.task_index, q.task_id
             FROM {schema}.ready_tasks q
             WHERE q.ready_at <= coalesce($1, now())
             ORDER BY q.ready_at, q.run_id, q.task_index
             LIMIT $2",
        );
        self.call(move |db| async move {
            let ready = || db.query(READY).bind(db.now()).bind(int_limit(limit));
            db.rows(Access::Read, ready).await?.iter().map(ready_task).collect()
        })
        .await
    }

    async fn claim_tasks(&self, claim: ClaimTasks) -> Result<Vec<ClaimedTask>> {
        let queue = self.queue.clone();
        self.call(|db| claims::claim(db, queue, claim)).await
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Vec<HeartbeatOutcome>> {
        self.call(|db| claims::heartbeat(db, heartbeat)).await
    }

    async fn expire_leases(&self, limit: Limit) -> Result<ExpiredTasks> {
        self.call(move |db| updates::expire(db, limit, updates::Expiry::Lease)).await
    }

    async fn expire_timeouts(&self, limit: Limit) -> Result<ExpiredTasks> {
        self.call(move |db| updates::expire(db, limit, updates::Expiry::Timeout)).await
    }

    async fn update_tasks(&self, updates: TaskUpdates) -> Result<UpdateReport> {
        let gather = self.gather.clone();
        self.call(|db| async move {
            match updates.steps().len() {
                0 => Ok(UpdateReport::new(Vec::new(), Vec::new())),
                1 => gather.update(db, updates).await,
                _ => updates::apply_alone(&db, &updates).await,
            }
        })
        .await
    }

    async fn get_task(&self, id: TaskId) -> Result<TaskDetail> {
        const GET: Statement = Statement::new(
            "SELECT {task}, t.params::text AS params, t.output::text AS output
             FROM {schema}.tasks t
             LEFT JOIN {schema}.task_leases l ON l.task_id = t.id
             WHERE t.id = $1",
        );
        self.call(move |db| async move {
            let row = db.row(Access::Read, || db.query(GET).bind(id.as_uuid())).await?;
            let row = row.ok_or_else(|| Error::not_found(Entity::Task, id))?;
            let payloads = Reader::new(&row, "tasks", id.as_uuid());
            Ok(TaskDetail::new(rows::task(&row)?, payloads.json("params")?, payloads.json("output")?))
        })
        .await
    }

    async fn list_tasks(&self, list: ListTasks) -> Result<Page<Task, u32>> {
        // A run without tasks on this page gives one row, whose `id` is null. No row means that
        // there is no such run.
        const LIST: Statement = Statement::new(
            "SELECT t.*
             FROM {schema}.runs r
             LEFT JOIN LATERAL (
                 SELECT {task}
                 FROM {schema}.tasks t
                 LEFT JOIN {schema}.task_leases l ON l.task_id = t.id
                 WHERE t.run_id = r.id AND t.task_index > $2 AND ($4::text[] IS NULL OR t.status = ANY ($4))
                 ORDER BY t.task_index
                 LIMIT $3
             ) t ON true
             WHERE r.id = $1
             ORDER BY t.task_index",
        );
        self.call(move |db| async move {
            let ListTasks { run, statuses, page, .. } = list;
            // No task has an index that does not fit.
            let after = page.after.map_or(-1, |index| i32::try_from(index).unwrap_or(i32::MAX));
            let statuses: Option<Vec<&str>> =
                statuses.map(|statuses| statuses.iter().map(|status| status.as_str()).collect());
            let list = || {
                db.query(LIST)
                    .bind(run.as_uuid())
                    .bind(after)
                    .bind(fetch_limit(page.limit))
                    .bind(statuses.clone())
            };
            let rows = db.rows(Access::Read, list).await?;
            let mut tasks = Vec::with_capacity(rows.len());
            for row in there(&rows, run)? {
                tasks.push(rows::task(row)?);
            }
            Ok(Page::from_rows(tasks, page.limit, |task| task.index))
        })
        .await
    }

    async fn task_outputs(&self, run: RunId, names: &[TaskName]) -> Result<BTreeMap<TaskName, Option<Json>>> {
        // As above: a run with none of these names gives one row, whose name is null.
        const OUTPUTS: Statement = Statement::new(
            "SELECT t.id, t.task_name, t.output::text AS output
             FROM {schema}.runs r
             LEFT JOIN {schema}.tasks t ON t.run_id = r.id AND t.task_name = ANY ($2)
             WHERE r.id = $1",
        );
        check_batch_len("task names", names.len())?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        self.call(move |db| async move {
            let outputs = || db.query(OUTPUTS).bind(run.as_uuid()).bind(&names);
            let rows = db.rows(Access::Read, outputs).await?;
            there(&rows, run)?.map(output).collect()
        })
        .await
    }
}

/// The rows of a run's tasks, without the row that stands for none.
fn there(rows: &[PgRow], run: RunId) -> Result<impl Iterator<Item = &PgRow>> {
    let Some(first) = rows.first() else { return Err(Error::not_found(Entity::Run, run)) };
    let none = Reader::new(first, "runs", run.as_uuid()).get::<Option<Uuid>>("id")?.is_none();
    Ok(rows.iter().skip(usize::from(none)))
}

/// A task's name and output.
pub(crate) fn output(row: &PgRow) -> Result<(TaskName, Option<Json>)> {
    let row = Reader::of(row, "tasks")?;
    Ok((row.text("task_name")?, row.json("output")?))
}

fn ready_task(row: &PgRow) -> Result<ReadyTask> {
    let id = Reader::new(row, "ready_tasks", Uuid::nil()).get("task_id")?;
    let row = Reader::new(row, "ready_tasks", id);
    Ok(ReadyTask::new(
        row.time("ready_at")?,
        RunId::from_uuid(row.get("run_id")?),
        row.count("task_index")?,
        TaskId::from_uuid(id),
    ))
}
