//! The deep run in the pages of the report.

use std::fmt::Write as _;
use std::time::Duration;

use maud::{Markup, html};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::duration;
use super::html::{command, count};
use super::markdown::fenced;
use crate::deep::{DeepCounts, DeepReport, Finding};

/// A title, and the count for a backend.
type Column = (&'static str, fn(&DeepCounts) -> u64);

/// The counted columns.
const COLUMNS: [Column; 8] = [
    ("Traces", |it| it.traces),
    ("Calls in them", |it| it.trace_calls),
    ("Histories", |it| it.histories.histories),
    ("Calls in them", |it| it.histories.calls),
    ("Unanswered", |it| it.histories.unknown),
    ("Processes killed", |it| it.crashes.kills),
    ("Server failures", |it| it.crashes.server_failures),
    ("Steps acknowledged", |it| it.crashes.acknowledged),
];

impl DeepReport {
    /// The duration, the seed and the findings, in a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        let found = match self.findings.len() {
            0 => "nothing went wrong".to_owned(),
            number => format!("{} went wrong", count(number, "thing")),
        };
        format!("{}, seed {}: {found}", duration(self.millis), self.seed)
    }

    pub(super) fn html(&self) -> Markup {
        html! {
            section {
                h2 { "Deep run" }
                p.hint { (self.summary()) "." }
                @for finding in &self.findings {
                    details.failure open {
                        summary { b { (finding.place()) } " " (finding.kind.word()) }
                        pre { (finding.message) }
                        (command(&finding.replay))
                    }
                }
                div.scroll tabindex="0" role="region" aria-label="Deep run" {
                    table {
                        thead { tr {
                            th scope="col" { "Backend" }
                            @for (name, _) in COLUMNS { th.number scope="col" { (name) } }
                        } }
                        tbody { @for it in &self.backends { tr {
                            th scope="row" { (it.backend) @if let Some(reason) = &it.unavailable { p { (reason) } } }
                            @for (_, number) in COLUMNS { td.number { (number(it)) } }
                        } } }
                    }
                }
            }
        }
    }

    /// The counts and the findings, as a part of a Markdown page.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut page = format!("\n## Deep run\n\n{}.\n\n| backend |", self.summary());
        for (name, _) in COLUMNS {
            // Writing to a String cannot fail, here and below.
            let _ = write!(page, " {} |", name.to_lowercase());
        }
        page += "\n|---|";
        page += &"--:|".repeat(COLUMNS.len());
        for it in &self.backends {
            let _ = write!(page, "\n| {} |", it.backend);
            for (_, number) in COLUMNS {
                let _ = write!(page, " {} |", number(it));
            }
        }
        page += "\n";
        for it in &self.backends {
            if let Some(reason) = &it.unavailable {
                let _ = writeln!(page, "\n{}: unavailable\n\n{}", it.backend, fenced(reason));
            }
        }
        for finding in &self.findings {
            let _ = writeln!(
                page,
                "\n### {}, {}\n\n{}\n\nAgain: `{}`",
                finding.place(),
                finding.kind.word(),
                fenced(&finding.message),
                finding.replay
            );
        }
        page
    }

    /// One test for everything that went well, and one per finding.
    pub(super) fn junit(&self) -> TestSuite {
        let mut suite = TestSuite::new("deep");
        suite.set_time(Duration::from_millis(self.millis));
        let mut all = TestCase::new("all", TestCaseStatus::success());
        all.set_classname("deep").set_system_out(self.markdown());
        suite.add_test_case(all);
        for finding in &self.findings {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(finding.message.lines().next().unwrap_or_default());
            status
                .set_type("failed")
                .set_description(format!("{}\nagain: {}", finding.message, finding.replay));
            let mut test = TestCase::new(format!("{} {}", finding.kind.word(), finding.seed), status);
            test.set_classname(finding.place());
            suite.add_test_case(test);
        }
        suite
    }
}

impl Finding {
    /// Where it was found.
    #[must_use]
    pub fn place(&self) -> &str {
        self.backend.as_deref().unwrap_or("all backends")
    }
}
