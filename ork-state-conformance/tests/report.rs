//! Levels and reports, of runs of the suite over the example backend.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use ork_state_conformance::deep::{DeepCounts, DeepKind, DeepReport, Finding};
use ork_state_conformance::harness::replay_by_test;
use ork_state_conformance::kill_matrix::{FaultReport, KillMatrix};
use ork_state_conformance::repeat::repeat;
use ork_state_conformance::report::{BackendReport, ExtensionState, Level, REPORT_SCHEMA, Report};
use ork_state_conformance::run::{CaseReport, TIME_LIMIT, Verdict};
use ork_state_conformance::suite::Suite;
use ork_state_conformance::{Case, Fixture, Rule, TestStore, UrlFixture};
use ork_state_example as _;

fn example() -> Arc<dyn Fixture> {
    Arc::new(UrlFixture::new("example", "example:"))
}

fn suite(filter: Option<&str>) -> Suite {
    Suite {
        filter: filter.map(str::to_owned),
        threads: 2,
        limit: TIME_LIMIT,
        seed: 7,
        replay: replay_by_test,
    }
}

/// All cases over the example, which opts out of all capabilities. Run once for all tests.
fn whole() -> Report {
    static WHOLE: OnceLock<Report> = OnceLock::new();
    WHOLE.get_or_init(|| suite(None).run(&[example()], &|_| {})).clone()
}

/// What the cases come to after a change.
fn changed(change: impl FnOnce(&mut Vec<CaseReport>)) -> BackendReport {
    let mut cases = whole().backends.remove(0).cases;
    change(&mut cases);
    BackendReport::new("example", None, cases, 1)
}

fn case<'a>(cases: &'a mut [CaseReport], name: &str) -> &'a mut CaseReport {
    cases.iter_mut().find(|case| case.name == name).unwrap()
}

/// Has everything that a report can say, in words that every format must escape.
fn odd() -> Report {
    let mut report = whole();
    let backend = &mut report.backends[0];
    let failed = &mut backend.cases[0];
    failed.verdict =
        Verdict::Failed { message: "<script>alert(1)</script> & ``` | ]]> \u{1}\nmore".to_owned() };
    failed.notes.push("a note with <b> and | in it".to_owned());
    backend.cases[1].verdict = Verdict::TimedOut { limit: 120_000 };
    let (cases, origin) = (std::mem::take(&mut backend.cases), Some("a | b <i>".to_owned()));
    report.backends = vec![
        BackendReport::new("example", origin, cases, 1),
        BackendReport::unavailable("nowhere", "no <server>".to_owned()),
    ];
    report.filter = Some("<filter>".to_owned());
    let fault = |name: &str, caught_by: &[&str]| FaultReport {
        name: name.to_owned(),
        rule: Rule::T2,
        description: "claims <twice>".to_owned(),
        caught_by: caught_by.iter().map(|&name| name.to_owned()).collect(),
        survived: caught_by.is_empty(),
    };
    report.kill_matrix = Some(KillMatrix {
        backend: "example".to_owned(),
        seed: 7,
        faults: vec![fault("caught", &["claims::t2_x"]), fault("survivor", &[])],
        idle_cases: vec!["claims::t2_idle".to_owned()],
    });
    let counts =
        |backend: &str| DeepCounts { backend: backend.to_owned(), traces: 3, ..DeepCounts::default() };
    report.deep = Some(DeepReport {
        seed: 7,
        millis: 61_000,
        backends: vec![
            counts("example"),
            DeepCounts { unavailable: Some("no <deep server>".to_owned()), ..DeepCounts::default() },
        ],
        findings: vec![Finding {
            kind: DeepKind::Histories,
            backend: Some("example".to_owned()),
            seed: 8,
            message: "no <order> | explains\n```".to_owned(),
            replay: "again --seed 8".to_owned(),
        }],
    });
    report
}

#[test]
fn the_level_is_core_where_everything_else_is_opted_out_of() {
    let backend = whole().backends.remove(0);
    assert_eq!(
        (backend.level, backend.failed, backend.left_out),
        (Level::Core, 0, 0),
        "{}",
        backend.summary()
    );
    let state = |name: &str| backend.extensions.iter().find(|it| it.name == name).unwrap().state;
    assert_eq!(state("durable storage"), ExtensionState::OptedOut);
    assert_eq!(state("task logs"), ExtensionState::Refused);
    // Its fixture cannot damage a store.
    assert!(backend.unchecked.contains(&Rule::G8), "{:?}", backend.unchecked);
    assert!(!backend.unchecked.contains(&Rule::L2), "{:?}", backend.unchecked);
    assert_eq!(backend.summary(), "Core (not checked: G8)");
}

#[test]
fn one_failure_leaves_no_level() {
    let backend = changed(|cases| {
        case(cases, "workflows::w1_a_taken_name_is_refused").verdict =
            Verdict::Failed { message: "no".to_owned() };
    });
    assert_eq!((backend.level, backend.level.is_conformant()), (Level::NotConformant, false));
}

#[test]
fn a_case_that_takes_too_long_is_timed_out_and_not_a_failure() {
    let late = "workflows::w1_a_taken_name_is_refused";
    let backend = changed(|cases| case(cases, late).verdict = Verdict::TimedOut { limit: 120_000 });
    assert_eq!((backend.level, backend.timed_out, backend.failed), (Level::TimedOut, 1, 0));
    assert_eq!(backend.summary(), "timed out (1 case)");
    // It is no pass either.
    let report = Report { backends: vec![backend], ..whole() };
    assert!(!report.is_good() && !report.backends[0].level.is_conformant());
    // A failure that was seen counts more.
    let both = changed(|cases| {
        case(cases, late).verdict = Verdict::TimedOut { limit: 120_000 };
        cases[0].verdict = Verdict::Failed { message: "no".to_owned() };
    });
    assert_eq!(both.level, Level::NotConformant);
}

/// Stores for which one waits for ever.
struct Hung;

#[async_trait]
impl Fixture for Hung {
    fn backend(&self) -> &'static str {
        "example"
    }

    async fn empty(&self) -> ork_state_api::Result<Arc<dyn TestStore>> {
        std::future::pending().await
    }
}

#[test]
fn a_case_that_is_still_running_at_its_limit_is_given_up() {
    let limit = Duration::from_millis(1);
    let report = Suite { limit, ..suite(Some("w1_a_taken")) }.run(&[Arc::new(Hung)], &|_| {});
    let case = &report.backends[0].cases[0];
    assert_eq!(case.verdict, Verdict::TimedOut { limit: 1 });
    assert!(case.replay.is_some());
}

#[test]
fn one_missing_case_leaves_no_level() {
    let backend = changed(|cases| cases.retain(|case| case.name != "workflows::w1_a_taken_name_is_refused"));
    assert_eq!((backend.level, backend.left_out), (Level::Incomplete, 1));
    assert!(!backend.level.is_conformant());
}

#[test]
fn nothing_seen_leaves_no_level() {
    assert_eq!(BackendReport::new("example", None, vec![], 0).level, Level::NotConformant);
    let nothing_applies = changed(|cases| {
        for case in cases {
            case.verdict = Verdict::NotApplicable { reason: "no reason".to_owned() };
        }
    });
    assert_eq!(nothing_applies.level, Level::NotConformant);
    // Only what it opts out of was seen: of the core nothing.
    let only_refusals = changed(|cases| {
        for case in cases.iter_mut().filter(|case| case.is_core()) {
            case.verdict = Verdict::NotApplicable { reason: "no reason".to_owned() };
        }
    });
    assert_eq!(only_refusals.level, Level::NotConformant);
    assert_eq!(BackendReport::unavailable("example", "away".to_owned()).level, Level::Unavailable);
}

#[test]
fn a_filter_leaves_no_level() {
    let report = suite(Some("w1_")).run(&[example()], &|_| {});
    let backend = &report.backends[0];
    assert_eq!((backend.level, backend.failed), (Level::Incomplete, 0));
    assert!(backend.passed > 5 && backend.left_out > 100);
    assert!(report.html().contains("A part of the suite over 1 backend"), "it says nothing of conformance");
    let nothing = suite(Some("no such case")).run(&[example()], &|_| {});
    assert_eq!((nothing.backends[0].level, nothing.is_good()), (Level::NotConformant, false));
}

#[test]
fn the_schema_describes_the_report() {
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.add_resource("report.schema.json", serde_json::from_str(REPORT_SCHEMA).unwrap()).unwrap();
    let schema = compiler.compile("report.schema.json", &mut schemas).unwrap();
    for report in [whole(), odd()] {
        let mut json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        if let Err(error) = schemas.validate(&json, schema) {
            panic!("{error:#}");
        }
        // It is not a schema that anything matches.
        json["backends"][0]["cases"][0]["verdict"] = "well".into();
        assert!(schemas.validate(&json, schema).is_err());
    }
}

#[test]
fn json_comes_back() {
    for report in [whole(), odd()] {
        let json = report.json().unwrap();
        assert_eq!(Report::from_json(&json).unwrap().json().unwrap(), json);
    }
}

#[test]
fn junit_tells_the_same() {
    let report = odd();
    let xml = report.junit().unwrap();
    let read = quick_junit::Report::deserialize_from_str(&xml).unwrap();
    let backend = &report.backends[0];
    let skipped = |suite: &quick_junit::TestSuite| {
        let is_skipped = |status: &quick_junit::TestCaseStatus| {
            matches!(status, quick_junit::TestCaseStatus::Skipped { .. })
        };
        suite.test_cases.iter().filter(|case| is_skipped(&case.status)).count()
    };
    let suite = &read.test_suites[0];
    assert_eq!(
        (suite.tests, suite.failures, skipped(suite)),
        (backend.cases.len(), backend.failed, backend.not_applicable)
    );
    assert_eq!(skipped(&read.test_suites[1]), 1);
    assert_eq!((read.test_suites[2].name.as_str(), read.test_suites[2].failures), ("deep", 1));
}

#[test]
fn a_report_is_good_only_if_nothing_was_found_anywhere() {
    let deep = |findings| DeepReport { findings, ..odd().deep.unwrap() };
    let well = Report::of_deep_run(whole().facts, deep(vec![]));
    assert!(whole().is_good() && well.is_good());
    assert!(!Report::of_deep_run(whole().facts, deep(odd().deep.unwrap().findings)).is_good());
    let nothing = DeepReport { backends: vec![], ..deep(vec![]) };
    assert!(!Report::of_deep_run(whole().facts, nothing).is_good());
    assert!(!Report { kill_matrix: odd().kill_matrix, ..whole() }.is_good(), "a fault survived");
    assert!(well.html().contains("No case ran") && well.markdown().contains("No case ran"));
}

#[test]
fn pages_escape_what_cases_say() {
    let report = odd();
    let page = report.html();
    for raw in ["<script>alert", "<b> and", "<i>", "<twice>", "<filter>", "<server>", "<deep", "<order>"] {
        assert!(!page.contains(raw), "{raw}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    let replay = "ORK_STATE_SEED=7 cargo test";
    assert!(!page.contains(replay), "only a case that was run and failed has a replay");
    let markdown = report.markdown();
    assert!(markdown.contains("````text\n<script>") && markdown.contains("a \\| b"), "{markdown}");
    assert!(markdown.contains("| survivor | T2 | claims <twice> | **survived** |"));
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let page = odd().html();
    for reference in ["http://", "https://", "src=", "<link", "@import", "url("] {
        assert!(!page.contains(reference), "{reference}");
    }
}

/// Stores that cannot be had: every case fails.
struct Broken;

#[async_trait]
impl Fixture for Broken {
    fn backend(&self) -> &'static str {
        "example"
    }

    async fn empty(&self) -> ork_state_api::Result<Arc<dyn TestStore>> {
        Err(ork_state_api::Error::unavailable("a test"))
    }
}

#[test]
fn a_failed_case_tells_how_to_run_it_again() {
    let report = suite(Some("w1_a_taken")).run(&[Arc::new(Broken)], &|_| {});
    let case = &report.backends[0].cases[0];
    let replay = "ORK_STATE_SEED=7 cargo test --test conformance -- --exact example::workflows::w1_a_taken_name_is_refused";
    assert_eq!(case.replay.as_deref(), Some(replay));
    assert!(report.html().contains(replay) && report.markdown().contains(replay));
    assert!(report.junit().unwrap().contains(replay));
}

#[test]
fn a_report_is_run_again() {
    let then = suite(Some("w1_")).run(&[example()], &|_| {});
    let again = repeat(&then, &[example()], &suite(None), &|_| {});
    assert_eq!((again.differences, again.report.seed), (vec![], 7));
    assert_eq!(again.report.backends[0].cases.len(), then.backends[0].cases.len());
}

#[test]
fn what_does_not_hold_is_listed() {
    let mut then = suite(Some("w1_")).run(&[example()], &|_| {});
    let backend = &mut then.backends[0];
    backend.level = Level::Full;
    backend.cases[0].verdict = Verdict::Failed { message: "then".to_owned() };
    backend.cases[1].name = "workflows::w1_gone".to_owned();
    then.backends.push(BackendReport::unavailable("elsewhere", "away".to_owned()));
    let told: Vec<String> = repeat(&then, &[example()], &suite(None), &|_| {})
        .differences
        .iter()
        .map(ToString::to_string)
        .collect();
    let first = &then.backends[0].cases[0].name;
    assert_eq!(told.len(), 4, "{told:#?}");
    assert!(told[0].starts_with("example, level: was Full, is incomplete"), "{told:#?}");
    assert!(told.contains(&format!("example, {first}: was failed, is passed")), "{told:#?}");
    assert!(told.contains(&"example, workflows::w1_gone: was passed, is no case".to_owned()), "{told:#?}");
    assert!(told.contains(&"elsewhere, level: was UNAVAILABLE, is not linked".to_owned()), "{told:#?}");
}

#[test]
fn a_case_that_the_report_does_not_have_is_a_difference() {
    let mut then = whole();
    let missing = then.backends[0].cases.pop().unwrap().name;
    assert!(Case::all().iter().any(|case| case.name == missing));
    // No fixture: nothing runs, and what is compared is the lists of cases.
    let again = repeat(&then, &[], &suite(None), &|_| {});
    let told: Vec<String> = again.differences.iter().map(ToString::to_string).collect();
    let new = format!("the suite, {missing}: was no case, is one that the report does not know");
    assert!(told.len() == 2 && told[0] == new && told[1].contains("not linked"), "{told:#?}");
}
