//! The kill matrix: which cases notice which faults. It tests the suite with stores that are broken
//! on purpose.

use serde::{Deserialize, Serialize};

use crate::Rule;

/// The results of all faults that were put into a store on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillMatrix {
    /// The backend that the faults were put around.
    pub backend: String,
    /// The seed of all random choices.
    pub seed: u64,
    /// The result of each fault.
    pub faults: Vec<FaultReport>,
    /// The cases that noticed no fault, by name.
    pub idle_cases: Vec<String>,
}

/// The result of one fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Its name.
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

    /// How many faults were noticed, and of how many, in a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        let (all, survived) = (self.faults.len(), self.survivors().count());
        let idle = self.idle_cases.len();
        format!("{} of {all} faults caught, {survived} survived, {idle} cases caught nothing", all - survived)
    }
}
