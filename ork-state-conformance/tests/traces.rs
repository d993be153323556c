//! Random traces must find stores that break a rule, and none in one that keeps them all.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::sync::Arc;

use ork_state_api::HeartbeatOutcome;
use ork_state_conformance::model::{Answer, Fault, ModelFixture, Tamper};
use ork_state_conformance::traces::{Histories, Traces};

const TRACES: Traces = Traces { seed: 1, count: 100, length: 100, shrinks: true };

#[tokio::test]
async fn stores_that_keep_the_rules_agree() {
    let stores: Vec<Arc<dyn ork_state_conformance::Fixture>> =
        vec![Arc::new(ModelFixture::honest()), Arc::new(ModelFixture::honest())];
    TRACES.play(stores).await.unwrap();
}

#[tokio::test]
async fn a_stale_owner_whose_renewal_succeeds_is_found_by_a_short_trace() {
    let tamper = Tamper {
        answer: |turn| {
            let now = turn.now;
            let mut answer = turn.honest();
            if let Answer::Heartbeat(Ok(outcomes)) = &mut answer {
                outcomes.fill(HeartbeatOutcome::Extended { expires_at: now });
            }
            answer
        },
        ..Tamper::NONE
    };
    let found = TRACES.play(vec![Arc::new(ModelFixture::tampered(tamper))]).await.unwrap_err();
    assert!(found.contains("wanted: Heartbeat") && found.contains("cut down to 1 steps"), "{found}");
}

#[tokio::test]
async fn a_last_write_that_is_lost_on_reopening_is_found() {
    let tamper = Tamper { reopen: Some(|state, before| *state = before), ..Tamper::NONE };
    let found = TRACES.play(vec![Arc::new(ModelFixture::tampered(tamper))]).await.unwrap_err();
    assert!(found.contains("Reopen"), "{found}");
}

/// How many histories it takes until a store with this fault is found, at most 200.
async fn histories_until_found(name: &str) -> Option<String> {
    let fault = Fault::all().into_iter().find(|fault| fault.name == name).unwrap();
    let fixture = Arc::new(ModelFixture::tampered(fault.tamper));
    for seed in 0..200 {
        if let Err(found) = Histories::play(fixture.clone(), seed).await {
            return Some(found);
        }
    }
    None
}

#[tokio::test]
async fn histories_of_stores_that_keep_the_rules_have_an_order() {
    let fixture = Arc::new(ModelFixture::honest());
    for seed in 0..50 {
        let done = Histories::play(fixture.clone(), seed).await.unwrap();
        assert!(done.histories > 0 && done.calls > 0);
    }
}

/// Each answers every single call rightly: only calls at the same time show it.
#[rstest::rstest]
#[case("claim-checked-before")]
#[case("start-checked-before")]
#[case("name-checked-before")]
#[case("each-sees-the-other")]
#[case("pause-in-two-steps")]
#[tokio::test]
async fn histories_find_what_only_shows_at_the_same_time(#[case] fault: &str) {
    let found = histories_until_found(fault).await.unwrap();
    assert!(found.contains("no order of these calls"), "{found}");
}
