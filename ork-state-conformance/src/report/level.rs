//! The level of a backend. Computed from the cases, never claimed.

use ork_state_api::Capability;
use ork_state_api::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::run::{CaseReport, Verdict};
use crate::{Case, Rule};

/// The level of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The core and every extension.
    Full,
    /// Every case that needs no capability passed. So did those of all extensions that the backend
    /// does not opt out of.
    Core,
    /// A case failed, or none passed.
    NotConformant,
    /// A case was still running at its time limit, and none failed. Whatever was slow remains
    /// unknown.
    TimedOut,
    /// Cases were left out. Those that ran passed.
    Incomplete,
    /// No store was available, so nothing is known.
    Unavailable,
}

impl Level {
    /// The level as a word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Full => "Full",
            Self::Core => "Core",
            Self::NotConformant => "NOT CONFORMANT",
            Self::TimedOut => "timed out",
            Self::Incomplete => "incomplete",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    /// Whether it is a level at all.
    #[must_use]
    pub const fn is_conformant(self) -> bool {
        matches!(self, Self::Full | Self::Core)
    }
}

/// A part beyond the core: one per [`Capability`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// The capability.
    pub name: String,
    /// The result.
    pub state: ExtensionState,
    /// How many of its cases passed.
    pub passed: usize,
    /// How many of its cases apply.
    pub applied: usize,
}

/// The result of an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtensionState {
    /// Its cases passed.
    Passed,
    /// One of its cases failed.
    Failed,
    /// The backend opts out of it, and a case has seen its methods refused.
    Refused,
    /// The backend opts out of it. Where it has methods, no case has seen them refused.
    OptedOut,
    /// Its cases were left out, or none applies, so nothing is known.
    Unproven,
}

impl ExtensionState {
    /// The state in a few words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Refused => "opted out, refused as it must be",
            Self::OptedOut => "opted out",
            Self::Unproven => "unproven",
        }
    }
}

/// The result of a backend's cases.
pub(super) struct Outcome {
    pub(super) level: Level,
    pub(super) extensions: Vec<Extension>,
    /// Rules that no case checked although the backend does not opt out of them.
    pub(super) unchecked: Vec<Rule>,
    /// How many of the suite's cases did not run.
    pub(super) left_out: usize,
}

impl Outcome {
    /// The outcome of the cases that ran, out of all linked cases. `None` is a backend that is not
    /// linked.
    pub(super) fn of(backend: Option<&Backend>, required: &[&Case], ran: &[CaseReport]) -> Self {
        let is_there = |case: &&&Case| ran.iter().any(|report| report.name == case.name);
        let left_out = required.len() - required.iter().filter(is_there).count();
        let extensions: Vec<Extension> = Capability::ALL
            .iter()
            .map(|capability| {
                let all = required.iter().filter(|case| case.needs.contains(capability)).count();
                extension(*capability, backend.is_some_and(|it| it.capabilities.has(*capability)), all, ran)
            })
            .collect();
        let core_passed = ran.iter().any(|case| case.is_core() && case.verdict == Verdict::Passed);
        let level = if ran.iter().any(|case| matches!(case.verdict, Verdict::Failed { .. })) || ran.is_empty()
        {
            Level::NotConformant
        } else if ran.iter().any(|case| matches!(case.verdict, Verdict::TimedOut { .. })) {
            Level::TimedOut
        } else if left_out > 0 {
            Level::Incomplete
        } else if !core_passed {
            // If no core case passed, nothing was shown.
            Level::NotConformant
        } else if extensions.iter().all(|extension| extension.state == ExtensionState::Passed) {
            Level::Full
        } else {
            Level::Core
        };
        Self { level, extensions, unchecked: unchecked(backend, ran), left_out }
    }
}

fn extension(capability: Capability, is_claimed: bool, all: usize, ran: &[CaseReport]) -> Extension {
    let name = capability.to_string();
    let own: Vec<&CaseReport> = ran.iter().filter(|case| case.needs.contains(&name)).collect();
    let number = |wanted: fn(&Verdict) -> bool| own.iter().filter(|case| wanted(&case.verdict)).count();
    let passed = number(|verdict| *verdict == Verdict::Passed);
    let failed = number(|verdict| matches!(verdict, Verdict::Failed { .. }));
    let is_refused = ran
        .iter()
        .any(|case| case.without.as_deref() == Some(name.as_str()) && case.verdict == Verdict::Passed);
    let state = match (failed, passed) {
        (1.., _) => ExtensionState::Failed,
        _ if !is_claimed && is_refused => ExtensionState::Refused,
        _ if !is_claimed => ExtensionState::OptedOut,
        (0, 1..) if own.len() == all => ExtensionState::Passed,
        _ => ExtensionState::Unproven,
    };
    Extension { name, state, passed, applied: passed + failed }
}

/// The rules all of whose cases had nothing to check, for another reason than that the backend opts
/// out.
fn unchecked(backend: Option<&Backend>, ran: &[CaseReport]) -> Vec<Rule> {
    let has = |name: &String| {
        let capability = Capability::ALL.iter().find(|capability| capability.to_string() == *name);
        capability.is_some_and(|capability| backend.is_some_and(|it| it.capabilities.has(*capability)))
    };
    let is_checked = |case: &CaseReport| !matches!(case.verdict, Verdict::NotApplicable { .. });
    let is_meant = |case: &CaseReport| case.needs.iter().all(has) && !case.without.as_ref().is_some_and(has);
    let wanted = |rule: &&Rule| {
        let mut about = ran.iter().filter(|case| case.rules.contains(rule));
        about.clone().all(|case| !is_checked(case)) && about.any(is_meant)
    };
    Rule::ALL.iter().filter(wanted).copied().collect()
}
