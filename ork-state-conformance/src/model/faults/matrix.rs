//! Runs every case against every fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Fault;
use crate::kill_matrix::{FaultReport, KillMatrix};
use crate::model::{MODEL, ModelFixture};
use crate::run::CaseReport;
use crate::run::{Manner, run_case_so};
use crate::{Case, Fixture};

/// Cases that take longer on a correct store are run only against faults in their own rules. Ten of
/// them take ten times as long as all the others.
const QUICK: Duration = Duration::from_millis(200);

/// How long a quick case may take on a broken store before it has hung.
const QUICK_PATIENCE: Duration = Duration::from_secs(5);

impl KillMatrix {
    /// Runs every case against every one of these faults, `threads` at the same time. Reports each
    /// fault as it is done.
    ///
    /// # Errors
    /// A message if the suite fails over the model without a fault. Then no failure means anything.
    pub fn of(
        faults: &[Fault],
        seed: u64,
        threads: usize,
        on_fault: &(dyn Fn(&FaultReport) + Sync),
    ) -> Result<Self, String> {
        let honest = honest(seed, threads)?;
        let next = AtomicUsize::new(0);
        let reports = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        let Some(fault) = faults.get(place) else { return };
                        let report = hunt(fault, &honest, seed);
                        on_fault(&report);
                        reports.lock().unwrap_or_else(PoisonError::into_inner).insert(place, report);
                    }
                });
            }
        });
        let faults: Vec<FaultReport> =
            reports.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect();
        let busy: BTreeSet<&str> =
            faults.iter().flat_map(|fault| &fault.caught_by).map(String::as_str).collect();
        let names = Case::all().into_iter().map(|case| case.name);
        let idle_cases = names.filter(|name| !busy.contains(name)).map(str::to_owned).collect();
        Ok(Self { backend: MODEL.name.to_owned(), seed, faults, idle_cases })
    }
}

/// How long each case takes on a correct store. A case that does not apply counts as instant.
fn honest(seed: u64, threads: usize) -> Result<BTreeMap<&'static str, Duration>, String> {
    let cases = Case::all();
    let next = AtomicUsize::new(0);
    let ended = Mutex::new(BTreeMap::new());
    let fixture: Arc<dyn Fixture> = Arc::new(ModelFixture::honest());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = run_case_so(Manner::QUICK, &fixture, case, seed);
                    ended.lock().unwrap_or_else(PoisonError::into_inner).insert(case.name, report);
                }
            });
        }
    });
    let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    let took = |(name, CaseReport { verdict, millis, .. }): (_, CaseReport)| match verdict.problem() {
        Some(problem) => Err(format!("{name} fails over a store that keeps the rules: {problem}")),
        None => Ok((name, Duration::from_millis(millis))),
    };
    ended.into_iter().map(took).collect()
}

/// Runs the cases over stores that have this fault.
fn hunt(fault: &Fault, honest: &BTreeMap<&'static str, Duration>, seed: u64) -> FaultReport {
    let Fault { name, rule, description, tamper } = *fault;
    let fixture: Arc<dyn Fixture> = Arc::new(ModelFixture::tampered(tamper));
    let mut caught_by = Vec::new();
    for case in Case::all() {
        let took = honest.get(case.name).copied().unwrap_or_default();
        if took > QUICK && !case.rules.contains(&rule) {
            continue;
        }
        let manner =
            Manner { patience: QUICK_PATIENCE.max(took * 10).min(Manner::QUICK.patience), ..Manner::QUICK };
        // A store that hangs is noticed too.
        if run_case_so(manner, &fixture, case, seed).verdict.problem().is_some() {
            caught_by.push(case.name.to_owned());
        }
    }
    let survived = caught_by.is_empty();
    FaultReport { name: name.to_owned(), rule, description: description.to_owned(), caught_by, survived }
}

/// A store that keeps all rules is not a fault.
#[cfg(test)]
#[test]
fn nothing_is_caught_where_nothing_is_wrong() {
    let none =
        Fault { name: "none", rule: crate::Rule::G1, description: "", tamper: crate::model::Tamper::NONE };
    let matrix = KillMatrix::of(&[none], 1, 2, &|_| {}).unwrap();
    assert!(matrix.faults[0].survived, "{:?}", matrix.faults[0].caught_by);
}
