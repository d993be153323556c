//! Runs the suite under `cargo test`: one test per case, through libtest-mimic.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Builder;

use crate::deep::{Deep, DeepEvent, DeepKind};
use crate::facts::Facts;
use crate::report::count;
use crate::report::{BackendReport, Report};
use crate::run::millis;
use crate::run::{CaseReport, TIME_LIMIT, Verdict, run_case};
use crate::runtime::block_on;
use crate::{Case, Fixture, run_if_child};

/// Names the backends that must be available, separated by commas: `ORK_STATE_REQUIRE=postgres`.
/// Without it, a backend without stores shows as one ignored test that says why.
pub const REQUIRE: &str = "ORK_STATE_REQUIRE";

/// The seed of the cases' random choices, a number. [`chosen_seed`] reads it.
pub const SEED: &str = "ORK_STATE_SEED";

/// Names a directory for the report of [`run_tests`]: `ORK_STATE_REPORT=report cargo test --test
/// conformance`.
pub const REPORT: &str = "ORK_STATE_REPORT";

/// Makes [`run_tests`] do a [deep run](Deep) instead of running the cases: `ORK_STATE_DEEP=30 cargo
/// test --test conformance` for half an hour. After the minutes there may be a kind, and then a
/// backend, as in `ORK_STATE_DEEP="5 histories mine"`.
pub const DEEP: &str = "ORK_STATE_DEEP";

/// How many seconds a case may take. A case that is still running then is *timed out*.
/// [`TIME_LIMIT`] by default.
pub const LIMIT: &str = "ORK_STATE_CASE_LIMIT";

/// The message for a heavy case that did not run.
const HEAVY: &str = "heavy: `-- --include-ignored` runs it";

/// A variable that holds a number cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is {given:?}: it must be a whole number from 0 to {max}", max = u64::MAX)]
pub struct BadNumber {
    /// The variable.
    pub variable: &'static str,
    /// The given value.
    pub given: String,
}

/// The seed in [`SEED`], or a new one.
///
/// # Errors
/// [`BadNumber`]: ignoring a seed that was given would not replay the right run.
pub fn chosen_seed() -> Result<u64, BadNumber> {
    match std::env::var_os(SEED) {
        Some(given) => read(SEED, &given.to_string_lossy()),
        // The standard library's hasher has random keys. 53 bits: parsers that read JSON as
        // JavaScript does would round more.
        None => Ok(RandomState::new().hash_one(()) >> 11),
    }
}

/// A case's time limit in [`LIMIT`], or [`TIME_LIMIT`].
///
/// # Errors
/// [`BadNumber`]
pub fn chosen_limit() -> Result<Duration, BadNumber> {
    match std::env::var_os(LIMIT) {
        Some(given) => read(LIMIT, &given.to_string_lossy()).map(Duration::from_secs),
        None => Ok(TIME_LIMIT),
    }
}

fn read(variable: &'static str, given: &str) -> Result<u64, BadNumber> {
    given.trim().parse().map_err(|_| BadNumber { variable, given: given.to_owned() })
}

/// Runs all cases over these fixtures as tests. [`main!`](crate::main) calls it.
///
/// At the end it prints each backend's level. With [`REPORT`] it writes the whole report. Under
/// nextest every case is a separate process, so there is neither.
#[must_use]
pub fn run_tests(fixtures: &[Arc<dyn Fixture>]) -> ExitCode {
    run_if_child();
    let arguments = Arguments::from_args();
    let (seed, limit) = match chosen_seed().and_then(|seed| Ok((seed, chosen_limit()?))) {
        Ok(chosen) => chosen,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    // A case that is named exactly is wanted.
    let runs_heavy = arguments.ignored || arguments.include_ignored || arguments.exact;
    if let Some(wanted) = std::env::var_os(DEEP) {
        return run_deep(&wanted.to_string_lossy(), fixtures, seed);
    }
    let facts = Facts::gather();
    let (mut trials, mut tested) = (Vec::new(), Vec::new());
    for fixture in fixtures {
        let unavailable = if arguments.list { None } else { block_on(fixture.unavailable()) };
        let ended = Arc::default();
        match &unavailable {
            Some(reason) => trials.push(stand_in(fixture.backend(), reason.clone())),
            None => trials.extend(trials_of(fixture, Way { seed, limit, runs_heavy }, &ended)),
        }
        tested.push(Tested { fixture: fixture.clone(), unavailable, ended });
    }
    if trials.is_empty() {
        eprintln!("no backend or no case: nothing was tested");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let backends: Vec<BackendReport> = tested.into_iter().map(Tested::report).collect();
    for fixture in fixtures {
        block_on(fixture.finish());
    }
    if arguments.list || std::env::var_os("NEXTEST").is_some() {
        return conclusion.exit_code();
    }
    let took = facts.millis();
    let report = Report {
        facts,
        filter: arguments.filter,
        seed,
        millis: took,
        backends,
        kill_matrix: None,
        deep: None,
    };
    for backend in &report.backends {
        println!("{}: {}", backend.name, backend.summary());
    }
    let heavy = Case::all().iter().filter(|case| case.is_heavy).count();
    if heavy > 0 && !runs_heavy {
        println!("without {}, {HEAVY}", count(heavy, "heavy case"));
    }
    if let Some(directory) = std::env::var_os(REPORT).map(PathBuf::from) {
        if let Err(error) = report.write(&directory) {
            eprintln!("error: the report cannot be written to {}: {error}", directory.display());
            return ExitCode::FAILURE;
        }
        println!("seed {seed}, report: {}", directory.join("report.html").display());
    }
    conclusion.exit_code()
}

/// A deep run, with the options in [`DEEP`]. It prints findings as they come, and the counts at the
/// end.
fn run_deep(wanted: &str, fixtures: &[Arc<dyn Fixture>], seed: u64) -> ExitCode {
    let words: Vec<&str> = wanted.split_whitespace().collect();
    let kind = |word: &&str| DeepKind::ALL.into_iter().find(|kind| kind.word() == *word);
    let (minutes, kinds, backend) = match words.as_slice() {
        [minutes, rest @ ..] if rest.len() <= 2 => {
            let kinds = rest.first().map_or(Some(DeepKind::ALL.to_vec()), |word| Some(vec![kind(word)?]));
            (minutes.parse::<u64>().ok(), kinds, rest.get(1).copied())
        }
        _ => (None, None, None),
    };
    let (Some(minutes), Some(kinds)) = (minutes, kinds) else {
        let known = DeepKind::ALL.map(DeepKind::word).join(", ");
        eprintln!(
            "error: {DEEP} is {wanted:?}: it takes minutes, then perhaps one of {known}, then perhaps a backend"
        );
        return ExitCode::FAILURE;
    };
    let chosen = fixtures.iter().filter(|fixture| backend.is_none_or(|name| name == fixture.backend()));
    let replay = |kind: DeepKind, backend: Option<&str>, seed: u64| {
        let backend = backend.map(|backend| format!(" {backend}")).unwrap_or_default();
        format!("{SEED}={seed} {DEEP}=\"0 {}{backend}\" cargo test --test conformance", kind.word())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let deep = Deep { seed, time: Duration::from_secs(minutes * 60), threads, kinds, replay };
    let report = deep.run(&chosen.cloned().collect::<Vec<_>>(), &|event| {
        if let DeepEvent::Found(finding) = event {
            println!(
                "{} {} FAILED\n{}\nagain: {}",
                finding.place(),
                finding.kind.word(),
                finding.message,
                finding.replay
            );
        }
    });
    println!("{}", report.markdown());
    if report.did_something() && report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The results of a backend.
struct Tested {
    fixture: Arc<dyn Fixture>,
    unavailable: Option<String>,
    ended: Arc<Mutex<Ended>>,
}

/// The cases that have ended, with the times of the first start and the last end.
#[derive(Default)]
struct Ended {
    cases: Vec<CaseReport>,
    span: Option<(Instant, Instant)>,
}

impl Ended {
    fn add(&mut self, begun: Instant, case: CaseReport) {
        let first = self.span.map_or(begun, |(first, _)| first.min(begun));
        self.span = Some((first, Instant::now()));
        self.cases.push(case);
    }
}

/// How cases are run.
#[derive(Clone, Copy)]
struct Way {
    seed: u64,
    limit: Duration,
    runs_heavy: bool,
}

impl Tested {
    fn report(self) -> BackendReport {
        let name = self.fixture.backend();
        match self.unavailable {
            Some(reason) => BackendReport::unavailable(name, reason),
            None => {
                let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
                let took =
                    ended.span.map_or(0, |(first, last)| millis(last.saturating_duration_since(first)));
                BackendReport::new(name, block_on(self.fixture.origin()), ended.cases, took)
            }
        }
    }
}

/// The command that runs a case again through `cargo test`.
#[must_use]
pub fn replay_by_test(backend: &str, case: &str, seed: u64) -> String {
    format!("{SEED}={seed} cargo test --test conformance -- --exact {backend}::{case}")
}

/// One of a backend's own tests: its name and its body.
pub type OwnTest = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()> + Send>>);

/// Runs a backend's own tests, which need stores of this fixture as the cases do.
/// [`own_tests_main!`](crate::own_tests_main) calls it.
#[must_use]
pub fn run_own_tests(fixture: &dyn Fixture, tests: &[OwnTest]) -> ExitCode {
    let arguments = Arguments::from_args();
    let own = |&(name, test): &OwnTest| {
        // Without the program's name.
        let name = name.split_once("::").map_or(name, |(_, name)| name);
        Trial::test(name, move || {
            // A separate runtime, as `#[tokio::test]` would make it, because a test may leave tasks
            // behind.
            Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test());
            Ok(())
        })
    };
    // Listing must be quick, so no server is started for it.
    let unavailable = if arguments.list { None } else { block_on(fixture.unavailable()) };
    let trials = match unavailable {
        Some(reason) => vec![stand_in(fixture.backend(), reason)],
        None => tests.iter().map(own).collect(),
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    block_on(fixture.finish());
    conclusion.exit_code()
}

fn trials_of(fixture: &Arc<dyn Fixture>, way: Way, ended: &Arc<Mutex<Ended>>) -> Vec<Trial> {
    let Way { seed, limit, runs_heavy } = way;
    let name = fixture.backend();
    Case::all()
        .into_iter()
        .map(|case| {
            let (fixture, ended) = (fixture.clone(), ended.clone());
            Trial::ignorable_test(format!("{name}::{}", case.name), move || {
                if case.is_heavy && !runs_heavy {
                    return Ok(Completion::ignored_with(HEAVY));
                }
                let begun = Instant::now();
                let report = run_case(&fixture, case, seed, limit)
                    .with_replay(|case| replay_by_test(fixture.backend(), case, seed));
                let verdict = report.verdict.clone();
                let again =
                    report.replay.as_ref().map(|replay| format!("\nagain: {replay}")).unwrap_or_default();
                ended.lock().unwrap_or_else(PoisonError::into_inner).add(begun, report);
                match (verdict.problem(), verdict) {
                    (Some(problem), _) => Err(Failed::from(problem + &again)),
                    (None, Verdict::NotApplicable { reason }) => Ok(Completion::ignored_with(reason)),
                    (None, _) => Ok(Completion::Completed),
                }
            })
        })
        .collect()
}

/// Stands for all tests of a backend without stores.
fn stand_in(name: &str, reason: String) -> Trial {
    let required =
        std::env::var(REQUIRE).is_ok_and(|names| names.split(',').any(|required| required.trim() == name));
    eprintln!("{name} is UNAVAILABLE: {reason}");
    let trial = Trial::test(format!("{name} is UNAVAILABLE"), move || Err(Failed::from(reason)));
    trial.with_ignored_flag(!required)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_is_no_number_is_an_error() {
        assert_eq!(read(SEED, " 42\n"), Ok(42));
        for bad in ["", "x", "-1", "1.5", "18446744073709551616"] {
            let error = read(SEED, bad).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }
}
