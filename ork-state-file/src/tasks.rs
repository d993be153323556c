use std::collections::BTreeMap;

use async_trait::async_trait;
use ork_state_api::{
    Claim, ClaimTasks, ClaimedTask, DependencyOutputs, ExpiredTasks, Heartbeat, HeartbeatOutcome, Json,
    Lease, Limit, ListTasks, Page, ReadyTask, Result, RunId, Task, TaskDetail, TaskId, TaskName, TaskStatus,
    TaskStore, TaskUpdates, Timestamp, Token, UpdateReport,
};

use crate::database::FileDatabase;
use crate::state::{RunRow, State};
use crate::transaction::Transaction;
use crate::updates;

#[async_trait]
impl TaskStore for FileDatabase {
    async fn ready_tasks(&self, limit: Limit) -> Result<Vec<ReadyTask>> {
        self.read(move |state, now| Ok(ready(state, now, limit))).await
    }

    async fn claim_tasks(&self, claim: ClaimTasks) -> Result<Vec<ClaimedTask>> {
        self.lease(move |tx| {
            let ready = ready(tx.state, tx.now, claim.limit);
            ready.into_iter().map(|ready| claim_task(tx, ready.task, &claim)).collect()
        })
        .await
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Vec<HeartbeatOutcome>> {
        self.lease(move |tx| {
            let expires_at = tx.now.saturating_add(heartbeat.lease().get());
            Ok(heartbeat.claims().iter().map(|claim| renew(tx, *claim, expires_at)).collect())
        })
        .await
    }

    async fn expire_leases(&self, limit: Limit) -> Result<ExpiredTasks> {
        self.write(move |tx| Ok(updates::expire_leases(tx, limit))).await
    }

    async fn expire_timeouts(&self, limit: Limit) -> Result<ExpiredTasks> {
        self.write(move |tx| Ok(updates::expire_timeouts(tx, limit))).await
    }

    async fn update_tasks(&self, updates: TaskUpdates) -> Result<UpdateReport> {
        self.write(move |tx| updates::apply(tx, &updates)).await
    }

    async fn get_task(&self, id: TaskId) -> Result<TaskDetail> {
        self.read(move |state, _| {
            let row = state.task(id)?;
            Ok(TaskDetail::new(row.task.clone(), row.params.clone(), row.output.clone()))
        })
        .await
    }

    async fn list_tasks(&self, list: ListTasks) -> Result<Page<Task, u32>> {
        self.read(move |state, _| {
            let rows = &state.run(list.run)?.tasks;
            let first = list.page.after.map_or(0, |after| (after as usize).saturating_add(1));
            let rows = rows.iter().skip(first).map(|row| &row.task);
            let wanted =
                |task: &&Task| list.statuses.as_ref().is_none_or(|statuses| statuses.contains(&task.status));
            let rows = rows.filter(wanted).take(list.page.limit.get() + 1).cloned().collect();
            Ok(Page::from_rows(rows, list.page.limit, |task: &Task| task.index))
        })
        .await
    }

    async fn task_outputs(&self, run: RunId, names: &[TaskName]) -> Result<BTreeMap<TaskName, Option<Json>>> {
        ork_state_api::backend::check_batch_len("task names", names.len())?;
        let names = names.to_vec();
        self.read(move |state, _| Ok(outputs(state.run(run)?, &names))).await
    }
}

fn ready(state: &State, now: Timestamp, limit: Limit) -> Vec<ReadyTask> {
    state.ready.iter().take_while(|ready| ready.ready_at <= now).take(limit.get()).copied().collect()
}

fn outputs(run: &RunRow, names: &[TaskName]) -> BTreeMap<TaskName, Option<Json>> {
    let rows = names.iter().filter_map(|name| run.tasks.get(*run.task_names.get(name)? as usize));
    rows.map(|row| (row.task.name.clone(), row.output.clone())).collect()
}

fn claim_task(tx: &mut Transaction<'_>, id: TaskId, claim: &ClaimTasks) -> Result<ClaimedTask> {
    let now = tx.now;
    tx.edit_task(id, |row| {
        row.token = Token::from_stored(row.token.get() + 1);
        let task = &mut row.task;
        task.status = TaskStatus::Dispatched;
        task.attempts += 1;
        let expires_at = now.saturating_add(claim.lease.get());
        task.lease = Some(Lease::new(claim.owner.clone(), row.token, expires_at));
        task.dispatched_at = Some(now);
        (task.ready_at, task.retry_at, task.started_at, task.execution_name) = (None, None, None, None);
    });
    let row = tx.state.task(id)?;
    let run = tx.state.run(row.task.run)?;
    let workflow = tx.state.workflow(run.run.workflow)?;
    let dependency_outputs = match claim.dependency_outputs {
        DependencyOutputs::Omit => BTreeMap::new(),
        DependencyOutputs::Include => outputs(run, &row.task.depends_on),
    };
    let mut claimed = ClaimedTask::new(
        row.task.clone(),
        row.token,
        workflow.id,
        workflow.name.clone(),
        workflow.target.clone(),
    );
    claimed.params = row.params.clone();
    claimed.dependency_outputs = dependency_outputs;
    Ok(claimed)
}

fn renew(tx: &mut Transaction<'_>, claim: Claim, expires_at: Timestamp) -> HeartbeatOutcome {
    if !updates::holds(tx, claim) {
        return HeartbeatOutcome::Lost;
    }
    tx.edit_task(claim.task, |row| {
        if let Some(lease) = &mut row.task.lease {
            lease.expires_at = expires_at;
        }
    });
    HeartbeatOutcome::Extended { expires_at }
}
