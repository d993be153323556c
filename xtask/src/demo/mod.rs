//! `cargo xtask demo`: a workflow is stored, started and worked off by two schedulers, each a process of its own. One of them is
//! killed with SIGKILL while it holds tasks; the other takes them over when their leases lapse.
//!
//! [`scheduler`] is the part to copy from.

mod scheduler;
mod workflow;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use comfy_table::{Cell, CellAlignment, Table, presets};
use ork_state_api::{
    Capability, Database, ListRuns, ListTasks, LogPosition, LogRange, NewWorkflow, PageRequest, Run,
    RunFilter, RunStatus, Schedule, Task, TaskStatus, WorkflowId,
};
use tokio::process::{Child, Command};

use crate::TaskResult;
use crate::backends::fixtures;

/// Shows an ETL workflow run by two schedulers, one of which is killed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store to work in; a new SQLite file by default. It must have no workflows: the schedulers run whatever is ready.
    #[arg(long)]
    url: Option<String>,
    /// Be a scheduler of this name instead, until killed.
    #[arg(long, hide = true, requires = "url")]
    scheduler: Option<String>,
}

/// How often the demo looks at the store to tell what goes on in it.
const LOOK: Duration = Duration::from_millis(50);
/// How long it may take in all.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(arguments: Arguments) -> TaskResult {
    // Naming the fixtures is what links the backends.
    if fixtures().is_empty() {
        return Err("no backend is linked: build with the features file, postgres or sqlite".into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments {
            Arguments { url: Some(url), scheduler: Some(name) } => {
                let db = ork_state_api::connect(&url).await?;
                db.migrate().await?;
                scheduler::work(db, &name).await.map_err(|error| error as Box<dyn std::error::Error>)?;
                Ok(ExitCode::SUCCESS)
            }
            Arguments { url, .. } => {
                let directory = tempfile::Builder::new().prefix("ork-state-demo-").tempdir()?;
                let url = url.unwrap_or_else(|| format!("sqlite://{}/demo.db", directory.path().display()));
                show(&url, directory.path()).await
            }
        }
    })
}

async fn show(url: &str, directory: &Path) -> TaskResult {
    let db = ork_state_api::connect(url).await?;
    println!("store: the {} backend; {}", db.backend().name, db.migrate().await?);
    check_store(&*db).await?;

    std::fs::write(directory.join("orders.csv"), include_str!("../../data/orders.csv"))?;
    let new = NewWorkflow::new("orders-etl".parse()?, workflow::dag(directory)?);
    let workflow = db.create_workflow(new).await?;
    // Due now: whichever scheduler sees it first makes the run.
    let schedule = Schedule::new("once".parse()?, Some(workflow.created_at));
    db.set_schedule(workflow.id, Some(schedule)).await?;

    let (first, _second) = (start_scheduler(url, "scheduler-1")?, start_scheduler(url, "scheduler-2")?);
    let mut story = Story { begun: Instant::now(), tasks: Vec::new(), log_offset: 0 };
    let run = story.wait_for_the_run(&db, workflow.id).await?;
    println!(
        "workflow `{}`, run {} by {}: {} tasks\n",
        workflow.name, run.id, run.triggered_by, run.tasks.total
    );
    story.watch_until_it_holds_tasks(&db, &run, "scheduler-1").await?;
    kill(first).await?;
    story.say("scheduler-1 is killed with SIGKILL; what it held comes back when its leases lapse");
    let run = story.watch_to_the_end(&db, &run).await?;

    println!("\n{}", table(&story.tasks));
    println!("run {}: {} after {:.1} s", run.id, run.status, story.begun.elapsed().as_secs_f64());
    if run.status != RunStatus::Success {
        return Ok(ExitCode::FAILURE);
    }
    println!("\n{}", std::fs::read_to_string(directory.join("report.txt"))?);
    Ok(ExitCode::SUCCESS)
}

async fn check_store(db: &dyn Database) -> Result<(), Box<dyn std::error::Error>> {
    let name = db.backend().name;
    for capability in [
        Capability::MultiProcess,
        Capability::Logs,
        Capability::Schedules,
        Capability::DeferredJobs,
        Capability::Notifications,
    ] {
        if !db.backend().capabilities.has(capability) {
            return Err(
                format!("the demo needs {capability}, which the {name} backend does not support").into()
            );
        }
    }
    if !db.list_workflows(PageRequest::default().into()).await?.items.is_empty() {
        return Err("this store has workflows, and the demo's schedulers would run their tasks: give it one of its own".into());
    }
    Ok(())
}

/// Another process of this program, which works as a scheduler.
fn start_scheduler(url: &str, name: &str) -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    Command::new(program).args(["demo", "--scheduler", name, "--url", url]).kill_on_drop(true).spawn()
}

/// `Child::kill` sends SIGKILL: nothing in the process gets to clean up.
async fn kill(mut scheduler: Child) -> std::io::Result<()> {
    scheduler.kill().await
}

/// Tells what goes on in the store.
struct Story {
    begun: Instant,
    tasks: Vec<Task>,
    log_offset: u64,
}

impl Story {
    fn say(&self, what: &str) {
        println!("{:6.2} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    async fn wait_for_the_run(
        &self,
        db: &Arc<dyn Database>,
        workflow: WorkflowId,
    ) -> Result<Run, Box<dyn std::error::Error>> {
        let filter = RunFilter::of(workflow).with_statuses([RunStatus::Running]);
        loop {
            let runs = db
                .list_runs({
                    let mut list = ListRuns::default();
                    list.filter = filter.clone();
                    list
                })
                .await?;
            match runs.items.into_iter().next() {
                Some(run) => return Ok(run),
                None if self.begun.elapsed() > PATIENCE => return Err("no scheduler has made the run".into()),
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn watch_until_it_holds_tasks(
        &mut self,
        db: &Arc<dyn Database>,
        run: &Run,
        scheduler: &str,
    ) -> Result<(), Box<dyn std::error::Error>> {
        // The split tasks are next after the one that is followed; each takes long enough to be caught at it.
        let held = |task: &Task| {
            task.name.starts_with("split-")
                && task.lease.as_ref().is_some_and(|lease| lease.owner.as_str() == scheduler)
        };
        while !self.tasks.iter().any(held) {
            self.look(db, run).await?;
        }
        Ok(())
    }

    async fn watch_to_the_end(
        &mut self,
        db: &Arc<dyn Database>,
        run: &Run,
    ) -> Result<Run, Box<dyn std::error::Error>> {
        loop {
            self.look(db, run).await?;
            let run = db.get_run(run.id).await?;
            if run.status.is_terminal() {
                self.look(db, &run).await?;
                return Ok(run);
            }
        }
    }

    /// Looks once, tells what is new, and waits a little.
    async fn look(&mut self, db: &Arc<dyn Database>, run: &Run) -> Result<(), Box<dyn std::error::Error>> {
        if self.begun.elapsed() > PATIENCE {
            return Err(format!("run {} has not ended after {PATIENCE:?}", run.id).into());
        }
        let tasks = db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await?.items;
        for task in &tasks {
            let before = self.tasks.get(task.index as usize);
            if before.is_none_or(|before| {
                (before.status, before.attempts, before.open_jobs)
                    != (task.status, task.attempts, task.open_jobs)
            }) {
                self.tell(before, task);
            }
        }
        if let Some(task) = tasks.iter().find(|task| task.name.as_str() == workflow::FOLLOWED) {
            let log =
                db.read_log(task.id, LogRange::new(LogPosition::Offset(self.log_offset), 64 * 1024)?).await?;
            self.log_offset = log.next_offset();
            for line in String::from_utf8_lossy(&log.bytes).lines() {
                self.say(&format!("  {} | {line}", task.name));
            }
        }
        self.tasks = tasks;
        tokio::time::sleep(LOOK).await;
        Ok(())
    }

    fn tell(&self, before: Option<&Task>, task: &Task) {
        let name = &task.name;
        let owner = task.lease.as_ref().map_or("nobody", |lease| lease.owner.as_str());
        let error = task.error.as_deref().unwrap_or("no reason given");
        match task.status {
            TaskStatus::Pending if before.is_some_and(|before| before.status != TaskStatus::Pending) => {
                self.say(&format!("{name} will be tried again: {error}"));
            }
            TaskStatus::Pending | TaskStatus::Dispatched => {}
            TaskStatus::Running if task.open_jobs > 0 => {
                self.say(&format!("{name} waits for a job elsewhere"));
            }
            TaskStatus::Running => self.say(&format!("{name} runs on {owner}, attempt {}", task.attempts)),
            TaskStatus::Success => self.say(&format!("{name} succeeded")),
            TaskStatus::Failed | TaskStatus::Cancelled => {
                self.say(&format!("{name} {}: {error}", task.status));
            }
        }
    }
}

fn table(tasks: &[Task]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["task", "status", "attempts", "last run by", "seconds"]);
    for task in tasks {
        let took = task
            .started_at
            .zip(task.finished_at)
            .map(|(started, finished)| finished.saturating_since(started));
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(&task.name),
            Cell::new(task.status),
            right(task.attempts.to_string()),
            Cell::new(task.execution_name.as_deref().unwrap_or("")),
            right(took.map(|took| format!("{:.2}", took.as_secs_f64())).unwrap_or_default()),
        ]);
    }
    table
}
