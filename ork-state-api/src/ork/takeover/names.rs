//! Names that Ork allowed and the contract does not, or that two have.

use std::collections::{HashMap, HashSet};

use crate::limits::MAX_NAME_BYTES;
use crate::{Error, Result, TaskName, WorkflowName};

/// Gives each of several things a name of its own. Who has a valid name that nobody before had
/// keeps it; the others get one that nobody has.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The names that are valid, whoever comes first.
    reserved: HashSet<String>,
    given: HashSet<String>,
    /// Where the search for a free name went on from last: many may want the same.
    last: HashMap<String, usize>,
}

impl Names {
    /// Of all the things that will be named.
    pub(super) fn reserve<N>(names: impl IntoIterator<Item = impl Into<String>>) -> Self
    where
        N: TryFrom<String, Error = Error>,
    {
        let valid = |name: &String| N::try_from(name.clone()).is_ok();
        let reserved = names.into_iter().map(Into::into).filter(valid).collect();
        Self { reserved, ..Self::default() }
    }

    /// A name for the thing that is called `old`; `base` is the nearest valid one.
    ///
    /// # Errors
    /// Of `base`, if it is none.
    pub(super) fn give<N>(&mut self, old: &str, base: &str) -> Result<N>
    where
        N: TryFrom<String, Error = Error>,
    {
        if self.reserved.contains(old) && self.given.insert(old.to_owned()) {
            return N::try_from(old.to_owned());
        }
        let number = self.last.entry(base.to_owned()).or_insert(0);
        loop {
            *number += 1;
            let suffix = if *number == 1 { String::new() } else { format!(" ({number})") };
            let cut = base.floor_char_boundary(MAX_NAME_BYTES - suffix.len());
            let name = format!("{}{suffix}", &base[..cut]);
            if !self.reserved.contains(&name) && self.given.insert(name.clone()) {
                return N::try_from(name);
            }
        }
    }
}

/// Without what no workflow name may have.
pub(super) fn for_workflow(old: &str) -> String {
    let plain: String = old.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    let name = plain[..plain.floor_char_boundary(MAX_NAME_BYTES)].to_owned();
    if WorkflowName::new(name.as_str()).is_ok() { name } else { "unnamed".to_owned() }
}

/// Without what no task name may have.
pub(super) fn for_task(old: &str, index: i64) -> String {
    let plain: String =
        old.chars().map(|c| if c.is_control() || matches!(c, '/' | '\\') { '_' } else { c }).collect();
    let name = plain[..plain.floor_char_boundary(MAX_NAME_BYTES)].to_owned();
    if TaskName::new(name.as_str()).is_ok() { name } else { format!("task_{index}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(old: &[&str]) -> Vec<String> {
        let mut names = Names::reserve::<TaskName>(old.iter().copied());
        let give = |(index, old): (i64, &&str)| {
            let name: TaskName = names.give(old, &for_task(old, index)).unwrap();
            name.as_str().to_owned()
        };
        (0..).zip(old).map(give).collect()
    }

    #[test]
    fn a_valid_name_stays_with_the_first_who_has_it() {
        assert_eq!(tasks(&["a", "b"]), ["a", "b"]);
        assert_eq!(tasks(&["a/b", "a_b"]), ["a_b (2)", "a_b"]);
        assert_eq!(tasks(&["a", "a", "a (2)", "a"]), ["a", "a (3)", "a (2)", "a (4)"]);
        assert_eq!(tasks(&["", ".", "x\u{1b}[2J\n"]), ["task_0", "task_1", "x_[2J_"]);
    }

    #[test]
    fn long_names_are_cut_between_characters_and_stay_apart() {
        let long = "é".repeat(200);
        let given = tasks(&[&long, &long, &format!("{long}!")]);
        assert!(given.iter().all(|name| TaskName::new(name.as_str()).is_ok()), "{given:?}");
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), 3);
        assert_eq!(for_workflow("team/report"), "team/report");
        assert_eq!(for_workflow(""), "unnamed");
    }
}
