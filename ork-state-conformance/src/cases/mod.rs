//! The cases, by topic. Each is named after the rule that it checks.

mod claims;
mod damage;
mod failures;
mod general;
mod jobs;
mod leases;
mod lists;
mod logs;
mod maintenance;
mod outputs;
mod pausing;
mod processes;
mod pruning;
mod retries;
mod roundtrip;
mod runs;
mod schedules;
mod snapshots;
mod stats;
mod timeouts;
mod traces;
mod transfer;
mod updates;
mod watching;
mod workflows;

/// Asserts that a result is an error of a kind, and returns the error.
macro_rules! assert_fails {
    ($result:expr, $kind:pat) => {
        match $result {
            Err(error) => {
                assert!(matches!(error.kind(), $kind), "expected {}, got: {error:?}", stringify!($kind));
                error
            }
            Ok(value) => return Err(format!("expected {}, got {value:?}", stringify!($kind)).into()),
        }
    };
}
pub(crate) use assert_fails;

/// Runs futures at the same time, each in its own task, and returns their results in order.
pub(crate) async fn together<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Result<Vec<T>, tokio::task::JoinError> {
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.await?);
    }
    Ok(results)
}
