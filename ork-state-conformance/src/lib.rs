#![doc = include_str!("../README.md")]

mod case;
mod cases;
mod child;
mod crashes;
mod ctx;
mod deep;
mod facts;
mod fixture;
mod harness;
mod kill_matrix;
pub mod model;
pub mod new_backend;
#[cfg(feature = "ork")]
pub mod ork;
mod outcome;
mod repeat;
mod report;
mod roles;
mod run;
mod runtime;
#[cfg(feature = "postgres-server")]
pub mod server;
mod suite;
pub mod traces;

pub use case::Case;
pub use crashes::Crashes;
pub use ctx::{Ctx, LEASE, claim_request, dag, wide_dag};
pub use deep::{Deep, DeepCounts, DeepEvent, DeepKind, DeepReport, Finding};
pub use facts::Facts;
pub use fixture::{
    Damage, DamageDirectory, DirectoryFixture, Fixture, ServerFailure, TestStore, UrlFixture, linked,
};
pub use harness::{
    BadNumber, DEEP, LIMIT, OwnTest, REPORT, REQUIRE, SEED, chosen_limit, chosen_seed, replay_by_test,
    run_own_tests, run_tests,
};
pub use kill_matrix::{FaultReport, KillMatrix};
pub use ork_state_api::Rule;
pub use outcome::{CaseResult, NotApplicable};
pub use repeat::{Difference, Repeated, repeat};
pub use report::{
    BackendReport, Extension, ExtensionState, Level, REPORT_SCHEMA, Replay, Report, RuleReport,
};
pub use roles::run_if_child;
pub use run::{CaseReport, TIME_LIMIT, Verdict, run_case};
pub use suite::{Event, Suite};

/// What the macros expand to. Not part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::case::short_name;
    pub use inventory;
    pub use ork_state_api::Capability;
}

/// The `main` of a test that runs the suite: `tests/conformance.rs`, with `harness = false`.
///
/// It names the backend's crate, which links its plugin, and takes the fixtures of the backends in
/// it.
///
/// ```ignore
/// ork_state_conformance::main!(my_backend, Arc::new(UrlFixture::new("mine", "mine:")));
/// ```
#[macro_export]
macro_rules! main {
    ($backend:ident, $($fixture:expr),+ $(,)?) => {
        use $backend as _;

        fn main() -> ::std::process::ExitCode {
            $crate::run_tests(&[$($fixture as ::std::sync::Arc<dyn $crate::Fixture>),+])
        }
    };
}

/// Lists the tests of a module for [`own_tests_main!`](crate::own_tests_main): async functions.
#[macro_export]
macro_rules! own_tests {
    ([$($test:ident),+ $(,)?]) => {
        pub(crate) const OWN_TESTS: &[$crate::OwnTest] =
            &[$((concat!(module_path!(), "::", stringify!($test)), || ::std::boxed::Box::pin($test()))),+];
    };
}

/// The `main` of a test program with `harness = false` of a backend whose stores need something
/// that may not be there, such as a server.
///
/// It takes a `&dyn Fixture` and the modules that have [`own_tests!`](crate::own_tests). Where no
/// store can be had they show as one ignored test that says why, or as a failed one if [`REQUIRE`]
/// names the backend: they never pass unseen.
///
/// ```ignore
/// mod failover;
/// mod plans;
///
/// ork_state_conformance::own_tests_main!(&FIXTURE, [failover, plans]);
/// ```
#[macro_export]
macro_rules! own_tests_main {
    ($fixture:expr, [$($module:ident),+ $(,)?]) => {
        fn main() -> ::std::process::ExitCode {
            $crate::run_own_tests($fixture, &[$($module::OWN_TESTS),+].concat())
        }
    };
}
