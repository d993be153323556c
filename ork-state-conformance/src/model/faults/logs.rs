//! L2.

use ork_state_api::{Error, LogPosition, LogRange};

use super::super::{Answer, Call};
use super::{Fault, tasks_of};
use crate::Rule::L2;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(L2, "middle-lost", "keeps the beginning of a long log and its newest chunk", |turn| {
        let Call::AppendLog { task, chunk } = turn.call.clone() else { return turn.honest() };
        let answer = turn.honest();
        turn.model.edit_task(task, |row| {
            let newest = row.log.len().saturating_sub(chunk.len());
            if newest > 10 {
                row.log.drain(10..newest);
            }
        });
        answer
    }),
    Fault::new(L2, "nul-dropped", "drops NUL from logs", |turn| {
        if let Call::AppendLog { chunk, .. } = &mut turn.call {
            chunk.retain(|byte| *byte != 0);
        }
        turn.honest()
    }),
    Fault::new(L2, "text-only", "keeps logs as text, whatever is no UTF-8 replaced", |turn| {
        if let Call::AppendLog { chunk, .. } = &mut turn.call {
            *chunk = String::from_utf8_lossy(chunk).into_owned().into_bytes();
        }
        turn.honest()
    }),
    Fault::new(
        L2,
        "appends-overwrite",
        "reads a log, and writes it back with the new chunk a moment later",
        |turn| {
            let Call::AppendLog { task, .. } = turn.call else { return turn.honest() };
            let before = turn.model.row(task).map(|row| row.log.clone());
            let answer = turn.honest();
            if let (Ok(before), Ok(row)) = (before, turn.model.row(task)) {
                let after = row.log.clone();
                turn.model.edit_task(task, |row| row.log = before);
                turn.later(move |model| model.edit_task(task, |row| row.log = after));
            }
            answer
        },
    ),
    Fault::new(L2, "chunks-in-pieces", "appends a chunk in two pieces", |turn| {
        let Call::AppendLog { task, chunk } = turn.call.clone() else { return turn.honest() };
        let answer = turn.honest();
        let rest: Vec<u8> = chunk[chunk.len() / 2..].to_vec();
        turn.model.edit_task(task, |row| row.log.truncate(row.log.len().saturating_sub(rest.len())));
        turn.later(move |model| model.edit_task(task, |row| row.log.extend(rest)));
        answer
    }),
    Fault::new(L2, "max-ignored", "reads to the end, whatever was asked for", |turn| {
        if let Call::ReadLog { range, .. } = &mut turn.call {
            *range = LogRange::new(range.from, 1 << 20).unwrap_or(*range);
        }
        turn.honest()
    }),
    Fault::new(L2, "from-the-beginning", "reads the end of a log from its beginning", |turn| {
        if let Call::ReadLog { range, .. } = &mut turn.call
            && let LogPosition::BeforeEnd(_) = range.from
        {
            range.from = LogPosition::Offset(0);
        }
        turn.honest()
    }),
    Fault::new(L2, "one-byte-on", "begins a byte after the offset", |turn| {
        if let Call::ReadLog { range, .. } = &mut turn.call
            && let LogPosition::Offset(offset @ 1..) = &mut range.from
        {
            *offset = offset.saturating_add(1);
        }
        turn.honest()
    }),
    Fault::new(L2, "beyond-fails", "fails to read beyond the end", |turn| match turn.honest() {
        Answer::ReadLog(Ok(slice)) if slice.bytes.is_empty() && slice.length > 0 => {
            Answer::ReadLog(Err(Error::invalid("offset", "is beyond the end of the log")))
        }
        answer => answer,
    }),
    Fault::new(L2, "no-log-fails", "fails to read a log that nothing was written to", |turn| {
        match turn.honest() {
            Answer::ReadLog(Ok(slice)) if slice.length == 0 => {
                Answer::ReadLog(Err(Error::invalid("log", "is not there")))
            }
            answer => answer,
        }
    }),
    Fault::new(L2, "attempt-empties", "empties a log when its task is tried again", |turn| {
        let answer = turn.honest();
        if let Answer::ClaimTasks(Ok(claimed)) = &answer {
            for task in claimed {
                turn.model.edit_task(task.id, |row| row.log.clear());
            }
        }
        answer
    }),
    Fault::new(L2, "closed-at-the-end", "takes no more of a log once its task has ended", |turn| {
        if let Call::AppendLog { task, chunk } = &mut turn.call
            && turn.model.row(*task).is_ok_and(|row| row.detail.task.status.is_terminal())
        {
            chunk.clear();
        }
        turn.honest()
    }),
    Fault::new(L2, "capped-silently", "cuts a log at its cap and does not say so in it", |turn| {
        let Call::AppendLog { task, .. } = turn.call else { return turn.honest() };
        let cap = turn.model.max_log_bytes;
        let before = turn.model.row(task).map_or(0, |row| row.log.len());
        let answer = turn.honest();
        if let Some(cap) = cap {
            let kept = before.max(usize::try_from(cap).unwrap_or(usize::MAX));
            turn.model.edit_task(task, |row| row.log.truncate(kept));
        }
        answer
    }),
    Fault::new(L2, "cap-ignored", "has no cap", |turn| {
        turn.model.max_log_bytes = None;
        turn.honest()
    }),
    Fault::new(
        L2,
        "dropped-not-told",
        "does not say how much of a chunk is beyond the cap",
        |turn| match turn.honest() {
            Answer::AppendLog(Ok(mut appended)) => {
                appended.dropped = 0;
                Answer::AppendLog(Ok(appended))
            }
            answer => answer,
        },
    ),
    Fault::new(L2, "lowered-cap-cuts", "cuts a log that is longer than a lowered cap", |turn| {
        if let (Call::AppendLog { task, .. }, Some(cap)) = (&turn.call, turn.model.max_log_bytes) {
            let (task, cap) = (*task, usize::try_from(cap).unwrap_or(usize::MAX));
            turn.model.edit_task(task, |row| row.log.truncate(cap));
        }
        turn.honest()
    }),
    Fault::new(L2, "length-before", "says how long a log was before the append", |turn| {
        let Call::AppendLog { task, .. } = turn.call else { return turn.honest() };
        let before = turn.model.row(task).map_or(0, |row| row.log.len() as u64);
        match turn.honest() {
            Answer::AppendLog(Ok(mut appended)) => {
                appended.length = before;
                Answer::AppendLog(Ok(appended))
            }
            answer => answer,
        }
    }),
    Fault::new(L2, "one-log-a-name", "has tasks of one name in different runs share a log", |turn| {
        let Call::AppendLog { task, .. } = turn.call else { return turn.honest() };
        let answer = turn.honest();
        if let Ok(row) = turn.model.row(task) {
            let (name, log) = (row.detail.task.name.clone(), row.log.clone());
            for row in tasks_of(turn.model).filter(|row| row.detail.task.name == name) {
                row.log.clone_from(&log);
            }
        }
        answer
    }),
    Fault::new(L2, "one-log-a-run", "has the tasks of a run share a log", |turn| {
        let Call::AppendLog { task, .. } = turn.call else { return turn.honest() };
        let answer = turn.honest();
        if let Ok(row) = turn.model.row(task) {
            let (run, log) = (row.detail.task.run, row.log.clone());
            for row in tasks_of(turn.model).filter(|row| row.detail.task.run == run) {
                row.log.clone_from(&log);
            }
        }
        answer
    }),
    Fault::new(L2, "log-of-nobody", "takes a log for a task that is not there", |turn| match turn.honest() {
        Answer::AppendLog(Err(error))
            if matches!(error.kind(), ork_state_api::ErrorKind::NotFound { .. }) =>
        {
            Answer::AppendLog(Ok(ork_state_api::LogAppended::new(0, 0)))
        }
        answer => answer,
    }),
];
