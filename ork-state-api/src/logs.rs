//! What tasks print.

use crate::backend::Plugin;
use async_trait::async_trait;

use crate::limits::MAX_LOG_CHUNK_BYTES;
use crate::{Capability, Error, Result, TaskId};

/// A piece of log to append: 1 byte to 16 MiB of anything, NUL and broken UTF-8 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogChunk<'a>(&'a [u8]);

impl<'a> LogChunk<'a> {
    /// # Errors
    /// `InvalidInput` if it is empty or longer than
    /// [`MAX_LOG_CHUNK_BYTES`].
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        match bytes.len() {
            0 => Err(Error::invalid("log chunk", "is empty")),
            1..=MAX_LOG_CHUNK_BYTES => Ok(Self(bytes)),
            bytes => {
                let reason = format!(
                    "has {bytes} bytes, at most {MAX_LOG_CHUNK_BYTES} are allowed; append it in parts"
                );
                Err(Error::invalid("log chunk", reason))
            }
        }
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// What an append did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogAppended {
    /// How long the log is now, in bytes: from where to read on.
    pub length: u64,
    /// How many bytes of the chunk were not kept because the log is at its cap.
    pub dropped: u64,
}

impl LogAppended {
    /// What an append came to.
    #[must_use]
    pub const fn new(length: u64, dropped: u64) -> Self {
        Self { length, dropped }
    }
}

/// Which part of a log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// Where it begins.
    pub from: LogPosition,
    /// At most so many bytes: 1 to [`MAX_LOG_CHUNK_BYTES`].
    max: u32,
}

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPosition {
    /// So many bytes after its beginning.
    Offset(u64),
    /// So many bytes before its end, or its beginning if it is shorter.
    BeforeEnd(u64),
}

impl LogRange {
    /// Up to `max` bytes from `from` on.
    ///
    /// # Errors
    /// `InvalidInput` for a `max` of 0 or beyond [`MAX_LOG_CHUNK_BYTES`].
    pub fn new(from: LogPosition, max: usize) -> Result<Self> {
        match u32::try_from(max) {
            Ok(max @ 1..) if max as usize <= MAX_LOG_CHUNK_BYTES => Ok(Self { from, max }),
            _ => Err(Error::invalid(
                "log range",
                format!("asks for {max} bytes, it must be 1 to {MAX_LOG_CHUNK_BYTES}"),
            )),
        }
    }

    /// The most bytes to return.
    #[must_use]
    pub const fn max(self) -> u32 {
        self.max
    }

    /// The first byte to read of a log of this length, for backends: never beyond the end.
    #[must_use]
    pub fn start_in(self, length: u64) -> u64 {
        match self.from {
            LogPosition::Offset(offset) => offset.min(length),
            LogPosition::BeforeEnd(bytes) => length.saturating_sub(bytes),
        }
    }
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogSlice {
    /// The offset of its first byte.
    pub offset: u64,
    /// The bytes, contiguous. A character of several bytes may be cut at either end.
    pub bytes: Vec<u8>,
    /// How long the log was when it was read.
    pub length: u64,
}

impl LogSlice {
    /// These bytes of a log of this length, from this offset on.
    #[must_use]
    pub const fn new(offset: u64, bytes: Vec<u8>, length: u64) -> Self {
        Self { offset, bytes, length }
    }

    /// The offset to read on from.
    #[must_use]
    pub const fn next_offset(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// Whether there was nothing after it.
    #[must_use]
    pub const fn is_at_end(&self) -> bool {
        self.next_offset() >= self.length
    }
}

/// What a log ends with once it has reached its cap, in bytes.
///
/// ```
/// # use ork_state_api::backend::log_cap_note;
/// assert_eq!(log_cap_note(1024), "\n[ork-state: log capped at 1024 bytes]\n");
/// ```
#[must_use]
pub fn log_cap_note(cap: u64) -> String {
    format!("\n[ork-state: log capped at {cap} bytes]\n")
}

/// How to append a chunk to a log that may be capped, for backends.
///
/// The log keeps the first `cap` bytes of what was appended, then [`log_cap_note`], and nothing
/// after it. So a log is at its cap when it is longer than `cap` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CappedAppend {
    /// How many bytes of the chunk to keep.
    pub keep: usize,
    /// Whether the note follows them.
    pub note: bool,
}

impl CappedAppend {
    /// The append of `chunk` bytes to a log of `length`.
    #[must_use]
    pub fn new(length: u64, chunk: usize, cap: Option<u64>) -> Self {
        let Some(cap) = cap else { return Self { keep: chunk, note: false } };
        let room = usize::try_from(cap.saturating_sub(length)).unwrap_or(usize::MAX);
        Self { keep: chunk.min(room), note: chunk > room && length <= cap }
    }
}

/// Keeps what tasks print, byte for byte. The [general rules](crate::Database#general-rules) hold
/// for every method.
///
/// A backend may opt out with [`Capability::Logs`](crate::Capability::Logs). Both methods are then
/// `Unsupported`, which is what they answer by default.
#[async_trait]
pub trait LogStore: Plugin {
    /// Appends to a task's log, which begins empty and goes on over all attempts.
    ///
    /// **L2** The chunk is appended in one piece, even among concurrent appends. Its cost does not
    /// grow with the log.
    ///
    /// Every byte stays, unless the store was connected with a cap (option `max_log_bytes`). Then
    /// the log keeps its first bytes up to the cap and ends with
    /// [`log_cap_note`](crate::backend::log_cap_note). The answer says how much was dropped. A log
    /// may be longer than the cap already, because the cap was lowered or came later. Such a log
    /// stays as it is, without a note, and only the answer says that the chunk was dropped.
    ///
    /// No claim is needed: what a lost worker printed is worth reading.
    ///
    /// # Errors
    /// `NotFound` for the task. `Unsupported`.
    ///
    /// # Cancel safety
    /// Appended whole or not at all. Not repeatable: after an unknown effect compare the log's
    /// length.
    async fn append_log(&self, task: TaskId, chunk: LogChunk<'_>) -> Result<LogAppended> {
        let _ = (task, chunk);
        Err(self.backend().lacks(Capability::Logs))
    }

    /// Reads a part of a task's log.
    ///
    /// **L2** The cost does not grow with the log, wherever the part lies. At the end, or beyond
    /// it, the part is empty. To tail a log, ask again from [`next_offset`](LogSlice::next_offset).
    ///
    /// # Errors
    /// `NotFound` for the task. `Unsupported`.
    async fn read_log(&self, task: TaskId, range: LogRange) -> Result<LogSlice> {
        let _ = (task, range);
        Err(self.backend().lacks(Capability::Logs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::uncapped(5, 10, None, 10, false)]
    #[case::room(5, 10, Some(15), 10, false)]
    #[case::partly(5, 10, Some(14), 9, true)]
    #[case::exactly_full(15, 10, Some(15), 0, true)]
    #[case::capped_before(16, 10, Some(15), 0, false)]
    #[case::longer_than_a_lowered_cap(1000, 10, Some(15), 0, false)]
    #[case::no_room_at_all(0, 1, Some(0), 0, true)]
    fn caps(
        #[case] length: u64,
        #[case] chunk: usize,
        #[case] cap: Option<u64>,
        #[case] keep: usize,
        #[case] note: bool,
    ) {
        assert_eq!(CappedAppend::new(length, chunk, cap), CappedAppend { keep, note });
    }

    #[rstest]
    #[case(0, false)]
    #[case(1, true)]
    #[case(MAX_LOG_CHUNK_BYTES, true)]
    #[case(MAX_LOG_CHUNK_BYTES + 1, false)]
    #[case(usize::MAX, false)]
    fn ranges(#[case] max: usize, #[case] good: bool) {
        assert_eq!(LogRange::new(LogPosition::Offset(u64::MAX), max).is_ok(), good);
    }

    #[test]
    fn a_chunk_of_17_mib_is_refused() {
        assert!(LogChunk::new(&vec![0; 17 * 1024 * 1024]).is_err());
        assert!(LogChunk::new(&[]).is_err());
    }
}
