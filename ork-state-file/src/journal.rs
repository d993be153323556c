//! The files of a store, and when they count.
//!
//! - `journal.jsonl`: a header, then a line a commit: `{"seq":7,"crc":"89abcdef","changes":[…]}`, with the changes of all transactions that
//!   share the commit. The checksum is the CRC-32 of the sequence number in decimal, a space, and the text of the changes.
//! - `snapshot.jsonl`: the same form, and a last line without changes, so that one that was cut short is known; made when the journal has
//!   grown long. The journal goes on after it.
//! - `lock`: locked while a process writes; shared while one reads what another wrote.
//! - `turnstile`: locked by the one who is next to have the lock, so that a busy process cannot take it again and again.
//! - `logs/`: see [`logs`](crate::logs).
//!
//! A file with a complete header is whole: both come into being under another name, are synced, then
//! renamed, and the directory is synced.
//!
//! **Loss of power** may take any pages of a write that was not synced, earlier ones and not later ones. Since a commit is one line, and no
//! commit is written before the one before it is on disk, all that can be bad is the last line, and nothing of it was acknowledged: it is cut
//! off. That takes that whoever finds lines that another process wrote, perhaps killed before its sync, syncs before it relies on them.
//!
//! **Line breaks** in a line are white space of JSON that callers gave, which comes back as it was: a CR stands as CR CR, an LF as CR TAB.
//! So a line is one line, and still JSON that says the same.

use std::borrow::Cow;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::change::Change;
use crate::disk::{make_directory, sync_directory, sync_file};
use crate::error::io_at;
use crate::lock::{self, Deadline, Locked};
use crate::state::State;

/// The version of the format, which is the store's schema version.
pub(crate) const VERSION: i64 = 1;

pub(crate) const JOURNAL: &str = "journal.jsonl";
const SNAPSHOT: &str = "snapshot.jsonl";
const LOCK: &str = "lock";
const TURNSTILE: &str = "turnstile";
const LOGS: &str = "logs";

/// A journal is worth folding into a snapshot when it is longer than this and than twice the snapshot. In unit tests it is
/// soon: they look at what a crash leaves of the folding.
const COMPACT_BYTES: u64 = if cfg!(test) { 64 * 1024 } else { 16 * 1024 * 1024 };

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// What is acknowledged survives loss of power.
    Full,
    /// What is acknowledged survives a crash of the process; loss of power may take the latest writes, or leave a journal that is
    /// `Corrupt` where they begin.
    Off,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    ork_state_file: i64,
    /// The last commit that is folded into what comes before.
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

/// A commit as a line of the journal.
fn encode(seq: u64, changes: &[Change]) -> Result<String> {
    let changes = serde_json::to_string(changes)
        .map_err(|source| Error::internal("a transaction does not serialise").with_source(source))?;
    let changes = without_line_breaks(&changes);
    Ok(format!("{{\"seq\":{seq},\"crc\":\"{}\",\"changes\":{changes}}}\n", checksum(seq, &changes)))
}

fn without_line_breaks(text: &str) -> Cow<'_, str> {
    if !text.contains('\r') && !text.contains('\n') {
        return text.into();
    }
    text.replace('\r', "\r\r").replace('\n', "\r\t").into()
}

fn with_line_breaks(text: &str) -> Result<Cow<'_, str>, String> {
    let mut parts = text.split('\r');
    let first = parts.next().unwrap_or_default();
    if first.len() == text.len() {
        return Ok(text.into());
    }
    let mut original = String::with_capacity(text.len());
    original += first;
    // What follows a CR: nothing, up to the other CR of a pair, or the TAB that makes it an LF.
    while let Some(part) = parts.next() {
        if let Some(rest) = part.strip_prefix('\t') {
            original.push('\n');
            original += rest;
        } else if let ("", Some(rest)) = (part, parts.next()) {
            original.push('\r');
            original += rest;
        } else {
            return Err("has a CR that stands for nothing".to_owned());
        }
    }
    Ok(original.into())
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
}

/// The journal file up to what this process has read of it.
#[derive(Debug)]
struct OpenJournal {
    file: File,
    inode: u64,
    /// Where the next commit goes.
    end: u64,
    /// The last commit.
    seq: u64,
    /// The length at which it is worth folding.
    compact_at: u64,
}

const fn compact_at(snapshot_bytes: u64) -> u64 {
    let twice = 2 * snapshot_bytes;
    if twice > COMPACT_BYTES { twice } else { COMPACT_BYTES }
}

impl Journal {
    /// Opens the directory, which is made if its parent is there.
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
        let open = |name| {
            let path = directory.join(name);
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
            file.map(Arc::new).map_err(|source| io_at("open", &path, source))
        };
        let (lock, turnstile) = (open(LOCK)?, open(TURNSTILE)?);
        Ok(Self { directory, lock, turnstile, lock_timeout, sync, open: None })
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
        // What a process that was killed had staged: nobody else stages anything now.
        for name in [SNAPSHOT, JOURNAL] {
            let _ = fs::remove_file(self.staged(name));
        }
        Ok(locked)
    }

    /// Takes the lock for reading what another process is done with.
    fn lock_shared(&self) -> Result<Locked> {
        self.wait_for_lock(File::try_lock_shared)
    }

    /// Whoever waits for the lock waits in the turnstile, where there is room for one. So who has just let the lock go and
    /// wants it again comes after who waits already.
    fn wait_for_lock(&self, try_lock: fn(&File) -> Result<(), TryLockError>) -> Result<Locked> {
        let path = self.directory.join(LOCK);
        let deadline = Deadline::after(self.lock_timeout);
        let _next = lock::wait(&self.turnstile, &path, File::try_lock, deadline)?;
        lock::wait(&self.lock, &path, try_lock, deadline)
    }

    /// Makes an empty journal unless there is one; says whether it did. With the lock held.
    pub(crate) fn create(&mut self, transactions: &[Vec<Change>]) -> Result<()> {
        if self.directory.join(JOURNAL).exists() {
            return Ok(());
        }
        self.replace(JOURNAL, |file| {
            write_header(file, 0)?;
            for (seq, changes) in (1..).zip(transactions) {
                file.write_all(encode(seq, changes).map_err(io::Error::other)?.as_bytes())?;
            }
            Ok(())
        })
    }

    /// The name under which a file is written before it gets its own.
    fn staged(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.new"))
    }

    /// Writes a file under another name, syncs it and gives it its name. If it fails, nothing is left of it.
    fn replace(&self, name: &str, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
        let (path, staged) = (self.directory.join(name), self.staged(name));
        let replace = || {
            let file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&staged)?;
            let mut file = BufWriter::with_capacity(1 << 20, file);
            write(&mut file)?;
            sync_file(&file.into_inner().map_err(io::IntoInnerError::into_error)?)?;
            fs::rename(&staged, &path)?;
            sync_directory(&self.directory)
        };
        replace().map_err(|source| {
            let _ = fs::remove_file(&staged);
            io_at("write", &path, source)
        })
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
            let synced = |read: Read| match read.seq == open.seq {
                true => Ok(read),
                false => self.sync.file(&open.file, &path).map(|()| read),
            };
            match read.and_then(synced) {
                Ok(read) => (open.end, open.seq) = (read.end, read.seq),
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
            let (mut file, there, header, begin) = open_with_header(&path)?;
            let read = read_lines(&path, &mut file, begin, 0, state)?;
            snapshot_bytes = there.len();
            // Only a journal may have a torn end.
            if !read.is_closed || read.end != snapshot_bytes {
                return Err(corrupt(&path, read.end, "is not there: the snapshot was cut short".to_owned()));
            }
            seq = header.after;
        }
        let path = self.directory.join(JOURNAL);
        let (mut file, there, header, begin) = open_with_header(&path)?;
        if header.after > seq {
            return Err(Error::corrupt(
                path.display().to_string(),
                0,
                "after",
                "the snapshot that it goes on from is missing",
            ));
        }
        let Read { end, seq, .. } = read_lines(&path, &mut file, begin, seq, state)?;
        self.sync.file(&file, &path)?;
        if self.sync == Sync::Full {
            // The process that gave the file its name may have been killed before that was on disk.
            sync_directory(&self.directory).map_err(|source| io_at("sync", &self.directory, source))?;
        }
        Ok(OpenJournal { file, inode: there.ino(), end, seq, compact_at: compact_at(snapshot_bytes) })
    }

    /// Appends a commit and has it on disk. With the lock held, after catching up.
    ///
    /// If it fails nothing of it counts, as far as can be known: the error says.
    pub(crate) fn append(&mut self, changes: &[Change]) -> Result<()> {
        let path = self.directory.join(JOURNAL);
        let Some(open) = &mut self.open else {
            return Err(Error::internal("appends to a journal that is not open"));
        };
        let line = encode(open.seq + 1, changes)?;
        let write = |file: &mut File| {
            // What lies beyond the end is a line that a killed process left torn.
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
                Err(_) => Error::unknown_outcome(error.to_string()).with_source(error),
            });
        }
        open.end += line.len() as u64;
        open.seq += 1;
        Ok(())
    }

    /// Folds the journal into a snapshot if it has grown long. With the lock held, after catching up. A crash at any point leaves
    /// a store that reads the same: the journal's lines are skipped up to where the snapshot stands.
    pub(crate) fn compact_if_long(&mut self, state: &State) {
        let Some(open) = self.open.as_ref().filter(|open| open.end > open.compact_at) else { return };
        let compacted = self.compact(open.seq, state);
        if let Some(open) = &mut self.open {
            match compacted {
                Ok(new) => *open = new,
                // The journal stands as it was, only longer than it need be, unless it was replaced: then the next call sees that. What
                // failed, such as on a full disk, is not tried again at every commit.
                Err(_) => open.compact_at = open.end + open.end / 4,
            }
        }
    }

    fn compact(&self, seq: u64, state: &State) -> Result<OpenJournal> {
        self.replace(SNAPSHOT, |file| {
            write_header(file, seq)?;
            for (line, changes) in (1..).zip(state.dump().chain([vec![]])) {
                file.write_all(encode(line, &changes).map_err(io::Error::other)?.as_bytes())?;
            }
            Ok(())
        })?;
        self.replace(JOURNAL, |file| write_header(file, seq))?;
        let (file, there, _, end) = open_with_header(&self.directory.join(JOURNAL))?;
        let snapshot_bytes = fs::metadata(self.directory.join(SNAPSHOT)).map_or(0, |metadata| metadata.len());
        Ok(OpenJournal { file, inode: there.ino(), end, seq, compact_at: compact_at(snapshot_bytes) })
    }
}

impl Sync {
    /// Has what other processes wrote on disk: one that was killed may not have come to it.
    fn file(self, file: &File, path: &Path) -> Result<()> {
        match self {
            Self::Full => sync_file(file).map_err(|source| io_at("sync", path, source)),
            Self::Off => Ok(()),
        }
    }
}

fn write_header(file: &mut impl Write, after: u64) -> io::Result<()> {
    serde_json::to_writer(&mut *file, &Header { ork_state_file: VERSION, after })?;
    file.write_all(b"\n")
}

/// Opens a journal or snapshot; gives its metadata, its header and where its lines begin.
fn open_with_header(path: &Path) -> Result<(File, Metadata, Header, u64)> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(path).map_err(|source| io_at("open", path, source))?;
    let there = file.metadata().map_err(|source| io_at("read", path, source))?;
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
    Ok((file, there, header, line.len() as u64))
}

fn corrupt(path: &Path, at: u64, reason: String) -> Error {
    let hint = if path.ends_with(JOURNAL) {
        "Restore the directory from a backup, or cut the file at this offset and lose what follows"
    } else {
        "Restore the directory from a backup"
    };
    Error::corrupt(path.display().to_string(), format!("offset {at}"), "line", reason).with_hint(hint)
}

/// How far a file was read.
struct Read {
    /// Where the last whole line ends.
    end: u64,
    /// Its number.
    seq: u64,
    /// Whether it has no changes, as the last of a snapshot.
    is_closed: bool,
}

/// Applies the lines from an offset on that come after commit `seq`. A torn last line is left out.
fn read_lines(path: &Path, file: &mut File, offset: u64, seq: u64, state: &mut State) -> Result<Read> {
    let corrupt = |at, reason| corrupt(path, at, reason);
    file.seek(SeekFrom::Start(offset)).map_err(|source| io_at("read", path, source))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut read, mut line) = (Read { end: offset, seq, is_closed: false }, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(|source| io_at("read", path, source))?;
        if length == 0 || line.last() != Some(&b'\n') {
            return Ok(read);
        }
        match decode(&line) {
            Ok((number, changes)) => {
                if number > read.seq + 1 {
                    return Err(corrupt(
                        read.end,
                        format!("is commit {number}, {} is missing", read.seq + 1),
                    ));
                }
                // One that is not greater is in the snapshot already: a crash came between the two renames of a compaction.
                if number == read.seq + 1 {
                    read.is_closed = changes.is_empty();
                    for change in changes {
                        state.apply(change).map_err(|reason| corrupt(read.end, reason))?;
                    }
                    read.seq = number;
                }
            }
            // Loss of power may leave a last line whose length is on disk and whose bytes are not.
            Err(_) if line.contains(&0) && is_last(&mut reader) => return Ok(read),
            Err(reason) => return Err(corrupt(read.end, reason)),
        }
        read.end += length as u64;
    }
}

fn is_last(reader: &mut impl BufRead) -> bool {
    reader.fill_buf().is_ok_and(<[u8]>::is_empty)
}

fn decode(line: &[u8]) -> Result<(u64, Vec<Change>), String> {
    let line: Line<'_> =
        serde_json::from_slice(line).map_err(|error| format!("is not JSON of a commit: {error}"))?;
    let expected = checksum(line.seq, line.changes.get());
    if line.crc != expected {
        return Err(format!("has checksum {}, its content has {expected}", line.crc));
    }
    let changes = serde_json::from_str(&with_line_breaks(line.changes.get())?)
        .map_err(|error| format!("has an unknown change: {error}"))?;
    Ok((line.seq, changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_come_back_whatever_is_beside_them() {
        let mut texts = vec![String::new()];
        for _ in 0..6 {
            let longer = |text: &String| ["\r", "\n", "\t", "x"].map(|next| format!("{text}{next}"));
            texts = texts.iter().flat_map(longer).chain([String::new()]).collect();
            for text in &texts {
                let written = without_line_breaks(text);
                assert!(!written.contains('\n'), "{text:?}");
                assert_eq!(with_line_breaks(&written).as_deref(), Ok(text.as_str()));
            }
        }
        assert!(with_line_breaks("x\r").is_err() && with_line_breaks("\rx").is_err());
    }
}
