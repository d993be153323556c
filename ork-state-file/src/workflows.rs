use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use ork_state_api::{
    Entity, Error, NewWorkflow, Page, PageRequest, Result, RunKey, Snapshot, SnapshotId, Workflow,
    WorkflowId, WorkflowName, WorkflowStore,
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

    async fn list_workflows(&self, page: PageRequest<WorkflowName>) -> Result<Page<Workflow, WorkflowName>> {
        self.read(move |state, _| Ok(list(state, page))).await
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
    let (id, snapshot) = (WorkflowId::generate(), SnapshotId::generate());
    let workflow = Workflow {
        id,
        name: new.name,
        description: new.description,
        target: new.target,
        snapshot,
        created_at: tx.now,
        updated_at: tx.now,
    };
    let dag = Arc::new(new.dag);
    tx.apply(Change::Workflow(workflow.clone()))?;
    tx.apply(Change::Snapshot { id: snapshot, workflow: id, created_at: tx.now, dag })?;
    Ok(workflow)
}

fn list(state: &State, page: PageRequest<WorkflowName>) -> Page<Workflow, WorkflowName> {
    let after = page.after.map_or(Bound::Unbounded, Bound::Excluded);
    let ids = state.workflow_names.range((after, Bound::Unbounded)).map(|(_, id)| id);
    let rows = ids.filter_map(|id| state.workflows.get(id)).take(page.limit.get() + 1).cloned().collect();
    Page::from_rows(rows, page.limit, |row| row.name.clone())
}

fn delete(tx: &mut Transaction<'_>, id: WorkflowId) -> Result<()> {
    tx.state.workflow(id)?;
    let keys = tx.state.workflow_runs.get(&id).into_iter().flatten();
    let live =
        keys.filter_map(|key: &RunKey| tx.state.runs.get(&key.id)).find(|row| !row.run.status.is_terminal());
    if let Some(row) = live {
        let (run, status) = (row.run.id, row.run.status);
        return Err(Error::conflict(format!("run {run} of workflow {id} is {status}"))
            .with_hint("Cancel it, or wait until it has ended"));
    }
    tx.changes.push(Change::DeleteWorkflow(id));
    for task in tx.state.remove_workflow(id) {
        tx.logs.remove(task);
    }
    Ok(())
}
