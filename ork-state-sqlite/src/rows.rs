//! Reads rows into the API's types. A value that does not parse is `Corrupt`, with table, id and
//! column (rule G8).

use std::str::FromStr;

use ork_state_api::{
    Dag, DeferredJob, Error, JobId, Json, Lease, NewDeferredJob, Result, Run, RunId, Schedule, Snapshot,
    SnapshotId, Target, Task, TaskCounts, TaskId, Timestamp, Token, Workflow, WorkflowId,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row as _, Sqlite, Type};
use uuid::Uuid;

/// The columns of a workflow.
macro_rules! workflow_columns {
    () => {
        "id, name, description, executor_type, job_name, region, project, task_params, current_snapshot_id,
         created_at, updated_at, schedule, schedule_enabled, last_scheduled_at, next_scheduled_at"
    };
}
/// The columns of a run.
macro_rules! run_columns {
    () => {
        "id, workflow_id, snapshot_id, status, triggered_by, idempotency_key, error, tasks_total,
         tasks_unfinished, tasks_failed, tasks_cancelled, created_at, started_at, finished_at"
    };
}
/// The columns of a task `t` with its lease `l`.
macro_rules! task_columns {
    () => {
        "t.id, t.run_id, t.task_index, t.task_name, t.executor_type, t.depends_on, t.unmet_dependencies,
         t.open_jobs, t.status, t.attempts, t.max_retries, t.timeout_seconds, t.execution_name, t.error, t.created_at,
         t.ready_at, t.retry_at, t.dispatched_at, t.started_at, t.finished_at,
         l.owner AS lease_owner, l.token AS lease_token, l.expires_at AS lease_expires_at"
    };
}
/// The columns of a deferred job.
macro_rules! job_columns {
    () => {
        "id, task_id, run_id, job_index, service_type, job_id, job_data, status, owner, poll_at, output, error,
         created_at, started_at, last_polled_at, finished_at"
    };
}
pub(crate) use {job_columns, run_columns, task_columns, workflow_columns};

/// A row of a table, read column by column.
#[derive(Clone, Copy)]
pub(crate) struct Cells<'r> {
    row: &'r SqliteRow,
    table: &'static str,
    id_column: &'static str,
}

impl<'r> Cells<'r> {
    pub(crate) const fn new(row: &'r SqliteRow, table: &'static str) -> Self {
        Self { row, table, id_column: "id" }
    }

    /// The id is in another column than `id`.
    pub(crate) const fn identified_by(self, id_column: &'static str) -> Self {
        Self { id_column, ..self }
    }

    /// The error for a column.
    pub(crate) fn corrupt(&self, column: &str, reason: impl std::fmt::Display) -> Error {
        Error::corrupt(self.table, self.shown_id(), column, reason)
    }

    /// The row's id for a message, whatever its type.
    fn shown_id(&self) -> String {
        match self.row.try_get::<&[u8], _>(self.id_column) {
            Ok(bytes) => Uuid::from_slice(bytes).map_or_else(
                |_| bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                |id| id.to_string(),
            ),
            Err(_) => "unknown".to_owned(),
        }
    }

    /// A value of one of the driver's types, which may be absent.
    pub(crate) fn optional<T: Decode<'r, Sqlite> + Type<Sqlite>>(&self, column: &str) -> Result<Option<T>> {
        self.row
            .try_get(column)
            .map_err(|source| self.corrupt(column, "is not of the column's type").with_source(source))
    }

    /// A value of one of the driver's types, which must be present.
    pub(crate) fn required<T: Decode<'r, Sqlite> + Type<Sqlite>>(&self, column: &str) -> Result<T> {
        self.optional(column)?.ok_or_else(|| self.corrupt(column, "is missing"))
    }

    fn check<T>(&self, column: &str, value: Result<T>) -> Result<T> {
        value.map_err(|error| self.corrupt(column, &error).with_source(error))
    }

    /// A text that need not be valid UTF-8; empty if absent.
    pub(crate) fn lossy(&self, column: &str) -> Result<String> {
        let bytes: Option<&[u8]> = self.optional(column)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default())
    }

    /// A value that is stored as text.
    pub(crate) fn text<T: FromStr<Err = Error>>(&self, column: &str) -> Result<T> {
        self.check(column, self.required::<&str>(column)?.parse())
    }

    pub(crate) fn optional_text<T: FromStr<Err = Error>>(&self, column: &str) -> Result<Option<T>> {
        let text: Option<&str> = self.optional(column)?;
        text.map(|text| self.check(column, text.parse())).transpose()
    }

    pub(crate) fn json(&self, column: &str) -> Result<Option<Json>> {
        let text: Option<&str> = self.optional(column)?;
        text.map(|text| self.check(column, Json::parse(text))).transpose()
    }

    pub(crate) fn time(&self, column: &str) -> Result<Timestamp> {
        self.check(column, Timestamp::from_micros(self.required(column)?))
    }

    pub(crate) fn optional_time(&self, column: &str) -> Result<Option<Timestamp>> {
        let micros: Option<i64> = self.optional(column)?;
        micros.map(|micros| self.check(column, Timestamp::from_micros(micros))).transpose()
    }

    pub(crate) fn uuid(&self, column: &str) -> Result<Uuid> {
        let bytes: &[u8] = self.required(column)?;
        Uuid::from_slice(bytes).map_err(|_| self.corrupt(column, "is not an id of 16 bytes"))
    }

    pub(crate) fn number<T: TryFrom<i64>>(&self, column: &str) -> Result<T> {
        self.in_range(column, self.required(column)?)
    }

    pub(crate) fn optional_number<T: TryFrom<i64>>(&self, column: &str) -> Result<Option<T>> {
        let number: Option<i64> = self.optional(column)?;
        number.map(|number| self.in_range(column, number)).transpose()
    }

    fn in_range<T: TryFrom<i64>>(&self, column: &str, number: i64) -> Result<T> {
        T::try_from(number).map_err(|_| self.corrupt(column, format!("is {number}, which is out of range")))
    }
}

/// An id in the form in which it is bound.
pub(crate) fn bytes(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// An id in a batch, which is JSON. `unhex` turns it into bytes.
pub(crate) fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

pub(crate) fn workflow(row: &SqliteRow) -> Result<Workflow> {
    let cells = Cells::new(row, "workflows");
    let mut workflow = Workflow::from_stored(
        WorkflowId::from_uuid(cells.uuid("id")?),
        cells.text("name")?,
        {
            let mut target = Target::new(cells.text("executor_type")?, cells.text("job_name")?);
            target.region = cells.text("region")?;
            target.project = cells.text("project")?;
            target.params = cells.json("task_params")?;
            target
        },
        SnapshotId::from_uuid(cells.uuid("current_snapshot_id")?),
        cells.time("created_at")?,
    );
    workflow.description = cells.optional_text("description")?;
    workflow.schedule = schedule(cells)?;
    workflow.updated_at = cells.time("updated_at")?;
    Ok(workflow)
}

fn schedule(cells: Cells<'_>) -> Result<Option<Schedule>> {
    let Some(expression) = cells.optional_text("schedule")? else { return Ok(None) };
    Ok(Some({
        let mut schedule = Schedule::new(expression, cells.optional_time("next_scheduled_at")?);
        schedule.enabled = cells.required("schedule_enabled")?;
        schedule.last_at = cells.optional_time("last_scheduled_at")?;
        schedule
    }))
}

pub(crate) fn snapshot(row: &SqliteRow) -> Result<Snapshot> {
    let cells = Cells::new(row, "workflow_snapshots");
    Ok(Snapshot::from_stored(
        SnapshotId::from_uuid(cells.uuid("id")?),
        WorkflowId::from_uuid(cells.uuid("workflow_id")?),
        cells.required("content_hash")?,
        dag(cells, "tasks_json")?,
        cells.time("created_at")?,
    ))
}

/// A DAG in its canonical form.
pub(crate) fn dag(cells: Cells<'_>, column: &str) -> Result<Dag> {
    cells.check(column, Dag::from_json(cells.required(column)?))
}

pub(crate) fn run(row: &SqliteRow) -> Result<Run> {
    let cells = Cells::new(row, "runs");
    let mut run = Run::from_stored(
        RunId::from_uuid(cells.uuid("id")?),
        WorkflowId::from_uuid(cells.uuid("workflow_id")?),
        SnapshotId::from_uuid(cells.uuid("snapshot_id")?),
        cells.text("triggered_by")?,
        cells.time("created_at")?,
    );
    run.status = cells.text("status")?;
    run.idempotency_key = cells.optional_text("idempotency_key")?;
    run.error = cells.optional_text("error")?;
    run.tasks = TaskCounts::new(cells.number("tasks_total")?);
    run.tasks.unfinished = cells.number("tasks_unfinished")?;
    run.tasks.failed = cells.number("tasks_failed")?;
    run.tasks.cancelled = cells.number("tasks_cancelled")?;
    run.started_at = cells.optional_time("started_at")?;
    run.finished_at = cells.optional_time("finished_at")?;
    Ok(run)
}

pub(crate) fn task(row: &SqliteRow) -> Result<Task> {
    let cells = Cells::new(row, "tasks");
    let mut task_ = Task::from_stored(
        TaskId::from_uuid(cells.uuid("id")?),
        RunId::from_uuid(cells.uuid("run_id")?),
        cells.number("task_index")?,
        cells.text("task_name")?,
        cells.text("executor_type")?,
        cells.time("created_at")?,
    );
    task_.depends_on = serde_json::from_str(cells.required("depends_on")?)
        .map_err(|source| cells.corrupt("depends_on", "is not a list of task names").with_source(source))?;
    task_.unmet_dependencies = cells.number("unmet_dependencies")?;
    task_.open_jobs = cells.number("open_jobs")?;
    task_.status = cells.text("status")?;
    task_.attempts = cells.number("attempts")?;
    task_.max_retries = cells.number("max_retries")?;
    task_.timeout_seconds = cells.optional_number("timeout_seconds")?;
    task_.lease = lease(row)?;
    task_.execution_name = cells.optional_text("execution_name")?;
    task_.error = cells.optional_text("error")?;
    task_.ready_at = cells.optional_time("ready_at")?;
    task_.retry_at = cells.optional_time("retry_at")?;
    task_.dispatched_at = cells.optional_time("dispatched_at")?;
    task_.started_at = cells.optional_time("started_at")?;
    task_.finished_at = cells.optional_time("finished_at")?;
    Ok(task_)
}

/// The lease that is joined to a task, if there is one.
pub(crate) fn lease(row: &SqliteRow) -> Result<Option<Lease>> {
    let cells = Cells::new(row, "task_leases");
    let Some(owner) = cells.optional_text("lease_owner")? else { return Ok(None) };
    Ok(Some(Lease::new(
        owner,
        Token::from_stored(cells.required("lease_token")?),
        cells.time("lease_expires_at")?,
    )))
}

pub(crate) fn job(row: &SqliteRow) -> Result<DeferredJob> {
    let cells = Cells::new(row, "deferred_jobs");
    let new = NewDeferredJob::new(
        cells.text("service_type")?,
        cells.text("job_id")?,
        cells.json("job_data")?.ok_or_else(|| cells.corrupt("job_data", "is missing"))?,
    );
    let (id, task, run) = (
        JobId::from_uuid(cells.uuid("id")?),
        TaskId::from_uuid(cells.uuid("task_id")?),
        RunId::from_uuid(cells.uuid("run_id")?),
    );
    let mut job =
        DeferredJob::from_stored(id, task, run, cells.number("job_index")?, new, cells.time("created_at")?);
    job.status = cells.text("status")?;
    job.owner = cells.optional_text("owner")?;
    job.poll_at = cells.optional_time("poll_at")?;
    job.output = cells.json("output")?;
    job.error = cells.optional_text("error")?;
    job.started_at = cells.optional_time("started_at")?;
    job.last_polled_at = cells.optional_time("last_polled_at")?;
    job.finished_at = cells.optional_time("finished_at")?;
    Ok(job)
}

/// A page's limit plus the row that shows whether there is a next page.
pub(crate) fn one_more(limit: ork_state_api::Limit) -> i64 {
    i64::try_from(limit.get()).unwrap_or(i64::MAX).saturating_add(1)
}
