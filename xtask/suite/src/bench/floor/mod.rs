//! Floors make the same changes of rows as the contract does. They use hand-written SQL over the
//! same driver and server, or append the same bytes to a file, with nothing around it. What they
//! leave out is the cost of the contract. That is checks of leases and tokens, locks in one order,
//! answers for each task, hints, and counts.

pub(super) mod postgres;
pub(super) mod sqlite;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ork_state_api::Dag;
use uuid::Uuid;

use super::AnyError;
use super::figures::Spread;
use super::queue::Queue;
use super::store::{Bench, Store};

/// The tasks of a run as rows.
pub(super) struct Rows {
    pub(super) ids: Vec<Uuid>,
    pub(super) names: Vec<String>,
    /// For each task, the numbers of the tasks that it waits for.
    pub(super) waits_for: Vec<Vec<usize>>,
}

impl Rows {
    /// The rows of a run of these tasks.
    pub(super) fn of(dag: &Dag) -> Self {
        let mut waits_for = vec![Vec::new(); dag.len()];
        for task in 0..dag.len() {
            for &dependent in dag.dependents(task) {
                waits_for[dependent as usize].push(task);
            }
        }
        Self {
            ids: (0..dag.len()).map(|_| Uuid::now_v7()).collect(),
            names: dag.tasks().iter().map(|task| task.name.to_string()).collect(),
            waits_for,
        }
    }

    /// Pairs of a waiting task and one that it waits for.
    fn edges(&self) -> impl Iterator<Item = (usize, usize)> {
        let edges = |(number, waits_for): (usize, &Vec<usize>)| {
            waits_for.iter().map(move |&task| (task, number)).collect::<Vec<_>>()
        };
        self.waits_for.iter().enumerate().flat_map(edges)
    }
}

/// The SQL floor of a backend, if it has one: rows in an empty store of that backend.
pub(super) async fn of(bench: &Bench, store: &Store, dag: Dag) -> Result<Option<Arc<dyn Queue>>, AnyError> {
    Ok(match bench.backend() {
        "postgres" => Some(Arc::new(postgres::Floor::new(&store.url(), dag).await?)),
        "sqlite" => Some(Arc::new(sqlite::Floor::new(&store.url(), dag).await?)),
        _ => None,
    })
}

/// Milliseconds for appends of this many bytes, each with a sync.
pub(super) fn appends(bytes: usize, times: usize) -> std::io::Result<Spread> {
    let directory = tempfile::tempdir()?;
    let mut file = new_file(directory.path())?;
    let data = vec![b'x'; bytes];
    let mut samples = Vec::with_capacity(times);
    for _ in 0..times {
        let begun = Instant::now();
        file.write_all(&data)?;
        file.sync_data()?;
        samples.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(Spread::of(samples))
}

/// How long this many bytes take in this many appends, each with a sync.
pub(super) fn append_all(bytes: u64, commits: usize) -> std::io::Result<Duration> {
    let directory = tempfile::tempdir()?;
    let mut file = new_file(directory.path())?;
    let data = vec![b'x'; usize::try_from(bytes).unwrap_or(usize::MAX) / commits.max(1)];
    let begun = Instant::now();
    for _ in 0..commits {
        file.write_all(&data)?;
        file.sync_data()?;
    }
    Ok(begun.elapsed())
}

fn new_file(directory: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(directory.join("floor"))
}

/// Bytes that this process has written so far, to any file; 0 where the system does not report it.
pub(super) fn bytes_written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    written.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}
