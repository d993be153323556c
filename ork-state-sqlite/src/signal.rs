//! Signals commits, and shows which processes wait for the write lock.
//!
//! After each commit the writer signals that there was one. It tells this process through a
//! channel. It tells others by a small write to a file beside the database, which they watch
//! through the operating system. (The WAL itself is written before the commit can be seen.)

use std::fs::{File, TryLockError};
use std::io::{Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::watch::{Receiver, Sender};

use crate::options::Location;

/// Where commits are signalled.
#[derive(Debug, Clone)]
pub(crate) struct Signal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    commits: Sender<()>,
    /// The file that other processes watch. None for a database in memory.
    path: Option<PathBuf>,
    /// The open file, once it was written.
    file: Mutex<Option<File>>,
}

impl Signal {
    pub(crate) fn new(location: &Location) -> Self {
        let path = match location {
            Location::File(path) => {
                let mut path = path.clone().into_os_string();
                path.push("-watch");
                Some(path.into())
            }
            Location::Memory => None,
        };
        Self(Arc::new(Inner { commits: Sender::default(), path, file: Mutex::default() }))
    }

    /// Receives a signal for each commit from now on.
    pub(crate) fn subscribe(&self) -> Receiver<()> {
        self.0.commits.subscribe()
    }

    /// Signals that there was a commit.
    pub(crate) fn committed(&self) {
        self.0.commits.send_replace(());
        // It is only a hint: if it cannot be given, the commit stands all the same.
        self.with_file(|mut file| file.rewind().and_then(|()| file.write_all(b".")));
    }

    /// Shows the other processes whether this one waits for the write lock. While it waits, it
    /// holds a shared lock of the file. The system releases that lock if the process dies.
    pub(crate) fn set_waiting(&self, waits: bool) {
        self.with_file(|file| if waits { Ok(file.try_lock_shared()?) } else { file.unlock() });
    }

    /// Whether another process waits for the write lock. This process must not be waiting itself.
    pub(crate) fn is_awaited(&self) -> bool {
        let free = self.with_file(|file| match file.try_lock() {
            Ok(()) => file.unlock().map(|()| true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        });
        free == Some(false)
    }

    /// Does something with the file, and opens it for that if necessary. Failures are ignored.
    fn with_file<T>(&self, work: impl FnOnce(&File) -> std::io::Result<T>) -> Option<T> {
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = self.open();
        }
        work(file.as_ref()?).ok()
    }

    /// The file, which is created if it does not exist, for the owner of the database alone.
    fn open(&self) -> Option<File> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(self.0.path.as_ref()?).ok()
    }
}

/// Has the operating system report writes to the file, for as long as this lives.
pub(crate) struct FileWatcher(
    #[expect(dead_code, reason = "it watches until it is dropped")] notify::RecommendedWatcher,
);

impl FileWatcher {
    /// None if there is no file, or the system offers no watch. Then the fallback must do.
    pub(crate) fn new(signal: &Signal) -> Option<Self> {
        let path = signal.0.path.as_ref()?;
        signal.open()?;
        let commits = signal.0.commits.clone();
        let tell = move |event: notify::Result<notify::Event>| {
            // An error, such as a queue overflow, may hide a write.
            if event.map_or(true, |event| !event.kind.is_access()) {
                commits.send_replace(());
            }
        };
        let mut watcher = notify::recommended_watcher(tell).ok()?;
        watcher.watch(path, RecursiveMode::NonRecursive).ok()?;
        Some(Self(watcher))
    }
}

impl std::fmt::Debug for FileWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FileWatcher")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// As in two processes: they share nothing but the file.
    fn two() -> (tempfile::TempDir, Signal, Signal) {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::File(directory.path().join("ork.db"));
        (directory, Signal::new(&location), Signal::new(&location))
    }

    #[tokio::test]
    async fn the_file_tells_others_of_every_commit() {
        let (_directory, one, other) = two();
        let mut told = other.subscribe();
        let _watcher = FileWatcher::new(&other).unwrap();
        for _ in 0..3 {
            one.committed();
            // Far longer than the fallback, which is not active here.
            tokio::time::timeout(Duration::from_secs(20), told.changed()).await.unwrap().unwrap();
            // One write may be reported more than once.
            tokio::time::sleep(Duration::from_millis(50)).await;
            told.mark_unchanged();
        }
    }

    #[test]
    fn whoever_waits_is_seen_by_others_until_it_does_not() {
        let (_directory, one, other) = two();
        assert!(!one.is_awaited());
        other.set_waiting(true);
        assert!(one.is_awaited());
        other.set_waiting(false);
        assert!(!one.is_awaited());
        other.set_waiting(true);
        drop(other);
        assert!(!one.is_awaited(), "one that has died does not wait");
    }

    #[test]
    fn a_file_that_cannot_be_made_is_done_without() {
        let directory = tempfile::tempdir().unwrap();
        let signal = Signal::new(&Location::File(directory.path().join("absent/ork.db")));
        signal.set_waiting(true);
        signal.committed();
        assert!(!signal.is_awaited() && FileWatcher::new(&signal).is_none());
    }
}
