//! The suite over its own model: it must keep every rule that it is the measure of.

use std::process::ExitCode;
use std::sync::Arc;

use ork_state_conformance::model::ModelFixture;

fn main() -> ExitCode {
    ork_state_conformance::harness::run_tests(&[Arc::new(ModelFixture::honest())])
}
