//! Task logs: plain files beside the journal, or bytes in memory.
//!
//! The journal says how much of a file counts. What lies beyond, from an append that was cut short, is
//! overwritten by the next one.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use async_trait::async_trait;
use ork_state_api::backend::{CappedAppend, log_cap_note};
use ork_state_api::{Error, ErrorKind, LogAppended, LogChunk, LogRange, LogSlice, LogStore, Result, TaskId};

use crate::change::Change;
use crate::database::FileDatabase;
use crate::disk::{sync_directory, sync_file};
use crate::error;
use crate::state::State;
use crate::transaction::Transaction;

/// Where logs are kept.
#[derive(Debug)]
pub(crate) enum Logs {
    Memory(HashMap<TaskId, Vec<u8>>),
    Directory {
        path: PathBuf,
        /// Written to and not synced yet.
        dirty: Vec<File>,
        /// To be removed once the transaction that says so is in the journal.
        gone: Vec<TaskId>,
    },
}

impl Logs {
    pub(crate) fn in_memory() -> Self {
        Self::Memory(HashMap::new())
    }

    pub(crate) fn in_directory(path: PathBuf) -> Self {
        Self::Directory { path, dirty: Vec::new(), gone: Vec::new() }
    }

    pub(crate) fn write(&mut self, task: TaskId, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(logs) => {
                let log = logs.entry(task).or_default();
                log.truncate(usize::try_from(at).unwrap_or(usize::MAX));
                log.extend_from_slice(bytes);
            }
            Self::Directory { path, dirty, .. } => {
                let file = path.join(format!("{task}.log"));
                let file =
                    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(file)?;
                file.write_all_at(bytes, at)?;
                dirty.push(file);
            }
        }
        Ok(())
    }

    fn read(&self, task: TaskId, from: u64, length: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Memory(logs) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let log = logs.get(&task).and_then(|log| log.get(from..from.saturating_add(length)));
                log.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Self::Directory { path, .. } => {
                let mut bytes = vec![0; length];
                File::open(path.join(format!("{task}.log")))?.read_exact_at(&mut bytes, from)?;
                Ok(bytes)
            }
        }
    }

    /// Says what is wrong with a log of which so much counts.
    pub(crate) fn check(&self, task: TaskId, length: u64) -> Result<(), String> {
        let there = match self {
            Self::Memory(logs) => logs.get(&task).map_or(0, |log| log.len() as u64),
            Self::Directory { path, .. } => {
                std::fs::metadata(path.join(format!("{task}.log"))).map_err(|error| error.to_string())?.len()
            }
        };
        if there < length { Err(format!("has {there} bytes, the journal counts {length}")) } else { Ok(()) }
    }

    /// Forgets a log whose task is being deleted.
    pub(crate) fn remove(&mut self, task: TaskId) {
        match self {
            Self::Memory(logs) => drop(logs.remove(&task)),
            Self::Directory { gone, .. } => gone.push(task),
        }
    }

    /// Has what was written on disk, before the journal says that it counts.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        let Self::Directory { path, dirty, .. } = self else { return Ok(()) };
        if dirty.is_empty() {
            return Ok(());
        }
        dirty.iter().try_for_each(sync_file)?;
        dirty.clear();
        // A new file's name is on disk when its directory is.
        sync_directory(path)
    }

    /// Removes the files of deleted tasks. One that stays, after a crash, harms nothing.
    pub(crate) fn clean_up(&mut self) {
        let Self::Directory { path, dirty, gone } = self else { return };
        dirty.clear();
        for task in gone.drain(..) {
            let _ = std::fs::remove_file(path.join(format!("{task}.log")));
        }
    }

    /// Forgets what a failed commit would have done.
    pub(crate) fn roll_back(&mut self) {
        if let Self::Directory { dirty, gone, .. } = self {
            dirty.clear();
            gone.clear();
        }
    }
}

#[async_trait]
impl LogStore for FileDatabase {
    async fn append_log(&self, task: TaskId, chunk: LogChunk<'_>) -> Result<LogAppended> {
        let (bytes, cap) = (chunk.bytes().to_vec(), self.max_log_bytes());
        self.write(move |tx| append(tx, task, bytes, cap)).await
    }

    async fn read_log(&self, task: TaskId, range: LogRange) -> Result<LogSlice> {
        let read = || self.read_logs(move |state, logs| read(state, logs, task, range));
        match read().await {
            // Another process may have deleted the task since the state was brought up to date. It removes the file after the journal
            // says so: what is missing for that reason is not found the second time.
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
