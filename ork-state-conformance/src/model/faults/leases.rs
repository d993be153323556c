//! T3.

use std::collections::BTreeSet;

use ork_state_api::{HeartbeatOutcome, Limit, Task, TaskId, TaskStatus, Timestamp};

use super::super::{Answer, Call, Turn};
use super::Fault;
use super::shapes::{
    after, all_live, before, change_again, edit_each, in_seconds, next, tasks_of, with_retries, with_token,
};
use crate::Rule::T3;

pub(super) const FAULTS: &[Fault] = &[
    before! { T3, "stale-owner-renews", "renews a lease by any token", |turn, Call::Heartbeat { heartbeat }| {
        heartbeat.claims().iter().for_each(|claim| with_token(turn.model, *claim));
    }},
    before! { T3, "lapsed-renews", "renews a lease that has lapsed",
        |turn, Call::Heartbeat { .. }| all_live(turn.model, turn.now)
    },
    before! { T3, "lapses-late", "has a lease live at the moment of its end", |turn, Call::Heartbeat { .. }| {
        let leases = tasks_of(turn.model).filter_map(|row| row.detail.task.lease.as_mut());
        for lease in leases.filter(|lease| lease.expires_at == turn.now) {
            lease.expires_at = next(turn.now);
        }
    }},
    before! { T3, "lapses-early", "has a lease lapse a microsecond before its end", |turn| {
        if let Call::Heartbeat { .. } | Call::ExpireLeases { .. } = turn.call {
            turn.now = next(turn.now);
        }
    }},
    Fault::new(T3, "only-longer", "never shortens a lease", |turn| renewed(turn, |old, new, _| old.max(new))),
    Fault::new(T3, "renewed-from-the-end", "renews a lease from its end and not from now", |turn| {
        renewed(turn, |old, new, now| old.saturating_add(new.saturating_since(now)))
    }),
    Fault::new(T3, "renewal-told-only", "says that it renewed a lease and does not", |turn| {
        renewed(turn, |old, _, _| old)
    }),
    after! { T3, "lost-not-told", "says that it renewed a lease that is lost",
    |turn, Answer::Heartbeat(Ok(outcomes))| {
        let expires_at = in_seconds(turn.now, 60);
        for outcome in outcomes.iter_mut().filter(|outcome| **outcome == HeartbeatOutcome::Lost) {
            *outcome = HeartbeatOutcome::Extended { expires_at };
        }
    }},
    before! { T3, "running-never-lapses", "does not take a running task back",
        |turn, Call::ExpireLeases { .. }| return sparing(turn, |task| task.status == TaskStatus::Running)
    },
    before! { T3, "nothing-lapses", "leaves what a dead worker held for ever",
        |turn, Call::ExpireLeases { .. }| return sparing(turn, |_| true)
    },
    after! { T3, "lapse-is-free", "spends no attempt on a lapsed lease",
    |turn, Answer::ExpireLeases(Ok(expired))| {
        edit_each(turn.model, &expired.requeued, |row| row.detail.task.attempts -= 1);
    }},
    before! { T3, "attempts-without-end", "tries what lapsed again though no attempt is left",
        |turn, Call::ExpireLeases { .. }| return with_retries(turn, |task| task.attempts + 1)
    },
    before! { T3, "live-lapses", "takes back leases that will lapse within a second",
        |turn, Call::ExpireLeases { .. }| turn.now = in_seconds(turn.now, 1)
    },
    before! { T3, "expiry-limit-ignored", "takes back all that lapsed in one call",
        |turn, Call::ExpireLeases { limit }| *limit = Limit::MAX
    },
    before! { T3, "newest-lapse-first", "takes back what lapsed last first",
    |turn, Call::ExpireLeases { limit }| {
        let mut lapsed: Vec<(Timestamp, TaskId)> = tasks_of(turn.model)
            .filter_map(|row| Some((row.detail.task.lease.as_ref()?.expires_at, row.detail.task.id)))
            .filter(|(at, _)| *at <= turn.now)
            .collect();
        lapsed.sort();
        let spared: BTreeSet<TaskId> = lapsed.iter().rev().skip(limit.get()).map(|(_, id)| *id).collect();
        return sparing(turn, |task| spared.contains(&task.id));
    }},
    after! { T3, "lapse-without-beginning", "does not say when an attempt began that nobody saw run",
    |turn, Answer::ExpireLeases(Ok(expired))| {
        let lapsed = expired.requeued.iter().chain(&expired.failed);
        edit_each(turn.model, lapsed, |row| row.detail.task.started_at = None);
    }},
    after! { T3, "lapse-not-told", "does not say whose lease lapsed",
    |turn, Answer::ExpireLeases(Ok(expired))| {
        let lapsed = expired.requeued.iter().chain(&expired.failed);
        edit_each(turn.model, lapsed, |row| row.detail.task.error = None);
    }},
];

/// Renews leases up to another time, given the old end, the right one and the current time.
fn renewed(turn: &mut Turn<'_>, end: fn(Timestamp, Timestamp, Timestamp) -> Timestamp) -> Answer {
    let Call::Heartbeat { .. } = turn.call else { return turn.honest() };
    let (old, now) = (turn.model.clone(), turn.now);
    let answer = turn.honest();
    change_again(&old, turn.model, |old, new| {
        if let (Some(lease), Some(old)) = (&mut new.detail.task.lease, &old.detail.task.lease) {
            lease.expires_at = end(old.expires_at, lease.expires_at, now);
        }
    });
    answer
}

/// Answers as if these tasks had no lease.
fn sparing(turn: &mut Turn<'_>, is_spared: impl Fn(&Task) -> bool) -> Answer {
    let leases: Vec<_> = tasks_of(turn.model)
        .map(|row| &mut row.detail.task)
        .filter(|task| task.lease.is_some() && is_spared(task))
        .map(|task| (task.id, task.lease.take()))
        .collect();
    let answer = turn.honest();
    for (id, lease) in leases {
        turn.model.edit_task(id, |row| row.detail.task.lease = lease);
    }
    answer
}
