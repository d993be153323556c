#![doc = include_str!("../README.md")]

mod case;
mod cases;
mod child;
mod ctx;
mod fixture;
mod harness;
mod report;
mod rules;
mod run;
#[cfg(feature = "postgres-server")]
pub mod server;
mod suite;

pub use case::{Case, CaseResult, NotApplicable};
pub use child::run_if_child;
pub use ctx::{Ctx, LEASE, claim_request, dag, wide_dag};
pub use fixture::{Damage, DamageDirectory, DirectoryFixture, Fixture, TestStore, UrlFixture};
pub use harness::{REQUIRE, run_tests};
pub use report::{BackendReport, Level, Report};
pub use rules::Rule;
pub use run::{CaseReport, Verdict, linked, opted_out, run_case};
pub use suite::{Event, Suite};

/// The `main` of a test that runs the suite: `tests/conformance.rs`, with `harness = false`.
///
/// It names the backend's crate, which links its plugin, and takes the fixtures of the backends in it.
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
