//! Writes the records of another store into this store's tables, at the end of an import or of a
//! takeover.

use sqlx::sqlite::SqliteConnection;

use crate::counts::count_ended_sql;
use crate::error::Attempt;
use crate::sql::run_sql;

/// Writes the records into the tables of the store, which is empty.
pub(crate) async fn take_in(connection: &mut SqliteConnection) -> Attempt<()> {
    for statement in TAKE_IN {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    sqlx::query(COUNT).bind("finished_at").bind(1).execute(&mut *connection).await?;
    run_sql(connection, "DELETE FROM import_records; DELETE FROM import_progress").await?;
    Ok(())
}

/// A value from a record.
macro_rules! value {
    ($path:literal) => {
        concat!("json_extract(record, '$.", $path, "')")
    };
}

/// An id from a record, in the form in which it is stored.
macro_rules! id {
    ($path:literal) => {
        concat!("unhex(json_extract(record, '$.", $path, "'), '-')")
    };
}

/// A time from a record, in microseconds. It always has six digits after the point.
macro_rules! time {
    ($path:literal) => {
        concat!(
            "CAST(strftime('%s', json_extract(record, '$.",
            $path,
            "')) AS INTEGER) * 1000000
                 + CAST(substr(json_extract(record, '$.",
            $path,
            "'), 21, 6) AS INTEGER)"
        )
    };
}

/// Copies the contents of the records into their tables, owners before what they own.
pub(crate) const TAKE_IN: [&str; 11] = [
    concat!(
        "INSERT INTO workflows (id, name, description, executor_type, job_name, region, project, task_params,
             current_snapshot_id, created_at, updated_at, schedule, schedule_enabled, last_scheduled_at, next_scheduled_at)
         SELECT ", id!("workflow.row.id"), ", ", value!("workflow.row.name"), ", ",
        value!("workflow.row.description"), ", ", value!("workflow.row.target.executor_type"), ", ",
        value!("workflow.row.target.job_name"), ", ", value!("workflow.row.target.region"), ", ",
        value!("workflow.row.target.project"), ", ", value!("workflow.params"), ", ",
        id!("workflow.row.snapshot"), ", ", time!("workflow.row.created_at"), ", ",
        time!("workflow.row.updated_at"), ", ", value!("workflow.row.schedule.expression"), ", coalesce(",
        value!("workflow.row.schedule.enabled"), ", 0), ", time!("workflow.row.schedule.last_at"), ", ",
        time!("workflow.row.schedule.next_at"),
        " FROM import_records WHERE kind = 'workflow' ORDER BY number"
    ),
    concat!(
        "INSERT INTO workflow_snapshots (id, workflow_id, content_hash, created_at, tasks_json)
         SELECT ", id!("snapshot.id"), ", ", id!("snapshot.workflow"), ", ", value!("snapshot.content_hash"), ", ",
        time!("snapshot.created_at"), ", ", value!("snapshot.dag"),
        " FROM import_records WHERE kind = 'snapshot' ORDER BY number"
    ),
    concat!(
        "INSERT INTO runs (id, workflow_id, snapshot_id, status, triggered_by, idempotency_key, tasks_total,
             tasks_unfinished, tasks_failed, tasks_cancelled, created_at, started_at, finished_at, error)
         SELECT ", id!("run.row.id"), ", ", id!("run.row.workflow"), ", ", id!("run.row.snapshot"), ", ",
        value!("run.row.status"), ", ", value!("run.row.triggered_by"), ", ", value!("run.row.idempotency_key"), ", ",
        value!("run.row.tasks.total"), ", ", value!("run.row.tasks.unfinished"), ", ",
        value!("run.row.tasks.failed"), ", ", value!("run.row.tasks.cancelled"), ", ",
        time!("run.row.created_at"), ", ", time!("run.row.started_at"), ", ", time!("run.row.finished_at"), ", ",
        value!("run.row.error"),
        " FROM import_records WHERE kind = 'run' ORDER BY number"
    ),
    concat!(
        "INSERT INTO tasks (id, run_id, task_index, status, unmet_dependencies, open_jobs, attempts, max_retries,
             timeout_seconds, token, created_at, ready_at, retry_at, dispatched_at, started_at, finished_at, task_name,
             executor_type, execution_name, depends_on, error, params, output)
         SELECT ", id!("task.row.id"), ", ", id!("task.row.run"), ", ", value!("task.row.index"), ", ",
        value!("task.row.status"), ", ", value!("task.row.unmet_dependencies"), ", ", value!("task.row.open_jobs"), ", ",
        value!("task.row.attempts"), ", ", value!("task.row.max_retries"), ", ",
        value!("task.row.timeout_seconds"), ", ", value!("task.token"), ", ", time!("task.row.created_at"), ", ",
        time!("task.row.ready_at"), ", ", time!("task.row.retry_at"), ", ", time!("task.row.dispatched_at"), ", ",
        time!("task.row.started_at"), ", ", time!("task.row.finished_at"), ", ", value!("task.row.name"), ", ",
        value!("task.row.executor_type"), ", ", value!("task.row.execution_name"), ", ",
        value!("task.row.depends_on"), ", ", value!("task.row.error"), ", ", value!("task.params"), ", ",
        value!("task.output"),
        " FROM import_records WHERE kind = 'task' ORDER BY number"
    ),
    concat!(
        "INSERT INTO task_leases (task_id, run_id, owner, token, expires_at)
         SELECT ", id!("task.row.id"), ", ", id!("task.row.run"), ", ", value!("task.row.lease.owner"), ", ",
        value!("task.row.lease.token"), ", ", time!("task.row.lease.expires_at"),
        " FROM import_records WHERE kind = 'task' AND ", value!("task.row.lease.token"), " IS NOT NULL"
    ),
    "INSERT INTO task_edges (run_id, task_index, dependent_index)
     SELECT d.run_id, f.task_index, d.task_index
     FROM tasks AS d
     CROSS JOIN json_each(d.depends_on) AS n
     CROSS JOIN tasks AS f ON f.run_id = d.run_id AND f.task_name = n.value",
    "INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
     SELECT t.ready_at, t.run_id, t.task_index, t.id
     FROM tasks AS t
     JOIN runs AS r ON r.id = t.run_id
     WHERE r.status = 'running' AND t.status = 'pending' AND t.unmet_dependencies = 0 AND t.ready_at IS NOT NULL",
    // The latest possible time, 9999-12-31T23:59:59.999999Z, is late enough for every deadline.
    "INSERT INTO task_timeouts (task_id, deadline)
     SELECT id, min(started_at + timeout_seconds * 1000000, 253402300799999999)
     FROM tasks
     WHERE status = 'running' AND timeout_seconds IS NOT NULL AND started_at IS NOT NULL",
    concat!(
        "INSERT INTO deferred_jobs (id, task_id, run_id, job_index, deferral, status, token, poll_at, created_at,
             started_at, last_polled_at, finished_at, owner, service_type, job_id, error, job_data, output)
         SELECT ", id!("job.row.id"), ", ", id!("job.row.task"), ", ", id!("job.row.run"), ", ",
        value!("job.row.index"), ", ", value!("job.deferral"), ", ", value!("job.row.status"), ", ",
        value!("job.token"), ", ", time!("job.row.poll_at"), ", ", time!("job.row.created_at"), ", ",
        time!("job.row.started_at"), ", ", time!("job.row.last_polled_at"), ", ", time!("job.row.finished_at"), ", ",
        value!("job.row.owner"), ", ", value!("job.row.service_type"), ", ", value!("job.row.job_id"), ", ",
        value!("job.row.error"), ", ", value!("job.job_data"), ", ", value!("job.output"),
        " FROM import_records WHERE kind = 'job' ORDER BY number"
    ),
    concat!(
        "INSERT INTO task_log_chunks (task_id, start_offset, data)
         SELECT ", id!("log.task"), ", ", value!("log.offset"), ", unhex(", value!("log.hex"), ")",
        " FROM import_records WHERE kind = 'log' ORDER BY number"
    ),
    "INSERT INTO task_logs (task_id, length)
     SELECT task_id, max(start_offset + length(data)) FROM task_log_chunks GROUP BY task_id",
];

/// `?1` has no effect here: all ended runs are counted.
const COUNT: &str = count_ended_sql!("SELECT id FROM runs WHERE finished_at IS NOT NULL AND ?1 IS NOT NULL");
