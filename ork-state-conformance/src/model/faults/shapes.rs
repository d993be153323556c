//! The shapes of most faults, and helpers that several of them share.
//!
//! Most stores go wrong just [before](before!) the correct answer, or just [after](after!) it.
//! Other faults are made with `Fault::new`.

use std::time::Duration;

use ork_state_api::{Claim, Run, RunId, Task, TaskId, Timestamp};

use super::super::{Answer, Call, Model, TaskRow, Turn};

/// A fault that changes the call, the time or the store if the call matches, and then answers
/// correctly. If the body returns an answer, that one is given instead.
///
/// - `|turn, Call::GetRun { id }| ..`: at such a call;
/// - `|turn| ..`: at every call.
macro_rules! before {
    ($rule:expr, $name:literal, $description:literal, |$turn:ident, $call:pat_param| $change:expr) => {
        $crate::model::faults::Fault::new($rule, $name, $description, |$turn| {
            if let $call = &mut $turn.call {
                $change;
            }
            $turn.honest()
        })
    };
    ($rule:expr, $name:literal, $description:literal, |$turn:ident| $change:expr) => {
        $crate::model::faults::Fault::new($rule, $name, $description, |$turn| {
            $change;
            $turn.honest()
        })
    };
}

/// A fault that answers correctly, and then changes the answer or the store if the answer matches.
/// If the body returns an answer, that one is given instead.
///
/// - `|turn, Answer::GetRun(Ok(run))| ..`: at such an answer;
/// - `|turn, answer| ..`: at every answer;
/// - `|turn, Call::GetRun { id }, Answer::GetRun(Ok(run))| ..`: with the call;
/// - `|turn, old, Answer::PauseRun(Ok(run))| ..`: with the store as it was before a call that may
///   have changed it;
/// - `|turn, old, Call::PauseRun { id }, Answer::PauseRun(Ok(run))| ..`: with both.
macro_rules! after {
    ($rule:expr, $name:literal, $description:literal, |$turn:ident, $answer:ident| $change:expr) => {
        $crate::model::faults::Fault::new($rule, $name, $description, |$turn| {
            let mut answer = $turn.honest();
            let $answer = &mut answer;
            $change;
            answer
        })
    };
    ($rule:expr, $name:literal, $description:literal, |$turn:ident, $answer:pat_param| $change:expr) => {
        $crate::model::faults::Fault::new($rule, $name, $description, |$turn| {
            let mut answer = $turn.honest();
            if let $answer = &mut answer {
                $change;
            }
            answer
        })
    };
    (
        $rule:expr, $name:literal, $description:literal,
        |$turn:ident, $old:ident, $answer:pat_param| $change:expr
    ) => {
        $crate::model::faults::shapes::after! { $rule, $name, $description, |$turn, $old, _, $answer| $change }
    };
    (
        $rule:expr, $name:literal, $description:literal,
        |$turn:ident, $call:pat_param, $answer:pat_param| $change:expr
    ) => {
        $crate::model::faults::Fault::new($rule, $name, $description, |$turn| {
            let mut answer = $turn.honest();
            if let ($call, $answer) = (&mut $turn.call, &mut answer) {
                $change;
            }
            answer
        })
    };
    (
        $rule:expr, $name:literal, $description:literal,
        |$turn:ident, $old:ident, $call:pat_param, $answer:pat_param| $change:expr
    ) => {
        $crate::model::faults::Fault::new($rule, $name, $description, |$turn| {
            // A copy is expensive, and calls that only read do not match.
            let old = $turn.call.writes().then(|| $turn.model.clone());
            let mut answer = $turn.honest();
            if let (Some($old), $call, $answer) = (&old, &mut $turn.call, &mut answer) {
                $change;
            }
            answer
        })
    };
}

pub(super) use {after, before};

/// The first moment after this one.
pub(super) fn next(now: Timestamp) -> Timestamp {
    now.saturating_add(Duration::from_micros(1))
}

pub(super) fn in_seconds(now: Timestamp, seconds: u64) -> Timestamp {
    now.saturating_add(Duration::from_secs(seconds))
}

/// A time later than any test waits for.
pub(super) fn never(now: Timestamp) -> Timestamp {
    in_seconds(now, 1_000_000_000)
}

pub(super) fn epoch() -> Timestamp {
    Timestamp::from_micros(0).unwrap_or(Timestamp::MIN)
}

/// A time rounded down to a multiple of this many microseconds.
pub(super) fn whole(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.as_micros() - time.as_micros().rem_euclid(micros)).unwrap_or(time)
}

/// Deletes these runs.
pub(super) fn delete_runs(model: &mut Model, is_meant: impl Fn(&Run) -> bool) {
    let meant: Vec<RunId> = model.runs.values().filter(|run| is_meant(run)).map(|run| run.id).collect();
    meant.into_iter().for_each(|run| model.delete_run(run));
}

/// Every task of a store.
pub(super) fn tasks_of(model: &mut Model) -> impl Iterator<Item = &mut TaskRow> {
    model.tasks.values_mut().flatten()
}

/// Every task of a run.
pub(super) fn tasks_of_run(model: &mut Model, run: RunId) -> impl Iterator<Item = &mut TaskRow> {
    model.tasks.get_mut(&run).into_iter().flatten()
}

/// Replaces a task.
pub(super) fn put(model: &mut Model, row: TaskRow) {
    model.edit_task(row.detail.task.id, |place| *place = row);
}

/// Changes each of these tasks.
pub(super) fn edit_each<'a>(
    model: &mut Model,
    ids: impl IntoIterator<Item = &'a TaskId>,
    change: impl Fn(&mut TaskRow),
) {
    for id in ids {
        model.edit_task(*id, &change);
    }
}

/// The tasks that have changed, each before and after.
pub(super) fn changed(old: &Model, new: &Model) -> Vec<(TaskRow, TaskRow)> {
    let rows = old.tasks.values().flatten();
    let pairs = rows.filter_map(|row| Some((row, new.row(row.detail.task.id).ok()?)));
    let pairs = pairs.filter(|(old, new)| old.detail.task != new.detail.task);
    pairs.map(|(old, new)| (old.clone(), new.clone())).collect()
}

/// Changes each changed task once more, given the task before and after.
pub(super) fn change_again(old: &Model, model: &mut Model, change: impl Fn(&TaskRow, &mut TaskRow)) {
    for (old, mut new) in changed(old, model) {
        change(&old, &mut new);
        put(model, new);
    }
}

/// Applies updates and then [changes](change_again) each task that they changed once more.
pub(super) fn updated(turn: &mut Turn<'_>, change: fn(&TaskRow, &mut TaskRow)) -> Answer {
    let Call::UpdateTasks { .. } = turn.call else { return turn.honest() };
    let old = turn.model.clone();
    let answer = turn.honest();
    change_again(&old, turn.model, change);
    answer
}

/// Delays these changes of tasks, each from the first to the second, by a moment.
pub(super) fn postpone(turn: &mut Turn<'_>, changes: impl IntoIterator<Item = (TaskRow, TaskRow)>) {
    for (old, new) in changes {
        put(turn.model, old);
        turn.later(move |model| put(model, new));
    }
}

/// Gives a task's lease the token of this claim.
pub(super) fn with_token(model: &mut Model, claim: Claim) {
    model.edit_task(claim.task, |row| {
        if let Some(lease) = &mut row.detail.task.lease {
            lease.token = claim.token;
        }
    });
}

/// Makes every lease live at this moment.
pub(super) fn all_live(model: &mut Model, now: Timestamp) {
    for lease in tasks_of(model).filter_map(|row| row.detail.task.lease.as_mut()) {
        lease.expires_at = lease.expires_at.max(next(now));
    }
}

/// Answers as if each task had this many retries.
pub(super) fn with_retries(turn: &mut Turn<'_>, retries: fn(&Task) -> u32) -> Answer {
    let mut right = Vec::new();
    for task in tasks_of(turn.model).map(|row| &mut row.detail.task) {
        right.push((task.id, task.max_retries));
        task.max_retries = retries(task);
    }
    let answer = turn.honest();
    for (id, max) in right {
        turn.model.edit_task(id, |row| row.detail.task.max_retries = max);
    }
    answer
}
