//! The report as JUnit XML, which CI systems display.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::{BackendReport, Report};
use crate::facts::Facts;
use crate::run::{CaseReport, Verdict};

impl Report {
    /// The report as JUnit XML: one suite per backend, one test per case. Cases that do not apply
    /// are skipped, and so is an unavailable backend. A deep run is a separate suite.
    ///
    /// # Errors
    /// None that is known: what XML cannot express is left out.
    pub fn junit(&self) -> Result<String, SerializeError> {
        let mut report = quick_junit::Report::new("ork-state conformance");
        report.set_timestamp(self.facts.started.to_chrono()).set_time(Duration::from_millis(self.millis));
        for backend in &self.backends {
            report.add_test_suite(suite(backend, &self.facts, self.seed));
        }
        if let Some(deep) = &self.deep {
            report.add_test_suite(deep.junit());
        }
        report.to_string()
    }
}

fn suite(backend: &BackendReport, facts: &Facts, seed: u64) -> TestSuite {
    let mut suite = TestSuite::new(backend.name.as_str());
    suite.set_timestamp(facts.started.to_chrono()).set_time(Duration::from_millis(backend.millis));
    for (name, value) in [
        ("level", backend.summary()),
        ("origin", backend.origin.clone().unwrap_or_default()),
        ("seed", seed.to_string()),
        ("suite", facts.suite.clone()),
        ("api", facts.api.clone()),
        ("rustc", facts.rustc.clone()),
    ] {
        suite.add_property(Property::new(name, value));
    }
    if let Some(reason) = &backend.unavailable {
        let mut status = TestCaseStatus::skipped();
        status.set_message(reason.as_str());
        suite.add_test_case(TestCase::new("stores can be had", status));
    }
    suite.add_test_cases(backend.cases.iter().map(|case| test(&backend.name, case)));
    suite
}

fn test(backend: &str, case: &CaseReport) -> TestCase {
    let status = match &case.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Failed { message } => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let again = case.replay.as_ref().map(|replay| format!("\nagain: {replay}")).unwrap_or_default();
            status.set_message(message.lines().next().unwrap_or_default());
            status.set_type("failed").set_description(format!("{message}{again}"));
            status
        }
        Verdict::TimedOut { .. } => {
            let problem = case.verdict.problem().unwrap_or_default();
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            status.set_message(problem).set_type("timed out");
            if let Some(replay) = &case.replay {
                status.set_description(format!("again: {replay}"));
            }
            status
        }
        Verdict::NotApplicable { reason } => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.as_str());
            status
        }
    };
    let mut test = TestCase::new(case.name.as_str(), status);
    test.set_classname(backend).set_time(Duration::from_millis(case.millis));
    if !case.notes.is_empty() {
        test.set_system_out(case.notes.join("\n"));
    }
    test
}
