use ork_state_api::{LogAppended, LogPosition, LogRange, LogSlice, TaskId};

use super::{Expected, Model};

impl Model {
    /// L2
    pub(super) fn append_log(&mut self, task: TaskId, chunk: &[u8]) -> Expected<LogAppended> {
        let length = self.row(task)?.log.len();
        let mut kept = chunk.len();
        let mut note = String::new();
        if let Some(cap) = self.max_log_bytes {
            let room = usize::try_from(cap).unwrap_or(usize::MAX).saturating_sub(length);
            kept = kept.min(room);
            // Added once, where the log reaches its cap.
            if kept < chunk.len() && length as u64 <= cap {
                note = format!("\n[ork-state: log capped at {cap} bytes]\n");
            }
        }
        self.edit_task(task, |row| {
            row.log.extend(&chunk[..kept]);
            row.log.extend(note.as_bytes());
        });
        let length = self.row(task)?.log.len() as u64;
        Ok(LogAppended::new(length, (chunk.len() - kept) as u64))
    }

    /// L2
    pub(super) fn read_log(&self, task: TaskId, range: LogRange) -> Expected<LogSlice> {
        let log = &self.row(task)?.log;
        let from = match range.from {
            LogPosition::Offset(offset) => usize::try_from(offset).unwrap_or(usize::MAX).min(log.len()),
            LogPosition::BeforeEnd(bytes) => {
                log.len().saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX))
            }
        };
        let bytes = log[from..].iter().take(range.max() as usize).copied().collect();
        Ok(LogSlice::new(from as u64, bytes, log.len() as u64))
    }
}
