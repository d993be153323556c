//! The files of a store, and when they count.
//!
//! - `journal.jsonl`: a header, then a line a commit: `{"seq":7,"crc":"89abcdef","changes":[…]}`, with the changes of all transactions that
//!   share the commit. The checksum is the CRC-32 of the sequence number in decimal, a space, and the text of the changes.
//! - `snapshot.jsonl`: the same form, and a last line without changes, so that one that was cut short is known; made when the journal has
//!   grown long. The journal goes on after it, and after the `sealed-SEQ.jsonl` that there may be: see [`fold`](crate::fold).
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
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use ork_state_api::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::change::Change;
use crate::disk::{make_directory, sync_directory, sync_file};
use crate::error::io_at;
use crate::fold::{self, Fold};
use crate::lock::{self, Deadline, Locked};
use crate::state::State;

/// The version of the format, which is the store's schema version.
pub(crate) const VERSION: i64 = 1;

pub(crate) const JOURNAL: &str = "journal.jsonl";
pub(crate) const SNAPSHOT: &str = "snapshot.jsonl";
const LOCK: &str = "lock";
const TURNSTILE: &str = "turnstile";
const LOGS: &str = "logs";

/// A journal is worth folding into a snapshot when it is longer than this and than twice the snapshot. In unit tests it is
/// soon: they look at what a crash leaves of the folding.
const FOLD_BYTES: u64 = if cfg!(test) { 64 * 1024 } else { 16 * 1024 * 1024 };

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// What is acknowledged survives loss of power.
    Full,
    /// What is acknowledged survives a crash of the process; loss of power may take the latest writes, or leave a journal that is
    /// `Corrupt` where they begin.
    Off,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
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
pub(crate) fn encode(seq: u64, changes: &[Change]) -> Result<String> {
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
    fold: Option<Fold>,
}

/// The journal file up to what this process has read of it.
#[derive(Debug)]
struct OpenJournal {
    file: File,
    inode: u64,
    /// Where its first commit is.
    begin: u64,
    /// Where the next commit goes.
    end: u64,
    /// The last commit.
    seq: u64,
    /// How much of sealed journals comes before it.
    sealed: u64,
    /// The length, with those, at which it is worth folding.
    fold_at: u64,
}

/// Waits for the lock for writing, through files of its own: not as the process that has it already.
pub(crate) fn wait_for_lock(directory: &Path, timeout: Duration) -> Result<Locked> {
    let (turnstile, lock) = (open_lock(directory, TURNSTILE)?, open_lock(directory, LOCK)?);
    wait_in_turn(&turnstile, &lock, directory, File::try_lock, timeout)
}

/// Whoever waits for the lock waits in the turnstile, where there is room for one. So who has just let the lock go and
/// wants it again comes after who waits already.
fn wait_in_turn(
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

fn open_lock(directory: &Path, name: &str) -> Result<Arc<File>> {
    let path = directory.join(name);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    file.map(Arc::new).map_err(|source| io_at("open", &path, source))
}

/// The name under which a file is written before it gets its own.
pub(crate) fn staged(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.new"))
}

/// So much is written before it is synced.
const SYNC_BYTES: usize = 256 << 10;

/// A file that has what is written on disk soon: a file system that is given much to write at the end keeps the syncs of others
/// waiting meanwhile, those of the journal among them.
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
        // What a process that was killed had staged: a journal is staged with this lock held.
        let _ = fs::remove_file(staged(&self.directory, JOURNAL));
        Ok(locked)
    }

    /// Takes the lock for reading what another process is done with.
    fn lock_shared(&self) -> Result<Locked> {
        self.wait_for_lock(File::try_lock_shared)
    }

    fn wait_for_lock(&self, try_lock: fn(&File) -> Result<(), TryLockError>) -> Result<Locked> {
        wait_in_turn(&self.turnstile, &self.lock, &self.directory, try_lock, self.lock_timeout)
    }

    /// Makes an empty journal unless there is one; says whether it did. With the lock held.
    pub(crate) fn create(&mut self, transactions: &[Vec<Change>]) -> Result<()> {
        if self.directory.join(JOURNAL).exists() {
            return Ok(());
        }
        stage(&self.directory, JOURNAL, |file| {
            write_header(file, 0)?;
            for (seq, changes) in (1..).zip(transactions) {
                file.write_all(encode(seq, changes).map_err(io::Error::other)?.as_bytes())?;
            }
            Ok(())
        })?;
        self.name_journal()
    }

    /// Gives the staged journal its name, on disk too.
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
        let caught_up = match &mut self.open {
            Some(open) if open.inode == there.ino() && open.end == there.len() => return Ok(()),
            Some(open) if open.inode == there.ino() && open.end < there.len() => {
                open.read_on(&path, self.sync, state).map(|()| true)
            }
            Some(open) if open.inode != there.ino() => open.follow(&self.directory, self.sync, state),
            // It has become shorter, which nobody does who works on it.
            Some(_) | None => Ok(false),
        };
        match caught_up {
            Ok(true) => Ok(()),
            Ok(false) => self.read_anew(state),
            Err(error) => {
                // Half of it may be applied: the next call reads everything anew.
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

    /// Forgets what was read, so that the next call reads everything anew.
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
            // It has more than its name says if it is the journal still: a process was killed between the two names.
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
        // The process that gave the file its name may have been killed before that was on disk.
        self.sync.directory(&self.directory)?;
        let mut open = OpenJournal { file, inode: there.ino(), begin, end, seq, sealed: 0, fold_at: 0 };
        open.measure(&self.directory);
        Ok(open)
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
                Err(_) => Error::unknown_effect(error.to_string()).with_source(error),
            });
        }
        open.end += line.len() as u64;
        open.seq += 1;
        Ok(())
    }

    /// Begins to fold the journal into a snapshot if it has grown long. With the lock held, after catching up.
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
            // Another process is at it.
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
        self.fold = Some(Fold::start(&self.directory, only, self.lock_timeout, seq, state.image())?);
        Ok(())
    }

    /// Waits for the fold that is under way.
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

    /// What failed, such as on a full disk, is not tried again at every commit. The journal stands as it was, only longer than it need be.
    fn put_off_fold(&mut self) {
        if let Some(open) = &mut self.open {
            let length = open.sealed + open.end;
            open.fold_at = length + length / 4;
        }
    }

    /// Ends the journal with the last commit and goes on with a new one. Gives that commit.
    fn seal(&mut self) -> Result<u64> {
        let path = self.directory.join(JOURNAL);
        let Some(open) = &mut self.open else {
            return Err(Error::internal("seals a journal that is not open"));
        };
        // There is nothing in it.
        if open.end == open.begin {
            return Ok(open.seq);
        }
        // What lies beyond the end is a line that a killed process left torn.
        let cut = open.file.set_len(open.end).and_then(|()| sync_file(&open.file));
        cut.map_err(|source| io_at("write", &path, source))?;
        let (seq, length, inode) = (open.seq, open.end, open.inode);
        stage(&self.directory, JOURNAL, |file| write_header(file, seq))?;
        let sealed = self.directory.join(fold::sealed_name(seq));
        // On disk before the name that it has had goes to another.
        match fs::hard_link(&path, &sealed) {
            // A process was killed between the two names, if it is the same file. Another one would be the end of this journal.
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
    /// Sees what there is to fold, which other processes may have done.
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

    /// Reads this journal to its end, which another process has sealed, and goes on with the one that comes after it. Says whether
    /// that is the one that is there.
    fn follow(&mut self, directory: &Path, sync: Sync, state: &mut State) -> Result<bool> {
        let path = directory.join(JOURNAL);
        let read = read_lines(&path, &mut self.file, self.end, self.seq, state)?;
        let (file, there, header, begin) = open_with_header(&path)?;
        if header.after != read.seq {
            return Ok(false);
        }
        fold::keep(&file);
        // The process that gave it its name may have been killed before that was on disk.
        sync.directory(directory)?;
        (self.file, self.inode) = (file, there.ino());
        (self.begin, self.end, self.seq) = (begin, begin, read.seq);
        self.measure(directory);
        self.read_on(&path, sync, state)?;
        Ok(true)
    }
}

/// A file goes on from what was read so far.
fn require_before(path: &Path, header: Header, seq: u64) -> Result<()> {
    if header.after <= seq {
        return Ok(());
    }
    let reason = "the snapshot or journal that it goes on from is missing";
    Err(Error::corrupt(path.display().to_string(), 0, "after", reason))
}

impl Sync {
    /// Has what other processes wrote on disk: one that was killed may not have come to it.
    fn file(self, file: &File, path: &Path) -> Result<()> {
        match self {
            Self::Full => sync_file(file).map_err(|source| io_at("sync", path, source)),
            Self::Off => Ok(()),
        }
    }

    /// Has on disk the names that other processes gave.
    fn directory(self, path: &Path) -> Result<()> {
        match self {
            Self::Full => sync_directory(path).map_err(|source| io_at("sync", path, source)),
            Self::Off => Ok(()),
        }
    }
}

pub(crate) fn write_header(file: &mut impl Write, after: u64) -> io::Result<()> {
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

/// More than this is read by two threads: one decodes what the other applies.
const MUCH: u64 = 4 << 20;
/// So many lines are handed from one to the other at a time, and so often before one waits for the other.
const LINES: usize = 64;
const AHEAD: usize = 8;

/// Applies the lines from an offset on that come after commit `seq`. A torn last line is left out.
fn read_lines(path: &Path, file: &mut File, offset: u64, seq: u64, state: &mut State) -> Result<Read> {
    let failed = |source| io_at("read", path, source);
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let much = file.metadata().map_err(failed)?.len().saturating_sub(offset) > MUCH;
    let mut lines = Lines(BufReader::with_capacity(1 << 20, file));
    let mut read = Read { end: offset, seq, is_closed: false };
    if !much {
        while let Some(line) = lines.next().map_err(failed)? {
            read.apply(path, line, state)?;
        }
        return Ok(read);
    }
    std::thread::scope(|scope| {
        let (decoded, ready) = sync_channel::<io::Result<Vec<DecodedLine>>>(AHEAD);
        scope.spawn(move || {
            loop {
                let some: io::Result<Vec<_>> =
                    std::iter::from_fn(|| lines.next().transpose()).take(LINES).collect();
                let is_last = some.as_ref().map_or(true, |some| some.len() < LINES);
                // The other has stopped at an error.
                if decoded.send(some).is_err() || is_last {
                    return;
                }
            }
        });
        for some in ready {
            for line in some.map_err(failed)? {
                read.apply(path, line, state)?;
            }
        }
        Ok(read)
    })
}

/// The whole lines of a file, decoded.
struct Lines<'a>(BufReader<&'a mut File>);

struct DecodedLine {
    length: u64,
    commit: Result<(u64, Vec<Change>), String>,
    /// Loss of power may leave a last line whose length is on disk and whose bytes are not.
    is_torn: bool,
}

impl Lines<'_> {
    fn next(&mut self) -> io::Result<Option<DecodedLine>> {
        let mut line = Vec::new();
        let length = self.0.read_until(b'\n', &mut line)? as u64;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let commit = decode(&line);
        let is_torn = commit.is_err() && line.contains(&0) && self.0.fill_buf()?.is_empty();
        Ok(Some(DecodedLine { length, commit, is_torn }))
    }
}

impl Read {
    /// Goes on by a line. One that is torn is not counted: it is the last.
    fn apply(&mut self, path: &Path, line: DecodedLine, state: &mut State) -> Result<()> {
        if line.is_torn {
            return Ok(());
        }
        let corrupt = |reason| corrupt(path, self.end, reason);
        let (number, changes) = line.commit.map_err(corrupt)?;
        if number > self.seq + 1 {
            return Err(corrupt(format!("is commit {number}, {} is missing", self.seq + 1)));
        }
        // One that is not greater is in the snapshot already: a crash came between the two names of a fold.
        if number == self.seq + 1 {
            self.is_closed = changes.is_empty();
            for change in changes {
                state.apply(change).map_err(corrupt)?;
            }
            self.seq = number;
        }
        self.end += line.length;
        Ok(())
    }
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
