//! Many callers with one update each.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use ork_state_api::{Claim, Database, TaskUpdate, TaskUpdates};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::queue::applied;
use super::store::{self, Bench, Store, claim};
use super::{AnyError, floor, ratio};

const CALLERS: usize = 64;

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    let each = bench.size(300, 10);
    let store = bench.store().await?;
    let workflow = store::workflow(&*store.db, "updates", CALLERS, 1).await?;
    let run = store::start(&*store.db, workflow).await?;
    let claimed = store.db.claim_tasks(claim("bench", CALLERS)?).await?;
    let claims: Vec<Claim> = claimed.iter().map(|task| task.claim).collect();
    let mut at = Vec::new();
    for callers in [1, 8, CALLERS] {
        let mut samples = Vec::new();
        for _ in 0..bench.repetitions {
            samples.push(update(&store.db, &claims[..callers], each).await?);
        }
        at.push(Point { at: callers as f64, spread: Spread::of(samples) });
    }
    let most = at.last().map_or_else(|| Spread::of(vec![]), |point| point.spread);
    let mut verdicts = Vec::new();
    let line =
        |name: &str, points| Series { name: name.to_owned(), unit: "updates/s", over: "callers", points };
    let mut series = vec![line("one update a call", at)];
    match bench.backend() {
        "sqlite" | "file" => {
            let syncs = floor::appends(512, 500)?;
            let rate = Spread {
                median: 1000.0 / syncs.median,
                low: 1000.0 / syncs.high,
                high: 1000.0 / syncs.low,
                ..syncs
            };
            verdicts.push(Verdict::new(
                "64 callers against the disk's fdatasyncs",
                ratio(&most, &rate),
                "×",
                Wanted::AtLeast(5.0),
            ));
            series.push(line("floor: fdatasyncs", vec![Point { at: 1.0, spread: rate }]));
        }
        "postgres" => {
            let mut samples = Vec::new();
            for _ in 0..bench.repetitions {
                samples.extend(pgbench(bench, &store, &run.to_string()).await?);
            }
            if !samples.is_empty() {
                let rate = Spread::of(samples);
                verdicts.push(Verdict::new(
                    "64 callers against pgbench",
                    ratio(&most, &rate),
                    "×",
                    Wanted::AtLeast(0.8),
                ));
                series.push(line(
                    "floor: pgbench, as many connections",
                    vec![Point { at: CALLERS as f64, spread: rate }],
                ));
            }
        }
        _ => {}
    }
    Ok(Some(Outcome {
        target: "P5",
        scenario: String::new(),
        title: "Each caller tells of one task after the other that it was dispatched, one update a call",
        backend: bench.backend().to_owned(),
        parameters: vec![("callers", CALLERS.to_string()), ("updates a caller", each.to_string())],
        series,
        verdicts,
        seconds: 0.0,
    }))
}

/// Updates per second.
async fn update(db: &Arc<dyn Database>, claims: &[Claim], each: usize) -> Result<f64, AnyError> {
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for &claim in claims {
        let db = db.clone();
        callers.spawn(async move {
            for number in 0..each {
                // A new name each time, otherwise there would be nothing to write.
                let name = format!("execution-{number}").parse()?;
                let update = TaskUpdates::one(TaskUpdate::dispatched(claim, Some(name)));
                applied(&db.update_tasks(update).await?)?;
            }
            Ok::<_, AnyError>(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok((claims.len() * each) as f64 / begun.elapsed().as_secs_f64())
}

/// A store's default number of connections.
const CONNECTIONS: &str = "10";

/// Updates per second of one column by the key, if pgbench is installed.
async fn pgbench(bench: &Bench, store: &Store, run: &str) -> Result<Option<f64>, AnyError> {
    let Some(pgbench) = find_pgbench() else { return Ok(None) };
    let script = format!(
        "\\set task random(0, {})\n\\set number random(0, 1000000)\n\
         UPDATE tasks SET execution_name = 'execution-' || :number::text WHERE run_id = '{run}' AND task_index = :task;\n",
        CALLERS - 1
    );
    let seconds = bench.size(5, 1).to_string();
    let mut process = Command::new(pgbench)
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--file=/dev/stdin"])
        .args(["--client", CONNECTIONS, "--time", &seconds])
        .arg(store.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = process.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let output = process.wait_with_output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    match rate {
        Some(rate) => Ok(Some(rate)),
        None => Err(format!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Debian's location, or the one on the path.
fn find_pgbench() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(Result::ok);
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let places = versions.map(|version| version.path().join("bin")).chain(std::env::split_paths(&on_path));
    places.map(|place| place.join("pgbench")).find(|path| path.is_file())
}
