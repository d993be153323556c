//! Importing the records of another store.

use async_trait::async_trait;
use ork_state_api::Result;
use ork_state_api::backend::{ImportPage, ImportProgress, Record, Transfer, no_import, not_empty};

use crate::change::Change;
use crate::database::FileDatabase;
use crate::error;
use crate::state::State;
use crate::transaction::Transaction;

#[async_trait]
impl Transfer for FileDatabase {
    async fn import_progress(&self) -> Result<Option<ImportProgress>> {
        self.read(|state, _| Ok(state.import.as_ref().map(|import| import.progress.clone()))).await
    }

    async fn import(&self, page: ImportPage) -> Result<()> {
        self.write(move |tx| import(tx, &page)).await
    }

    async fn finish_import(&self) -> Result<()> {
        self.write(|tx| {
            require_empty(tx.state)?;
            let finished = tx.state.import.as_ref().ok_or_else(no_import)?.finished()?;
            tx.state.replace(finished);
            tx.changes.push(Change::ImportFinished);
            Ok(())
        })
        .await
    }

    async fn abandon_import(&self) -> Result<()> {
        self.write(|tx| {
            let Some(import) = &tx.state.import else { return Ok(()) };
            for (task, _) in &import.logs {
                tx.logs.remove(*task);
            }
            tx.apply(Change::ImportAbandoned)
        })
        .await
    }
}

fn require_empty(state: &State) -> Result<()> {
    if state.workflows.is_empty() { Ok(()) } else { Err(not_empty()) }
}

fn import(tx: &mut Transaction<'_>, page: &ImportPage) -> Result<()> {
    require_empty(tx.state)?;
    let there = tx.state.import.as_ref().map(|import| &import.progress);
    if there.cloned().unwrap_or_default() != *page.after() {
        return Err(page.does_not_follow(there));
    }
    let (mut records, mut logs) = (Vec::new(), Vec::new());
    for (kind, encoded) in page.records() {
        if *kind != "log" {
            records.push(encoded.clone());
            continue;
        }
        // Logs are files, so they need not wait in the journal.
        if let Record::Log { task, offset, bytes } = Record::decode(encoded)? {
            tx.logs
                .write(task, offset, &bytes)
                .map_err(|source| error::io(&format!("write the log of task {task}"), source))?;
            logs.push((task, offset + bytes.len() as u64));
        }
    }
    tx.apply(Change::Imported { progress: page.to().clone(), records, logs })
}
