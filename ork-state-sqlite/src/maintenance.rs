//! Looking after a store.

use async_trait::async_trait;
use ork_state_api::{Maintenance, MigrationReport, Result, Violation};
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use crate::SqliteDatabase;
use crate::error::Attempt;
use crate::schema;

#[async_trait]
impl Maintenance for SqliteDatabase {
    async fn migrate(&self) -> Result<MigrationReport> {
        let clock = self.clock();
        self.write_alone(move |connection| {
            Box::pin(async move { schema::migrate(connection, clock.as_ref()).await })
        })
        .await
    }

    async fn verify(&self) -> Result<Vec<Violation>> {
        let mut found = ork_state_api::verify::observe(self).await?;
        found.extend(self.read_one_state(|connection| Box::pin(check(connection))).await?);
        Ok(found)
    }
}

/// Something that only SQL sees: the rows are the entity's kind and id and what is wrong with it.
struct Check {
    rule: &'static str,
    entity: &'static str,
    problem: &'static str,
    /// Gives the ids of the entities that have the problem.
    sql: &'static str,
}

const CHECKS: &[Check] = &[
    Check {
        rule: "T1",
        entity: "ready_tasks",
        problem: "has a row for a task that is not ready, or with another time, run or index than the task's",
        sql: "SELECT q.task_id FROM ready_tasks AS q WHERE NOT EXISTS (
                  SELECT 1 FROM tasks AS t JOIN runs AS r ON r.id = t.run_id
                  WHERE t.id = q.task_id AND t.status = 'pending' AND t.unmet_dependencies = 0
                      AND r.status = 'running' AND t.ready_at = q.ready_at AND t.run_id = q.run_id
                      AND t.task_index = q.task_index)",
    },
    Check {
        rule: "T1",
        entity: "tasks",
        problem: "is ready and not in ready_tasks",
        sql: "SELECT t.id FROM runs AS r JOIN tasks AS t ON t.run_id = r.id
              WHERE r.status = 'running' AND t.status = 'pending' AND t.unmet_dependencies = 0 AND NOT EXISTS (
                  SELECT 1 FROM ready_tasks AS q
                  WHERE q.ready_at = t.ready_at AND q.run_id = t.run_id AND q.task_index = t.task_index)",
    },
    Check {
        rule: "T2",
        entity: "task_leases",
        problem: "has a row for a task that is not claimed, or with another run or token than the task's",
        sql: "SELECT l.task_id FROM task_leases AS l WHERE NOT EXISTS (
                  SELECT 1 FROM tasks AS t
                  WHERE t.id = l.task_id AND t.status IN ('dispatched', 'running') AND t.run_id = l.run_id
                      AND t.token = l.token)",
    },
    Check {
        rule: "T1",
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
        rule: "W3",
        entity: "task_edges",
        problem: "has rows for a run whose tasks are not there",
        sql: "SELECT DISTINCT e.run_id FROM task_edges AS e
              LEFT JOIN tasks AS a ON a.run_id = e.run_id AND a.task_index = e.task_index
              LEFT JOIN tasks AS b ON b.run_id = e.run_id AND b.task_index = e.dependent_index
              WHERE a.id IS NULL OR b.id IS NULL",
    },
    Check {
        rule: "W3",
        entity: "task_logs",
        problem: "has a row for a task that is not there",
        sql: "SELECT task_id FROM task_logs WHERE task_id NOT IN (SELECT id FROM tasks)",
    },
    Check {
        rule: "L2",
        entity: "task_logs",
        problem: "has another length than its chunks, or chunks with a gap between them",
        sql: "SELECT c.task_id FROM (
                  SELECT task_id, start_offset, length(data) AS bytes,
                      lag(start_offset + length(data), 1, 0)
                          OVER (PARTITION BY task_id ORDER BY start_offset) AS expected
                  FROM task_log_chunks
              ) AS c
              LEFT JOIN task_logs AS g ON g.task_id = c.task_id
              GROUP BY c.task_id
              HAVING max(c.start_offset <> c.expected) OR g.length IS NOT sum(c.bytes)
              UNION
              SELECT task_id FROM task_logs
              WHERE length > 0 AND task_id NOT IN (SELECT task_id FROM task_log_chunks)",
    },
];

/// All that only SQL sees, on one state of the store.
async fn check(connection: &mut SqliteConnection) -> Attempt<Vec<Violation>> {
    const FOREIGN_KEYS: &str = "SELECT \"table\", rowid, parent FROM pragma_foreign_key_check";
    const INTEGRITY: &str =
        "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'";
    let mut found = Vec::new();
    for Check { rule, entity, problem, sql } in CHECKS {
        for row in sqlx::query(*sql).fetch_all(&mut *connection).await? {
            let id: Vec<u8> = row.try_get(0)?;
            let id = Uuid::from_slice(&id).map_or_else(|_| format!("{id:02x?}"), |id| id.to_string());
            found.push(Violation::new(rule, format!("{entity} {id}"), *problem));
        }
    }
    for row in sqlx::query(FOREIGN_KEYS).fetch_all(&mut *connection).await? {
        let (table, parent): (String, String) = (row.try_get(0)?, row.try_get(2)?);
        let number: Option<i64> = row.try_get(1)?;
        let row = number.map_or_else(|| "of unknown number".to_owned(), |number| number.to_string());
        found.push(Violation::new(
            "W3",
            format!("{table} row {row}"),
            format!("refers to nothing in {parent}"),
        ));
    }
    for problem in sqlx::query_scalar(INTEGRITY).fetch_all(connection).await? {
        let problem: String = problem;
        found.push(Violation::new("G8", "the file", problem));
    }
    Ok(found)
}
