//! The kill matrix as a part of the HTML page.

use maud::{Markup, html};

use super::html::{count, name};

use crate::Rule;
use crate::kill_matrix::{FaultReport, KillMatrix};

impl KillMatrix {
    /// The faults by the rules that they break. Those that no case noticed come first.
    pub(super) fn html(&self) -> Markup {
        let survivors: Vec<&FaultReport> = self.survivors().collect();
        let of = |rule: Rule| self.faults.iter().filter(move |fault| fault.rule == rule && !fault.survived);
        html! {
            section {
                h2 { "Faults" }
                p.hint {
                    "The suite, tested: " (self.backend) " was broken on purpose, one fault at a time, seed " code { (self.seed) } ". "
                    (self.summary()) "."
                }
                @if !survivors.is_empty() {
                    h3 { "Survived " span.count { (survivors.len()) } }
                    ul.faults { @for fault in survivors { li.failed { (told(fault)) } } }
                }
                @for rule in Rule::ALL {
                    @if of(*rule).next().is_some() {
                        h3 { (rule) " " span.title { (rule.title()) } }
                        ul.faults { @for fault in of(*rule) { li { (told(fault)) } } }
                    }
                }
                @if !self.idle_cases.is_empty() {
                    details {
                        summary { "Cases that caught nothing " span.count { (self.idle_cases.len()) } }
                        ul.names { @for case in &self.idle_cases { li { (name(case)) } } }
                    }
                }
            }
        }
    }
}

fn told(fault: &FaultReport) -> Markup {
    let FaultReport { name: fault, rule, description, caught_by, survived } = fault;
    html! {
        p { @if *survived { b { (rule) } " " } code { (fault) } " " (description) }
        @if *survived { p.verdict { "✗ no case noticed it" } }
        @else {
            details {
                summary { "✓ caught by " (count(caught_by.len(), "case")) }
                ul.names { @for case in caught_by { li { (name(case)) } } }
            }
        }
    }
}
