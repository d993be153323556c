//! Workflows and the snapshots of their DAGs.

use std::sync::Arc;

use async_trait::async_trait;
use ork_state_api::{
    Dag, Entity, Error, NewWorkflow, Page, PageRequest, Result, RunId, Snapshot, SnapshotId, Workflow,
    WorkflowId, WorkflowName, WorkflowStore,
};
use sqlx::postgres::PgRow;
use sqlx::{Row, SqlStr, query};
use uuid::Uuid;

use crate::PostgresDatabase;
use crate::database::Inner;
use crate::error::Access;
use crate::options::Schema;
use crate::rows::{self, Reader, WORKFLOW};
use crate::runs::fetch_limit;
use crate::schema::sql;

pub(crate) struct Statements {
    create: SqlStr,
    get: SqlStr,
    find: SqlStr,
    list: SqlStr,
    snapshot: SqlStr,
    delete: SqlStr,
}

impl Statements {
    pub(crate) fn new(schema: &Schema) -> Self {
        Self {
            // The two rows refer to each other: foreign keys are checked when the statement is over.
            create: sql(format!(
                "WITH w AS (
                     INSERT INTO {schema}.workflows (
                         id, name, description, executor_type, job_name, region, project, task_params,
                         current_snapshot_id, created_at, updated_at
                     )
                     SELECT $1, $2, $3, $4, $5, $6, $7, $8::text::json, $9, n.now, n.now
                     FROM (SELECT coalesce($12, clock_timestamp()) AS now OFFSET 0) n
                     -- Waits for another caller who is just taking the name.
                     ON CONFLICT (name) DO NOTHING
                     RETURNING *
                 ),
                 s AS (
                     INSERT INTO {schema}.workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
                     SELECT $9, w.id, $10, $11::text::json, w.created_at FROM w
                 )
                 SELECT {WORKFLOW} FROM w"
            )),
            get: sql(format!("SELECT {WORKFLOW} FROM {schema}.workflows w WHERE w.id = $1")),
            find: sql(format!("SELECT {WORKFLOW} FROM {schema}.workflows w WHERE w.name = $1")),
            // The column's collation is \"C\": the order is that of the bytes. No name is empty.
            list: sql(format!(
                "SELECT {WORKFLOW} FROM {schema}.workflows w
                 WHERE w.name > coalesce($1, '')
                 ORDER BY w.name
                 LIMIT $2"
            )),
            snapshot: sql(format!(
                "SELECT s.id, s.workflow_id, s.content_hash, s.tasks_json::text AS tasks_json, s.created_at
                 FROM {schema}.workflow_snapshots s
                 WHERE s.id = $1"
            )),
            delete: sql(format!("SELECT answer, run_id, run_status FROM {schema}.ork_delete_workflow($1)")),
        }
    }
}

#[async_trait]
impl WorkflowStore for PostgresDatabase {
    async fn create_workflow(&self, new: NewWorkflow) -> Result<Workflow> {
        self.call(|db| create(db, new)).await
    }

    async fn get_workflow(&self, id: WorkflowId) -> Result<Workflow> {
        self.call(move |db| async move {
            let row = db.row(Access::Read, || query(db.sql.workflows.get.clone()).bind(id.as_uuid())).await?;
            rows::workflow(&row.ok_or_else(|| Error::not_found(Entity::Workflow, id))?)
        })
        .await
    }

    async fn find_workflow(&self, name: &WorkflowName) -> Result<Workflow> {
        let name = name.clone();
        self.call(|db| async move {
            let row =
                db.row(Access::Read, || query(db.sql.workflows.find.clone()).bind(name.as_str())).await?;
            rows::workflow(&row.ok_or_else(|| Error::not_found(Entity::Workflow, &name))?)
        })
        .await
    }

    async fn list_workflows(&self, page: PageRequest<WorkflowName>) -> Result<Page<Workflow, WorkflowName>> {
        self.call(|db| async move {
            let list = || {
                query(db.sql.workflows.list.clone()).bind(page.after.as_deref()).bind(fetch_limit(page.limit))
            };
            let rows = db.rows(Access::Read, list).await?;
            let workflows = rows.iter().map(rows::workflow).collect::<Result<_>>()?;
            Ok(Page::from_rows(workflows, page.limit, |workflow: &Workflow| workflow.name.clone()))
        })
        .await
    }

    async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        self.call(move |db| async move {
            let row =
                db.row(Access::Read, || query(db.sql.workflows.snapshot.clone()).bind(id.as_uuid())).await?;
            snapshot(&row.ok_or_else(|| Error::not_found(Entity::Snapshot, id))?)
        })
        .await
    }

    async fn delete_workflow(&self, id: WorkflowId) -> Result<()> {
        self.call(move |db| async move {
            let row =
                db.row(Access::Write, || query(db.sql.workflows.delete.clone()).bind(id.as_uuid())).await?;
            let row = row.ok_or_else(|| Error::not_found(Entity::Workflow, id))?;
            let row = Reader::new(&row, "workflows", id.as_uuid());
            match row.get("answer")? {
                "deleted" => Ok(()),
                _ => {
                    let run = RunId::from_uuid(row.get("run_id")?);
                    let status: &str = row.get("run_status")?;
                    Err(Error::conflict(format!("run {run} of workflow {id} is {status}"))
                        .with_hint("Cancel it, or wait until it has ended"))
                }
            }
        })
        .await
    }
}

async fn create(db: Arc<Inner>, new: NewWorkflow) -> Result<Workflow> {
    let (id, snapshot) = (WorkflowId::generate(), SnapshotId::generate());
    let hash = new.dag.content_hash();
    let create = || {
        query(db.sql.workflows.create.clone())
            .bind(id.as_uuid())
            .bind(new.name.as_str())
            .bind(new.description.as_deref())
            .bind(new.target.executor_type.as_str())
            .bind(new.target.job_name.as_str())
            .bind(new.target.region.as_str())
            .bind(new.target.project.as_str())
            .bind(new.target.params.as_ref().map(ork_state_api::Json::as_str))
            .bind(snapshot.as_uuid())
            .bind(hash.as_str())
            .bind(new.dag.to_json().as_str())
            .bind(db.now())
    };
    let row = db.row(Access::Write, create).await?;
    rows::workflow(&row.ok_or_else(|| Error::already_exists(Entity::Workflow, &new.name))?)
}

fn snapshot(row: &PgRow) -> Result<Snapshot> {
    let id: Uuid =
        row.try_get("id").map_err(|source| Error::internal("a row without id").with_source(source))?;
    let row = Reader::new(row, "workflow_snapshots", id);
    Ok(Snapshot {
        id: SnapshotId::from_uuid(id),
        workflow: WorkflowId::from_uuid(row.get("workflow_id")?),
        content_hash: row.get("content_hash")?,
        dag: Arc::new(dag(row)?),
        created_at: row.time("created_at")?,
    })
}

/// The DAG of a snapshot. What is wrong with it is not told by its text, which is a payload.
pub(crate) fn dag(row: Reader<'_>) -> Result<Dag> {
    Dag::from_json(row.get("tasks_json")?).map_err(|error| row.corrupt("tasks_json", error))
}
