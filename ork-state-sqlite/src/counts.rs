//! Counts what has ended. The transactions that end, retry or delete runs keep the counts, so that
//! the history need not be counted (rule M3).

use serde_json::Value;
use sqlx::sqlite::SqliteConnection;

use crate::batch;
use crate::error::Attempt;

/// The statement that adds ended runs, with their tasks, to the counts (`?2` is 1), or subtracts
/// them (-1). A query gives the ids of the runs. It has one parameter, `?1`.
macro_rules! count_ended_sql {
    ($runs:literal) => {
        concat!(
            "INSERT INTO ended_counts (kind, status, number)
             SELECT counted.kind, coalesce(counted.status, r.status), ?2 * sum(CASE counted.kind || coalesce(counted.status, '')
                 WHEN 'tasksuccess' THEN r.tasks_total - r.tasks_failed - r.tasks_cancelled
                 WHEN 'taskfailed' THEN r.tasks_failed
                 WHEN 'taskcancelled' THEN r.tasks_cancelled
                 WHEN 'run' THEN 1
                 ELSE ?2 > 0
             END)
             FROM runs AS r
             CROSS JOIN (
                 SELECT 'run' AS kind, NULL AS status
                 UNION ALL VALUES ('task', 'success'), ('task', 'failed'), ('task', 'cancelled'), ('ever', 'ended')
             ) AS counted
             WHERE r.id IN (",
            $runs,
            ")
             GROUP BY 1, 2
             ON CONFLICT (kind, status) DO UPDATE SET number = number + excluded.number"
        )
    };
}
pub(crate) use count_ended_sql;

/// Adds ended runs to the counts (1) or subtracts them (-1).
pub(crate) async fn count_ended(connection: &mut SqliteConnection, runs: &[Value], sign: i64) -> Attempt<()> {
    const COUNT: &str = count_ended_sql!("SELECT unhex(value) FROM json_each(?1)");
    batch::query(COUNT, runs)?.bind(sign).execute(connection).await?;
    Ok(())
}
