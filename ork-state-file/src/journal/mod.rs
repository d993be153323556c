//! The files of a store, and when their contents count.
//!
//! - `journal.jsonl`: a header, then one line per commit:
//!   `{"seq":7,"crc":"89abcdef","changes":[…]}`. The line has the changes of all transactions that
//!   share the commit. The checksum is the CRC-32 of the sequence number in decimal, a space, and
//!   the text of the changes.
//! - `snapshot.jsonl`: the same form, with a last line without changes. That line shows that the
//!   file was not cut short. The file is made when the journal has grown long. The journal
//!   continues after it, and after any `sealed-SEQ.jsonl`: see [`fold`].
//! - `lock`: locked while a process writes; shared while one reads what another wrote.
//! - `turnstile`: locked by whoever gets the lock next, so that a busy process cannot take it again
//!   and again.
//! - `logs/`: see `log_files.rs`.
//!
//! A file with a complete header is whole. Both files are first written under another name and
//! synced. Then they are renamed, and the directory is synced.
//!
//! **Loss of power** may lose any pages of a write that was not synced, even earlier ones but not
//! later ones. But a commit is one line, and is only written when the one before it is on disk. So
//! only the last line can be bad. Nothing of it was acknowledged, and it is cut off. This needs one
//! more rule. Another process may have been killed before its sync. So whoever finds lines of
//! another process syncs them before it relies on them.

mod files;
mod fold;
mod format;

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{Error, Result};

use crate::change::Change;
use crate::disk::{make_directory, sync_directory, sync_file};
use crate::error::io_at;
use crate::lock::Locked;
use crate::state::State;

pub(crate) use self::files::{JOURNAL, stage};
pub(crate) use self::format::VERSION;
#[cfg(fuzzing)]
pub use self::format::fuzz;

use self::files::{LOCK, LOGS, SNAPSHOT, TURNSTILE, open_lock, staged, wait_in_turn};
use self::fold::Fold;
use self::format::{Header, Read, corrupt, encode, open_with_header, read_lines, write_header};

/// A journal is folded into a snapshot when it is longer than this and than twice the snapshot. In
/// unit tests that is soon, because they inspect what a crash leaves of a fold.
const FOLD_BYTES: u64 = if cfg!(test) { 64 * 1024 } else { 16 * 1024 * 1024 };

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Acknowledged writes survive loss of power.
    Full,
    /// Acknowledged writes survive a crash of the process. Loss of power may lose the latest
    /// writes, or leave a journal that is `Corrupt` where they begin.
    Off,
}

/// The directory of a store, opened by this process.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    lock: Arc<File>,
    turnstile: Arc<File>,
    lock_timeout: Duration,
    sync: Sync,
    open: Option<OpenJournal>,
    fold: Option<Fold>,
}

/// The journal file, as far as this process has read it.
#[derive(Debug)]
struct OpenJournal {
    file: File,
    inode: u64,
    /// The offset of its first commit.
    begin: u64,
    /// The offset of the next commit.
    end: u64,
    /// The number of the last commit.
    seq: u64,
    /// The total length of the sealed journals before it.
    sealed: u64,
    /// The length, including the sealed journals, at which it is folded.
    fold_at: u64,
}

impl Journal {
    /// Opens the directory, which is created if its parent exists.
    pub(crate) fn new(directory: &Path, lock_timeout: Duration, sync: Sync) -> Result<Self> {
        make_directory(directory)?;
        let directory = directory.canonicalize().map_err(|source| io_at("find", directory, source))?;
        if !directory.is_dir() {
            return Err(Error::invalid(
                "store URL",
                format!("names {}, which is not a directory", directory.display()),
            ));
        }
        make_directory(&directory.join(LOGS))?;
        let open = |name| open_lock(&directory, name);
        let (lock, turnstile) = (open(LOCK)?, open(TURNSTILE)?);
        fold::clean_up(&directory)?;
        Ok(Self { directory, lock, turnstile, lock_timeout, sync, open: None, fold: None })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join(LOGS)
    }

    /// Takes the lock for writing.
    pub(crate) fn lock_exclusive(&self) -> Result<Locked> {
        let locked = self.wait_for_lock(File::try_lock)?;
        // Staged by a process that was killed: a journal is staged only with this lock held.
        let _ = fs::remove_file(staged(&self.directory, JOURNAL));
        Ok(locked)
    }

    /// Takes the lock for reading what another process has finished.
    fn lock_shared(&self) -> Result<Locked> {
        self.wait_for_lock(File::try_lock_shared)
    }

    fn wait_for_lock(&self, try_lock: fn(&File) -> Result<(), TryLockError>) -> Result<Locked> {
        wait_in_turn(&self.turnstile, &self.lock, &self.directory, try_lock, self.lock_timeout)
    }

    /// Creates a journal with these transactions unless there is one. The caller holds the lock.
    pub(crate) fn create(&mut self, transactions: impl Iterator<Item = Vec<Change>>) -> Result<()> {
        if self.directory.join(JOURNAL).exists() {
            return Ok(());
        }
        stage(&self.directory, JOURNAL, |file| {
            write_header(file, 0)?;
            for (seq, changes) in (1..).zip(transactions) {
                file.write_all(encode(seq, &changes).map_err(io::Error::other)?.as_bytes())?;
            }
            Ok(())
        })?;
        self.name_journal()
    }

    /// Gives the staged journal its name, and syncs that.
    fn name_journal(&self) -> Result<()> {
        let (path, staged) = (self.directory.join(JOURNAL), staged(&self.directory, JOURNAL));
        let name = || {
            fs::rename(&staged, &path)?;
            sync_directory(&self.directory)
        };
        name().map_err(|source| {
            let _ = fs::remove_file(&staged);
            io_at("write", &path, source)
        })
    }

    /// Whether there is a journal, which means that the store is migrated.
    pub(crate) fn exists(&self) -> bool {
        self.open.is_some() || self.directory.join(JOURNAL).exists()
    }

    /// Whether another process has written since this one looked.
    fn is_behind(&self) -> Result<bool> {
        let path = self.directory.join(JOURNAL);
        let there = fs::metadata(&path).map_err(|source| io_at("read", &path, source))?;
        Ok(self.open.as_ref().is_none_or(|open| open.inode != there.ino() || open.end != there.len()))
    }

    /// Brings the state up to date with the disk, for a reader.
    pub(crate) fn catch_up_shared(&mut self, state: &mut State) -> Result<()> {
        if self.is_behind()? {
            let _locked = self.lock_shared()?;
            self.catch_up(state)?;
        }
        Ok(())
    }

    /// Brings the state up to date with the disk. The caller holds the lock, at least shared.
    pub(crate) fn catch_up(&mut self, state: &mut State) -> Result<()> {
        let path = self.directory.join(JOURNAL);
        let there = fs::metadata(&path).map_err(|source| io_at("read", &path, source))?;
        let caught_up = match &mut self.open {
            Some(open) if open.inode == there.ino() && open.end == there.len() => return Ok(()),
            Some(open) if open.inode == there.ino() && open.end < there.len() => {
                open.read_on(&path, self.sync, state).map(|()| true)
            }
            Some(open) if open.inode != there.ino() => open.follow(&self.directory, self.sync, state),
            // The journal has become shorter, which no process that uses the store does to it.
            Some(_) | None => Ok(false),
        };
        match caught_up {
            Ok(true) => Ok(()),
            Ok(false) => self.read_anew(state),
            Err(error) => {
                // Half of it may be applied. The next call reads everything again.
                self.open = None;
                Err(error)
            }
        }
    }

    fn read_anew(&mut self, state: &mut State) -> Result<()> {
        self.open = None;
        *state = State::default();
        match self.load(state) {
            Ok(open) => {
                self.open = Some(open);
                Ok(())
            }
            Err(error) => {
                *state = State::default();
                Err(error)
            }
        }
    }

    /// Drops the position, so that the next call reads everything again.
    pub(crate) fn forget(&mut self) {
        self.open = None;
    }

    fn load(&self, state: &mut State) -> Result<OpenJournal> {
        let mut seq = 0;
        let path = self.directory.join(SNAPSHOT);
        if path.exists() {
            let (mut file, there, header, begin) = open_with_header(&path)?;
            let read = read_lines(&path, &mut file, begin, 0, state)?;
            if !read.is_closed || read.end != there.len() {
                return Err(corrupt(&path, read.end, "is not there: the snapshot was cut short".to_owned()));
            }
            seq = header.after;
        }
        for (last, path) in fold::sealed(&self.directory)? {
            if last <= seq {
                continue;
            }
            let (mut file, _, header, begin) = open_with_header(&path)?;
            require_before(&path, header, seq)?;
            let read = read_lines(&path, &mut file, begin, seq, state)?;
            // If the file is still the journal too, it has more commits than its name says. A
            // process was killed between the link and the rename.
            if read.seq < last {
                return Err(corrupt(&path, read.end, "is not there: the journal was cut short".to_owned()));
            }
            seq = read.seq;
        }
        let path = self.directory.join(JOURNAL);
        let (mut file, there, header, begin) = open_with_header(&path)?;
        fold::keep(&file);
        require_before(&path, header, seq)?;
        let Read { end, seq, .. } = read_lines(&path, &mut file, begin, seq, state)?;
        self.sync.file(&file, &path)?;
        // The process that renamed the file may have been killed before that was synced.
        self.sync.directory(&self.directory)?;
        let mut open = OpenJournal { file, inode: there.ino(), begin, end, seq, sealed: 0, fold_at: 0 };
        open.measure(&self.directory);
        Ok(open)
    }

    /// Appends a commit and syncs it. The caller holds the lock and has caught up.
    ///
    /// If this fails, nothing of it counts, unless the error says that this is unknown.
    pub(crate) fn append(&mut self, changes: &[Change]) -> Result<()> {
        let path = self.directory.join(JOURNAL);
        let Some(open) = &mut self.open else {
            return Err(Error::internal("appends to a journal that is not open"));
        };
        let line = encode(open.seq + 1, changes)?;
        let write = |file: &mut File| {
            // Bytes beyond the end are a torn line of a killed process.
            file.set_len(open.end)?;
            file.seek(SeekFrom::Start(open.end))?;
            file.write_all(line.as_bytes())?;
            if self.sync == Sync::Full { sync_file(file) } else { Ok(()) }
        };
        if let Err(source) = write(&mut open.file) {
            let undone = open.file.set_len(open.end).and_then(|()| sync_file(&open.file));
            let error = io_at("write", &path, source);
            return Err(match undone {
                Ok(()) => error,
                Err(_) => Error::unknown_effect(error.to_string()).with_source(error),
            });
        }
        open.end += line.len() as u64;
        open.seq += 1;
        Ok(())
    }

    /// Starts to fold the journal into a snapshot if it has grown long. The caller holds the lock
    /// and has caught up.
    pub(crate) fn fold_if_long(&mut self, state: &State) {
        if self.fold.as_ref().is_some_and(Fold::is_over) {
            self.finish_fold();
        }
        let is_long = |open: &OpenJournal| open.sealed + open.end > open.fold_at;
        if self.fold.is_some() || !self.open.as_ref().is_some_and(is_long) {
            return;
        }
        if self.start_fold(state).is_err() {
            self.put_off_fold();
        }
    }

    fn start_fold(&mut self, state: &State) -> Result<()> {
        let Some(only) = fold::lock_fold(&self.directory)? else {
            // Another process is folding.
            self.put_off_fold();
            return Ok(());
        };
        if let Some(open) = &mut self.open {
            open.measure(&self.directory);
            if open.sealed + open.end <= open.fold_at {
                return Ok(());
            }
        }
        let seq = self.seal()?;
        self.fold = Some(Fold::start(&self.directory, only, seq, state.image())?);
        Ok(())
    }

    /// Waits for the running fold.
    pub(crate) fn finish_fold(&mut self) {
        let Some(fold) = self.fold.take() else { return };
        match fold.outcome() {
            Ok(()) => {
                if let Some(open) = &mut self.open {
                    open.measure(&self.directory);
                }
            }
            Err(_) => self.put_off_fold(),
        }
    }

    /// A fold that failed, for example on a full disk, is not retried at every commit. The journal
    /// is still valid, only longer than necessary.
    fn put_off_fold(&mut self) {
        if let Some(open) = &mut self.open {
            let length = open.sealed + open.end;
            open.fold_at = length + length / 4;
        }
    }

    /// Ends the journal with the last commit and continues with a new one. Returns that commit.
    fn seal(&mut self) -> Result<u64> {
        let path = self.directory.join(JOURNAL);
        let Some(open) = &mut self.open else {
            return Err(Error::internal("seals a journal that is not open"));
        };
        // The journal is empty.
        if open.end == open.begin {
            return Ok(open.seq);
        }
        // Bytes beyond the end are a torn line of a killed process.
        let cut = open.file.set_len(open.end).and_then(|()| sync_file(&open.file));
        cut.map_err(|source| io_at("write", &path, source))?;
        let (seq, length, inode) = (open.seq, open.end, open.inode);
        stage(&self.directory, JOURNAL, |file| write_header(file, seq))?;
        let sealed = self.directory.join(fold::sealed_name(seq));
        // The sealed name must be on disk before another file gets the journal's name.
        match fs::hard_link(&path, &sealed) {
            // If it is the same file, a process was killed between the link and the rename. A
            // different file would be the end of this journal.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::metadata(&sealed) {
                Ok(there) if there.ino() == inode => Ok(()),
                _ => Err(error),
            },
            linked => linked,
        }
        .and_then(|()| sync_directory(&self.directory))
        .map_err(|source| io_at("name", &sealed, source))?;
        self.name_journal()?;
        let (file, there, _, begin) = open_with_header(&path)?;
        fold::keep(&file);
        if let Some(open) = &mut self.open {
            (open.file, open.inode) = (file, there.ino());
            (open.begin, open.end) = (begin, begin);
            open.sealed += length;
        }
        Ok(seq)
    }
}

impl OpenJournal {
    /// Updates the lengths: other processes may have folded.
    fn measure(&mut self, directory: &Path) {
        let snapshot = fs::metadata(directory.join(SNAPSHOT)).map_or(0, |metadata| metadata.len());
        (self.sealed, self.fold_at) = (fold::sealed_bytes(directory), FOLD_BYTES.max(2 * snapshot));
    }

    /// Reads what another process has appended.
    fn read_on(&mut self, path: &Path, sync: Sync, state: &mut State) -> Result<()> {
        let read = read_lines(path, &mut self.file, self.end, self.seq, state)?;
        if read.seq != self.seq {
            sync.file(&self.file, path)?;
        }
        (self.end, self.seq) = (read.end, read.seq);
        Ok(())
    }

    /// Reads this journal to its end, after another process has sealed it. Then continues with the
    /// next one. Returns whether that is the current journal.
    fn follow(&mut self, directory: &Path, sync: Sync, state: &mut State) -> Result<bool> {
        let path = directory.join(JOURNAL);
        let read = read_lines(&path, &mut self.file, self.end, self.seq, state)?;
        let (file, there, header, begin) = open_with_header(&path)?;
        if header.after != read.seq {
            return Ok(false);
        }
        fold::keep(&file);
        // The process that renamed it may have been killed before that was synced.
        sync.directory(directory)?;
        (self.file, self.inode) = (file, there.ino());
        (self.begin, self.end, self.seq) = (begin, begin, read.seq);
        self.measure(directory);
        self.read_on(&path, sync, state)?;
        Ok(true)
    }
}

/// Checks that a file continues where reading has stopped.
fn require_before(path: &Path, header: Header, seq: u64) -> Result<()> {
    if header.after <= seq {
        return Ok(());
    }
    let reason = "the snapshot or journal that it goes on from is missing";
    Err(Error::corrupt(path.display().to_string(), 0, "after", reason))
}

impl Sync {
    /// Syncs what other processes wrote: one that was killed may not have done so.
    fn file(self, file: &File, path: &Path) -> Result<()> {
        match self {
            Self::Full => sync_file(file).map_err(|source| io_at("sync", path, source)),
            Self::Off => Ok(()),
        }
    }

    /// Syncs the names that other processes gave.
    fn directory(self, path: &Path) -> Result<()> {
        match self {
            Self::Full => sync_directory(path).map_err(|source| io_at("sync", path, source)),
            Self::Off => Ok(()),
        }
    }
}
