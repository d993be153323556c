//! Folding a long journal into a snapshot, beside the work: a thread of its own writes down what
//! the state was at one moment, while the engine goes on.
//!
//! At that moment the journal is *sealed*: it gets the name `sealed-SEQ.jsonl`, after its last
//! commit, and a new journal goes on after it. Until the snapshot has its name, the store is the
//! snapshot before, the sealed journals, and the journal; afterwards nobody needs what the snapshot
//! contains, and it is removed. So a crash at any point leaves a store that reads the same. A
//! process that had read the sealed journal to its end goes on with the new one, and reads nothing
//! anew.
//!
//! `fold` is locked by the process that folds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ork_state_api::{Error, Result};

use crate::disk::{sync_directory, sync_file};
use crate::error::io_at;
use crate::lock::{self, Locked};
use crate::state::Image;

use super::files::{SNAPSHOT, stage, staged, wait_for_lock};
use super::format::{encode, write_header};

const FOLD: &str = "fold";
const SEALED: &str = "sealed-";
/// The snapshot before, on its way out.
const OLD: &str = "snapshot.jsonl.old";
/// How long a finished snapshot waits for the lock. Nobody waits for it, and to throw it away is to
/// write all of it again: so it does not give up as early as a call may.
const PATIENCE: Duration = Duration::from_secs(30);
/// So much of a file is freed at a time.
const FREED_AT_ONCE: u64 = 16 << 20;

/// A fold that is under way.
#[derive(Debug)]
pub(super) struct Fold(JoinHandle<Result<()>>);

impl Fold {
    /// Starts to write what the state was after commit `seq`.
    pub(super) fn start(directory: &Path, only: Locked, seq: u64, image: Image) -> Result<Self> {
        let directory = directory.to_owned();
        let fold = move || {
            // Until it is over.
            let _only = only;
            write_snapshot(&directory, seq, &image)
        };
        let thread = std::thread::Builder::new().name("ork-state-file-fold".into()).spawn(fold);
        thread.map(Self).map_err(|source| Error::unavailable("no thread can be started").with_source(source))
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// How it went, when it is over.
    pub(super) fn outcome(self) -> Result<()> {
        self.0.join().unwrap_or_else(|_| Err(Error::internal("the thread that folds the journal panicked")))
    }
}

fn write_snapshot(directory: &Path, seq: u64, image: &Image) -> Result<()> {
    stage(directory, SNAPSHOT, |file| {
        write_header(file, seq)?;
        for (line, changes) in (1..).zip(image.changes().chain([vec![]])) {
            file.write_all(encode(line, &changes).map_err(io::Error::other)?.as_bytes())?;
        }
        Ok(())
    })?;
    let (path, staged, old) = (directory.join(SNAPSHOT), staged(directory, SNAPSHOT), directory.join(OLD));
    // Without another name the one before would be freed under the lock, all of it at once.
    let _ = fs::hard_link(&path, &old);
    let install = || {
        // Nobody reads the store meanwhile. The lock is that of this thread, not that of the
        // engine.
        let _locked = wait_for_lock(directory, PATIENCE)?;
        fs::rename(&staged, &path)
            .and_then(|()| sync_directory(directory))
            .map_err(|source| io_at("write", &path, source))
    };
    if let Err(error) = install() {
        // Only the name: it may be the snapshot still.
        let _ = fs::remove_file(&old);
        let _ = fs::remove_file(&staged);
        return Err(error);
    }
    // They are of no more use, but what stays does no harm.
    let _ = remove(&old);
    for (_, path) in sealed(directory)?.into_iter().filter(|(last, _)| *last <= seq) {
        let _ = remove(&path);
    }
    Ok(())
}

/// Removes a file that may be large.
fn remove(path: &Path) -> io::Result<()> {
    // What cannot be freed step by step is freed at once.
    let _ = shorten(path);
    fs::remove_file(path)
}

/// Frees what is in a file, step by step: a file system that frees much at once keeps the syncs of
/// others waiting meanwhile, those of the journal among them. But a journal that a process [has
/// open](keep) stays whole, so that it is read to its end, and so does what has another name, such
/// as in somebody's backup.
fn shorten(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.try_lock()?;
    let there = file.metadata()?;
    let mut length = if there.nlink() == 1 { there.len() } else { 0 };
    while length > 0 {
        length = length.saturating_sub(FREED_AT_ONCE);
        file.set_len(length)?;
        sync_file(&file)?;
    }
    Ok(())
}

/// Has a journal stay as it is for as long as this process has it open, also when others have
/// folded it.
pub(super) fn keep(journal: &File) {
    // Who does not get it reads the store anew when the journal has become shorter.
    let _ = journal.try_lock_shared();
}

/// Keeps other processes from folding, unless one does.
pub(super) fn lock_fold(directory: &Path) -> Result<Option<Locked>> {
    let path = directory.join(FOLD);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|source| io_at("open", &path, source))?;
    lock::try_now(&Arc::new(file), &path, File::try_lock)
}

/// Removes what a process that was killed had written of a snapshot, or not yet removed of the one
/// before, unless one is under way.
pub(super) fn clean_up(directory: &Path) -> Result<()> {
    let left = [staged(directory, SNAPSHOT), directory.join(OLD)];
    if left.iter().any(|path| path.exists())
        && let Some(_only) = lock_fold(directory)?
    {
        // Only the names: the old one may be the snapshot still.
        for path in left {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// The name of a journal that ends with this commit.
pub(super) fn sealed_name(last: u64) -> String {
    format!("{SEALED}{last}.jsonl")
}

/// The sealed journals, each with its last commit, in their order.
pub(super) fn sealed(directory: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let failed = |source| io_at("read", directory, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let last = name.strip_prefix(SEALED).and_then(|rest| rest.strip_suffix(".jsonl"));
        if let Some(last) = last.and_then(|last| last.parse().ok()) {
            found.push((last, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A journal is as long as all of it that no snapshot contains.
pub(super) fn sealed_bytes(directory: &Path) -> u64 {
    let lengths = sealed(directory).unwrap_or_default().into_iter().map(|(_, path)| fs::metadata(path));
    lengths.filter_map(|metadata| Some(metadata.ok()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_journals_come_in_the_order_of_their_commits() {
        let directory = tempfile::tempdir().unwrap();
        for name in [sealed_name(100), sealed_name(9), "sealed-x.jsonl".into(), "journal.jsonl".into()] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let found: Vec<u64> = sealed(directory.path()).unwrap().into_iter().map(|(last, _)| last).collect();
        assert_eq!(found, [9, 100]);
    }

    #[test]
    fn a_journal_that_a_process_has_open_is_removed_but_stays_whole_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(sealed_name(1));
        let length = FREED_AT_ONCE * 5 / 2;
        for (kept, left) in [(true, length), (false, 0)] {
            File::create(&path).unwrap().set_len(length).unwrap();
            let open = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            if kept {
                keep(&open);
            }
            remove(&path).unwrap();
            assert!(!path.exists());
            assert_eq!(open.metadata().unwrap().len(), left);
        }
    }

    #[test]
    fn what_somebody_has_linked_to_stays_whole() {
        let directory = tempfile::tempdir().unwrap();
        let (path, backup) = (directory.path().join(OLD), directory.path().join("backup"));
        fs::write(&path, "lines").unwrap();
        fs::hard_link(&path, &backup).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_to_string(backup).unwrap(), "lines");
    }
}
