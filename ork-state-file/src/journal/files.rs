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

/// Waits for the lock for writing, through newly opened files. So it does not share the lock that
/// the process already has.
pub(super) fn wait_for_lock(directory: &Path, timeout: Duration) -> Result<Locked> {
    let (turnstile, lock) = (open_lock(directory, TURNSTILE)?, open_lock(directory, LOCK)?);
    wait_in_turn(&turnstile, &lock, directory, File::try_lock, timeout)
}

/// A caller waits for the lock in the turnstile, which has room for one. So a caller that has just
/// released the lock and wants it again comes after those that already wait.
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

/// How many bytes are written before a sync.
const SYNC_BYTES: usize = 256 << 10;

/// A file whose contents are synced soon after they are written. If a file system has much to write
/// at the end, it delays other syncs meanwhile, among them the journal's.
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

/// Writes a file under another name and syncs it. If this fails, nothing of it is left.
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
