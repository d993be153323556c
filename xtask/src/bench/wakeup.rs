//! How quickly an idle scheduler gets what another process made ready.

use std::process::Stdio;
use std::time::{Duration, Instant};

use ork_state_api::{
    ClaimTasks, ConnectOptions, Dag, Database, LeaseTime, Limit, NewRun, NewWorkflow, Registry, StartRun,
    TaskSpec, TaskUpdate, TaskUpdates, Topic,
};
use ork_state_conformance::Fixture;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::AnyError;
use crate::backends::fixtures;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How often.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Only this backend; may be given several times.
    #[arg(long)]
    backend: Vec<String>,
    /// Be the other process, on this store.
    #[arg(long, hide = true)]
    child: Option<String>,
}

pub(super) fn run(runtime: &tokio::runtime::Runtime, arguments: &Arguments) -> Result<(), AnyError> {
    let Arguments { rounds, backend, child } = arguments;
    if let Some(url) = child {
        return runtime.block_on(wait_and_claim(url));
    }
    println!(
        "wake-up: a dependency is completed in one process, an idle scheduler in another takes what waited for it"
    );
    println!("{:>9} {:>8} {:>9} {:>9} {:>9}", "backend", "rounds", "p50 ms", "p90 ms", "max ms");
    for fixture in fixtures() {
        let name = fixture.backend();
        // In memory there is no other process.
        if name == "memory" || !(backend.is_empty() || backend.iter().any(|wanted| wanted == name)) {
            continue;
        }
        if let Some(reason) = runtime.block_on(fixture.unavailable()) {
            println!("{name:>9} is UNAVAILABLE: {reason}");
            continue;
        }
        let mut millis = runtime.block_on(measure(&*fixture, *rounds))?;
        runtime.block_on(fixture.finish());
        millis.sort_by(f64::total_cmp);
        let at = |share: usize| millis.get((millis.len() * share / 100).min(millis.len().saturating_sub(1)));
        let [half, most, all] = [at(50), at(90), at(100)].map(|millis| millis.copied().unwrap_or(f64::NAN));
        println!("{name:>9} {rounds:>8} {half:>9.2} {most:>9.2} {all:>9.2}");
    }
    Ok(())
}

fn claim() -> ork_state_api::Result<ClaimTasks> {
    Ok(ClaimTasks::new("bench".parse()?, LeaseTime::new(Duration::from_secs(60))?).with_limit(Limit::ONE))
}

async fn open(url: &str) -> ork_state_api::Result<std::sync::Arc<dyn Database>> {
    Registry::linked()?.connect(ConnectOptions::new(url)?).await
}

/// The other process: says that it waits, waits for a hint, takes the task, says so, completes it.
async fn wait_and_claim(url: &str) -> Result<(), AnyError> {
    let db = open(url).await?;
    let mut ready = db.watch(Topic::Ready).await?;
    let mut stdout = tokio::io::stdout();
    loop {
        stdout.write_all(b"waits\n").await?;
        stdout.flush().await?;
        let task = loop {
            // Whatever comes while this looks is hinted at.
            if let Some(task) = db.claim_tasks(claim()?).await?.pop() {
                break task;
            }
            ready.changed().await?;
        };
        stdout.write_all(b"has it\n").await?;
        stdout.flush().await?;
        db.update_tasks(TaskUpdates::one(TaskUpdate::succeeded(task.claim, None))?).await?;
    }
}

struct Other {
    // Killed when dropped.
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(url: &str) -> Result<Self, AnyError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["bench", "wakeup", "--child", url])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().ok_or("the other process has no output")?;
        Ok(Self { _process: process, lines: BufReader::new(stdout).lines() })
    }

    async fn says(&mut self, wanted: &str) -> Result<(), AnyError> {
        match self.lines.next_line().await? {
            Some(line) if line == wanted => Ok(()),
            other => Err(format!("the other process said {other:?}, not {wanted:?}").into()),
        }
    }
}

/// Milliseconds, a round each.
async fn measure(fixture: &dyn Fixture, rounds: usize) -> Result<Vec<f64>, AnyError> {
    let store = fixture.migrated().await?;
    let db = open(&store.url()).await?;
    db.migrate().await?;
    let task = |name: &str| Ok::<_, ork_state_api::Error>(TaskSpec::new(name.parse()?, "process".parse()?));
    let dag = Dag::new([task("first")?, task("second")?.after(["first".parse()?])])?;
    let workflow = db.create_workflow(NewWorkflow::new("wakeup".parse()?, dag)).await?;
    // Claimed before the other process is there, so that it gets none of them.
    let mut first = Vec::new();
    for _ in 0..rounds {
        let run = db.create_run(NewRun::new(workflow.id)).await?.into_run();
        db.start_run(StartRun::pinned(run.id)).await?;
        first.extend(db.claim_tasks(claim()?).await?);
    }
    let mut other = Other::start(&store.url())?;
    let mut millis = Vec::with_capacity(rounds);
    for task in first {
        other.says("waits").await?;
        // It has looked, found nothing, and is waiting by now.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let update = TaskUpdates::one(TaskUpdate::succeeded(task.claim, None))?;
        db.update_tasks(update).await?;
        let completed = Instant::now();
        other.says("has it").await?;
        millis.push(completed.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(millis)
}
