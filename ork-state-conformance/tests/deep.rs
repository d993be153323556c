//! A deep run must do of everything, find what is wrong, and say how to find it again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::sync::Arc;
use std::time::Duration;

use ork_state_api::HeartbeatOutcome;
use ork_state_conformance::Fixture;
use ork_state_conformance::deep::{Deep, DeepKind, DeepReport};
use ork_state_conformance::model::{Answer, ModelFixture, Tamper};

fn run(seed: u64, kinds: Vec<DeepKind>, fixtures: &[Arc<dyn Fixture>]) -> DeepReport {
    let replay = |kind: DeepKind, backend: Option<&str>, seed| format!("{} {backend:?} {seed}", kind.word());
    Deep { seed, time: Duration::ZERO, threads: 2, kinds, replay }.run(fixtures, &|_| {})
}

#[test]
fn there_is_of_everything_that_there_can_be() {
    let report = run(1, DeepKind::ALL.to_vec(), &[Arc::new(ModelFixture::honest())]);
    assert_eq!(report.findings, vec![]);
    let model = &report.backends[0];
    // The model lives in one process: nothing of it survives that process.
    assert_eq!((model.traces, model.histories.histories, model.crashes.kills), (1, 4, 0));
    assert!(model.histories.calls > 0 && report.did_something());
    assert!(!run(1, DeepKind::ALL.to_vec(), &[]).did_something());
}

#[test]
fn what_is_wrong_is_found_again_by_its_seed() {
    let tamper = Tamper {
        answer: |turn| {
            let mut answer = turn.honest();
            if let Answer::Heartbeat(Ok(outcomes)) = &mut answer {
                outcomes.fill(HeartbeatOutcome::Extended { expires_at: turn.now });
            }
            answer
        },
        ..Tamper::NONE
    };
    let fixtures: [Arc<dyn Fixture>; 1] = [Arc::new(ModelFixture::tampered(tamper))];
    let found = (1..50).find_map(|seed| run(seed, vec![DeepKind::Traces], &fixtures).findings.pop()).unwrap();
    assert_eq!(found.replay, format!("traces None {}", found.seed));
    let again = run(found.seed, vec![DeepKind::Traces], &fixtures).findings;
    // The ids in the messages are others.
    assert!(again.len() == 1 && again[0].seed == found.seed, "{again:?}");
}
