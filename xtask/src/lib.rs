//! What the tasks of `cargo xtask` share: how a failing task reports its error.

use std::error::Error;
use std::process::ExitCode;

/// The error of a task. It is printed, with its causes, and ends the program.
pub type TaskResult = Result<ExitCode, Box<dyn Error>>;

/// The exit code of a task. Prints why it failed.
#[must_use]
pub fn told(result: TaskResult) -> ExitCode {
    result.unwrap_or_else(|error| {
        let mut said = error.to_string();
        eprintln!("error: {said}");
        let mut cause = error.source();
        while let Some(error) = cause {
            // Some errors repeat their cause.
            if !said.contains(&error.to_string()) {
                said = error.to_string();
                eprintln!("  because: {said}");
            }
            cause = error.source();
        }
        ExitCode::FAILURE
    })
}
