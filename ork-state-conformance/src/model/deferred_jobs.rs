use std::collections::BTreeMap;

use ork_state_api::{
    ClaimJobs, ClaimedJob, DeferTask, DeferredJob, Entity, Error, ErrorKind, JobChange, JobId, JobStatus,
    JobUpdate, JobUpdates, TaskId, TaskStatus, Text, Timestamp, Token, UpdateOutcome, UpdateReport,
};

use super::{Expected, JobRow, Model};

impl Model {
    /// D1
    pub(super) fn defer_task(
        &mut self,
        now: Timestamp,
        defer: &DeferTask,
        seen: Option<&Vec<DeferredJob>>,
    ) -> Expected<Vec<DeferredJob>> {
        let id = defer.claim().task;
        let task = self.row(id)?.detail.task.clone();
        if task.status.is_terminal() {
            return Err(Error::invalid_transition(Entity::Task, id, task.status, "deferred"));
        }
        if !self.holds(now, defer.claim()) {
            return Err(Error::new(ErrorKind::LeaseLost { task: id }));
        }
        self.edit_task(id, |row| {
            let task = &mut row.detail.task;
            task.status = TaskStatus::Running;
            task.started_at = task.started_at.or(Some(now));
            task.lease = None;
        });
        let mut jobs = Vec::new();
        for (index, new) in (0..).zip(defer.jobs()) {
            let seen = seen.and_then(|jobs| jobs.get(index as usize)).map(|job| job.id);
            let id = self.fresh_job(seen);
            let job = DeferredJob::from_stored(id, task.id, task.run, index, new.clone(), now);
            self.jobs.push(JobRow { job: job.clone(), token: 0 });
            jobs.push(job);
        }
        Ok(jobs)
    }

    /// D1
    pub(super) fn claim_jobs(
        &mut self,
        now: Timestamp,
        claim: &ClaimJobs,
        seen: Option<&Vec<ClaimedJob>>,
    ) -> Vec<ClaimedJob> {
        let tokens: BTreeMap<JobId, i64> =
            seen.into_iter().flatten().map(|it| (it.claim.job, it.claim.token.get())).collect();
        let mut due: Vec<usize> = (0..self.jobs.len()).collect();
        due.retain(|&place| self.jobs[place].job.poll_at.is_some_and(|poll_at| poll_at <= now));
        due.retain(|&place| {
            let job = &self.jobs[place].job;
            tokens.contains_key(&job.id) || !self.contention.has_job(job)
        });
        due.sort_by_key(|&place| (self.jobs[place].job.poll_at, self.jobs[place].job.id));
        due.truncate(claim.limit.get());
        let mut claimed = Vec::new();
        for place in due {
            let JobRow { job, token } = &mut self.jobs[place];
            *token = tokens.get(&job.id).copied().filter(|seen| *seen > *token).unwrap_or(*token + 1);
            job.status = JobStatus::Polling;
            job.owner = Some(claim.owner.clone());
            job.poll_at = Some(now.saturating_add(claim.lease.get()));
            job.started_at = job.started_at.or(Some(now));
            claimed.push(ClaimedJob::new(job.clone(), Token::from_stored(*token)));
        }
        claimed
    }

    /// D1
    pub(super) fn update_jobs(&mut self, now: Timestamp, updates: &JobUpdates) -> UpdateReport<JobStatus> {
        let (mut outcomes, mut ended) = (Vec::new(), Vec::new());
        for update in updates.items() {
            let outcome = self.update_job(now, update);
            if matches!(outcome, UpdateOutcome::Applied { status } if status.is_terminal()) {
                ended.extend(self.end_deferral(now, update.claim.job));
            }
            outcomes.push(outcome);
        }
        UpdateReport::new(outcomes, self.settle(now, &ended))
    }

    fn update_job(&mut self, now: Timestamp, update: &JobUpdate) -> UpdateOutcome<JobStatus> {
        let row = self.jobs.iter_mut().find(|row| row.job.id == update.claim.job);
        let Some(JobRow { job, token }) = row else { return UpdateOutcome::NotFound };
        if job.status.is_terminal() {
            return UpdateOutcome::AlreadyTerminal { status: job.status };
        }
        // While somebody polls a job, its next poll is when the lease lapses.
        let is_live = job.owner.is_some() && job.poll_at.is_some_and(|lapses_at| now < lapses_at);
        if *token != update.claim.token.get() || !is_live {
            return UpdateOutcome::LeaseLost;
        }
        job.last_polled_at = Some(now);
        (job.owner, job.poll_at) = (None, None);
        match &update.change {
            JobChange::Polled { next_after } => {
                job.poll_at = Some(now.saturating_add(next_after.get()));
                return UpdateOutcome::Applied { status: job.status };
            }
            JobChange::Completed { output } => {
                job.status = JobStatus::Completed;
                job.output.clone_from(output);
            }
            JobChange::Failed { error } => {
                job.status = JobStatus::Failed;
                job.error = Some(error.clone());
            }
        }
        job.finished_at = Some(now);
        UpdateOutcome::Applied { status: job.status }
    }

    /// Ends the attempt of the task that waited for this job, if it waits for no other. Returns the
    /// task if it ended too.
    fn end_deferral(&mut self, now: Timestamp, id: JobId) -> Option<TaskId> {
        let task = self.jobs.iter().find(|row| row.job.id == id)?.job.task;
        // The latest deferral. The jobs of each are numbered from 0.
        let of_task: Vec<&DeferredJob> =
            self.jobs.iter().map(|row| &row.job).filter(|job| job.task == task).collect();
        let first = of_task.iter().rposition(|job| job.index == 0)?;
        let jobs = &of_task[first..];
        if jobs.iter().any(|job| !job.status.is_terminal()) {
            return None;
        }
        if let Some(failed) = jobs.iter().find(|job| job.status == JobStatus::Failed) {
            let error = failed.error.clone().unwrap_or_else(|| Text::lossy(""));
            self.fail_unreported(now, task, error);
        } else {
            let output = if jobs.len() == 1 { jobs[0].output.clone() } else { None };
            self.succeed(now, task, output);
        }
        let status = self.row(task).ok()?.detail.task.status;
        status.is_terminal().then_some(task)
    }

    /// D2
    pub(super) fn cancel_jobs(&mut self, now: Timestamp, task: TaskId) {
        for JobRow { job, .. } in &mut self.jobs {
            if job.task == task && !job.status.is_terminal() {
                (job.status, job.finished_at) = (JobStatus::Cancelled, Some(now));
                (job.owner, job.poll_at) = (None, None);
            }
        }
    }

    pub(super) fn list_jobs(&self, task: TaskId) -> Expected<Vec<DeferredJob>> {
        self.row(task)?;
        Ok(self.jobs.iter().map(|row| &row.job).filter(|job| job.task == task).cloned().collect())
    }
}
