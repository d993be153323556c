//! What a run's retry comes to (rule R6), worked out once for all backends.

use std::collections::{BTreeSet, HashMap};

use crate::backend::{task_cancelled_message, task_failed_message};
use crate::{Entity, Error, Result, RetryRun, Run, RunStatus, Task, TaskCounts, TaskStatus, Text, Timestamp};

/// What to do for [`RunStore::retry_run`](crate::RunStore::retry_run). For backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPlan {
    /// The tasks to be done again, by index, each with how many of its dependencies are done again
    /// too.
    pub again: Vec<(u32, u32)>,
    /// The run's error from now on.
    pub error: Option<Text>,
    /// The run's counts from now on.
    pub counts: TaskCounts,
}

impl RetryPlan {
    /// Works out what is to be done again of a run; these are all of its tasks, in index order.
    ///
    /// # Errors
    /// Those of `retry_run`.
    pub fn new(retry: &RetryRun, run: &Run, tasks: &[Task]) -> Result<Self> {
        let refused = || Error::invalid_transition(Entity::Run, run.id, run.status, RunStatus::Running);
        if !run.status.is_terminal() {
            return Err(refused());
        }
        let graph = Graph::new(tasks);
        let again = match &retry.tasks {
            None => graph.unsuccessful(),
            Some(names) => {
                let named: Result<Vec<usize>> = names
                    .iter()
                    .map(|name| {
                        let index = graph.by_name.get(name.as_str()).copied();
                        index.ok_or_else(|| Error::not_found(Entity::Task, name))
                    })
                    .collect();
                graph.with_dependents(named?)
            }
        };
        if again.is_empty() {
            return Err(refused().with_hint("No task of it is to be done again"));
        }
        let mut plan = Vec::with_capacity(again.len());
        for &index in &again {
            let mut unmet = 0;
            for &dependency in &graph.dependencies[index] {
                if again.contains(&dependency) {
                    unmet += 1;
                } else if tasks[dependency].status != TaskStatus::Success {
                    let (task, blocked) = (&tasks[index].name, &tasks[dependency]);
                    let reason = format!(
                        "task {task:?} of run {} depends on {:?}, which is {} and would not be done again",
                        run.id, blocked.name, blocked.status
                    );
                    return Err(Error::conflict(reason).with_hint("Name that task too"));
                }
            }
            plan.push((tasks[index].index, unmet));
        }
        let stays = |index: &usize| !again.contains(index);
        let staying = |wanted: TaskStatus| {
            let number =
                (0..tasks.len()).filter(stays).filter(|&index| tasks[index].status == wanted).count();
            u32::try_from(number).unwrap_or(u32::MAX)
        };
        // A task that failed because of another never had all of its dependencies met.
        let culprit = (0..tasks.len())
            .filter(stays)
            .map(|index| &tasks[index])
            .find(|task| task.status == TaskStatus::Failed && task.unmet_dependencies == 0);
        let cancelled = (0..tasks.len())
            .filter(stays)
            .map(|index| &tasks[index])
            .find(|task| task.status == TaskStatus::Cancelled);
        let failed = culprit.map(|task| task_failed_message(&task.name));
        let error = failed.or_else(|| cancelled.map(|task| task_cancelled_message(&task.name)));
        Ok(Self {
            error: error.as_deref().map(Text::lossy),
            counts: TaskCounts {
                total: run.tasks.total,
                unfinished: u32::try_from(plan.len()).unwrap_or(u32::MAX),
                failed: staying(TaskStatus::Failed),
                cancelled: staying(TaskStatus::Cancelled),
            },
            again: plan,
        })
    }

    /// Sets the run going again.
    pub fn apply_to(&self, run: &mut Run) {
        run.status = RunStatus::Running;
        run.error.clone_from(&self.error);
        run.tasks = self.counts;
        run.finished_at = None;
    }
}

impl Task {
    /// Makes it as if it had never been claimed, waiting for so many dependencies. For backends.
    pub fn do_again(&mut self, unmet_dependencies: u32, now: Timestamp) {
        self.status = TaskStatus::Pending;
        self.unmet_dependencies = unmet_dependencies;
        self.attempts = 0;
        self.ready_at = (unmet_dependencies == 0).then_some(now);
        (self.open_jobs, self.lease, self.execution_name, self.error) = (0, None, None, None);
        (self.retry_at, self.dispatched_at, self.started_at, self.finished_at) = (None, None, None, None);
    }
}

struct Graph<'a> {
    tasks: &'a [Task],
    by_name: HashMap<&'a str, usize>,
    dependencies: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn new(tasks: &'a [Task]) -> Self {
        let by_name: HashMap<&str, usize> =
            tasks.iter().enumerate().map(|(index, task)| (task.name.as_str(), index)).collect();
        let of = |task: &Task| {
            task.depends_on.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect()
        };
        let dependencies = tasks.iter().map(of).collect();
        Self { tasks, by_name, dependencies }
    }

    fn unsuccessful(&self) -> BTreeSet<usize> {
        let unsuccessful =
            |index: &usize| matches!(self.tasks[*index].status, TaskStatus::Failed | TaskStatus::Cancelled);
        (0..self.tasks.len()).filter(unsuccessful).collect()
    }

    fn with_dependents(&self, named: Vec<usize>) -> BTreeSet<usize> {
        let mut dependents = vec![Vec::new(); self.tasks.len()];
        for (index, dependencies) in self.dependencies.iter().enumerate() {
            for &dependency in dependencies {
                dependents[dependency].push(index);
            }
        }
        let (mut reached, mut next) = (BTreeSet::new(), named);
        while let Some(index) = next.pop() {
            if reached.insert(index) {
                next.extend(&dependents[index]);
            }
        }
        reached
    }
}
