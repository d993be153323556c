//! Several claiming processes.

use std::time::Instant;

use super::AnyError;
use super::child::{Other, Role};
use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::store::{self, Bench};

const RUN: usize = 1000;
const BATCH: usize = 100;

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    // A store in memory has no other processes.
    if bench.backend() == "memory" {
        return Ok(None);
    }
    let runs = bench.size(50, 2);
    let mut points = Vec::new();
    for processes in [1, 2, 4, 8] {
        let mut samples = Vec::new();
        for _ in 0..bench.repetitions {
            let store = bench.store().await?;
            let workflow = store::workflow(&*store.db, "processes", RUN, 1).await?;
            for _ in 0..runs {
                store::start(&*store.db, workflow).await?;
            }
            let mut others = Vec::new();
            for _ in 0..processes {
                let mut other = Other::start(&Role::WorkOff { url: store.url(), batch: BATCH })?;
                other.says("ready").await?;
                others.push(other);
            }
            let begun = Instant::now();
            for other in &mut others {
                other.tell("go").await?;
            }
            let mut done = 0;
            for other in &mut others {
                done += other.line().await?.parse::<usize>()?;
            }
            if done != runs * RUN {
                return Err(format!("{done} tasks were done of {}", runs * RUN).into());
            }
            samples.push(done as f64 / begun.elapsed().as_secs_f64());
        }
        points.push(Point { at: f64::from(processes), spread: Spread::of(samples) });
    }
    let best = points.iter().map(|point| point.spread.median).fold(f64::NAN, f64::max);
    let last = points.last().map_or(f64::NAN, |point| point.spread.median);
    Ok(Some(Outcome {
        target: "P9",
        scenario: String::new(),
        title: "Processes claim and complete tasks until none is left",
        backend: bench.backend().to_owned(),
        parameters: vec![("tasks", (runs * RUN).to_string()), ("batch", BATCH.to_string())],
        series: vec![Series {
            name: "claim and complete".into(),
            unit: "tasks/s",
            over: "processes",
            points,
        }],
        verdicts: vec![Verdict::new("8 processes against the best", last / best, "×", Wanted::AtLeast(0.9))],
        seconds: 0.0,
    }))
}
