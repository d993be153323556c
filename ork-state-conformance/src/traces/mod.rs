//! Random traces of calls, made to a store and to the model beside it.

mod histories;
mod orders;
mod player;
mod processes;
mod steps;
mod words;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tokio::runtime::Handle;

use crate::Fixture;
pub use histories::Histories;
use player::Player;
pub(crate) use processes::answer;
use steps::{Step, traces};

/// How many milliseconds may be spent on reducing a trace.
const SHRINKING: u32 = 5 * 60 * 1000;

/// How many traces to play, and how long they are.
#[derive(Debug, Clone, Copy)]
pub struct Traces {
    /// The seed. The same seed gives the same traces.
    pub seed: u64,
    /// How many traces.
    pub count: u32,
    /// The most steps in each.
    pub length: usize,
    /// Whether a failing trace is reduced as long as it still fails.
    pub shrinks: bool,
}

impl Traces {
    /// Plays the traces against fresh stores of each fixture and the model beside them. Every
    /// answer and the final state must be the model's, and so the same for all stores. Reports the
    /// first trace that shows a difference. Returns how many calls each store got.
    ///
    /// # Errors
    /// A message with the shortest failing trace that was found, and where it differs.
    pub async fn play(self, fixtures: Vec<Arc<dyn Fixture>>) -> Result<u64, String> {
        // The runner blocks.
        let runtime = Handle::current();
        let played = tokio::task::spawn_blocking(move || self.play_blocking(&runtime, &fixtures));
        played.await.map_err(|error| error.to_string())?
    }

    fn play_blocking(self, runtime: &Handle, fixtures: &[Arc<dyn Fixture>]) -> Result<u64, String> {
        let calls = AtomicU64::new(0);
        let config = Config {
            cases: self.count,
            // Nothing is written anywhere: the seed is enough to play them again.
            failure_persistence: None,
            max_shrink_iters: if self.shrinks { 3000 } else { 0 },
            max_shrink_time: SHRINKING,
            ..Config::default()
        };
        let mut runner = TestRunner::new_with_rng(config, rng_of(self.seed));
        let played = runner.run(&traces(self.length), |steps| {
            let made = runtime.block_on(play(fixtures, &steps)).map_err(TestCaseError::fail)?;
            calls.fetch_add(made, Ordering::Relaxed);
            Ok(())
        });
        match played {
            Ok(()) => Ok(calls.into_inner()),
            Err(TestError::Abort(reason)) => Err(format!("the traces were given up: {reason}")),
            Err(TestError::Fail(reason, steps)) => {
                let lines: Vec<String> =
                    steps.iter().enumerate().map(|(number, step)| format!("  {number}: {step:?}")).collect();
                let cut_down = if self.shrinks { "cut down to" } else { "of" };
                Err(format!("{reason}\nthe trace, {cut_down} {} steps:\n{}", steps.len(), lines.join("\n")))
            }
        }
    }
}

/// Plays one trace against a fresh store of each, and compares the answers. Returns how many calls
/// each store got.
async fn play(fixtures: &[Arc<dyn Fixture>], steps: &[Step]) -> Result<u64, String> {
    let mut first: Option<(&str, Vec<String>)> = None;
    for fixture in fixtures {
        let on = |divergence| format!("{}: {divergence}", fixture.backend());
        let player = Player::new(fixture.clone()).await.map_err(on)?;
        let said = player.play(steps).await.map_err(on)?;
        let Some((other, before)) = &first else {
            first = Some((fixture.backend(), said));
            continue;
        };
        if let Some((one, another)) = before.iter().zip(&said).find(|(one, another)| one != another) {
            return Err(format!("{other}: {one}\n{}: {another}", fixture.backend()));
        }
    }
    Ok(first.map_or(0, |(_, said)| said.len() as u64))
}

fn rng_of(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

/// A value; `None` only if the strategy gives none because it filters too much.
pub(crate) fn drawn<S: Strategy>(seed: u64, strategy: &S) -> Option<S::Value> {
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng_of(seed));
    Some(strategy.new_tree(&mut runner).ok()?.current())
}

/// A separate seed for each of several runs that share one.
#[must_use]
pub const fn seed_of(seed: u64, number: u64) -> u64 {
    // The odd constant of the golden ratio spreads neighbours apart.
    seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
