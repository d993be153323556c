//! Migrating, and checking what is stored.

use async_trait::async_trait;
use ork_state_api::{Error, Maintenance, MigrationReport, Result, Violation, verify};
use sqlx::postgres::PgRow;
use sqlx::{Row, SqlStr, query};

use crate::PostgresDatabase;
use crate::error::Access;
use crate::options::Schema;
use crate::schema::sql;

pub(crate) struct Statements {
    verify: SqlStr,
}

impl Statements {
    pub(crate) fn new(schema: &Schema) -> Self {
        Self {
            // What the methods of the store do not show. One statement, so that all of it is seen at one moment; each check has a
            // number in `CHECKS`.
            verify: sql(format!(
                "SELECT c.number, c.id::text AS id FROM (
                     SELECT 0 AS number, r.id
                     FROM {schema}.runs r
                     LEFT JOIN {schema}.workflow_snapshots s ON s.id = r.snapshot_id
                     WHERE s.workflow_id IS DISTINCT FROM r.workflow_id
                     UNION ALL
                     SELECT 1, t.id
                     FROM {schema}.tasks t
                     LEFT JOIN {schema}.runs r ON r.id = t.run_id
                     WHERE r.id IS NULL
                     UNION ALL
                     SELECT DISTINCT 2, e.run_id
                     FROM {schema}.task_edges e
                     LEFT JOIN {schema}.tasks f ON f.run_id = e.run_id AND f.task_index = e.task_index
                     LEFT JOIN {schema}.tasks t ON t.run_id = e.run_id AND t.task_index = e.dependent_index
                         AND t.id = e.dependent_id
                     WHERE f.task_name = ANY (t.depends_on) IS NOT TRUE
                     UNION ALL
                     SELECT 3, t.id
                     FROM {schema}.tasks t
                     LEFT JOIN {schema}.task_edges e ON e.run_id = t.run_id AND e.dependent_index = t.task_index
                     GROUP BY t.id
                     HAVING count(e.run_id) <> cardinality(t.depends_on)
                     UNION ALL
                     SELECT 4, q.task_id
                     FROM {schema}.ready_tasks q
                     LEFT JOIN {schema}.tasks t ON t.id = q.task_id AND t.status = 'pending'
                         AND t.unmet_dependencies = 0 AND t.ready_at = q.ready_at AND t.run_id = q.run_id
                         AND t.task_index = q.task_index
                     LEFT JOIN {schema}.runs r ON r.id = t.run_id AND r.status = 'running'
                     WHERE r.id IS NULL
                     UNION ALL
                     SELECT 5, t.id
                     FROM {schema}.tasks t
                     JOIN {schema}.runs r ON r.id = t.run_id
                     LEFT JOIN {schema}.ready_tasks q ON q.run_id = t.run_id AND q.task_index = t.task_index
                         AND q.ready_at = t.ready_at
                     WHERE r.status = 'running' AND t.status = 'pending' AND t.unmet_dependencies = 0
                         AND q.task_id IS NULL
                     UNION ALL
                     SELECT 6, l.task_id
                     FROM {schema}.task_leases l
                     LEFT JOIN {schema}.tasks t ON t.id = l.task_id AND t.run_id = l.run_id AND t.token = l.token
                         AND t.status IN ('dispatched', 'running')
                     WHERE t.id IS NULL
                     UNION ALL
                     SELECT 7, g.task_id
                     FROM (
                         SELECT task_id FROM {schema}.task_logs UNION SELECT task_id FROM {schema}.task_log_chunks
                     ) g
                     LEFT JOIN {schema}.tasks t ON t.id = g.task_id
                     WHERE t.id IS NULL
                     UNION ALL
                     SELECT 8, coalesce(g.task_id, c.task_id)
                     FROM {schema}.task_logs g
                     FULL JOIN (
                         SELECT k.task_id, sum(k.bytes) AS length, bool_and(k.start_offset = k.before) AS is_whole
                         FROM (
                             SELECT
                                 task_id, start_offset, octet_length(data) AS bytes,
                                 coalesce(sum(octet_length(data)) OVER (
                                     PARTITION BY task_id ORDER BY start_offset
                                     ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                                 ), 0) AS before
                             FROM {schema}.task_log_chunks
                         ) k
                         GROUP BY k.task_id
                     ) c ON c.task_id = g.task_id
                     WHERE coalesce(g.length, -1) <> coalesce(c.length, 0) OR c.is_whole IS FALSE
                 ) c
                 ORDER BY c.number, c.id"
            )),
        }
    }
}

/// What each number of the statement above means: the rule, what the id is of, and what is wrong with it.
const CHECKS: &[(&str, &str, &str)] = &[
    ("R1", "run", "has no snapshot of its workflow"),
    ("W3", "task", "belongs to a run that is gone"),
    ("T1", "run", "has an edge that is not among its tasks' dependencies"),
    ("T1", "task", "has dependencies without an edge"),
    ("T1", "task", "stands among the ready tasks and is not ready"),
    ("T1", "task", "is ready and does not stand among the ready tasks"),
    ("T2", "task", "has a lease and is not claimed under it"),
    ("L2", "task", "is gone and has a log"),
    ("L2", "task", "has a log whose chunks do not add up to its length"),
];

#[async_trait]
impl Maintenance for PostgresDatabase {
    async fn migrate(&self) -> Result<MigrationReport> {
        self.bring_up_to_date().await
    }

    async fn verify(&self) -> Result<Vec<Violation>> {
        let mut found = verify::observe(self).await?;
        let hidden = self
            .call(|db| async move {
                let rows = db.rows(Access::Read, || query(db.sql.maintenance.verify.clone())).await?;
                rows.iter().map(violation).collect::<Result<Vec<_>>>()
            })
            .await?;
        found.extend(hidden);
        Ok(found)
    }
}

fn violation(row: &PgRow) -> Result<Violation> {
    let unexpected = |source| Error::internal("a check gave no row of the expected form").with_source(source);
    let number: i32 = row.try_get("number").map_err(unexpected)?;
    let id: String = row.try_get("id").map_err(unexpected)?;
    let check = usize::try_from(number).ok().and_then(|number| CHECKS.get(number));
    let (rule, entity, problem) = check.ok_or_else(|| Error::internal("a check of no known number"))?;
    Ok(Violation::new(rule, format!("{entity} {id}"), *problem))
}
