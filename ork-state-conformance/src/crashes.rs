//! Checks what must be true of a store whose writers died.

use std::collections::BTreeSet;
use std::time::Duration;

use ork_state_api::ErrorKind::NotFound;
use ork_state_api::verify::observe;
use ork_state_api::{
    Capability, Database, Limit, ListRuns, ListTasks, LogPosition, LogRange, PageRequest, Result, Run,
    RunFilter, RunStatus, StartRun, TaskStatus,
};
use serde::{Deserialize, Serialize};

use crate::child::{ChildProcess, Role, Told};
use crate::ctx::work_off;
use crate::{CaseResult, Ctx, LEASE, ServerFailure};

/// How often `verify` is called (rule M4) before its findings count. A server may still be running
/// the last call of a dead process. Changes during a check may be reported wrongly. Real faults
/// stay.
const ASKED: usize = 10;

/// How often writers died, and what the store had acknowledged to them by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Crashes {
    /// Processes killed with SIGKILL while they wrote.
    pub kills: u64,
    /// How often a [server failed](crate::Fixture::fail_server) while a process wrote.
    pub server_failures: u64,
    /// Steps that were acknowledged.
    pub acknowledged: u64,
    /// Deletions among them.
    pub deletions: u64,
}

/// How a writing process dies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Death {
    /// How many calls it makes at the same time.
    pub(crate) workers: usize,
    /// How many steps must have been acknowledged before.
    pub(crate) steps: usize,
    /// The pause after the last of these.
    pub(crate) pause: Duration,
    /// First the server fails, and only then the process is killed.
    pub(crate) failure: Option<ServerFailure>,
}

/// A case's store, the processes that died while using it, and what they had been told.
pub(crate) struct Survivor<'a> {
    t: &'a Ctx,
    told: Vec<Told>,
    /// How many of these earlier checks have found.
    looked_for: usize,
    died: Crashes,
}

impl<'a> Survivor<'a> {
    pub(crate) fn new(t: &'a Ctx) -> Self {
        Self { t, told: Vec::new(), looked_for: 0, died: Crashes::default() }
    }

    /// Lets a process write until it dies.
    pub(crate) async fn outlive(&mut self, death: Death) -> CaseResult {
        let Death { workers, steps, pause, failure } = death;
        let logs = self.t.backend().capabilities.has(Capability::Logs);
        let mut child = ChildProcess::start(&Role::LiveOn { url: self.t.url().to_owned(), workers, logs })?;
        let mut said = Vec::new();
        while said.len() < steps {
            match child.line().await? {
                Some(line) => said.push(line),
                None => return Err(format!("the child ended: {:?}", child.finish().await).into()),
            }
        }
        tokio::time::sleep(pause).await;
        let failed = match failure {
            None => false,
            Some(failure) => {
                let mut failing = std::pin::pin!(self.t.fixture().fail_server(failure));
                loop {
                    // It keeps writing meanwhile, even when it prints more than a pipe holds. If it
                    // exits because the server failed, that is no error.
                    tokio::select! {
                        failed = &mut failing => break failed?,
                        Ok(Some(line)) = child.line() => said.push(line),
                    }
                }
            }
        };
        if failed {
            self.died.server_failures += 1;
        } else {
            self.died.kills += 1;
        }
        said.extend(child.kill().await?);
        for line in said {
            self.told.push(serde_json::from_str(&line)?);
        }
        Ok(())
    }

    /// Checks what every other process finds now: nothing half done, and everything acknowledged
    /// since the last check.
    pub(crate) async fn check(&mut self) -> CaseResult {
        // On real time like the children. By the case's clock, what they made ready is still in the
        // future.
        let db = self.t.connect(self.t.url()).await?;
        let mut found = Vec::new();
        for _ in 0..ASKED {
            found = db.verify().await?;
            found.extend(observe(&*db).await?);
            if found.is_empty() {
                break;
            }
        }
        assert_eq!(found, vec![]);
        self.look_for(&self.told[self.looked_for..], &*db).await?;
        self.looked_for = self.told.len();
        Ok(())
    }

    async fn look_for(&self, told: &[Told], db: &dyn Database) -> CaseResult {
        // If a deletion was requested, its effect may be there although nobody was told.
        let asked = self.told.iter().filter(|told| matches!(told, Told::Deleting(_)));
        let leaving: BTreeSet<_> = asked.map(|told| told.workflow()).collect();
        for step in told.iter().copied() {
            if matches!(step, Told::Deleted(_)) || !leaving.contains(&step.workflow()) {
                is_there(db, step).await.map_err(|error| format!("{step:?} was acknowledged: {error}"))?;
            }
        }
        Ok(())
    }

    /// Checks that everything ever acknowledged is still there and that work can continue. Claimed
    /// tasks come back, pending runs are started, and all of it ends.
    pub(crate) async fn finish(self) -> Result<Crashes, Box<dyn std::error::Error + Send + Sync>> {
        let db = self.t.reopen().await?;
        self.look_for(&self.told, &*db).await?;
        // The children's leases ran on real time. The case's clock is moved past them.
        self.t.advance(LEASE * 60 * 24 * 365 * 50);
        let many = Limit::new(1000)?;
        loop {
            let expired = db.expire_leases(many).await?;
            if expired.requeued.is_empty() && expired.failed.is_empty() {
                break;
            }
        }
        for run in all_runs(&*db, RunFilter::all().with_statuses([RunStatus::Pending])).await? {
            db.start_run(StartRun::pinned(run.id)).await?;
        }
        work_off(&*db).await?;
        for run in all_runs(&*db, RunFilter::all()).await? {
            assert!(run.status.is_terminal(), "{run:?}");
        }
        let deletions = self.told.iter().filter(|told| matches!(told, Told::Deleted(_))).count();
        Ok(Crashes { acknowledged: self.told.len() as u64, deletions: deletions as u64, ..self.died })
    }
}

/// All runs that match the filter, page by page.
pub(crate) async fn all_runs(db: &dyn Database, filter: RunFilter) -> Result<Vec<Run>> {
    let (mut runs, mut page) = (Vec::new(), PageRequest::first(Limit::MAX));
    loop {
        let found = db.list_runs(ListRuns::new(filter.clone(), page)).await?;
        runs.extend(found.items);
        match found.next {
            Some(key) => page = PageRequest::after(key, Limit::MAX),
            None => return Ok(runs),
        }
    }
}

/// Looks for the effect of one acknowledged step. Later steps may have changed it further.
async fn is_there(db: &dyn Database, told: Told) -> CaseResult {
    match told {
        Told::Workflow(workflow) | Told::Deleting(workflow) => drop(db.get_workflow(workflow).await?),
        Told::Run(workflow, run) => assert_eq!(db.get_run(run).await?.workflow, workflow),
        Told::Started(_, run) => {
            assert_eq!(db.get_run(run).await?.tasks.total, 8);
            assert_eq!(db.list_tasks(ListTasks::of(run, PageRequest::default())).await?.items.len(), 8);
        }
        Told::Claimed(_, task, token) => {
            let task = db.get_task(task).await?.task;
            assert!(task.attempts > 0 && task.dispatched_at.is_some(), "{task:?}");
            assert!(task.lease.is_none_or(|lease| lease.token >= token));
        }
        Told::Logged(_, task, length) => {
            let log = db.read_log(task, LogRange::new(LogPosition::Offset(0), 1)?).await?;
            assert!(log.length >= length, "{} bytes", log.length);
        }
        Told::Updated(_, task, TaskStatus::Pending) => assert!(db.get_task(task).await?.task.attempts > 0),
        Told::Updated(_, task, status) => {
            let found = db.get_task(task).await?;
            assert_eq!((found.task.status, found.output.is_some()), (status, status == TaskStatus::Success));
        }
        Told::Ended(_, run, status) => assert_eq!(db.get_run(run).await?.status, status),
        Told::Deleted(workflow) => match db.get_workflow(workflow).await {
            Err(error) if matches!(error.kind(), NotFound { .. }) => {}
            found => return Err(format!("{found:?}").into()),
        },
    }
    Ok(())
}

impl std::ops::AddAssign for Crashes {
    fn add_assign(&mut self, more: Self) {
        self.kills += more.kills;
        self.server_failures += more.server_failures;
        self.acknowledged += more.acknowledged;
        self.deletions += more.deletions;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ork_state_api::{NewRun, Token, WorkflowId};
    use uuid::Uuid;

    use super::*;
    use crate::Fixture;
    use crate::model::ModelFixture;

    #[tokio::test]
    async fn a_step_that_was_acknowledged_and_is_not_there_is_missed() {
        let fixture: Arc<dyn Fixture> = Arc::new(ModelFixture::honest());
        let store = fixture.migrated().await.unwrap();
        let t = Ctx::open(fixture, store, 1, true).await.unwrap();
        let started = t.start("a b:a c d e f g h").await.unwrap();
        let (workflow, task) = (started.workflow, t.task(started.id, "a").await.unwrap().id);
        let run = t.db().create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
        let there = [Told::Workflow(workflow), Told::Run(workflow, run), Told::Started(workflow, started.id)];
        let missing = [
            Told::Workflow(WorkflowId::from_uuid(Uuid::new_v4())),
            Told::Run(WorkflowId::from_uuid(Uuid::new_v4()), run),
            Told::Started(workflow, run),
            Told::Claimed(workflow, task, Token::from_stored(1)),
            Told::Logged(workflow, task, 1),
            Told::Updated(workflow, task, TaskStatus::Pending),
            Told::Updated(workflow, task, TaskStatus::Success),
            Told::Ended(workflow, started.id, RunStatus::Success),
            Told::Deleted(workflow),
        ];
        for told in there {
            is_there(&**t.db(), told).await.unwrap();
        }
        for told in missing {
            let db = t.db().clone();
            let looked = tokio::spawn(async move { is_there(&*db, told).await }).await;
            assert!(!matches!(looked, Ok(Ok(()))), "{told:?} is not there");
        }
    }
}
