//! What a child process does: the roles of `child.rs`.

use std::sync::Arc;

use ork_state_api::copy::copy;
use ork_state_api::{
    ClaimTasks, Database, Delay, EndedRun, ErrorKind, Json, Label, LeaseTime, Limit, LogChunk, NewRun,
    NewWorkflow, Result, StartRun, TaskId, TaskUpdate, TaskUpdates, Text, WorkflowId,
};
use tokio::task::JoinSet;

use crate::child::{PlayResult, ROLE, Role, Told, wait_for_release};
use crate::ctx::{LEASE, connect, dag};

/// If this process was started as a child, plays its role and exits. Call it first in `main` of
/// every program that runs cases.
pub fn run_if_child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let code = match play(&role) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:?}");
            1
        }
    };
    std::process::exit(code);
}

fn play(role: &str) -> PlayResult {
    let role: Role = serde_json::from_str(role)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::WorkOff { url, owner, batch } => work_off(&url, &owner, batch).await,
            Role::ClaimAndHang { url, batch } => claim_and_hang(&url, batch).await,
            Role::CreateRuns { url, workflow } => create_runs(&url, workflow).await,
            Role::LiveOn { url, workers, logs } => live_on(&url, workers, logs).await,
            Role::AppendLog { url, task, letter, lengths } => append_log(&url, task, letter, &lengths).await,
            Role::Answer { url, now } => crate::traces::answer(&url, now).await,
            Role::Copy { from, to } => {
                let (from, to) = (connect(&from).await?, connect(&to).await?);
                copy(&*from, &*to, |_| println!("page")).await?;
                Ok(())
            }
            Role::Migrate { url } => {
                println!("{}", connect(&url).await?.migrate().await?.applied.len());
                Ok(())
            }
        }
    })
}

async fn work_off(url: &str, owner: &str, batch: usize) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    println!("ready");
    wait_for_release().await?;
    loop {
        let claimed = db.claim_tasks(claim_request(owner, batch)?).await?;
        if claimed.is_empty() {
            return Ok(());
        }
        for task in &claimed {
            println!("{}", task.id);
        }
        complete(&*db, claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect()).await?;
    }
}

async fn complete(db: &dyn Database, updates: Vec<TaskUpdate>) -> PlayResult {
    let tasks: Vec<_> = updates.iter().map(|update| update.claim.task).collect();
    let report = db.update_tasks(TaskUpdates::new(updates)?).await?;
    for (task, outcome) in tasks.into_iter().zip(report.outcomes) {
        outcome.into_result(task)?;
    }
    Ok(())
}

async fn claim_and_hang(url: &str, batch: usize) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    for task in db.claim_tasks(claim_request("doomed", batch)?).await? {
        println!("{}", task.id);
    }
    println!("claimed");
    std::future::pending().await
}

async fn create_runs(url: &str, workflow: WorkflowId) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    loop {
        println!("{}", db.create_run(NewRun::new(workflow)).await?.into_run().id);
    }
}

fn tell(told: Told) -> PlayResult {
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

async fn live_on(url: &str, workers: usize, logs: bool) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    let mut living = JoinSet::new();
    for worker in 0..workers {
        living.spawn(live(db.clone(), worker, logs));
    }
    // They live for ever, so the first that ends has failed.
    living.join_next().await.ok_or("nobody lives")??
}

async fn live(db: Arc<dyn Database>, worker: usize, logs: bool) -> PlayResult {
    let dag = dag("a*1 b:a c:a d*2:b,c e f:e g:f,d h")?;
    for round in 0_u64.. {
        // A name that no workflow of an earlier child has.
        let name = format!("{}-{worker}-{round}", std::process::id()).try_into()?;
        let workflow = db.create_workflow(NewWorkflow::new(name, dag.clone())).await?.id;
        tell(Told::Workflow(workflow))?;
        for _ in 0..2 {
            let run = db.create_run(NewRun::new(workflow)).await?.into_run().id;
            tell(Told::Run(workflow, run))?;
            db.start_run(StartRun::pinned(run)).await?;
            tell(Told::Started(workflow, run))?;
        }
        while work(&*db, round, logs).await? {}
        // Every third is deleted. The others stay for later checks.
        if round % 3 == 2 {
            tell(Told::Deleting(workflow))?;
            match db.delete_workflow(workflow).await {
                Ok(()) => tell(Told::Deleted(workflow))?,
                // Another worker still holds a task of it.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Claims a few tasks and ends them in all possible ways. Returns whether there were any.
async fn work(db: &dyn Database, round: u64, logs: bool) -> PlayResult<bool> {
    let claimed = db.claim_tasks(claim_request("doomed", 3)?).await?;
    for task in &claimed {
        tell(Told::Claimed(task.workflow, task.id, task.claim.token))?;
    }
    if logs {
        for task in claimed.iter().step_by(2) {
            let appended = db.append_log(task.id, LogChunk::new(b"a line of a log\n")?).await?;
            tell(Told::Logged(task.workflow, task.id, appended.length))?;
        }
    }
    let mut updates = Vec::new();
    for task in &claimed {
        updates.push(TaskUpdate::running(task.claim));
        updates.push(match (round + u64::from(task.index)) % 7 {
            0 => TaskUpdate::failed_for_good(task.claim, Text::lossy("for good")),
            1 | 2 => TaskUpdate::failed(task.claim, Text::lossy("again"), Delay::ZERO),
            _ => TaskUpdate::succeeded(task.claim, Some(Json::from_value(&task.index)?)),
        });
    }
    let report = db.update_tasks(TaskUpdates::new(updates)?).await?;
    // Two items per task: the second one's outcome shows the status after both.
    for (task, outcome) in claimed.iter().zip(report.outcomes.iter().skip(1).step_by(2)) {
        tell(Told::Updated(task.workflow, task.id, outcome.into_result(task.id)?))?;
    }
    for EndedRun { run, status, .. } in report.ended_runs {
        let of =
            claimed.iter().find(|task| task.run == run).ok_or("a run ended that no task was claimed of")?;
        tell(Told::Ended(of.workflow, run, status))?;
    }
    Ok(!claimed.is_empty())
}

async fn append_log(url: &str, task: TaskId, letter: char, lengths: &[usize]) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    println!("ready");
    wait_for_release().await?;
    for length in lengths {
        let line = format!("{}\n", letter.to_string().repeat(length.saturating_sub(1)));
        db.append_log(task, LogChunk::new(line.as_bytes())?).await?;
    }
    Ok(())
}

fn claim_request(owner: &str, batch: usize) -> Result<ClaimTasks> {
    Ok(ClaimTasks::new(Label::new(owner)?, LeaseTime::new(LEASE)?).with_limit(Limit::new(batch)?))
}
