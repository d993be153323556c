//! The rules of the contract, as the suite counts them. What each says is written in the API crate,
//! at the method that keeps it.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! rules {
    ($($name:ident $title:literal,)*) => {
        /// A rule of the contract.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Rule {
            $(#[doc = $title] $name,)*
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
    G1 "a method is one transaction",
    G2 "what is acknowledged survives",
    G3 "ids and times are the store's",
    G4 "time is the store's, or injected",
    G5 "what goes in comes out equal",
    G6 "lists have one order, pages neither skip nor repeat",
    G7 "errors have a kind and change nothing",
    G8 "what cannot be read is corrupt, never a default",
    G9 "a dropped future leaves all or nothing",
    W1 "a workflow is created with its DAG, its name is unique",
    W2 "a DAG is kept as a snapshot, runs keep theirs",
    W3 "deleting a workflow removes all of it",
    R1 "a run pins its snapshot, an idempotency key makes one run",
    R2 "starting makes all tasks at once, and once",
    R3 "the store ends a run with its last task",
    R4 "cancelling ends a run and its tasks",
    R5 "a paused run hands out nothing",
    R6 "what failed is done again, with what follows it",
    T1 "ready means that nothing is in the way",
    T2 "a claim gives each ready task to one claimer, in order, leased",
    T3 "leases are renewed while live, and expired tasks come back",
    T4 "an update needs its claim, and ends are final",
    T5 "a failure is retried, or fails what depends on it",
    T6 "odd batches are answered item by item",
    T7 "a repeated update has one effect",
    T8 "an attempt that runs too long is ended",
    L1 "outputs by name in one call",
    L2 "logs keep every byte",
    S1 "a slot of a schedule is fired once",
    D1 "a task waits for its deferred jobs, and the last one ends it",
    D2 "what ends a task ends its deferred jobs",
    M1 "migration is safe, told and refuses the future",
    M2 "old runs are deleted in batches",
    M3 "statistics are exact",
    M4 "verification finds what is wrong",
    M5 "what happens is hinted at",
    M6 "a store is taken in whole, and unseen until then",
}
