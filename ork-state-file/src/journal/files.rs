//! The files of a store by name: its locks, and how a file is written before it gets its name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::Result;

use crate::disk::sync_file;
use crate::error::io_at;
use crate::lock::{self, Deadline, Locked};

pub(crate) const JOURNAL: &str = "journal.jsonl";
pub(super) const SNAPSHOT: &str = "snapshot.jsonl";
pub(super) const LOCK: &str = "lock";
pub(super) const TURNSTILE: &str = "turnstile";
pub(super) const LOGS: &str = "logs";

/// Waits for the lock for writing, through files of its own: not as the process that has it
/// already.
pub(super) fn wait_for_lock(directory: &Path, timeout: Duration) -> Result<Locked> {
    let (turnstile, lock) = (open_lock(directory, TURNSTILE)?, open_lock(directory, LOCK)?);
    wait_in_turn(&turnstile, &lock, directory, File::try_lock, timeout)
}

/// Whoever waits for the lock waits in the turnstile, where there is room for one. So who has just
/// let the lock go and wants it again comes after who waits already.
pub(super) fn wait_in_turn(
    turnstile: &Arc<File>,
    lock: &Arc<File>,
    directory: &Path,
    try_lock: fn(&File) -> Result<(), TryLockError>,
    timeout: Duration,
) -> Result<Locked> {
    let (path, deadline) = (directory.join(LOCK), Deadline::after(timeout));
    let _next = lock::wait(turnstile, &path, File::try_lock, deadline)?;
    lock::wait(lock, &path, try_lock, deadline)
}

pub(super) fn open_lock(directory: &Path, name: &str) -> Result<Arc<File>> {
    let path = directory.join(name);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    file.map(Arc::new).map_err(|source| io_at("open", &path, source))
}

/// The name under which a file is written before it gets its own.
pub(super) fn staged(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.new"))
}

/// So much is written before it is synced.
const SYNC_BYTES: usize = 256 << 10;

/// A file that has what is written on disk soon: a file system that is given much to write at the
/// end keeps the syncs of others waiting meanwhile, those of the journal among them.
#[derive(Debug)]
pub(crate) struct InSteps {
    file: File,
    unsynced: usize,
}

impl Write for InSteps {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= SYNC_BYTES {
            sync_file(&self.file)?;
            self.unsynced = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file under another name and syncs it. If it fails, nothing is left of it.
pub(crate) fn stage(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut BufWriter<InSteps>) -> io::Result<()>,
) -> Result<()> {
    let staged = staged(directory, name);
    let stage = || {
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&staged)?;
        let mut file = BufWriter::with_capacity(SYNC_BYTES, InSteps { file, unsynced: 0 });
        write(&mut file)?;
        sync_file(&file.into_inner().map_err(io::IntoInnerError::into_error)?.file)
    };
    stage().map_err(|source| {
        let _ = fs::remove_file(&staged);
        io_at("write", &directory.join(name), source)
    })
}
