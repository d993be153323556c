//! Migration, pruning, statistics and verification.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ork_state_api::{
    Error, Maintenance, MigrationReport, Prune, Pruned, Result, Rule, Stats, Timestamp, Topic, Violation,
    Watch, verify,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::core::Core;
use crate::database::PostgresDatabase;
use crate::error::Access;
use crate::logs;
use crate::options::LONGEST_STATEMENT;
use crate::rows::{Reader, int_limit, interval};
use crate::schema::{self, Intent};
use crate::statement::Statement;

/// What each number of `VERIFY` means: the rule, the kind of the id, and what is wrong.
const CHECKS: &[(Rule, &str, &str)] = &[
    (Rule::R1, "run", "has no snapshot of its workflow"),
    (Rule::W3, "task", "belongs to a run that is gone"),
    (Rule::T1, "run", "has an edge that is not among its tasks' dependencies"),
    (Rule::T1, "task", "has dependencies without an edge"),
    (Rule::T1, "task", "stands among the ready tasks and is not ready"),
    (Rule::T1, "task", "is ready and does not stand among the ready tasks"),
    (Rule::T2, "task", "has a lease and is not claimed under it"),
    (Rule::L2, "task", "is gone and has a log, or is there and has one that is to be freed"),
    (Rule::L2, "task", "has a log whose chunks do not add up to its length"),
    (Rule::D1, "task", "waits for another number of jobs than are open"),
    (Rule::D1, "deferred job", "is open and not to be polled, or the other way round"),
    (Rule::T8, "task", "has a deadline that is not its attempt's"),
    (Rule::M3, "count of ended runs or tasks", "is not what the runs say"),
];

#[async_trait]
impl Maintenance for PostgresDatabase {
    async fn migrate(&self) -> Result<MigrationReport> {
        migrate(self, Intent::Migrate).await
    }

    async fn plan_migration(&self) -> Result<MigrationReport> {
        migrate(self, Intent::Plan).await
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned> {
        // The deletion includes the first step of freeing logs, and mostly that frees all of them.
        const PRUNE: Statement = Statement::new(
            "SELECT runs, tasks, {schema}.ork_free_logs() AS logs_left FROM {schema}.ork_prune($1, $2, $3)",
        );
        self.call(move |db| async move {
            let statement = || {
                db.query(PRUNE)
                    .bind(interval(prune.older_than.min(LONG_AGO)))
                    .bind(int_limit(prune.limit))
                    .bind(db.now())
            };
            let row = db.row(Access::Write, statement).await?;
            let row = row.ok_or_else(|| Error::internal("a deletion gave no row"))?;
            let row = Reader::new(&row, "runs", Uuid::nil());
            let count =
                |column| u64::try_from(row.get::<i64>(column)?).map_err(|error| row.corrupt(column, error));
            let pruned = Pruned::new(count("runs")?, count("tasks")?);
            logs::free(&db, row.get("logs_left")?).await;
            Ok(pruned)
        })
        .await
    }

    async fn stats(&self) -> Result<Stats> {
        // What has ended was counted as it ended. The rest is live, and found by indexes. It is one
        // statement, so that all of it shows one moment. Only the rows of claimed and deferred
        // tasks are read.
        const STATS: Statement = Statement::new(
            "WITH ended AS (
                 SELECT c.kind, c.status, sum(c.number)::bigint AS number
                 FROM {schema}.ended_counts c
                 GROUP BY c.kind, c.status
             ),
             live AS (
                 SELECT
                     r.status, count(*) AS runs, sum(r.tasks_unfinished)::bigint AS unfinished,
                     sum(r.tasks_failed)::bigint AS failed, sum(r.tasks_cancelled)::bigint AS cancelled,
                     sum(r.tasks_total - r.tasks_unfinished - r.tasks_failed - r.tasks_cancelled)::bigint AS success
                 FROM {schema}.runs r
                 WHERE r.status IN ('pending', 'running', 'paused')
                 GROUP BY r.status
             ),
             jobs AS (
                 SELECT j.status, count(*) AS number, array_agg(DISTINCT j.task_id) AS tasks
                 FROM {schema}.deferred_jobs j
                 WHERE j.poll_at IS NOT NULL
                 GROUP BY j.status
             ),
             held AS (
                 SELECT t.status, count(*) AS number
                 FROM (
                     SELECT l.task_id FROM {schema}.task_leases l
                     UNION
                     SELECT unnest(j.tasks) FROM jobs j
                 ) h
                 JOIN {schema}.tasks t ON t.id = h.task_id
                 GROUP BY t.status
             )
             SELECT x.kind, x.status, sum(x.number)::bigint AS number FROM (
             SELECT 'workflow' AS kind, 'all' AS status, count(*) AS number FROM {schema}.workflows
             UNION ALL SELECT 'run', l.status, l.runs FROM live l
             UNION ALL SELECT e.kind, e.status, e.number FROM ended e
             UNION ALL SELECT 'task', 'success', l.success FROM live l
             UNION ALL SELECT 'task', 'failed', l.failed FROM live l
             UNION ALL SELECT 'task', 'cancelled', l.cancelled FROM live l
             UNION ALL SELECT 'task', 'pending', l.unfinished FROM live l
             UNION ALL SELECT 'task', h.status, h.number FROM held h
             UNION ALL SELECT 'task', 'pending', -h.number FROM held h
             UNION ALL SELECT 'job', j.status, j.number FROM jobs j
             UNION ALL (
                 SELECT 'oldest', 'ready', (extract(epoch FROM q.ready_at) * 1000000)::bigint
                 FROM {schema}.ready_tasks q
                 WHERE q.ready_at <= coalesce($1, now())
                 ORDER BY q.ready_at
                 LIMIT 1
             )
             ) x GROUP BY x.kind, x.status",
        );
        self.call(|db| async move {
            let rows = db.rows(Access::Read, || db.query(STATS).bind(db.now())).await?;
            let mut stats = Stats::none();
            for row in &rows {
                add(Reader::new(row, "ended_counts", Uuid::nil()), &mut stats)?;
            }
            Ok(stats)
        })
        .await
    }

    async fn watch(&self, topic: Topic) -> Result<Watch> {
        let listeners = self.listeners.clone();
        self.call(move |db| async move { listeners.watch(db, topic).await }).await
    }

    async fn verify(&self) -> Result<Vec<Violation>> {
        // Checks for what the methods of the store do not show. It is one statement, so that all
        // checks see one moment. Each check has a number in `CHECKS`.
        const VERIFY: Statement = Statement::new(
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
                 LEFT JOIN {schema}.deleted_logs d ON d.task_id = g.task_id
                 WHERE (t.id IS NULL) <> (d.task_id IS NOT NULL)
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
                         WHERE task_id NOT IN (SELECT task_id FROM {schema}.deleted_logs)
                     ) k
                     GROUP BY k.task_id
                 ) c ON c.task_id = g.task_id
                 WHERE coalesce(g.length, -1) <> coalesce(c.length, 0) OR c.is_whole IS FALSE
                 UNION ALL
                 SELECT 9, coalesce(t.id, j.task_id)
                 FROM {schema}.tasks t
                 FULL JOIN (
                     SELECT k.task_id, count(*) FILTER (WHERE k.status IN ('pending', 'polling')) AS open
                     FROM {schema}.deferred_jobs k
                     GROUP BY k.task_id
                 ) j ON j.task_id = t.id
                 WHERE coalesce(t.open_jobs, -1) <> coalesce(j.open, 0)
                 UNION ALL
                 SELECT 10, j.id
                 FROM {schema}.deferred_jobs j
                 WHERE (j.status IN ('pending', 'polling')) <> (j.poll_at IS NOT NULL)
                 UNION ALL
                 SELECT 11, coalesce(t.id, o.task_id)
                 FROM (
                     SELECT k.id, k.started_at + make_interval(secs => k.timeout_seconds) AS deadline
                     FROM {schema}.tasks k
                     WHERE k.status = 'running' AND k.timeout_seconds IS NOT NULL
                 ) t
                 FULL JOIN {schema}.task_timeouts o ON o.task_id = t.id
                 WHERE t.deadline IS DISTINCT FROM o.deadline
                 UNION ALL
                 SELECT 12, NULL
                 FROM (
                     SELECT kind, status, sum(number) AS number FROM {schema}.ended_counts GROUP BY kind, status
                 ) c
                 FULL JOIN (
                     SELECT n.kind, n.status, sum(n.number) AS number
                     FROM {schema}.runs r
                     CROSS JOIN LATERAL (
                         VALUES
                             ('run', r.status, 1),
                             ('task', 'success', r.tasks_total - r.tasks_failed - r.tasks_cancelled),
                             ('task', 'failed', r.tasks_failed),
                             ('task', 'cancelled', r.tasks_cancelled)
                     ) n (kind, status, number)
                     WHERE r.status IN ('success', 'failed', 'cancelled')
                     GROUP BY n.kind, n.status
                 ) n ON n.kind = c.kind AND n.status = c.status
                 WHERE coalesce(c.number, 0) <> coalesce(n.number, 0)
             ) c
             ORDER BY c.number, c.id",
        );
        let mut found = verify::observe(self).await?;
        let hidden = self
            .call(|db| async move {
                // It reads the whole store.
                let verify = || db.query(VERIFY);
                let rows = db.rows_within(LONGEST_STATEMENT, Access::Read, verify).await?;
                rows.iter().map(violation).collect::<Result<Vec<_>>>()
            })
            .await?;
        found.extend(hidden);
        Ok(found)
    }
}

async fn migrate(database: &PostgresDatabase, intent: Intent) -> Result<MigrationReport> {
    let migrate = |db: Arc<Core>| async move {
        let mut connection = db.acquire().await?;
        schema::migrate(&db.site, &mut connection, intent).await
    };
    database.call_unmigrated(migrate).await
}

/// Before anything that is stored. The server cannot count back from now without limit.
const LONG_AGO: Duration = Duration::from_secs(2000 * 365 * 24 * 3600);

/// Adds a row to the statistics.
fn add(row: Reader<'_>, stats: &mut Stats) -> Result<()> {
    let number: i64 = row.get("number")?;
    let counter = match row.get::<&str>("kind")? {
        "workflow" => &mut stats.workflows,
        "run" => stats.runs.entry(row.text("status")?).or_default(),
        "task" => stats.tasks.entry(row.text("status")?).or_default(),
        "job" => stats.open_jobs.entry(row.text("status")?).or_default(),
        _ => {
            stats.oldest_ready_at = Some(Timestamp::from_micros(number)?);
            return Ok(());
        }
    };
    *counter = u64::try_from(number).map_err(|error| row.corrupt("number", error))?;
    Ok(())
}

fn violation(row: &PgRow) -> Result<Violation> {
    let unexpected = |source| Error::internal("a check gave no row of the expected form").with_source(source);
    let number: i32 = row.try_get("number").map_err(unexpected)?;
    let id: Option<String> = row.try_get("id").map_err(unexpected)?;
    let check = usize::try_from(number).ok().and_then(|number| CHECKS.get(number));
    let (rule, entity, problem) = check.ok_or_else(|| Error::internal("a check of no known number"))?;
    let entity = id.map_or_else(|| (*entity).to_owned(), |id| format!("{entity} {id}"));
    Ok(Violation::new(*rule, entity, *problem))
}
