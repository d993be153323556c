//! G2.

use ork_state_api::{Json, RunStatus, TaskStatus};

use super::Fault;
use super::shapes::tasks_of;
use crate::Rule::G2;

pub(super) const FAULTS: &[Fault] = &[
    Fault::reopened(
        G2,
        "last-write-lost",
        "has lost the last write when it is opened again",
        |model, before| *model = before,
    ),
    Fault::reopened(G2, "logs-lost", "has lost the logs when it is opened again", |model, _| {
        tasks_of(model).for_each(|row| row.log.clear());
    }),
    Fault::reopened(G2, "claims-lost", "has forgotten who runs what when it is opened again", |model, _| {
        for task in tasks_of(model).map(|row| &mut row.detail.task) {
            if task.lease.take().is_some() {
                task.status = TaskStatus::Pending;
            }
        }
    }),
    Fault::reopened(
        G2,
        "tokens-start-over",
        "counts tokens from 1 again when it is opened again",
        |model, _| tasks_of(model).for_each(|row| row.token = 0),
    ),
    Fault::reopened(G2, "outputs-lost", "has lost the outputs when it is opened again", |model, _| {
        tasks_of(model).for_each(|row| row.detail.output = None);
    }),
    Fault::reopened(G2, "schedules-lost", "has lost the schedules when it is opened again", |model, _| {
        model.workflows.values_mut().for_each(|workflow| workflow.schedule = None);
    }),
    Fault::reopened(G2, "jobs-lost", "has lost the deferred jobs when it is opened again", |model, _| {
        model.jobs.clear();
    }),
    Fault::reopened(
        G2,
        "keys-lost",
        "has forgotten the idempotency keys when it is opened again",
        |model, _| model.runs.values_mut().for_each(|run| run.idempotency_key = None),
    ),
    Fault::reopened(G2, "pauses-lost", "has paused runs run when it is opened again", |model, _| {
        for run in model.runs.values_mut().filter(|run| run.status == RunStatus::Paused) {
            run.status = RunStatus::Running;
        }
    }),
    Fault::reopened(
        G2,
        "retry-times-lost",
        "tries at once what waits for a retry when it is opened again",
        |model, _| {
            for row in tasks_of(model) {
                (row.detail.task.retry_at, row.ready_since) = (None, row.detail.task.created_at);
            }
        },
    ),
    Fault::reopened(
        G2,
        "lines-joined",
        "keeps JSON as one line, so that line feeds are spaces when it is opened again",
        |model, _| {
            let joined = |json: &mut Option<Json>| {
                if let Some(text) = json.as_ref().map(|json| json.as_str().replace('\n', " ")) {
                    *json = Json::parse(text).ok();
                }
            };
            for row in tasks_of(model) {
                joined(&mut row.detail.output);
                joined(&mut row.detail.params);
            }
            model.jobs.iter_mut().for_each(|row| joined(&mut row.job.output));
        },
    ),
];
