//! Statements without arguments.

use sqlx::sqlite::SqliteConnection;

/// Runs statements that give no rows. They are not kept prepared, which makes the driver drop what
/// the last such statement was given: batches can be large.
pub(crate) async fn run_sql(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}
