//! W1 to W3.

use ork_state_api::{Dag, Error, ErrorKind, Label, RunStatus, Text, Workflow, WorkflowId};

use super::super::{Answer, Call, Model};
use super::Fault;
use super::shapes::{after, before, delete_runs};
use crate::Rule::{W1, W2, W3};

pub(super) const FAULTS: &[Fault] = &[
    // W1
    Fault::new(W1, "two-of-one-name", "creates a second workflow of a name", |turn| {
        let Call::CreateWorkflow { new } = &turn.call else { return turn.honest() };
        let workflows = &mut turn.model.workflows;
        let there: Vec<_> = workflows.extract_if(.., |_, it| it.name == new.name).collect();
        let answer = turn.honest();
        turn.model.workflows.extend(there);
        answer
    }),
    before! { W1, "names-without-case", "has two names for one that differ in case only",
    |turn, Call::CreateWorkflow { new }| {
        let wanted = new.name.to_lowercase();
        if let Some(there) = turn.model.workflows.values().find(|it| it.name.to_lowercase() == wanted) {
            new.name = there.name.clone();
        }
    }},
    before! { W1, "name-is-pattern", "has % in a name that is looked for stand for anything",
    |turn, Call::FindWorkflow { name }| {
        if name.contains(['%', '_'])
            && let Some(there) = turn.model.workflows.values().next()
        {
            *name = there.name.clone();
        }
    }},
    after! { W1, "name-checked-before", "checks that a name is free, and takes it a moment later",
    |turn, Answer::CreateWorkflow(Ok(workflow))| {
        if let Some(snapshot) = turn.model.snapshots.remove(&workflow.snapshot) {
            turn.model.workflows.remove(&workflow.id);
            let workflow = workflow.clone();
            turn.later(move |model| {
                model.snapshots.insert(snapshot.id, snapshot);
                model.workflows.insert(workflow.id, workflow);
            });
        }
    }},
    before! { W1, "absent-is-empty", "has an empty description where there is none",
        |turn, Call::CreateWorkflow { new }| new.description.get_or_insert(Text::lossy(""))
    },
    before! { W1, "region-forgotten", "does not keep the region",
        |turn, Call::CreateWorkflow { new }| new.target.region = Text::lossy("")
    },
    before! { W1, "executor-forgotten", "runs every workflow by one executor",
        |turn, Call::CreateWorkflow { new }| new.target.executor_type = Label::lossy("process")
    },
    before! { W1, "dag-sorted", "keeps the tasks of a DAG by name", |turn, Call::CreateWorkflow { new }| {
        let mut tasks = new.dag.tasks().to_vec();
        tasks.sort_by(|a, b| a.name.cmp(&b.name));
        new.dag = Dag::new(tasks).unwrap_or_else(|_| new.dag.clone());
    }},
    Fault::new(W1, "empty-dag-refused", "refuses a DAG of no tasks", |turn| match &turn.call {
        Call::CreateWorkflow { new } if new.dag.is_empty() => {
            turn.call.fails(Error::invalid("DAG", "has no tasks"))
        }
        _ => turn.honest(),
    }),
    after! { W1, "name-stays-taken", "does not give the name of a deleted workflow again",
    |turn, old, Call::DeleteWorkflow { id }, Answer::DeleteWorkflow(Ok(()))| {
        turn.model.workflows.extend(old.get_workflow(*id).map(|workflow| (*id, workflow)));
    }},
    // W2
    before! { W2, "new-dag-ignored", "keeps the DAG that it has",
        |turn, Call::UpdateWorkflow { update }| update.dag = None
    },
    before! { W2, "runs-follow", "starts runs with the workflow's present DAG",
    |turn, Call::StartRun { start }| {
        if let Some(run) = turn.model.runs.get_mut(&start.run)
            && let Some(workflow) = turn.model.workflows.get(&run.workflow)
        {
            run.snapshot = workflow.snapshot;
        }
    }},
    after! { W2, "same-dag-new-snapshot", "makes a snapshot whenever a DAG is given",
    |turn, Call::UpdateWorkflow { update }, Answer::UpdateWorkflow(Ok(workflow))| {
        if let Some(dag) = &update.dag {
            workflow.snapshot = turn.model.new_snapshot(turn.now, workflow.id, dag, None);
            turn.model.workflows.insert(workflow.id, workflow.clone());
        }
    }},
    before! { W2, "same-names-same-dag", "has two DAGs for one whose tasks have the same names",
    |turn, Call::UpdateWorkflow { update }| {
        let names = |dag: &Dag| dag.tasks().iter().map(|task| task.name.clone()).collect::<Vec<_>>();
        if let Some(dag) = &mut update.dag {
            let mut snapshots = turn.model.snapshots.values().filter(|it| it.workflow == update.id);
            if let Some(there) = snapshots.find(|it| names(&it.dag) == names(dag)) {
                dag.clone_from(&there.dag);
            }
        }
    }},
    before! { W2, "not-given-is-none", "drops the description when something else is replaced",
        |turn, Call::UpdateWorkflow { update }| update.description.get_or_insert(None)
    },
    after! { W2, "snapshots-shared", "gives two workflows one snapshot",
    |turn, Answer::CreateWorkflow(Ok(workflow))| {
        let of = |it: &Workflow| turn.model.snapshots.get(&it.snapshot).map(|it| it.dag.content_hash());
        let hash = of(workflow);
        let other = turn.model.workflows.values().find(|it| it.id != workflow.id && of(it) == hash);
        if let Some(other) = other {
            workflow.snapshot = other.snapshot;
            turn.model.workflows.insert(workflow.id, workflow.clone());
        }
    }},
    after! { W2, "update-in-two-steps", "replaces a DAG a moment after its check, over another's",
    |turn, old, Answer::UpdateWorkflow(Ok(workflow))| {
        let workflow = workflow.clone();
        turn.model.workflows.clone_from(&old.workflows);
        turn.later(move |model| drop(model.workflows.insert(workflow.id, workflow)));
    }},
    after! { W2, "update-not-dated", "does not say when a workflow was changed",
    |turn, Answer::UpdateWorkflow(Ok(workflow))| {
        workflow.updated_at = workflow.created_at;
        turn.model.workflows.insert(workflow.id, workflow.clone());
    }},
    // W3
    before! { W3, "pending-runs-deleted", "deletes a workflow with a run that is to be started",
        |turn, Call::DeleteWorkflow { id }| cancel_all(turn.model, *id, RunStatus::Pending)
    },
    before! { W3, "running-runs-deleted", "deletes a workflow with a running run",
        |turn, Call::DeleteWorkflow { id }| cancel_all(turn.model, *id, RunStatus::Running)
    },
    before! { W3, "paused-runs-deleted", "deletes a workflow with a paused run",
        |turn, Call::DeleteWorkflow { id }| cancel_all(turn.model, *id, RunStatus::Paused)
    },
    before! { W3, "cancelled-runs-in-the-way", "does not delete a workflow with a cancelled run",
    |turn, Call::DeleteWorkflow { id }| {
        let mut runs = turn.model.runs.values().filter(|run| run.workflow == *id);
        if runs.any(|run| run.status == RunStatus::Cancelled) {
            return Answer::DeleteWorkflow(Err(Error::conflict("a run was cancelled")));
        }
    }},
    after! { W3, "runs-left", "leaves the runs of a deleted workflow",
        |turn, old, Answer::DeleteWorkflow(Ok(()))| turn.model.runs.clone_from(&old.runs)
    },
    after! { W3, "tasks-left", "leaves the tasks of a deleted workflow",
    |turn, old, Answer::DeleteWorkflow(Ok(()))| {
        turn.model.tasks.clone_from(&old.tasks);
        turn.model.places.clone_from(&old.places);
    }},
    after! { W3, "snapshots-left", "leaves the snapshots of a deleted workflow",
        |turn, old, Answer::DeleteWorkflow(Ok(()))| turn.model.snapshots.clone_from(&old.snapshots)
    },
    after! { W3, "others-deleted", "deletes the ended runs of other workflows along",
        |turn, Answer::DeleteWorkflow(Ok(()))| delete_runs(turn.model, |run| run.status.is_terminal())
    },
    after! { W3, "deleted-twice", "says that it deleted what was not there",
    |turn, Answer::DeleteWorkflow(deleted)| {
        if deleted.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound { .. })) {
            *deleted = Ok(());
        }
    }},
    after! { W3, "deleted-before-runs", "looks for live runs, and deletes a moment later",
    |turn, old, Call::DeleteWorkflow { id }, Answer::DeleteWorkflow(Ok(()))| {
        let id = *id;
        let runs: Vec<_> = old.runs.values().filter(|run| run.workflow == id).map(|run| run.id).collect();
        *turn.model = old.clone();
        turn.later(move |model| {
            runs.into_iter().for_each(|run| model.delete_run(run));
            model.snapshots.retain(|_, snapshot| snapshot.workflow != id);
            model.workflows.remove(&id);
        });
    }},
];

/// Cancels the runs of a workflow that are in this status.
fn cancel_all(model: &mut Model, workflow: WorkflowId, status: RunStatus) {
    for run in model.runs.values_mut().filter(|run| run.workflow == workflow && run.status == status) {
        run.status = RunStatus::Cancelled;
    }
}
