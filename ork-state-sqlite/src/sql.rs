//! Statements without arguments.

use sqlx::sqlite::SqliteConnection;

/// Runs statements that return no rows. They are not kept prepared. That makes the driver drop the
/// parameters of the last such statement, which can be a large batch.
pub(crate) async fn run_sql(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}
