//! The rules of the contract by name. What each says stands at the method that keeps it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

macro_rules! rules {
    ($($name:ident $title:literal at $place:literal,)*) => {
        /// A rule of the contract.
        ///
        /// Its name is the word for it in documentation, in reports and in
        /// [`Violation`](crate::Violation)s.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Rule {
            $(#[doc = concat!("**", stringify!($name), "** ", $title, ". See [`", $place, "`](crate::", $place, ").")] $name,)*
        }

        impl Rule {
            /// All of them, in the contract's order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What it is about, in a few words.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)*
                }
            }
        }

        /// One line per rule: name, what it is about, where it is written.
        #[cfg(test)]
        const INDEX: &[&str] = &[
            $(concat!("| [", stringify!($name), "](", $place, ") | ", $title, " |"),)*
        ];

        /// Knows the names of the rules only, such as `R3`.
        impl FromStr for Rule {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                match name {
                    $(stringify!($name) => Ok(Self::$name),)*
                    _ => Err(Error::invalid("rule", format!("{name:?} is no rule of the contract"))),
                }
            }
        }

        impl fmt::Display for Rule {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$name => stringify!($name),)*
                })
            }
        }
    };
}

rules! {
    G1 "a method is one transaction" at "Database",
    G2 "what is acknowledged survives" at "Database",
    G3 "ids and times are the store's" at "Database",
    G4 "time is the store's, or injected" at "Database",
    G5 "what goes in comes out equal" at "Database",
    G6 "lists have one order, pages neither skip nor repeat" at "Database",
    G7 "errors have a kind and change nothing" at "Database",
    G8 "what cannot be read is corrupt, never a default" at "Database",
    G9 "a dropped future leaves all or nothing" at "Database",
    W1 "a workflow is created with its DAG, its name is unique" at "WorkflowStore::create_workflow",
    W2 "a DAG is kept as a snapshot, runs keep theirs" at "WorkflowStore::update_workflow",
    W3 "deleting a workflow removes all of it" at "WorkflowStore::delete_workflow",
    R1 "a run pins its snapshot, an idempotency key makes one run" at "RunStore::create_run",
    R2 "starting makes all tasks at once, and once" at "RunStore::start_run",
    R3 "the store ends a run with its last task" at "TaskStore::update_tasks",
    R4 "cancelling ends a run and its tasks" at "RunStore::cancel_run",
    R5 "a paused run hands out nothing" at "RunStore::pause_run",
    R6 "what failed is done again, with what follows it" at "RunStore::retry_run",
    T1 "ready means that nothing is in the way" at "TaskStore::ready_tasks",
    T2 "a claim gives each ready task to one claimer, in order, leased" at "TaskStore::claim_tasks",
    T3 "leases are renewed while live, and expired tasks come back" at "TaskStore::heartbeat",
    T4 "an update needs its claim, and ends are final" at "TaskStore::update_tasks",
    T5 "a failure is retried, or fails what depends on it" at "TaskStore::update_tasks",
    T6 "odd batches are answered item by item" at "TaskUpdates",
    T7 "a repeated update has one effect" at "TaskStore::update_tasks",
    T8 "an attempt that runs too long is ended" at "TaskStore::expire_timeouts",
    L1 "outputs by name in one call" at "TaskStore::task_outputs",
    L2 "logs keep every byte" at "LogStore::append_log",
    S1 "a slot of a schedule is fired once" at "ScheduleStore::fire_schedule",
    D1 "a task waits for its deferred jobs, and the last one ends it" at "DeferredJobStore::defer_task",
    D2 "what ends a task ends its deferred jobs" at "DeferredJobStore::list_jobs",
    M1 "migration is safe, told and refuses the future" at "Maintenance::migrate",
    M2 "old runs are deleted in batches" at "Maintenance::prune",
    M3 "statistics are exact" at "Maintenance::stats",
    M4 "verification finds what is wrong" at "Maintenance::verify",
    M5 "what happens is hinted at" at "Maintenance::watch",
    M6 "a store is taken in whole, and unseen until then" at "backend::Transfer",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for rule in Rule::ALL {
            assert_eq!(rule.to_string().parse::<Rule>().unwrap(), *rule);
        }
        assert!("X1".parse::<Rule>().is_err());
    }

    #[test]
    fn the_front_page_has_every_rule() {
        let page = format!("| rule | what it is about |\n|---|---|\n{}\n", INDEX.join("\n"));
        assert_eq!(include_str!("../docs/rules.md"), page, "write docs/rules.md anew, as on the right");
    }
}
