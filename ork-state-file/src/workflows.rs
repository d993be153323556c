use std::ops::Bound;

use async_trait::async_trait;
use ork_state_api::backend::has_live_run;
use ork_state_api::{
    Entity, Error, ListWorkflows, NewWorkflow, Page, Result, RunKey, Snapshot, SnapshotId, UpdateWorkflow,
    Workflow, WorkflowFilter, WorkflowId, WorkflowName, WorkflowStore,
};

use crate::change::Change;
use crate::database::FileDatabase;
use crate::state::State;
use crate::transaction::Transaction;

#[async_trait]
impl WorkflowStore for FileDatabase {
    async fn create_workflow(&self, new: NewWorkflow) -> Result<Workflow> {
        self.write(|tx| create(tx, new)).await
    }

    async fn get_workflow(&self, id: WorkflowId) -> Result<Workflow> {
        self.read(move |state, _| state.workflow(id).cloned()).await
    }

    async fn find_workflow(&self, name: &WorkflowName) -> Result<Workflow> {
        let name = name.clone();
        self.read(move |state, _| {
            let id =
                state.workflow_names.get(&name).ok_or_else(|| Error::not_found(Entity::Workflow, &name))?;
            state.workflow(*id).cloned()
        })
        .await
    }

    async fn list_workflows(&self, list: ListWorkflows) -> Result<Page<Workflow, WorkflowName>> {
        self.read(move |state, _| Ok(list_workflows(state, list))).await
    }

    async fn count_workflows(&self, filter: WorkflowFilter) -> Result<u64> {
        self.read(move |state, _| {
            Ok(state.workflow_names.keys().filter(|name| filter.matches(name)).count() as u64)
        })
        .await
    }

    async fn update_workflow(&self, update: UpdateWorkflow) -> Result<Workflow> {
        self.write(|tx| update_workflow(tx, update)).await
    }

    async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        self.read(move |state, _| {
            state.snapshots.get(&id).cloned().ok_or_else(|| Error::not_found(Entity::Snapshot, id))
        })
        .await
    }

    async fn delete_workflow(&self, id: WorkflowId) -> Result<()> {
        self.write(move |tx| delete(tx, id)).await
    }
}

fn create(tx: &mut Transaction<'_>, new: NewWorkflow) -> Result<Workflow> {
    if tx.state.workflow_names.contains_key(&new.name) {
        return Err(Error::already_exists(Entity::Workflow, &new.name));
    }
    let snapshot = SnapshotId::generate();
    let workflow = Workflow::new(&new, snapshot, tx.now);
    tx.apply(Change::Workflow(workflow.clone()))?;
    tx.apply(Change::Snapshot { id: snapshot, workflow: workflow.id, created_at: tx.now, dag: new.dag })?;
    Ok(workflow)
}

fn update_workflow(tx: &mut Transaction<'_>, update: UpdateWorkflow) -> Result<Workflow> {
    let mut workflow = tx.state.workflow(update.id)?.clone();
    if let Some(dag) = update.dag {
        let there = tx.state.snapshot_hashes.get(&(workflow.id, dag.content_hash()));
        workflow.snapshot = match there {
            Some(snapshot) => *snapshot,
            None => {
                let id = SnapshotId::generate();
                tx.apply(Change::Snapshot { id, workflow: workflow.id, created_at: tx.now, dag })?;
                id
            }
        };
    }
    if let Some(description) = update.description {
        workflow.description = description;
    }
    if let Some(target) = update.target {
        workflow.target = target;
    }
    workflow.updated_at = tx.now;
    tx.apply(Change::Workflow(workflow.clone()))?;
    Ok(workflow)
}

fn list_workflows(state: &State, list: ListWorkflows) -> Page<Workflow, WorkflowName> {
    let after = list.page.after.map_or(Bound::Unbounded, Bound::Excluded);
    let names = state.workflow_names.range((after, Bound::Unbounded));
    let found = names.filter(|(name, _)| list.filter.matches(name));
    let rows = found.filter_map(|(_, id)| state.workflows.get(id));
    let rows = rows.take(list.page.limit.get() + 1).cloned().collect();
    Page::from_rows(rows, list.page.limit, |row| row.name.clone())
}

fn delete(tx: &mut Transaction<'_>, id: WorkflowId) -> Result<()> {
    tx.state.workflow(id)?;
    let keys = tx.state.workflow_runs.get(&id).into_iter().flatten();
    let live =
        keys.filter_map(|key: &RunKey| tx.state.runs.get(&key.id)).find(|row| !row.run.status.is_terminal());
    if let Some(row) = live {
        return Err(has_live_run(id, row.run.id, row.run.status));
    }
    tx.changes.push(Change::DeleteWorkflow(id));
    for task in tx.state.remove_workflow(id) {
        tx.logs.remove(task);
    }
    Ok(())
}
