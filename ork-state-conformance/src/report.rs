//! What a run of the suite found, for people and for programs.

use std::fmt::Write as _;
use std::path::Path;

use ork_state_api::Capability;
use serde::Serialize;

use crate::{CaseReport, Rule, Verdict};

/// What a run of the suite found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The suite's version.
    pub suite: &'static str,
    /// What was left out by a filter, if there was one: such a report says nothing about conformance.
    pub filter: Option<String>,
    /// The seed of what was left to chance.
    pub seed: u64,
    /// A part a backend, by name.
    pub backends: Vec<BackendReport>,
}

/// What the suite found about one backend.
#[derive(Debug, Clone, Serialize)]
pub struct BackendReport {
    /// The plugin's name.
    pub name: &'static str,
    /// How its stores were had, such as which server.
    pub origin: Option<String>,
    /// What it opts out of.
    pub lacks: Vec<String>,
    /// What it comes to.
    pub level: Level,
    /// How many cases passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many have nothing to check here.
    pub not_applicable: usize,
    /// Every case that was to run.
    pub cases: Vec<CaseReport>,
}

/// What a backend comes to. Computed from the cases, never claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Every case that applies passed, and none was left out.
    Conformant,
    /// A case failed.
    NotConformant,
    /// Some cases were left out by a filter; those that ran passed.
    Incomplete,
    /// No store could be had: nothing is known.
    Unavailable {
        /// Why, and how to mend it.
        reason: String,
    },
}

impl BackendReport {
    /// The report of these cases.
    #[must_use]
    pub fn new(
        backend: &'static str,
        origin: Option<String>,
        filtered: bool,
        cases: Vec<CaseReport>,
    ) -> Self {
        let number = |wanted: fn(&Verdict) -> bool| cases.iter().filter(|case| wanted(&case.verdict)).count();
        let passed = number(|verdict| *verdict == Verdict::Passed);
        let failed = number(|verdict| matches!(verdict, Verdict::Failed { .. }));
        let not_applicable = number(|verdict| matches!(verdict, Verdict::NotApplicable { .. }));
        let level = match (failed, passed, filtered) {
            (1.., _, _) => Level::NotConformant,
            // A backend that nothing was seen of has shown nothing.
            (0, 0, false) => Level::NotConformant,
            (0, _, true) if cases.is_empty() => Level::NotConformant,
            (0, _, true) => Level::Incomplete,
            (0, _, false) => Level::Conformant,
        };
        let lacks = crate::linked(backend).map_or_else(
            |_| Vec::new(),
            |backend| {
                let lacking =
                    Capability::ALL.iter().filter(|capability| !backend.capabilities.has(**capability));
                lacking.map(ToString::to_string).collect()
            },
        );
        Self { name: backend, origin, lacks, level, passed, failed, not_applicable, cases }
    }

    /// The report of a backend whose stores cannot be had.
    #[must_use]
    pub fn unavailable(backend: &'static str, reason: String) -> Self {
        let level = Level::Unavailable { reason };
        Self {
            name: backend,
            origin: None,
            lacks: vec![],
            level,
            passed: 0,
            failed: 0,
            not_applicable: 0,
            cases: vec![],
        }
    }
}

impl Report {
    /// Whether every backend did what it should, in all cases that ran.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.backends.is_empty() && self.backends.iter().all(|backend| backend.level != Level::NotConformant)
    }

    /// Writes `report.json` and `report.md` into a directory, which is made.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, directory: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("report.json"), serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::write(directory.join("report.md"), self.markdown())
    }

    /// The report as a Markdown page: a table of backends, a table of rules by backends, what failed,
    /// and what cases had to say.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut page = format!("# Conformance report\n\nSuite {}, seed {}.\n\n", self.suite, self.seed);
        if let Some(filter) = &self.filter {
            // Writing to a String cannot fail, here and below.
            let _ =
                writeln!(page, "Only cases that match `{filter}`: this says nothing about conformance.\n");
        }
        page += "| backend | result | passed | failed | not applicable | opts out of | origin |\n|---|---|--:|--:|--:|---|---|\n";
        for backend in &self.backends {
            let (level, lacks) = (backend.level.word(), backend.lacks.join(", "));
            let origin = backend.origin.as_deref().unwrap_or("");
            let BackendReport { name, passed, failed, not_applicable, .. } = backend;
            let _ = writeln!(
                page,
                "| {name} | {level} | {passed} | {failed} | {not_applicable} | {lacks} | {origin} |"
            );
        }
        page += "\n## Rules\n\nPassed of the cases that apply.\n\n| rule |";
        for backend in &self.backends {
            let _ = write!(page, " {} |", backend.name);
        }
        page += "\n|---|";
        page += &"---|".repeat(self.backends.len());
        page += "\n";
        for rule in Rule::ALL {
            let _ = write!(page, "| {rule} {} |", rule.title());
            for backend in &self.backends {
                let _ = write!(page, " {} |", backend.tally(*rule));
            }
            page += "\n";
        }
        for backend in &self.backends {
            if let Level::Unavailable { reason } = &backend.level {
                let _ = writeln!(page, "\n## {}: unavailable\n\n```text\n{reason}\n```", backend.name);
            }
            for case in &backend.cases {
                if let Verdict::Failed { message } = &case.verdict {
                    let _ = writeln!(
                        page,
                        "\n## {}: {} failed\n\n```text\n{message}\n```",
                        backend.name, case.name
                    );
                }
            }
        }
        let notes = self.backends.iter().flat_map(|backend| {
            let said =
                backend.cases.iter().flat_map(|case| case.notes.iter().map(move |note| (case.name, note)));
            said.map(move |(case, note)| format!("- {}, {case}: {note}\n", backend.name))
        });
        let notes: String = notes.collect();
        if !notes.is_empty() {
            page += "\n## Notes\n\n";
            page += &notes;
        }
        page
    }
}

impl BackendReport {
    /// `3/3` for a rule, or nothing where no case of it applied.
    fn tally(&self, rule: Rule) -> String {
        let about = self.cases.iter().filter(|case| case.rules.contains(&rule));
        let applied: Vec<bool> = about
            .filter(|case| !matches!(case.verdict, Verdict::NotApplicable { .. }))
            .map(|case| case.verdict == Verdict::Passed)
            .collect();
        match (applied.iter().filter(|passed| **passed).count(), applied.len()) {
            (_, 0) => String::new(),
            (passed, all) if passed < all => format!("**{passed}/{all}**"),
            (passed, all) => format!("{passed}/{all}"),
        }
    }
}

impl Level {
    /// The level as a word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Conformant => "conformant",
            Self::NotConformant => "NOT CONFORMANT",
            Self::Incomplete => "incomplete",
            Self::Unavailable { .. } => "UNAVAILABLE",
        }
    }
}
