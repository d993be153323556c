//! The claim: leases ready tasks to one claimer.

use std::collections::{BTreeMap, HashMap};

use ork_state_api::{
    ClaimTasks, ClaimedTask, DependencyOutputs, Json, Lease, Result, RunId, Task, TaskName, TaskStatus,
    Timestamp, Token, Workflow, WorkflowId,
};
use serde_json::Value;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::batch;
use crate::error::Attempt;
use crate::rows::{self, Cells, hex, task_columns, workflow_columns};

/// Takes the first ready tasks. All of it is one transaction that holds the write lock, so nobody
/// else takes the same tasks.
pub(crate) async fn claim(
    connection: &mut SqliteConnection,
    asked: &ClaimTasks,
    now: Timestamp,
) -> Attempt<Vec<ClaimedTask>> {
    let expires_at = now.saturating_add(asked.lease.get());
    let mut taken = Vec::new();
    // Another round replaces the tasks that were skipped because they cannot be read (rule G8).
    while taken.len() < asked.limit.get() {
        let wanted = asked.limit.get() - taken.len();
        let queue = first_ready(connection, wanted, now).await?;
        let Some(last) = queue.last() else { break };
        leave_queue(connection, last).await?;
        let seen = queue.len();
        let tasks: Vec<Ready> = queue.iter().filter_map(|row| Ready::from_row(row).ok()).collect();
        let workflows = workflows(connection, &tasks).await?;
        let outputs = match asked.dependency_outputs {
            DependencyOutputs::Omit => None,
            DependencyOutputs::Include => Some(dependency_outputs(connection, &tasks).await?),
        };
        for task in tasks {
            taken.extend(task.claimed(asked, &workflows, outputs.as_ref(), now, expires_at));
        }
        if seen < wanted {
            break;
        }
    }
    if !taken.is_empty() {
        let rows: Vec<Value> = taken.iter().map(|(row, _)| Value::from(*row)).collect();
        dispatch(connection, &rows, now).await?;
        lease(connection, &rows, asked, expires_at).await?;
    }
    Ok(taken.into_iter().map(|(_, task)| task).collect())
}

/// The beginning of the queue, with the tasks. A row whose task is gone appears too, without a
/// task.
async fn first_ready(
    connection: &mut SqliteConnection,
    wanted: usize,
    now: Timestamp,
) -> Attempt<Vec<SqliteRow>> {
    sqlx::query(FIRST_READY)
        .bind(now.as_micros())
        .bind(i64::try_from(wanted).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await
        .map_err(Into::into)
}

/// Reads the queue's key from its beginning up to now, and each task by its id. The cost does not
/// depend on how many tasks wait.
pub(crate) const FIRST_READY: &str = concat!(
    "SELECT ",
    task_columns!(),
    ", t.rowid AS task_row, t.token, t.params, r.workflow_id,
         q.ready_at AS queue_time, q.run_id AS queue_run, q.task_index AS queue_index
     FROM ready_tasks AS q
     LEFT JOIN tasks AS t ON t.id = q.task_id
     LEFT JOIN task_leases AS l ON l.task_id = q.task_id
     LEFT JOIN runs AS r ON r.id = t.run_id
     WHERE q.ready_at <= ?1
     ORDER BY q.ready_at, q.run_id, q.task_index
     LIMIT ?2"
);

/// Removes all rows up to this one from the queue. These are the rows that were read. The readable
/// tasks are claimed. The others wait for somebody to repair them.
async fn leave_queue(connection: &mut SqliteConnection, last: &SqliteRow) -> Attempt<()> {
    const LEAVE: &str = "DELETE FROM ready_tasks WHERE (ready_at, run_id, task_index) <= (?1, ?2, ?3)";
    sqlx::query(LEAVE)
        .bind(last.try_get::<i64, _>("queue_time")?)
        .bind(last.try_get::<Vec<u8>, _>("queue_run")?)
        .bind(last.try_get::<i64, _>("queue_index")?)
        .execute(connection)
        .await?;
    Ok(())
}

async fn dispatch(connection: &mut SqliteConnection, rows: &[Value], now: Timestamp) -> Attempt<()> {
    const DISPATCH: &str =
        "UPDATE tasks SET status = 'dispatched', attempts = attempts + 1, token = token + 1,
             dispatched_at = ?2, execution_name = NULL, retry_at = NULL, started_at = NULL, ready_at = NULL
         WHERE rowid IN (SELECT value FROM json_each(?1))";
    batch::query(DISPATCH, rows)?.bind(now.as_micros()).execute(connection).await?;
    Ok(())
}

async fn lease(
    connection: &mut SqliteConnection,
    rows: &[Value],
    asked: &ClaimTasks,
    expires_at: Timestamp,
) -> Attempt<()> {
    const LEASE: &str = "INSERT INTO task_leases (task_id, run_id, owner, token, expires_at)
         SELECT id, run_id, ?2, token, ?3 FROM tasks WHERE rowid IN (SELECT value FROM json_each(?1))";
    batch::query(LEASE, rows)?
        .bind(asked.owner.to_string())
        .bind(expires_at.as_micros())
        .execute(connection)
        .await?;
    Ok(())
}

/// A ready task as it was read.
struct Ready {
    row: i64,
    task: Task,
    token: i64,
    params: Option<Json>,
    workflow: WorkflowId,
}

impl Ready {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        let cells = Cells::new(row, "tasks");
        let ready = Self {
            row: cells.required("task_row")?,
            task: rows::task(row)?,
            token: cells.required("token")?,
            params: cells.json("params")?,
            workflow: WorkflowId::from_uuid(
                Cells::new(row, "runs").identified_by("run_id").uuid("workflow_id")?,
            ),
        };
        // A task that is in the queue by mistake is not claimed.
        if ready.task.status != TaskStatus::Pending
            || ready.task.unmet_dependencies > 0
            || ready.task.lease.is_some()
        {
            return Err(cells.corrupt("status", "is not that of a ready task, which the queue says it is"));
        }
        Ok(ready)
    }

    /// The task after the claim, with its row. Fails if something that comes with it cannot be
    /// read.
    fn claimed(
        mut self,
        asked: &ClaimTasks,
        workflows: &HashMap<WorkflowId, Workflow>,
        outputs: Option<&HashMap<RunId, Outputs>>,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Option<(i64, ClaimedTask)> {
        let workflow = workflows.get(&self.workflow)?;
        let mut dependency_outputs = BTreeMap::new();
        if let Some(outputs) = outputs {
            for name in &self.task.depends_on {
                let output = outputs.get(&self.task.run)?.get(name)?;
                dependency_outputs.insert(name.clone(), output.clone());
            }
        }
        let token = Token::from_stored(self.token.checked_add(1)?);
        let task = &mut self.task;
        task.status = TaskStatus::Dispatched;
        task.attempts = task.attempts.checked_add(1)?;
        task.lease = Some(Lease::new(asked.owner.clone(), token, expires_at));
        task.dispatched_at = Some(now);
        (task.execution_name, task.retry_at, task.started_at, task.ready_at) = (None, None, None, None);
        let mut claimed =
            ClaimedTask::new(self.task, token, workflow.id, workflow.name.clone(), workflow.target.clone());
        claimed.params = self.params;
        claimed.dependency_outputs = dependency_outputs;
        Some((self.row, claimed))
    }
}

/// The workflows of these tasks, each once. A workflow that cannot be read is left out, and so its
/// tasks are skipped.
async fn workflows(
    connection: &mut SqliteConnection,
    tasks: &[Ready],
) -> Attempt<HashMap<WorkflowId, Workflow>> {
    const GET: &str = concat!(
        "SELECT ",
        workflow_columns!(),
        " FROM workflows WHERE id IN (SELECT unhex(value) FROM json_each(?1))"
    );
    let mut ids: Vec<WorkflowId> = tasks.iter().map(|task| task.workflow).collect();
    ids.sort_unstable();
    ids.dedup();
    let ids: Vec<Value> = ids.into_iter().map(|id| Value::from(hex(id.as_uuid()))).collect();
    let found = batch::query(GET, &ids)?.fetch_all(connection).await?;
    let workflows = found.iter().filter_map(|row| rows::workflow(row).ok());
    Ok(workflows.map(|workflow| (workflow.id, workflow)).collect())
}

/// The outputs of a run's tasks.
type Outputs = HashMap<TaskName, Option<Json>>;

/// The outputs that these tasks depend on, each once. An output that cannot be read is left out.
async fn dependency_outputs(
    connection: &mut SqliteConnection,
    tasks: &[Ready],
) -> Attempt<HashMap<RunId, Outputs>> {
    const GET: &str = "SELECT id, run_id, task_name, output FROM tasks WHERE (run_id, task_name) IN (
             SELECT t.run_id, dependency.value
             FROM json_each(?1) AS asked
             CROSS JOIN tasks AS t ON t.rowid = asked.value
             CROSS JOIN json_each(t.depends_on) AS dependency)";
    let rows: Vec<Value> = tasks.iter().map(|task| Value::from(task.row)).collect();
    let found = batch::query(GET, &rows)?.fetch_all(connection).await?;
    let mut outputs: HashMap<RunId, Outputs> = HashMap::new();
    for row in &found {
        if let Ok((run, name, output)) = dependency_output(row) {
            outputs.entry(run).or_default().insert(name, output);
        }
    }
    Ok(outputs)
}

fn dependency_output(row: &SqliteRow) -> Result<(RunId, TaskName, Option<Json>)> {
    let cells = Cells::new(row, "tasks");
    Ok((RunId::from_uuid(cells.uuid("run_id")?), cells.text("task_name")?, cells.json("output")?))
}
