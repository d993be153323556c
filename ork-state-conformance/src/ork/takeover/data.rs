//! The rows. Each is in them for a reason that stands beside it.

use ork_state_api::ork::takeover::{OldJob, OldRun, OldSnapshot, OldSpec, OldTask, OldWorkflow};

use super::{Form, OldStore, id, task_id};

/// The forms of time that Ork's code wrote.
const TIMES: [&str; 3] =
    ["2026-02-01T11:00:02.123456789+00:00", "2026-02-01 11:00:02", "2026-02-01T11:00:02.123Z"];
/// Longer than a text may be.
const HUGE: usize = 1024 * 1024 + 10;

fn some(text: impl Into<String>) -> Option<String> {
    Some(text.into())
}

fn workflow(number: u128, name: impl Into<String>) -> OldWorkflow {
    OldWorkflow {
        id: id(number),
        name: name.into(),
        job_name: some("job"),
        region: some("eu"),
        project: some("p"),
        executor_type: some("python"),
        created_at: some("2026-02-01 10:00:00"),
        updated_at: some("2026-02-01T10:00:00.5Z"),
        ..OldWorkflow::default()
    }
}

fn spec(workflow: u128, index: i64, name: &str, depends_on: &str, params: Option<&str>) -> OldSpec {
    OldSpec {
        workflow_id: Some(id(workflow)),
        task_index: index,
        task_name: name.to_owned(),
        executor_type: some("python"),
        depends_on: some(depends_on),
        params: params.map(str::to_owned),
        signature: None,
    }
}

fn run(number: u128, workflow: u128, status: &str) -> OldRun {
    let begun = status != "pending";
    let ended = matches!(status, "success" | "failed" | "cancelled");
    OldRun {
        id: id(number),
        workflow_id: id(workflow),
        status: status.to_owned(),
        triggered_by: some("cli"),
        error: (status == "failed").then(|| "no compiler".to_owned()),
        created_at: some("2026-02-01T11:00:00Z"),
        started_at: begun.then(|| "2026-02-01 11:00:01".to_owned()),
        finished_at: ended.then(|| "2026-02-01 11:00:03".to_owned()),
        ..OldRun::default()
    }
}

fn task(run: u128, index: u128, status: &str, depends_on: &str) -> OldTask {
    let at = || some(TIMES[usize::try_from(index % 3).unwrap_or(0)]);
    let begun = status != "pending" && status != "paused";
    let ended = matches!(status, "success" | "failed" | "cancelled");
    OldTask {
        id: task_id(run, index),
        run_id: id(run),
        task_index: i64::try_from(index).unwrap_or(0),
        task_name: Some(format!("task_{index}")),
        executor_type: some("python"),
        depends_on: some(depends_on),
        status: status.to_owned(),
        params: Some(format!("{{\"i\": {index}, \"f\": 1.50}}")),
        output: (status == "success").then(|| r#"{"rows": 12345678901234567890}"#.to_owned()),
        attempts: i64::from(status == "failed"),
        timeout_seconds: Some(60),
        created_at: some("2026-02-01 11:00:00"),
        dispatched_at: begun.then(at).flatten(),
        started_at: (begun && status != "dispatched").then(at).flatten(),
        finished_at: ended.then(at).flatten(),
        ..OldTask::default()
    }
}

fn job(number: u128, task: uuid::Uuid, status: &str) -> OldJob {
    OldJob {
        id: id(number),
        task_id: task,
        service_type: some("bigquery"),
        job_id: Some(format!("j{number}")),
        job_data: some(r#"{"n": 1.50}"#),
        status: status.to_owned(),
        created_at: Some(format!("2026-02-01 11:00:{:02}", number % 60)),
        finished_at: matches!(status, "completed" | "failed").then(|| "2026-02-01 11:01:00".to_owned()),
        ..OldJob::default()
    }
}

impl OldStore {
    /// The rows that a store of this form can hold.
    #[must_use]
    pub fn rows(form: &Form<'_>) -> Self {
        let mut all = Self::default();
        all.plain_rows(form);
        if (form.has)("workflow_tasks", "task_name") {
            all.compiled_rows(form);
        }
        if (form.has)("tasks", "task_name") {
            all.rows_with_dependencies(form);
            all.rows_with_names();
        }
        if (form.has)("tasks", "attempts") {
            all.rows_with_attempts();
        }
        if form.paused {
            all.paused_rows();
        }
        if (form.has)("deferred_jobs", "id") {
            all.rows_with_jobs(form);
        }
        if (form.has)("workflow_snapshots", "id") {
            all.rows_with_snapshots();
        }
        all.rows_beyond_limits(form);
        if !form.any_executor {
            let allowed = |workflow: &mut OldWorkflow| workflow.executor_type = some("process");
            all.workflows.iter_mut().for_each(allowed);
        }
        if form.orphans {
            all.orphan_rows();
        }
        if !(form.has)("tasks", "logs") {
            all.tasks.iter_mut().for_each(|task| task.logs = None);
        }
        all
    }

    fn add(&mut self, run: OldRun, tasks: impl IntoIterator<Item = OldTask>) {
        self.runs.push(run);
        self.tasks.extend(tasks);
    }

    fn plain_rows(&mut self, form: &Form<'_>) {
        self.workflows.push(OldWorkflow {
            description: some("Ünïcode"),
            task_params: some(r#"{"big": 12345678901234567890, "e": 1e2, "task_count": 2}"#),
            ..workflow(90, "orders")
        });
        // Nothing compiled: three equal tasks. In force without a next slot: it was due.
        self.workflows.push(OldWorkflow {
            schedule: some("* * * * *"),
            schedule_enabled: true,
            ..workflow(91, "Orders")
        });
        // A number of tasks of its own.
        self.workflows
            .push(OldWorkflow { task_params: some(r#"{"task_count": 5}"#), ..workflow(92, "five") });
        // Valid, and out of force.
        self.workflows.push(OldWorkflow {
            schedule: some("0 0 3 * * * *"),
            last_scheduled_at: some("2026-01-31 03:00:00"),
            next_scheduled_at: some("2026-02-01 03:00:00"),
            ..workflow(93, " nightly/eu ")
        });
        let log = "línea \n".repeat(if form.large { 200_000 } else { 1000 });
        let first = OldTask { logs: some(log), ..task(1, 0, "success", "[]") };
        self.add(run(1, 90, "success"), [first, task(1, 1, "success", "[]")]);
        // Every task has ended, and nobody ended the run.
        self.add(run(2, 90, "running"), [task(2, 0, "success", "[]"), task(2, 1, "success", "[]")]);
        self.add(run(3, 90, "running"), [task(3, 0, "success", "[]"), task(3, 1, "failed", "[]")]);
        // A pending and a running task under a cancelled run.
        let tasks = [task(4, 0, "success", "[]"), task(4, 1, "pending", "[]"), task(4, 2, "running", "[]")];
        self.add(run(4, 90, "cancelled"), tasks);
        self.add(run(6, 90, "pending"), []);
        // Failed for a reason of its own.
        self.add(run(7, 90, "failed"), []);
        // Failed for no reason that is known, and without times.
        let silent = OldRun { error: None, started_at: None, finished_at: None, ..run(8, 90, "failed") };
        self.add(silent, [OldTask { finished_at: None, ..task(8, 0, "failed", "[]") }]);
        // Tasks, and yet pending.
        self.add(run(9, 90, "pending"), [task(9, 0, "pending", "[]")]);
        // Numbers that leave gaps.
        let tasks = [2, 7, 5].map(|place| OldTask {
            task_index: place,
            ..task(10, place.unsigned_abs().into(), "success", "[]")
        });
        self.add(run(10, 90, "success"), tasks);
        if form.any_executor {
            // Made to be compiled, and never was.
            self.workflows.push(OldWorkflow { executor_type: some("dag"), ..workflow(94, "not compiled") });
            self.add(run(11, 94, "pending"), []);
        }
        if form.repeated_names {
            self.workflows.push(workflow(120, "orders"));
            self.workflows.push(workflow(121, "orders (2)"));
        }
    }

    fn compiled_rows(&mut self, form: &Form<'_>) {
        // Retries and timeouts stand inside the parameters.
        let load = r#"{"x": 1.0, "max_retries": 4, "timeout_seconds": 300}"#;
        let extract = r#"{"max_retries": -1, "timeout_seconds": 0}"#;
        self.workflow_tasks.push(spec(90, 3, "load", r#"["extract"]"#, Some(load)));
        self.workflow_tasks.push(spec(90, 1, "extract", "[]", Some(extract)));
        // Each waits for the other.
        self.workflows.push(workflow(95, "round"));
        self.workflow_tasks.push(spec(95, 0, "a", r#"["b"]"#, None));
        self.workflow_tasks.push(spec(95, 1, "b", r#"["a"]"#, None));
        // Names that are none, and a dependency that is not there, one twice, and one that is null.
        self.workflows.push(workflow(96, "names"));
        self.workflow_tasks.push(spec(96, 0, "raw/in", "[]", None));
        self.workflow_tasks.push(spec(96, 1, "out", r#"["raw/in", "gone", "raw/in", null]"#, None));
        self.workflow_tasks.push(spec(96, 2, "raw_in", "[]", None));
        if form.any_executor {
            self.workflows.push(OldWorkflow { executor_type: some("dag"), ..workflow(97, "compiled") });
            self.workflow_tasks.push(spec(97, 0, "only", "[]", None));
        }
    }

    fn rows_with_dependencies(&mut self, form: &Form<'_>) {
        // The middle of work, of a scheduler that is gone.
        let tasks = [
            task(5, 0, "success", "[]"),
            task(5, 1, "dispatched", r#"["task_0"]"#),
            task(5, 2, "running", "[]"),
            task(5, 3, "pending", r#"["task_1","task_2"]"#),
        ];
        self.add(run(5, 90, "running"), tasks);
        // On no task; what follows it; and one that has nothing to do with it.
        let tasks = [
            task(20, 0, "pending", r#"["gone"]"#),
            task(20, 1, "pending", r#"["task_0"]"#),
            task(20, 2, "pending", "[]"),
        ];
        self.add(run(20, 90, "running"), tasks);
        // In a circle, and after it.
        let tasks = [
            task(21, 0, "pending", r#"["task_1"]"#),
            task(21, 1, "pending", r#"["task_0"]"#),
            task(21, 2, "pending", r#"["task_1"]"#),
            task(21, 3, "pending", "[]"),
        ];
        self.add(run(21, 90, "running"), tasks);
        let tasks = [task(22, 0, "success", r#"["gone"]"#), task(22, 1, "success", r#"["task_0","task_0"]"#)];
        self.add(run(22, 90, "success"), tasks);
        // The failure was not passed on.
        let tasks = [
            task(23, 0, "failed", "[]"),
            task(23, 1, "pending", r#"["task_0"]"#),
            task(23, 2, "pending", r#"["task_1"]"#),
            task(23, 3, "running", "[]"),
        ];
        self.add(run(23, 90, "running"), tasks);
        let tasks = [task(24, 0, "pending", "[null]"), task(24, 1, "pending", "[]")];
        self.add(run(24, 90, "running"), tasks);
        if form.any_text {
            let tasks = [task(25, 0, "pending", "7"), task(25, 1, "success", r#"{"a": 1}"#)];
            self.add(run(25, 90, "running"), tasks);
        }
    }

    fn rows_with_names(&mut self) {
        let named = |index, name: &str, depends_on: &str| OldTask {
            task_name: some(name),
            ..task(40, index, "pending", depends_on)
        };
        // Names that could leave a directory, forge a line of a report, or are the same.
        let tasks = [
            named(0, "a/b", "[]"),
            named(1, "..", r#"["a/b"]"#),
            named(2, "x\u{1b}[2J\nrun 1 is fine", r#"[".."]"#),
            named(3, "same", "[]"),
            named(4, "same", r#"["same"]"#),
            named(5, &"é".repeat(300), "[]"),
            named(6, "a_b", "[]"),
            named(7, " blank ", "[]"),
        ];
        self.add(run(40, 90, "running"), tasks);
        self.workflows.push(workflow(98, "é".repeat(200)));
        self.workflows.push(workflow(99, "re\u{1b}[31m\nport"));
    }

    fn rows_with_attempts(&mut self) {
        let with = |index, status: &str, attempts, max_retries| OldTask {
            attempts,
            max_retries,
            ..task(50, index, status, "[]")
        };
        let tasks = [
            // At the first try.
            with(0, "success", 0, 2),
            // The second try runs.
            with(1, "running", 1, 2),
            // One retry, used up: the last failure was counted twice.
            with(2, "failed", 2, 1),
            with(3, "running", 78_874, 10),
            with(4, "running", -5, -1),
            with(5, "success", 1, 2_000_000_000),
        ];
        // It waits for its next try.
        let waits = OldTask {
            retry_at: some("2099-01-01 00:00:00"),
            error: some("first"),
            ..with(6, "pending", 1, 2)
        };
        let stale = OldTask { retry_at: some("2026-02-01 11:00:02"), ..with(7, "success", 1, 2) };
        let never = OldTask { timeout_seconds: Some(-3), ..with(8, "success", 0, 0) };
        self.add(run(50, 90, "running"), tasks.into_iter().chain([waits, stale, never]));
    }

    fn paused_rows(&mut self) {
        let tasks = || [("success", "[]"), ("paused", r#"["task_0"]"#), ("pending", r#"["task_1"]"#)];
        let of = |run, tasks: [(&str, &str); 3]| {
            tasks
                .into_iter()
                .zip(0..)
                .map(|((status, on), index)| task(run, index, status, on))
                .collect::<Vec<_>>()
        };
        self.add(run(30, 90, "paused"), of(30, tasks()));
        // A person paused a single task.
        self.add(run(31, 90, "running"), of(31, tasks()));
    }

    fn rows_with_jobs(&mut self, form: &Form<'_>) {
        self.deferred_jobs.push(job(71, task_id(5, 2), "polling"));
        self.deferred_jobs.push(job(72, task_id(5, 2), "completed"));
        // Of a task that has ended with its run.
        self.deferred_jobs.push(job(73, task_id(4, 2), "pending"));
        if form.any_text {
            self.deferred_jobs
                .push(OldJob { job_data: some("{broken"), ..job(74, task_id(5, 2), "completed") });
        }
    }

    fn rows_with_snapshots(&mut self) {
        let of = |number, workflow: u128, tasks: &str| OldSnapshot {
            id: id(number),
            workflow_id: id(workflow),
            tasks_json: some(tasks),
            created_at: some("2026-02-01 11:00:00"),
        };
        let tasks = r#"[
            {"task_index": 0, "task_name": "extract", "executor_type": "python", "depends_on": [], "params": {"max_retries": 2}, "signature": null},
            {"task_index": 1, "task_name": "load", "executor_type": "python", "depends_on": ["extract", "gone"], "params": {"x": 1.0, "timeout_seconds": 7}, "signature": null}]"#;
        self.workflows.push(OldWorkflow { current_snapshot_id: Some(id(80)), ..workflow(100, "snapshots") });
        self.workflow_snapshots.push(of(80, 100, tasks));
        // No DAG, and the same as another.
        self.workflow_snapshots.push(of(81, 100, r#"{"tasks": 1}"#));
        self.workflow_snapshots.push(of(82, 100, tasks));
        self.add(OldRun { snapshot_id: Some(id(81)), ..run(60, 100, "pending") }, []);
        self.add(OldRun { snapshot_id: Some(id(82)), ..run(61, 100, "pending") }, []);
        // Of another workflow.
        self.add(OldRun { snapshot_id: Some(id(80)), ..run(62, 90, "pending") }, []);
    }

    fn rows_beyond_limits(&mut self, form: &Form<'_>) {
        let (text, json) = if form.large { (HUGE, 17 << 20) } else { (10, 10) };
        self.workflows.push(OldWorkflow { description: some("d".repeat(text)), ..workflow(110, "long") });
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let tasks = [
            OldTask { output: some(deep), ..task(70, 0, "success", "[]") },
            OldTask { output: Some(format!("\"{}\"", "x".repeat(json))), ..task(70, 1, "success", "[]") },
            OldTask { error: some("e".repeat(text)), ..task(70, 2, "failed", "[]") },
            OldTask { execution_name: some("n".repeat(2000)), ..task(70, 3, "success", "[]") },
            OldTask { execution_name: some(""), ..task(70, 4, "success", "[]") },
        ];
        let long = OldRun { triggered_by: some("t".repeat(2000)), ..run(70, 90, "failed") };
        self.add(long, tasks);
        self.add(OldRun { triggered_by: some(""), ..run(71, 90, "success") }, []);
        if form.any_executor {
            self.workflows.push(OldWorkflow { executor_type: some(""), ..workflow(111, "no executor") });
        }
        if form.infinity {
            self.add(OldRun { created_at: some("infinity"), ..run(72, 90, "success") }, []);
        }
        if form.any_text {
            let odd = [
                OldTask { error: some("exit\0code"), ..task(73, 0, "failed", "[]") },
                OldTask { started_at: some("yesterday"), ..task(73, 1, "success", "[]") },
                OldTask { finished_at: some("2026-02-01T12:00+05:30"), ..task(73, 2, "success", "[]") },
            ];
            self.add(run(73, 90, "failed"), odd);
            self.workflows
                .push(OldWorkflow { created_at: some("the beginning"), ..workflow(112, "timeless") });
        }
        if form.any_text && form.keeps {
            // Only a database has columns that are not JSON where JSON belongs.
            let odd = [
                OldTask { output: some("no JSON"), ..task(74, 0, "success", "[]") },
                OldTask { params: some("{"), ..task(74, 1, "success", "[]") },
            ];
            self.add(run(74, 90, "success"), odd);
        }
    }

    fn orphan_rows(&mut self) {
        if self.runs.iter().any(|run| run.id == id(73)) {
            self.add(run(80, 999, "running"), [task(80, 0, "running", "[]")]);
            self.tasks.push(task(998, 0, "running", "[]"));
        }
        if !self.deferred_jobs.is_empty() {
            self.deferred_jobs.push(job(79, id(997), "polling"));
        }
    }
}
