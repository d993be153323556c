//! Runs a report again, to check whether its results still hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::report::{BackendReport, Report};
use crate::run::CaseReport;
use crate::suite::{Event, Suite};
use crate::{Case, Fixture};

/// A report that was run again.
#[derive(Debug)]
pub struct Repeated {
    /// The new report.
    pub report: Report,
    /// The differences from the old report. None: the report holds.
    pub differences: Vec<Difference>,
}

/// A result that differs in the new run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The backend's name.
    pub backend: String,
    /// The case's name, or `level`.
    pub what: String,
    /// What the old report says.
    pub then: String,
    /// What the new report says.
    pub now: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, what, then, now } = self;
        write!(f, "{backend}, {what}: was {then}, is {now}")
    }
}

/// Runs the cases of a report again, with its seed and over its backends, and compares. The same
/// cases must be there, with the same verdicts and the same level. Times and the exact words of
/// failures may differ. The kill matrix is not made again.
///
/// A backend of the report without a fixture is a difference too.
pub fn repeat(
    then: &Report,
    fixtures: &[Arc<dyn Fixture>],
    suite: &Suite,
    on_event: &(dyn Fn(Event<'_>) + Sync),
) -> Repeated {
    let suite = Suite { filter: then.filter.clone(), seed: then.seed, ..suite.clone() };
    let named =
        |fixture: &dyn Fixture| then.backends.iter().find(|backend| backend.name == fixture.backend());
    let chosen: Vec<Arc<dyn Fixture>> =
        fixtures.iter().filter(|fixture| named(&***fixture).is_some()).cloned().collect();
    let report = suite.run_chosen(
        &chosen,
        &|backend, case| {
            let there = then.backends.iter().find(|report| report.name == backend);
            there.is_some_and(|report| report.cases.iter().any(|report| report.name == case.name))
        },
        on_event,
    );
    let mut differences = newer_cases(then);
    for backend in &then.backends {
        match report.backends.iter().find(|now| now.name == backend.name) {
            Some(now) => compare(backend, now, &mut differences),
            None => differences.push(Difference {
                backend: backend.name.clone(),
                what: "level".to_owned(),
                then: backend.summary(),
                now: "not linked".to_owned(),
            }),
        }
    }
    Repeated { report, differences }
}

/// The cases that are newer than a complete report. With them its levels cannot be reproduced.
fn newer_cases(then: &Report) -> Vec<Difference> {
    let known: BTreeSet<&str> =
        then.backends.iter().flat_map(|backend| &backend.cases).map(|case| case.name.as_str()).collect();
    // If cases were left out, nothing tells which are new.
    let is_whole =
        then.filter.is_none() && then.backends.iter().any(|it| it.left_out == 0 && !it.cases.is_empty());
    let newer = Case::all().into_iter().filter(|case| is_whole && !known.contains(case.name));
    let new = |case: &Case| Difference {
        backend: "the suite".to_owned(),
        what: case.name.to_owned(),
        then: "no case".to_owned(),
        now: "one that the report does not know".to_owned(),
    };
    newer.map(new).collect()
}

fn compare(then: &BackendReport, now: &BackendReport, differences: &mut Vec<Difference>) {
    let mut differs = |what: &str, then_: &str, now_: &str| {
        if then_ != now_ {
            differences.push(Difference {
                backend: then.name.clone(),
                what: what.to_owned(),
                then: then_.to_owned(),
                now: now_.to_owned(),
            });
        }
    };
    differs("level", &then.summary(), &now.summary());
    let verdicts = |cases: &[CaseReport]| -> BTreeMap<String, &'static str> {
        cases.iter().map(|case| (case.name.clone(), case.verdict.word())).collect()
    };
    let (before, after) = (verdicts(&then.cases), verdicts(&now.cases));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let of = |verdicts: &BTreeMap<String, &'static str>| verdicts.get(name).copied();
        let absent = if Case::all().iter().any(|case| case.name == *name) { "not run" } else { "no case" };
        differs(name, of(&before).unwrap_or("absent"), of(&after).unwrap_or(absent));
    }
}
