//! File locks, between processes and within one.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ork_state_api::{Error, Result};

use crate::error::io_at;

/// A held lock. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Locked(Arc<File>);

impl Drop for Locked {
    fn drop(&mut self) {
        // Unlocking a held lock does not fail.
        let _ = self.0.unlock();
    }
}

/// How long to wait for all locks of a call together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    begun: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        Self { begun: Instant::now(), timeout }
    }
}

/// Takes a file's lock unless another has it.
pub(crate) fn try_now(
    file: &Arc<File>,
    path: &Path,
    try_lock: fn(&File) -> Result<(), TryLockError>,
) -> Result<Option<Locked>> {
    match try_lock(file) {
        Ok(()) => Ok(Some(Locked(file.clone()))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(io_at("lock", path, source)),
    }
}

/// Waits for a file's lock. An error names the path.
pub(crate) fn wait(
    file: &Arc<File>,
    path: &Path,
    try_lock: fn(&File) -> Result<(), TryLockError>,
    deadline: Deadline,
) -> Result<Locked> {
    let mut pause = Duration::from_micros(20);
    loop {
        match try_now(file, path, try_lock)? {
            Some(locked) => return Ok(locked),
            None if deadline.begun.elapsed() >= deadline.timeout => {
                let waited = deadline.timeout;
                return Err(Error::unavailable(format!("{} was locked for {waited:?}", path.display()))
                    .with_hint("Another process is writing, or hangs: `fuser -v` on this file tells which"));
            }
            // File locks have no wait with a time limit, so this polls. The pause stays far below
            // one fsync.
            None => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(1));
            }
        }
    }
}
