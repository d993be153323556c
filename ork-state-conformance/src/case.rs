//! A test case of the suite, and the macro that writes one.

use std::future::Future;
use std::pin::Pin;

use ork_state_api::Capability;

use crate::{CaseResult, Ctx, Rule};

/// One thing that a store must do. Found at link time.
#[derive(Debug)]
pub struct Case {
    /// `module::name`. The name begins with the rule.
    pub name: &'static str,
    /// The rules it is about. It is named after the first.
    pub rules: &'static [Rule],
    /// The capabilities that the backend must have.
    pub needs: &'static [Capability],
    /// Runs only where the backend opts out of this capability, to check that the methods are
    /// refused.
    pub without: Option<Capability>,
    /// Whether it takes so long that `cargo test` runs it only on request.
    pub is_heavy: bool,
    /// The case itself.
    pub run: fn(Ctx) -> Pin<Box<dyn Future<Output = CaseResult> + Send>>,
}

inventory::collect!(Case);

impl Case {
    /// All linked cases, by name.
    #[must_use]
    pub fn all() -> Vec<&'static Self> {
        let mut all: Vec<&'static Self> = inventory::iter::<Self>().collect();
        all.sort_by_key(|case| case.name);
        all
    }
}

/// Writes cases: rules, name and body, or one body for a table of rows.
///
/// A backend may have its own cases, in its `tests/conformance.rs`. They follow the rules of the
/// suite's cases: each runs on a fresh store, is followed by the verification, and counts for the
/// level. Every promise of a backend beyond the contract deserves a case.
///
/// A case with `heavy` after its rules takes long. `cargo test` runs it only with `--
/// --include-ignored`, and says so.
///
/// ```
/// use ork_state_conformance::case;
///
/// case! { W1, w1_a_new_workflow_is_found(t) {
///     let made = t.workflow(ork_state_conformance::dag("a b:a")?).await?;
///     assert_eq!(t.db().find_workflow(&made.name).await?, made);
///     Ok(())
/// }}
///
/// case! { [L2, G5] needs [Logs], l2_bytes_come_back(t, bytes: &[u8]) {
///     let run = t.start("a").await?;
///     let task = t.task(run.id, "a").await?.id;
///     t.db().append_log(task, ork_state_api::LogChunk::new(bytes)?).await?;
///     Ok(())
/// }
///     nul => b"a\0b",
///     broken_utf8 => b"\xff",
/// }
/// ```
#[macro_export]
macro_rules! case {
    ($rule:ident $($rest:tt)*) => {
        $crate::case!(@head [$rule] $($rest)*);
    };
    ([$($rules:ident),+] $($rest:tt)*) => {
        $crate::case!(@head [$($rules),+] $($rest)*);
    };
    (@head $rules:tt heavy, $($rest:tt)*) => {
        $crate::case!(@body $rules [] [None, true] $($rest)*);
    };
    (@head $rules:tt heavy needs [$($need:ident),*], $($rest:tt)*) => {
        $crate::case!(@body $rules [$($need),*] [None, true] $($rest)*);
    };
    (@head $rules:tt needs [$($need:ident),*], $($rest:tt)*) => {
        $crate::case!(@body $rules [$($need),*] [None, false] $($rest)*);
    };
    (@head $rules:tt without $lacking:ident, $($rest:tt)*) => {
        $crate::case!(@body $rules [] [Some($crate::__private::Capability::$lacking), false] $($rest)*);
    };
    (@head $rules:tt , $($rest:tt)*) => {
        $crate::case!(@body $rules [] [None, false] $($rest)*);
    };
    (@body $rules:tt $needs:tt $without:tt $name:ident($t:ident) $body:block) => {
        async fn $name($t: $crate::Ctx) -> $crate::CaseResult $body
        $crate::case!(@submit $rules $needs $without [stringify!($name)] |t| Box::pin($name(t)));
    };
    (@body $rules:tt $needs:tt $without:tt $name:ident($t:ident, $arg:ident: $ty:ty) $body:block
        $($row:ident => $value:expr,)+) => {
        async fn $name($t: $crate::Ctx, $arg: $ty) -> $crate::CaseResult $body
        $($crate::case!(@submit $rules $needs $without [concat!(stringify!($name), "::", stringify!($row))]
            |t| Box::pin($name(t, $value)));)+
    };
    (@submit [$($rules:ident),+] [$($need:ident),*] [$without:expr, $is_heavy:expr] [$name:expr] $run:expr) => {
        $crate::__private::inventory::submit! {
            $crate::Case {
                name: $crate::__private::short_name(concat!(module_path!(), "::", $name)),
                rules: &[$($crate::Rule::$rules),+],
                needs: &[$($crate::__private::Capability::$need),*],
                without: $without,
                is_heavy: $is_heavy,
                run: $run,
            }
        }
    };
}
pub(crate) use crate::case;

/// Drops the path of this crate's case modules from a name. The name of any other case stays.
#[doc(hidden)]
#[must_use]
pub const fn short_name(path: &'static str) -> &'static str {
    const PREFIX: &str = "ork_state_conformance::cases::";
    let (prefix, path_bytes) = (PREFIX.as_bytes(), path.as_bytes());
    if path.len() <= prefix.len() {
        return path;
    }
    let mut index = 0;
    while index < prefix.len() {
        if path_bytes[index] != prefix[index] {
            return path;
        }
        index += 1;
    }
    path.split_at(PREFIX.len()).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_rule_has_cases_named_after_it() {
        let cases = Case::all();
        for rule in Rule::ALL {
            let prefix = format!("{}_", rule.to_string().to_lowercase());
            let named = cases.iter().filter(|case| case.rules[0] == *rule).count();
            assert!(named >= 3, "{rule} has {named} cases");
            for case in cases.iter().filter(|case| case.rules[0] == *rule) {
                let name = case.name.split("::").nth(1).unwrap();
                assert!(name.starts_with(&prefix), "{} is about {rule}", case.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = Case::all().iter().map(|case| case.name).collect();
        assert_eq!(names.len(), Case::all().len());
    }
}
