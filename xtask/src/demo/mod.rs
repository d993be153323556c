//! `cargo xtask demo`: a workflow is stored, started and worked off by two schedulers, each a
//! separate process. One of them is killed with SIGKILL while it holds tasks. The other takes them
//! over when their leases lapse.
//!
//! [`scheduler`] is the part to copy from.

mod picture;
mod scheduler;
mod screen;
mod story;
mod workflow;

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use ork_state_api::{
    Capability, Database, ListRuns, NewWorkflow, PageRequest, Run, RunFilter, RunStatus, Schedule, Workflow,
};
// Importing a backend links it.
use ork_state_sqlite as _;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use xtask::TaskResult;

use self::screen::Screen;
use self::story::{Story, Tone};

/// Shows an ETL workflow run by two schedulers, one of which is killed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store to work in; a new SQLite file by default. It must have no workflows, because the
    /// schedulers run whatever is ready.
    #[arg(long)]
    url: Option<String>,
    /// Be a scheduler of this name instead, until standard input ends.
    #[arg(long, hide = true, requires = "url")]
    scheduler: Option<String>,
}

type AnyError = Box<dyn std::error::Error>;

const SCHEDULERS: [&str; 2] = ["scheduler-1", "scheduler-2"];
/// How often the demo reads the store to show its progress.
const LOOK: Duration = Duration::from_millis(50);
/// The longest time for the whole demo.
const PATIENCE: Duration = Duration::from_secs(120);
/// The exit code of a program that Ctrl-C ends.
const INTERRUPTED: u8 = 130;

pub(crate) fn run(arguments: Arguments) -> TaskResult {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        match arguments {
            Arguments { url: Some(url), scheduler: Some(name) } => be_scheduler(&url, &name).await,
            Arguments { url, .. } => {
                let directory = tempfile::Builder::new().prefix("ork-state-demo-").tempdir()?;
                let url = url.unwrap_or_else(|| format!("sqlite://{}/demo.db", directory.path().display()));
                let mut schedulers = Vec::new();
                let ended = tokio::select! {
                    ended = show(&url, directory.path(), &mut schedulers) => ended,
                    stopped = interrupted() => stopped,
                };
                // Stopped before their store is removed.
                for mut scheduler in schedulers {
                    scheduler.kill().await?;
                }
                directory.close()?;
                ended
            }
        }
    });
    // A scheduler may still wait for its standard input.
    runtime.shutdown_background();
    ended
}

/// Works until the demo is gone, however it ended, because its end of the pipe then closes.
async fn be_scheduler(url: &str, name: &str) -> TaskResult {
    let db = ork_state_api::connect(url).await?;
    let mut nothing = Vec::new();
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        ended = scheduler::work(db, name) => ended.map_err(|error| error as AnyError)?,
        ended = stdin.read_to_end(&mut nothing) => { ended?; }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for Ctrl-C, or another signal that asks a program to end.
async fn interrupted() -> TaskResult {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("\ninterrupted: the schedulers are stopped and the store is removed");
    Ok(ExitCode::from(INTERRUPTED))
}

async fn show(url: &str, directory: &Path, schedulers: &mut Vec<Child>) -> TaskResult {
    let db = ork_state_api::connect(url).await?;
    db.migrate().await?;
    check_store(&*db).await?;
    let workflow = store_workflow(&*db, directory).await?;

    for name in SCHEDULERS {
        schedulers.push(start_scheduler(url, name)?);
    }
    let (mut story, mut screen) = (Story::begin(), Screen::new());
    let backend = db.backend().name;
    story.say(Tone::Plain, format!("workflow {} is stored in {backend} and due now", workflow.name));
    let run = wait_for_the_run(&*db, &workflow, &mut story, &mut screen).await?;
    story.say(Tone::Plain, format!("a scheduler has made its run, of {} tasks", run.tasks.total));

    // The split tasks come next after the followed task. Each takes long enough to be interrupted.
    let victim = SCHEDULERS[0];
    while !story.held_by(victim).iter().any(|task| task.starts_with("split-")) {
        look(&mut story, &mut screen, &*db, &run).await?;
    }
    // It sends SIGKILL: nothing in the process gets to clean up.
    schedulers.remove(0).kill().await?;
    story.has_killed(victim);
    let run = loop {
        look(&mut story, &mut screen, &*db, &run).await?;
        let run = db.get_run(run.id).await?;
        if run.status.is_terminal() {
            break run;
        }
    };
    let took = story.elapsed();
    story.read_attempts(&*db, &run).await?;
    screen.show(&story)?;
    drop(screen);

    println!("\n{}\n", picture::attempts(&story));
    println!("The run ended after {:.1} s: {}.", took.as_secs_f64(), run.status);
    if run.status != RunStatus::Success {
        return Ok(ExitCode::FAILURE);
    }
    print!("{}", std::fs::read_to_string(directory.join("report.txt"))?);
    Ok(ExitCode::SUCCESS)
}

async fn check_store(db: &dyn Database) -> Result<(), AnyError> {
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

/// Stores the workflow, with a schedule that is due now. The first scheduler that sees it creates
/// the run.
async fn store_workflow(db: &dyn Database, directory: &Path) -> Result<Workflow, AnyError> {
    std::fs::write(directory.join("orders.csv"), include_str!("../../data/orders.csv"))?;
    let new = NewWorkflow::new("orders-etl".parse()?, workflow::dag(directory)?);
    let workflow = db.create_workflow(new).await?;
    let schedule = Schedule::new("once".parse()?, Some(workflow.created_at));
    db.set_schedule(workflow.id, Some(schedule)).await?;
    Ok(workflow)
}

/// Another process of this program, which works as a scheduler.
fn start_scheduler(url: &str, name: &str) -> std::io::Result<Child> {
    let mut scheduler = Command::new(std::env::current_exe()?);
    scheduler.args(["demo", "--scheduler", name, "--url", url]).stdin(Stdio::piped()).kill_on_drop(true);
    scheduler.spawn()
}

async fn wait_for_the_run(
    db: &dyn Database,
    workflow: &Workflow,
    story: &mut Story,
    screen: &mut Screen,
) -> Result<Run, AnyError> {
    let filter = RunFilter::of(workflow.id).with_statuses([RunStatus::Running]);
    loop {
        screen.show(story)?;
        let runs = db.list_runs(ListRuns::new(filter.clone(), PageRequest::default())).await?;
        match runs.items.into_iter().next() {
            Some(run) => return Ok(run),
            None if story.elapsed() > PATIENCE => return Err("no scheduler has made the run".into()),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Reads the store once, shows what is new, and waits a little.
async fn look(story: &mut Story, screen: &mut Screen, db: &dyn Database, run: &Run) -> Result<(), AnyError> {
    if story.elapsed() > PATIENCE {
        return Err(format!("run {} has not ended after {PATIENCE:?}", run.id).into());
    }
    story.look(db, run.id).await?;
    screen.show(story)?;
    tokio::time::sleep(LOOK).await;
    Ok(())
}
