//! The report as one HTML page that needs nothing else: no network, no other file. Its short script
//! only folds sections.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{BackendReport, Extension, ExtensionState, Level, Report, RuleReport, duration};
use crate::Rule;
use crate::facts::Facts;
use crate::run::{CaseReport, Verdict};

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
/// How many of the slowest cases are shown.
const SLOWEST: usize = 12;

impl Report {
    /// The report as one self-contained HTML page.
    #[must_use]
    pub fn html(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { "Conformance report, " (date(&self.facts)) }
                    style { (PreEscaped(STYLE)) }
                    noscript { style { "tr.case[hidden] { display: table-row } .folding { display: none }" } }
                }
                body {
                    (self.header())
                    main {
                        @if !self.backends.is_empty() {
                            section.cards aria-label="Backends" { @for backend in &self.backends { (card(backend)) } }
                            (self.failures())
                            @if let Some(matrix) = &self.kill_matrix {
                                @if matrix.survivors().next().is_some() { (matrix.html()) }
                            }
                            (self.matrix())
                            (self.slowest())
                            (self.not_applicable())
                            @if let Some(matrix) = &self.kill_matrix {
                                @if matrix.survivors().next().is_none() { (matrix.html()) }
                            }
                        }
                        @if let Some(deep) = &self.deep { (deep.html()) }
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }

    fn header(&self) -> Markup {
        let Facts { suite, api, rustc, os, arch, cores, started } = &self.facts;
        html! {
            header {
                h1 { "Conformance report" }
                @if self.backends.is_empty() {
                    p.lead { @if self.deep.is_some() { "A deep run" } @else { "Nothing ran" } }
                    p.banner { "No case ran: this says nothing about conformance." }
                } @else {
                    p.lead { (self.lead()) }
                }
                @if let Some(filter) = &self.filter {
                    p.banner { "Only cases that match " code { (filter) } " ran: this says nothing about conformance." }
                } @else if self.is_part() {
                    p.banner { "Cases were left out, such as heavy ones: this says nothing about conformance." }
                }
                dl.facts {
                    div { dt { "Began" } dd { time datetime=(started) { (date(&self.facts)) } } }
                    div { dt { "Took" } dd { (duration(self.millis)) } }
                    div { dt { "Seed" } dd { code { (self.seed) } } }
                    div { dt { "Suite" } dd { (suite) } }
                    div { dt { "API" } dd { (api) } }
                    div { dt { "Compiler" } dd { (rustc) } }
                    div { dt { "Machine" } dd { (os) " " (arch) ", " (count(*cores, "thread")) } }
                }
            }
        }
    }

    /// Whether cases were left out although stores were available.
    fn is_part(&self) -> bool {
        self.filter.is_some() || self.backends.iter().any(|it| it.unavailable.is_none() && it.left_out > 0)
    }

    /// The summary. A part of the suite says nothing about conformance.
    fn lead(&self) -> String {
        let backends = count(self.backends.len(), "backend");
        if !self.is_part() {
            let conformant = self.backends.iter().filter(|backend| backend.level.is_conformant()).count();
            return format!("{conformant} of {backends} conformant");
        }
        let sum = |of: fn(&BackendReport) -> usize| self.backends.iter().map(of).sum::<usize>();
        let mut lead = format!("A part of the suite over {backends}: {} passed", sum(|it| it.passed));
        for (number, word) in [(sum(|it| it.failed), "failed"), (sum(|it| it.timed_out), "timed out")] {
            if number > 0 {
                lead += &format!(", {number} {word}");
            }
        }
        lead
    }

    fn failures(&self) -> Markup {
        let failed = self.backends.iter().flat_map(|backend| {
            let problems = backend.cases.iter().filter_map(|case| Some((case, case.verdict.problem()?)));
            problems.map(move |(case, problem)| (backend, case, problem))
        });
        let failed: Vec<_> = failed.collect();
        if failed.is_empty() {
            return html! {};
        }
        html! {
            section {
                h2 { "Failures " span.count { (failed.len()) } }
                @for (index, (backend, case, problem)) in failed.iter().enumerate() {
                    // A few failures are shown open. If there are many, only their names are.
                    details class={ "failure " (class(&case.verdict)) } open[index < 5] {
                        summary { b { (backend.name) } " " (name(&case.name)) " " b.word { (case.verdict.word()) } }
                        pre { (problem) }
                        @for note in &case.notes { p { (note) } }
                        @if let Some(replay) = &case.replay { (command(replay)) }
                    }
                }
            }
        }
    }

    fn matrix(&self) -> Markup {
        html! {
            section {
                div.bar {
                    h2 { "Rules" }
                    button.folding type="button" id="fold" aria-expanded="false" { "Show all cases" }
                }
                p.hint { "Passed of the cases that apply. A rule opens to its cases; a case about several rules is counted at each." }
                @if self.backends.len() > 2 { p.swipe aria-hidden="true" { "The table goes on to the right →" } }
                div.scroll tabindex="0" role="region" aria-label="Rules by backends" {
                    table.matrix {
                        thead { tr {
                            th scope="col" { "Rule" }
                            @for backend in &self.backends { th scope="col" { (backend.name) } }
                        } }
                        @for rule in Rule::ALL { (self.rule(*rule)) }
                    }
                }
            }
        }
    }

    /// A rule's row, and those of its cases.
    fn rule(&self, rule: Rule) -> Markup {
        let tallies: Vec<Option<&RuleReport>> =
            self.backends.iter().map(|it| it.rules.iter().find(|tally| tally.rule == rule)).collect();
        let is_open = tallies.iter().flatten().any(|tally| tally.failed + tally.timed_out > 0);
        let mut names: Vec<&str> = self
            .backends
            .iter()
            .flat_map(|backend| &backend.cases)
            .filter(|case| case.rules.contains(&rule))
            .map(|case| case.name.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        html! {
            tbody {
                tr.rule {
                    th scope="row" {
                        button type="button" aria-expanded=(is_open) { b { (rule) } " " (rule.title()) }
                    }
                    @for (backend, tally) in self.backends.iter().zip(&tallies) { (rule_cell(backend, *tally)) }
                }
                @for name in names { (self.case(name, is_open)) }
            }
        }
    }

    fn case(&self, name: &str, is_open: bool) -> Markup {
        let found: Vec<(&BackendReport, Option<&CaseReport>)> = self
            .backends
            .iter()
            .map(|backend| (backend, backend.cases.iter().find(|case| case.name == name)))
            .collect();
        html! {
            tr.case hidden[!is_open] {
                th scope="row" {
                    (self::name(name))
                    @for (backend, case) in &found { @if let Some(case) = case { (remarks(backend, case)) } }
                }
                @for (_, case) in &found { (case_cell(*case)) }
            }
        }
    }

    fn slowest(&self) -> Markup {
        let all = self.backends.iter().flat_map(|it| it.cases.iter().map(move |case| (it, case)));
        let mut all: Vec<(&BackendReport, &CaseReport)> = all.filter(|(_, case)| case.millis > 0).collect();
        all.sort_by_key(|(_, case)| std::cmp::Reverse(case.millis));
        all.truncate(SLOWEST);
        let Some(longest) = all.first().map(|(_, case)| case.millis) else { return html! {} };
        html! {
            section {
                h2 { "Slowest cases" }
                p.swipe aria-hidden="true" { "The table goes on to the right →" }
                div.scroll tabindex="0" role="region" aria-label="Slowest cases" {
                    table.slowest {
                        thead { tr { th scope="col" { "Case" } th scope="col" { "Backend" } th scope="col" { "Time" } } }
                        tbody { @for (backend, case) in all {
                            tr {
                                th scope="row" { (name(&case.name)) }
                                td { (backend.name) }
                                td { div.time {
                                    meter min="0" max=(longest) value=(case.millis) aria-hidden="true" {}
                                    (duration(case.millis))
                                } }
                            }
                        } }
                    }
                }
            }
        }
    }

    fn not_applicable(&self) -> Markup {
        if self.backends.iter().all(|backend| backend.not_applicable == 0) {
            return html! {};
        }
        html! {
            section {
                h2 { "Not applicable" }
                p.hint { "These cases had nothing to check. They count neither for nor against a backend." }
                @for backend in self.backends.iter().filter(|backend| backend.not_applicable > 0) {
                    h3 { (backend.name) " " span.count { (backend.not_applicable) } }
                    @for (reason, cases) in backend.reasons() {
                        details {
                            summary { (reason) " " span.count { (cases.len()) } }
                            ul.names { @for case in cases { li { (name(&case.name)) } } }
                        }
                    }
                }
            }
        }
    }
}

fn card(backend: &BackendReport) -> Markup {
    let class = match backend.level {
        Level::Full | Level::Core => "passed",
        Level::NotConformant => "failed",
        Level::TimedOut => "late",
        Level::Incomplete | Level::Unavailable => "unknown",
    };
    html! {
        article class={ "card " (class) } {
            h2 { (backend.name) }
            p.level { (backend.level.word()) }
            @if let Some(package) = &backend.package { p.hint { (package) } }
            @if let Some(origin) = &backend.origin { p.hint { (origin) } }
            @if let Some(reason) = &backend.unavailable { p { (reason) } }
            @else {
                div.stack aria-hidden="true" {
                    @for (class, number) in [("passed", backend.passed), ("failed", backend.failed), ("late", backend.timed_out), ("none", backend.not_applicable)] {
                        @if number > 0 { span class=(class) style={ "flex-grow:" (number) } {} }
                    }
                }
                p {
                    b { (backend.passed) } " passed, " b { (backend.failed) } " failed, "
                    @if backend.timed_out > 0 { b { (backend.timed_out) } " timed out, " }
                    b { (backend.not_applicable) } " not applicable, in " (duration(backend.millis))
                }
                @if backend.left_out > 0 { p { (count(backend.left_out, "case")) " left out" } }
                @if !backend.unchecked.is_empty() {
                    p.warning { "Not checked, for no case of it applies: " @for rule in &backend.unchecked { b { (rule) } " " (rule.title()) ". " } }
                }
                ul.extensions { @for it in &backend.extensions { (extension(it)) } }
            }
        }
    }
}

fn extension(extension: &Extension) -> Markup {
    let (class, mark) = match extension.state {
        ExtensionState::Passed => ("passed", "✓"),
        ExtensionState::Failed => ("failed", "✗"),
        ExtensionState::Refused | ExtensionState::OptedOut => ("none", "–"),
        ExtensionState::Unproven => ("none", "?"),
    };
    let Extension { name, state, passed, applied } = extension;
    html! {
        li class=(class) {
            span aria-hidden="true" { (mark) } " " (name) ": " (state.words())
            @if *applied > 0 { " " (passed) "/" (applied) }
        }
    }
}

fn rule_cell(backend: &BackendReport, tally: Option<&RuleReport>) -> Markup {
    let Some(RuleReport { passed, failed, timed_out, not_applicable, millis, .. }) = tally else {
        return html! { td.none {} };
    };
    let (class, mark) = match (failed, timed_out, passed) {
        (1.., ..) => ("failed", "✗ "),
        (0, 1.., _) => ("late", "⧗ "),
        (0, 0, 1..) => ("passed", "✓ "),
        (0, 0, 0) if backend.unchecked.iter().any(|rule| Some(*rule) == tally.map(|it| it.rule)) => {
            ("unknown", "! ")
        }
        (0, 0, 0) => ("none", ""),
    };
    let applied = passed + failed + timed_out;
    let said = format!(
        "{passed} passed, {failed} failed, {timed_out} timed out, {not_applicable} not applicable, {} of work",
        duration(*millis)
    );
    html! {
        td class=(class) title=(said) {
            @if applied > 0 { (mark) (passed) "/" (applied) }
            @else if *not_applicable > 0 { (mark) "n/a" }
            @else { span aria-label="no case ran" { "·" } }
        }
    }
}

fn case_cell(case: Option<&CaseReport>) -> Markup {
    let Some(case) = case else { return html! { td.none { span aria-label="did not run" { "·" } } } };
    match &case.verdict {
        Verdict::Passed => html! { td.passed { "✓ " span.sr { "passed, " } (duration(case.millis)) } },
        Verdict::Failed { .. } => html! { td.failed { "✗ " span.sr { "failed, " } (duration(case.millis)) } },
        Verdict::TimedOut { .. } => {
            html! { td.late { "⧗ " span.sr { "timed out, " } (duration(case.millis)) } }
        }
        Verdict::NotApplicable { reason } => html! { td.none title=(reason) { "n/a" } },
    }
}

/// The CSS class of a verdict.
const fn class(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed { .. } => "bad",
        Verdict::TimedOut { .. } => "late",
        Verdict::NotApplicable { .. } => "none",
    }
}

/// A case's name, which may break between words: after `::` and `_`.
pub(super) fn name(name: &str) -> Markup {
    html! {
        code.name {
            @for part in name.split_inclusive(['_', ':']) {
                (part) @if part.ends_with('_') || part == ":" { wbr; }
            }
        }
    }
}

/// Remarks about a case on a backend beyond its verdict.
fn remarks(backend: &BackendReport, case: &CaseReport) -> Markup {
    html! {
        @match &case.verdict {
            Verdict::Passed => {}
            Verdict::Failed { .. } | Verdict::TimedOut { .. } => {
                @let problem = case.verdict.problem().unwrap_or_default();
                p { b { (backend.name) } " " (problem.lines().next().unwrap_or_default()) }
                @if let Some(replay) = &case.replay { (command(replay)) }
            }
            Verdict::NotApplicable { reason } => { p { b { (backend.name) } " " (reason) } }
        }
        @for note in &case.notes { p { b { (backend.name) } " " (note) } }
    }
}

pub(super) fn command(command: &str) -> Markup {
    html! { pre.command tabindex="0" aria-label="the command that runs it again" { (command) } }
}

fn date(facts: &Facts) -> String {
    facts.started.to_chrono().format("%Y-%m-%d %H:%M UTC").to_string()
}

/// `1 case`, `2 cases`.
pub(crate) fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
