//! Deferred jobs: work outside of Ork that a task waits for.

use std::collections::HashSet;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::backend::Plugin;
use crate::updates::{check_batch_bytes, check_batch_len};
use crate::{
    Capability, Claim, Delay, Entity, Error, ErrorKind, JobId, JobStatus, Json, Label, LeaseTime, Limit,
    Result, RunId, TaskId, Text, Timestamp, Token, UpdateReport,
};

/// A job outside of Ork that a task waits for, as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeferredJob {
    /// Made by the store.
    pub id: JobId,
    /// The task that waits for it.
    pub task: TaskId,
    /// The run of that task.
    pub run: RunId,
    /// Its place among the jobs of one [`DeferTask`], from 0.
    pub index: u32,
    /// Where it runs, such as `bigquery`: whoever polls knows how to ask there.
    pub service_type: Label,
    /// What it is called there.
    pub job_id: Text,
    /// What else there is to know to ask for it.
    pub job_data: Json,
    /// Where it stands.
    pub status: JobStatus,
    /// Who is polling it, while somebody is.
    pub owner: Option<Label>,
    /// When it is to be polled: from this moment on it is handed out. While somebody polls it, that
    /// is when the lease lapses. `None` once it has ended.
    pub poll_at: Option<Timestamp>,
    /// What it gave.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::some")]
    pub output: Option<Json>,
    /// Why it failed.
    pub error: Option<Text>,
    /// When the task was deferred.
    pub created_at: Timestamp,
    /// When it was first handed out.
    pub started_at: Option<Timestamp>,
    /// When a poll was last recorded.
    pub last_polled_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A job to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewDeferredJob {
    /// Where it runs.
    pub service_type: Label,
    /// What it is called there.
    pub job_id: Text,
    /// What else there is to know to ask for it.
    pub job_data: Json,
    /// How long to wait before it is polled first.
    pub poll_after: Delay,
}

impl NewDeferredJob {
    /// A job that may be polled at once.
    #[must_use]
    pub const fn new(service_type: Label, job_id: Text, job_data: Json) -> Self {
        Self { service_type, job_id, job_data, poll_after: Delay::ZERO }
    }

    /// Sets how long to wait before it is polled first.
    #[must_use]
    pub const fn with_poll_after(mut self, delay: Delay) -> Self {
        self.poll_after = delay;
        self
    }

    fn bytes(&self) -> usize {
        self.service_type.len() + self.job_id.len() + self.job_data.as_str().len()
    }
}

impl DeferredJob {
    /// A job as it is created (D1). For backends.
    #[must_use]
    pub fn new(new: &NewDeferredJob, task: TaskId, run: RunId, index: u32, now: Timestamp) -> Self {
        Self::from_stored(JobId::generate(), task, run, index, new.clone(), now)
    }

    /// A pending job, to be polled first when its delay after its creation is over. Backends set
    /// the rest.
    #[must_use]
    pub fn from_stored(
        id: JobId,
        task: TaskId,
        run: RunId,
        index: u32,
        new: NewDeferredJob,
        created_at: Timestamp,
    ) -> Self {
        let NewDeferredJob { service_type, job_id, job_data, poll_after } = new;
        Self {
            id,
            task,
            run,
            index,
            service_type,
            job_id,
            job_data,
            status: JobStatus::Pending,
            owner: None,
            poll_at: Some(created_at.saturating_add(poll_after.get())),
            output: None,
            error: None,
            created_at,
            started_at: None,
            last_polled_at: None,
            finished_at: None,
        }
    }
}

/// A claimed task that is to wait for jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeferTask {
    claim: Claim,
    jobs: Vec<NewDeferredJob>,
}

impl DeferTask {
    /// Has the task wait for all of these.
    ///
    /// # Errors
    /// `InvalidInput` for no job at all, and beyond
    /// [`MAX_BATCH_ITEMS`](crate::limits::MAX_BATCH_ITEMS) or
    /// [`MAX_BATCH_BYTES`](crate::limits::MAX_BATCH_BYTES).
    pub fn new(claim: Claim, jobs: impl Into<Vec<NewDeferredJob>>) -> Result<Self> {
        let jobs = jobs.into();
        if jobs.is_empty() {
            return Err(Error::invalid("deferral", "names no job to wait for"));
        }
        check_batch_len("deferral", jobs.len())?;
        check_batch_bytes("deferral", jobs.iter().map(NewDeferredJob::bytes).sum())?;
        Ok(Self { claim, jobs })
    }

    /// The claim that it ends.
    #[must_use]
    pub const fn claim(&self) -> Claim {
        self.claim
    }

    /// The jobs.
    #[must_use]
    pub fn jobs(&self) -> &[NewDeferredJob] {
        &self.jobs
    }
}

/// Which jobs to take for polling.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimJobs {
    /// Who polls: recorded with the job, for people. It proves nothing; the token does.
    pub owner: Label,
    /// How long one poll may take.
    pub lease: LeaseTime,
    /// At most so many jobs.
    pub limit: Limit,
}

impl ClaimJobs {
    /// Up to a hundred jobs.
    #[must_use]
    pub fn new(owner: Label, lease: LeaseTime) -> Self {
        Self { owner, lease, limit: Limit::default() }
    }

    /// Sets how many.
    #[must_use]
    pub const fn with_limit(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }
}

/// One claim of one job: what a poller shows to prove that it is its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobClaim {
    /// The job.
    pub job: JobId,
    /// The token that the claim gave. It grows with every claim of the job.
    pub token: Token,
}

/// A claimed job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimedJob {
    /// The job as the claim left it: `polling`, with its owner.
    pub job: DeferredJob,
    /// What to prove the claim with.
    pub claim: JobClaim,
}

impl ClaimedJob {
    /// A job as a claim left it, with the token that the claim gave.
    #[must_use]
    pub const fn new(job: DeferredJob, token: Token) -> Self {
        let claim = JobClaim { job: job.id, token };
        Self { job, claim }
    }
}

/// What a poll of one job told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobUpdate {
    /// The claim it was polled under.
    pub claim: JobClaim,
    /// What it told.
    pub change: JobChange,
}

/// What a poll can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobChange {
    /// It goes on.
    Polled {
        /// How long to wait before it is polled again.
        next_after: Delay,
    },
    /// It ended well.
    Completed {
        /// What it gave.
        output: Option<Json>,
    },
    /// It ended badly.
    Failed {
        /// Why.
        error: Text,
    },
}

impl JobUpdate {
    /// It goes on, and is to be polled again after the delay.
    #[must_use]
    pub const fn polled(claim: JobClaim, next_after: Delay) -> Self {
        Self { claim, change: JobChange::Polled { next_after } }
    }

    /// It ended well.
    #[must_use]
    pub const fn completed(claim: JobClaim, output: Option<Json>) -> Self {
        Self { claim, change: JobChange::Completed { output } }
    }

    /// It ended badly.
    #[must_use]
    pub const fn failed(claim: JobClaim, error: Text) -> Self {
        Self { claim, change: JobChange::Failed { error } }
    }

    fn bytes(&self) -> usize {
        match &self.change {
            JobChange::Polled { .. } => 0,
            JobChange::Completed { output } => output.as_ref().map_or(0, |output| output.as_str().len()),
            JobChange::Failed { error } => error.len(),
        }
    }
}

/// A batch of what polls told that is within the limits and names no job twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobUpdates(Vec<JobUpdate>);

impl JobUpdates {
    /// Takes a batch; it may be empty.
    ///
    /// # Errors
    /// `InvalidInput` for a job that comes twice, and beyond
    /// [`MAX_BATCH_ITEMS`](crate::limits::MAX_BATCH_ITEMS) or
    /// [`MAX_BATCH_BYTES`](crate::limits::MAX_BATCH_BYTES).
    pub fn new(updates: Vec<JobUpdate>) -> Result<Self> {
        check_batch_len("batch of job updates", updates.len())?;
        check_batch_bytes("batch of job updates", updates.iter().map(JobUpdate::bytes).sum())?;
        let mut seen = HashSet::with_capacity(updates.len());
        if let Some(twice) = updates.iter().find(|update| !seen.insert(update.claim.job)) {
            let reason = format!("names job {} twice: one poll tells one thing", twice.claim.job);
            return Err(Error::invalid("batch of job updates", reason));
        }
        Ok(Self(updates))
    }

    /// A batch of one. By its types it is within the limits.
    #[must_use]
    pub fn one(update: JobUpdate) -> Self {
        Self(vec![update])
    }

    /// The updates.
    #[must_use]
    pub fn items(&self) -> &[JobUpdate] {
        &self.0
    }
}

/// What a task comes to once the last of its jobs has ended (**D1**), for backends: the jobs of its
/// deferral in order.
#[must_use]
pub fn deferred_end(jobs: &[&DeferredJob]) -> DeferredEnd {
    if let Some(failed) = jobs.iter().find(|job| job.status == JobStatus::Failed) {
        return DeferredEnd::Failed { error: failed.error.clone().unwrap_or_else(|| Text::lossy("")) };
    }
    match jobs {
        [only] => DeferredEnd::Succeeded { output: only.output.clone() },
        _ => DeferredEnd::Succeeded { output: None },
    }
}

/// See [`deferred_end`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeferredEnd {
    /// All of them completed.
    Succeeded {
        /// That of the only job; a task of several has none.
        output: Option<Json>,
    },
    /// One of them failed.
    Failed {
        /// That of the first one that failed.
        error: Text,
    },
}

/// The error of a call that defers a task whose claim does not hold, for backends: the task's
/// status is `None` if it is not there.
#[must_use]
pub fn cannot_defer(task: TaskId, status: Option<crate::TaskStatus>) -> Error {
    match status {
        None => Error::not_found(Entity::Task, task),
        Some(status) if status.is_terminal() => {
            Error::invalid_transition(Entity::Task, task, status, "deferred")
        }
        Some(_) => Error::new(ErrorKind::LeaseLost { task }),
    }
}

/// Keeps deferred jobs. The [general rules](crate::Database#general-rules) hold for every method.
///
/// A task may start something elsewhere, such as a query in a warehouse. Such a task is *deferred*:
/// its worker goes away, and a poller finds out when the job is over. All that is known of the job
/// is here, so any process may go on after another has died.
///
/// A backend may opt out with [`Capability::DeferredJobs`](crate::Capability::DeferredJobs). All
/// methods are then `Unsupported`, which is what they answer by default.
#[async_trait]
pub trait DeferredJobStore: Plugin {
    /// Has a claimed task wait for jobs.
    ///
    /// **D1** The jobs come into being and the claim ends together. The task is `running` from now
    /// at the latest. It has no lease, so none can lapse. [`open_jobs`](crate::Task::open_jobs)
    /// says for how many jobs it waits. Its [timeout](crate::TaskStore::expire_timeouts) goes on.
    ///
    /// The answer has the jobs in the order given.
    ///
    /// # Errors
    /// `LeaseLost` if the claim does not hold. `InvalidTransition` for a task that has ended.
    /// `NotFound` for the task. `Unsupported`.
    ///
    /// # Cancel safety
    /// Deferred or not. Repeated after a lost answer it is `LeaseLost`, since the claim is over.
    /// Look at the task's [jobs](Self::list_jobs).
    async fn defer_task(&self, defer: DeferTask) -> Result<Vec<DeferredJob>> {
        let _ = defer;
        Err(self.backend().lacks(Capability::DeferredJobs))
    }

    /// Takes jobs whose time to be polled has come.
    ///
    /// **D1** Each due job goes to exactly one poller, however many ask at once. The longest due
    /// comes first, then order is by id. A job is due again when its lease lapses, so a poller that
    /// dies holds nothing up. A call may pass over jobs that another call holds or makes due
    /// meanwhile, as [claims of tasks](crate::TaskStore::claim_tasks) may. The cost does not grow
    /// with the jobs that are not due.
    ///
    /// # Errors
    /// `Unsupported`. No due job is an empty answer.
    ///
    /// # Cancel safety
    /// Jobs whose answer is lost are due again when their leases lapse.
    async fn claim_jobs(&self, claim: ClaimJobs) -> Result<Vec<ClaimedJob>> {
        let _ = claim;
        Err(self.backend().lacks(Capability::DeferredJobs))
    }

    /// Records what polls told.
    ///
    /// - **D1** An item is applied if its claim holds: its token is current and its lease is live.
    /// - The end of the last open job of a task ends the task's attempt in the same transaction, as
    ///   [`deferred_end`](crate::backend::deferred_end) says. If all jobs completed, that is a
    ///   success. Else it is a failure with T5's retries, ready again from now. The run ends with
    ///   its last task (**R3**).
    /// - An ended job stays as it is (`AlreadyTerminal`). Each item stands for itself (**T6**). An
    ///   empty batch is an empty answer.
    /// - Repeating a batch after its answer was lost changes nothing more (**T7**).
    ///
    /// # Errors
    /// `Unsupported`. An item that is not applied is an answer, not an error.
    ///
    /// # Cancel safety
    /// The whole batch is applied or nothing of it. Repeating it is safe.
    async fn update_jobs(&self, updates: JobUpdates) -> Result<UpdateReport<JobStatus>> {
        let _ = updates;
        Err(self.backend().lacks(Capability::DeferredJobs))
    }

    /// The jobs of a task in the order of their creation, those of earlier attempts too.
    ///
    /// **D2** Something else than its jobs may end a task's attempt, such as a cancelled run or a
    /// timeout. In the same transaction the open jobs become `cancelled`.
    ///
    /// # Errors
    /// `NotFound` for the task. `Unsupported`.
    async fn list_jobs(&self, task: TaskId) -> Result<Vec<DeferredJob>> {
        let _ = task;
        Err(self.backend().lacks(Capability::DeferredJobs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> JobClaim {
        JobClaim { job: JobId::generate(), token: Token::from_stored(1) }
    }

    fn job(status: JobStatus, output: Option<&str>, error: Option<&str>) -> DeferredJob {
        DeferredJob {
            id: JobId::generate(),
            task: TaskId::generate(),
            run: RunId::generate(),
            index: 0,
            service_type: "s".parse().unwrap(),
            job_id: "j".parse().unwrap(),
            job_data: Json::parse("{}").unwrap(),
            status,
            owner: None,
            poll_at: None,
            output: output.map(|text| Json::parse(text).unwrap()),
            error: error.map(Text::lossy),
            created_at: Timestamp::MIN,
            started_at: None,
            last_polled_at: None,
            finished_at: None,
        }
    }

    #[test]
    fn a_batch_names_a_job_once() {
        let claim = claim();
        assert!(JobUpdates::new(vec![JobUpdate::polled(claim, Delay::ZERO); 2]).is_err());
        assert!(!JobUpdates::one(JobUpdate::completed(claim, None)).items().is_empty());
        assert!(JobUpdates::new(vec![]).unwrap().items().is_empty());
    }

    #[test]
    fn a_deferral_has_jobs() {
        let claim = Claim { task: TaskId::generate(), token: Token::from_stored(1) };
        assert!(DeferTask::new(claim, []).is_err());
    }

    #[test]
    fn jobs_end_their_task() {
        let (done, null, bad, worse) = (
            job(JobStatus::Completed, Some("1"), None),
            job(JobStatus::Completed, Some("null"), None),
            job(JobStatus::Failed, None, Some("bad")),
            job(JobStatus::Failed, None, Some("worse")),
        );
        let failed = |error| DeferredEnd::Failed { error: Text::lossy(error) };
        assert_eq!(deferred_end(&[&null]), DeferredEnd::Succeeded { output: null.output.clone() });
        assert_eq!(deferred_end(&[&done, &null]), DeferredEnd::Succeeded { output: None });
        assert_eq!(deferred_end(&[&done, &bad, &worse]), failed("bad"));
        assert_eq!(deferred_end(&[&worse]), failed("worse"));
    }
}
