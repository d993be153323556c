//! M6.

use ork_state_api::backend::{ImportProgress, Record};
use ork_state_api::{Capability, RunStatus, Timestamp};

use super::super::transfer::Import;
use super::super::{Answer, Call, Turn};
use super::Fault;
use super::shapes::{after, before, tasks_of};
use crate::Rule::M6;

pub(super) const FAULTS: &[Fault] = &[
    after! { M6, "copy-without-logs", "loses the logs of what it takes in",
        |turn, Answer::FinishImport(Ok(()))| tasks_of(turn.model).for_each(|row| row.log.clear())
    },
    after! { M6, "copy-cuts-logs", "keeps the first part only of each log that it takes in",
        |turn, Answer::FinishImport(Ok(()))| tasks_of(turn.model).for_each(|row| row.log.truncate(512 * 1024))
    },
    after! { M6, "copy-without-outputs", "loses the outputs of what it takes in",
        |turn, Answer::FinishImport(Ok(()))| tasks_of(turn.model).for_each(|row| row.detail.output = None)
    },
    after! { M6, "copy-loses-null", "takes a JSON null in as nothing", |turn, Answer::FinishImport(Ok(()))| {
        for row in tasks_of(turn.model) {
            row.detail.output = row.detail.output.take().filter(|output| output.as_str() != "null");
        }
    }},
    after! { M6, "copy-without-jobs", "loses the deferred jobs of what it takes in",
        |turn, Answer::FinishImport(Ok(()))| turn.model.jobs.clear()
    },
    after! { M6, "copy-polls-at-once", "takes deferred jobs in as due", |turn, Answer::FinishImport(Ok(()))| {
        for row in &mut turn.model.jobs {
            row.job.poll_at = row.job.poll_at.map(|_| row.job.created_at);
        }
    }},
    after! { M6, "copy-without-leases", "takes claimed tasks in as if nobody held them",
        |turn, Answer::FinishImport(Ok(()))| tasks_of(turn.model).for_each(|row| row.detail.task.lease = None)
    },
    after! { M6, "copy-forgets-tokens", "begins fencing tokens anew in a copy",
    |turn, Answer::FinishImport(Ok(()))| {
        for row in tasks_of(turn.model) {
            row.token = row.detail.task.lease.as_ref().map_or(0, |lease| lease.token.get());
        }
    }},
    after! { M6, "copy-forgets-keys", "loses idempotency keys in a copy",
    |turn, Answer::FinishImport(Ok(()))| {
        turn.model.runs.values_mut().for_each(|run| run.idempotency_key = None);
    }},
    after! { M6, "copy-runs-on", "takes paused runs in as running", |turn, Answer::FinishImport(Ok(()))| {
        for run in turn.model.runs.values_mut().filter(|run| run.status == RunStatus::Paused) {
            run.status = RunStatus::Running;
        }
    }},
    after! { M6, "copy-retries-at-once", "takes tasks in that wait for a retry as ready",
    |turn, Answer::FinishImport(Ok(()))| {
        tasks_of(turn.model).for_each(|row| row.ready_since = Timestamp::MIN);
    }},
    after! { M6, "copy-without-schedules", "loses the schedules of what it takes in",
    |turn, Answer::FinishImport(Ok(()))| {
        turn.model.workflows.values_mut().for_each(|workflow| workflow.schedule = None);
    }},
    after! { M6, "copy-of-the-present-dag", "gives every run the present DAG of its workflow in a copy",
    |turn, Answer::FinishImport(Ok(()))| {
        for run in turn.model.runs.values_mut() {
            if let Some(workflow) = turn.model.workflows.get(&run.workflow) {
                run.snapshot = workflow.snapshot;
            }
        }
    }},
    after! { M6, "import-stays", "is still importing when it has finished",
        |turn, Answer::FinishImport(Ok(()))| turn.model.import = Some(Import::default())
    },
    before! { M6, "import-over-there", "takes in what is imported beside what it holds", |turn| {
        if let Call::Import { .. } | Call::FinishImport {} = turn.call {
            return without_workflows(turn);
        }
    }},
    before! { M6, "import-checked-at-its-beginning", "finishes an import over what was made meanwhile",
        |turn, Call::FinishImport {}| return without_workflows(turn)
    },
    after! { M6, "import-seen-at-once", "shows what is imported before it is finished",
    |turn, Call::Import { page }, Answer::Import(Ok(()))| {
        for (_, encoded) in page.records() {
            if let Ok(Record::Workflow(workflow)) = Record::decode(encoded) {
                turn.model.workflows.insert(workflow.id, workflow);
            }
        }
    }},
    before! { M6, "page-twice", "keeps a page of an import wherever it follows",
    |turn, Call::Import { page }| {
        if turn.model.workflows.is_empty()
            && let Some(import) = &mut turn.model.import
        {
            import.progress = page.after().clone();
        }
    }},
    after! { M6, "progress-by-number", "does not look whether a page follows the very records that are there",
        |turn, Answer::ImportProgress(Ok(Some(progress)))| progress.digest.clear()
    },
    Fault::new(M6, "abandoned-in-part", "keeps the records of an import that is abandoned", |turn| {
        match (&turn.call, &mut turn.model.import) {
            (Call::AbandonImport {}, Some(import)) => {
                import.progress = ImportProgress::default();
                Answer::AbandonImport(Ok(()))
            }
            _ => turn.honest(),
        }
    }),
    Fault::new(M6, "finished-without", "finishes an import that nobody began", |turn| {
        match (&turn.call, &turn.model.import) {
            (Call::FinishImport {}, None) => Answer::FinishImport(Ok(())),
            _ => turn.honest(),
        }
    }),
    after! { M6, "finished-bit-by-bit", "shows a finished import's workflows before its runs",
    |turn, Answer::FinishImport(Ok(()))| {
        let runs = std::mem::take(&mut turn.model.runs);
        turn.later(move |model| model.runs.extend(runs));
    }},
    Fault::reopened(M6, "import-lost", "forgets an unfinished import when it is reopened", |model, _| {
        model.import = None;
    }),
    Fault::lesser(
        M6,
        "undeclared-copies",
        "opts out of copies of other stores and takes them in",
        &[Capability::Transfer],
    ),
];

/// Answers as if there were no workflows.
fn without_workflows(turn: &mut Turn<'_>) -> Answer {
    let workflows = std::mem::take(&mut turn.model.workflows);
    let answer = turn.honest();
    turn.model.workflows.extend(workflows);
    answer
}
