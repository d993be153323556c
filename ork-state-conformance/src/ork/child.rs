//! Other processes. A case starts this same program again, in a role.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use ork_state_api::ork::{
    LegacyRun, LegacyRunId, LegacySpec, LegacyStatus, LegacyTaskRun, LegacyTaskStatus, ObjectStore,
    StateStore,
};
use ork_state_api::{Json, RunStatus, SystemClock, Text};
use serde::{Deserialize, Serialize};

use super::{ObjectStores, StateStores};
use crate::child::{ChildProcess, PlayResult, wait_for_release};

/// The variable that tells a process that it is a child, and what to do.
const ROLE: &str = "ORK_STATE_CONFORMANCE_LEGACY_CHILD";

/// The role of a child, and its store.
#[derive(Serialize, Deserialize)]
struct Child {
    store: String,
    directory: PathBuf,
    role: Role,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Role {
    /// Says `ready` and waits for a line. Then writes this many tasks of a run, each with a name
    /// that begins with the letter, and one that all children share.
    Upsert { run: LegacyRunId, letter: char, tasks: u32 },
    /// Creates runs and advances them, for ever, until it is killed. Prints each step as a
    /// [`Told`].
    LiveOn,
    /// Says `ready` and waits for a line. Then writes the files of a task this many times, all with
    /// one letter.
    WriteFiles { run: LegacyRunId, letter: char, times: usize },
    /// Writes the files of a task for ever, until it is killed. Says `written` each time.
    WriteOn { run: LegacyRunId },
}

/// What a child in the role `LiveOn` prints, as JSON, when the store has acknowledged it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    Run(LegacyRun),
    Task(LegacyTaskRun),
}

/// Starts a child that works on the store in this directory.
pub(super) fn start(store: &str, directory: &Path, role: Role) -> std::io::Result<ChildProcess> {
    let child = Child { store: store.to_owned(), directory: directory.to_owned(), role };
    ChildProcess::start_as(ROLE, &child)
}

/// If this process was started as a child, plays its role and returns how it ended.
pub(super) fn play_if_child(states: &[StateStores], objects: &[ObjectStores]) -> Option<ExitCode> {
    let child = std::env::var(ROLE).ok()?;
    Some(match play(&child, states, objects) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    })
}

fn play(child: &str, states: &[StateStores], objects: &[ObjectStores]) -> PlayResult {
    let Child { store, directory, role } = serde_json::from_str(child)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let states = states.iter().find(|stores| stores.name == store);
    let objects = objects.iter().find(|stores| stores.name == store);
    runtime.block_on(async {
        if let Some(stores) = states {
            let store = (stores.open)(directory, Arc::new(SystemClock::default())).await?;
            match role {
                Role::Upsert { run, letter, tasks } => return upsert(&*store, &run, letter, tasks).await,
                Role::LiveOn => return live_on(&*store).await,
                Role::WriteFiles { .. } | Role::WriteOn { .. } => {}
            }
        } else if let Some(stores) = objects {
            let store = (stores.open)(directory).await?;
            match role {
                Role::WriteFiles { run, letter, times } => {
                    return write_files(&*store, &run, letter, times).await;
                }
                Role::WriteOn { run } => return write_on(&*store, &run).await,
                Role::Upsert { .. } | Role::LiveOn => {}
            }
        }
        Err("there is no such store for such a role".into())
    })
}

async fn upsert(store: &dyn StateStore, run: &LegacyRunId, letter: char, tasks: u32) -> PlayResult {
    let created_at = store.get_run(run).await?.ok_or("the run is not there")?.created_at;
    println!("ready");
    wait_for_release().await?;
    for attempt in 0..tasks {
        for name in [format!("{letter}{attempt}"), "shared".to_owned()] {
            let mut task = LegacyTaskRun::new(run.clone(), name.parse()?, created_at);
            task.attempt = attempt;
            task.error = Some(Text::new(letter.to_string().repeat(5000))?);
            store.upsert_task_run(&task).await?;
        }
    }
    Ok(())
}

fn tell(told: &Told) -> PlayResult {
    println!("{}", serde_json::to_string(told)?);
    Ok(())
}

async fn live_on(store: &dyn StateStore) -> PlayResult {
    loop {
        let run = store.create_run("lives-on".parse()?).await?;
        tell(&Told::Run(run.clone()))?;
        tell(&Told::Run(store.update_run_status(&run.id, RunStatus::Running).await?))?;
        for name in ["extract", "load"] {
            let mut task = LegacyTaskRun::new(run.id.clone(), name.parse()?, run.created_at);
            // Long enough to need more than one write to the disk.
            task.output = Some(Json::from_value(&"x".repeat(50_000))?);
            for status in [LegacyTaskStatus::Running, LegacyTaskStatus::Success] {
                task.status = status;
                store.upsert_task_run(&task).await?;
                tell(&Told::Task(task.clone()))?;
            }
        }
        tell(&Told::Run(store.update_run_status(&run.id, RunStatus::Success).await?))?;
    }
}

/// Writes the three files of the task `task`, all with one letter.
pub(super) async fn write_all(store: &dyn ObjectStore, run: &LegacyRunId, letter: char) -> PlayResult {
    let text = letter.to_string().repeat(50_000);
    let json = Json::from_value(&text)?;
    let task = "task".parse()?;
    let mut status = LegacyStatus::new(LegacyTaskStatus::Running);
    status.error = Some(Text::new(text)?);
    store.write_status(run, &task, &status).await?;
    store.write_output(run, &task, &json).await?;
    let spec = LegacySpec {
        run_id: run.clone(),
        workflow_name: "w".parse()?,
        task_name: task,
        attempt: 1,
        executor: "process".parse()?,
        input: json,
        upstream: [].into(),
    };
    store.write_spec(&spec).await?;
    Ok(())
}

/// Reads the three files and returns the letter of each. A file with several letters is an error.
pub(super) async fn read_all(store: &dyn ObjectStore, run: &LegacyRunId) -> PlayResult<Vec<char>> {
    let task = "task".parse()?;
    let mut texts: Vec<String> = Vec::new();
    texts.extend(store.read_status(run, &task).await?.and_then(|status| status.error).map(String::from));
    if let Some(output) = store.read_output(run, &task).await? {
        texts.push(output.to()?);
    }
    match store.read_spec(run, &task).await {
        Ok(spec) => texts.push(spec.input.to()?),
        Err(error) if matches!(error.kind(), ork_state_api::ErrorKind::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    texts
        .iter()
        .map(|text| {
            let first = text.chars().next().ok_or("an empty text was written by nobody")?;
            let is_whole = text.len() == 50_000 && text.chars().all(|c| c == first);
            if is_whole { Ok(first) } else { Err("a file is of two writers".into()) }
        })
        .collect()
}

async fn write_files(store: &dyn ObjectStore, run: &LegacyRunId, letter: char, times: usize) -> PlayResult {
    println!("ready");
    wait_for_release().await?;
    for _ in 0..times {
        write_all(store, run, letter).await?;
    }
    Ok(())
}

async fn write_on(store: &dyn ObjectStore, run: &LegacyRunId) -> PlayResult {
    for letter in ('a'..='z').cycle() {
        write_all(store, run, letter).await?;
        println!("written");
    }
    Ok(())
}
