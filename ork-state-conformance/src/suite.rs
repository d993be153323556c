//! Runs the whole suite over several backends, and makes a report.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::facts::Facts;
use crate::report::{BackendReport, Replay, Report};
use crate::run::millis;
use crate::run::{CaseReport, run_case};
use crate::runtime::block_on;
use crate::{Case, Fixture};

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Suite {
    /// Only cases whose names contain this.
    pub filter: Option<String>,
    /// How many cases run at the same time.
    pub threads: usize,
    /// How long a case may take. A case that is still running then is *timed out*. Use
    /// [`TIME_LIMIT`](crate::run::TIME_LIMIT) unless you know better.
    pub limit: Duration,
    /// The seed of the cases' random choices. The same seed gives the same run.
    pub seed: u64,
    /// The command that runs a case again, for the report.
    pub replay: Replay,
}

/// An event while the suite runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// This many cases of this backend are about to run, on stores that come from here.
    Begins {
        /// The plugin's name.
        backend: &'static str,
        /// Where its stores come from, if there is something to report.
        origin: Option<&'a str>,
        /// How many cases.
        cases: usize,
    },
    /// A case ended.
    Ended {
        /// The plugin's name.
        backend: &'static str,
        /// The case.
        case: &'a CaseReport,
    },
}

impl Suite {
    /// Runs the cases over each fixture, one backend after the other, and reports events as it
    /// goes.
    pub fn run(&self, fixtures: &[Arc<dyn Fixture>], on_event: &(dyn Fn(Event<'_>) + Sync)) -> Report {
        let matches = |case: &Case| self.filter.as_deref().is_none_or(|filter| case.name.contains(filter));
        self.run_chosen(fixtures, &|_, case| matches(case), on_event)
    }

    /// Runs the cases that are selected by backend and case. The filter is only reported.
    pub(crate) fn run_chosen(
        &self,
        fixtures: &[Arc<dyn Fixture>],
        is_chosen: &dyn Fn(&str, &Case) -> bool,
        on_event: &(dyn Fn(Event<'_>) + Sync),
    ) -> Report {
        let facts = Facts::gather();
        let mut backends: Vec<BackendReport> = fixtures
            .iter()
            .map(|fixture| {
                let chosen = Case::all().into_iter().filter(|case| is_chosen(fixture.backend(), case));
                self.run_backend(fixture, &chosen.collect::<Vec<_>>(), on_event)
            })
            .collect();
        backends.sort_by(|a, b| a.name.cmp(&b.name));
        let (filter, seed, millis) = (self.filter.clone(), self.seed, facts.millis());
        Report { facts, filter, seed, millis, backends, kill_matrix: None, deep: None }
    }

    fn run_backend(
        &self,
        fixture: &Arc<dyn Fixture>,
        cases: &[&'static Case],
        on_event: &(dyn Fn(Event<'_>) + Sync),
    ) -> BackendReport {
        let backend = fixture.backend();
        if let Some(reason) = block_on(fixture.unavailable()) {
            return BackendReport::unavailable(backend, reason);
        }
        let origin = block_on(fixture.origin());
        on_event(Event::Begins { backend, origin: origin.as_deref(), cases: cases.len() });
        let begun = Instant::now();
        let (next, ended) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(cases.len())));
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let report = run_case(fixture, case, self.seed, self.limit)
                            .with_replay(|case| (self.replay)(backend, case, self.seed));
                        on_event(Event::Ended { backend, case: &report });
                        ended.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                    }
                });
            }
        });
        let took = millis(begun.elapsed());
        block_on(fixture.finish());
        let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        BackendReport::new(backend, origin, ended, took)
    }
}
