//! A small separate suite for the stores of [`ork_state_api::ork`].
//!
//! It is the `main` of a test with `harness = false`. It runs each case on a new store, one test
//! per case:
//!
//! ```ignore
//! use ork_state_conformance::ork::{ObjectStores, StateStores, run};
//!
//! fn main() -> ExitCode {
//!     run(&[StateStores { name: "mine", open: open_states, on_disk: true }], &[])
//! }
//! ```

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use ork_state_api::ork::{ObjectStore, StateStore};
use ork_state_api::{Clock, ErrorKind, ManualClock, Result};
use tempfile::TempDir;
use tokio::runtime::Builder;

use crate::CaseResult;

mod child;
mod objects;
mod states;
pub mod takeover;

/// A case that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// A store that is being opened.
pub type Opening<T> = Pin<Box<dyn Future<Output = Result<Arc<T>>> + Send>>;

/// How to open state stores of one kind.
#[derive(Debug, Clone, Copy)]
pub struct StateStores {
    /// The first part of the tests' names.
    pub name: &'static str,
    /// Opens one in this directory, whose parent exists, with this clock.
    pub open: fn(PathBuf, Arc<dyn Clock>) -> Opening<dyn StateStore>,
    /// Whether it is in the directory, in Ork's layout. Then it can be opened again and by other
    /// processes.
    pub on_disk: bool,
}

/// How to open object stores of one kind.
#[derive(Debug, Clone, Copy)]
pub struct ObjectStores {
    /// The first part of the tests' names.
    pub name: &'static str,
    /// Opens one in this directory, whose parent exists.
    pub open: fn(PathBuf) -> Opening<dyn ObjectStore>,
    /// Whether it is in the directory, in Ork's layout. Then it can be opened again and by other
    /// processes.
    pub on_disk: bool,
}

type Made<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The context of a case about a state store.
#[derive(Debug)]
struct States {
    stores: StateStores,
    home: TempDir,
    clock: Arc<ManualClock>,
    store: Arc<dyn StateStore>,
}

impl States {
    async fn new(stores: StateStores) -> Made<Self> {
        let home = TempDir::new()?;
        let clock = Arc::new(ManualClock::default());
        let store = (stores.open)(home.path().join("store"), clock.clone()).await?;
        Ok(Self { stores, home, clock, store })
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join("store")
    }

    /// Another handle to the same store.
    async fn reopen(&self) -> Result<Arc<dyn StateStore>> {
        (self.stores.open)(self.directory(), self.clock.clone()).await
    }
}

/// The context of a case about an object store.
#[derive(Debug)]
struct Objects {
    stores: ObjectStores,
    home: TempDir,
    store: Arc<dyn ObjectStore>,
}

impl Objects {
    async fn new(stores: ObjectStores) -> Made<Self> {
        let home = TempDir::new()?;
        let store = (stores.open)(home.path().join("store")).await?;
        Ok(Self { stores, home, store })
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join("store")
    }

    /// Another handle to the same store.
    async fn reopen(&self) -> Result<Arc<dyn ObjectStore>> {
        (self.stores.open)(self.directory()).await
    }
}

/// A running case.
type Running = Pin<Box<dyn Future<Output = CaseResult>>>;

/// A case: its name, which begins with its rule, whether it reads the disk, and its body.
struct Case<T> {
    name: &'static str,
    on_disk: bool,
    run: fn(Arc<T>) -> Running,
}

/// Writes a table of cases. Those after `@on_disk:` need a store on disk.
macro_rules! cases {
    ($table:ident: $ctx:ty; $($name:ident($t:ident) $body:block)+ @on_disk: $($disk:ident($d:ident) $disk_body:block)+) => {
        $(async fn $name($t: std::sync::Arc<$ctx>) -> $crate::CaseResult $body)+
        $(async fn $disk($d: std::sync::Arc<$ctx>) -> $crate::CaseResult $disk_body)+
        pub(super) const $table: &[$crate::ork::Case<$ctx>] = &[
            $($crate::ork::Case { name: stringify!($name), on_disk: false, run: |t| Box::pin($name(t)) },)+
            $($crate::ork::Case { name: stringify!($disk), on_disk: true, run: |t| Box::pin($disk(t)) },)+
        ];
    };
}
use cases;

/// Runs all cases over these stores, as tests. Cases that read the disk run only on stores on disk.
#[must_use]
pub fn run(states: &[StateStores], objects: &[ObjectStores]) -> ExitCode {
    if let Some(code) = child::play_if_child(states, objects) {
        return code;
    }
    let mut trials = Vec::new();
    for &stores in states {
        for case in states::CASES.iter().filter(|case| stores.on_disk || !case.on_disk) {
            trials.push(trial(stores.name, case, move || Box::pin(States::new(stores))));
        }
    }
    for &stores in objects {
        for case in objects::CASES.iter().filter(|case| stores.on_disk || !case.on_disk) {
            trials.push(trial(stores.name, case, move || Box::pin(Objects::new(stores))));
        }
    }
    if trials.is_empty() {
        eprintln!("no store: nothing was tested");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

type Making<T> = Pin<Box<dyn Future<Output = Made<T>>>>;

fn trial<T: Send + Sync + 'static>(
    store: &str,
    case: &'static Case<T>,
    make: impl Fn() -> Making<T> + Send + 'static,
) -> Trial {
    Trial::test(format!("{store}::{}", case.name), move || {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let ended = runtime.block_on(async {
            let made = Arc::new(make().await?);
            tokio::time::timeout(PATIENCE, (case.run)(made))
                .await
                .unwrap_or_else(|_| Err(format!("still running after {PATIENCE:?}").into()))
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        ended.map_err(|error| Failed::from(format!("{error:?}")))
    })
}

/// Writes a file of the store as damage would.
fn damage(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::write(path, bytes)
}

/// What a crash or an accident may leave in a file, made from its bytes.
fn damages(whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut with_nul = whole.to_vec();
    with_nul.truncate(whole.len() / 2);
    with_nul.resize(whole.len(), 0);
    vec![
        ("empty", Vec::new()),
        ("cut short", whole[..whole.len() / 2].to_vec()),
        ("cut by a byte", whole.trim_ascii_end()[..whole.trim_ascii_end().len() - 1].to_vec()),
        ("zeros at the end", with_nul),
        ("twice", [whole, whole].concat()),
        ("no JSON", b"hello".to_vec()),
        ("no UTF-8", b"{\"id\":\"\xff\"}".to_vec()),
    ]
}

/// Fails unless this is `Corrupt`, names the file, and shows nothing of its contents.
fn assert_corrupt<T: std::fmt::Debug>(result: Result<T>, file: &Path, what: &str) -> CaseResult {
    let error = match result {
        Ok(read) => return Err(format!("{what}: {} was read as {read:?}", file.display()).into()),
        Err(error) => error,
    };
    let text = error.to_string();
    let is_corrupt = matches!(error.kind(), ErrorKind::Corrupt { .. });
    assert!(is_corrupt && text.contains(&*file.to_string_lossy()), "{what}: {text}");
    assert!(
        !format!("{error:?}").contains("hello"),
        "{what}: the error shows what is in the file: {error:?}"
    );
    Ok(())
}

/// Text that must come out as it went in.
const JSON: &[&str] = &[
    "null",
    "-0.0",
    "1e2",
    "12345678901234567890",
    r#"{"b": 1, "a": [ ],"a":2}"#,
    "{\n  \"pretty\": \"yes\"\r\n}",
    r#""\u0000 \ud800 é ✓""#,
];

/// Valid names that must not lead to another place.
const NAMES: &[&str] = &[
    "%2e%2e",
    "..a",
    "a..",
    "...",
    " ",
    "-rf",
    "~",
    "$HOME",
    "a#1",
    "a?b",
    "a%2Fb",
    ".staged",
    "a.json",
    "загрузка ✓",
    "e\u{301}",
    "é",
    "A",
    "a",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_rule_has_cases_named_after_it() {
        let names: Vec<&str> = states::CASES
            .iter()
            .map(|case| case.name)
            .chain(objects::CASES.iter().map(|case| case.name))
            .collect();
        let rules = (1..=8).map(|rule| format!("ls{rule}_")).chain((1..=6).map(|rule| format!("lo{rule}_")));
        for rule in rules {
            assert!(names.iter().any(|name| name.starts_with(&rule)), "no case of {rule}");
        }
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }
}
