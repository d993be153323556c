//! The best order in which to write a backend, and the cases that each step turns green.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ork_state_api::backend::Backend;
use ork_state_api::{Capability, ConnectOptions, Database, Error, Result, Topic, Watch};

use crate::model::{Answer, Answers, Call, Calls, LESSER, ModelFixture, Tamper};
use crate::run::{Manner, run_case_so};
use crate::{Case, Fixture, Rule, TestStore};

/// A part of a backend that is written in one go.
#[derive(Debug)]
pub struct Step {
    /// A short title.
    pub title: &'static str,
    /// The methods to write.
    pub methods: &'static [&'static str],
    /// The capability that the backend need not opt out of any more.
    pub capability: Option<Capability>,
    /// The rules to read first, at the methods that keep them.
    pub rules: &'static [Rule],
    /// A hint for the author.
    pub advice: &'static str,
    /// Whether a new crate already has it.
    pub is_given: bool,
}

const NEXT: Step =
    Step { title: "", methods: &[], capability: None, rules: &[], advice: "", is_given: false };

/// The steps, in order. Everything up to the statistics is the core.
pub const STEPS: &[Step] = &[
    Step {
        title: "A store that opens, migrates and can be checked",
        methods: &["migrate", "plan_migration", "verify"],
        rules: &[Rule::M1, Rule::M4],
        advice: "Given. It is in memory: put what you store in its place, with a schema that `migrate` makes.",
        is_given: true,
        ..NEXT
    },
    Step {
        title: "Workflows",
        methods: &[
            "create_workflow",
            "get_workflow",
            "find_workflow",
            "list_workflows",
            "count_workflows",
            "get_snapshot",
        ],
        rules: &[Rule::W1, Rule::W2, Rule::G6],
        advice: "Given, to show how a method goes. `list_runs` and `ready_tasks` say that there are none: the check after every case asks.",
        is_given: true,
        ..NEXT
    },
    Step {
        title: "Runs",
        methods: &["create_run", "get_run", "list_runs", "count_runs", "list_tasks"],
        rules: &[Rule::R1],
        advice: "`Run::new` makes the row. An idempotency key is unique in its workflow. A run that is not started has no tasks to list.",
        ..NEXT
    },
    Step {
        title: "Tasks come into being",
        methods: &["start_run", "get_task", "ready_tasks"],
        rules: &[Rule::R2, Rule::T1],
        advice: "All tasks in one transaction. Keep what is ready apart from what waits: a claim must not look at the latter.",
        ..NEXT
    },
    Step {
        title: "Claims",
        methods: &["claim_tasks"],
        rules: &[Rule::T2],
        advice: "Who claims waits for nobody and gets what no other has; the fencing token grows with every claim.",
        ..NEXT
    },
    Step {
        title: "Updates, and the ends of runs",
        methods: &["update_tasks", "task_outputs"],
        rules: &[Rule::T4, Rule::T5, Rule::T6, Rule::T7, Rule::R3, Rule::L1],
        advice: "The biggest step. A batch is one transaction with an outcome an item; the last task ends its run in the same transaction.",
        ..NEXT
    },
    Step {
        title: "Leases",
        methods: &["heartbeat", "expire_leases"],
        rules: &[Rule::T3],
        advice: "A lease is live before its end, not at it.",
        ..NEXT
    },
    Step {
        title: "Cancelling and pausing",
        methods: &["cancel_run", "pause_run", "resume_run"],
        rules: &[Rule::R4, Rule::R5],
        advice: "Both take away what is ready; a paused run's claimed tasks go on.",
        ..NEXT
    },
    Step {
        title: "Changing and deleting workflows",
        methods: &["update_workflow", "delete_workflow"],
        rules: &[Rule::W2, Rule::W3],
        advice: "Runs keep the snapshot that they pinned. What is deleted goes with all that hangs on it, in one transaction.",
        ..NEXT
    },
    Step {
        title: "Retries of runs",
        methods: &["retry_run"],
        rules: &[Rule::R6],
        advice: "`RetryPlan` works out which tasks begin anew.",
        ..NEXT
    },
    Step {
        title: "Timeouts",
        methods: &["expire_timeouts"],
        rules: &[Rule::T8],
        advice: "As leases, but counted from `started_at` and by each task's own limit.",
        ..NEXT
    },
    Step {
        title: "Pruning and statistics",
        methods: &["prune", "stats"],
        rules: &[Rule::M2, Rule::M3],
        advice: "In small transactions, the longest ended first. With this the core is complete.",
        ..NEXT
    },
    Step {
        title: "Durable",
        capability: Some(Capability::Durable),
        rules: &[Rule::G2],
        advice: "What is acknowledged is there after a crash. The fixture becomes one whose stores can be opened again.",
        ..NEXT
    },
    Step {
        title: "Several processes",
        capability: Some(Capability::MultiProcess),
        advice: "Cases start this test program again as other processes, and kill some of them.",
        ..NEXT
    },
    Step {
        title: "Logs",
        methods: &["append_log", "read_log"],
        capability: Some(Capability::Logs),
        rules: &[Rule::L2],
        advice: "Appending must not read what is there.",
        ..NEXT
    },
    Step {
        title: "Schedules",
        methods: &["set_schedule", "due_schedules", "fire_schedule"],
        capability: Some(Capability::Schedules),
        rules: &[Rule::S1],
        advice: "Firing compares and sets: of many schedulers one makes the run.",
        ..NEXT
    },
    Step {
        title: "Deferred jobs",
        methods: &["defer_task", "claim_jobs", "update_jobs", "list_jobs"],
        capability: Some(Capability::DeferredJobs),
        rules: &[Rule::D1, Rule::D2],
        advice: "Jobs are claimed as tasks are; the last to end ends its task.",
        ..NEXT
    },
    Step {
        title: "Notifications",
        capability: Some(Capability::Notifications),
        rules: &[Rule::M5],
        advice: "Write `watch`. A hint may come for nothing, and must not fail to come.",
        ..NEXT
    },
    Step {
        title: "Copies of other stores",
        methods: &["import_progress", "import", "finish_import", "abandon_import"],
        capability: Some(Capability::Transfer),
        rules: &[Rule::M6],
        advice: "Keep the records apart until the import is finished; then one transaction makes them the content of the store.",
        ..NEXT
    },
];

/// Which cases each of the [`STEPS`] turns green.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    cases: Vec<Vec<&'static str>>,
}

impl Plan {
    /// Finds the plan: every case runs over the model, which records the methods that it calls.
    ///
    /// # Errors
    /// A message if a case fails over the model.
    pub fn make() -> std::result::Result<Self, String> {
        // A case that needs no capability must be green in a backend without any.
        let lesser = calls_of_cases(&LESSER)?;
        let full = calls_of_cases(Tamper::NONE.plugin)?;
        let mut cases = vec![Vec::new(); STEPS.len()];
        for case in Case::all() {
            let called = if case.needs.is_empty() { &lesser } else { &full };
            let methods = called.get(case.name).into_iter().flatten().filter_map(|method| step_of(method));
            let needs = case
                .needs
                .iter()
                .filter_map(|need| STEPS.iter().position(|step| step.capability == Some(*need)));
            let step = methods.chain(needs).max().unwrap_or(0);
            cases[step].push(case.name);
        }
        Ok(Self { cases })
    }

    /// The names of the cases, with one list per step.
    #[must_use]
    pub fn cases(&self) -> &[Vec<&'static str>] {
        &self.cases
    }
}

/// The step in which a method is written.
fn step_of(method: &str) -> Option<usize> {
    match method {
        // A new crate has empty ones: see `STEPS`.
        "list_runs" | "ready_tasks" => None,
        _ => STEPS.iter().position(|step| step.methods.contains(&method)),
    }
}

/// The methods that each case calls, with those of the verification after it.
fn calls_of_cases(
    plugin: &'static Backend,
) -> std::result::Result<BTreeMap<&'static str, BTreeSet<&'static str>>, String> {
    let mut called = BTreeMap::new();
    for case in Case::all() {
        let partial = Arc::new(Partial::new(plugin, None));
        let fixture: Arc<dyn Fixture> = partial.clone();
        if let Some(message) = run_case_so(Manner::QUICK, &fixture, case, 1).verdict.problem() {
            return Err(format!("{} fails over the model: {message}", case.name));
        }
        called.insert(case.name, partial.called());
    }
    Ok(called)
}

/// Stores that are the model, with only some of the methods. They record which methods are called.
struct Partial {
    model: ModelFixture,
    written: Option<Arc<BTreeSet<&'static str>>>,
    called: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Partial {
    /// If none is named, all methods are there.
    fn new(plugin: &'static Backend, written: Option<BTreeSet<&'static str>>) -> Self {
        Self {
            model: ModelFixture::tampered(Tamper { plugin, ..Tamper::NONE }),
            written: written.map(Arc::new),
            called: Arc::default(),
        }
    }

    fn called(&self) -> BTreeSet<&'static str> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Fixture for Partial {
    fn backend(&self) -> &'static str {
        self.model.backend()
    }

    fn plugin(&self) -> std::result::Result<&'static Backend, String> {
        self.model.plugin()
    }

    async fn empty(&self) -> Result<Arc<dyn TestStore>> {
        self.model.empty().await
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Arc<dyn Database>> {
        let model = self.model.connect(options).await?;
        let (written, called) = (self.written.clone(), self.called.clone());
        Ok(Arc::new(Calls(PartialStore { model, written, called })))
    }
}

#[derive(Debug)]
struct PartialStore {
    model: Arc<dyn Database>,
    written: Option<Arc<BTreeSet<&'static str>>>,
    called: Arc<Mutex<BTreeSet<&'static str>>>,
}

#[async_trait]
impl Answers for PartialStore {
    fn backend(&self) -> &'static Backend {
        self.model.backend()
    }

    async fn answer(&self, call: Call) -> Answer {
        let name = call.name();
        self.called.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        let refused = call.needs().is_some_and(|needed| !self.backend().capabilities.has(needed));
        match &self.written {
            Some(written) if !refused && !written.contains(name) => {
                call.fails(Error::internal(format!("{name} is not written yet")))
            }
            _ => call.of(&*self.model).await,
        }
    }

    async fn watch(&self, topic: Topic) -> Result<Watch> {
        self.model.watch(topic).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_written_in_one_step() {
        let mut methods: Vec<&str> = STEPS.iter().flat_map(|step| step.methods).copied().collect();
        methods.sort_unstable();
        let mut all = Call::NAMES.to_vec();
        all.sort_unstable();
        assert_eq!(methods, all);
        for capability in Capability::ALL {
            assert_eq!(STEPS.iter().filter(|step| step.capability == Some(*capability)).count(), 1);
        }
    }

    /// A core case that turns green at a step must be green in a backend with nothing of the later
    /// steps.
    #[test]
    #[ignore = "heavy: it runs most cases many times; `cargo xtask ci` runs it"]
    fn the_cases_of_a_step_pass_with_it_and_without_the_next() {
        let plan = Plan::make().unwrap();
        let mut written = BTreeSet::from(["list_runs", "ready_tasks"]);
        for (step, cases) in STEPS.iter().zip(plan.cases()).take_while(|(step, _)| step.capability.is_none())
        {
            let before = Arc::new(Partial::new(&LESSER, Some(written.clone())));
            written.extend(step.methods);
            let now = Arc::new(Partial::new(&LESSER, Some(written.clone())));
            let run = |fixture: Arc<Partial>, name: &str| {
                let case = Case::all().into_iter().find(|case| case.name == name).unwrap();
                let fixture: Arc<dyn Fixture> = fixture;
                run_case_so(Manner::QUICK, &fixture, case, 1).verdict
            };
            let mut turned = 0;
            for case in cases {
                assert_eq!(run(now.clone(), case).problem(), None, "{}: {case}", step.title);
                turned += usize::from(run(before.clone(), case).problem().is_some());
            }
            // A case may pass because it expects an error.
            assert!(turned * 10 >= cases.len() * 9, "{}: {turned} of {}", step.title, cases.len());
        }
    }
}
