//! G1 to G9.

use std::collections::BTreeSet;
use std::time::Duration;

use ork_state_api::{
    Capability, Clock, CreatedRun, Entity, Error, ErrorKind, Json, Label, Limit, Page, RunKey, RunStatus,
    SystemClock, TaskStatus, Text, Timestamp, WorkflowName,
};

use super::super::store::LESSER;
use super::super::{Answer, Call, Model, Tamper, TaskRow, Turn};
use super::{Fault, tasks_of};
use crate::Damage;
use crate::Rule::{G1, G2, G3, G4, G5, G6, G7, G8, G9};
use crate::ctx::with;

pub(super) const FAULTS: &[Fault] = &[
    // G1
    Fault::new(G1, "tasks-after-run", "sets a run going before its tasks are there", |turn| {
        let answer = turn.honest();
        if let Answer::StartRun(Ok(run)) = &answer
            && let Some(rows) = turn.model.tasks.remove(&run.id)
        {
            let id = run.id;
            turn.later(move |model| drop(model.tasks.insert(id, rows)));
        }
        answer
    }),
    Fault::new(G1, "cascade-in-steps", "shows a failure before what depends on it has failed too", |turn| {
        let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
        let reported: BTreeSet<_> = updates.steps().iter().map(|step| step.claim.task).collect();
        let before = turn.model.clone();
        let answer = turn.honest();
        let cascade = changed(&before, turn.model, |row| !reported.contains(&row.detail.task.id));
        for (old, new) in cascade {
            put(turn.model, old);
            turn.later(move |model| put(model, new));
        }
        answer
    }),
    Fault::new(G1, "runs-one-by-one", "shows runs that end in one call one after the other", |turn| {
        let before = turn.model.runs.clone();
        let answer = turn.honest();
        if let Answer::UpdateTasks(Ok(report)) = &answer {
            for ended in report.ended_runs.iter().skip(1) {
                let Some(old) = before.get(&ended.run).cloned() else { continue };
                if let Some(new) = turn.model.runs.insert(old.id, old) {
                    turn.later(move |model| drop(model.runs.insert(new.id, new)));
                }
            }
        }
        answer
    }),
    Fault::new(G1, "snapshot-after-workflow", "shows a workflow before its snapshot is there", |turn| {
        let answer = turn.honest();
        if let Answer::CreateWorkflow(Ok(workflow)) = &answer
            && let Some(snapshot) = turn.model.snapshots.remove(&workflow.snapshot)
        {
            turn.later(move |model| drop(model.snapshots.insert(snapshot.id, snapshot)));
        }
        answer
    }),
    // G2
    Fault::reopened(
        G2,
        "last-write-lost",
        "has lost the last write when it is opened again",
        |model, before| {
            *model = before;
        },
    ),
    Fault::reopened(G2, "logs-lost", "has lost the logs when it is opened again", |model, _| {
        for row in tasks_of(model) {
            row.log.clear();
        }
    }),
    Fault::reopened(G2, "claims-lost", "has forgotten who runs what when it is opened again", |model, _| {
        for row in tasks_of(model).filter(|row| row.detail.task.lease.is_some()) {
            row.detail.task.lease = None;
            row.detail.task.status = TaskStatus::Pending;
        }
    }),
    Fault::reopened(
        G2,
        "tokens-start-over",
        "counts tokens from 1 again when it is opened again",
        |model, _| {
            for row in tasks_of(model) {
                row.token = 0;
            }
        },
    ),
    Fault::reopened(G2, "outputs-lost", "has lost the outputs when it is opened again", |model, _| {
        for row in tasks_of(model) {
            row.detail.output = None;
        }
    }),
    Fault::reopened(G2, "schedules-lost", "has lost the schedules when it is opened again", |model, _| {
        for workflow in model.workflows.values_mut() {
            workflow.schedule = None;
        }
    }),
    Fault::reopened(G2, "jobs-lost", "has lost the deferred jobs when it is opened again", |model, _| {
        model.jobs.clear();
    }),
    Fault::reopened(
        G2,
        "keys-lost",
        "has forgotten the idempotency keys when it is opened again",
        |model, _| {
            for run in model.runs.values_mut() {
                run.idempotency_key = None;
            }
        },
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
                row.detail.task.retry_at = None;
                row.ready_since = row.detail.task.created_at;
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
            for row in &mut model.jobs {
                joined(&mut row.job.output);
            }
        },
    ),
    // G3
    Fault::new(G3, "milliseconds", "keeps times to the millisecond", |turn| {
        turn.now = whole(turn.now, 1_000);
        turn.honest()
    }),
    Fault::new(G3, "random-ids", "makes ids of version 4, in no order", |turn| {
        let Call::CreateRun { .. } = turn.call else { return turn.honest() };
        let mut choice = turn.model.clone().answer(turn.now, turn.call.clone(), None);
        if let Answer::CreateRun(Ok(CreatedRun::New(run))) = &mut choice {
            let mut text = run.id.to_string();
            text.replace_range(14..15, "4");
            run.id = text.parse().unwrap_or(run.id);
        }
        turn.model.answer(turn.now, turn.call.clone(), Some(&choice))
    }),
    Fault::new(G3, "thirty-two-bits", "keeps times up to 2038 only", |turn| {
        let end = Timestamp::from_micros(i64::from(i32::MAX) * 1_000_000).unwrap_or(turn.now);
        turn.now = turn.now.min(end);
        turn.honest()
    }),
    // G4
    Fault::new(G4, "callers-clock", "takes the time of the machine instead of the injected one", |turn| {
        turn.now = SystemClock::default().now();
        turn.honest()
    }),
    Fault::new(G4, "time-stands", "never gets beyond the first of January 2026", |turn| {
        turn.now = turn.now.min(Timestamp::from_micros(1_767_225_600_000_000).unwrap_or(turn.now));
        turn.honest()
    }),
    // G5
    Fault::new(G5, "json-rewritten", "keeps JSON as values, which rewrites numbers and space", |turn| {
        let mut answer = turn.honest();
        each_json(&mut answer, |json| {
            let value: Option<serde_json::Value> = json.as_ref()?.to().ok();
            Json::from_value(&value?).ok()
        });
        answer
    }),
    Fault::new(G5, "null-is-none", "has the JSON null for no value", |turn| {
        let mut answer = turn.honest();
        each_json(&mut answer, |json| json.clone().filter(|json| json.as_str() != "null"));
        answer
    }),
    Fault::new(G5, "large-values-cut", "keeps values up to a megabyte", |turn| {
        let mut answer = turn.honest();
        each_json(&mut answer, |json| json.clone().filter(|json| json.as_str().len() <= 1 << 20));
        answer
    }),
    Fault::new(G5, "text-trimmed", "drops space around text", |turn| {
        described(turn, |text| Some(text.trim().to_owned()))
    }),
    Fault::new(G5, "empty-is-none", "has the empty text for no text", |turn| {
        described(turn, |text| Some(text.to_owned()).filter(|text| !text.is_empty()))
    }),
    Fault::new(G5, "quotes-doubled", "keeps text with its quotes doubled", |turn| {
        described(turn, |text| Some(text.replace('\'', "''")))
    }),
    Fault::new(G5, "long-text-cut", "keeps the first 64 KiB of a text", |turn| {
        described(turn, |text| Some(text.chars().take(1 << 14).collect()))
    }),
    Fault::new(G5, "labels-cut", "keeps the first 63 bytes of a label", |turn| {
        if let Call::CreateRun { new } = &mut turn.call {
            let cut: String = new.triggered_by.as_str().chars().take(63).collect();
            new.triggered_by = Label::lossy(&cut);
        }
        turn.honest()
    }),
    // G6
    Fault::new(G6, "order-of-locale", "lists workflows as people would, not by bytes", |turn| {
        let mut answer = turn.honest();
        if let Answer::ListWorkflows(Ok(page)) = &mut answer {
            page.items.sort_by_key(|workflow| workflow.name.to_lowercase());
        }
        answer
    }),
    Fault::new(G6, "oldest-first", "lists the oldest of a page's runs first", |turn| {
        let mut answer = turn.honest();
        if let Answer::ListRuns(Ok(page)) = &mut answer {
            page.items.reverse();
        }
        answer
    }),
    Fault::new(G6, "equal-times-by-chance", "lists runs of one moment in any order", |turn| {
        let mut answer = turn.honest();
        if let Answer::ListRuns(Ok(page)) = &mut answer {
            page.items.sort_by_key(|run| (std::cmp::Reverse(run.created_at), run.id));
        }
        answer
    }),
    Fault::new(G6, "page-repeats", "shows the last run of a page on the next again", |turn| {
        let after = match &turn.call {
            Call::ListRuns { list } => list.page.after,
            _ => None,
        };
        let mut answer = turn.honest();
        if let Answer::ListRuns(Ok(page)) = &mut answer
            && let Some(run) = after.and_then(|after| turn.model.runs.get(&after.id))
        {
            page.items.insert(0, turn.model.show_run(run));
        }
        answer
    }),
    Fault::new(
        G6,
        "page-skips",
        "goes on after a page by time alone, past runs of the same moment",
        |turn| {
            let after = match &turn.call {
                Call::ListRuns { list } => list.page.after,
                _ => None,
            };
            let mut answer = turn.honest();
            if let Answer::ListRuns(Ok(page)) = &mut answer
                && let Some(after) = after
            {
                page.items.retain(|run| run.created_at < after.created_at);
            }
            answer
        },
    ),
    Fault::new(
        G6,
        "page-by-number",
        "counts rows to find a page, so that a row that is inserted before it shows one again",
        |turn| {
            let Call::ListWorkflows { list } = &mut turn.call else { return turn.honest() };
            let (limit, after) = (list.page.limit, list.page.after.take());
            let skipped = after.and_then(|after| turn.model.pages.get(&after).copied()).unwrap_or(0);
            list.page.limit = Limit::new(Limit::MAX).unwrap_or(limit);
            let mut answer = turn.honest();
            if let Answer::ListWorkflows(Ok(page)) = &mut answer {
                let rows = page.items.drain(..).skip(skipped).take(limit.get() + 1).collect();
                *page = Page::from_rows(rows, limit, |row| row.name.clone());
                if let Some(next) = page.next.clone() {
                    turn.model.pages.insert(next, skipped + limit.get());
                }
            }
            answer
        },
    ),
    Fault::new(G6, "last-page-has-next", "says that there is more after the last page", |turn| {
        let mut answer = turn.honest();
        match &mut answer {
            Answer::ListRuns(Ok(page)) => page.next = page.items.last().map(RunKey::of),
            Answer::ListWorkflows(Ok(page)) => page.next = page.items.last().map(|last| last.name.clone()),
            Answer::ListTasks(Ok(page)) => page.next = page.items.last().map(|last| last.index),
            _ => {}
        }
        answer
    }),
    Fault::new(G6, "one-too-many", "gives a row more than was asked for", |turn| {
        let Call::ListRuns { list } = &mut turn.call else { return turn.honest() };
        list.page.limit = Limit::new(list.page.limit.get() + 1).unwrap_or(list.page.limit);
        turn.honest()
    }),
    Fault::new(G6, "tasks-by-name", "lists tasks by name", |turn| {
        let mut answer = turn.honest();
        if let Answer::ListTasks(Ok(page)) = &mut answer {
            page.items.sort_by(|a, b| a.name.cmp(&b.name));
        }
        answer
    }),
    Fault::new(G6, "ascii-case", "searches without regard to case in ASCII only", |turn| {
        searched(turn, |name, wanted| name.to_ascii_lowercase().contains(&wanted.to_ascii_lowercase()))
    }),
    Fault::new(G6, "search-by-pattern", "has % in a search stand for anything", |turn| {
        searched(turn, |name, wanted| {
            let (name, wanted) = (name.to_lowercase(), wanted.to_lowercase());
            wanted.split('%').all(|part| name.contains(part))
        })
    }),
    Fault::new(G6, "one-status", "filters runs by the first of several statuses", |turn| {
        if let Call::ListRuns { list } = &mut turn.call
            && let Some(statuses) = &mut list.filter.statuses
        {
            statuses.retain({
                let first = statuses.first().copied();
                move |status| Some(*status) == first
            });
        }
        turn.honest()
    }),
    Fault::new(G6, "range-with-its-end", "counts the end of a range of time in", |turn| {
        if let Call::ListRuns { list } = &mut turn.call {
            list.filter.created_before =
                list.filter.created_before.map(|before| before.saturating_add(Duration::from_micros(1)));
        }
        turn.honest()
    }),
    Fault::new(G6, "count-of-all", "counts all runs whatever is asked for", |turn| {
        if let Call::CountRuns { filter } = &mut turn.call {
            *filter = ork_state_api::RunFilter::all();
        }
        turn.honest()
    }),
    Fault::new(G6, "runs-of-all", "lists the runs of all workflows when asked for one's", |turn| {
        if let Call::ListRuns { list } = &mut turn.call {
            list.filter.workflow = None;
        }
        turn.honest()
    }),
    Fault::new(G6, "statuses-of-tasks-ignored", "lists tasks of any status", |turn| {
        if let Call::ListTasks { list } = &mut turn.call {
            list.statuses = None;
        }
        turn.honest()
    }),
    // G7
    Fault::new(G7, "payload-in-error", "tells the whole input in an error", |turn| {
        let Call::CreateWorkflow { new } = turn.call.clone() else { return turn.honest() };
        match turn.honest() {
            Answer::CreateWorkflow(Err(error)) => {
                Answer::CreateWorkflow(Err(error.with_source(new.dag.to_json().as_str())))
            }
            answer => answer,
        }
    }),
    Fault::new(G7, "refused-but-begun", "has begun a cancellation that it refuses", |turn| {
        let answer = turn.honest();
        if let (Call::CancelRun { id }, Answer::CancelRun(Err(_))) = (&turn.call, &answer) {
            let (id, now) = (*id, turn.now);
            turn.model.edit_run(id, |run| run.finished_at = Some(now));
        }
        answer
    }),
    Fault::new(G7, "everything-internal", "fails with one kind of error for everything", |turn| {
        let answer = turn.honest();
        match answer.error() {
            Some(error) => turn.call.fails(Error::internal(error.to_string())),
            None => answer,
        }
    }),
    Fault::new(G7, "error-without-id", "does not say which run cannot be cancelled", |turn| {
        match turn.honest() {
            Answer::CancelRun(Err(error)) => Answer::CancelRun(Err(match error.kind() {
                ErrorKind::InvalidTransition { from, to, .. } => {
                    Error::invalid_transition(Entity::Run, "", from.clone(), to.clone())
                }
                _ => error,
            })),
            answer => answer,
        }
    }),
    Fault::new(G7, "unknown-run-is-empty", "lists no tasks of a run that is not there", |turn| {
        match turn.honest() {
            Answer::ListTasks(Err(_)) => Answer::ListTasks(Ok(Page::new(vec![], None))),
            answer => answer,
        }
    }),
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
    // G8
    Fault::new(
        G8,
        "unknown-run-status-is-pending",
        "has a run's status that it does not know for pending",
        |turn| {
            let Call::GetRun { id } = turn.call else { return turn.honest() };
            match turn.honest() {
                Answer::GetRun(Err(_)) => {
                    let run = turn.model.get_run(id);
                    Answer::GetRun(run.map(|run| with(run, |run| run.status = RunStatus::Pending)))
                }
                answer => answer,
            }
        },
    ),
    Fault::new(G8, "unreadable-runs-left-out", "leaves runs that it cannot read out of the list", |turn| {
        let Call::ListRuns { list } = turn.call.clone() else { return turn.honest() };
        let mut page = turn.model.list_runs(&list);
        page.items.retain(|run| turn.model.corrupt_run(run.id).is_ok());
        Answer::ListRuns(Ok(page))
    }),
    Fault::new(
        G8,
        "unknown-task-status-is-pending",
        "has a task's status that it does not know for pending",
        |turn| {
            let Call::GetTask { id } = turn.call else { return turn.honest() };
            match turn.honest() {
                Answer::GetTask(Err(_)) => Answer::GetTask(turn.model.get_task(id)),
                answer => answer,
            }
        },
    ),
    Fault::new(G8, "unreadable-tasks-left-out", "leaves tasks that it cannot read out of the list", |turn| {
        let Call::ListTasks { list } = turn.call.clone() else { return turn.honest() };
        Answer::ListTasks(turn.model.list_tasks(&list).map(|mut page| {
            page.items.retain(|task| turn.model.corrupt_task(task.id).is_ok());
            page
        }))
    }),
    Fault::new(
        G8,
        "unreadable-dependencies-are-none",
        "has a task whose dependencies it cannot read depend on nothing",
        |turn| {
            let Call::ClaimTasks { .. } = turn.call else { return turn.honest() };
            let damaged = turn.model.damaged.clone();
            for damage in &damaged {
                if let Damage::DependsOn(task) = *damage {
                    turn.model.edit_task(task, |row| row.dependencies.clear());
                    turn.model.damaged.retain(|it| it != damage);
                }
            }
            let answer = turn.honest();
            turn.model.damaged = damaged;
            answer
        },
    ),
    Fault::new(
        G8,
        "one-row-stops-claims",
        "claims nothing while there is a task that it cannot read",
        |turn| {
            let bad = unreadable_task(turn.model);
            match (turn.honest(), bad) {
                (Answer::ClaimTasks(_), Some(error)) => Answer::ClaimTasks(Err(error)),
                (answer, _) => answer,
            }
        },
    ),
    Fault::new(
        G8,
        "one-row-stops-updates",
        "applies nothing of a batch while there is a task that it cannot read",
        |turn| match (&turn.call, unreadable_task(turn.model)) {
            (Call::UpdateTasks { .. }, Some(error)) => Answer::UpdateTasks(Err(error)),
            _ => turn.honest(),
        },
    ),
    Fault::new(
        G8,
        "one-row-stops-expiry",
        "has no lease lapse while there is a task that it cannot read",
        |turn| match (&turn.call, unreadable_task(turn.model)) {
            (Call::ExpireLeases { .. }, Some(error)) => Answer::ExpireLeases(Err(error)),
            _ => turn.honest(),
        },
    ),
    Fault::new(
        G8,
        "one-row-stops-everything",
        "does nothing any more once it has seen a run that it cannot read",
        |turn| match turn.model.damaged.iter().find_map(|damage| match damage {
            Damage::RunStatus(run) => turn.model.corrupt_run(*run).err(),
            _ => None,
        }) {
            Some(error) => turn.call.fails(error),
            None => turn.honest(),
        },
    ),
    Fault::new(G8, "corrupt-somewhere", "does not say what of a row it cannot read", |turn| {
        let answer = turn.honest();
        match answer.error().map(Error::kind) {
            Some(ErrorKind::Corrupt { table, id, .. }) => {
                turn.call.fails(Error::corrupt(table.clone(), id.clone(), "", "cannot be read"))
            }
            _ => answer,
        }
    }),
    Fault::new(
        G8,
        "unreadable-dag-is-empty",
        "starts a run whose DAG it cannot read without tasks",
        |turn| {
            let Call::StartRun { start } = turn.call.clone() else { return turn.honest() };
            match turn.honest() {
                Answer::StartRun(Err(error)) if matches!(error.kind(), ErrorKind::Corrupt { .. }) => {
                    match ork_state_api::Dag::new([]) {
                        Ok(dag) => turn.instead(Call::StartRun {
                            start: ork_state_api::StartRun::with_dag(start.run, dag),
                        }),
                        Err(error) => Answer::StartRun(Err(error)),
                    }
                }
                answer => answer,
            }
        },
    ),
    // G9
    Fault::new(G9, "dropped-update-is-half", "applies half of a batch whose caller has gone", |turn| {
        let Call::UpdateTasks { .. } = turn.call else { return turn.honest() };
        let before = turn.model.clone();
        let answer = turn.honest();
        for (old, new) in changed(&before, turn.model, |_| true).into_iter().skip(1) {
            put(turn.model, old);
            turn.later(move |model| put(model, new));
        }
        answer
    }),
    Fault::new(G9, "dropped-claim-is-lost", "takes tasks before it writes down who has them", |turn| {
        let answer = turn.honest();
        if let Answer::ClaimTasks(Ok(claimed)) = &answer {
            for task in claimed {
                let (id, mut lease) = (task.id, None);
                turn.model.edit_task(id, |row| lease = row.detail.task.lease.take());
                turn.later(move |model| model.edit_task(id, |row| row.detail.task.lease = lease));
            }
        }
        answer
    }),
    Fault::new(
        G9,
        "dropped-start-is-half",
        "starts a run whose caller has gone with half of its tasks",
        |turn| {
            let is_new = match &turn.call {
                Call::StartRun { start } => {
                    turn.model.runs.get(&start.run).is_some_and(|run| run.status == RunStatus::Pending)
                }
                _ => false,
            };
            let answer = turn.honest();
            if let Answer::StartRun(Ok(run)) = &answer
                && is_new
                && let Some(rows) = turn.model.tasks.get_mut(&run.id)
            {
                let (id, rest) = (run.id, rows.split_off(rows.len() / 2));
                turn.later(move |model| model.tasks.entry(id).or_default().extend(rest));
            }
            answer
        },
    ),
];

/// A time cut down to a whole number of so many microseconds.
pub(super) fn whole(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.as_micros() - time.as_micros().rem_euclid(micros)).unwrap_or(time)
}

/// The wanted tasks that are not as they were, each as it was and as it is.
pub(super) fn changed(
    before: &Model,
    after: &Model,
    wanted: impl Fn(&TaskRow) -> bool,
) -> Vec<(TaskRow, TaskRow)> {
    let rows = before.tasks.values().flatten().filter(|row| wanted(row));
    let pairs = rows.filter_map(|old| Some((old, after.row(old.detail.task.id).ok()?)));
    let pairs = pairs.filter(|(old, new)| old.detail.task != new.detail.task);
    pairs.map(|(old, new)| (old.clone(), new.clone())).collect()
}

/// Puts a task in its place.
pub(super) fn put(model: &mut Model, row: TaskRow) {
    model.edit_task(row.detail.task.id, |place| *place = row);
}

/// Changes every JSON of a task that an answer tells.
fn each_json(answer: &mut Answer, change: impl Fn(&Option<Json>) -> Option<Json>) {
    let change = |json: &mut Option<Json>| {
        if json.is_some() {
            *json = change(json);
        }
    };
    match answer {
        Answer::GetTask(Ok(detail)) => {
            change(&mut detail.output);
            change(&mut detail.params);
        }
        Answer::TaskOutputs(Ok(outputs)) => outputs.values_mut().for_each(change),
        _ => {}
    }
}

/// Creates workflows with a description that is not quite the one that was given.
fn described(turn: &mut Turn<'_>, change: fn(&str) -> Option<String>) -> Answer {
    if let Call::CreateWorkflow { new } = &mut turn.call {
        let given = new.description.take();
        new.description = given.and_then(|text| change(text.as_str())).map(|text| Text::lossy(&text));
    }
    turn.honest()
}

/// Lists workflows whose names match in another way.
fn searched(turn: &mut Turn<'_>, matches: fn(&str, &str) -> bool) -> Answer {
    let Call::ListWorkflows { list } = &mut turn.call else { return turn.honest() };
    let Some(wanted) = list.filter.name_contains.take() else { return turn.honest() };
    let list = list.clone();
    let mut rows: Vec<_> =
        turn.model.workflows.values().filter(|it| matches(&it.name, &wanted)).cloned().collect();
    rows.retain(|row| list.page.after.as_ref().is_none_or(|after: &WorkflowName| row.name > *after));
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Answer::ListWorkflows(Ok(Page::from_rows(rows, list.page.limit, |row| row.name.clone())))
}

fn unreadable_task(model: &Model) -> Option<Error> {
    model.places.keys().find_map(|task| model.corrupt_task(*task).err())
}
