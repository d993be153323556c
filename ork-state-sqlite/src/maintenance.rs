//! Migration, pruning, statistics and verification.

use async_trait::async_trait;
use ork_state_api::{
    JobStatus, Maintenance, MigrationReport, Prune, Pruned, Result, Rule, RunStatus, Stats, TaskStatus,
    Timestamp, Topic, Violation, Watch,
};
use serde_json::Value;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use crate::batch;
use crate::counts::count_ended;
use crate::database::SqliteDatabase;
use crate::error::Attempt;
use crate::rows::{Cells, hex};
use crate::runs::delete_runs_sql;
use crate::schema::{self, Migrate};
use crate::watch::Source;

#[async_trait]
impl Maintenance for SqliteDatabase {
    async fn migrate(&self) -> Result<MigrationReport> {
        self.write_alone(|connection| {
            Box::pin(async move { schema::migrate(connection, Migrate::Commit).await })
        })
        .await
    }

    async fn plan_migration(&self) -> Result<MigrationReport> {
        self.write_alone(|connection| {
            Box::pin(async move { schema::migrate(connection, Migrate::Plan).await })
        })
        .await
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned> {
        let clock = self.clock();
        let pruned = self
            .write(move |connection| {
                Box::pin(async move { delete_ended(connection, prune, clock.now()).await })
            })
            .await?;
        self.free_deleted_logs().await;
        Ok(pruned)
    }

    async fn stats(&self) -> Result<Stats> {
        let clock = self.clock();
        self.read_one_state(move |connection| Box::pin(async move { stats(connection, clock.now()).await }))
            .await
    }

    async fn watch(&self, topic: Topic) -> Result<Watch> {
        Ok(Watch::new(Source::new(self, topic).await?))
    }

    async fn verify(&self) -> Result<Vec<Violation>> {
        let mut found = ork_state_api::verify::observe(self).await?;
        found.extend(self.read_one_state(|connection| Box::pin(check(connection))).await?);
        Ok(found)
    }
}

/// Deletes the runs that ended longest ago, with everything that belongs to them.
async fn delete_ended(connection: &mut SqliteConnection, prune: Prune, now: Timestamp) -> Attempt<Pruned> {
    let before = now.saturating_sub(prune.older_than);
    let found = sqlx::query(ENDED)
        .bind(before.as_micros())
        .bind(i64::try_from(prune.limit.get()).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
    let ids = found.iter().map(|row| Ok(Value::from(hex(Cells::new(row, "runs").uuid("id")?))));
    let ids = ids.collect::<Result<Vec<_>>>()?;
    if ids.is_empty() {
        return Ok(Pruned::default());
    }
    count_ended(connection, &ids, -1).await?;
    let json = batch::json(&ids)?;
    let mut deleted = [0; DELETES.len()];
    for (statement, deleted) in DELETES.into_iter().zip(&mut deleted) {
        let done = sqlx::query(statement).bind(json.clone()).execute(&mut *connection).await?;
        *deleted = done.rows_affected();
    }
    let [.., tasks, runs] = deleted;
    Ok(Pruned::new(runs, tasks))
}

/// A batch gives the ids of the runs.
pub(crate) const DELETES: [&str; 9] = delete_runs_sql!("SELECT unhex(value) FROM json_each(?1)");

/// Reads the index of ended runs from its beginning.
pub(crate) const ENDED: &str = "SELECT id FROM runs WHERE finished_at < ?1 ORDER BY finished_at, id LIMIT ?2";

/// Counts what is live, and adds the counts that were kept as runs and tasks ended (rule M3).
async fn stats(connection: &mut SqliteConnection, now: Timestamp) -> Attempt<Stats> {
    const WORKFLOWS: &str = "SELECT count(*) FROM workflows";
    const ENDED: &str = "SELECT kind, status, number FROM ended_counts WHERE kind IN ('run', 'task')";
    const LEASED: &str =
        "SELECT t.status, count(*) FROM task_leases AS l CROSS JOIN tasks AS t ON t.id = l.task_id
         GROUP BY t.status";
    const JOBS: &str = "SELECT status, count(*) FROM deferred_jobs WHERE poll_at IS NOT NULL GROUP BY status";
    const DEFERRED: &str = "SELECT count(DISTINCT task_id) FROM deferred_jobs WHERE poll_at IS NOT NULL";
    const OLDEST: &str = "SELECT min(ready_at) FROM ready_tasks WHERE ready_at <= ?1";
    let mut stats = Stats::none();
    let number = |number: i64| u64::try_from(number).unwrap_or(0);

    stats.workflows = number(sqlx::query_scalar(WORKFLOWS).fetch_one(&mut *connection).await?);
    for row in sqlx::query(ENDED).fetch_all(&mut *connection).await? {
        let cells = Cells::new(&row, "ended_counts").identified_by("kind");
        let counted = number(cells.required("number")?);
        match cells.required("kind")? {
            "run" => *stats.runs.entry(cells.text("status")?).or_default() += counted,
            _ => *stats.tasks.entry(cells.text("status")?).or_default() += counted,
        }
    }
    let mut unfinished = 0;
    for row in sqlx::query(LIVE).fetch_all(&mut *connection).await? {
        let cells = Cells::new(&row, "runs");
        let status: RunStatus = cells.text("status")?;
        *stats.runs.entry(status).or_default() += number(cells.required("runs")?);
        for (status, column) in [
            (TaskStatus::Success, "succeeded"),
            (TaskStatus::Failed, "failed"),
            (TaskStatus::Cancelled, "cancelled"),
        ] {
            *stats.tasks.entry(status).or_default() += number(cells.required(column)?);
        }
        unfinished += number(cells.required("unfinished")?);
    }
    let mut claimed = number(sqlx::query_scalar(DEFERRED).fetch_one(&mut *connection).await?);
    *stats.tasks.entry(TaskStatus::Running).or_default() += claimed;
    let leased: Vec<(String, i64)> = sqlx::query_as(LEASED).fetch_all(&mut *connection).await?;
    for (status, tasks) in leased {
        *stats.tasks.entry(status.parse()?).or_default() += number(tasks);
        claimed += number(tasks);
    }
    // Unfinished tasks that are not claimed are pending.
    *stats.tasks.entry(TaskStatus::Pending).or_default() += unfinished.saturating_sub(claimed);
    let jobs: Vec<(String, i64)> = sqlx::query_as(JOBS).fetch_all(&mut *connection).await?;
    for (status, jobs) in jobs {
        stats.open_jobs.insert(status.parse::<JobStatus>()?, number(jobs));
    }
    let oldest: Option<i64> = sqlx::query_scalar(OLDEST).bind(now.as_micros()).fetch_one(connection).await?;
    stats.oldest_ready_at = oldest.map(Timestamp::from_micros).transpose()?;
    Ok(stats)
}

/// Reads only the live runs, by the index of statuses.
pub(crate) const LIVE: &str = "SELECT status, count(*) AS runs, sum(tasks_unfinished) AS unfinished,
         sum(tasks_total - tasks_unfinished - tasks_failed - tasks_cancelled) AS succeeded,
         sum(tasks_failed) AS failed, sum(tasks_cancelled) AS cancelled
     FROM runs WHERE status IN ('pending', 'running', 'paused') GROUP BY status";

/// A problem that only SQL can see. The rows hold the entity's kind, its id and what is wrong with
/// it.
struct Check {
    rule: Rule,
    entity: &'static str,
    problem: &'static str,
    /// Returns the ids of the entities that have the problem, or their names.
    sql: &'static str,
}

const CHECKS: &[Check] = &[
    Check {
        rule: Rule::T1,
        entity: "ready_tasks",
        problem: "has a row for a task that is not ready, or with another time, run or index than the task's",
        sql: "SELECT q.task_id FROM ready_tasks AS q WHERE NOT EXISTS (
                  SELECT 1 FROM tasks AS t JOIN runs AS r ON r.id = t.run_id
                  WHERE t.id = q.task_id AND t.status = 'pending' AND t.unmet_dependencies = 0
                      AND r.status = 'running' AND t.ready_at = q.ready_at AND t.run_id = q.run_id
                      AND t.task_index = q.task_index)",
    },
    Check {
        rule: Rule::T1,
        entity: "tasks",
        problem: "is ready and not in ready_tasks",
        sql: "SELECT t.id FROM runs AS r JOIN tasks AS t ON t.run_id = r.id
              WHERE r.status = 'running' AND t.status = 'pending' AND t.unmet_dependencies = 0 AND NOT EXISTS (
                  SELECT 1 FROM ready_tasks AS q
                  WHERE q.ready_at = t.ready_at AND q.run_id = t.run_id AND q.task_index = t.task_index)",
    },
    Check {
        rule: Rule::T2,
        entity: "task_leases",
        problem: "has a row for a task that is not claimed, or with another run or token than the task's",
        sql: "SELECT l.task_id FROM task_leases AS l WHERE NOT EXISTS (
                  SELECT 1 FROM tasks AS t
                  WHERE t.id = l.task_id AND t.status IN ('dispatched', 'running') AND t.run_id = l.run_id
                      AND t.token = l.token)",
    },
    Check {
        rule: Rule::T8,
        entity: "task_timeouts",
        problem: "has a row for a task that does not run or may run for ever, or with another time than the task's",
        sql: "SELECT o.task_id FROM task_timeouts AS o WHERE NOT EXISTS (
                  SELECT 1 FROM tasks AS t
                  WHERE t.id = o.task_id AND t.status = 'running'
                      AND o.deadline = min(t.started_at + t.timeout_seconds * 1000000, 253402300799999999))",
    },
    Check {
        rule: Rule::T8,
        entity: "tasks",
        problem: "runs, may not run for ever, and is not in task_timeouts",
        sql: "SELECT t.id FROM runs AS r JOIN tasks AS t ON t.run_id = r.id
              WHERE r.status IN ('running', 'paused') AND t.status = 'running' AND t.timeout_seconds IS NOT NULL
                  AND t.id NOT IN (SELECT task_id FROM task_timeouts)",
    },
    Check {
        rule: Rule::D1,
        entity: "deferred_jobs",
        problem: "has a time to be polled and has ended, or the other way round",
        sql: "SELECT id FROM deferred_jobs WHERE (poll_at IS NULL) = (status IN ('pending', 'polling'))",
    },
    Check {
        rule: Rule::D1,
        entity: "deferred_jobs",
        problem: "is of a task that is not there, or names another run than the task's",
        sql: "SELECT j.id FROM deferred_jobs AS j LEFT JOIN tasks AS t ON t.id = j.task_id
              WHERE t.run_id IS NOT j.run_id",
    },
    Check {
        rule: Rule::D1,
        entity: "tasks",
        problem: "waits for another number of deferred jobs than are open",
        sql: "SELECT t.id
              FROM (
                  SELECT task_id, count(*) AS number FROM deferred_jobs WHERE poll_at IS NOT NULL GROUP BY task_id
              ) AS open
              JOIN tasks AS t ON t.id = open.task_id
              WHERE t.open_jobs <> open.number",
    },
    Check {
        rule: Rule::M3,
        entity: "ended_counts",
        problem: "has another number than there are",
        sql: "SELECT kind || ' ' || status FROM (
                  SELECT kind, status, number FROM ended_counts WHERE kind IN ('run', 'task')
                  UNION ALL SELECT 'run', status, -1 FROM runs WHERE status IN ('success', 'failed', 'cancelled')
                  UNION ALL SELECT 'task', 'success', tasks_failed + tasks_cancelled - tasks_total FROM runs
                      WHERE status IN ('success', 'failed', 'cancelled')
                  UNION ALL SELECT 'task', 'failed', -tasks_failed FROM runs
                      WHERE status IN ('success', 'failed', 'cancelled')
                  UNION ALL SELECT 'task', 'cancelled', -tasks_cancelled FROM runs
                      WHERE status IN ('success', 'failed', 'cancelled')
              )
              GROUP BY kind, status
              HAVING sum(number) <> 0",
    },
    Check {
        rule: Rule::T1,
        entity: "tasks",
        problem: "has another number of rows in task_edges than it lists dependencies",
        sql: "SELECT t.id FROM tasks AS t
              LEFT JOIN (
                  SELECT run_id, dependent_index, count(*) AS number FROM task_edges
                  GROUP BY run_id, dependent_index
              ) AS e ON e.run_id = t.run_id AND e.dependent_index = t.task_index
              WHERE json_valid(t.depends_on) AND json_array_length(t.depends_on) <> coalesce(e.number, 0)",
    },
    Check {
        rule: Rule::W3,
        entity: "task_edges",
        problem: "has rows for a run whose tasks are not there",
        sql: "SELECT DISTINCT e.run_id FROM task_edges AS e
              LEFT JOIN tasks AS a ON a.run_id = e.run_id AND a.task_index = e.task_index
              LEFT JOIN tasks AS b ON b.run_id = e.run_id AND b.task_index = e.dependent_index
              WHERE a.id IS NULL OR b.id IS NULL",
    },
    Check {
        rule: Rule::W3,
        entity: "task_logs",
        problem: "has a row for a task that is not there",
        sql: "SELECT task_id FROM task_logs WHERE task_id NOT IN (SELECT id FROM tasks)",
    },
    Check {
        rule: Rule::W3,
        entity: "deleted_logs",
        problem: "has a row for a task that is there",
        sql: "SELECT task_id FROM deleted_logs WHERE task_id IN (SELECT id FROM tasks)",
    },
    Check {
        rule: Rule::L2,
        entity: "task_logs",
        problem: "has another length than its chunks, or chunks with a gap between them",
        sql: "SELECT c.task_id FROM (
                  SELECT task_id, start_offset, length(data) AS bytes,
                      lag(start_offset + length(data), 1, 0)
                          OVER (PARTITION BY task_id ORDER BY start_offset) AS expected
                  FROM task_log_chunks
                  WHERE task_id NOT IN (SELECT task_id FROM deleted_logs)
              ) AS c
              LEFT JOIN task_logs AS g ON g.task_id = c.task_id
              GROUP BY c.task_id
              HAVING max(c.start_offset <> c.expected) OR g.length IS NOT sum(c.bytes)
              UNION
              SELECT task_id FROM task_logs
              WHERE length > 0 AND task_id NOT IN (SELECT task_id FROM task_log_chunks)",
    },
];

/// All checks in SQL, on one state of the store.
async fn check(connection: &mut SqliteConnection) -> Attempt<Vec<Violation>> {
    const FOREIGN_KEYS: &str = "SELECT \"table\", rowid, parent FROM pragma_foreign_key_check";
    const INTEGRITY: &str =
        "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'";
    let mut found = Vec::new();
    for Check { rule, entity, problem, sql } in CHECKS {
        for row in sqlx::query(*sql).fetch_all(&mut *connection).await? {
            let id: Vec<u8> = row.try_get(0)?;
            let text = || std::str::from_utf8(&id).map_or_else(|_| format!("{id:02x?}"), str::to_owned);
            let id = Uuid::from_slice(&id).map_or_else(|_| text(), |id| id.to_string());
            found.push(Violation::new(*rule, format!("{entity} {id}"), *problem));
        }
    }
    for row in sqlx::query(FOREIGN_KEYS).fetch_all(&mut *connection).await? {
        let (table, parent): (String, String) = (row.try_get(0)?, row.try_get(2)?);
        let number: Option<i64> = row.try_get(1)?;
        let row = number.map_or_else(|| "of unknown number".to_owned(), |number| number.to_string());
        found.push(Violation::new(
            Rule::W3,
            format!("{table} row {row}"),
            format!("refers to nothing in {parent}"),
        ));
    }
    for problem in sqlx::query_scalar(INTEGRITY).fetch_all(connection).await? {
        let problem: String = problem;
        found.push(Violation::new(Rule::G8, "the file", problem));
    }
    Ok(found)
}
