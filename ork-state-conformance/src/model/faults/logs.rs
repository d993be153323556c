//! L2.

use ork_state_api::{Error, ErrorKind, LogAppended, LogPosition, LogRange};

use super::super::{Answer, Call};
use super::Fault;
use super::shapes::{after, before, edit_each, tasks_of, tasks_of_run};
use crate::Rule::L2;

pub(super) const FAULTS: &[Fault] = &[
    after! { L2, "middle-lost", "keeps the beginning of a long log and its newest chunk",
    |turn, Call::AppendLog { task, chunk }, _| {
        turn.model.edit_task(*task, |row| {
            let newest = row.log.len().saturating_sub(chunk.len());
            if newest > 10 {
                row.log.drain(10..newest);
            }
        });
    }},
    before! { L2, "nul-dropped", "drops NUL from logs",
        |turn, Call::AppendLog { chunk, .. }| chunk.retain(|byte| *byte != 0)
    },
    before! { L2, "text-only", "keeps logs as text, whatever is no UTF-8 replaced",
    |turn, Call::AppendLog { chunk, .. }| {
        *chunk = String::from_utf8_lossy(chunk).into_owned().into_bytes();
    }},
    after! { L2, "appends-overwrite", "reads a log, and writes it back with the new chunk a moment later",
    |turn, old, Call::AppendLog { task, .. }, _| {
        if let (Ok(old), Ok(new)) = (old.row(*task), turn.model.row(*task)) {
            let (task, after) = (*task, new.log.clone());
            turn.model.edit_task(task, |row| row.log.clone_from(&old.log));
            turn.later(move |model| model.edit_task(task, |row| row.log = after));
        }
    }},
    after! { L2, "chunks-in-pieces", "appends a chunk in two pieces",
    |turn, Call::AppendLog { task, chunk }, _| {
        let (task, rest) = (*task, chunk[chunk.len() / 2..].to_vec());
        turn.model.edit_task(task, |row| row.log.truncate(row.log.len().saturating_sub(rest.len())));
        turn.later(move |model| model.edit_task(task, |row| row.log.extend(rest)));
    }},
    before! { L2, "max-ignored", "reads to the end, whatever was asked for",
        |turn, Call::ReadLog { range, .. }| *range = LogRange::new(range.from, 1 << 20).unwrap_or(*range)
    },
    before! { L2, "from-the-beginning", "reads the end of a log from its beginning",
    |turn, Call::ReadLog { range, .. }| {
        if let LogPosition::BeforeEnd(_) = range.from {
            range.from = LogPosition::Offset(0);
        }
    }},
    before! { L2, "one-byte-on", "begins a byte after the offset", |turn, Call::ReadLog { range, .. }| {
        if let LogPosition::Offset(offset @ 1..) = &mut range.from {
            *offset = offset.saturating_add(1);
        }
    }},
    after! { L2, "beyond-fails", "fails to read beyond the end", |turn, Answer::ReadLog(slice)| {
        if slice.as_ref().is_ok_and(|slice| slice.bytes.is_empty() && slice.length > 0) {
            *slice = Err(Error::invalid("offset", "is beyond the end of the log"));
        }
    }},
    after! { L2, "no-log-fails", "fails to read a log that nothing was written to",
    |turn, Answer::ReadLog(slice)| {
        if slice.as_ref().is_ok_and(|slice| slice.length == 0) {
            *slice = Err(Error::invalid("log", "is not there"));
        }
    }},
    after! { L2, "attempt-empties", "empties a log when its task is tried again",
    |turn, Answer::ClaimTasks(Ok(claimed))| {
        edit_each(turn.model, claimed.iter().map(|it| &it.id), |row| row.log.clear());
    }},
    before! { L2, "closed-at-the-end", "takes no more of a log once its task has ended",
    |turn, Call::AppendLog { task, chunk }| {
        if turn.model.row(*task).is_ok_and(|row| row.detail.task.status.is_terminal()) {
            chunk.clear();
        }
    }},
    after! { L2, "capped-silently", "cuts a log at its cap and does not say so in it",
    |turn, old, Call::AppendLog { task, .. }, _| {
        if let Some(cap) = turn.model.max_log_bytes {
            let before = old.row(*task).map_or(0, |row| row.log.len());
            let kept = before.max(usize::try_from(cap).unwrap_or(usize::MAX));
            turn.model.edit_task(*task, |row| row.log.truncate(kept));
        }
    }},
    before! { L2, "cap-ignored", "has no cap", |turn| turn.model.max_log_bytes = None },
    after! { L2, "dropped-not-told", "does not say how much of a chunk is beyond the cap",
        |turn, Answer::AppendLog(Ok(appended))| appended.dropped = 0
    },
    before! { L2, "lowered-cap-cuts", "cuts a log that is longer than a lowered cap",
    |turn, Call::AppendLog { task, .. }| {
        if let Some(cap) = turn.model.max_log_bytes {
            let cap = usize::try_from(cap).unwrap_or(usize::MAX);
            turn.model.edit_task(*task, |row| row.log.truncate(cap));
        }
    }},
    after! { L2, "length-before", "says how long a log was before the append",
    |turn, old, Call::AppendLog { task, .. }, Answer::AppendLog(Ok(appended))| {
        appended.length = old.row(*task).map_or(0, |row| row.log.len() as u64);
    }},
    after! { L2, "one-log-a-name", "has tasks of one name in different runs share a log",
    |turn, Call::AppendLog { task, .. }, _| {
        if let Ok(row) = turn.model.row(*task) {
            let (name, log) = (row.detail.task.name.clone(), row.log.clone());
            for row in tasks_of(turn.model).filter(|row| row.detail.task.name == name) {
                row.log.clone_from(&log);
            }
        }
    }},
    after! { L2, "one-log-a-run", "has the tasks of a run share a log",
    |turn, Call::AppendLog { task, .. }, _| {
        if let Ok(row) = turn.model.row(*task) {
            let (run, log) = (row.detail.task.run, row.log.clone());
            tasks_of_run(turn.model, run).for_each(|row| row.log.clone_from(&log));
        }
    }},
    after! { L2, "log-of-nobody", "takes a log for a task that is not there",
    |turn, Answer::AppendLog(appended)| {
        if appended.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound { .. })) {
            *appended = Ok(LogAppended::new(0, 0));
        }
    }},
];
