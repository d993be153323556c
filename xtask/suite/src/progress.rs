//! Shows the progress of a run: a bar on a terminal, otherwise a line every few seconds, such as in
//! a CI log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    bar: ProgressBar,
    last_line: Mutex<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let style = ProgressStyle::with_template("{prefix:>9} [{bar:30}] {pos}/{len} {wide_msg}")?;
        Ok(Self { bar: ProgressBar::new(0).with_style(style), last_line: Mutex::new(Instant::now()) })
    }

    /// Starts the progress of this many steps.
    pub(crate) fn begin(&self, what: &str, steps: usize, said: &str) {
        self.bar.reset();
        self.bar.set_length(steps as u64);
        self.bar.set_prefix(what.to_owned());
        self.say(&format!("{what}: {said}"));
    }

    /// One step is done.
    pub(crate) fn step(&self, name: &str) {
        self.bar.inc(1);
        self.bar.set_message(name.to_owned());
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bar.is_hidden() && last.elapsed() >= EVERY {
            *last = Instant::now();
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or_default());
            println!("{}: {done} of {all}, last {name}", self.bar.prefix());
        }
    }

    /// Prints a message without breaking the bar.
    pub(crate) fn say(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
