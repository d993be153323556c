//! Works runs off, with the store or with its floor: the same loop for both.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ork_state_api::{
    Claim, Database, TaskId, TaskUpdate, TaskUpdates, Token, UpdateOutcome, UpdateReport, WorkflowId,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{AnyError, store};

/// A claimed task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) task: Uuid,
    pub(super) token: i64,
}

#[async_trait]
pub(super) trait Queue: Send + Sync {
    /// Creates a run with all of its tasks, and starts it.
    async fn start_run(&self) -> Result<(), AnyError>;
    async fn claim(&self, limit: usize) -> Result<Vec<Held>, AnyError>;
    async fn complete(&self, held: &[Held]) -> Result<(), AnyError>;
}

/// The store itself, through its contract.
pub(super) struct Contract {
    pub(super) db: Arc<dyn Database>,
    pub(super) workflow: WorkflowId,
}

#[async_trait]
impl Queue for Contract {
    async fn start_run(&self) -> Result<(), AnyError> {
        store::start(&*self.db, self.workflow).await?;
        Ok(())
    }

    async fn claim(&self, limit: usize) -> Result<Vec<Held>, AnyError> {
        let claimed = self.db.claim_tasks(store::claim("bench", limit)?).await?;
        let held = |task: &ork_state_api::ClaimedTask| Held {
            task: task.claim.task.as_uuid(),
            token: task.claim.token.get(),
        };
        Ok(claimed.iter().map(held).collect())
    }

    async fn complete(&self, held: &[Held]) -> Result<(), AnyError> {
        let updates = held.iter().map(|held| TaskUpdate::succeeded(held.claim(), None)).collect();
        applied(&self.db.update_tasks(TaskUpdates::new(updates)?).await?)
    }
}

impl Held {
    pub(super) fn claim(self) -> Claim {
        Claim { task: TaskId::from_uuid(self.task), token: Token::from_stored(self.token) }
    }
}

/// A figure for refused updates would be worthless.
pub(super) fn applied(report: &UpdateReport) -> Result<(), AnyError> {
    let refused = report.outcomes.iter().find(|outcome| !matches!(outcome, UpdateOutcome::Applied { .. }));
    refused.map_or(Ok(()), |outcome| Err(format!("an update was answered {outcome:?}").into()))
}

/// How long it took.
pub(super) struct Took {
    pub(super) starting: Duration,
    pub(super) working: Duration,
    /// Calls that began or ended claims.
    pub(super) calls: usize,
}

impl Took {
    pub(super) fn all(&self) -> Duration {
        self.starting + self.working
    }
}

/// Starts the runs, then claims and completes all of their tasks, with this many concurrent
/// callers.
pub(super) async fn work_off(
    queue: &Arc<dyn Queue>,
    runs: usize,
    tasks: usize,
    callers: usize,
    batch: usize,
) -> Result<Took, AnyError> {
    let begun = Instant::now();
    let mut starters = JoinSet::new();
    for caller in 0..callers {
        let (queue, share) = (queue.clone(), runs / callers + usize::from(caller < runs % callers));
        starters.spawn(async move {
            for _ in 0..share {
                queue.start_run().await?;
            }
            Ok::<_, AnyError>(())
        });
    }
    while let Some(ended) = starters.join_next().await {
        ended??;
    }
    let starting = begun.elapsed();
    let begun = Instant::now();
    let calls = claim_and_complete(queue, tasks, callers, batch).await?;
    Ok(Took { starting, working: begun.elapsed(), calls })
}

/// Claims and completes this many tasks. Returns with how many calls. More tasks may be waiting.
async fn claim_and_complete(
    queue: &Arc<dyn Queue>,
    tasks: usize,
    callers: usize,
    batch: usize,
) -> Result<usize, AnyError> {
    // The number of tasks that no caller has set out to claim, and of those that are done.
    let (left, done) = (Arc::new(AtomicUsize::new(tasks)), Arc::new(AtomicUsize::new(0)));
    let calls = Arc::new(AtomicUsize::new(0));
    let mut claimers = JoinSet::new();
    for _ in 0..callers {
        let (queue, left, done, calls) = (queue.clone(), left.clone(), done.clone(), calls.clone());
        claimers.spawn(async move {
            while done.load(Ordering::Relaxed) < tasks {
                let take = |left: usize| Some(left.saturating_sub(batch));
                let there = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or(0);
                let wanted = there.min(batch);
                let held = if wanted > 0 { queue.claim(wanted).await? } else { Vec::new() };
                left.fetch_add(wanted - held.len(), Ordering::Relaxed);
                if held.is_empty() {
                    // Others hold the tasks that the rest waits for.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                queue.complete(&held).await?;
                calls.fetch_add(2, Ordering::Relaxed);
                done.fetch_add(held.len(), Ordering::Relaxed);
            }
            Ok::<_, AnyError>(())
        });
    }
    while let Some(ended) = claimers.join_next().await {
        ended??;
    }
    Ok(calls.load(Ordering::Relaxed))
}
