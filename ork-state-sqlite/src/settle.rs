//! What follows when claimed tasks change. This is the shared core of
//! [`update_tasks`](ork_state_api::TaskStore::update_tasks),
//! [`expire_leases`](ork_state_api::TaskStore::expire_leases),
//! [`expire_timeouts`](ork_state_api::TaskStore::expire_timeouts) and
//! [`update_jobs`](ork_state_api::DeferredJobStore::update_jobs).
//!
//! The methods of [`Held`] work out each task's change in memory. [`settle`] writes it, with all
//! consequences (rules R3, T1, T5, D2). These are leases, deadlines, deferred jobs, dependents, the
//! failure of everything that depends on a failed task, counts, and ends of runs. The number of
//! statements does not depend on the number of tasks.

use std::collections::{BTreeMap, HashMap, VecDeque};

use ork_state_api::backend::{dependency_failed_message, task_failed_message};
use ork_state_api::{EndedRun, Json, Label, Result, RunId, RunStatus, TaskStatus, Timestamp};
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::batch::{self, Texts};
use crate::counts::count_ended;
use crate::error::Attempt;
use crate::held::{Again, End, Held, RunFound};
use crate::rows::{Cells, hex};

/// Writes the changes of tasks, with all consequences. Returns the runs that ended, by id, each
/// with the call that ended it. If several calls are combined, that is the last one that ended a
/// task of the run.
pub(crate) async fn settle(
    connection: &mut SqliteConnection,
    tasks: impl IntoIterator<Item = Held>,
    now: Timestamp,
) -> Attempt<Vec<(usize, EndedRun)>> {
    let mut tasks: Vec<Held> = tasks.into_iter().filter(|task| task.changed_by.is_some()).collect();
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    // The order of culprits. If several tasks fail in one call, the culprit is the one with the
    // lowest index.
    tasks.sort_by_key(|task| (task.run, task.changed_by, task.index));
    store(connection, &tasks, now).await?;
    end_attempts(connection, &tasks, now).await?;
    let running: Vec<Value> = tasks
        .iter()
        .filter(|task| task.began && task.end.is_none() && task.has_timeout())
        .map(|task| Value::from(task.row))
        .collect();
    set_deadlines(connection, &running).await?;

    let mut queued: Vec<Value> =
        tasks.iter().filter(|task| ready_at(task).is_some()).map(|task| Value::from(task.row)).collect();
    queued.extend(release_dependents(connection, &tasks, now).await?);
    enqueue(connection, &queued).await?;

    let mut counts = RunCounts::default();
    for task in &tasks {
        match task.new_status() {
            Some(TaskStatus::Success) => counts.ended(task, false),
            Some(TaskStatus::Failed) => {
                counts.ended(task, true);
                counts.culprit(task);
            }
            _ => {}
        }
    }
    for culprit in fail_dependents(connection, &tasks, now).await? {
        counts.ended(culprit, true);
    }
    counts.store(connection, now).await
}

/// When a task is ready again, if its attempt ended that way.
const fn ready_at(task: &Held) -> Option<Timestamp> {
    match &task.end {
        Some(End::Failed { again: Some(Again { ready_at, .. }), .. } | End::Released { ready_at }) => {
            *ready_at
        }
        _ => None,
    }
}

/// Writes the tasks' own rows.
async fn store(connection: &mut SqliteConnection, tasks: &[Held], now: Timestamp) -> Attempt<()> {
    // Fields: row, status, execution name, whether it runs or has ended, whether it is released,
    // whether the attempt is over, times, which error (0 keeps the old one), the error, the output.
    // A claimed task has no `ready_at` or `retry_at`, and no `finished_at`.
    const STORE: &str = "UPDATE tasks SET
             status = coalesce(new.value ->> 1, status),
             attempts = max(attempts - (new.value ->> 4), 0),
             open_jobs = iif(new.value ->> 5, 0, open_jobs),
             execution_name = iif(new.value ->> 4, NULL, coalesce(new.value ->> 2, execution_name)),
             dispatched_at = iif(new.value ->> 4, NULL, dispatched_at),
             started_at = CASE
                 WHEN new.value ->> 4 THEN NULL
                 WHEN new.value ->> 3 THEN coalesce(started_at, ?3)
                 ELSE started_at
             END,
             ready_at = new.value ->> 6,
             retry_at = new.value ->> 7,
             finished_at = new.value ->> 8,
             error = iif(new.value ->> 9 = 0, error,
                 CAST(substr(?2, new.value ->> 10, new.value ->> 11) AS TEXT)),
             output = iif(new.value ->> 1 = 'success',
                 CAST(substr(?2, new.value ->> 12, new.value ->> 13) AS TEXT), output)
         FROM json_each(?1) AS new
         WHERE tasks.rowid = new.value ->> 0";
    let micros = |time: Option<Timestamp>| time.map(Timestamp::as_micros);
    let mut texts = Texts::new();
    let rows: Vec<Value> = tasks
        .iter()
        .map(|task| {
            let status = task.new_status();
            let (replace_error, error, output, retry_at) = match &task.end {
                None | Some(End::Released { .. }) => (0, None, None, None),
                Some(End::Succeeded { output }) => (1, None, output.as_ref().map(Json::as_str), None),
                Some(End::Failed { error, again }) => {
                    (1, Some(error.as_str()), None, again.and_then(|again| again.retry_at))
                }
            };
            let is_released = matches!(task.end, Some(End::Released { .. }));
            let [error_at, error_len] = texts.add(error);
            let [output_at, output_len] = texts.add(output);
            json!([
                task.row,
                status.map(TaskStatus::as_str),
                task.execution_name.as_ref().map(Label::as_str),
                i32::from(task.began || task.end.is_some()),
                i32::from(is_released),
                i32::from(task.end.is_some()),
                micros(ready_at(task)),
                micros(retry_at),
                micros(Some(now).filter(|_| status.is_some_and(TaskStatus::is_terminal))),
                replace_error,
                error_at,
                error_len,
                output_at,
                output_len,
            ])
        })
        .collect();
    let (rows, texts) = (batch::json(&rows)?, texts.into_blob());
    let keep_prepared = batch::is_small(rows.len() + texts.len());
    sqlx::query(STORE)
        .bind(rows)
        .bind(texts)
        .bind(now.as_micros())
        .persistent(keep_prepared)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes what belongs to an attempt: its lease and its deadline. Also its jobs, if the attempt
/// ends without them (rule D2).
async fn end_attempts(connection: &mut SqliteConnection, tasks: &[Held], now: Timestamp) -> Attempt<()> {
    const LEASES: &str = "DELETE FROM task_leases WHERE task_id IN (SELECT unhex(value) FROM json_each(?1))";
    const TIMEOUTS: &str =
        "DELETE FROM task_timeouts WHERE task_id IN (SELECT unhex(value) FROM json_each(?1))";
    const JOBS: &str =
        "UPDATE deferred_jobs SET status = 'cancelled', finished_at = ?2, poll_at = NULL, owner = NULL
         WHERE task_id IN (SELECT unhex(value) FROM json_each(?1)) AND poll_at IS NOT NULL";
    let ended = |also: fn(&Held) -> bool| -> Vec<Value> {
        let ended = tasks.iter().filter(|task| task.end.is_some() && also(task));
        ended.map(|task| Value::from(hex(task.id.as_uuid()))).collect()
    };
    let all = ended(|_| true);
    if all.is_empty() {
        return Ok(());
    }
    batch::query(LEASES, &all)?.execute(&mut *connection).await?;
    let timed = ended(Held::has_timeout);
    if !timed.is_empty() {
        batch::query(TIMEOUTS, &timed)?.execute(&mut *connection).await?;
    }
    let deferred = ended(|task| task.open_jobs > 0);
    if !deferred.is_empty() {
        batch::query(JOBS, &deferred)?.bind(now.as_micros()).execute(connection).await?;
    }
    Ok(())
}

/// Sets the deadlines of the attempts of these running tasks (rule T8). A task that has a deadline
/// keeps it.
pub(crate) async fn set_deadlines(connection: &mut SqliteConnection, rows: &[Value]) -> Attempt<()> {
    const DEADLINES: &str = "INSERT OR IGNORE INTO task_timeouts (task_id, deadline)
         SELECT id, min(started_at + timeout_seconds * 1000000, ?2) FROM tasks
         WHERE rowid IN (SELECT value FROM json_each(?1)) AND timeout_seconds IS NOT NULL";
    if !rows.is_empty() {
        batch::query(DEADLINES, rows)?.bind(Timestamp::MAX.as_micros()).execute(connection).await?;
    }
    Ok(())
}

/// Counts down the dependents of tasks that succeeded. Returns the rows of those that are ready
/// now.
async fn release_dependents(
    connection: &mut SqliteConnection,
    tasks: &[Held],
    now: Timestamp,
) -> Attempt<Vec<Value>> {
    // Every dependent is counted, whatever its status. Only a pending one whose count reaches zero
    // becomes ready, and not while its run is paused.
    const RELEASE: &str = "UPDATE tasks SET
             unmet_dependencies = unmet_dependencies - met.number,
             ready_at = iif(
                 status = 'pending' AND unmet_dependencies = met.number
                     AND (SELECT r.status FROM runs AS r WHERE r.id = tasks.run_id) = 'running',
                 ?2, NULL)
         FROM (
             SELECT edge.run_id, edge.dependent_index, count(*) AS number
             FROM json_each(?1) AS done
             CROSS JOIN tasks AS dependency ON dependency.rowid = done.value
             CROSS JOIN task_edges AS edge
                 ON edge.run_id = dependency.run_id AND edge.task_index = dependency.task_index
             GROUP BY edge.run_id, edge.dependent_index
         ) AS met
         WHERE tasks.run_id = met.run_id AND tasks.task_index = met.dependent_index
         RETURNING rowid, ready_at IS NOT NULL";
    let succeeded: Vec<Value> = tasks
        .iter()
        .filter(|task| task.new_status() == Some(TaskStatus::Success))
        .map(|task| Value::from(task.row))
        .collect();
    if succeeded.is_empty() {
        return Ok(Vec::new());
    }
    let dependents: Vec<(i64, bool)> = sqlx::query_as(RELEASE)
        .bind(batch::json(&succeeded)?)
        .bind(now.as_micros())
        .fetch_all(connection)
        .await?;
    Ok(dependents.into_iter().filter(|(_, is_ready)| *is_ready).map(|(row, _)| Value::from(row)).collect())
}

/// Puts tasks into the queue at their `ready_at`.
async fn enqueue(connection: &mut SqliteConnection, rows: &[Value]) -> Attempt<()> {
    const ENQUEUE: &str = "INSERT OR REPLACE INTO ready_tasks (ready_at, run_id, task_index, task_id)
         SELECT ready_at, run_id, task_index, id FROM tasks
         WHERE rowid IN (SELECT value FROM json_each(?1)) AND ready_at IS NOT NULL";
    if !rows.is_empty() {
        batch::query(ENQUEUE, rows)?.execute(connection).await?;
    }
    Ok(())
}

/// Fails everything that depends, directly or not, on tasks that failed (rule T5). Returns the
/// culprit of each.
///
/// The tasks must be in the order of culprits.
async fn fail_dependents<'a>(
    connection: &mut SqliteConnection,
    tasks: &'a [Held],
    now: Timestamp,
) -> Attempt<Vec<&'a Held>> {
    // Everything behind an ended task has ended too. So the walk stops there, and its cost is
    // proportional to the changes.
    const BEHIND: &str = "WITH RECURSIVE
         culprit (run_id, task_index) AS (
             SELECT t.run_id, t.task_index FROM json_each(?1) AS failed CROSS JOIN tasks AS t ON t.rowid = failed.value
         ),
         reached (run_id, task_index, task_row) AS (
             SELECT run_id, task_index, NULL FROM culprit
             UNION
             SELECT t.run_id, t.task_index, t.rowid
             FROM reached
             CROSS JOIN task_edges AS edge
                 ON edge.run_id = reached.run_id AND edge.task_index = reached.task_index
             CROSS JOIN tasks AS t
                 ON t.run_id = edge.run_id AND t.task_index = edge.dependent_index
             WHERE t.status = 'pending'
         )
         SELECT run_id, task_index, task_row, (
             SELECT json_group_array(edge.dependent_index) FROM task_edges AS edge
             WHERE edge.run_id = reached.run_id AND edge.task_index = reached.task_index
         ) AS dependents
         FROM reached";
    const FAIL: &str =
        "UPDATE tasks SET status = 'failed', error = new.value ->> 1, finished_at = ?2, ready_at = NULL,
             retry_at = NULL
         FROM json_each(?1) AS new
         WHERE tasks.rowid = new.value ->> 0";
    let culprits: Vec<&Held> = tasks.iter().filter(|task| task.has_failed()).collect();
    if culprits.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Value> = culprits.iter().map(|task| Value::from(task.row)).collect();
    let reached = batch::query(BEHIND, &rows)?.fetch_all(&mut *connection).await?;
    let mut behind = Behind::default();
    for row in &reached {
        behind.add(row)?;
    }
    let failing = behind.blame(&culprits);
    if !failing.is_empty() {
        let rows: Vec<Value> = failing
            .iter()
            .map(|(row, culprit)| json!([row, dependency_failed_message(&culprit.name)]))
            .collect();
        batch::query(FAIL, &rows)?.bind(now.as_micros()).execute(connection).await?;
    }
    Ok(failing.into_iter().map(|(_, culprit)| culprit).collect())
}

/// The live tasks behind failed ones, with the edges between them.
#[derive(Default)]
struct Behind {
    dependents: HashMap<(RunId, i64), Vec<i64>>,
    /// The rows of the live ones.
    live: HashMap<(RunId, i64), i64>,
}

impl Behind {
    fn add(&mut self, row: &SqliteRow) -> Result<()> {
        let cells = Cells::new(row, "task_edges").identified_by("run_id");
        let key = (RunId::from_uuid(cells.uuid("run_id")?), cells.required("task_index")?);
        let dependents = serde_json::from_str(cells.required("dependents")?)
            .map_err(|source| cells.corrupt("dependent_index", "is no task index").with_source(source))?;
        if let Some(row) = row.try_get("task_row").ok().flatten() {
            self.live.insert(key, row);
        }
        self.dependents.insert(key, dependents);
        Ok(())
    }

    /// Maps each live task's row to the first culprit that reaches it.
    fn blame<'a>(mut self, culprits: &[&'a Held]) -> Vec<(i64, &'a Held)> {
        let mut failing = Vec::with_capacity(self.live.len());
        for &culprit in culprits {
            let mut next = VecDeque::from([culprit.index]);
            while let Some(index) = next.pop_front() {
                // Removed, because no other culprit need walk again what one has reached.
                for dependent in self.dependents.remove(&(culprit.run, index)).unwrap_or_default() {
                    if let Some(row) = self.live.remove(&(culprit.run, dependent)) {
                        failing.push((row, culprit));
                        next.push_back(dependent);
                    }
                }
            }
        }
        failing
    }
}

/// The changes of a batch to the counts of runs.
#[derive(Default)]
struct RunCounts(BTreeMap<RunId, RunCount>);

struct RunCount {
    found: RunFound,
    ended: i64,
    failed: i64,
    error: Option<String>,
    last_call: usize,
}

impl RunCounts {
    fn of(&mut self, task: &Held) -> &mut RunCount {
        self.0.entry(task.run).or_insert_with(|| RunCount {
            found: task.of_run.clone(),
            ended: 0,
            failed: 0,
            error: None,
            last_call: 0,
        })
    }

    /// Counts a task that ended, by itself or because of this one.
    fn ended(&mut self, task: &Held, failed: bool) {
        let count = self.of(task);
        count.last_call = count.last_call.max(task.changed_by.unwrap_or(0));
        count.ended += 1;
        count.failed += i64::from(failed);
    }

    /// The first culprit is blamed.
    fn culprit(&mut self, task: &Held) {
        self.of(task).error.get_or_insert_with(|| task_failed_message(&task.name));
    }

    /// Counts, and ends the runs whose last task has ended (rule R3).
    async fn store(
        self,
        connection: &mut SqliteConnection,
        now: Timestamp,
    ) -> Attempt<Vec<(usize, EndedRun)>> {
        const COUNT: &str = "UPDATE runs SET
                 tasks_unfinished = tasks_unfinished - (new.value ->> 1),
                 tasks_failed = tasks_failed + (new.value ->> 2),
                 error = coalesce(error, new.value ->> 3)
             FROM json_each(?1) AS new
             WHERE runs.id = unhex(new.value ->> 0)";
        // In a separate statement: a status that is set is checked, even a damaged one that stays
        // the same.
        const END: &str = "UPDATE runs SET status = new.value ->> 1, finished_at = ?2
             FROM json_each(?1) AS new
             WHERE runs.id = unhex(new.value ->> 0)";
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let counts: Vec<Value> = self
            .0
            .iter()
            .map(|(run, count)| json!([hex(run.as_uuid()), count.ended, count.failed, count.error]))
            .collect();
        batch::query(COUNT, &counts)?.execute(&mut *connection).await?;
        let ended = self.0.into_iter().filter_map(|(run, count)| {
            let status = count.end()?;
            Some((count.last_call, EndedRun::new(run, status)))
        });
        let ended: Vec<(usize, EndedRun)> = ended.collect();
        if !ended.is_empty() {
            let ids: Vec<String> = ended.iter().map(|(_, ended)| hex(ended.run.as_uuid())).collect();
            let ends = ids.iter().zip(&ended).map(|(id, (_, ended))| json!([id, ended.status.as_str()]));
            let ends: Vec<Value> = ends.collect();
            batch::query(END, &ends)?.bind(now.as_micros()).execute(&mut *connection).await?;
            count_ended(connection, &ids.into_iter().map(Value::from).collect::<Vec<_>>(), 1).await?;
        }
        Ok(ended)
    }
}

impl RunCount {
    /// How the run ends with these tasks, if it does.
    fn end(&self) -> Option<RunStatus> {
        if !self.found.is_live() || self.found.unfinished > self.ended {
            return None;
        }
        let unsuccessful = self.found.failed + self.found.cancelled + self.failed;
        Some(if unsuccessful == 0 { RunStatus::Success } else { RunStatus::Failed })
    }
}
