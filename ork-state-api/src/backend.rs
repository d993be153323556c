//! For authors of backends. Users of a store do not need this module.
//!
//! 1. Implement [`Plugin`] and the role traits, each under `#[async_trait]` (add `async-trait` to
//!    your dependencies). [`Database`](crate::Database) then comes by itself. For a role that the
//!    backend lacks write an empty `impl LogStore for MyStore {}`: its methods answer `Unsupported`
//!    by default. Opt out of it in [`Capabilities`] as well. Without notifications leave out
//!    [`watch`](crate::Maintenance::watch).
//! 2. Describe the backend by a static [`Backend`] and register it with
//!    [`register_backend!`](crate::register_backend).
//! 3. Run the suite of `ork-state-conformance`.
//!
//! `cargo xtask new-backend NAME` in the project's workspace writes the beginning, as does the
//! program `ork-state-new-backend` of the suite's crate. A complete backend, small enough to read
//! in one sitting, is `ork-state-conformance/example-backend`.
//!
//! A new row is made by [`Run::new`](crate::Run::new), [`Task::of_run`](crate::Task::of_run),
//! [`DeferredJob::new`](crate::DeferredJob::new) and
//! [`Workflow::with_snapshot`](crate::Workflow::with_snapshot). A stored one is read by
//! `from_stored` of the same types; what that leaves out is set afterwards.
//!
//! What all backends must work out alike is worked out here, once:
//!
//! | for | use |
//! |---|---|
//! | a batch of updates | [`UpdateStep`], from [`TaskUpdates::steps`](crate::TaskUpdates::steps) |
//! | a run that is tried again | [`RetryPlan`] |
//! | a log with a cap | [`CappedAppend`] |
//! | the end of a deferred task | [`deferred_end`] |
//! | a copy of another store | [`Transfer`], [`Record`] |
//! | the words of errors that stay in the store | [`dependency_failed_message`], [`task_failed_message`], [`task_cancelled_message`], [`lease_lapsed_message`], [`timed_out_message`] |
//! | a workflow that a live run keeps from being deleted | [`has_live_run`] |
//! | what can be verified from outside | [`verify::observe`](crate::verify::observe) |

pub use crate::deferred_jobs::{DeferredEnd, cannot_defer, deferred_end};
pub use crate::logs::{CappedAppend, log_cap_note};
pub use crate::options::{Parameters, StoreUrl};
pub use crate::plugin::{Backend, Capabilities, Connecting, OptionInfo, Plugin};
pub use crate::retry::RetryPlan;
pub use crate::tasks::{
    dependency_failed_message, lease_lapsed_message, task_cancelled_message, task_failed_message,
    timed_out_message,
};
pub use crate::transfer::{ImportPage, ImportProgress, Record, Transfer, no_import, not_empty};
pub use crate::updates::{UpdateStep, check_batch_len};
pub use crate::watch::WatchSource;
pub use crate::workflows::has_live_run;
