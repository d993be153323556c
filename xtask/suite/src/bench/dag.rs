//! A run of many tasks.

use std::sync::Arc;

use ork_state_api::{Dag, NewWorkflow, TaskName, TaskSpec};

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::queue::{Contract, Queue};
use super::store::Bench;
use super::{AnyError, floor, ratio, timed};

/// Tasks that may run in parallel. Each waits for two of the layer before.
const LAYER: usize = 100;

fn layers(tasks: usize) -> ork_state_api::Result<Dag> {
    let names: Vec<TaskName> =
        (0..tasks).map(|number| format!("task-{number:05}").parse()).collect::<Result<_, _>>()?;
    let executor: ork_state_api::Label = "process".parse()?;
    let spec = |number: usize| {
        let spec = TaskSpec::new(names[number].clone(), executor.clone());
        match number.checked_sub(LAYER) {
            None => spec,
            Some(before) => {
                let beside = before - before % LAYER + (before + 1) % LAYER;
                spec.after([names[before].clone(), names[beside].clone()])
            }
        }
    };
    Dag::new((0..tasks).map(spec))
}

pub(super) async fn measure(bench: &Bench) -> Result<Outcome, AnyError> {
    let tasks = bench.size(10_000, 500);
    let dag = layers(tasks)?;
    let edges: usize = (0..dag.len()).map(|task| dag.dependents(task).len()).sum();
    let (mut ours, mut floors, mut defined) = (Vec::new(), Vec::new(), Vec::new());
    let store = bench.store().await?;
    let (workflow, millis) =
        timed(store.db.create_workflow(NewWorkflow::new("dag".parse()?, dag.clone()))).await?;
    defined.push(millis);
    let contract = Contract { db: store.db.clone(), workflow: workflow.id };
    let floor_store = bench.store().await?;
    let floor: Option<Arc<dyn Queue>> = floor::of(bench, &floor_store, dag).await?;
    // The first of each is a warm-up.
    for repetition in 0..=3 * bench.repetitions {
        let written = floor::bytes_written();
        let ((), millis) = timed(contract.start_run()).await?;
        let written = floor::bytes_written() - written;
        let floor_millis = match &floor {
            Some(floor) => Some(timed(floor.start_run()).await?.1),
            None if bench.backend() == "file" => Some(floor::append_all(written, 2)?.as_secs_f64() * 1000.0),
            None => None,
        };
        if repetition > 0 {
            ours.push(millis);
            floors.extend(floor_millis);
        }
    }
    let (all, least) = (Spread::of(ours), Spread::of(floors));
    let line = |name: &str, spread| Series {
        name: name.to_owned(),
        unit: "ms",
        over: "tasks",
        points: vec![Point { at: tasks as f64, spread }],
    };
    let mut series =
        vec![line("define the workflow", Spread::of(defined)), line("create and start a run", all)];
    let mut verdicts = Vec::new();
    if least.samples > 0 {
        series.push(line("floor", least));
        verdicts.push(Verdict::new(
            "speed against the floor",
            ratio(&least, &all),
            "×",
            Wanted::AtLeast(0.5),
        ));
    }
    Ok(Outcome {
        target: "P4",
        scenario: String::new(),
        title: "A run of a large DAG is created and started",
        backend: bench.backend().to_owned(),
        parameters: vec![("tasks", tasks.to_string()), ("edges", edges.to_string())],
        series,
        verdicts,
        seconds: 0.0,
    })
}
