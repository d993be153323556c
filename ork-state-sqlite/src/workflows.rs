//! Workflows and the snapshots of their DAGs.

use async_trait::async_trait;
use ork_state_api::{
    Entity, Error, NewWorkflow, Page, PageRequest, Result, RunId, Snapshot, SnapshotId, Workflow, WorkflowId,
    WorkflowName, WorkflowStore,
};
use sqlx::sqlite::SqliteConnection;

use crate::SqliteDatabase;
use crate::error::Attempt;
use crate::rows::{self, Cells, bytes, workflow_columns};

#[async_trait]
impl WorkflowStore for SqliteDatabase {
    async fn create_workflow(&self, new: NewWorkflow) -> Result<Workflow> {
        let clock = self.clock();
        self.write(move |connection| {
            Box::pin(async move {
                let now = clock.now();
                let workflow = Workflow {
                    id: WorkflowId::generate(),
                    name: new.name,
                    description: new.description,
                    target: new.target,
                    snapshot: SnapshotId::generate(),
                    created_at: now,
                    updated_at: now,
                };
                insert(connection, &workflow).await?;
                insert_snapshot(connection, &workflow, new.dag.content_hash(), new.dag.to_json().as_str())
                    .await?;
                Ok(workflow)
            })
        })
        .await
    }

    async fn get_workflow(&self, id: WorkflowId) -> Result<Workflow> {
        const GET: &str = concat!("SELECT ", workflow_columns!(), " FROM workflows WHERE id = ?1");
        self.read(move |connection| {
            Box::pin(async move {
                let row = sqlx::query(GET).bind(bytes(id.as_uuid())).fetch_optional(connection).await?;
                let row = row.ok_or_else(|| Error::not_found(Entity::Workflow, id))?;
                Ok(rows::workflow(&row)?)
            })
        })
        .await
    }

    async fn find_workflow(&self, name: &WorkflowName) -> Result<Workflow> {
        const FIND: &str = concat!("SELECT ", workflow_columns!(), " FROM workflows WHERE name = ?1");
        let name = name.clone();
        self.read(move |connection| {
            Box::pin(async move {
                let row = sqlx::query(FIND).bind(name.to_string()).fetch_optional(connection).await?;
                let row = row.ok_or_else(|| Error::not_found(Entity::Workflow, &name))?;
                Ok(rows::workflow(&row)?)
            })
        })
        .await
    }

    async fn list_workflows(&self, page: PageRequest<WorkflowName>) -> Result<Page<Workflow, WorkflowName>> {
        // Text compares by its UTF-8 bytes: the column has SQLite's default collation. No name is empty.
        const LIST: &str =
            concat!("SELECT ", workflow_columns!(), " FROM workflows WHERE name > ?1 ORDER BY name LIMIT ?2");
        self.read(move |connection| {
            Box::pin(async move {
                let after = page.after.map(String::from).unwrap_or_default();
                let found =
                    sqlx::query(LIST).bind(after).bind(one_more(page.limit)).fetch_all(connection).await?;
                let workflows = found.iter().map(rows::workflow).collect::<Result<_>>()?;
                Ok(Page::from_rows(workflows, page.limit, |workflow: &Workflow| workflow.name.clone()))
            })
        })
        .await
    }

    async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        const GET: &str = "SELECT id, workflow_id, content_hash, tasks_json, created_at
             FROM workflow_snapshots WHERE id = ?1";
        self.read(move |connection| {
            Box::pin(async move {
                let row = sqlx::query(GET).bind(bytes(id.as_uuid())).fetch_optional(connection).await?;
                let row = row.ok_or_else(|| Error::not_found(Entity::Snapshot, id))?;
                Ok(rows::snapshot(&row)?)
            })
        })
        .await
    }

    async fn delete_workflow(&self, id: WorkflowId) -> Result<()> {
        self.write(move |connection| Box::pin(delete(connection, id))).await
    }
}

/// A page's limit and the row that shows whether there is a next page.
pub(crate) fn one_more(limit: ork_state_api::Limit) -> i64 {
    i64::try_from(limit.get()).unwrap_or(i64::MAX).saturating_add(1)
}

async fn insert(connection: &mut SqliteConnection, workflow: &Workflow) -> Attempt<()> {
    const INSERT: &str =
        "INSERT INTO workflows (id, name, description, executor_type, job_name, region, project,
             task_params, current_snapshot_id, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10)
         ON CONFLICT (name) DO NOTHING";
    let target = &workflow.target;
    let inserted = sqlx::query(INSERT)
        .bind(bytes(workflow.id.as_uuid()))
        .bind(workflow.name.to_string())
        .bind(workflow.description.as_ref().map(ToString::to_string))
        .bind(target.executor_type.to_string())
        .bind(target.job_name.to_string())
        .bind(target.region.to_string())
        .bind(target.project.to_string())
        .bind(target.params.as_ref().map(ToString::to_string))
        .bind(bytes(workflow.snapshot.as_uuid()))
        .bind(workflow.created_at.as_micros())
        .execute(connection)
        .await?;
    match inserted.rows_affected() {
        0 => Err(Error::already_exists(Entity::Workflow, &workflow.name).into()),
        _ => Ok(()),
    }
}

async fn insert_snapshot(
    connection: &mut SqliteConnection,
    workflow: &Workflow,
    content_hash: String,
    tasks_json: &str,
) -> Attempt<()> {
    const INSERT: &str =
        "INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5)";
    sqlx::query(INSERT)
        .bind(bytes(workflow.snapshot.as_uuid()))
        .bind(bytes(workflow.id.as_uuid()))
        .bind(content_hash)
        .bind(tasks_json.to_owned())
        .bind(workflow.created_at.as_micros())
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes a workflow and all that hangs on it, if every run of it has ended.
async fn delete(connection: &mut SqliteConnection, id: WorkflowId) -> Attempt<()> {
    const EXISTS: &str = "SELECT 1 FROM workflows WHERE id = ?1";
    const LIVE_RUN: &str = "SELECT id, status FROM runs
         WHERE workflow_id = ?1 AND status NOT IN ('success', 'failed', 'cancelled')
         ORDER BY created_at, id LIMIT 1";
    // Tables without foreign keys first, by the runs and tasks that are still there; deferred jobs go with their tasks.
    const DELETES: [&str; 9] = [
        "DELETE FROM task_log_chunks WHERE task_id IN (
             SELECT t.id FROM runs AS r JOIN tasks AS t ON t.run_id = r.id WHERE r.workflow_id = ?1)",
        "DELETE FROM task_logs WHERE task_id IN (
             SELECT t.id FROM runs AS r JOIN tasks AS t ON t.run_id = r.id WHERE r.workflow_id = ?1)",
        "DELETE FROM task_leases WHERE task_id IN (
             SELECT t.id FROM runs AS r JOIN tasks AS t ON t.run_id = r.id WHERE r.workflow_id = ?1)",
        "DELETE FROM ready_tasks WHERE (ready_at, run_id, task_index) IN (
             SELECT t.ready_at, t.run_id, t.task_index FROM runs AS r JOIN tasks AS t ON t.run_id = r.id
             WHERE r.workflow_id = ?1 AND t.ready_at IS NOT NULL)",
        "DELETE FROM task_edges WHERE run_id IN (SELECT id FROM runs WHERE workflow_id = ?1)",
        "DELETE FROM tasks WHERE run_id IN (SELECT id FROM runs WHERE workflow_id = ?1)",
        "DELETE FROM runs WHERE workflow_id = ?1",
        "DELETE FROM workflow_snapshots WHERE workflow_id = ?1",
        "DELETE FROM workflows WHERE id = ?1",
    ];
    let key = bytes(id.as_uuid());
    let found: Option<i64> =
        sqlx::query_scalar(EXISTS).bind(key.clone()).fetch_optional(&mut *connection).await?;
    if found.is_none() {
        return Err(Error::not_found(Entity::Workflow, id).into());
    }
    if let Some(row) = sqlx::query(LIVE_RUN).bind(key.clone()).fetch_optional(&mut *connection).await? {
        let cells = Cells::new(&row, "runs");
        let (run, status) = (RunId::from_uuid(cells.uuid("id")?), cells.required::<String>("status")?);
        return Err(Error::conflict(format!("run {run} of workflow {id} is {status}"))
            .with_hint("Cancel it, or wait until it has ended")
            .into());
    }
    for delete in DELETES {
        sqlx::query(delete).bind(key.clone()).execute(&mut *connection).await?;
    }
    Ok(())
}
