use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ork_state_api::backend::UpdateStep;
use ork_state_api::{
    Claim, ClaimTasks, ClaimedTask, Delay, DependencyOutputs, EndedRun, Entity, Error, ExpiredTasks,
    Heartbeat, HeartbeatOutcome, Json, Lease, Limit, ListTasks, Page, ReadyTask, RunId, RunStatus, Task,
    TaskChange, TaskDetail, TaskId, TaskName, TaskStatus, TaskUpdates, Text, Timestamp, Token, UpdateOutcome,
    UpdateReport,
};

use super::runs::{dependents, failed_because};
use super::{Expected, Model, TaskRow};

use crate::ctx::with;

/// Why an attempt ends without a report.
type Overdue = fn(&Model, &TaskRow) -> Option<(Timestamp, String)>;

impl Model {
    /// The tasks of a run.
    pub(super) fn rows(&self, run: RunId) -> &[TaskRow] {
        self.tasks.get(&run).map_or(&[], Vec::as_slice)
    }

    pub(super) fn row(&self, id: TaskId) -> Expected<&TaskRow> {
        let row = self.places.get(&id).and_then(|&(run, index)| self.rows(run).get(index));
        row.ok_or_else(|| Error::not_found(Entity::Task, id))
    }

    pub(super) fn edit(&mut self, run: RunId, index: usize, edit: impl FnOnce(&mut TaskRow)) {
        if let Some(row) = self.tasks.get_mut(&run).and_then(|rows| rows.get_mut(index)) {
            edit(row);
        }
    }

    pub(super) fn edit_task(&mut self, id: TaskId, edit: impl FnOnce(&mut TaskRow)) {
        if let Some(&(run, index)) = self.places.get(&id) {
            self.edit(run, index, edit);
        }
    }

    /// How many of its dependencies have not succeeded.
    pub(super) fn unmet(&self, row: &TaskRow) -> usize {
        let rows = self.rows(row.detail.task.run);
        row.dependencies.iter().filter(|&&it| rows[it].detail.task.status != TaskStatus::Success).count()
    }

    /// Since when a task is ready, or will be, if only time is missing (T1).
    fn ready_at(&self, row: &TaskRow) -> Option<Timestamp> {
        let is_running =
            self.runs.get(&row.detail.task.run).is_some_and(|run| run.status == RunStatus::Running);
        let is_queued = row.detail.task.status == TaskStatus::Pending && self.unmet(row) == 0 && is_running;
        // G8: a claim skips what cannot be read.
        if self.corrupt_run(row.detail.task.run).is_err() || self.corrupt_task(row.detail.task.id).is_err() {
            return None;
        }
        is_queued.then_some(row.ready_since)
    }

    /// A task with its computed fields.
    pub(super) fn show_task(&self, row: &TaskRow) -> Task {
        let task = row.detail.task.clone();
        let open = |it: &&super::JobRow| it.job.task == task.id && !it.job.status.is_terminal();
        let open_jobs = self.jobs.iter().filter(open).count();
        with(task, |task| {
            task.unmet_dependencies = u32::try_from(self.unmet(row)).unwrap_or(u32::MAX);
            task.open_jobs = u32::try_from(open_jobs).unwrap_or(u32::MAX);
            task.ready_at = self.ready_at(row);
        })
    }

    /// T1
    pub(super) fn ready_tasks(&self, now: Timestamp, limit: Limit) -> Vec<ReadyTask> {
        let mut ready = self.all_ready(now);
        ready.truncate(limit.get());
        ready
    }

    /// All ready tasks, in the order of T2.
    pub(crate) fn all_ready(&self, now: Timestamp) -> Vec<ReadyTask> {
        let mut ready = Vec::new();
        for row in self.tasks.values().flatten() {
            let Some(ready_at) = self.ready_at(row).filter(|ready_at| *ready_at <= now) else { continue };
            let task = &row.detail.task;
            ready.push(ReadyTask::new(ready_at, task.run, task.index, task.id));
        }
        ready.sort_by_key(|it| (it.ready_at, it.run, it.index));
        ready
    }

    /// T2
    pub(super) fn claim_tasks(
        &mut self,
        now: Timestamp,
        claim: &ClaimTasks,
        seen: Option<&Vec<ClaimedTask>>,
    ) -> Vec<ClaimedTask> {
        let tokens: BTreeMap<TaskId, i64> =
            seen.into_iter().flatten().map(|it| (it.claim.task, it.claim.token.get())).collect();
        let mut ready = self.all_ready(now);
        ready.retain(|it| tokens.contains_key(&it.task) || !self.contention.has_ready(it.run, it.index));
        ready
            .into_iter()
            .take(claim.limit.get())
            .filter_map(|it| self.claim_task(now, it.task, claim, tokens.get(&it.task)))
            .collect()
    }

    fn claim_task(
        &mut self,
        now: Timestamp,
        id: TaskId,
        claim: &ClaimTasks,
        token: Option<&i64>,
    ) -> Option<ClaimedTask> {
        self.edit_task(id, |row| {
            // Any token that the store chose is valid if it is greater than all before.
            row.token = token.copied().filter(|token| *token > row.token).unwrap_or(row.token + 1);
            let task = &mut row.detail.task;
            task.status = TaskStatus::Dispatched;
            task.attempts += 1;
            task.dispatched_at = Some(now);
            let (token, expires_at) = (Token::from_stored(row.token), now.saturating_add(claim.lease.get()));
            task.lease = Some(Lease::new(claim.owner.clone(), token, expires_at));
            (task.execution_name, task.retry_at, task.started_at) = (None, None, None);
        });
        let row = self.row(id).ok()?;
        let task = self.show_task(row);
        let workflow = self.workflows.get(&self.runs.get(&task.run)?.workflow)?;
        let dependency_outputs = match claim.dependency_outputs {
            DependencyOutputs::Omit => BTreeMap::new(),
            DependencyOutputs::Include => self.task_outputs(task.run, &task.depends_on).ok()?,
        };
        Some(with(
            ClaimedTask::new(
                task,
                Token::from_stored(row.token),
                workflow.id,
                workflow.name.clone(),
                workflow.target.clone(),
            ),
            |claimed| {
                claimed.params = row.detail.params.clone();
                claimed.dependency_outputs = dependency_outputs;
            },
        ))
    }

    /// Whether a claim holds: its token is current and its lease is live (T3, T4).
    pub(super) fn holds(&self, now: Timestamp, claim: Claim) -> bool {
        let lease = self.row(claim.task).ok().and_then(|row| row.detail.task.lease.as_ref());
        lease.is_some_and(|lease| lease.token == claim.token && now < lease.expires_at)
    }

    /// T3
    pub(super) fn heartbeat(&mut self, now: Timestamp, heartbeat: &Heartbeat) -> Vec<HeartbeatOutcome> {
        let expires_at = now.saturating_add(heartbeat.lease().get());
        let mut outcomes = Vec::new();
        for &claim in heartbeat.claims() {
            if !self.holds(now, claim) {
                outcomes.push(HeartbeatOutcome::Lost);
                continue;
            }
            self.edit_task(claim.task, |row| {
                if let Some(lease) = &mut row.detail.task.lease {
                    lease.expires_at = expires_at;
                }
            });
            outcomes.push(HeartbeatOutcome::Extended { expires_at });
        }
        outcomes
    }

    /// T3
    pub(super) fn expire_leases(
        &mut self,
        now: Timestamp,
        limit: Limit,
        seen: Option<&ExpiredTasks>,
    ) -> ExpiredTasks {
        self.expire(now, limit, seen, |_, row| {
            let lease = row.detail.task.lease.as_ref()?;
            Some((lease.expires_at, format!("the lease of \"{}\" lapsed", lease.owner)))
        })
    }

    /// T8
    pub(super) fn expire_timeouts(
        &mut self,
        now: Timestamp,
        limit: Limit,
        seen: Option<&ExpiredTasks>,
    ) -> ExpiredTasks {
        self.expire(now, limit, seen, |_, row| {
            let task = &row.detail.task;
            let since = task.started_at.filter(|_| task.status == TaskStatus::Running)?;
            let seconds = task.timeout_seconds?;
            let deadline = since.saturating_add(Duration::from_secs(u64::from(seconds)));
            Some((deadline, format!("timed out after {seconds} s")))
        })
    }

    /// Ends overdue attempts. Attempts that another call is working on count towards the limit, but
    /// may be left to the next call (T3). The store's answer says which were.
    fn expire(
        &mut self,
        now: Timestamp,
        limit: Limit,
        seen: Option<&ExpiredTasks>,
        overdue: Overdue,
    ) -> ExpiredTasks {
        let told: BTreeSet<TaskId> =
            seen.into_iter().flat_map(|seen| seen.requeued.iter().chain(&seen.failed)).copied().collect();
        let mut over = Vec::new();
        let mut contended = 0;
        for row in self.tasks.values().flatten() {
            let task = &row.detail.task;
            let is_contended = seen.is_some() && self.contention.has_overdue(task.run, task.index);
            contended += usize::from(is_contended);
            let Some((at, error)) = overdue(self, row).filter(|(at, _)| *at <= now) else { continue };
            if told.contains(&task.id) || !is_contended {
                over.push((at, task.id, error));
            }
        }
        over.sort();
        over.truncate(limit.get().saturating_sub(contended).max(told.len()).min(limit.get()));
        let (mut requeued, mut failed) = (Vec::new(), Vec::new());
        for (_, id, error) in over {
            self.fail_unreported(now, id, Text::lossy(&error));
            let is_failed = self.row(id).is_ok_and(|row| row.detail.task.status == TaskStatus::Failed);
            if is_failed { &mut failed } else { &mut requeued }.push(id);
        }
        let ended_runs = self.settle(now, &failed);
        requeued.sort();
        failed.sort();
        with(ExpiredTasks::default(), |expired| {
            expired.requeued = requeued;
            expired.failed = failed;
            expired.ended_runs = ended_runs;
        })
    }

    /// T5 for an attempt whose end no worker reported: it is retried at once.
    pub(super) fn fail_unreported(&mut self, now: Timestamp, id: TaskId, error: Text) {
        self.cancel_jobs(now, id);
        self.fail_attempt(now, id, error, Some(Delay::ZERO));
        // Only a reported failure has a retry time.
        self.edit_task(id, |row| row.detail.task.retry_at = None);
    }

    /// T5
    fn fail_attempt(&mut self, now: Timestamp, id: TaskId, error: Text, retry_after: Option<Delay>) {
        self.edit_task(id, |row| {
            let task = &mut row.detail.task;
            (task.error, task.lease) = (Some(error), None);
            task.started_at = task.started_at.or(Some(now));
            let attempts_left = (task.max_retries + 1).saturating_sub(task.attempts);
            match retry_after.filter(|_| attempts_left > 0) {
                Some(delay) => {
                    task.status = TaskStatus::Pending;
                    row.ready_since = now.saturating_add(delay.get());
                    task.retry_at = Some(row.ready_since);
                }
                None => (task.status, task.finished_at) = (TaskStatus::Failed, Some(now)),
            }
        });
    }

    pub(super) fn succeed(&mut self, now: Timestamp, id: TaskId, output: Option<Json>) {
        self.edit_task(id, |row| {
            let task = &mut row.detail.task;
            task.status = TaskStatus::Success;
            task.started_at = task.started_at.or(Some(now));
            task.finished_at = Some(now);
            (task.error, task.lease) = (None, None);
            row.detail.output = output;
        });
    }

    /// T4, T6
    pub(super) fn update_tasks(&mut self, now: Timestamp, updates: &TaskUpdates) -> UpdateReport {
        let mut outcomes = Vec::new();
        let mut ended = Vec::new();
        for step in updates.steps() {
            let outcome = self.update_task(now, step);
            if matches!(outcome, UpdateOutcome::Applied { status } if status.is_terminal()) {
                ended.push(step.claim.task);
            }
            outcomes.push(outcome);
        }
        UpdateReport::new(updates.outcomes(&outcomes), self.settle(now, &ended))
    }

    fn update_task(&mut self, now: Timestamp, step: &UpdateStep) -> UpdateOutcome {
        let id = step.claim.task;
        let status = match self.row(id) {
            Ok(row) => row.detail.task.status,
            Err(_) => return UpdateOutcome::NotFound,
        };
        if status.is_terminal() {
            return UpdateOutcome::AlreadyTerminal { status };
        }
        if !self.holds(now, step.claim) {
            return UpdateOutcome::LeaseLost;
        }
        self.edit_task(id, |row| {
            let task = &mut row.detail.task;
            if step.execution_name.is_some() {
                task.execution_name.clone_from(&step.execution_name);
            }
            if step.running {
                task.status = TaskStatus::Running;
                task.started_at = task.started_at.or(Some(now));
            }
        });
        match &step.end {
            None | Some(TaskChange::Dispatched { .. } | TaskChange::Running) => {}
            Some(TaskChange::Succeeded { output }) => self.succeed(now, id, output.clone()),
            Some(TaskChange::Failed { error, retry_after }) => {
                self.fail_attempt(now, id, error.clone(), *retry_after);
            }
            Some(TaskChange::Released) => self.edit_task(id, |row| {
                let task = &mut row.detail.task;
                task.status = TaskStatus::Pending;
                task.attempts -= 1;
                (task.lease, task.execution_name) = (None, None);
                (task.dispatched_at, task.started_at) = (None, None);
                row.ready_since = now;
            }),
        }
        let status = self.row(id).map_or(status, |row| row.detail.task.status);
        UpdateOutcome::Applied { status }
    }

    /// Applies the consequences of tasks that ended in one call: dependents become ready (T1) or
    /// fail (T5), and runs end (R3).
    pub(super) fn settle(&mut self, now: Timestamp, ended: &[TaskId]) -> Vec<EndedRun> {
        let mut runs: BTreeMap<RunId, BTreeSet<usize>> = BTreeMap::new();
        for (run, index) in ended.iter().filter_map(|id| self.places.get(id)) {
            runs.entry(*run).or_default().insert(*index);
        }
        let mut ended_runs = Vec::new();
        for (run, indexes) in runs {
            for &index in &indexes {
                match self.rows(run)[index].detail.task.status {
                    TaskStatus::Success => self.release_dependents(now, run, index),
                    // In the order of the DAG: of several culprits the first is named.
                    TaskStatus::Failed => self.fail_dependents(now, run, index),
                    _ => {}
                }
            }
            ended_runs.extend(self.end_if_done(now, run));
        }
        ended_runs
    }

    /// When the last dependency succeeds, the task is ready from then on (T2).
    fn release_dependents(&mut self, now: Timestamp, run: RunId, index: usize) {
        for dependent in 0..self.rows(run).len() {
            if self.rows(run)[dependent].dependencies.contains(&index) {
                self.edit(run, dependent, |row| row.ready_since = now);
            }
        }
    }

    fn fail_dependents(&mut self, now: Timestamp, run: RunId, culprit: usize) {
        let name = self.rows(run)[culprit].detail.task.name.clone();
        let mut dependents = dependents(self.rows(run), BTreeSet::from([culprit]));
        dependents.remove(&culprit);
        for index in dependents {
            self.edit(run, index, |row| {
                let task = &mut row.detail.task;
                if !task.status.is_terminal() {
                    (task.status, task.finished_at) = (TaskStatus::Failed, Some(now));
                    task.error = Some(Text::lossy(&format!("dependency \"{name}\" failed")));
                    task.retry_at = None;
                }
            });
        }
        self.edit_run(run, |run| {
            run.error.get_or_insert_with(|| failed_because(&name));
        });
    }

    pub(super) fn get_task(&self, id: TaskId) -> Expected<TaskDetail> {
        let row = self.row(id)?;
        Ok(with(row.detail.clone(), |taskdetail| taskdetail.task = self.show_task(row)))
    }

    /// G6: in the order of the DAG.
    pub(super) fn list_tasks(&self, list: &ListTasks) -> Expected<Page<Task, u32>> {
        self.get_run(list.run)?;
        let mut rows: Vec<&TaskRow> = self.rows(list.run).iter().collect();
        rows.retain(|row| list.page.after.is_none_or(|after| row.detail.task.index > after));
        if let Some(statuses) = &list.statuses {
            rows.retain(|row| statuses.contains(&row.detail.task.status));
        }
        rows.truncate(list.page.limit.get() + 1);
        let rows = rows.into_iter().map(|row| self.show_task(row)).collect();
        Ok(Page::from_rows(rows, list.page.limit, |task: &Task| task.index))
    }

    /// L1
    pub(super) fn task_outputs(
        &self,
        run: RunId,
        names: &[TaskName],
    ) -> Expected<BTreeMap<TaskName, Option<Json>>> {
        if names.len() > ork_state_api::limits::MAX_BATCH_ITEMS {
            return Err(Error::invalid("task names", "are too many"));
        }
        self.get_run(run)?;
        let names: BTreeSet<&TaskName> = names.iter().collect();
        let named = self.rows(run).iter().filter(|row| names.contains(&row.detail.task.name));
        Ok(named.map(|row| (row.detail.task.name.clone(), row.detail.output.clone())).collect())
    }
}
