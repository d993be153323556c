//! Random traces must find stores that break a rule, and none in one that keeps them all.

use std::sync::Arc;

use ork_state_api::HeartbeatOutcome;
use ork_state_conformance::model::{Answer, ModelFixture, Tamper};
use ork_state_conformance::traces::Traces;

const TRACES: Traces = Traces { seed: 1, count: 100, length: 100, shrinks: true };

#[tokio::test]
async fn stores_that_keep_the_rules_agree() {
    let stores: Vec<Arc<dyn ork_state_conformance::Fixture>> =
        vec![Arc::new(ModelFixture::honest()), Arc::new(ModelFixture::honest())];
    Traces { count: 10, ..TRACES }.play(stores).await.unwrap();
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
