//! Runs and their state changes.

use async_trait::async_trait;
use ork_state_api::backend::RetryPlan;
use ork_state_api::{
    CreatedRun, Dag, Entity, Error, Json, ListRuns, NewRun, Page, Result, RetryRun, Run, RunFilter, RunId,
    RunKey, RunStatus, RunStore, SnapshotId, StartRun, TaskId, Timestamp,
};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::batch::{self, Texts};
use crate::counts::count_ended;
use crate::database::SqliteDatabase;
use crate::error::Attempt;
use crate::rows::{self, Cells, bytes, hex, one_more, run_columns, task_columns};

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
        self.read(move |connection| Box::pin(list_runs(connection, list))).await
    }

    async fn count_runs(&self, filter: RunFilter) -> Result<u64> {
        self.read(move |connection| Box::pin(count_runs(connection, filter))).await
    }

    async fn start_run(&self, start: StartRun) -> Result<Run> {
        let id = start.run;
        // The DAG is read and converted to rows before the write lock is taken. Both can take long,
        // and a snapshot never changes.
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

    async fn retry_run(&self, retry: RetryRun) -> Result<Run> {
        let clock = self.clock();
        self.write(move |connection| {
            Box::pin(async move { set_going_again(connection, &retry, clock.now()).await })
        })
        .await
    }
}

/// The condition of every list of runs. Parameters 1 and 2 are the key to start after, and 3 is the
/// limit. 4 and 5 are the times, 6 is the trigger, 7 the statuses, 8 the workflow.
macro_rules! matching {
    () => {
        "(created_at, id) < (?1, ?2) AND created_at >= ?4 AND created_at < ?5
         AND (?6 IS NULL OR triggered_by = ?6)"
    };
}

/// Newest first, by the index on creation times.
pub(crate) const LIST: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs WHERE ",
    matching!(),
    " ORDER BY created_at DESC, id DESC LIMIT ?3"
);

/// By the index on the workflow's runs.
pub(crate) const LIST_OF_WORKFLOW: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs WHERE workflow_id = ?8 AND ",
    matching!(),
    " AND (?7 IS NULL OR status IN (SELECT value FROM json_each(?7)))
     ORDER BY created_at DESC, id DESC LIMIT ?3"
);

/// Reads one range of the index per status, no longer than the page, and merges them.
pub(crate) const LIST_OF_STATUSES: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs WHERE rowid IN (
         SELECT first.rowid FROM json_each(?7) AS asked CROSS JOIN runs AS first
         WHERE first.rowid IN (
             SELECT rowid FROM runs WHERE status = asked.value AND ",
    matching!(),
    "        ORDER BY created_at DESC, id DESC LIMIT ?3))
     ORDER BY created_at DESC, id DESC LIMIT ?3"
);

async fn list_runs(connection: &mut SqliteConnection, list: ListRuns) -> Attempt<Page<Run, RunKey>> {
    let ListRuns { filter, page, .. } = list;
    // Any run comes after this key, because no time is that late.
    let (created_at, id) = match page.after {
        Some(key) => (key.created_at.as_micros(), bytes(key.id.as_uuid())),
        None => (i64::MAX, Vec::new()),
    };
    let found = sqlx::query(match (filter.workflow, &filter.statuses) {
        (Some(_), _) => LIST_OF_WORKFLOW,
        (None, Some(_)) => LIST_OF_STATUSES,
        (None, None) => LIST,
    })
    .bind(created_at)
    .bind(id)
    .bind(one_more(page.limit))
    .bind(filter.created_from.map_or(i64::MIN, Timestamp::as_micros))
    .bind(filter.created_before.map_or(i64::MAX, Timestamp::as_micros))
    .bind(filter.triggered_by.map(String::from))
    .bind(batch::words(filter.statuses, RunStatus::as_str)?)
    .bind(filter.workflow.map(|workflow| bytes(workflow.as_uuid())))
    .fetch_all(connection)
    .await?;
    let runs = found.iter().map(rows::run).collect::<Result<_>>()?;
    Ok(Page::from_rows(runs, page.limit, RunKey::of))
}

async fn count_runs(connection: &mut SqliteConnection, filter: RunFilter) -> Attempt<u64> {
    const COUNT: &str = "SELECT count(*) FROM runs WHERE created_at >= ?1 AND created_at < ?2
         AND (?3 IS NULL OR triggered_by = ?3)";
    const COUNT_OF_WORKFLOW: &str = "SELECT count(*) FROM runs
         WHERE workflow_id = ?5 AND created_at >= ?1 AND created_at < ?2 AND (?3 IS NULL OR triggered_by = ?3)
             AND (?4 IS NULL OR +status IN (SELECT value FROM json_each(?4)))";
    const COUNT_OF_STATUSES: &str = "SELECT count(*) FROM runs
         WHERE status IN (SELECT value FROM json_each(?4)) AND created_at >= ?1 AND created_at < ?2
             AND (?3 IS NULL OR triggered_by = ?3)";
    let number: i64 = sqlx::query_scalar(match (filter.workflow, &filter.statuses) {
        (Some(_), _) => COUNT_OF_WORKFLOW,
        (None, Some(_)) => COUNT_OF_STATUSES,
        (None, None) => COUNT,
    })
    .bind(filter.created_from.map_or(i64::MIN, Timestamp::as_micros))
    .bind(filter.created_before.map_or(i64::MAX, Timestamp::as_micros))
    .bind(filter.triggered_by.map(String::from))
    .bind(batch::words(filter.statuses, RunStatus::as_str)?)
    .bind(filter.workflow.map(|workflow| bytes(workflow.as_uuid())))
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(number).unwrap_or(0))
}

/// Removes a run's rows from the queue. They are found by `tasks.ready_at`, which has the same
/// value.
const LEAVE_QUEUE: &str = "DELETE FROM ready_tasks WHERE (ready_at, run_id, task_index) IN (
         SELECT ready_at, run_id, task_index FROM tasks WHERE run_id = ?1 AND ready_at IS NOT NULL)";

/// Puts a run's tasks into the queue at their `ready_at`.
const ENTER_QUEUE: &str = "INSERT OR REPLACE INTO ready_tasks (ready_at, run_id, task_index, task_id)
     SELECT ready_at, run_id, task_index, id FROM tasks WHERE run_id = ?1 AND ready_at IS NOT NULL";

async fn get(connection: &mut SqliteConnection, id: RunId) -> Attempt<Run> {
    const GET: &str = concat!("SELECT ", run_columns!(), " FROM runs WHERE id = ?1");
    let row = sqlx::query(GET).bind(bytes(id.as_uuid())).fetch_optional(connection).await?;
    let row = row.ok_or_else(|| Error::not_found(Entity::Run, id))?;
    Ok(rows::run(&row)?)
}

pub(crate) async fn create(
    connection: &mut SqliteConnection,
    new: &NewRun,
    now: Timestamp,
) -> Attempt<CreatedRun> {
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
    // There is one writer at a time. So a run that is missing now cannot appear before the insert.
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
    // A run with an empty DAG has succeeded at once. A second caller finds the run no longer
    // pending.
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
        sqlx::query(ENTER_QUEUE).bind(key).execute(connection).await?;
    } else {
        count_ended(connection, &[Value::from(hex(id.as_uuid()))], 1).await?;
    }
    Ok(run)
}

async fn cancel(connection: &mut SqliteConnection, id: RunId, now: Timestamp) -> Attempt<Run> {
    const CANCEL: &str = concat!(
        "UPDATE runs SET status = 'cancelled', tasks_cancelled = tasks_cancelled + tasks_unfinished,
             tasks_unfinished = 0, finished_at = ?2
         WHERE id = ?1 AND status IN ('pending', 'running', 'paused')
         RETURNING ",
        run_columns!()
    );
    const LEASES: &str = "DELETE FROM task_leases WHERE task_id IN (SELECT id FROM tasks WHERE run_id = ?1)";
    const TIMEOUTS: &str =
        "DELETE FROM task_timeouts WHERE task_id IN (SELECT id FROM tasks WHERE run_id = ?1)";
    const JOBS: &str =
        "UPDATE deferred_jobs SET status = 'cancelled', finished_at = ?2, poll_at = NULL, owner = NULL
         WHERE task_id IN (SELECT id FROM tasks WHERE run_id = ?1 AND open_jobs > 0) AND poll_at IS NOT NULL";
    const TASKS: &str =
        "UPDATE tasks SET status = 'cancelled', finished_at = ?2, ready_at = NULL, retry_at = NULL,
             open_jobs = 0
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
    sqlx::query(TIMEOUTS).bind(key.clone()).execute(&mut *connection).await?;
    sqlx::query(JOBS).bind(key.clone()).bind(now.as_micros()).execute(&mut *connection).await?;
    sqlx::query(TASKS).bind(key).bind(now.as_micros()).execute(&mut *connection).await?;
    count_ended(connection, &[Value::from(hex(id.as_uuid()))], 1).await?;
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
    // The scalar max of NULL is NULL. A task without a retry time is ready from now.
    const TASKS: &str = "UPDATE tasks SET ready_at = max(?2, coalesce(retry_at, ?2))
         WHERE run_id = ?1 AND status = 'pending' AND unmet_dependencies = 0";
    let key = bytes(id.as_uuid());
    let resumed = sqlx::query(RESUME).bind(key.clone()).fetch_optional(&mut *connection).await?;
    let Some(row) = resumed else {
        return unless_already(get(connection, id).await?, RunStatus::Running);
    };
    sqlx::query(TASKS).bind(key.clone()).bind(now.as_micros()).execute(&mut *connection).await?;
    sqlx::query(ENTER_QUEUE).bind(key).execute(connection).await?;
    Ok(rows::run(&row)?)
}

/// Restarts an ended run (rule R6).
async fn set_going_again(
    connection: &mut SqliteConnection,
    retry: &RetryRun,
    now: Timestamp,
) -> Attempt<Run> {
    const GET_TASKS: &str = concat!(
        "SELECT ",
        task_columns!(),
        " FROM tasks AS t LEFT JOIN task_leases AS l ON l.task_id = t.id WHERE t.run_id = ?1 ORDER BY t.task_index"
    );
    const RESET: &str = "UPDATE tasks SET
             status = 'pending',
             unmet_dependencies = new.value ->> 1,
             ready_at = iif(new.value ->> 1 = 0, ?3, NULL),
             attempts = 0,
             open_jobs = 0,
             execution_name = NULL,
             error = NULL,
             output = NULL,
             retry_at = NULL,
             dispatched_at = NULL,
             started_at = NULL,
             finished_at = NULL
         FROM json_each(?2) AS new
         WHERE tasks.run_id = ?1 AND tasks.task_index = new.value ->> 0";
    const STORE: &str = "UPDATE runs SET status = ?2, error = ?3, tasks_unfinished = ?4, tasks_failed = ?5, tasks_cancelled = ?6,
             finished_at = NULL
         WHERE id = ?1";
    let key = bytes(retry.run.as_uuid());
    let mut run = get(connection, retry.run).await?;
    let found = sqlx::query(GET_TASKS).bind(key.clone()).fetch_all(&mut *connection).await?;
    let tasks = found.iter().map(rows::task).collect::<Result<Vec<_>>>()?;
    let plan = RetryPlan::new(retry, &run, &tasks)?;
    count_ended(connection, &[Value::from(hex(retry.run.as_uuid()))], -1).await?;
    plan.apply_to(&mut run);
    let rows: Vec<Value> = plan.again.iter().map(|(index, unmet)| json!([index, unmet])).collect();
    sqlx::query(RESET)
        .bind(key.clone())
        .bind(batch::json(&rows)?)
        .bind(now.as_micros())
        .execute(&mut *connection)
        .await?;
    sqlx::query(STORE)
        .bind(key.clone())
        .bind(run.status.as_str())
        .bind(run.error.as_ref().map(ToString::to_string))
        .bind(run.tasks.unfinished)
        .bind(run.tasks.failed)
        .bind(run.tasks.cancelled)
        .execute(&mut *connection)
        .await?;
    sqlx::query(ENTER_QUEUE).bind(key).execute(connection).await?;
    Ok(run)
}

/// A run that already has the wanted status is left as it is. With any other status, it cannot get
/// it.
fn unless_already(run: Run, wanted: RunStatus) -> Attempt<Run> {
    if run.status == wanted {
        return Ok(run);
    }
    Err(Error::invalid_transition(Entity::Run, run.id, run.status, wanted).into())
}

/// The statements that delete runs with everything that belongs to them, in this order. The last
/// two delete the tasks and the runs themselves. A query gives the ids of the runs. It has one
/// parameter, `?1`. The runs must already be subtracted from the counts. The chunks of their logs
/// are left to [`free_deleted_logs`](SqliteDatabase::free_deleted_logs).
macro_rules! delete_runs_sql {
    ($runs:literal) => {
        [
            concat!(
                "INSERT INTO deleted_logs (task_id)
                 SELECT t.id FROM tasks AS t
                 WHERE t.run_id IN (",
                $runs,
                ") AND EXISTS (SELECT 1 FROM task_log_chunks AS c WHERE c.task_id = t.id)"
            ),
            concat!(
                "DELETE FROM task_logs WHERE task_id IN (SELECT id FROM tasks WHERE run_id IN (",
                $runs,
                "))"
            ),
            concat!(
                "DELETE FROM deferred_jobs WHERE task_id IN (SELECT id FROM tasks WHERE run_id IN (",
                $runs,
                "))"
            ),
            concat!(
                "DELETE FROM task_leases WHERE task_id IN (SELECT id FROM tasks WHERE run_id IN (",
                $runs,
                "))"
            ),
            concat!(
                "DELETE FROM task_timeouts WHERE task_id IN (SELECT id FROM tasks WHERE run_id IN (",
                $runs,
                "))"
            ),
            concat!(
                "DELETE FROM ready_tasks WHERE (ready_at, run_id, task_index) IN (
                     SELECT ready_at, run_id, task_index FROM tasks WHERE run_id IN (",
                $runs,
                ") AND ready_at IS NOT NULL)"
            ),
            concat!("DELETE FROM task_edges WHERE run_id IN (", $runs, ")"),
            concat!("DELETE FROM tasks WHERE run_id IN (", $runs, ")"),
            concat!("DELETE FROM runs WHERE id IN (", $runs, ")"),
        ]
    };
}
pub(crate) use delete_runs_sql;
