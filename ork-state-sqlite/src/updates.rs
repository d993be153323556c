//! Applies reports about claimed tasks, and ends attempts that nobody reports on.

use std::collections::HashMap;
use std::sync::Arc;

use ork_state_api::{ExpiredTasks, Limit, Result, TaskUpdates, Timestamp, UpdateOutcome, UpdateReport};
use serde_json::Value;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use crate::batch;
use crate::error::Attempt;
use crate::held::{Held, held_columns};
use crate::rows::hex;
use crate::settle::settle;

/// Applies batches one after the other, see
/// [`update_tasks`](ork_state_api::TaskStore::update_tasks). The number of statements does not
/// depend on how many there are.
pub(crate) async fn update(
    connection: &mut SqliteConnection,
    batches: &[Arc<TaskUpdates>],
    now: Timestamp,
) -> Attempt<Vec<UpdateReport>> {
    // Joins from the batch to the tasks, not the other way round.
    const FIND: &str = concat!(
        "SELECT ",
        held_columns!(),
        " FROM json_each(?1) AS asked
         CROSS JOIN tasks AS t ON t.id = unhex(asked.value)
         LEFT JOIN task_leases AS l ON l.task_id = t.id
         LEFT JOIN runs AS r ON r.id = t.run_id"
    );
    let steps = batches.iter().flat_map(|batch| batch.steps());
    let asked: Vec<Value> = steps.map(|step| Value::from(hex(step.claim.task.as_uuid()))).collect();
    let found = batch::query(FIND, &asked)?.fetch_all(&mut *connection).await?;
    let tasks = found.iter().map(Held::from_row).collect::<Result<Vec<_>>>()?;
    // Several steps may name one task. The map has it once, so a step sees the changes of those
    // before it.
    let mut tasks: HashMap<_, _> = tasks.into_iter().map(|task| (task.id, task)).collect();
    let mut reports = Vec::with_capacity(batches.len());
    for (call, batch) in batches.iter().enumerate() {
        let outcomes = batch.steps().iter().map(|step| match tasks.get_mut(&step.claim.task) {
            None => Ok(UpdateOutcome::NotFound),
            Some(task) => task.apply(step, call, now),
        });
        let outcomes = outcomes.collect::<Result<Vec<_>>>()?;
        reports.push(UpdateReport::new(batch.outcomes(&outcomes), Vec::new()));
    }
    for (call, run) in settle(connection, tasks.into_values(), now).await? {
        if let Some(report) = reports.get_mut(call) {
            report.ended_runs.push(run);
        }
    }
    Ok(reports)
}

/// Takes lapsed leases back, see [`expire_leases`](ork_state_api::TaskStore::expire_leases).
pub(crate) async fn expire_leases(
    connection: &mut SqliteConnection,
    limit: Limit,
    now: Timestamp,
) -> Attempt<ExpiredTasks> {
    expire(connection, LAPSED, Held::lapse, limit, now).await
}

/// Ends overdue attempts, see [`expire_timeouts`](ork_state_api::TaskStore::expire_timeouts).
pub(crate) async fn expire_timeouts(
    connection: &mut SqliteConnection,
    limit: Limit,
    now: Timestamp,
) -> Attempt<ExpiredTasks> {
    expire(connection, OVERDUE, Held::time_out, limit, now).await
}

/// Reads the index of leases up to now. The index ends with the key, so it gives the order.
pub(crate) const LAPSED: &str = concat!(
    "SELECT ",
    held_columns!(),
    ", l.expires_at AS key_time, l.task_id AS key_id
     FROM task_leases AS l
     LEFT JOIN tasks AS t ON t.id = l.task_id
     LEFT JOIN runs AS r ON r.id = t.run_id
     WHERE l.expires_at <= ?1 AND (l.expires_at, l.task_id) > (?2, ?3)
     ORDER BY l.expires_at, l.task_id
     LIMIT ?4"
);

/// Reads the index of deadlines up to now.
pub(crate) const OVERDUE: &str = concat!(
    "SELECT ",
    held_columns!(),
    ", o.deadline AS key_time, o.task_id AS key_id
     FROM task_timeouts AS o
     LEFT JOIN tasks AS t ON t.id = o.task_id
     LEFT JOIN task_leases AS l ON l.task_id = t.id
     LEFT JOIN runs AS r ON r.id = t.run_id
     WHERE o.deadline <= ?1 AND (o.deadline, o.task_id) > (?2, ?3)
     ORDER BY o.deadline, o.task_id
     LIMIT ?4"
);

async fn expire(
    connection: &mut SqliteConnection,
    due: &'static str,
    end: fn(&mut Held, Timestamp),
    limit: Limit,
    now: Timestamp,
) -> Attempt<ExpiredTasks> {
    let mut tasks = first_due(connection, due, limit, now).await?;
    let mut expired = ExpiredTasks::default();
    for task in &mut tasks {
        end(task, now);
        let list = if task.has_failed() { &mut expired.failed } else { &mut expired.requeued };
        list.push(task.id);
    }
    expired.failed.sort_unstable();
    expired.requeued.sort_unstable();
    let ended = settle(connection, tasks, now).await?;
    expired.ended_runs = ended.into_iter().map(|(_, run)| run).collect();
    Ok(expired)
}

/// The tasks that have been due for the longest. Rows without a task, and tasks that cannot be
/// read, are skipped and left to `verify` (rule G8). So this takes another round each time that
/// such rows filled one.
async fn first_due(
    connection: &mut SqliteConnection,
    due: &'static str,
    limit: Limit,
    now: Timestamp,
) -> Attempt<Vec<Held>> {
    let mut tasks = Vec::new();
    let mut after: (i64, Vec<u8>) = (i64::MIN, Vec::new());
    loop {
        let wanted = limit.get() - tasks.len();
        let found = sqlx::query(due)
            .bind(now.as_micros())
            .bind(after.0)
            .bind(after.1.clone())
            .bind(i64::try_from(wanted).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
        tasks.extend(found.iter().filter_map(|row| Held::from_row(row).ok()));
        match found.last() {
            Some(last) if found.len() == wanted && tasks.len() < limit.get() => {
                after = (last.try_get("key_time")?, last.try_get("key_id")?);
            }
            _ => return Ok(tasks),
        }
    }
}
