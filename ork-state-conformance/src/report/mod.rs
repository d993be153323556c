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
    /// What was left out by a filter, if there was one: such a report says nothing about
    /// conformance.
    pub filter: Option<String>,
    /// The seed of what was left to chance.
    pub seed: u64,
    /// How long all of it took, in milliseconds.
    pub millis: u64,
    /// A part a backend, by name.
    pub backends: Vec<BackendReport>,
    /// What became of faults that were put into a store on purpose, where that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_matrix: Option<KillMatrix>,
    /// What a deep run did and found, where there was one: no case runs in it.
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
    /// How its stores were had, such as which server.
    pub origin: Option<String>,
    /// What it comes to.
    pub level: Level,
    /// Why no store could be had, and how to mend it.
    pub unavailable: Option<String>,
    /// What there is beyond the core.
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
    /// The same by rule. A case is counted at every rule that it is about.
    pub rules: Vec<RuleReport>,
    /// Every case that ran, by name.
    pub cases: Vec<CaseReport>,
}

/// What became of the cases about one rule.
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
    /// How long they took, one after the other, in milliseconds.
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

    /// `3/3`: passed of those that apply, or nothing where none does.
    fn tally(&self) -> String {
        match self.passed + self.failed + self.timed_out {
            0 => String::new(),
            applied => format!("{}/{applied}", self.passed),
        }
    }
}

/// Says by which command a case is run again: of the backend, the case and the seed.
pub type Replay = fn(backend: &str, case: &str, seed: u64) -> String;

impl BackendReport {
    /// The report of these cases, which took so many milliseconds. They are held against all that
    /// are linked in: one that is missing leaves no level.
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

    /// The report of a backend whose stores cannot be had.
    #[must_use]
    pub fn unavailable(backend: &str, reason: String) -> Self {
        Self { level: Level::Unavailable, unavailable: Some(reason), ..Self::new(backend, None, vec![], 0) }
    }

    /// Why cases had nothing to check, and which.
    fn reasons(&self) -> BTreeMap<&str, Vec<&CaseReport>> {
        let mut reasons: BTreeMap<&str, Vec<&CaseReport>> = BTreeMap::new();
        for case in &self.cases {
            if let Verdict::NotApplicable { reason } = &case.verdict {
                reasons.entry(reason).or_default().push(case);
            }
        }
        reasons
    }

    /// The level in one line, with what it does not say of itself: `Core + task logs (not checked:
    /// G8)`.
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
    /// The report of a deep run, in which no case runs, with the facts of its beginning.
    #[must_use]
    pub const fn of_deep_run(facts: Facts, deep: DeepReport) -> Self {
        let (seed, millis) = (deep.seed, deep.millis);
        Self { facts, filter: None, seed, millis, backends: vec![], kill_matrix: None, deep: Some(deep) }
    }

    /// Whether there was something to find and nothing was found: every backend did what it should
    /// in all cases that ran, and in time, every fault was noticed, and a deep run went well. This
    /// is not a level: see [`BackendReport::level`].
    #[must_use]
    pub fn is_good(&self) -> bool {
        let ran = !self.backends.is_empty() || self.deep.as_ref().is_some_and(DeepReport::did_something);
        ran && self.backends.iter().all(|it| !matches!(it.level, Level::NotConformant | Level::TimedOut))
            && self.kill_matrix.iter().all(|matrix| matrix.survivors().next().is_none())
            && self.deep.iter().all(|deep| deep.findings.is_empty())
    }

    /// Writes `report.json`, `report.md`, `junit.xml` and `report.html` into a directory, which is
    /// made.
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
    /// None that is known: there is nothing in a report that JSON cannot say.
    pub fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads what [`json`](Self::json) wrote.
    ///
    /// # Errors
    /// Where the text is no such report.
    pub fn from_json(json: &str) -> serde_json::Result<Self> {
        serde_json::from_str(json)
    }
}

impl CaseReport {
    /// Whether it belongs to the core: it needs nothing that a backend may opt out of.
    #[must_use]
    pub fn is_core(&self) -> bool {
        self.needs.is_empty() && self.without.is_none()
    }

    /// Says how the case is run again, if it did not end well.
    #[must_use]
    pub(crate) fn with_replay(mut self, replay: impl FnOnce(&str) -> String) -> Self {
        if self.verdict.problem().is_some() {
            self.replay = Some(replay(&self.name));
        }
        self
    }
}

/// A duration as a person reads it.
fn duration(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        _ => format!("{} min {} s", millis / 60_000, millis % 60_000 / 1_000),
    }
}
