//! T8.

use std::time::Duration;

use ork_state_api::{Limit, TaskStatus};

use super::super::{Answer, Call};
use super::Fault;
use super::shapes::{after, before, change_again, epoch, tasks_of, updated, with_retries};
use crate::Rule::T8;

pub(super) const FAULTS: &[Fault] = &[
    before! { T8, "no-timeouts", "lets every attempt run for ever",
        |turn, Call::ExpireTimeouts { limit }| (*limit, turn.now) = (Limit::ONE, epoch())
    },
    before! { T8, "timed-from-the-claim", "counts the time of an attempt from its claim",
    |turn, Call::ExpireTimeouts { .. }| {
        for task in tasks_of(turn.model).map(|row| &mut row.detail.task) {
            if task.status == TaskStatus::Dispatched {
                (task.status, task.started_at) = (TaskStatus::Running, task.dispatched_at);
            }
        }
    }},
    after! { T8, "heartbeat-helps", "gives an attempt more time with every heartbeat",
    |turn, Call::Heartbeat { heartbeat }, Answer::Heartbeat(Ok(_))| {
        for claim in heartbeat.claims() {
            turn.model.edit_task(claim.task, |row| {
                row.detail.task.started_at = row.detail.task.started_at.map(|_| turn.now);
            });
        }
    }},
    before! { T8, "timeout-is-final", "does not try again what has timed out",
        |turn, Call::ExpireTimeouts { .. }| return with_retries(turn, |_| 0)
    },
    before! { T8, "an-hour-for-all", "has attempts without a limit end after an hour",
    |turn, Call::ExpireTimeouts { .. }| {
        for row in tasks_of(turn.model) {
            row.detail.task.timeout_seconds.get_or_insert(3_600);
        }
    }},
    before! { T8, "timeout-limit-ignored", "ends all that has timed out in one call",
        |turn, Call::ExpireTimeouts { limit }| *limit = Limit::MAX
    },
    before! { T8, "late-refused",
        "refuses a success that comes after the limit though nobody has ended the attempt",
    |turn, Call::UpdateTasks { updates }| {
        for step in updates.steps() {
            turn.model.edit_task(step.claim.task, |row| {
                let task = &mut row.detail.task;
                let limit = task.timeout_seconds.map(|seconds| Duration::from_secs(u64::from(seconds)));
                let end = task.started_at.zip(limit).map(|(at, limit)| at.saturating_add(limit));
                if end.is_some_and(|end| end < turn.now) {
                    task.lease = None;
                }
            });
        }
    }},
    after! { T8, "claim-after-timeout", "takes updates by a claim whose attempt has timed out",
    |turn, old, Answer::ExpireTimeouts(Ok(_))| {
        change_again(old, turn.model, |old, new| {
            new.detail.task.lease.clone_from(&old.detail.task.lease);
        });
    }},
    Fault::new(T8, "time-goes-on", "counts the time of the attempts before", |turn| {
        updated(turn, |old, new| {
            let (old, new) = (&old.detail.task, &mut new.detail.task);
            let begins = old.status == TaskStatus::Dispatched && new.status == TaskStatus::Running;
            if begins && new.attempts > 1 {
                new.started_at = Some(new.created_at);
            }
        })
    }),
];
