//! Importing the records of another store.

use async_trait::async_trait;
use ork_state_api::backend::{ImportPage, ImportProgress, Transfer, no_import, not_empty};
use ork_state_api::{Error, Result};
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::database::PostgresDatabase;
use crate::error::Access;
use crate::options::LONGEST_STATEMENT;
use crate::rows::Reader;
use crate::statement::Statement;

#[async_trait]
impl Transfer for PostgresDatabase {
    async fn import_progress(&self) -> Result<Option<ImportProgress>> {
        const PROGRESS: Statement = Statement::new(
            "SELECT i.records AS found_records, i.digest AS found_digest FROM {schema}.import_progress i",
        );
        self.call(|db| async move {
            let progress = || db.query(PROGRESS);
            db.row(Access::Read, progress).await?.as_ref().map(found).transpose().map(Option::flatten)
        })
        .await
    }

    async fn import(&self, page: ImportPage) -> Result<()> {
        const IMPORT: Statement = Statement::new(
            "SELECT x.answer, x.found_records, x.found_digest FROM {schema}.ork_import($1, $2, $3, $4, $5) x",
        );
        self.call(move |db| async move {
            let (kinds, texts): (Vec<&str>, Vec<&str>) =
                page.records().iter().map(|(kind, text)| (*kind, text.as_str())).unzip();
            let records = i64::try_from(page.after().records)
                .map_err(|source| Error::invalid("import", "has too many records").with_source(source))?;
            let import = || {
                db.query(IMPORT)
                    .bind(records)
                    .bind(page.after().digest.clone())
                    .bind(kinds.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>())
                    .bind(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
                    .bind(page.to().digest.clone())
            };
            let rows = db.rows_within(LONGEST_STATEMENT, Access::Write, import).await?;
            let row = rows.first().ok_or_else(|| Error::internal("an import without an answer"))?;
            match Reader::new(row, "import_progress", Uuid::nil()).get("answer")? {
                "kept" => Ok(()),
                "not_empty" => Err(not_empty()),
                _ => Err(page.does_not_follow(found(row)?.as_ref())),
            }
        })
        .await
    }

    async fn finish_import(&self) -> Result<()> {
        const FINISH: Statement = Statement::new("SELECT {schema}.ork_finish_import($1) AS answer");
        self.call(|db| async move {
            let finish = || db.query(FINISH).bind(db.now());
            let rows = db.rows_within(LONGEST_STATEMENT, Access::Write, finish).await?;
            let row = rows.first().ok_or_else(|| Error::internal("an import without an answer"))?;
            match Reader::new(row, "import_progress", Uuid::nil()).get("answer")? {
                "finished" => Ok(()),
                "not_empty" => Err(not_empty()),
                _ => Err(no_import()),
            }
        })
        .await
    }

    async fn abandon_import(&self) -> Result<()> {
        const ABANDON: Statement = Statement::new(
            "WITH records AS (DELETE FROM {schema}.import_records) DELETE FROM {schema}.import_progress",
        );
        self.call(|db| async move {
            let abandon = || db.query(ABANDON);
            db.rows_within(LONGEST_STATEMENT, Access::Write, abandon).await.map(drop)
        })
        .await
    }
}

/// The progress of the current import, if there is one.
fn found(row: &PgRow) -> Result<Option<ImportProgress>> {
    let row = Reader::new(row, "import_progress", Uuid::nil());
    let Some(records) = row.get::<Option<i64>>("found_records")? else { return Ok(None) };
    let records = u64::try_from(records).map_err(|source| row.corrupt("records", source))?;
    Ok(Some(ImportProgress { records, digest: row.get("found_digest")? }))
}
