#![doc = include_str!("../README.md")]

mod case;
mod cases;
mod child;
pub mod crashes;
mod ctx;
pub mod deep;
pub mod facts;
mod fixture;
pub mod harness;
pub mod kill_matrix;
pub mod model;
pub mod new_backend;
#[cfg(feature = "ork")]
pub mod ork;
mod outcome;
pub mod repeat;
pub mod report;
mod roles;
pub mod run;
mod runtime;
#[cfg(feature = "postgres-server")]
pub mod server;
pub mod suite;
pub mod traces;

pub use case::Case;
pub use ctx::{Ctx, LEASE, claim_request, dag, wide_dag};
pub use fixture::{
    Damage, DamageDirectory, DirectoryFixture, Fixture, ServerFailure, TestStore, UrlFixture, linked,
};
pub use ork_state_api::Rule;
pub use outcome::{CaseResult, NotApplicable};
pub use roles::run_if_child;

/// Used by the macros. Not part of the interface.
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
            $crate::harness::run_tests(&[$($fixture as ::std::sync::Arc<dyn $crate::Fixture>),+])
        }
    };
}

/// Lists the tests of a module for [`own_tests_main!`](crate::own_tests_main): async functions.
#[macro_export]
macro_rules! own_tests {
    ([$($test:ident),+ $(,)?]) => {
        pub(crate) const OWN_TESTS: &[$crate::harness::OwnTest] =
            &[$((concat!(module_path!(), "::", stringify!($test)), || ::std::boxed::Box::pin($test()))),+];
    };
}

/// The `main` of a backend's test program with `harness = false`. For tests whose stores need
/// something that may be missing, such as a server.
///
/// It takes a `&dyn Fixture` and the modules that have [`own_tests!`](crate::own_tests). Without
/// stores, the tests show as one ignored test that says why. If
/// [`REQUIRE`](crate::harness::REQUIRE) names the backend, that test fails instead. They never pass
/// unseen.
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
            $crate::harness::run_own_tests($fixture, &[$($module::OWN_TESTS),+].concat())
        }
    };
}
