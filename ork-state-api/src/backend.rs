//! The door for who writes a backend. Who uses a store needs nothing of it.
//!
//! 1. Implement the role traits and [`Plugin`]. Roles that a backend lacks are left out: their
//!    methods answer `Unsupported` by default.
//! 2. Describe the backend by a static [`Backend`] and register it with
//!    [`register_backend!`](crate::register_backend).
//! 3. Run the suite of `ork-state-conformance`.
//!
//! `ork-state-new-backend`, in the suite's crate, writes the beginning.
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
//! | the words of errors that stay in the store | [`dependency_failed_message`], [`task_failed_message`], [`lease_lapsed_message`], [`timed_out_message`] |
//! | what can be verified from outside | [`verify::observe`](crate::verify::observe) |

pub use crate::deferred_jobs::{DeferredEnd, cannot_defer, deferred_end};
pub use crate::logs::{CappedAppend, log_cap_note};
pub use crate::options::{Parameters, StoreUrl};
pub use crate::plugin::{Backend, Capabilities, Connecting, OptionInfo, Plugin};
pub use crate::retry::RetryPlan;
pub use crate::tasks::{
    dependency_failed_message, lease_lapsed_message, task_failed_message, timed_out_message,
};
pub use crate::transfer::{ImportPage, ImportProgress, Record, Transfer, no_import, not_empty};
pub use crate::updates::{UpdateStep, check_batch_len};
pub use crate::watch::WatchSource;
