//! Faults: stores that each break one rule, to check that the suite notices.
//!
//! Each is the model with one change. The faults were seen in stores in use, or are typical
//! mistakes in a new backend. [`KillMatrix::of`](crate::kill_matrix::KillMatrix::of) runs every
//! case against every fault. A fault that no case notices is a gap in the suite.

mod atomicity;
mod batches;
mod cancelling;
mod claims;
mod damage;
mod deferred_jobs;
mod durability;
mod errors;
mod failures;
mod leases;
mod lists;
mod logs;
mod maintenance;
mod matrix;
mod outputs;
mod pausing;
mod ready;
mod retries;
mod runs;
mod schedules;
mod shapes;
mod timeouts;
mod transfer;
mod updates;
mod values;
mod workflows;

use ork_state_api::Capability;

use super::store::LESSER;
use super::{Answer, Call, Model, Tamper, Turn};
use crate::Rule;

/// One way to break one rule.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Its unique name.
    pub name: &'static str,
    /// The rule that it breaks.
    pub rule: Rule,
    /// What it does, as the end of a sentence: "the store ...".
    pub description: &'static str,
    /// How it does it.
    pub tamper: Tamper,
}

impl Fault {
    /// A store that answers wrongly, or answers correctly and then stores something wrong.
    const fn new(
        rule: Rule,
        name: &'static str,
        description: &'static str,
        answer: fn(&mut Turn<'_>) -> Answer,
    ) -> Self {
        Self { name, rule, description, tamper: Tamper { answer, ..Tamper::NONE } }
    }

    /// A store that has changed when it is opened again.
    const fn reopened(
        rule: Rule,
        name: &'static str,
        description: &'static str,
        reopen: fn(&mut Model, Model),
    ) -> Self {
        Self { name, rule, description, tamper: Tamper { reopen: Some(reopen), ..Tamper::NONE } }
    }

    /// A store that opts out of everything it may, and yet does some of it.
    const fn lesser(
        rule: Rule,
        name: &'static str,
        description: &'static str,
        also: &'static [Capability],
    ) -> Self {
        Self { name, rule, description, tamper: Tamper { plugin: &LESSER, also, ..Tamper::NONE } }
    }

    /// A store that gives no hints of some calls.
    const fn silent(
        rule: Rule,
        name: &'static str,
        description: &'static str,
        hints: fn(&Call) -> bool,
    ) -> Self {
        Self { name, rule, description, tamper: Tamper { hints, ..Tamper::NONE } }
    }

    /// All faults, by rule.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let areas = [
            atomicity::FAULTS,
            durability::FAULTS,
            values::FAULTS,
            lists::FAULTS,
            errors::FAULTS,
            damage::FAULTS,
            workflows::FAULTS,
            runs::FAULTS,
            cancelling::FAULTS,
            pausing::FAULTS,
            retries::FAULTS,
            ready::FAULTS,
            claims::FAULTS,
            leases::FAULTS,
            updates::FAULTS,
            failures::FAULTS,
            batches::FAULTS,
            timeouts::FAULTS,
            outputs::FAULTS,
            logs::FAULTS,
            schedules::FAULTS,
            deferred_jobs::FAULTS,
            maintenance::FAULTS,
            transfer::FAULTS,
        ];
        let mut all = areas.concat();
        all.sort_by_key(|fault| fault.rule);
        all
    }
}
