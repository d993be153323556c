//! Stores logs: plain files beside the journal, or bytes in memory.
//!
//! The journal says how much of a file counts. Bytes beyond that, from an append that was cut
//! short, are overwritten by the next append.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use ork_state_api::TaskId;

use crate::disk::{sync_directory, sync_file};

/// Where logs are stored.
#[derive(Debug)]
pub(crate) enum Logs {
    Memory(HashMap<TaskId, Vec<u8>>),
    Directory {
        path: PathBuf,
        /// Files written to and not synced yet.
        dirty: Vec<File>,
        /// Logs to remove once the deletion is in the journal.
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

    pub(crate) fn read(&self, task: TaskId, from: u64, length: usize) -> io::Result<Vec<u8>> {
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

    /// Says what is wrong with a log of which this many bytes count.
    pub(crate) fn check(&self, task: TaskId, length: u64) -> Result<(), String> {
        let there = match self {
            Self::Memory(logs) => logs.get(&task).map_or(0, |log| log.len() as u64),
            Self::Directory { path, .. } => {
                std::fs::metadata(path.join(format!("{task}.log"))).map_err(|error| error.to_string())?.len()
            }
        };
        if there < length { Err(format!("has {there} bytes, the journal counts {length}")) } else { Ok(()) }
    }

    /// Drops a log whose task is being deleted.
    pub(crate) fn remove(&mut self, task: TaskId) {
        match self {
            Self::Memory(logs) => drop(logs.remove(&task)),
            Self::Directory { gone, .. } => gone.push(task),
        }
    }

    /// Syncs what was written, before the journal says that it counts.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        let Self::Directory { path, dirty, .. } = self else { return Ok(()) };
        if dirty.is_empty() {
            return Ok(());
        }
        dirty.iter().try_for_each(sync_file)?;
        dirty.clear();
        // A new file's name is on disk once its directory is synced.
        sync_directory(path)
    }

    /// Removes the files of deleted tasks. A file that a crash leaves does no harm.
    pub(crate) fn clean_up(&mut self) {
        let Self::Directory { path, dirty, gone } = self else { return };
        dirty.clear();
        for task in gone.drain(..) {
            let _ = std::fs::remove_file(path.join(format!("{task}.log")));
        }
    }

    /// Drops the pending work of a failed commit.
    pub(crate) fn roll_back(&mut self) {
        if let Self::Directory { dirty, gone, .. } = self {
            dirty.clear();
            gone.clear();
        }
    }
}
