//! The logs of tasks.

use std::io;

use async_trait::async_trait;
use ork_state_api::backend::{CappedAppend, log_cap_note};
use ork_state_api::{Error, ErrorKind, LogAppended, LogChunk, LogRange, LogSlice, LogStore, Result, TaskId};

use crate::change::Change;
use crate::database::FileDatabase;
use crate::error;
use crate::log_files::Logs;
use crate::state::State;
use crate::transaction::Transaction;

#[async_trait]
impl LogStore for FileDatabase {
    async fn append_log(&self, task: TaskId, chunk: LogChunk<'_>) -> Result<LogAppended> {
        let (bytes, cap) = (chunk.bytes().to_vec(), self.max_log_bytes());
        self.write(move |tx| append(tx, task, bytes, cap)).await
    }

    async fn read_log(&self, task: TaskId, range: LogRange) -> Result<LogSlice> {
        let read = || self.read_logs(move |state, logs| read(state, logs, task, range));
        match read().await {
            // Another process may have deleted the task since the state was brought up to date.
            // That process removes the file only after the deletion is in the journal. So the
            // second look does not find the task.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt { .. }) => read().await,
            done => done,
        }
    }
}

fn read(state: &State, logs: &Logs, task: TaskId, range: LogRange) -> Result<LogSlice> {
    let length = state.task(task)?.log_length;
    let offset = range.start_in(length);
    let wanted = usize::try_from((length - offset).min(u64::from(range.max()))).unwrap_or(usize::MAX);
    if wanted == 0 {
        return Ok(LogSlice::new(offset, Vec::new(), length));
    }
    let bytes = logs.read(task, offset, wanted).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
            Error::corrupt("logs", task, "file", "is missing or shorter than the journal says")
                .with_source(source)
        }
        _ => error::io("read a log", source),
    })?;
    Ok(LogSlice::new(offset, bytes, length))
}

fn append(
    tx: &mut Transaction<'_>,
    task: TaskId,
    mut bytes: Vec<u8>,
    cap: Option<u64>,
) -> Result<LogAppended> {
    let length = tx.state.task(task)?.log_length;
    let plan = CappedAppend::new(length, bytes.len(), cap);
    let dropped = (bytes.len() - plan.keep) as u64;
    bytes.truncate(plan.keep);
    if let (true, Some(cap)) = (plan.note, cap) {
        bytes.extend_from_slice(log_cap_note(cap).as_bytes());
    }
    if bytes.is_empty() {
        return Ok(LogAppended::new(length, dropped));
    }
    tx.logs.write(task, length, &bytes).map_err(|source| error::io("write a log", source))?;
    let length = length + bytes.len() as u64;
    tx.apply(Change::LogLength { task, length })?;
    Ok(LogAppended::new(length, dropped))
}
