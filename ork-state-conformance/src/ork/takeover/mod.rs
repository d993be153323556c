//! Databases and directories of Ork's, and what they come to: one set of awkward rows, and one
//! table of what is expected of them, for every backend that takes such over.
//!
//! A backend's test makes a store of [`OldStore::rows`] in the form that it has at one of Ork's
//! versions, migrates it, and hands it to [`OldStore::check`].
//!
//! The rows are made by hand after what Ork's own code writes. None comes from a store of ours.

mod check;
mod columns;
mod data;

pub use self::check::check_plan;
pub use self::columns::{Column, OldRow};
use ork_state_api::ork::takeover::{OldJob, OldRun, OldSnapshot, OldSpec, OldTask, OldWorkflow};
use uuid::Uuid;

/// What a store of Ork's can hold, at one of its versions.
#[derive(Clone, Copy)]
pub struct Form<'a> {
    /// Whether this table has this column.
    pub has: &'a (dyn Fn(&str, &str) -> bool + Sync),
    /// Whether runs and tasks can be paused.
    pub paused: bool,
    /// Whether a workflow may have any executor type.
    pub any_executor: bool,
    /// Whether times, JSON and texts may be anything: no column has a type.
    pub any_text: bool,
    /// Whether a time may be `infinity`.
    pub infinity: bool,
    /// Whether a row may belong to one that is not there.
    pub orphans: bool,
    /// Whether two workflows may have one name.
    pub repeated_names: bool,
    /// Whether there are texts and payloads of many megabytes. They take their time.
    pub large: bool,
    /// Whether what cannot be held is in the table `ork_kept`; else it stays where it was.
    pub keeps: bool,
}

impl std::fmt::Debug for Form<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Form")
    }
}

/// The rows of a store of Ork's. Owners come before what they own.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the fields are Ork's tables")]
pub struct OldStore {
    pub workflows: Vec<OldWorkflow>,
    pub workflow_tasks: Vec<OldSpec>,
    pub workflow_snapshots: Vec<OldSnapshot>,
    pub runs: Vec<OldRun>,
    pub tasks: Vec<OldTask>,
    pub deferred_jobs: Vec<OldJob>,
}

/// An entity's id by a number of our own.
#[must_use]
pub const fn id(number: u128) -> Uuid {
    Uuid::from_u128(0xabcd_0000_0000_4000_8000_0000_0000_0000 + number)
}

/// The id of a run's task.
#[must_use]
pub const fn task_id(run: u128, index: u128) -> Uuid {
    id(run * 1000 + index + 500)
}
