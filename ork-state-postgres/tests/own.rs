//! What only this backend can get wrong, over PostgreSQL. One program: a program each would link
//! all of it a dozen times, and start a server each.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
mod concurrency;
mod corrupt;
mod lifecycle;
mod logs;
mod migrator;
mod plans;
mod queue;
mod schema;
mod silence;
mod takeover;
mod trips;

ork_state_conformance::own_tests_main!(
    &common::FIXTURE,
    [concurrency, corrupt, lifecycle, logs, migrator, plans, queue, schema, silence, takeover, trips]
);
