//! What the rows of Ork's databases and directories come to: one set of rules for all backends.
//!
//! A backend reads Ork's rows as they are, in any order that has workflows before runs, and gives
//! them to a [`Takeover`]. It writes the [`Record`]s that come back. What cannot be had as it was
//! is told by id, and what the contract has no room for is [`Kept`] aside.
//!
//! - **Retries and timeouts** of a workflow's tasks stand inside their `params`. They are read from
//!   there; the `params` stay as they are.
//! - **A workflow without compiled tasks** is as many equal tasks as its `task_params.task_count`
//!   says, or 3. With the executor type `dag` it cannot be run: its DAG is one task that says so.
//! - **A task that was paused by itself** stays held: its run is paused.
//! - **Attempts**: Ork counted the failed ones, this project counts those that were begun.
//! - **Claimed tasks** get a lease that has lapsed, because nobody knows who holds them.
//! - **Names** that are not valid, or that two have, change as little as they can.
//! - **Tasks that could never run** have failed, and what waits for them too. A run whose tasks
//!   have all ended has ended as they did.

mod names;
mod rows;
mod runs;
mod time;
mod workflows;

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use self::names::Names;
pub use self::rows::{OldJob, OldRun, OldSnapshot, OldSpec, OldTask, OldWorkflow};
use crate::backend::Record;
use crate::{Json, Label, Rule, SnapshotId, Text, Timestamp, Violation, WorkflowId, WorkflowName};

/// A takeover under way. See the [module](self).
#[derive(Debug)]
pub struct Takeover {
    /// For what has no time of its own.
    now: Timestamp,
    workflow_names: Names,
    workflows: HashMap<WorkflowId, Known>,
    lacks_tasks: bool,
    /// How many tasks have another number of attempts, because Ork counted failures.
    recounted: u64,
    adjusted: Vec<Violation>,
    kept: Vec<Kept>,
}

/// What runs need to know of a workflow.
#[derive(Debug)]
struct Known {
    current: SnapshotId,
    /// Each old snapshot: which one has its content now, and how many tasks it has.
    snapshots: HashMap<SnapshotId, (SnapshotId, usize)>,
}

/// A value that the contract has no room for, such as an output of 20 MiB. Whoever takes over keeps
/// it where a person finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// Whose, as in the report: a word and an id.
    pub entity: String,
    /// Which of its columns; `row` for all of what had no owner.
    pub field: &'static str,
    /// The value as it was. Rows are JSON.
    pub value: String,
}

impl Takeover {
    /// Begins. `names` are those of all workflows that there are; `now` is for what has no time of
    /// its own.
    pub fn new(now: Timestamp, names: impl IntoIterator<Item = String>) -> Self {
        Self {
            now,
            workflow_names: Names::reserve::<WorkflowName>(names),
            workflows: HashMap::new(),
            lacks_tasks: false,
            recounted: 0,
            adjusted: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Says that rows of tasks could not be read, and nobody knows of which runs. A live run that
    /// may lack one does not end as a success.
    pub const fn lacks_tasks(&mut self) {
        self.lacks_tasks = true;
    }

    /// Adds a line to the report.
    pub fn tell(&mut self, rule: Rule, entity: impl Into<String>, problem: impl Into<String>) {
        self.adjusted.push(Violation::new(rule, entity, problem));
    }

    /// Keeps a value aside.
    pub fn keep(&mut self, entity: impl Into<String>, field: &'static str, value: impl Into<String>) {
        self.kept.push(Kept { entity: entity.into(), field, value: value.into() });
    }

    /// The values that were kept aside since this was called last.
    #[must_use]
    pub fn take_kept(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.kept)
    }

    /// What has no owner: snapshots of no workflow, tasks of no run, jobs of no task. It is kept
    /// aside and told.
    pub fn orphans(&mut self, snapshots: Vec<OldSnapshot>, tasks: Vec<OldTask>, jobs: Vec<OldJob>) {
        for row in snapshots {
            let entity = format!("snapshot {}", SnapshotId::from_uuid(row.id));
            self.orphan(Rule::W2, entity, &format!("workflow {}", row.workflow_id), &row);
        }
        for row in tasks {
            self.orphan(Rule::W3, format!("task {}", row.id), &format!("run {}", row.run_id), &row);
        }
        for row in jobs {
            self.orphan(Rule::D1, format!("deferred job {}", row.id), &format!("task {}", row.task_id), &row);
        }
    }

    fn orphan(&mut self, rule: Rule, entity: String, owner: &str, row: &(impl Serialize + fmt::Debug)) {
        let problem = format!("belongs to {owner}, which is not there: it is not taken over, but kept aside");
        self.tell(rule, &*entity, problem);
        self.keep(entity, "row", serde_json::to_string(row).unwrap_or_else(|_| format!("{row:?}")));
    }

    /// The report, in the order of rules and ids.
    #[must_use]
    pub fn finish(mut self) -> Vec<Violation> {
        if self.recounted > 0 {
            let problem = "Ork counted attempts that had failed, and this project counts those that were begun: \
                           `attempts` is one more for a task that runs or has succeeded";
            self.tell(Rule::T5, format!("{} tasks", self.recounted), problem);
        }
        self.adjusted.sort();
        self.adjusted
    }

    /// Whether a text is as it may be; what may not be is cut or has its NUL replaced.
    fn text(&mut self, entity: &str, field: &'static str, text: &str) -> Text {
        Text::new(text).unwrap_or_else(|error| {
            self.told_and_kept(entity, field, text, &format!("{error}; what fits is there"));
            Text::lossy(text)
        })
    }

    /// An empty label is `instead`.
    fn label(&mut self, entity: &str, field: &'static str, text: Option<&str>, instead: &str) -> Label {
        match text {
            None => Label::lossy(instead),
            Some("") => {
                self.tell(Rule::G5, entity, format!("had an empty {field}: it is {instead:?}"));
                Label::lossy(instead)
            }
            Some(text) => Label::new(text).unwrap_or_else(|error| {
                self.told_and_kept(entity, field, text, &format!("{error}; what fits is there"));
                Label::lossy(text)
            }),
        }
    }

    fn json(&mut self, entity: &str, field: &'static str, text: Option<String>) -> Option<Json> {
        let text = text?;
        match Json::parse(text.as_str()) {
            Ok(json) => Some(json),
            Err(error) => {
                self.told_and_kept(entity, field, &text, &format!("{error}; there is none now"));
                None
            }
        }
    }

    fn time(&mut self, entity: &str, field: &'static str, text: Option<&str>) -> Option<Timestamp> {
        let text = text?;
        let time = time::read(text);
        if time.is_none() {
            self.tell(Rule::G3, entity, format!("had {:?} in {field}, which is no time", shown(text)));
            self.keep(entity, field, text);
        }
        time
    }

    /// A time that there must be.
    fn needed_time(
        &mut self,
        entity: &str,
        field: &'static str,
        time: Option<Timestamp>,
        instead: Timestamp,
    ) -> Timestamp {
        time.unwrap_or_else(|| {
            self.tell(Rule::G3, entity, format!("had no {field}: it is {instead}"));
            instead
        })
    }

    fn told_and_kept(&mut self, entity: &str, field: &'static str, value: &str, problem: &str) {
        self.tell(
            Rule::G5,
            entity,
            format!("{field} could not be kept as it was ({problem}): all of it is kept aside"),
        );
        self.keep(entity, field, value);
    }
}

/// The beginning of a text, for a line of the report.
fn shown(text: &str) -> String {
    const MOST: usize = 100;
    let mut shown: String = text.chars().take(MOST).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
