//! What a run of the suite found, for people and for programs.

mod deep;
mod html;
mod junit;
mod kill_matrix_html;
mod level;
mod markdown;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use level::Outcome;
pub use level::{Extension, ExtensionState, Level};

pub(crate) use html::count;

use crate::deep::DeepReport;
use crate::facts::Facts;
use crate::kill_matrix::KillMatrix;
use crate::run::{CaseReport, Verdict};
use crate::{Case, Rule};

/// The JSON Schema of [`Report::json`].
pub const REPORT_SCHEMA: &str = include_str!("report.schema.json");

/// What a run of the suite found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What ran, where and when.
    pub facts: Facts,
    /// The filter that left cases out, if there was one. Such a report says nothing about
    /// conformance.
    pub filter: Option<String>,
    /// The seed of all random choices.
    pub seed: u64,
    /// The total duration in milliseconds.
    pub millis: u64,
    /// The results of each backend, by name.
    pub backends: Vec<BackendReport>,
    /// The results of faults that were put into a store on purpose, if that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_matrix: Option<KillMatrix>,
    /// The results of a deep run, if there was one. No case runs in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deep: Option<DeepReport>,
}

/// What the suite found about one backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendReport {
    /// The plugin's name.
    pub name: String,
    /// The crate it comes from, if it is linked.
    pub package: Option<String>,
    /// Where its stores came from, such as which server.
    pub origin: Option<String>,
    /// Its level.
    pub level: Level,
    /// Why no store was available, and how to fix it.
    pub unavailable: Option<String>,
    /// The extensions beyond the core.
    pub extensions: Vec<Extension>,
    /// Rules all of whose cases had nothing to check here, though the backend does not opt out of
    /// what they need.
    pub unchecked: Vec<Rule>,
    /// How many of the suite's cases did not run.
    pub left_out: usize,
    /// How many cases passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many were still running at the time limit.
    pub timed_out: usize,
    /// How many have nothing to check here.
    pub not_applicable: usize,
    /// How long it took from the first case's beginning to the last one's end, in milliseconds.
    pub millis: u64,
    /// Results by rule. A case is counted at every rule that it is about.
    pub rules: Vec<RuleReport>,
    /// Every case that ran, by name.
    pub cases: Vec<CaseReport>,
}

/// The results of the cases about one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// The rule.
    pub rule: Rule,
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many were still running at the time limit.
    pub timed_out: usize,
    /// How many have nothing to check here.
    pub not_applicable: usize,
    /// The sum of their durations, in milliseconds.
    pub millis: u64,
}

impl RuleReport {
    fn of<'a>(rule: Rule, cases: impl Iterator<Item = &'a CaseReport>) -> Self {
        let mut sum = Self { rule, passed: 0, failed: 0, timed_out: 0, not_applicable: 0, millis: 0 };
        for case in cases {
            match case.verdict {
                Verdict::Passed => sum.passed += 1,
                Verdict::Failed { .. } => sum.failed += 1,
                Verdict::TimedOut { .. } => sum.timed_out += 1,
                Verdict::NotApplicable { .. } => sum.not_applicable += 1,
            }
            sum.millis += case.millis;
        }
        sum
    }

    /// `3/3`: how many passed of those that apply; empty where none does.
    fn tally(&self) -> String {
        match self.passed + self.failed + self.timed_out {
            0 => String::new(),
            applied => format!("{}/{applied}", self.passed),
        }
    }
}

/// The command that runs a case again, by backend, case and seed.
pub type Replay = fn(backend: &str, case: &str, seed: u64) -> String;

impl BackendReport {
    /// The report of these cases, which took this many milliseconds. They are compared with all
    /// linked cases: if one is missing, there is no level.
    #[must_use]
    pub fn new(backend: &str, origin: Option<String>, mut cases: Vec<CaseReport>, millis: u64) -> Self {
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        let linked = crate::linked(backend).ok();
        let Outcome { level, extensions, unchecked, left_out } = Outcome::of(linked, &Case::all(), &cases);
        let count = |wanted: fn(&Verdict) -> bool| cases.iter().filter(|case| wanted(&case.verdict)).count();
        let about = |rule| cases.iter().filter(move |case: &&CaseReport| case.rules.contains(&rule));
        Self {
            name: backend.to_owned(),
            package: linked.map(|backend| backend.package.to_owned()),
            origin,
            level,
            unavailable: None,
            extensions,
            unchecked,
            left_out,
            passed: count(|verdict| *verdict == Verdict::Passed),
            failed: count(|verdict| matches!(verdict, Verdict::Failed { .. })),
            timed_out: count(|verdict| matches!(verdict, Verdict::TimedOut { .. })),
            not_applicable: count(|verdict| matches!(verdict, Verdict::NotApplicable { .. })),
            millis,
            rules: Rule::ALL.iter().map(|rule| RuleReport::of(*rule, about(*rule))).collect(),
            cases,
        }
    }

    /// The report of a backend without stores.
    #[must_use]
    pub fn unavailable(backend: &str, reason: String) -> Self {
        Self { level: Level::Unavailable, unavailable: Some(reason), ..Self::new(backend, None, vec![], 0) }
    }

    /// Why cases had nothing to check, each with its cases.
    fn reasons(&self) -> BTreeMap<&str, Vec<&CaseReport>> {
        let mut reasons: BTreeMap<&str, Vec<&CaseReport>> = BTreeMap::new();
        for case in &self.cases {
            if let Verdict::NotApplicable { reason } = &case.verdict {
                reasons.entry(reason).or_default().push(case);
            }
        }
        reasons
    }

    /// The level in one line, with what was not checked: `Core + task logs (not checked: G8)`.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut summary = self.level.word().to_owned();
        if self.level == Level::Core {
            let passed = self.extensions.iter().filter(|it| it.state == ExtensionState::Passed);
            for extension in passed {
                summary += " + ";
                summary += &extension.name;
            }
        }
        if self.level.is_conformant() && !self.unchecked.is_empty() {
            let rules: Vec<String> = self.unchecked.iter().map(ToString::to_string).collect();
            summary += &format!(" (not checked: {})", rules.join(", "));
        }
        if self.level == Level::Incomplete {
            summary += &format!(" ({} left out)", count(self.left_out, "case"));
        }
        if self.level == Level::TimedOut {
            summary += &format!(" ({})", count(self.timed_out, "case"));
        }
        summary
    }
}

impl Report {
    /// The report of a deep run, with the facts from its start. No case runs in it.
    #[must_use]
    pub const fn of_deep_run(facts: Facts, deep: DeepReport) -> Self {
        let (seed, millis) = (deep.seed, deep.millis);
        Self { facts, filter: None, seed, millis, backends: vec![], kill_matrix: None, deep: Some(deep) }
    }

    /// Whether something ran and nothing was found. Every backend did what it should in all cases
    /// that ran, and in time. Every fault was noticed, and a deep run went well. This is not a
    /// level: see [`BackendReport::level`].
    #[must_use]
    pub fn is_good(&self) -> bool {
        let ran = !self.backends.is_empty() || self.deep.as_ref().is_some_and(DeepReport::did_something);
        ran && self.backends.iter().all(|it| !matches!(it.level, Level::NotConformant | Level::TimedOut))
            && self.kill_matrix.iter().all(|matrix| matrix.survivors().next().is_none())
            && self.deep.iter().all(|deep| deep.findings.is_empty())
    }

    /// Writes `report.json`, `report.md`, `junit.xml` and `report.html` into a directory, which is
    /// created.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, directory: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("report.json"), self.json()?)?;
        std::fs::write(directory.join("report.md"), self.markdown())?;
        std::fs::write(directory.join("junit.xml"), self.junit().map_err(std::io::Error::other)?)?;
        std::fs::write(directory.join("report.html"), self.html())
    }

    /// The report as JSON, as [`REPORT_SCHEMA`] describes it.
    ///
    /// # Errors
    /// None that is known: JSON can express everything in a report.
    pub fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads what [`json`](Self::json) wrote.
    ///
    /// # Errors
    /// If the text is not such a report.
    pub fn from_json(json: &str) -> serde_json::Result<Self> {
        serde_json::from_str(json)
    }
}

impl CaseReport {
    /// Whether it belongs to the core, which means that it needs nothing that a backend may opt out
    /// of.
    #[must_use]
    pub fn is_core(&self) -> bool {
        self.needs.is_empty() && self.without.is_none()
    }

    /// Adds the command that runs the case again, if it did not end well.
    #[must_use]
    pub(crate) fn with_replay(mut self, replay: impl FnOnce(&str) -> String) -> Self {
        if self.verdict.problem().is_some() {
            self.replay = Some(replay(&self.name));
        }
        self
    }
}

/// A duration for people to read.
fn duration(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        _ => format!("{} min {} s", millis / 60_000, millis % 60_000 / 1_000),
    }
}
