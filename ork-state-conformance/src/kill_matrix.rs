//! Which cases notice which faults: the suite tested by stores that are broken on purpose.

use serde::{Deserialize, Serialize};

use crate::Rule;

/// What became of every fault that was put into a store on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillMatrix {
    /// The backend that the faults were put around.
    pub backend: String,
    /// The seed of what was left to chance.
    pub seed: u64,
    /// A part a fault.
    pub faults: Vec<FaultReport>,
    /// The cases that noticed no fault, by name.
    pub idle_cases: Vec<String>,
}

/// What became of one fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultReport {
    /// What it is called.
    pub name: String,
    /// The rule that it breaks.
    pub rule: Rule,
    /// What it does.
    pub description: String,
    /// The cases that noticed it, by name.
    pub caught_by: Vec<String>,
    /// Whether no case noticed it.
    pub survived: bool,
}

impl KillMatrix {
    /// The faults that no case noticed.
    pub fn survivors(&self) -> impl Iterator<Item = &FaultReport> {
        self.faults.iter().filter(|fault| fault.survived)
    }

    /// How many faults were noticed, of how many, in a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        let (all, survived) = (self.faults.len(), self.survivors().count());
        let idle = self.idle_cases.len();
        format!("{} of {all} faults caught, {survived} survived, {idle} cases caught nothing", all - survived)
    }
}
