//! The report as a Markdown page.

use std::fmt::Write as _;

use super::{BackendReport, ExtensionState, Report, duration};
use crate::Rule;
use crate::kill_matrix::{FaultReport, KillMatrix};

impl Report {
    /// The report as a Markdown page. It has a table of backends, a table of rules by backend,
    /// failures, cases with nothing to check, and the cases' notes.
    #[must_use]
    pub fn markdown(&self) -> String {
        let facts = &self.facts;
        let mut page = format!(
            "# Conformance report\n\nSuite {}, API {}, seed {}, {}, {}. {} on {} {}, {} threads.\n\n",
            facts.suite,
            facts.api,
            self.seed,
            facts.started,
            duration(self.millis),
            facts.rustc,
            facts.os,
            facts.arch,
            facts.cores,
        );
        if let Some(filter) = &self.filter {
            // Writing to a String cannot fail, here and below.
            let _ =
                writeln!(page, "Only cases that match `{filter}`: this says nothing about conformance.\n");
        }
        if self.backends.is_empty() {
            page += "No case ran: this says nothing about conformance.\n";
        } else {
            page += &self.cases();
        }
        if let Some(deep) = &self.deep {
            page += &deep.markdown();
        }
        page
    }

    fn cases(&self) -> String {
        let mut page = "| backend | level | passed | failed | timed out | not applicable | time | opts out of | origin |\n|---|---|--:|--:|--:|--:|--:|---|---|\n".to_owned();
        for backend in &self.backends {
            page += &backend_row(backend);
        }
        page += &self.rules_table();
        for backend in &self.backends {
            page += &details(backend);
        }
        if let Some(matrix) = &self.kill_matrix {
            page += &kill_matrix(matrix);
        }
        page
    }

    fn rules_table(&self) -> String {
        let mut table = "\n## Rules\n\nPassed of the cases that apply.\n\n| rule |".to_owned();
        for backend in &self.backends {
            let _ = write!(table, " {} |", backend.name);
        }
        table += "\n|---|";
        table += &"---|".repeat(self.backends.len());
        table += "\n";
        for rule in Rule::ALL {
            let _ = write!(table, "| {rule} {} |", rule.title());
            for backend in &self.backends {
                let Some(tally) = backend.rules.iter().find(|tally| tally.rule == *rule) else { continue };
                let _ = match tally.failed + tally.timed_out {
                    0 => write!(table, " {} |", tally.tally()),
                    _ => write!(table, " **{}** |", tally.tally()),
                };
            }
            table += "\n";
        }
        table
    }
}

fn backend_row(backend: &BackendReport) -> String {
    let lacks: Vec<String> = backend
        .extensions
        .iter()
        .filter(|it| matches!(it.state, ExtensionState::OptedOut | ExtensionState::Refused))
        .map(|it| it.name.clone())
        .collect();
    let BackendReport { name, passed, failed, timed_out, not_applicable, .. } = backend;
    format!(
        "| {name} | {} | {passed} | {failed} | {timed_out} | {not_applicable} | {} | {} | {} |\n",
        cell(&backend.summary()),
        duration(backend.millis),
        lacks.join(", "),
        cell(backend.origin.as_deref().unwrap_or("")),
    )
}

fn details(backend: &BackendReport) -> String {
    let (name, mut text) = (&backend.name, String::new());
    if let Some(reason) = &backend.unavailable {
        let _ = writeln!(text, "\n## {name}: unavailable\n\n{}", fenced(reason));
    }
    for case in &backend.cases {
        if let Some(problem) = case.verdict.problem() {
            let word = case.verdict.word();
            let _ = writeln!(text, "\n## {name}: {} {word}\n\n{}", case.name, fenced(&problem));
            if let Some(replay) = &case.replay {
                let _ = writeln!(text, "\nAgain: `{replay}`");
            }
        }
    }
    let reasons = backend.reasons();
    if !reasons.is_empty() {
        let _ = writeln!(text, "\n## {name}: not applicable\n");
        for (reason, cases) in reasons {
            let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
            let _ = writeln!(text, "- {}: {}", line(reason), names.join(", "));
        }
    }
    if backend.cases.iter().any(|case| !case.notes.is_empty()) {
        let _ = writeln!(text, "\n## {name}: notes\n");
        for case in &backend.cases {
            for note in &case.notes {
                let _ = writeln!(text, "- {}: {}", case.name, line(note));
            }
        }
    }
    text
}

fn kill_matrix(matrix: &KillMatrix) -> String {
    let mut text = format!(
        "\n## Faults\n\nPut into {} on purpose, seed {}: {}.\n\n| fault | rule | what it does | caught by |\n|---|---|---|---|\n",
        matrix.backend,
        matrix.seed,
        matrix.summary()
    );
    let (survivors, caught): (Vec<_>, Vec<_>) = matrix.faults.iter().partition(|fault| fault.survived);
    for fault in survivors.into_iter().chain(caught) {
        let FaultReport { name, rule, description, caught_by, survived } = fault;
        let by = match (survived, caught_by.as_slice()) {
            (true, _) => "**survived**".to_owned(),
            (false, [only]) => only.clone(),
            (false, [first, ..]) => format!("{} cases, such as {first}", caught_by.len()),
            (false, []) => String::new(),
        };
        let _ = writeln!(text, "| {name} | {rule} | {} | {by} |", cell(description));
    }
    if !matrix.idle_cases.is_empty() {
        let _ = writeln!(text, "\nCaught nothing: {}.", matrix.idle_cases.join(", "));
    }
    text
}

/// A fenced block that no text can end early.
pub(super) fn fenced(text: &str) -> String {
    let mut fence = "```".to_owned();
    while text.contains(&fence) {
        fence.push('`');
    }
    format!("{fence}text\n{text}\n{fence}")
}

fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn cell(text: &str) -> String {
    line(text).replace('|', "\\|")
}
