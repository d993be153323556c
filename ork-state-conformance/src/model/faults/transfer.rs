//! M6.

use ork_state_api::backend::Record;
use ork_state_api::{Capability, RunStatus, Timestamp};

use super::super::{Answer, Call, Model};
use super::{Fault, tasks_of};
use crate::Rule::M6;

/// A fault that does something to what a finished import has made.
macro_rules! after_import {
    ($name:literal, $description:literal, $spoil:expr) => {
        Fault::new(M6, $name, $description, |turn| {
            let answer = turn.honest();
            if let Answer::FinishImport(Ok(())) = answer {
                let spoil: fn(&mut Model) = $spoil;
                spoil(turn.model);
            }
            answer
        })
    };
}

pub(super) const FAULTS: &[Fault] = &[
    after_import!("copy-without-logs", "loses the logs of what it takes in", |model| {
        tasks_of(model).for_each(|row| row.log.clear());
    }),
    after_import!("copy-cuts-logs", "keeps the first part only of each log that it takes in", |model| {
        tasks_of(model).for_each(|row| row.log.truncate(512 * 1024));
    }),
    after_import!("copy-without-outputs", "loses the outputs of what it takes in", |model| {
        tasks_of(model).for_each(|row| row.detail.output = None);
    }),
    after_import!("copy-loses-null", "takes a JSON null in as nothing", |model| {
        let is_null = |output: &ork_state_api::Json| output.as_str() == "null";
        tasks_of(model)
            .for_each(|row| row.detail.output = row.detail.output.take().filter(|it| !is_null(it)));
    }),
    after_import!("copy-without-jobs", "loses the deferred jobs of what it takes in", |model| model
        .jobs
        .clear()),
    after_import!("copy-polls-at-once", "takes deferred jobs in as due", |model| {
        for row in model.jobs.iter_mut().filter(|row| row.job.poll_at.is_some()) {
            row.job.poll_at = Some(row.job.created_at);
        }
    }),
    after_import!("copy-without-leases", "takes claimed tasks in as if nobody held them", |model| {
        tasks_of(model).for_each(|row| row.detail.task.lease = None);
    }),
    after_import!("copy-forgets-tokens", "begins fencing tokens anew in a copy", |model| {
        tasks_of(model)
            .for_each(|row| row.token = row.detail.task.lease.as_ref().map_or(0, |it| it.token.get()));
    }),
    after_import!("copy-forgets-keys", "loses idempotency keys in a copy", |model| {
        model.runs.values_mut().for_each(|run| run.idempotency_key = None);
    }),
    after_import!("copy-runs-on", "takes paused runs in as running", |model| {
        for run in model.runs.values_mut().filter(|run| run.status == RunStatus::Paused) {
            run.status = RunStatus::Running;
        }
    }),
    after_import!("copy-retries-at-once", "takes tasks in that wait for a retry as ready", |model| {
        tasks_of(model).for_each(|row| row.ready_since = Timestamp::MIN);
    }),
    after_import!("copy-without-schedules", "loses the schedules of what it takes in", |model| {
        model.workflows.values_mut().for_each(|workflow| workflow.schedule = None);
    }),
    after_import!(
        "copy-of-the-present-dag",
        "gives every run the present DAG of its workflow in a copy",
        |model| {
            for run in model.runs.values_mut() {
                if let Some(workflow) = model.workflows.get(&run.workflow) {
                    run.snapshot = workflow.snapshot;
                }
            }
        }
    ),
    after_import!("import-stays", "is still importing when it has finished", |model| {
        model.import = Some(crate::model::transfer::Import::default());
    }),
    Fault::new(M6, "import-over-there", "takes in what is imported beside what it holds", |turn| {
        if matches!(turn.call, Call::Import { .. } | Call::FinishImport {}) {
            let there = std::mem::take(&mut turn.model.workflows);
            let answer = turn.honest();
            turn.model.workflows.extend(there);
            return answer;
        }
        turn.honest()
    }),
    Fault::new(
        M6,
        "import-checked-at-its-beginning",
        "finishes an import over what was made meanwhile",
        |turn| {
            if let Call::FinishImport {} = turn.call {
                let there = std::mem::take(&mut turn.model.workflows);
                let answer = turn.honest();
                turn.model.workflows.extend(there);
                return answer;
            }
            turn.honest()
        },
    ),
    Fault::new(M6, "import-seen-at-once", "shows what is imported before it is finished", |turn| {
        let Call::Import { page } = turn.call.clone() else { return turn.honest() };
        let answer = turn.honest();
        if let Answer::Import(Ok(())) = answer {
            let records = page.records().iter().filter_map(|(_, encoded)| Record::decode(encoded).ok());
            for record in records {
                if let Record::Workflow(workflow) = record {
                    turn.model.workflows.insert(workflow.id, workflow);
                }
            }
        }
        answer
    }),
    Fault::new(M6, "page-twice", "keeps a page of an import wherever it follows", |turn| {
        if let Call::Import { page } = &turn.call
            && turn.model.workflows.is_empty()
            && let Some(import) = &mut turn.model.import
        {
            import.progress = page.after().clone();
        }
        turn.honest()
    }),
    Fault::new(
        M6,
        "progress-by-number",
        "does not look whether a page follows the very records that are there",
        |turn| {
            let answer = turn.honest();
            match answer {
                Answer::ImportProgress(Ok(Some(mut progress))) => {
                    progress.digest.clear();
                    Answer::ImportProgress(Ok(Some(progress)))
                }
                answer => answer,
            }
        },
    ),
    Fault::new(M6, "abandoned-in-part", "keeps the records of an import that is abandoned", |turn| {
        if let (Call::AbandonImport {}, Some(import)) = (&turn.call, &mut turn.model.import) {
            import.progress = ork_state_api::backend::ImportProgress::default();
            return Answer::AbandonImport(Ok(()));
        }
        turn.honest()
    }),
    Fault::new(M6, "finished-without", "finishes an import that nobody began", |turn| {
        match (&turn.call, turn.model.import.is_none()) {
            (Call::FinishImport {}, true) => Answer::FinishImport(Ok(())),
            _ => turn.honest(),
        }
    }),
    Fault::new(M6, "finished-bit-by-bit", "shows a finished import's workflows before its runs", |turn| {
        let answer = turn.honest();
        if let Answer::FinishImport(Ok(())) = answer {
            let runs = std::mem::take(&mut turn.model.runs);
            turn.later(move |model| model.runs.extend(runs));
        }
        answer
    }),
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
