//! G7.

use ork_state_api::{Capability, Entity, Error, ErrorKind, Page};

use super::super::store::LESSER;
use super::super::{Answer, Call, Tamper};
use super::Fault;
use super::shapes::after;
use crate::Rule::G7;

pub(super) const FAULTS: &[Fault] = &[
    after! { G7, "payload-in-error", "tells the whole input in an error",
    |turn, Call::CreateWorkflow { new }, Answer::CreateWorkflow(Err(error))| {
        *error = error.clone().with_source(new.dag.to_json().as_str());
    }},
    after! { G7, "refused-but-begun", "has begun a cancellation that it refuses",
    |turn, Call::CancelRun { id }, Answer::CancelRun(Err(_))| {
        turn.model.edit_run(*id, |run| run.finished_at = Some(turn.now));
    }},
    after! { G7, "everything-internal", "fails with one kind of error for everything", |turn, answer| {
        if let Some(error) = answer.error() {
            *answer = turn.call.fails(Error::internal(error.to_string()));
        }
    }},
    after! { G7, "error-without-id", "does not say which run cannot be cancelled",
    |turn, Answer::CancelRun(Err(error))| {
        if let ErrorKind::InvalidTransition { from, to, .. } = error.kind() {
            *error = Error::invalid_transition(Entity::Run, "", from.clone(), to.clone());
        }
    }},
    after! { G7, "unknown-run-is-empty", "lists no tasks of a run that is not there",
        |turn, Answer::ListTasks(page @ Err(_))| *page = Ok(Page::new(vec![], None))
    },
    Fault::lesser(G7, "logs-after-all", "keeps logs though it opts out of them", &[Capability::Logs]),
    Fault::lesser(
        G7,
        "schedules-after-all",
        "fires schedules though it opts out of them",
        &[Capability::Schedules],
    ),
    Fault::lesser(
        G7,
        "jobs-after-all",
        "keeps deferred jobs though it opts out of them",
        &[Capability::DeferredJobs],
    ),
    Fault::lesser(
        G7,
        "hints-after-all",
        "gives hints though it opts out of them",
        &[Capability::Notifications],
    ),
    Fault {
        name: "refused-and-done",
        rule: G7,
        description: "says that it has no schedules, and sets them",
        tamper: Tamper {
            answer: |turn| {
                let answer = turn.honest();
                if let Call::SetSchedule { .. } = turn.call {
                    turn.model.answer(turn.now, turn.call.clone(), None);
                }
                answer
            },
            plugin: &LESSER,
            ..Tamper::NONE
        },
    },
];
