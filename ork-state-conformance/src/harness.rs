//! `cargo test` over the suite: one test a case, through libtest-mimic.

use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::{Builder, Runtime};

use crate::{Case, Fixture, Verdict, run_case, run_if_child};

/// Names backends, by commas, that must be there: `ORK_STATE_REQUIRE=postgres`. Without it a backend whose stores cannot
/// be had shows as one ignored test that says why.
pub const REQUIRE: &str = "ORK_STATE_REQUIRE";

/// The seed of what cases leave to chance, a number; [`chosen_seed`] reads it.
pub const SEED: &str = "ORK_STATE_SEED";

/// The seed that [`SEED`] gives, else a new one.
#[must_use]
pub fn chosen_seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|seed| seed.trim().parse().ok());
    // The standard library's hasher is keyed by chance.
    given.unwrap_or_else(|| RandomState::new().hash_one(()))
}

/// Runs all cases over these fixtures as tests. [`main!`](crate::main) calls it.
#[must_use]
pub fn run_tests(fixtures: &[Arc<dyn Fixture>]) -> ExitCode {
    run_if_child();
    let arguments = Arguments::from_args();
    let (seed, mut trials) = (chosen_seed(), Vec::new());
    for fixture in fixtures {
        trials.extend(trials_of(fixture, seed, arguments.list));
    }
    if trials.is_empty() {
        eprintln!("no backend or no case: nothing was tested");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for fixture in fixtures {
        block_on(fixture.finish());
    }
    conclusion.exit_code()
}

/// A test of a backend's own: what it is called, and what it does.
pub type OwnTest = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()> + Send>>);

/// Runs a backend's own tests, which need stores of this fixture as the cases do. [`own_tests!`](crate::own_tests) calls it.
#[must_use]
pub fn run_own_tests(fixture: &dyn Fixture, tests: &[OwnTest]) -> ExitCode {
    let arguments = Arguments::from_args();
    let own = |&(name, test): &OwnTest| {
        Trial::test(name, move || {
            // Of its own, as `#[tokio::test]` would make it: a test may leave tasks behind.
            Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test());
            Ok(())
        })
    };
    let trials = match stand_in(fixture, arguments.list) {
        Some(stand_in) => vec![stand_in],
        None => tests.iter().map(own).collect(),
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    block_on(fixture.finish());
    conclusion.exit_code()
}

fn trials_of(fixture: &Arc<dyn Fixture>, seed: u64, listing: bool) -> Vec<Trial> {
    if let Some(stand_in) = stand_in(&**fixture, listing) {
        return vec![stand_in];
    }
    let name = fixture.backend();
    Case::all()
        .into_iter()
        .map(|case| {
            let fixture = fixture.clone();
            Trial::ignorable_test(format!("{name}::{}", case.name), move || {
                match run_case(&fixture, case, seed).verdict {
                    Verdict::Passed => Ok(Completion::Completed),
                    Verdict::Failed { message } => Err(Failed::from(message)),
                    Verdict::NotApplicable { reason } => Ok(Completion::ignored_with(reason)),
                }
            })
        })
        .collect()
}

/// Stands for all tests of a backend whose stores cannot be had.
fn stand_in(fixture: &dyn Fixture, listing: bool) -> Option<Trial> {
    if listing {
        // Listing must be quick: no server is started for it.
        return None;
    }
    let name = fixture.backend();
    let reason = block_on(fixture.unavailable())?;
    let required =
        std::env::var(REQUIRE).is_ok_and(|names| names.split(',').any(|required| required.trim() == name));
    eprintln!("{name} is UNAVAILABLE: {reason}");
    let trial = Trial::test(format!("{name} is UNAVAILABLE"), move || Err(Failed::from(reason)));
    Some(trial.with_ignored_flag(!required))
}

/// Waits for a future that needs a runtime: all of them share one, which lives as long as the process, because what they start
/// (a container's client) belongs to it.
pub(crate) fn block_on<T: Default>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let runtime =
        RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().ok());
    match runtime {
        Some(runtime) => runtime.block_on(future),
        None => T::default(),
    }
}
