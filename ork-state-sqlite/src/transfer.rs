//! Importing the records of another store.

use async_trait::async_trait;
use ork_state_api::backend::{ImportPage, ImportProgress, Transfer, no_import, not_empty};
use ork_state_api::{Error, Result};
use sqlx::sqlite::SqliteConnection;

use crate::database::SqliteDatabase;
use crate::error::Attempt;
use crate::rows::Cells;
use crate::take_in::take_in;

#[async_trait]
impl Transfer for SqliteDatabase {
    async fn import_progress(&self) -> Result<Option<ImportProgress>> {
        self.read(|connection| Box::pin(progress(connection))).await
    }

    async fn import(&self, page: ImportPage) -> Result<()> {
        self.write(move |connection| Box::pin(import(connection, page))).await
    }

    async fn finish_import(&self) -> Result<()> {
        self.write(|connection| Box::pin(finish(connection))).await
    }

    async fn abandon_import(&self) -> Result<()> {
        self.write(|connection| Box::pin(forget(connection))).await
    }
}

async fn progress(connection: &mut SqliteConnection) -> Attempt<Option<ImportProgress>> {
    const PROGRESS: &str = "SELECT id, records, digest FROM import_progress";
    let Some(row) = sqlx::query(PROGRESS).fetch_optional(connection).await? else { return Ok(None) };
    let cells = Cells::new(&row, "import_progress");
    let records: i64 = cells.required("records")?;
    let records = u64::try_from(records).map_err(|source| cells.corrupt("records", source))?;
    Ok(Some(ImportProgress { records, digest: cells.required("digest")? }))
}

async fn require_empty(connection: &mut SqliteConnection) -> Attempt<()> {
    const ANY: &str = "SELECT EXISTS (SELECT 1 FROM workflows)";
    if sqlx::query_scalar(ANY).fetch_one(connection).await? { Err(not_empty().into()) } else { Ok(()) }
}

async fn import(connection: &mut SqliteConnection, page: ImportPage) -> Attempt<()> {
    const KEEP: &str = "INSERT INTO import_records (number, kind, record) VALUES (?1, ?2, ?3)";
    const PROGRESS: &str = "INSERT INTO import_progress (id, records, digest) VALUES (1, ?1, ?2)
         ON CONFLICT (id) DO UPDATE SET records = excluded.records, digest = excluded.digest";
    require_empty(connection).await?;
    let there = progress(connection).await?;
    if there.clone().unwrap_or_default() != *page.after() {
        return Err(page.does_not_follow(there.as_ref()).into());
    }
    let number = |records: u64| {
        i64::try_from(records)
            .map_err(|source| Error::invalid("import", "has too many records").with_source(source))
    };
    for (record, (kind, encoded)) in (page.after().records..).zip(page.records()) {
        sqlx::query(KEEP)
            .bind(number(record)?)
            .bind(*kind)
            .bind(encoded.clone())
            .execute(&mut *connection)
            .await?;
    }
    let to = page.to();
    sqlx::query(PROGRESS).bind(number(to.records)?).bind(to.digest.clone()).execute(connection).await?;
    Ok(())
}

async fn finish(connection: &mut SqliteConnection) -> Attempt<()> {
    require_empty(connection).await?;
    if progress(connection).await?.is_none() {
        return Err(no_import().into());
    }
    // The store is empty, so all these chunks were left by deletions. The import may bring the same
    // tasks again.
    for forget in ["DELETE FROM task_log_chunks", "DELETE FROM deleted_logs"] {
        sqlx::query(forget).execute(&mut *connection).await?;
    }
    take_in(connection).await
}

async fn forget(connection: &mut SqliteConnection) -> Attempt<()> {
    for forget in ["DELETE FROM import_records", "DELETE FROM import_progress"] {
        sqlx::query(forget).execute(&mut *connection).await?;
    }
    Ok(())
}
