//! What a backend comes to. Computed from the cases, never claimed.

use ork_state_api::Capability;
use ork_state_api::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::run::{CaseReport, Verdict};
use crate::{Case, Rule};

/// What a backend comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Core and every extension.
    Full,
    /// Every case that needs no capability passed, and so did those of all extensions that the
    /// backend does not opt out of.
    Core,
    /// A case failed, or there was nothing that passed.
    NotConformant,
    /// A case was still running at its time limit, and none failed: what is slow here is not known.
    TimedOut,
    /// Cases were left out; those that ran passed.
    Incomplete,
    /// No store could be had: nothing is known.
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

/// What there is beyond the core: one a [`Capability`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// The capability.
    pub name: String,
    /// What it comes to.
    pub state: ExtensionState,
    /// How many of its cases passed.
    pub passed: usize,
    /// How many of its cases apply.
    pub applied: usize,
}

/// What an extension comes to.
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
    /// Cases of it were left out, or none applies: nothing is known.
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

/// What a backend's cases come to.
pub(super) struct Outcome {
    pub(super) level: Level,
    pub(super) extensions: Vec<Extension>,
    /// Rules that no case checked although the backend does not opt out of them.
    pub(super) unchecked: Vec<Rule>,
    /// How many of the suite's cases did not run.
    pub(super) left_out: usize,
}

impl Outcome {
    /// Of all cases that are linked in, those that ran ended like this. `None` is a backend that is
    /// not linked.
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
            // Whoever showed nothing has shown nothing.
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

/// The rules all of whose cases had nothing to check, not only because the backend opts out of
/// something.
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
