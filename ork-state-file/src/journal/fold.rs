//! Folds a long journal into a snapshot, in the background. A separate thread writes the state of
//! one moment, while the engine continues.
//!
//! At that moment the journal is *sealed*. It gets the name `sealed-SEQ.jsonl`, after its last
//! commit, and a new journal continues after it. Until the new snapshot has its name,
//! the store consists of the previous snapshot, the sealed journals, and the journal. Afterwards
//! nobody needs the files whose contents are in the snapshot, and they are removed. So a crash at
//! any point leaves a store that reads the same. A process that had read the sealed journal to its
//! end continues with the new one, and reads nothing again.
//!
//! The process that folds locks `fold`.

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
/// The previous snapshot, before its removal.
const OLD: &str = "snapshot.jsonl.old";
/// How long a finished snapshot waits for the lock. Nobody waits for the snapshot, and if it is
/// discarded, all of it must be written again. So the wait is longer than a call's may be.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many bytes of a file are freed at a time.
const FREED_AT_ONCE: u64 = 16 << 20;

/// A running fold.
#[derive(Debug)]
pub(super) struct Fold(JoinHandle<Result<()>>);

impl Fold {
    /// Starts to write the state after commit `seq`.
    pub(super) fn start(directory: &Path, only: Locked, seq: u64, image: Image) -> Result<Self> {
        let directory = directory.to_owned();
        let fold = move || {
            // Held until the fold is over.
            let _only = only;
            write_snapshot(&directory, seq, &image)
        };
        let thread = std::thread::Builder::new().name("ork-state-file-fold".into()).spawn(fold);
        thread.map(Self).map_err(|source| Error::unavailable("no thread can be started").with_source(source))
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// The result, once the fold is over.
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
    // Without another name, all of the previous snapshot would be freed at once, under the lock.
    let _ = fs::hard_link(&path, &old);
    let install = || {
        // Nobody reads the store meanwhile. The lock belongs to this thread, not to the engine.
        let _locked = wait_for_lock(directory, PATIENCE)?;
        fs::rename(&staged, &path)
            .and_then(|()| sync_directory(directory))
            .map_err(|source| io_at("write", &path, source))
    };
    if let Err(error) = install() {
        // Removes only the name: the file may still be the snapshot.
        let _ = fs::remove_file(&old);
        let _ = fs::remove_file(&staged);
        return Err(error);
    }
    // These files are no longer needed. If one stays, it does no harm.
    let _ = remove(&old);
    for (_, path) in sealed(directory)?.into_iter().filter(|(last, _)| *last <= seq) {
        let _ = remove(&path);
    }
    Ok(())
}

/// Removes a file that may be large.
fn remove(path: &Path) -> io::Result<()> {
    // If it cannot be freed step by step, it is freed at once.
    let _ = shorten(path);
    fs::remove_file(path)
}

/// Frees the contents of a file step by step. A file system that frees much at once delays other
/// syncs meanwhile, among them the journal's. Two kinds of files stay whole. One is a journal that
/// a process [has open](keep), which must be able to read it to its end. The other is a file with
/// another name, for example in somebody's backup.
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

/// Keeps a journal whole while this process has it open, even when others have folded it.
pub(super) fn keep(journal: &File) {
    // A process that does not get the lock reads the store again when the journal has become
    // shorter.
    let _ = journal.try_lock_shared();
}

/// Keeps other processes from folding. `None` if one of them is folding.
pub(super) fn lock_fold(directory: &Path) -> Result<Option<Locked>> {
    let path = directory.join(FOLD);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|source| io_at("open", &path, source))?;
    lock::try_now(&Arc::new(file), &path, File::try_lock)
}

/// Removes what a killed process left: a partly written snapshot, or a previous one that it had not
/// removed yet. Does nothing while a fold is running.
pub(super) fn clean_up(directory: &Path) -> Result<()> {
    let left = [staged(directory, SNAPSHOT), directory.join(OLD)];
    if left.iter().any(|path| path.exists())
        && let Some(_only) = lock_fold(directory)?
    {
        // Removes only the names: the old file may still be the snapshot.
        for path in left {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// The name of a sealed journal that ends with this commit.
pub(super) fn sealed_name(last: u64) -> String {
    format!("{SEALED}{last}.jsonl")
}

/// The sealed journals in order, each with its last commit.
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

/// Sealed journals count towards the journal's length while no snapshot contains them.
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
