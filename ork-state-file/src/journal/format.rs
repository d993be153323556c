//! The lines of a journal or snapshot: how a commit is encoded and decoded.
//!
//! **Line breaks** in a line are white space in callers' JSON, which must come back unchanged. A CR
//! is written as CR CR, an LF as CR TAB. So each commit is one line, and still JSON with the same
//! meaning.

use std::borrow::Cow;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::sync_channel;

use ork_state_api::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::change::Change;
use crate::error::io_at;
use crate::state::State;

use super::files::JOURNAL;

/// The version of the format, which is the store's schema version.
pub(crate) const VERSION: i64 = 1;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Header {
    ork_state_file: i64,
    /// The last commit that the files before this one contain.
    pub(super) after: u64,
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
pub(super) fn encode(seq: u64, changes: &[Change]) -> Result<String> {
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
    // After a CR comes nothing, up to the second CR of a pair, or the TAB that makes it an LF.
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

pub(super) fn write_header(file: &mut impl Write, after: u64) -> io::Result<()> {
    serde_json::to_writer(&mut *file, &Header { ork_state_file: VERSION, after })?;
    file.write_all(b"\n")
}

/// Opens a journal or snapshot. Returns its metadata, its header and the offset of its first line.
pub(super) fn open_with_header(path: &Path) -> Result<(File, Metadata, Header, u64)> {
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

pub(super) fn corrupt(path: &Path, at: u64, reason: String) -> Error {
    let hint = if path.ends_with(JOURNAL) {
        "Restore the directory from a backup, or cut the file at this offset and lose what follows"
    } else {
        "Restore the directory from a backup"
    };
    Error::corrupt(path.display().to_string(), format!("offset {at}"), "line", reason).with_hint(hint)
}

/// How far a file was read.
pub(super) struct Read {
    /// The end of the last whole line.
    pub(super) end: u64,
    /// The commit number of that line.
    pub(super) seq: u64,
    /// Whether that line has no changes, as the last line of a snapshot.
    pub(super) is_closed: bool,
}

/// Beyond this size two threads read: one decodes, the other applies.
const MUCH: u64 = 4 << 20;
/// How many lines one thread hands to the other at a time, and how many batches may wait.
const LINES: usize = 64;
const AHEAD: usize = 8;

/// Applies the lines from an offset on that come after commit `seq`. A torn last line is left out.
pub(super) fn read_lines(
    path: &Path,
    file: &mut File,
    offset: u64,
    seq: u64,
    state: &mut State,
) -> Result<Read> {
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
                // The other thread has stopped at an error.
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
    /// Loss of power may leave a last line whose length is on disk while its bytes are not.
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
    /// Applies a line. A torn line is not counted, because it is the last one.
    fn apply(&mut self, path: &Path, line: DecodedLine, state: &mut State) -> Result<()> {
        if line.is_torn {
            return Ok(());
        }
        let corrupt = |reason| corrupt(path, self.end, reason);
        let (number, changes) = line.commit.map_err(corrupt)?;
        if number > self.seq + 1 {
            return Err(corrupt(format!("is commit {number}, {} is missing", self.seq + 1)));
        }
        // A number that is not greater is in the snapshot already: a crash came between the two
        // namings of a fold.
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

/// Reads bytes as a journal without its header. Then reads each line as the changes of a commit
/// with a correct checksum. Random bytes never have a correct one.
#[cfg(fuzzing)]
#[expect(clippy::panic, reason = "this is how a fuzz target tells what it has found")]
pub fn fuzz(bytes: &[u8]) {
    let path = Path::new(JOURNAL);
    let (mut state, mut read) = (State::default(), Read { end: 0, seq: 0, is_closed: false });
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let line = DecodedLine { length: line.len() as u64, commit: decode(line), is_torn: false };
        if read.apply(path, line, &mut state).is_err() {
            break;
        }
    }

    let (mut state, mut read) = (State::default(), Read { end: 0, seq: 0, is_closed: false });
    for changes in bytes.split(|&byte| byte == b'\n') {
        let Ok(changes) = std::str::from_utf8(changes) else { return };
        let seq = read.seq + 1;
        let line =
            format!("{{\"seq\":{seq},\"crc\":\"{}\",\"changes\":{changes}}}\n", checksum(seq, changes));
        let commit = decode(line.as_bytes());
        if let Ok((_, changes)) = &commit {
            // What was read must be written so that it reads again, with the same text.
            let Ok(written) = encode(seq, changes) else { panic!("it does not serialise: {line}") };
            let again = decode(written.as_bytes())
                .and_then(|(seq, changes)| encode(seq, &changes).map_err(|error| error.to_string()));
            assert_eq!(again.as_ref(), Ok(&written));
        }
        let line = DecodedLine { length: line.len() as u64, commit, is_torn: false };
        if read.apply(path, line, &mut state).is_err() {
            return;
        }
    }
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
