//! W1 to W3.

use ork_state_api::{Dag, Label, RunStatus, Text, Workflow};

use super::super::{Answer, Call, Turn};
use super::Fault;
use crate::Rule::{W1, W2, W3};

pub(super) const FAULTS: &[Fault] = &[
    // W1
    Fault::new(W1, "two-of-one-name", "creates a second workflow of a name", |turn| {
        let Call::CreateWorkflow { new } = &turn.call else { return turn.honest() };
        let there = turn.model.find_workflow(&new.name).ok();
        if let Some(there) = &there {
            turn.model.workflows.remove(&there.id);
        }
        let answer = turn.honest();
        turn.model.workflows.extend(there.map(|there| (there.id, there)));
        answer
    }),
    Fault::new(W1, "names-without-case", "has two names for one that differ in case only", |turn| {
        if let Call::CreateWorkflow { new } = &mut turn.call {
            let wanted = new.name.to_lowercase();
            if let Some(there) = turn.model.workflows.values().find(|it| it.name.to_lowercase() == wanted) {
                new.name = there.name.clone();
            }
        }
        turn.honest()
    }),
    Fault::new(W1, "name-is-pattern", "has % in a name that is looked for stand for anything", |turn| {
        if let Call::FindWorkflow { name } = &mut turn.call
            && name.contains(['%', '_'])
            && let Some(there) = turn.model.workflows.values().next()
        {
            *name = there.name.clone();
        }
        turn.honest()
    }),
    Fault::new(
        W1,
        "name-checked-before",
        "checks that a name is free, and takes it a moment later",
        |turn| {
            let answer = turn.honest();
            if let Answer::CreateWorkflow(Ok(workflow)) = &answer
                && let Some(snapshot) = turn.model.snapshots.remove(&workflow.snapshot)
            {
                turn.model.workflows.remove(&workflow.id);
                let workflow = workflow.clone();
                turn.later(move |model| {
                    model.snapshots.insert(snapshot.id, snapshot);
                    model.workflows.insert(workflow.id, workflow);
                });
            }
            answer
        },
    ),
    Fault::new(W1, "absent-is-empty", "has an empty description where there is none", |turn| {
        if let Call::CreateWorkflow { new } = &mut turn.call {
            new.description.get_or_insert(Text::lossy(""));
        }
        turn.honest()
    }),
    Fault::new(W1, "region-forgotten", "does not keep the region", |turn| {
        if let Call::CreateWorkflow { new } = &mut turn.call {
            new.target.region = Text::lossy("");
        }
        turn.honest()
    }),
    Fault::new(W1, "executor-forgotten", "runs every workflow by one executor", |turn| {
        if let Call::CreateWorkflow { new } = &mut turn.call {
            new.target.executor_type = Label::lossy("process");
        }
        turn.honest()
    }),
    Fault::new(W1, "dag-sorted", "keeps the tasks of a DAG by name", |turn| {
        if let Call::CreateWorkflow { new } = &mut turn.call {
            let mut tasks = new.dag.tasks().to_vec();
            tasks.sort_by(|a, b| a.name.cmp(&b.name));
            new.dag = Dag::new(tasks).unwrap_or_else(|_| new.dag.clone());
        }
        turn.honest()
    }),
    Fault::new(W1, "empty-dag-refused", "refuses a DAG of no tasks", |turn| match &turn.call {
        Call::CreateWorkflow { new } if new.dag.is_empty() => {
            turn.call.fails(ork_state_api::Error::invalid("DAG", "has no tasks"))
        }
        _ => turn.honest(),
    }),
    Fault::new(W1, "name-stays-taken", "does not give the name of a deleted workflow again", |turn| {
        if let Call::DeleteWorkflow { id } = turn.call
            && let Ok(workflow) = turn.model.get_workflow(id)
        {
            let answer = turn.honest();
            if answer.error().is_none() {
                turn.model.workflows.insert(id, workflow);
            }
            return answer;
        }
        turn.honest()
    }),
    // W2
    Fault::new(W2, "new-dag-ignored", "keeps the DAG that it has", |turn| {
        if let Call::UpdateWorkflow { update } = &mut turn.call {
            update.dag = None;
        }
        turn.honest()
    }),
    Fault::new(W2, "runs-follow", "starts runs with the workflow's present DAG", |turn| {
        if let Call::StartRun { start } = &turn.call
            && let Some(run) = turn.model.runs.get_mut(&start.run)
            && let Some(workflow) = turn.model.workflows.get(&run.workflow)
        {
            run.snapshot = workflow.snapshot;
        }
        turn.honest()
    }),
    Fault::new(W2, "same-dag-new-snapshot", "makes a snapshot whenever a DAG is given", |turn| {
        let Call::UpdateWorkflow { update } = turn.call.clone() else { return turn.honest() };
        let Some(dag) = update.dag else { return turn.honest() };
        let mut answer = turn.honest();
        if let Answer::UpdateWorkflow(Ok(workflow)) = &mut answer {
            workflow.snapshot = turn.model.new_snapshot(turn.now, workflow.id, &dag, None);
            turn.model.workflows.insert(workflow.id, workflow.clone());
        }
        answer
    }),
    Fault::new(W2, "same-names-same-dag", "has two DAGs for one whose tasks have the same names", |turn| {
        let names = |dag: &Dag| dag.tasks().iter().map(|task| task.name.clone()).collect::<Vec<_>>();
        if let Call::UpdateWorkflow { update } = &mut turn.call
            && let Some(dag) = &update.dag
            && let Some(there) = turn
                .model
                .snapshots
                .values()
                .find(|it| it.workflow == update.id && names(&it.dag) == names(dag))
        {
            update.dag = Some(there.dag.clone());
        }
        turn.honest()
    }),
    Fault::new(W2, "not-given-is-none", "drops the description when something else is replaced", |turn| {
        if let Call::UpdateWorkflow { update } = &mut turn.call {
            update.description.get_or_insert(None);
        }
        turn.honest()
    }),
    Fault::new(W2, "snapshots-shared", "gives two workflows one snapshot", |turn| {
        let mut answer = turn.honest();
        if let Answer::CreateWorkflow(Ok(workflow)) = &mut answer {
            let of = |it: &Workflow| turn.model.snapshots.get(&it.snapshot).map(|it| it.dag.content_hash());
            let hash = of(workflow);
            let other = turn.model.workflows.values().find(|it| it.id != workflow.id && of(it) == hash);
            if let Some(other) = other {
                workflow.snapshot = other.snapshot;
                turn.model.workflows.insert(workflow.id, workflow.clone());
            }
        }
        answer
    }),
    Fault::new(
        W2,
        "update-in-two-steps",
        "replaces a DAG a moment after its check, over another's",
        |turn| {
            let Call::UpdateWorkflow { .. } = turn.call else { return turn.honest() };
            let before = turn.model.workflows.clone();
            let answer = turn.honest();
            if let Answer::UpdateWorkflow(Ok(workflow)) = &answer {
                let workflow = workflow.clone();
                turn.model.workflows = before;
                turn.later(move |model| drop(model.workflows.insert(workflow.id, workflow)));
            }
            answer
        },
    ),
    Fault::new(W2, "update-not-dated", "does not say when a workflow was changed", |turn| {
        let mut answer = turn.honest();
        if let Answer::UpdateWorkflow(Ok(workflow)) = &mut answer {
            workflow.updated_at = workflow.created_at;
            turn.model.workflows.insert(workflow.id, workflow.clone());
        }
        answer
    }),
    // W3
    Fault::new(W3, "pending-runs-deleted", "deletes a workflow with a run that is to be started", |turn| {
        ending(turn, RunStatus::Pending)
    }),
    Fault::new(W3, "running-runs-deleted", "deletes a workflow with a running run", |turn| {
        ending(turn, RunStatus::Running)
    }),
    Fault::new(W3, "paused-runs-deleted", "deletes a workflow with a paused run", |turn| {
        ending(turn, RunStatus::Paused)
    }),
    Fault::new(W3, "cancelled-runs-in-the-way", "does not delete a workflow with a cancelled run", |turn| {
        if let Call::DeleteWorkflow { id } = turn.call
            && turn.model.runs.values().any(|run| run.workflow == id && run.status == RunStatus::Cancelled)
        {
            return turn.call.fails(ork_state_api::Error::conflict("a run was cancelled"));
        }
        turn.honest()
    }),
    Fault::new(W3, "runs-left", "leaves the runs of a deleted workflow", |turn| {
        let runs = turn.model.runs.clone();
        let answer = turn.honest();
        if let (Call::DeleteWorkflow { .. }, None) = (&turn.call, answer.error()) {
            turn.model.runs = runs;
        }
        answer
    }),
    Fault::new(W3, "tasks-left", "leaves the tasks of a deleted workflow", |turn| {
        let (tasks, places) = (turn.model.tasks.clone(), turn.model.places.clone());
        let answer = turn.honest();
        if let (Call::DeleteWorkflow { .. }, None) = (&turn.call, answer.error()) {
            (turn.model.tasks, turn.model.places) = (tasks, places);
        }
        answer
    }),
    Fault::new(W3, "snapshots-left", "leaves the snapshots of a deleted workflow", |turn| {
        let snapshots = turn.model.snapshots.clone();
        let answer = turn.honest();
        if let (Call::DeleteWorkflow { .. }, None) = (&turn.call, answer.error()) {
            turn.model.snapshots = snapshots;
        }
        answer
    }),
    Fault::new(W3, "others-deleted", "deletes the ended runs of other workflows along", |turn| {
        let answer = turn.honest();
        if let (Call::DeleteWorkflow { .. }, None) = (&turn.call, answer.error()) {
            let ended: Vec<_> =
                turn.model.runs.values().filter(|run| run.status.is_terminal()).map(|run| run.id).collect();
            for run in ended {
                turn.model.delete_run(run);
            }
        }
        answer
    }),
    Fault::new(W3, "deleted-twice", "says that it deleted what was not there", |turn| match turn.honest() {
        Answer::DeleteWorkflow(Err(error))
            if matches!(error.kind(), ork_state_api::ErrorKind::NotFound { .. }) =>
        {
            Answer::DeleteWorkflow(Ok(()))
        }
        answer => answer,
    }),
    Fault::new(W3, "deleted-before-runs", "looks for live runs, and deletes a moment later", |turn| {
        let Call::DeleteWorkflow { id } = turn.call else { return turn.honest() };
        let before = turn.model.clone();
        let answer = turn.honest();
        if answer.error().is_none() {
            let runs: Vec<_> =
                before.runs.values().filter(|run| run.workflow == id).map(|run| run.id).collect();
            *turn.model = before;
            turn.later(move |model| {
                for run in runs {
                    model.delete_run(run);
                }
                model.snapshots.retain(|_, snapshot| snapshot.workflow != id);
                model.workflows.remove(&id);
            });
        }
        answer
    }),
];

/// Deletes a workflow as if its runs in this status had ended.
fn ending(turn: &mut Turn<'_>, status: RunStatus) -> Answer {
    if let Call::DeleteWorkflow { id } = turn.call {
        for run in turn.model.runs.values_mut().filter(|run| run.workflow == id && run.status == status) {
            run.status = RunStatus::Cancelled;
        }
    }
    turn.honest()
}
