//! A new crate, outside the workspace: it compiles without a warning, registers itself, and fails
//! what is not written yet and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use ork_state_conformance::new_backend::{NewBackend, NewBackendError, Plan, STEPS};
use rstest::rstest;

#[test]
#[ignore = "heavy: it compiles a crate with the whole suite; `cargo xtask ci` runs it"]
fn a_new_crate_fails_what_is_not_written_yet_and_nothing_else() {
    let outside = tempfile::tempdir().unwrap();
    let new = NewBackend::new("tiny-kv", Some(&outside.path().join("deep/tiny"))).unwrap();
    new.write().unwrap();
    // The versions that are tested here, so that nothing else is fetched and built.
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    std::fs::copy(lock, new.directory().join("Cargo.lock")).unwrap();
    let ran = Command::new(env!("CARGO"))
        .args(["test", "--test", "conformance", "--no-fail-fast"])
        .current_dir(new.directory())
        .env("CARGO_TARGET_DIR", PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("new-backend"))
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("NEXTEST")
        .output()
        .unwrap();
    let (said, told) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(!told.contains("warning:") && !told.contains("error["), "{told}");

    let verdicts: BTreeMap<&str, &str> = said.lines().filter_map(verdict).collect();
    let plan = Plan::make().unwrap();
    let (mut failed, mut core) = (0, 0);
    for (step, cases) in STEPS.iter().zip(plan.cases()) {
        for case in cases {
            let verdict =
                verdicts.get(case).copied().unwrap_or_else(|| panic!("{case} did not run\n{told}\n{said}"));
            if verdict == "FAILED" {
                assert!(!step.is_given, "{case} fails, of a step that is written\n{said}");
                failed += 1;
            }
            core += usize::from(!step.is_given && step.capability.is_none());
        }
    }
    assert_eq!(verdicts.len(), plan.cases().iter().map(Vec::len).sum::<usize>());
    // A few are green because they want an error or cannot have their damage; the rest says what is
    // missing.
    assert!(failed * 10 > core * 8, "{failed} of {core}");
    let says_so = said.matches("is not written yet").count();
    assert!(says_so >= failed, "{says_so} of {failed}");
    assert!(said.contains("tiny-kv: NOT CONFORMANT"), "{said}");
}

/// The case and what became of it, of a line about one.
fn verdict(line: &str) -> Option<(&str, &str)> {
    let (case, rest) = line.strip_prefix("test tiny-kv::")?.split_once(" ... ")?;
    Some((case.trim(), rest.trim()))
}

#[rstest]
#[case::empty("")]
#[case::upper_case("Tiny")]
#[case::begins_with_a_digit("1a")]
#[case::underscore("a_b")]
#[case::two_hyphens("a--b")]
#[case::ends_with_a_hyphen("a-")]
#[case::not_ascii("é")]
#[case::a_path("../x")]
#[case::long(&"a".repeat(33))]
fn a_name_that_cannot_be_one_is_refused(#[case] name: &str) {
    let refused = NewBackend::new(name, None).unwrap_err();
    assert!(matches!(&refused, NewBackendError::BadName { name: told } if told == name), "{refused}");
}

#[test]
fn what_is_there_is_not_overwritten() {
    let there = tempfile::tempdir().unwrap();
    assert!(NewBackend::new("tiny", Some(there.path())).is_ok());
    std::fs::write(there.path().join("precious"), "").unwrap();
    let refused = NewBackend::new("tiny", Some(there.path())).unwrap_err();
    assert!(matches!(refused, NewBackendError::NotEmpty { .. }), "{refused}");
    let refused = NewBackend::new("tiny", Some(&there.path().join("precious"))).unwrap_err();
    assert!(matches!(refused, NewBackendError::Io { .. }), "{refused}");
    assert!(matches!(NewBackend::new("sqlite", None).unwrap_err(), NewBackendError::NameTaken { .. }));
}
