//! Reads rows into the API's types, and binds those types. A value that does not parse is
//! `Corrupt`, with table, id and column (rule G8).

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use ork_state_api::{
    DeferredJob, Error, JobId, Json, Lease, Limit, NewDeferredJob, Result, Run, RunId, Schedule, SnapshotId,
    Target, Task, TaskCounts, TaskId, TaskName, Timestamp, Token, Workflow, WorkflowId,
};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgArgumentBuffer, PgRow, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Row, Type};
use uuid::Uuid;

/// A point in time as a `timestamptz`.
///
/// It is not read as chrono's type, because the driver's conversion panics at `infinity` and at
/// other times beyond chrono's range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp(pub(crate) Timestamp);

/// 2000-01-01, from which PostgreSQL counts, in microseconds since 1970.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl Type<Postgres> for Stamp {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Stamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        // Named in full: other sqlx drivers in the dependency graph add other ways to encode it.
        <DateTime<Utc> as Encode<'_, Postgres>>::encode_by_ref(&self.0.to_chrono(), buffer)
    }
}

impl Decode<'_, Postgres> for Stamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        let micros = <i64 as Decode<'_, Postgres>>::decode(value)?;
        let micros = micros.checked_add(POSTGRES_EPOCH).ok_or("is no point in time")?;
        Ok(Self(Timestamp::from_micros(micros)?))
    }
}

/// A limit as an `int`.
pub(crate) fn int_limit(limit: Limit) -> i32 {
    // At most 10,000 by its type.
    i32::try_from(limit.get()).unwrap_or(i32::MAX)
}

/// Whole microseconds, as everywhere else.
pub(crate) fn interval(duration: Duration) -> PgInterval {
    // At most 366 days by the API's types.
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

/// One row more than requested: it shows whether there is a next page.
pub(crate) fn fetch_limit(limit: Limit) -> i64 {
    // At most 10,000 by its type.
    i64::try_from(limit.get()).unwrap_or(i64::MAX).saturating_add(1)
}

/// The number that a statement counted.
pub(crate) fn number(row: Option<PgRow>) -> Result<u64> {
    let unexpected = |source| Error::internal("a count gave no number").with_source(source);
    let row = row.ok_or_else(|| Error::internal("a count gave no row"))?;
    u64::try_from(row.try_get::<i64, _>(0).map_err(unexpected)?)
        .map_err(|source| Error::internal("a count is negative").with_source(source))
}

/// A row of one table, or the part of a joined row that comes from it.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'r> {
    row: &'r PgRow,
    table: &'static str,
    id: Uuid,
    /// The prefix of this table's columns in the row.
    prefix: &'static str,
}

impl<'r> Reader<'r> {
    pub(crate) const fn new(row: &'r PgRow, table: &'static str, id: Uuid) -> Self {
        Self { row, table, id, prefix: "" }
    }

    /// A row whose column `id` identifies it.
    pub(crate) fn of(row: &'r PgRow, table: &'static str) -> Result<Self> {
        let reader = Self::new(row, table, Uuid::nil());
        Ok(Self { id: reader.get("id")?, ..reader })
    }

    pub(crate) const fn with_prefix(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    pub(crate) fn corrupt(&self, column: &str, reason: impl Display) -> Error {
        Error::corrupt(self.table, self.id, column, reason)
    }

    /// A value of one of the driver's types.
    pub(crate) fn get<T>(&self, column: &str) -> Result<T>
    where
        T: Decode<'r, Postgres> + Type<Postgres>,
    {
        let read = match self.prefix {
            "" => self.row.try_get(column),
            prefix => self.row.try_get(format!("{prefix}{column}").as_str()),
        };
        read.map_err(|error| self.corrupt(column, reason(error)))
    }

    /// Text that must parse. The error does not quote it, because it may be a payload.
    pub(crate) fn text<T: FromStr<Err = Error>>(&self, column: &str) -> Result<T> {
        self.get::<&str>(column)?.parse().map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn optional_text<T: FromStr<Err = Error>>(&self, column: &str) -> Result<Option<T>> {
        let text: Option<&str> = self.get(column)?;
        text.map(str::parse).transpose().map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn json(&self, column: &str) -> Result<Option<Json>> {
        let text: Option<&str> = self.get(column)?;
        text.map(Json::parse).transpose().map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn time(&self, column: &str) -> Result<Timestamp> {
        Ok(self.get::<Stamp>(column)?.0)
    }

    pub(crate) fn optional_time(&self, column: &str) -> Result<Option<Timestamp>> {
        Ok(self.get::<Option<Stamp>>(column)?.map(|stamp| stamp.0))
    }

    /// A number that cannot be negative.
    pub(crate) fn count(&self, column: &str) -> Result<u32> {
        u32::try_from(self.get::<i32>(column)?).map_err(|error| self.corrupt(column, error))
    }
}

/// Why a column could not be read, without the driver's mention of the column.
fn reason(error: sqlx::Error) -> String {
    match error {
        sqlx::Error::ColumnDecode { source, .. } => source.to_string(),
        error => error.to_string(),
    }
}

/// The columns of [`workflow`], from a table with the alias `w`.
pub(crate) const WORKFLOW: &str = "w.id, w.name, w.description, w.executor_type, w.job_name, w.region, w.project, \
     w.task_params::text AS task_params, w.current_snapshot_id, w.schedule, w.schedule_enabled, w.last_scheduled_at, \
     w.next_scheduled_at, w.created_at, w.updated_at";

pub(crate) fn workflow(row: &PgRow) -> Result<Workflow> {
    let row = Reader::of(row, "workflows")?;
    let mut workflow = Workflow::from_stored(
        WorkflowId::from_uuid(row.id),
        row.text("name")?,
        target(row)?,
        SnapshotId::from_uuid(row.get("current_snapshot_id")?),
        row.time("created_at")?,
    );
    workflow.description = row.optional_text("description")?;
    workflow.schedule = schedule(row)?;
    workflow.updated_at = row.time("updated_at")?;
    Ok(workflow)
}

fn schedule(row: Reader<'_>) -> Result<Option<Schedule>> {
    let Some(expression) = row.optional_text("schedule")? else { return Ok(None) };
    Ok(Some({
        let mut schedule = Schedule::new(expression, row.optional_time("next_scheduled_at")?);
        schedule.enabled = row.get("schedule_enabled")?;
        schedule.last_at = row.optional_time("last_scheduled_at")?;
        schedule
    }))
}

pub(crate) fn target(row: Reader<'_>) -> Result<Target> {
    let mut target = Target::new(row.text("executor_type")?, row.text("job_name")?);
    target.region = row.text("region")?;
    target.project = row.text("project")?;
    target.params = row.json("task_params")?;
    Ok(target)
}

/// The columns of [`run`], from a table or function with the alias `r`.
pub(crate) const RUN: &str = "r.id, r.workflow_id, r.snapshot_id, r.status, r.triggered_by, r.idempotency_key, r.error, \
     r.tasks_total, r.tasks_unfinished, r.tasks_failed, r.tasks_cancelled, r.created_at, r.started_at, r.finished_at";

pub(crate) fn run(row: &PgRow) -> Result<Run> {
    run_of(Reader::of(row, "runs")?)
}

/// Like [`run`], from a row that holds more than a run.
pub(crate) fn run_of(row: Reader<'_>) -> Result<Run> {
    let mut run = Run::from_stored(
        RunId::from_uuid(row.id),
        WorkflowId::from_uuid(row.get("workflow_id")?),
        SnapshotId::from_uuid(row.get("snapshot_id")?),
        row.text("triggered_by")?,
        row.time("created_at")?,
    );
    run.status = row.text("status")?;
    run.idempotency_key = row.optional_text("idempotency_key")?;
    run.error = row.optional_text("error")?;
    run.tasks = TaskCounts::new(row.count("tasks_total")?);
    run.tasks.unfinished = row.count("tasks_unfinished")?;
    run.tasks.failed = row.count("tasks_failed")?;
    run.tasks.cancelled = row.count("tasks_cancelled")?;
    run.started_at = row.optional_time("started_at")?;
    run.finished_at = row.optional_time("finished_at")?;
    Ok(run)
}

/// The columns of [`task`], of a table `t` joined with its lease `l`, if it has one.
pub(crate) const TASK: &str = "t.id, t.run_id, t.task_index, t.task_name, t.executor_type, t.depends_on, \
     t.unmet_dependencies, t.open_jobs, t.status, t.attempts, t.max_retries, t.timeout_seconds, l.owner AS lease_owner, \
     l.token AS lease_token, l.expires_at AS lease_expires_at, t.execution_name, t.error, t.created_at, t.ready_at, \
     t.retry_at, t.dispatched_at, t.started_at, t.finished_at";

pub(crate) fn task(row: &PgRow) -> Result<Task> {
    let row = Reader::of(row, "tasks")?;
    let depends_on: Vec<String> = row.get("depends_on")?;
    let mut task = Task::from_stored(
        TaskId::from_uuid(row.id),
        RunId::from_uuid(row.get("run_id")?),
        row.count("task_index")?,
        row.text("task_name")?,
        row.text("executor_type")?,
        row.time("created_at")?,
    );
    task.depends_on = depends_on
        .into_iter()
        .map(TaskName::new)
        .collect::<Result<_>>()
        .map_err(|error| row.corrupt("depends_on", error))?;
    task.unmet_dependencies = row.count("unmet_dependencies")?;
    task.open_jobs = row.count("open_jobs")?;
    task.status = row.text("status")?;
    task.attempts = row.count("attempts")?;
    task.max_retries = row.count("max_retries")?;
    task.timeout_seconds = row
        .get::<Option<i32>>("timeout_seconds")?
        .map(u32::try_from)
        .transpose()
        .map_err(|error| row.corrupt("timeout_seconds", error))?;
    task.lease = lease(row)?;
    task.execution_name = row.optional_text("execution_name")?;
    task.error = row.optional_text("error")?;
    task.ready_at = row.optional_time("ready_at")?;
    task.retry_at = row.optional_time("retry_at")?;
    task.dispatched_at = row.optional_time("dispatched_at")?;
    task.started_at = row.optional_time("started_at")?;
    task.finished_at = row.optional_time("finished_at")?;
    Ok(task)
}

fn lease(row: Reader<'_>) -> Result<Option<Lease>> {
    let row = Reader { table: "task_leases", ..row }.with_prefix("lease_");
    let Some(token) = row.get::<Option<i64>>("token")? else { return Ok(None) };
    Ok(Some(Lease::new(row.text("owner")?, Token::from_stored(token), row.time("expires_at")?)))
}

/// The columns of [`job`], from a table or function with the alias `j`.
pub(crate) const JOB: &str = "j.id, j.task_id, j.run_id, j.job_index, j.service_type, j.job_id, \
     j.job_data::text AS job_data, j.status, j.token, j.owner, j.poll_at, j.output::text AS output, j.error, \
     j.created_at, j.started_at, j.last_polled_at, j.finished_at";

pub(crate) fn job(row: &PgRow) -> Result<DeferredJob> {
    let row = Reader::of(row, "deferred_jobs")?;
    let new = NewDeferredJob::new(
        row.text("service_type")?,
        row.text("job_id")?,
        row.json("job_data")?.ok_or_else(|| row.corrupt("job_data", "is missing"))?,
    );
    let (id, task, run) = (
        JobId::from_uuid(row.id),
        TaskId::from_uuid(row.get("task_id")?),
        RunId::from_uuid(row.get("run_id")?),
    );
    let mut job =
        DeferredJob::from_stored(id, task, run, row.count("job_index")?, new, row.time("created_at")?);
    job.status = row.text("status")?;
    job.owner = row.optional_text("owner")?;
    job.poll_at = row.optional_time("poll_at")?;
    job.output = row.json("output")?;
    job.error = row.optional_text("error")?;
    job.started_at = row.optional_time("started_at")?;
    job.last_polled_at = row.optional_time("last_polled_at")?;
    job.finished_at = row.optional_time("finished_at")?;
    Ok(job)
}
