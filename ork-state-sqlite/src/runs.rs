//! Runs of workflows.

use async_trait::async_trait;
use ork_state_api::{
    CreatedRun, Dag, Entity, Error, Json, ListRuns, NewRun, Page, Result, Run, RunId, RunKey, RunStatus,
    RunStore, SnapshotId, StartRun, TaskId, Timestamp,
};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::SqliteDatabase;
use crate::batch::{self, Texts};
use crate::error::Attempt;
use crate::rows::{self, Cells, bytes, hex, run_columns};
use crate::workflows::one_more;

#[async_trait]
impl RunStore for SqliteDatabase {
    async fn create_run(&self, new: NewRun) -> Result<CreatedRun> {
        let clock = self.clock();
        self.write(move |connection| Box::pin(async move { create(connection, &new, clock.now()).await }))
            .await
    }

    async fn get_run(&self, id: RunId) -> Result<Run> {
        self.read(move |connection| Box::pin(get(connection, id))).await
    }

    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run, RunKey>> {
        const ALL: &str = concat!(
            "SELECT ",
            run_columns!(),
            " FROM runs WHERE (created_at, id) < (?1, ?2) ORDER BY created_at DESC, id DESC LIMIT ?3"
        );
        const OF_WORKFLOW: &str = concat!(
            "SELECT ",
            run_columns!(),
            " FROM runs WHERE workflow_id = ?4 AND (created_at, id) < (?1, ?2)
             ORDER BY created_at DESC, id DESC LIMIT ?3"
        );
        self.read(move |connection| {
            Box::pin(async move {
                let limit = list.page.limit;
                // No run comes before the first page's key: no time is that late.
                let (created_at, id) = match list.page.after {
                    Some(key) => (key.created_at.as_micros(), bytes(key.id.as_uuid())),
                    None => (i64::MAX, Vec::new()),
                };
                let query = sqlx::query(if list.workflow.is_some() { OF_WORKFLOW } else { ALL });
                let query = query.bind(created_at).bind(id).bind(one_more(limit));
                let query = match list.workflow {
                    Some(workflow) => query.bind(bytes(workflow.as_uuid())),
                    None => query,
                };
                let found = query.fetch_all(connection).await?;
                let runs = found.iter().map(rows::run).collect::<Result<_>>()?;
                Ok(Page::from_rows(runs, limit, RunKey::of))
            })
        })
        .await
    }

    async fn start_run(&self, start: StartRun) -> Result<Run> {
        let id = start.run;
        // The DAG is read and made into rows before the write lock is taken: both can be long, and a snapshot never changes.
        let read_dag = start.dag.is_none();
        let (run, pinned) = self
            .read_one_state(move |connection| {
                Box::pin(async move {
                    let run = get(&mut *connection, id).await?;
                    let wanted = read_dag && run.status == RunStatus::Pending;
                    let dag = if wanted { Some(pinned_dag(connection, run.snapshot).await?) } else { None };
                    Ok((run, dag))
                })
            })
            .await?;
        let Some(dag) = start.dag.or(pinned).filter(|_| run.status == RunStatus::Pending) else {
            return already_started(run);
        };
        let rows = TaskRows::new(&dag).map_err(|fault| fault.into_error(self.location()))?;
        let clock = self.clock();
        self.write(move |connection| Box::pin(async move { begin(connection, id, rows, clock.now()).await }))
            .await
    }

    async fn cancel_run(&self, id: RunId) -> Result<Run> {
        let clock = self.clock();
        self.write(move |connection| Box::pin(async move { cancel(connection, id, clock.now()).await })).await
    }

    async fn pause_run(&self, id: RunId) -> Result<Run> {
        self.write(move |connection| Box::pin(pause(connection, id))).await
    }

    async fn resume_run(&self, id: RunId) -> Result<Run> {
        let clock = self.clock();
        self.write(move |connection| Box::pin(async move { resume(connection, id, clock.now()).await })).await
    }
}

/// Rows of a run that are in the queue. `tasks.ready_at` is the same value, by which they are found.
const LEAVE_QUEUE: &str = "DELETE FROM ready_tasks WHERE (ready_at, run_id, task_index) IN (
         SELECT ready_at, run_id, task_index FROM tasks WHERE run_id = ?1 AND ready_at IS NOT NULL)";

async fn get(connection: &mut SqliteConnection, id: RunId) -> Attempt<Run> {
    const GET: &str = concat!("SELECT ", run_columns!(), " FROM runs WHERE id = ?1");
    let row = sqlx::query(GET).bind(bytes(id.as_uuid())).fetch_optional(connection).await?;
    let row = row.ok_or_else(|| Error::not_found(Entity::Run, id))?;
    Ok(rows::run(&row)?)
}

async fn create(connection: &mut SqliteConnection, new: &NewRun, now: Timestamp) -> Attempt<CreatedRun> {
    const EXISTING: &str =
        concat!("SELECT ", run_columns!(), " FROM runs WHERE workflow_id = ?1 AND idempotency_key = ?2");
    const INSERT: &str = concat!(
        "INSERT INTO runs (id, workflow_id, snapshot_id, status, triggered_by, idempotency_key, created_at)
         SELECT ?1, id, current_snapshot_id, 'pending', ?3, ?4, ?5 FROM workflows WHERE id = ?2
         RETURNING ",
        run_columns!()
    );
    let workflow = bytes(new.workflow.as_uuid());
    let key = new.idempotency_key.as_ref().map(ToString::to_string);
    // There is one writer at a time, so what is not there now cannot come before the insert.
    if key.is_some() {
        let query = sqlx::query(EXISTING).bind(workflow.clone()).bind(key.clone());
        if let Some(row) = query.fetch_optional(&mut *connection).await? {
            return Ok(CreatedRun::Existing(rows::run(&row)?));
        }
    }
    let row = sqlx::query(INSERT)
        .bind(bytes(RunId::generate().as_uuid()))
        .bind(workflow)
        .bind(new.triggered_by.to_string())
        .bind(key)
        .bind(now.as_micros())
        .fetch_optional(connection)
        .await?;
    let row = row.ok_or_else(|| Error::not_found(Entity::Workflow, new.workflow))?;
    Ok(CreatedRun::New(rows::run(&row)?))
}

async fn pinned_dag(connection: &mut SqliteConnection, snapshot: SnapshotId) -> Attempt<Dag> {
    const GET: &str = "SELECT id, tasks_json FROM workflow_snapshots WHERE id = ?1";
    let row = sqlx::query(GET).bind(bytes(snapshot.as_uuid())).fetch_optional(connection).await?;
    let row = row.ok_or_else(|| {
        Error::corrupt("workflow_snapshots", snapshot, "id", "is missing, although a run was created with it")
    })?;
    Ok(rows::dag(Cells::new(&row, "workflow_snapshots"), "tasks_json")?)
}

/// The answer for a run that is not pending.
fn already_started(run: Run) -> Result<Run> {
    match run.status {
        RunStatus::Cancelled => {
            Err(Error::invalid_transition(Entity::Run, run.id, run.status, RunStatus::Running))
        }
        _ => Ok(run),
    }
}

/// A DAG as the rows of a run's tasks, ready to be bound.
struct TaskRows {
    total: usize,
    tasks: String,
    texts: Vec<u8>,
    edges: String,
}

impl TaskRows {
    fn new(dag: &Dag) -> Attempt<Self> {
        let mut texts = Texts::new();
        let mut tasks = Vec::with_capacity(dag.len());
        let mut edges = Vec::with_capacity(dag.len());
        for (index, task) in dag.tasks().iter().enumerate() {
            let depends_on = Value::from(
                task.depends_on.iter().map(|name| Value::from(name.as_str())).collect::<Vec<_>>(),
            );
            let [depends_at, depends_len] = texts.add(Some(&depends_on.to_string()));
            let [params_at, params_len] = texts.add(task.params.as_ref().map(Json::as_str));
            tasks.push(json!([
                hex(TaskId::generate().as_uuid()),
                task.name.as_str(),
                task.executor_type.as_str(),
                task.depends_on.len(),
                task.max_retries,
                task.timeout_seconds,
                depends_at,
                depends_len,
                params_at,
                params_len,
            ]));
            edges.push(Value::from(dag.dependents(index).to_vec()));
        }
        Ok(Self {
            total: dag.len(),
            tasks: batch::json(&tasks)?,
            texts: texts.into_blob(),
            edges: batch::json(&edges)?,
        })
    }
}

async fn begin(connection: &mut SqliteConnection, id: RunId, rows: TaskRows, now: Timestamp) -> Attempt<Run> {
    // An empty DAG is done. Whoever comes second finds the run no longer pending.
    const START: &str = concat!(
        "UPDATE runs SET status = iif(?2 = 0, 'success', 'running'), tasks_total = ?2, tasks_unfinished = ?2,
             started_at = ?3, finished_at = iif(?2 = 0, ?3, NULL)
         WHERE id = ?1 AND status = 'pending'
         RETURNING ",
        run_columns!()
    );
    const TASKS: &str = "INSERT INTO tasks (id, run_id, task_index, status, task_name, executor_type,
             unmet_dependencies, max_retries, timeout_seconds, depends_on, params, created_at, ready_at)
         SELECT unhex(value ->> 0), ?1, key, 'pending', value ->> 1, value ->> 2, value ->> 3, value ->> 4,
             value ->> 5,
             CAST(substr(?3, value ->> 6, value ->> 7) AS TEXT),
             CAST(substr(?3, value ->> 8, value ->> 9) AS TEXT),
             ?4, iif(value ->> 3 = 0, ?4, NULL)
         FROM json_each(?2)";
    const EDGES: &str = "INSERT INTO task_edges (run_id, task_index, dependent_index)
         SELECT ?1, dependency.key, dependent.value
         FROM json_each(?2) AS dependency JOIN json_each(dependency.value) AS dependent";
    const QUEUE: &str = "INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
         SELECT ready_at, run_id, task_index, id FROM tasks WHERE run_id = ?1 AND ready_at IS NOT NULL";
    let key = bytes(id.as_uuid());
    let total = i64::try_from(rows.total).unwrap_or(i64::MAX);
    let started = sqlx::query(START)
        .bind(key.clone())
        .bind(total)
        .bind(now.as_micros())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = started else {
        return Ok(already_started(get(connection, id).await?)?);
    };
    let run = rows::run(&row)?;
    if rows.total > 0 {
        sqlx::query(TASKS)
            .bind(key.clone())
            .bind(rows.tasks)
            .bind(rows.texts)
            .bind(now.as_micros())
            .persistent(false)
            .execute(&mut *connection)
            .await?;
        sqlx::query(EDGES)
            .bind(key.clone())
            .bind(rows.edges)
            .persistent(false)
            .execute(&mut *connection)
            .await?;
        sqlx::query(QUEUE).bind(key).execute(connection).await?;
    }
    Ok(run)
}

async fn cancel(connection: &mut SqliteConnection, id: RunId, now: Timestamp) -> Attempt<Run> {
    const CANCEL: &str = concat!(
        "UPDATE runs SET status = 'cancelled', tasks_unfinished = 0, finished_at = ?2
         WHERE id = ?1 AND status IN ('pending', 'running', 'paused')
         RETURNING ",
        run_columns!()
    );
    const LEASES: &str = "DELETE FROM task_leases WHERE task_id IN (SELECT id FROM tasks WHERE run_id = ?1)";
    const TASKS: &str =
        "UPDATE tasks SET status = 'cancelled', finished_at = ?2, ready_at = NULL, retry_at = NULL
         WHERE run_id = ?1 AND status IN ('pending', 'dispatched', 'running')";
    let key = bytes(id.as_uuid());
    let cancelled =
        sqlx::query(CANCEL).bind(key.clone()).bind(now.as_micros()).fetch_optional(&mut *connection).await?;
    let Some(row) = cancelled else {
        let run = get(connection, id).await?;
        return match run.status {
            RunStatus::Cancelled => Ok(run),
            from => Err(Error::invalid_transition(Entity::Run, id, from, RunStatus::Cancelled).into()),
        };
    };
    sqlx::query(LEAVE_QUEUE).bind(key.clone()).execute(&mut *connection).await?;
    sqlx::query(LEASES).bind(key.clone()).execute(&mut *connection).await?;
    sqlx::query(TASKS).bind(key).bind(now.as_micros()).execute(connection).await?;
    Ok(rows::run(&row)?)
}

async fn pause(connection: &mut SqliteConnection, id: RunId) -> Attempt<Run> {
    const PAUSE: &str = concat!(
        "UPDATE runs SET status = 'paused' WHERE id = ?1 AND status = 'running' RETURNING ",
        run_columns!()
    );
    const TASKS: &str = "UPDATE tasks SET ready_at = NULL WHERE run_id = ?1 AND ready_at IS NOT NULL";
    let key = bytes(id.as_uuid());
    let paused = sqlx::query(PAUSE).bind(key.clone()).fetch_optional(&mut *connection).await?;
    let Some(row) = paused else {
        return unless_already(get(connection, id).await?, RunStatus::Paused);
    };
    sqlx::query(LEAVE_QUEUE).bind(key.clone()).execute(&mut *connection).await?;
    sqlx::query(TASKS).bind(key).execute(connection).await?;
    Ok(rows::run(&row)?)
}

async fn resume(connection: &mut SqliteConnection, id: RunId, now: Timestamp) -> Attempt<Run> {
    const RESUME: &str = concat!(
        "UPDATE runs SET status = 'running' WHERE id = ?1 AND status = 'paused' RETURNING ",
        run_columns!()
    );
    // The scalar max of NULL is NULL: a task without a retry time is ready from now.
    const TASKS: &str = "UPDATE tasks SET ready_at = max(?2, coalesce(retry_at, ?2))
         WHERE run_id = ?1 AND status = 'pending' AND unmet_dependencies = 0";
    const QUEUE: &str = "INSERT OR REPLACE INTO ready_tasks (ready_at, run_id, task_index, task_id)
         SELECT ready_at, run_id, task_index, id FROM tasks WHERE run_id = ?1 AND ready_at IS NOT NULL";
    let key = bytes(id.as_uuid());
    let resumed = sqlx::query(RESUME).bind(key.clone()).fetch_optional(&mut *connection).await?;
    let Some(row) = resumed else {
        return unless_already(get(connection, id).await?, RunStatus::Running);
    };
    sqlx::query(TASKS).bind(key.clone()).bind(now.as_micros()).execute(&mut *connection).await?;
    sqlx::query(QUEUE).bind(key).execute(connection).await?;
    Ok(rows::run(&row)?)
}

/// A run that has the wanted status already is left as it is; one with any other cannot get it.
fn unless_already(run: Run, wanted: RunStatus) -> Attempt<Run> {
    if run.status == wanted {
        return Ok(run);
    }
    Err(Error::invalid_transition(Entity::Run, run.id, run.status, wanted).into())
}
