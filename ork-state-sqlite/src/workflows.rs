//! Workflows and the snapshots of their DAGs.

use async_trait::async_trait;
use ork_state_api::backend::has_live_run;
use ork_state_api::{
    Dag, Entity, Error, ListWorkflows, NewWorkflow, Page, Result, RunId, Snapshot, SnapshotId, Timestamp,
    UpdateWorkflow, Workflow, WorkflowFilter, WorkflowId, WorkflowName, WorkflowStore,
};
use serde_json::Value;
use sqlx::sqlite::SqliteConnection;

use crate::batch;
use crate::counts::count_ended_sql;
use crate::database::SqliteDatabase;
use crate::error::Attempt;
use crate::rows::{self, Cells, bytes, one_more, workflow_columns};
use crate::runs::delete_runs_sql;

#[async_trait]
impl WorkflowStore for SqliteDatabase {
    async fn create_workflow(&self, new: NewWorkflow) -> Result<Workflow> {
        let clock = self.clock();
        // Done before the write lock is taken, because a DAG can be long.
        let stored = StoredDag::new(&new.dag);
        self.write(move |connection| {
            Box::pin(async move {
                let workflow = Workflow::new(&new, SnapshotId::generate(), clock.now());
                insert(connection, &workflow).await?;
                insert_snapshot(connection, &workflow, stored, workflow.created_at).await?;
                Ok(workflow)
            })
        })
        .await
    }

    async fn get_workflow(&self, id: WorkflowId) -> Result<Workflow> {
        self.read(move |connection| Box::pin(get(connection, id))).await
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

    async fn list_workflows(&self, list: ListWorkflows) -> Result<Page<Workflow, WorkflowName>> {
        self.read_one_state(move |connection| Box::pin(list_workflows(connection, list))).await
    }

    async fn count_workflows(&self, filter: WorkflowFilter) -> Result<u64> {
        const COUNT: &str = "SELECT count(*) FROM workflows";
        self.read_one_state(move |connection| {
            Box::pin(async move {
                if filter.name_contains.is_none() {
                    let number: i64 = sqlx::query_scalar(COUNT).fetch_one(connection).await?;
                    return Ok(u64::try_from(number).unwrap_or(0));
                }
                Ok(names(connection, &filter, String::new(), usize::MAX).await?.len() as u64)
            })
        })
        .await
    }

    async fn update_workflow(&self, update: UpdateWorkflow) -> Result<Workflow> {
        let clock = self.clock();
        let stored = update.dag.as_ref().map(StoredDag::new);
        self.write(move |connection| {
            Box::pin(async move { change(connection, update, stored, clock.now()).await })
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
        self.write(move |connection| Box::pin(delete(connection, id))).await?;
        self.free_deleted_logs().await;
        Ok(())
    }
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

/// A DAG as it is stored.
struct StoredDag {
    content_hash: String,
    tasks_json: String,
}

impl StoredDag {
    fn new(dag: &Dag) -> Self {
        Self { content_hash: dag.content_hash(), tasks_json: dag.to_json().to_string() }
    }
}

async fn insert_snapshot(
    connection: &mut SqliteConnection,
    workflow: &Workflow,
    dag: StoredDag,
    now: Timestamp,
) -> Attempt<()> {
    const INSERT: &str =
        "INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5)";
    let keep_prepared = batch::is_small(dag.tasks_json.len());
    sqlx::query(INSERT)
        .bind(bytes(workflow.snapshot.as_uuid()))
        .bind(bytes(workflow.id.as_uuid()))
        .bind(dag.content_hash)
        .bind(dag.tasks_json)
        .bind(now.as_micros())
        .persistent(keep_prepared)
        .execute(connection)
        .await?;
    Ok(())
}

async fn get(connection: &mut SqliteConnection, id: WorkflowId) -> Attempt<Workflow> {
    const GET: &str = concat!("SELECT ", workflow_columns!(), " FROM workflows WHERE id = ?1");
    let row = sqlx::query(GET).bind(bytes(id.as_uuid())).fetch_optional(connection).await?;
    let row = row.ok_or_else(|| Error::not_found(Entity::Workflow, id))?;
    Ok(rows::workflow(&row)?)
}

/// Fails if there is no such workflow.
pub(crate) async fn require(connection: &mut SqliteConnection, id: WorkflowId) -> Attempt<()> {
    const EXISTS: &str = "SELECT 1 FROM workflows WHERE id = ?1";
    let found: Option<i64> =
        sqlx::query_scalar(EXISTS).bind(bytes(id.as_uuid())).fetch_optional(connection).await?;
    match found {
        Some(_) => Ok(()),
        None => Err(Error::not_found(Entity::Workflow, id).into()),
    }
}

async fn list_workflows(
    connection: &mut SqliteConnection,
    list: ListWorkflows,
) -> Attempt<Page<Workflow, WorkflowName>> {
    // Text compares by its UTF-8 bytes, because the column has SQLite's default collation. No name
    // is empty.
    const LIST: &str =
        concat!("SELECT ", workflow_columns!(), " FROM workflows WHERE name > ?1 ORDER BY name LIMIT ?2");
    const NAMED: &str = concat!(
        "SELECT ",
        workflow_columns!(),
        " FROM workflows WHERE name IN (SELECT value FROM json_each(?1)) ORDER BY name"
    );
    let ListWorkflows { filter, page, .. } = list;
    let after = page.after.map(String::from).unwrap_or_default();
    let found = if filter.name_contains.is_none() {
        sqlx::query(LIST).bind(after).bind(one_more(page.limit)).fetch_all(connection).await?
    } else {
        let names = names(connection, &filter, after, page.limit.get().saturating_add(1)).await?;
        let names: Vec<Value> = names.into_iter().map(Value::from).collect();
        batch::query(NAMED, &names)?.fetch_all(connection).await?
    };
    let workflows = found.iter().map(rows::workflow).collect::<Result<_>>()?;
    Ok(Page::from_rows(workflows, page.limit, |workflow: &Workflow| workflow.name.clone()))
}

/// The first names after this one that match the filter. They are compared here, because Unicode's
/// lower case is not SQLite's. They are read from their index, a page at a time.
async fn names(
    connection: &mut SqliteConnection,
    filter: &WorkflowFilter,
    mut after: String,
    wanted: usize,
) -> Attempt<Vec<String>> {
    const NAMES: &str = "SELECT name FROM workflows WHERE name > ?1 ORDER BY name LIMIT ?2";
    const PAGE: usize = 1000;
    let mut found = Vec::new();
    loop {
        let page: Vec<String> =
            sqlx::query_scalar(NAMES).bind(after).bind(PAGE as i64).fetch_all(&mut *connection).await?;
        let last = page.last().filter(|_| page.len() == PAGE).cloned();
        found.extend(page.into_iter().filter(|name| filter.matches(name)));
        match last {
            Some(last) if found.len() < wanted => after = last,
            _ => {
                found.truncate(wanted);
                return Ok(found);
            }
        }
    }
}

/// Replaces the given fields of a workflow (rule W2).
async fn change(
    connection: &mut SqliteConnection,
    update: UpdateWorkflow,
    dag: Option<StoredDag>,
    now: Timestamp,
) -> Attempt<Workflow> {
    const SAME: &str = "SELECT id FROM workflow_snapshots WHERE workflow_id = ?1 AND content_hash = ?2";
    const STORE: &str =
        "UPDATE workflows SET description = ?2, executor_type = ?3, job_name = ?4, region = ?5, project = ?6,
             task_params = ?7, current_snapshot_id = ?8, updated_at = ?9
         WHERE id = ?1";
    let mut workflow = get(connection, update.id).await?;
    if let Some(dag) = dag {
        let key = bytes(workflow.id.as_uuid());
        let same = sqlx::query(SAME).bind(key).bind(dag.content_hash.clone());
        match same.fetch_optional(&mut *connection).await? {
            Some(row) => {
                let id = Cells::new(&row, "workflow_snapshots").uuid("id")?;
                workflow.snapshot = SnapshotId::from_uuid(id);
            }
            None => {
                workflow.snapshot = SnapshotId::generate();
                insert_snapshot(connection, &workflow, dag, now).await?;
            }
        }
    }
    if let Some(description) = update.description {
        workflow.description = description;
    }
    if let Some(target) = update.target {
        workflow.target = target;
    }
    workflow.updated_at = now;
    let target = &workflow.target;
    sqlx::query(STORE)
        .bind(bytes(workflow.id.as_uuid()))
        .bind(workflow.description.as_ref().map(ToString::to_string))
        .bind(target.executor_type.to_string())
        .bind(target.job_name.to_string())
        .bind(target.region.to_string())
        .bind(target.project.to_string())
        .bind(target.params.as_ref().map(ToString::to_string))
        .bind(bytes(workflow.snapshot.as_uuid()))
        .bind(now.as_micros())
        .execute(connection)
        .await?;
    Ok(workflow)
}

/// Deletes a workflow and everything that depends on it, if all its runs have ended.
async fn delete(connection: &mut SqliteConnection, id: WorkflowId) -> Attempt<()> {
    const LIVE_RUN: &str = "SELECT id, status FROM runs
         WHERE workflow_id = ?1 AND status NOT IN ('success', 'failed', 'cancelled')
         ORDER BY created_at, id LIMIT 1";
    const COUNT: &str = count_ended_sql!("SELECT id FROM runs WHERE workflow_id = ?1");
    const DELETE_RUNS: [&str; 9] = delete_runs_sql!("SELECT id FROM runs WHERE workflow_id = ?1");
    const DELETES: [&str; 2] =
        ["DELETE FROM workflow_snapshots WHERE workflow_id = ?1", "DELETE FROM workflows WHERE id = ?1"];
    require(connection, id).await?;
    let key = bytes(id.as_uuid());
    if let Some(row) = sqlx::query(LIVE_RUN).bind(key.clone()).fetch_optional(&mut *connection).await? {
        let cells = Cells::new(&row, "runs");
        let (run, status) = (RunId::from_uuid(cells.uuid("id")?), cells.required::<String>("status")?);
        return Err(has_live_run(id, run, status).into());
    }
    sqlx::query(COUNT).bind(key.clone()).bind(-1_i64).execute(&mut *connection).await?;
    for delete in DELETE_RUNS.into_iter().chain(DELETES) {
        sqlx::query(delete).bind(key.clone()).execute(&mut *connection).await?;
    }
    Ok(())
}
