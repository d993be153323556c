//! The files of a store, and when they count.
//!
//! - `journal.jsonl`: a header, then a line a transaction: `{"seq":7,"crc":"89abcdef","changes":[…]}`. The checksum is the CRC-32 of
//!   the sequence number in decimal, a space, and the text of the changes.
//! - `snapshot.jsonl`: the same form; made when the journal has grown long. The journal goes on after it.
//! - `lock`: locked while a process writes; shared while one reads what another wrote.
//! - `logs/`: see [`logs`](crate::logs).
//!
//! A file with a complete header is whole: both come into being under another name, are synced, then
//! renamed, and the directory is synced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ork_state_api::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::change::Change;
use crate::error::io_at;
use crate::state::State;

/// The version of the format, which is the store's schema version.
pub(crate) const VERSION: i64 = 1;

pub(crate) const JOURNAL: &str = "journal.jsonl";
const SNAPSHOT: &str = "snapshot.jsonl";
const LOCK: &str = "lock";
const LOGS: &str = "logs";

/// A journal is worth folding into a snapshot when it is longer than this and than twice the snapshot.
const COMPACT_BYTES: u64 = 16 * 1024 * 1024;

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// What is acknowledged survives loss of power.
    Full,
    /// What is acknowledged survives a crash of the process; loss of power may take the latest writes.
    Off,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    ork_state_file: i64,
    /// The last transaction that is folded into what comes before.
    after: u64,
}

#[derive(Deserialize)]
struct Line<'a> {
    seq: u64,
    crc: &'a str,
    #[serde(borrow)]
    changes: &'a RawValue,
}

fn checksum(seq: u64, changes: &str) -> String {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(seq.to_string().as_bytes());
    hasher.update(b" ");
    hasher.update(changes.as_bytes());
    format!("{:08x}", hasher.finalize())
}

/// A transaction as a line of the journal.
fn encode(seq: u64, changes: &[Change]) -> Result<String> {
    let changes = serde_json::to_string(changes)
        .map_err(|source| Error::internal("a transaction does not serialise").with_source(source))?;
    Ok(format!("{{\"seq\":{seq},\"crc\":\"{}\",\"changes\":{changes}}}\n", checksum(seq, &changes)))
}

/// The directory of a store, opened by this process.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    lock: File,
    lock_timeout: Duration,
    sync: Sync,
    open: Option<OpenJournal>,
}

/// The journal file up to what this process has read of it.
#[derive(Debug)]
struct OpenJournal {
    file: File,
    inode: u64,
    /// Where the next transaction goes.
    end: u64,
    /// The last transaction.
    seq: u64,
    snapshot_bytes: u64,
}

/// Holds the lock; dropping it lets it go.
#[derive(Debug)]
pub(crate) struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file would let it go as well.
        let _ = self.0.unlock();
    }
}

impl Journal {
    /// Opens the directory, which is made if its parent is there.
    pub(crate) fn new(directory: &Path, lock_timeout: Duration, sync: Sync) -> Result<Self> {
        let make = |path: &Path| match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(|source| io_at("make the directory", path, source)),
        };
        make(directory)?;
        let directory = directory.canonicalize().map_err(|source| io_at("find", directory, source))?;
        if !directory.is_dir() {
            return Err(Error::invalid(
                "store URL",
                format!("names {}, which is not a directory", directory.display()),
            ));
        }
        if !directory.join(JOURNAL).exists() && directory.join("workflows").is_dir() {
            return Err(Error::conflict(format!("{} holds JSON files of an older Ork", directory.display()))
                .with_hint("This version does not take them over yet: choose another directory"));
        }
        make(&directory.join(LOGS))?;
        let path = directory.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|source| io_at("open", &path, source))?;
        Ok(Self { directory, lock, lock_timeout, sync, open: None })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join(LOGS)
    }

    /// Takes the lock for writing.
    pub(crate) fn lock_exclusive(&self) -> Result<Locked> {
        self.wait_for_lock(File::try_lock)
    }

    /// Takes the lock for reading what another process is done with.
    fn lock_shared(&self) -> Result<Locked> {
        self.wait_for_lock(File::try_lock_shared)
    }

    fn wait_for_lock(&self, try_lock: fn(&File) -> Result<(), TryLockError>) -> Result<Locked> {
        let path = self.directory.join(LOCK);
        let file = self.lock.try_clone().map_err(|source| io_at("open", &path, source))?;
        let begun = Instant::now();
        let mut pause = Duration::from_micros(20);
        loop {
            match try_lock(&file) {
                Ok(()) => return Ok(Locked(file)),
                Err(TryLockError::Error(source)) => return Err(io_at("lock", &path, source)),
                Err(TryLockError::WouldBlock) if begun.elapsed() >= self.lock_timeout => {
                    let waited = self.lock_timeout;
                    return Err(Error::unavailable(format!("{} was locked for {waited:?}", path.display()))
                        .with_hint(
                            "Another process is writing, or hangs: `fuser -v` on this file tells which",
                        ));
                }
                // There is no waiting for a lock with a time limit; the pause stays far below one fsync.
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(1));
                }
            }
        }
    }

    /// Makes an empty journal unless there is one; says whether it did. With the lock held.
    pub(crate) fn create(&mut self) -> Result<bool> {
        let path = self.directory.join(JOURNAL);
        if path.exists() {
            return Ok(false);
        }
        self.replace(JOURNAL, |file| write_header(file, 0))?;
        Ok(true)
    }

    /// Writes a file under another name, syncs it and gives it its name.
    fn replace(&self, name: &str, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
        let (path, staged) = (self.directory.join(name), self.directory.join(format!("{name}.new")));
        let replace = || {
            let file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&staged)?;
            let mut file = BufWriter::with_capacity(1 << 20, file);
            write(&mut file)?;
            file.into_inner()?.sync_all()?;
            fs::rename(&staged, &path)?;
            // The new name is on disk when its directory is.
            File::open(&self.directory)?.sync_all()
        };
        replace().map_err(|source| io_at("write", &path, source))
    }

    /// Whether there is a journal, so that the store is migrated.
    pub(crate) fn exists(&self) -> bool {
        self.open.is_some() || self.directory.join(JOURNAL).exists()
    }

    /// Whether another process has written since this one looked.
    fn is_behind(&self) -> Result<bool> {
        let path = self.directory.join(JOURNAL);
        let there = fs::metadata(&path).map_err(|source| io_at("read", &path, source))?;
        Ok(self.open.as_ref().is_none_or(|open| open.inode != there.ino() || open.end != there.len()))
    }

    /// Brings the state up to what is on disk, for a reader.
    pub(crate) fn catch_up_shared(&mut self, state: &mut State) -> Result<()> {
        if self.is_behind()? {
            let _locked = self.lock_shared()?;
            self.catch_up(state)?;
        }
        Ok(())
    }

    /// Brings the state up to what is on disk. With the lock held, shared at least.
    pub(crate) fn catch_up(&mut self, state: &mut State) -> Result<()> {
        let path = self.directory.join(JOURNAL);
        let there = fs::metadata(&path).map_err(|source| io_at("read", &path, source))?;
        if self.open.as_ref().is_none_or(|open| open.inode != there.ino() || there.len() < open.end) {
            self.open = None;
            *state = State::default();
            let opened = self.load(state);
            if opened.is_err() {
                *state = State::default();
            }
            self.open = Some(opened?);
        } else if let Some(open) = &mut self.open
            && open.end < there.len()
        {
            let read = read_lines(&path, &mut open.file, open.end, open.seq, state);
            match read {
                Ok((end, seq)) => (open.end, open.seq) = (end, seq),
                Err(error) => {
                    // Half of it may be applied: the next call reads everything anew.
                    self.open = None;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Forgets what was read, so that the next call reads everything anew.
    pub(crate) fn forget(&mut self) {
        self.open = None;
    }

    fn load(&self, state: &mut State) -> Result<OpenJournal> {
        let mut seq = 0;
        let mut snapshot_bytes = 0;
        let path = self.directory.join(SNAPSHOT);
        if path.exists() {
            let (mut file, _, after, begin) = open_with_header(&path)?;
            (snapshot_bytes, _) = read_lines(&path, &mut file, begin, 0, state)?;
            seq = after;
        }
        let path = self.directory.join(JOURNAL);
        let (mut file, inode, after, begin) = open_with_header(&path)?;
        if after > seq {
            return Err(Error::corrupt(
                path.display().to_string(),
                0,
                "after",
                "the snapshot that it goes on from is missing",
            ));
        }
        let (end, seq) = read_lines(&path, &mut file, begin, seq, state)?;
        Ok(OpenJournal { file, inode, end, seq, snapshot_bytes })
    }

    /// Appends transactions, each a line, and has them on disk. With the lock held, after catching up.
    ///
    /// If it fails nothing of them counts, as far as can be known: the error says.
    pub(crate) fn append(&mut self, transactions: &[Vec<Change>]) -> Result<()> {
        let path = self.directory.join(JOURNAL);
        let Some(open) = &mut self.open else {
            return Err(Error::internal("appends to a journal that is not open"));
        };
        let mut lines = String::new();
        for (seq, changes) in (open.seq + 1..).zip(transactions) {
            lines += &encode(seq, changes)?;
        }
        let write = |file: &mut File| {
            // What lies beyond the end is a line that a killed process left torn.
            file.set_len(open.end)?;
            file.seek(SeekFrom::Start(open.end))?;
            file.write_all(lines.as_bytes())?;
            if self.sync == Sync::Full { file.sync_data() } else { Ok(()) }
        };
        if let Err(source) = write(&mut open.file) {
            let undone = open.file.set_len(open.end).and_then(|()| open.file.sync_data());
            let error = io_at("write", &path, source);
            return Err(match undone {
                Ok(()) => error,
                Err(_) => Error::unknown_outcome(error.to_string()).with_source(error),
            });
        }
        open.end += lines.len() as u64;
        open.seq += transactions.len() as u64;
        Ok(())
    }

    /// Whether the journal has grown long.
    pub(crate) fn is_long(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.end > COMPACT_BYTES.max(2 * open.snapshot_bytes))
    }

    /// Folds the journal into a snapshot. With the lock held, after catching up. A crash at any point leaves a store that
    /// reads the same: the journal's lines are skipped up to where the snapshot stands.
    pub(crate) fn compact(&mut self, state: &State) -> Result<()> {
        let Some(seq) = self.open.as_ref().map(|open| open.seq) else { return Ok(()) };
        self.replace(SNAPSHOT, |file| {
            write_header(file, seq)?;
            for (line, changes) in (1..).zip(state.dump()) {
                file.write_all(encode(line, &changes).map_err(io::Error::other)?.as_bytes())?;
            }
            Ok(())
        })?;
        self.replace(JOURNAL, |file| write_header(file, seq))?;
        let (file, inode, _, end) = open_with_header(&self.directory.join(JOURNAL))?;
        let snapshot_bytes = fs::metadata(self.directory.join(SNAPSHOT)).map_or(0, |metadata| metadata.len());
        self.open = Some(OpenJournal { file, inode, end, seq, snapshot_bytes });
        Ok(())
    }
}

fn write_header(file: &mut impl Write, after: u64) -> io::Result<()> {
    serde_json::to_writer(&mut *file, &Header { ork_state_file: VERSION, after })?;
    file.write_all(b"\n")
}

/// Opens a journal or snapshot; gives its inode, its header's `after` and where its lines begin.
fn open_with_header(path: &Path) -> Result<(File, u64, u64, u64)> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(path).map_err(|source| io_at("open", path, source))?;
    let inode = file.metadata().map_err(|source| io_at("read", path, source))?.ino();
    let mut line = String::new();
    let corrupt = |reason: &str| Error::corrupt(path.display().to_string(), "offset 0", "header", reason);
    BufReader::new(&file)
        .read_line(&mut line)
        .map_err(|source| corrupt("is not text").with_source(source))?;
    let header: Header = serde_json::from_str(&line)
        .map_err(|source| corrupt("is not the header of an ork-state journal").with_source(source))?;
    if header.ork_state_file != VERSION {
        let kind = ErrorKind::SchemaMismatch { found: header.ork_state_file, needed: VERSION };
        return Err(
            Error::new(kind).with_hint(format!("Deploy the newer code that wrote {}", path.display()))
        );
    }
    Ok((file, inode, header.after, line.len() as u64))
}

/// Applies the lines from an offset on that come after transaction `seq`; gives the end of the last whole line and its
/// number. A torn last line is left out.
fn read_lines(
    path: &Path,
    file: &mut File,
    offset: u64,
    mut seq: u64,
    state: &mut State,
) -> Result<(u64, u64)> {
    let corrupt = |at: u64, reason: String| {
        Error::corrupt(path.display().to_string(), format!("offset {at}"), "line", reason).with_hint(
            "Restore the directory from a backup, or cut the file at this offset and lose what follows",
        )
    };
    file.seek(SeekFrom::Start(offset)).map_err(|source| io_at("read", path, source))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut end, mut line) = (offset, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(|source| io_at("read", path, source))?;
        if length == 0 || line.last() != Some(&b'\n') {
            return Ok((end, seq));
        }
        match decode(&line) {
            Ok((number, changes)) => {
                if number > seq + 1 {
                    return Err(corrupt(end, format!("is transaction {number}, {} is missing", seq + 1)));
                }
                // One that is not greater is in the snapshot already: a crash came between the two renames of a compaction.
                if number == seq + 1 {
                    for change in changes {
                        state.apply(change).map_err(|reason| corrupt(end, reason))?;
                    }
                    seq = number;
                }
            }
            // Loss of power may leave a last line whose length is on disk and whose bytes are not.
            Err(_) if line.contains(&0) && is_last(&mut reader) => return Ok((end, seq)),
            Err(reason) => return Err(corrupt(end, reason)),
        }
        end += length as u64;
    }
}

fn is_last(reader: &mut impl BufRead) -> bool {
    reader.fill_buf().is_ok_and(<[u8]>::is_empty)
}

fn decode(line: &[u8]) -> Result<(u64, Vec<Change>), String> {
    let line: Line<'_> =
        serde_json::from_slice(line).map_err(|error| format!("is not JSON of a transaction: {error}"))?;
    let expected = checksum(line.seq, line.changes.get());
    if line.crc != expected {
        return Err(format!("has checksum {}, its content has {expected}", line.crc));
    }
    let changes = serde_json::from_str(line.changes.get())
        .map_err(|error| format!("has an unknown change: {error}"))?;
    Ok((line.seq, changes))
}
