//! Workflows and the snapshots of their DAGs.

use std::sync::Arc;

use async_trait::async_trait;
use ork_state_api::backend::has_live_run;
use ork_state_api::{
    Dag, Entity, Error, ListWorkflows, NewWorkflow, Page, Result, RunId, Snapshot, SnapshotId,
    UpdateWorkflow, Workflow, WorkflowFilter, WorkflowId, WorkflowName, WorkflowStore,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::core::Core;
use crate::database::PostgresDatabase;
use crate::error::Access;
use crate::logs;
use crate::rows::{self, Reader, fetch_limit, number};
use crate::statement::Statement;

#[async_trait]
impl WorkflowStore for PostgresDatabase {
    async fn create_workflow(&self, new: NewWorkflow) -> Result<Workflow> {
        self.call(|db| create(db, new)).await
    }

    async fn get_workflow(&self, id: WorkflowId) -> Result<Workflow> {
        const GET: Statement = Statement::new("SELECT {workflow} FROM {schema}.workflows w WHERE w.id = $1");
        self.call(move |db| async move {
            let row = db.row(Access::Read, || db.query(GET).bind(id.as_uuid())).await?;
            rows::workflow(&row.ok_or_else(|| Error::not_found(Entity::Workflow, id))?)
        })
        .await
    }

    async fn find_workflow(&self, name: &WorkflowName) -> Result<Workflow> {
        const FIND: Statement =
            Statement::new("SELECT {workflow} FROM {schema}.workflows w WHERE w.name = $1");
        let name = name.clone();
        self.call(|db| async move {
            let row = db.row(Access::Read, || db.query(FIND).bind(name.as_str())).await?;
            rows::workflow(&row.ok_or_else(|| Error::not_found(Entity::Workflow, &name))?)
        })
        .await
    }

    async fn list_workflows(&self, list: ListWorkflows) -> Result<Page<Workflow, WorkflowName>> {
        // The column's collation is \"C\", so the order is that of the bytes. No name is empty.
        const LIST: Statement = Statement::new(
            "SELECT {workflow} FROM {schema}.workflows w
             WHERE w.name > coalesce($1, '')
             ORDER BY w.name
             LIMIT $2",
        );
        self.call(|db| async move {
            if list.filter.name_contains.is_some() {
                return search(&db, list).await;
            }
            let page = list.page;
            let list = || db.query(LIST).bind(page.after.as_deref()).bind(fetch_limit(page.limit));
            let rows = db.rows(Access::Read, list).await?;
            let workflows = rows.iter().map(rows::workflow).collect::<Result<_>>()?;
            Ok(Page::from_rows(workflows, page.limit, |workflow: &Workflow| workflow.name.clone()))
        })
        .await
    }

    async fn count_workflows(&self, filter: WorkflowFilter) -> Result<u64> {
        const COUNT: Statement = Statement::new("SELECT count(*) FROM {schema}.workflows");
        self.call(|db| async move {
            if filter.name_contains.is_some() {
                return Ok(matching_names(&db, &filter, None, usize::MAX).await?.len() as u64);
            }
            number(db.row(Access::Read, || db.query(COUNT)).await?)
        })
        .await
    }

    async fn update_workflow(&self, update: UpdateWorkflow) -> Result<Workflow> {
        self.call(|db| update_workflow(db, update)).await
    }

    async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        const SNAPSHOT: Statement = Statement::new(
            "SELECT s.id, s.workflow_id, s.content_hash, s.tasks_json::text AS tasks_json, s.created_at
             FROM {schema}.workflow_snapshots s
             WHERE s.id = $1",
        );
        self.call(move |db| async move {
            let row = db.row(Access::Read, || db.query(SNAPSHOT).bind(id.as_uuid())).await?;
            snapshot(&row.ok_or_else(|| Error::not_found(Entity::Snapshot, id))?)
        })
        .await
    }

    async fn delete_workflow(&self, id: WorkflowId) -> Result<()> {
        const DELETE: Statement = Statement::new(
            "SELECT answer, run_id, run_status, {schema}.ork_free_logs() AS logs_left
             FROM {schema}.ork_delete_workflow($1)",
        );
        self.call(move |db| async move {
            let row = db.row(Access::Write, || db.query(DELETE).bind(id.as_uuid())).await?;
            let row = row.ok_or_else(|| Error::not_found(Entity::Workflow, id))?;
            let row = Reader::new(&row, "workflows", id.as_uuid());
            match row.get("answer")? {
                "deleted" => {
                    logs::free(&db, row.get("logs_left")?).await;
                    Ok(())
                }
                _ => {
                    let run = RunId::from_uuid(row.get("run_id")?);
                    let status: &str = row.get("run_status")?;
                    Err(has_live_run(id, run, status))
                }
            }
        })
        .await
    }
}

/// How many names are checked at a time.
const NAMES_AT_ONCE: i64 = 10_000;

/// The matching names after this one, in order, up to a limit. They are compared here, because no
/// function of the server follows the rule.
async fn matching_names(
    db: &Core,
    filter: &WorkflowFilter,
    after: Option<WorkflowName>,
    limit: usize,
) -> Result<Vec<WorkflowName>> {
    const NAMES: Statement = Statement::new(
        "SELECT w.id, w.name FROM {schema}.workflows w
         WHERE w.name > coalesce($1, '')
         ORDER BY w.name
         LIMIT $2",
    );
    let (mut found, mut after) = (Vec::new(), after);
    loop {
        let names = || db.query(NAMES).bind(after.as_deref()).bind(NAMES_AT_ONCE);
        let rows = db.rows(Access::Read, names).await?;
        for row in &rows {
            let name: WorkflowName = Reader::of(row, "workflows")?.text("name")?;
            if filter.matches(&name) {
                found.push(name.clone());
                if found.len() == limit {
                    return Ok(found);
                }
            }
            after = Some(name);
        }
        if rows.len() < usize::try_from(NAMES_AT_ONCE).unwrap_or(usize::MAX) {
            return Ok(found);
        }
    }
}

async fn search(db: &Core, list: ListWorkflows) -> Result<Page<Workflow, WorkflowName>> {
    const LIST_NAMED: Statement =
        Statement::new("SELECT {workflow} FROM {schema}.workflows w WHERE w.name = ANY ($1) ORDER BY w.name");
    let limit = list.page.limit;
    let names = matching_names(db, &list.filter, list.page.after, limit.get() + 1).await?;
    // The page's key comes from the names, because a workflow may be deleted before its row is
    // read.
    let names = Page::from_rows(names, limit, WorkflowName::clone);
    let wanted: Vec<String> = names.items.iter().map(ToString::to_string).collect();
    let rows = db.rows(Access::Read, || db.query(LIST_NAMED).bind(wanted.clone())).await?;
    Ok(Page::new(rows.iter().map(rows::workflow).collect::<Result<_>>()?, names.next))
}

async fn update_workflow(db: Arc<Core>, update: UpdateWorkflow) -> Result<Workflow> {
    const UPDATE: Statement = Statement::new(
        "SELECT {workflow} FROM {schema}.ork_update_workflow($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) w",
    );
    let snapshot = SnapshotId::generate();
    let hash = update.dag.as_ref().map(Dag::content_hash);
    let statement = || {
        let target = update.target.as_ref();
        db.query(UPDATE)
            .bind(update.id.as_uuid())
            .bind(update.description.is_some())
            .bind(update.description.as_ref().and_then(|description| description.as_deref()))
            .bind(target.is_some())
            .bind(target.map(|target| target.executor_type.as_str()))
            .bind(target.map(|target| target.job_name.as_str()))
            .bind(target.map(|target| target.region.as_str()))
            .bind(target.map(|target| target.project.as_str()))
            .bind(target.and_then(|target| target.params.as_ref()).map(ork_state_api::Json::as_str))
            .bind(snapshot.as_uuid())
            .bind(hash.as_deref())
            .bind(update.dag.as_ref().map(|dag| dag.to_json().as_str()))
            .bind(db.now())
    };
    let row = db.row(Access::Write, statement).await?;
    rows::workflow(&row.ok_or_else(|| Error::not_found(Entity::Workflow, update.id))?)
}

async fn create(db: Arc<Core>, new: NewWorkflow) -> Result<Workflow> {
    // The two rows refer to each other. Foreign keys are checked at the end of the statement.
    const CREATE: Statement = Statement::new(
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
         SELECT {workflow} FROM w",
    );
    let (id, snapshot) = (WorkflowId::generate(), SnapshotId::generate());
    let hash = new.dag.content_hash();
    let create = || {
        db.query(CREATE)
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
    Ok(Snapshot::from_stored(
        SnapshotId::from_uuid(id),
        WorkflowId::from_uuid(row.get("workflow_id")?),
        row.get("content_hash")?,
        dag(row)?,
        row.time("created_at")?,
    ))
}

/// The DAG of a snapshot. An error does not quote its text, which is a payload.
pub(crate) fn dag(row: Reader<'_>) -> Result<Dag> {
    Dag::from_json(row.get("tasks_json")?).map_err(|error| row.corrupt("tasks_json", error))
}
