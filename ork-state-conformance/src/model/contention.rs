//! What concurrent calls are working on. A call need not wait for them, and may leave those rows to
//! the next call.

use std::collections::BTreeSet;

use ork_state_api::{DeferredJob, JobId, RetryRun, RunId};

use super::{Answer, Call, Model};

/// What other calls are working on meanwhile.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Contention {
    /// Runs whose tasks may not be claimed any more.
    halted: BTreeSet<RunId>,
    /// Runs that a call changes, including the halted ones.
    touched: BTreeSet<RunId>,
    /// Tasks that a claim takes, that are taken back, or that become ready. The key is their
    /// position in their run, because a store may tell the id later.
    tasks: BTreeSet<(RunId, u32)>,
    /// Jobs that a claim takes.
    jobs: BTreeSet<JobId>,
}

impl Contention {
    /// Adds what this call works on, given its answer if there was one.
    pub(crate) fn add(&mut self, model: &Model, call: &Call, answer: Option<&Answer>) {
        let place_of = |id| model.places.get(&id).copied();
        let run_of = |task| place_of(task).map(|(run, _)| run);
        match call {
            Call::PauseRun { id } | Call::CancelRun { id } => {
                self.halted.insert(*id);
                self.touched.insert(*id);
            }
            Call::ResumeRun { id: run } | Call::RetryRun { retry: RetryRun { run, .. } } => {
                self.touched.insert(*run);
            }
            Call::Heartbeat { heartbeat } => {
                self.touched.extend(heartbeat.claims().iter().filter_map(|claim| run_of(claim.task)));
            }
            Call::UpdateTasks { updates } => {
                self.touched.extend(updates.steps().iter().filter_map(|step| run_of(step.claim.task)));
            }
            Call::DeferTask { defer } => self.touched.extend(run_of(defer.claim().task)),
            Call::UpdateJobs { updates } => {
                let ids: BTreeSet<_> = updates.items().iter().map(|update| update.claim.job).collect();
                let jobs = model.jobs.iter().filter(|row| ids.contains(&row.job.id));
                self.touched.extend(jobs.map(|row| row.job.run));
            }
            _ => {}
        }
        match answer {
            Some(Answer::ClaimTasks(Ok(claimed))) => {
                self.tasks.extend(claimed.iter().map(|it| (it.task.run, it.task.index)));
            }
            Some(Answer::ExpireLeases(Ok(expired)) | Answer::ExpireTimeouts(Ok(expired))) => {
                let places = expired.requeued.iter().chain(&expired.failed).filter_map(|id| place_of(*id));
                self.tasks.extend(
                    places.filter_map(|(run, index)| u32::try_from(index).ok().map(|index| (run, index))),
                );
            }
            Some(Answer::ClaimJobs(Ok(claimed))) => self.jobs.extend(claimed.iter().map(|it| it.claim.job)),
            _ => {}
        }
    }

    /// Adds a task that has become ready.
    pub(crate) fn add_ready(&mut self, run: RunId, index: u32) {
        self.tasks.insert((run, index));
    }

    /// T2: whether a claim may skip this task, though it is ready.
    pub(super) fn has_ready(&self, run: RunId, index: u32) -> bool {
        self.halted.contains(&run) || self.tasks.contains(&(run, index))
    }

    /// T3, T8: whether this task need not be taken back, though it is overdue.
    pub(super) fn has_overdue(&self, run: RunId, index: u32) -> bool {
        self.touched.contains(&run) || self.tasks.contains(&(run, index))
    }

    /// D1: whether a claim may skip this job, though it is due.
    pub(super) fn has_job(&self, job: &DeferredJob) -> bool {
        self.touched.contains(&job.run) || self.jobs.contains(&job.id)
    }
}
