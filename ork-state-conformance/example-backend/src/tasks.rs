//! Tasks: handing them out and bringing them to an end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ork_state_api::backend::{
    UpdateStep, check_batch_len, dependency_failed_message, lease_lapsed_message, task_failed_message,
    timed_out_message,
};
use ork_state_api::{
    Claim, ClaimTasks, ClaimedTask, Delay, DependencyOutputs, EndedRun, Entity, Error, ExpiredTasks,
    Heartbeat, HeartbeatOutcome, Json, Lease, Limit, ListTasks, Page, ReadyTask, Result, RunId, RunStatus,
    Task, TaskChange, TaskDetail, TaskId, TaskName, TaskStatus, TaskUpdates, Text, Timestamp, Token,
    UpdateOutcome, UpdateReport,
};

use crate::state::State;

impl State {
    pub(crate) fn ready_tasks(&self, limit: Limit) -> Vec<ReadyTask> {
        let mut ready: Vec<ReadyTask> = self
            .tasks
            .values()
            .filter_map(|TaskDetail { task, .. }| {
                let ready_at = task.ready_at.filter(|ready_at| *ready_at <= self.now)?;
                Some(ReadyTask::new(ready_at, task.run, task.index, task.id))
            })
            .collect();
        ready.sort_unstable();
        ready.truncate(limit.get());
        ready
    }

    pub(crate) fn claim_tasks(&mut self, claim: &ClaimTasks) -> Result<Vec<ClaimedTask>> {
        self.ready_tasks(claim.limit).into_iter().map(|ready| self.claim_task(ready.task, claim)).collect()
    }

    fn claim_task(&mut self, id: TaskId, claim: &ClaimTasks) -> Result<ClaimedTask> {
        let last = self.tokens.get(&id).map_or(0, |token| token.get());
        let token = Token::from_stored(last + 1);
        self.tokens.insert(id, token);
        let now = self.now;
        let detail = self.task_mut(id)?;
        let task = &mut detail.task;
        task.status = TaskStatus::Dispatched;
        task.attempts += 1;
        task.lease = Some(Lease::new(claim.owner.clone(), token, now.saturating_add(claim.lease.get())));
        task.dispatched_at = Some(now);
        (task.ready_at, task.retry_at, task.started_at, task.execution_name) = (None, None, None, None);

        let TaskDetail { task, params, .. } = detail.clone();
        let workflow = self.workflow(self.run(task.run)?.workflow)?;
        let dependency_outputs = match claim.dependency_outputs {
            DependencyOutputs::Omit => BTreeMap::new(),
            DependencyOutputs::Include => self.task_outputs(task.run, &task.depends_on)?,
        };
        let mut claimed =
            ClaimedTask::new(task, token, workflow.id, workflow.name.clone(), workflow.target.clone());
        claimed.params = params;
        claimed.dependency_outputs = dependency_outputs;
        Ok(claimed)
    }

    pub(crate) fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Vec<HeartbeatOutcome> {
        let expires_at = self.now.saturating_add(heartbeat.lease().get());
        let renew = |claim: &Claim| match self.live_lease(*claim) {
            Some(lease) => {
                lease.expires_at = expires_at;
                HeartbeatOutcome::Extended { expires_at }
            }
            None => HeartbeatOutcome::Lost,
        };
        heartbeat.claims().iter().map(renew).collect()
    }

    /// The guard of every write by a worker: the token is current and the lease has not lapsed.
    fn live_lease(&mut self, claim: Claim) -> Option<&mut Lease> {
        let now = self.now;
        let lease = self.tasks.get_mut(&claim.task)?.task.lease.as_mut()?;
        (lease.token == claim.token && now < lease.expires_at).then_some(lease)
    }

    pub(crate) fn expire_leases(&mut self, limit: Limit) -> ExpiredTasks {
        self.expire(limit, |task| {
            let lease = task.lease.as_ref()?;
            Some((lease.expires_at, lease_lapsed_message(&lease.owner)))
        })
    }

    pub(crate) fn expire_timeouts(&mut self, limit: Limit) -> ExpiredTasks {
        self.expire(limit, |task| {
            let started_at = task.started_at.filter(|_| task.status == TaskStatus::Running)?;
            let seconds = task.timeout_seconds?;
            let deadline = started_at.saturating_add(Duration::from_secs(seconds.into()));
            Some((deadline, timed_out_message(seconds)))
        })
    }

    /// Ends attempts whose time has come, each with an error.
    fn expire(&mut self, limit: Limit, end: fn(&Task) -> Option<(Timestamp, String)>) -> ExpiredTasks {
        let tasks = self.tasks.values().map(|detail| &detail.task);
        let mut over: Vec<_> = tasks.filter_map(|task| Some((end(task)?, task.id))).collect();
        over.retain(|((time, _), _)| *time <= self.now);
        over.sort_unstable_by_key(|((time, _), id)| (*time, *id));
        over.truncate(limit.get());
        let mut expired = ExpiredTasks::default();
        let mut failed = Vec::new();
        for ((_, message), id) in over {
            match self.end_attempt(id, Text::lossy(&message), Some(Delay::ZERO)) {
                TaskStatus::Failed => failed.push(id),
                _ => expired.requeued.push(id),
            }
            // Unlike a failure that was reported, this one has no retry time.
            if let Ok(detail) = self.task_mut(id) {
                detail.task.retry_at = None;
            }
        }
        expired.ended_runs = self.settle(&failed);
        failed.sort_unstable();
        expired.requeued.sort_unstable();
        expired.failed = failed;
        expired
    }

    pub(crate) fn update_tasks(&mut self, updates: &TaskUpdates) -> UpdateReport {
        let mut ended = Vec::new();
        let outcomes: Vec<UpdateOutcome> =
            updates.steps().iter().map(|step| self.apply(step, &mut ended)).collect();
        UpdateReport::new(updates.outcomes(&outcomes), self.settle(&ended))
    }

    /// Applies one step. A task that it ended is added to `ended`, to be settled with the others of
    /// the batch.
    fn apply(&mut self, step: &UpdateStep, ended: &mut Vec<TaskId>) -> UpdateOutcome {
        let id = step.claim.task;
        let Ok(TaskDetail { task, .. }) = self.task(id) else { return UpdateOutcome::NotFound };
        if task.status.is_terminal() {
            return UpdateOutcome::AlreadyTerminal { status: task.status };
        }
        if self.live_lease(step.claim).is_none() {
            return UpdateOutcome::LeaseLost;
        }
        let (now, queued) = (self.now, self.is_running(id));
        let Ok(detail) = self.task_mut(id) else { return UpdateOutcome::NotFound };
        let task = &mut detail.task;
        if let Some(name) = &step.execution_name {
            task.execution_name = Some(name.clone());
        }
        if step.running {
            task.status = TaskStatus::Running;
            task.started_at.get_or_insert(now);
        }
        let status = match &step.end {
            None | Some(TaskChange::Dispatched { .. } | TaskChange::Running) => task.status,
            Some(TaskChange::Succeeded { output }) => {
                task.status = TaskStatus::Success;
                task.started_at.get_or_insert(now);
                task.finished_at = Some(now);
                (task.error, task.lease) = (None, None);
                detail.output = output.clone();
                TaskStatus::Success
            }
            Some(TaskChange::Failed { error, retry_after }) => {
                self.end_attempt(id, error.clone(), *retry_after)
            }
            Some(TaskChange::Released) => {
                task.status = TaskStatus::Pending;
                task.attempts = task.attempts.saturating_sub(1);
                task.ready_at = queued.then_some(now);
                (task.lease, task.execution_name, task.started_at, task.dispatched_at) =
                    (None, None, None, None);
                TaskStatus::Pending
            }
        };
        if status.is_terminal() {
            ended.push(id);
        }
        UpdateOutcome::Applied { status }
    }

    /// Ends a failed attempt (T5): the task is tried again, or failed. Says which.
    fn end_attempt(&mut self, id: TaskId, error: Text, retry_after: Option<Delay>) -> TaskStatus {
        let (now, queued) = (self.now, self.is_running(id));
        let Ok(TaskDetail { task, .. }) = self.task_mut(id) else { return TaskStatus::Failed };
        task.error = Some(error);
        task.lease = None;
        match retry_after {
            Some(delay) if task.attempts <= task.max_retries => {
                let retry_at = now.saturating_add(delay.get());
                task.status = TaskStatus::Pending;
                task.retry_at = Some(retry_at);
                task.ready_at = queued.then_some(retry_at);
            }
            _ => {
                task.status = TaskStatus::Failed;
                task.finished_at = Some(now);
            }
        }
        task.started_at.get_or_insert(now);
        task.status
    }

    fn is_running(&self, task: TaskId) -> bool {
        let run = self.task(task).and_then(|detail| self.run(detail.task.run));
        run.is_ok_and(|run| run.status == RunStatus::Running)
    }

    /// Draws the consequences of tasks that have ended: counts, dependents, runs.
    fn settle(&mut self, ended: &[TaskId]) -> Vec<EndedRun> {
        let mut of_runs: BTreeMap<RunId, Vec<Task>> = BTreeMap::new();
        for task in ended.iter().filter_map(|id| self.task(*id).ok()).map(|detail| detail.task.clone()) {
            of_runs.entry(task.run).or_default().push(task);
        }
        let mut ended_runs = Vec::new();
        for (run, mut tasks) in of_runs {
            // Of several culprits the one with the lowest index is named: it fails its dependents
            // first.
            tasks.sort_by_key(|task| task.index);
            for task in &tasks {
                self.count_end(run, task.status);
                if task.status == TaskStatus::Success {
                    self.release_dependents(task);
                }
            }
            for task in tasks.iter().filter(|task| task.status == TaskStatus::Failed) {
                self.fail_dependents(task);
                if let Ok(run) = self.run_mut(run) {
                    run.error.get_or_insert_with(|| Text::lossy(&task_failed_message(&task.name)));
                }
            }
            ended_runs.extend(self.end_if_done(run).map(|status| EndedRun::new(run, status)));
        }
        ended_runs
    }

    fn count_end(&mut self, run: RunId, status: TaskStatus) {
        if let Ok(run) = self.run_mut(run) {
            run.tasks.unfinished -= 1;
            run.tasks.failed += u32::from(status == TaskStatus::Failed);
        }
    }

    fn release_dependents(&mut self, task: &Task) {
        let (now, queued) = (self.now, self.is_running(task.id));
        for dependent in self.tasks_mut(task.run).filter(|other| other.depends_on.contains(&task.name)) {
            dependent.unmet_dependencies -= 1;
            if dependent.unmet_dependencies == 0 && dependent.status == TaskStatus::Pending {
                dependent.ready_at = queued.then_some(now);
            }
        }
    }

    /// Fails whatever depends on a task that failed for good, however far (T5).
    fn fail_dependents(&mut self, culprit: &Task) {
        let (now, error) = (self.now, Text::lossy(&dependency_failed_message(&culprit.name)));
        let mut reached = BTreeSet::from([culprit.name.clone()]);
        loop {
            let next: Vec<TaskName> = self
                .tasks_mut(culprit.run)
                .filter(|task| {
                    !reached.contains(&task.name) && task.depends_on.iter().any(|name| reached.contains(name))
                })
                .map(|task| task.name.clone())
                .collect();
            if next.is_empty() {
                break;
            }
            reached.extend(next);
        }
        let mut failed = 0;
        for task in self
            .tasks_mut(culprit.run)
            .filter(|task| reached.contains(&task.name) && !task.status.is_terminal())
        {
            task.status = TaskStatus::Failed;
            task.error = Some(error.clone());
            task.finished_at = Some(now);
            failed += 1;
        }
        for _ in 0..failed {
            self.count_end(culprit.run, TaskStatus::Failed);
        }
    }

    pub(crate) fn task(&self, id: TaskId) -> Result<&TaskDetail> {
        self.tasks.get(&id).ok_or_else(|| Error::not_found(Entity::Task, id))
    }

    fn task_mut(&mut self, id: TaskId) -> Result<&mut TaskDetail> {
        self.tasks.get_mut(&id).ok_or_else(|| Error::not_found(Entity::Task, id))
    }

    pub(crate) fn list_tasks(&self, list: &ListTasks) -> Result<Page<Task, u32>> {
        self.run(list.run)?;
        let ids = self.task_ids.get(&list.run).map_or(&[][..], Vec::as_slice);
        let first = list.page.after.map_or(0, |after| (after as usize).saturating_add(1));
        let tasks = ids.iter().skip(first).filter_map(|id| Some(&self.tasks.get(id)?.task));
        let wanted =
            |task: &&Task| list.statuses.as_ref().is_none_or(|statuses| statuses.contains(&task.status));
        let rows = tasks.filter(wanted).take(list.page.limit.get() + 1).cloned().collect();
        Ok(Page::from_rows(rows, list.page.limit, |task: &Task| task.index))
    }

    pub(crate) fn task_outputs(
        &self,
        run: RunId,
        names: &[TaskName],
    ) -> Result<BTreeMap<TaskName, Option<Json>>> {
        check_batch_len("list of names", names.len())?;
        self.run(run)?;
        let wanted: BTreeSet<&TaskName> = names.iter().collect();
        let ids = self.task_ids.get(&run).map_or(&[][..], Vec::as_slice);
        let found = ids
            .iter()
            .filter_map(|id| self.tasks.get(id))
            .filter(|detail| wanted.contains(&detail.task.name));
        Ok(found.map(|detail| (detail.task.name.clone(), detail.output.clone())).collect())
    }
}
