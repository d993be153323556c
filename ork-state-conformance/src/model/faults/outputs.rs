//! L1.

use std::collections::BTreeMap;

use ork_state_api::{ErrorKind, limits};

use super::super::{Answer, Call};
use super::Fault;
use super::shapes::{after, before};
use crate::Rule::L1;

pub(super) const FAULTS: &[Fault] = &[
    after! { L1, "unknown-as-none", "tells names that the run does not have as tasks without output",
    |turn, Call::TaskOutputs { names, .. }, Answer::TaskOutputs(Ok(outputs))| {
        for name in names {
            outputs.entry(name.clone()).or_default();
        }
    }},
    after! { L1, "without-output-left-out", "leaves tasks without output out",
        |turn, Answer::TaskOutputs(Ok(outputs))| outputs.retain(|_, output| output.is_some())
    },
    before! { L1, "outputs-of-any-run", "tells the outputs of another run",
        |turn, Call::TaskOutputs { run, .. }| *run = turn.model.tasks.keys().next().copied().unwrap_or(*run)
    },
    before! { L1, "first-name-only", "tells the output of the first of several names",
        |turn, Call::TaskOutputs { names, .. }| names.truncate(1)
    },
    after! { L1, "no-run-no-outputs", "tells no outputs of a run that is not there",
    |turn, Answer::TaskOutputs(outputs)| {
        if outputs.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound { .. })) {
            *outputs = Ok(BTreeMap::new());
        }
    }},
    before! { L1, "names-without-end", "takes more names than the limit",
        |turn, Call::TaskOutputs { names, .. }| names.truncate(limits::MAX_BATCH_ITEMS)
    },
];
