use ork_state_api::backend::has_live_run;
use ork_state_api::{
    Dag, Entity, Error, ListWorkflows, NewWorkflow, Page, RunStatus, Snapshot, SnapshotId, Timestamp,
    UpdateWorkflow, Workflow, WorkflowFilter, WorkflowId, WorkflowName,
};

use super::{Expected, Model};

use crate::ctx::with;

impl Model {
    /// W1
    pub(super) fn create_workflow(
        &mut self,
        now: Timestamp,
        new: &NewWorkflow,
        seen: Option<&Workflow>,
    ) -> Expected<Workflow> {
        if self.workflows.values().any(|workflow| workflow.name == new.name) {
            return Err(Error::already_exists(Entity::Workflow, &new.name));
        }
        let id = self.fresh_workflow(seen.map(|workflow| workflow.id));
        let workflow = with(
            Workflow::from_stored(
                id,
                new.name.clone(),
                new.target.clone(),
                self.new_snapshot(now, id, &new.dag, seen.map(|workflow| workflow.snapshot)),
                now,
            ),
            |workflow| {
                workflow.description = new.description.clone();
                workflow.updated_at = now;
            },
        );
        self.workflows.insert(id, workflow.clone());
        Ok(workflow)
    }

    pub(super) fn new_snapshot(
        &mut self,
        now: Timestamp,
        workflow: WorkflowId,
        dag: &Dag,
        seen: Option<SnapshotId>,
    ) -> SnapshotId {
        let id = self.fresh_snapshot(seen);
        let content_hash = dag.content_hash();
        self.snapshots.insert(id, Snapshot::from_stored(id, workflow, content_hash, dag.clone(), now));
        id
    }

    pub(super) fn get_workflow(&self, id: WorkflowId) -> Expected<Workflow> {
        self.workflows.get(&id).cloned().ok_or_else(|| Error::not_found(Entity::Workflow, id))
    }

    pub(super) fn find_workflow(&self, name: &WorkflowName) -> Expected<Workflow> {
        let found = self.workflows.values().find(|workflow| workflow.name == *name);
        found.cloned().ok_or_else(|| Error::not_found(Entity::Workflow, name))
    }

    /// G6: by the bytes of the names.
    pub(super) fn list_workflows(&self, list: &ListWorkflows) -> Page<Workflow, WorkflowName> {
        let mut rows: Vec<Workflow> = self.workflows.values().cloned().collect();
        rows.retain(|row| is_named(row, &list.filter));
        rows.retain(|row| {
            list.page.after.as_ref().is_none_or(|after| row.name.as_bytes() > after.as_bytes())
        });
        rows.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Page::from_rows(rows, list.page.limit, |row| row.name.clone())
    }

    pub(super) fn count_workflows(&self, filter: &WorkflowFilter) -> u64 {
        self.workflows.values().filter(|row| is_named(row, filter)).count() as u64
    }

    /// W2
    pub(super) fn update_workflow(
        &mut self,
        now: Timestamp,
        update: UpdateWorkflow,
        seen: Option<&Workflow>,
    ) -> Expected<Workflow> {
        let mut workflow = self.get_workflow(update.id)?;
        if let Some(dag) = update.dag {
            let same = |it: &&Snapshot| it.workflow == workflow.id && it.dag.to_json() == dag.to_json();
            let there = self.snapshots.values().find(same).map(|snapshot| snapshot.id);
            workflow.snapshot = match there {
                Some(snapshot) => snapshot,
                None => self.new_snapshot(now, workflow.id, &dag, seen.map(|workflow| workflow.snapshot)),
            };
        }
        if let Some(description) = update.description {
            workflow.description = description;
        }
        if let Some(target) = update.target {
            workflow.target = target;
        }
        workflow.updated_at = now;
        self.workflows.insert(workflow.id, workflow.clone());
        Ok(workflow)
    }

    pub(super) fn get_snapshot(&self, id: SnapshotId) -> Expected<Snapshot> {
        self.snapshots.get(&id).cloned().ok_or_else(|| Error::not_found(Entity::Snapshot, id))
    }

    /// W3
    pub(super) fn delete_workflow(&mut self, id: WorkflowId) -> Expected<()> {
        self.get_workflow(id)?;
        let runs: Vec<_> = self.runs.values().filter(|run| run.workflow == id).cloned().collect();
        let live = [RunStatus::Pending, RunStatus::Running, RunStatus::Paused];
        if let Some(run) = runs.iter().find(|run| live.contains(&run.status)) {
            return Err(has_live_run(id, run.id, run.status));
        }
        for run in runs {
            self.delete_run(run.id);
        }
        self.snapshots.retain(|_, snapshot| snapshot.workflow != id);
        self.workflows.remove(&id);
        Ok(())
    }
}

/// A search is for literal text and ignores case.
fn is_named(workflow: &Workflow, filter: &WorkflowFilter) -> bool {
    let wanted = filter.name_contains.as_ref().map(|text| text.to_lowercase());
    wanted.is_none_or(|wanted| workflow.name.to_lowercase().contains(&wanted))
}
