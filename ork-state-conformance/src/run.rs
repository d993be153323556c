//! Runs one case against one fixture.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use ork_state_api::Capability;
use ork_state_api::backend::Backend;
use ork_state_api::verify::observe;
use serde::{Deserialize, Serialize};
use tokio::task::JoinError;

use crate::{Case, Ctx, Fixture, NotApplicable};

/// How long a case may take by default.
pub const TIME_LIMIT: Duration = Duration::from_secs(120);

/// How a case is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// A case that takes longer is abandoned.
    pub(crate) patience: Duration,
    /// How many threads the case has.
    pub(crate) threads: usize,
    /// Whether a failing example is reduced to its shortest form.
    pub(crate) shrinks: bool,
}

impl Manner {
    /// For the author of a backend.
    pub(crate) const THOROUGH: Self = Self { patience: TIME_LIMIT, threads: 2, shrinks: true };
    /// For many runs over the model. It answers under a lock, and yields only where a fault makes
    /// it.
    pub(crate) const QUICK: Self = Self { threads: 1, shrinks: false, ..Self::THOROUGH };
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// The store does what the rule says.
    Passed,
    /// It does not, or the case could not run to its end.
    Failed {
        /// What happened.
        message: String,
    },
    /// The case was still running at its time limit. Either it hangs or the machine is slow, and
    /// nobody knows which.
    TimedOut {
        /// The limit, in milliseconds.
        limit: u64,
    },
    /// The case has nothing to check here. Either the backend declares that it lacks what the case
    /// needs, or its stores cannot get into the state that the case is about.
    NotApplicable {
        /// The reason.
        reason: String,
    },
}

impl Verdict {
    /// The verdict in a word or two.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed { .. } => "failed",
            Self::TimedOut { .. } => "timed out",
            Self::NotApplicable { .. } => "not applicable",
        }
    }

    /// What happened, for a case that did not end well.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Failed { message } => Some(message.clone()),
            Self::TimedOut { limit } => Some(format!(
                "still running at the time limit of {} s. It hangs, or the machine is slow: try a longer limit, or fewer threads",
                limit / 1000
            )),
            Self::Passed | Self::NotApplicable { .. } => None,
        }
    }
}

/// A case's verdict, with further remarks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaseReport {
    /// The case.
    pub name: String,
    /// The rules it is about; the first is the one it is named after.
    pub rules: Vec<crate::Rule>,
    /// The capabilities that it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// The capability that the backend must opt out of for it to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without: Option<String>,
    /// Its result.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// The case's notes, such as figures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The command that runs it again in the same way, if it failed or timed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
}

/// Runs a case in its own runtime, against a fresh store, and verifies the store after it.
///
/// The case's random choices come from the seed. It is abandoned at the time limit. This blocks: do
/// not call it from async code.
#[must_use]
pub fn run_case(fixture: &Arc<dyn Fixture>, case: &'static Case, seed: u64, limit: Duration) -> CaseReport {
    run_case_so(Manner { patience: limit, ..Manner::THOROUGH }, fixture, case, seed)
}

/// Like `run_case`, in another manner.
pub(crate) fn run_case_so(
    manner: Manner,
    fixture: &Arc<dyn Fixture>,
    case: &'static Case,
    seed: u64,
) -> CaseReport {
    note_panics();
    let begun = Instant::now();
    let mut notes = Vec::new();
    let verdict = verdict(manner, fixture, case, seed, &mut notes);
    let millis = millis(begun.elapsed());
    CaseReport {
        name: case.name.to_owned(),
        rules: case.rules.to_vec(),
        needs: case.needs.iter().map(ToString::to_string).collect(),
        without: case.without.map(|capability| capability.to_string()),
        verdict,
        millis,
        notes,
        replay: None,
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn verdict(
    manner: Manner,
    fixture: &Arc<dyn Fixture>,
    case: &'static Case,
    seed: u64,
    notes: &mut Vec<String>,
) -> Verdict {
    let backend = match fixture.plugin() {
        Ok(backend) => backend,
        Err(message) => return fail(message),
    };
    if let Some(reason) = not_applicable(backend, case) {
        return Verdict::NotApplicable { reason };
    }
    let Manner { patience, threads, shrinks } = manner;
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(format!("no runtime: {error}")),
    };
    let ended = runtime.block_on(async {
        tokio::time::timeout(patience, in_fresh_store(fixture, case, seed, shrinks, notes))
            .await
            .unwrap_or_else(|_| Err(Verdict::TimedOut { limit: millis(patience) }))
    });
    // A hung case must not hang the suite.
    runtime.shutdown_timeout(Duration::from_secs(5));
    match ended {
        Ok(()) => Verdict::Passed,
        Err(verdict) => verdict,
    }
}

/// Why a case does not apply to a backend with these capabilities, if so.
fn not_applicable(backend: &Backend, case: &Case) -> Option<String> {
    let has = |capability: Capability| backend.capabilities.has(capability);
    if let Some(capability) = case.without {
        return has(capability).then(|| format!("does not opt out of {capability}"));
    }
    let lacking = case.needs.iter().find(|need| !has(**need))?;
    Some(format!("opts out of {lacking}"))
}

fn fail(message: String) -> Verdict {
    Verdict::Failed { message }
}

/// Runs a future in its own runtime, within its time limit. A panic becomes an error like any
/// other.
pub(crate) fn guarded<T: Send + 'static>(
    patience: Duration,
    future: impl Future<Output = Result<T, String>> + Send + 'static,
) -> Result<T, String> {
    note_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let ended = runtime.block_on(async { tokio::time::timeout(patience, tokio::spawn(future)).await });
    runtime.shutdown_timeout(Duration::from_secs(5));
    match ended {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => Err(panic_message(&error)),
        Err(_) => Err(format!("still running after {patience:?}")),
    }
}

/// `Err` with the verdict unless the case passed.
async fn in_fresh_store(
    fixture: &Arc<dyn Fixture>,
    case: &Case,
    seed: u64,
    shrinks: bool,
    notes: &mut Vec<String>,
) -> Result<(), Verdict> {
    let store = fixture.migrated().await.map_err(|error| fail(format!("no store: {error:?}")))?;
    let ctx = match Ctx::open(fixture.clone(), store.clone(), seed, shrinks).await {
        Ok(ctx) => ctx,
        Err(error) => return Err(fail(format!("the store does not open: {error:?}"))),
    };
    // In its own task, so that the store is kept even if the case panics.
    let ended = tokio::spawn((case.run)(ctx.clone())).await;
    let mut result = match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => match error.downcast_ref::<NotApplicable>() {
            Some(NotApplicable(reason)) => return Err(Verdict::NotApplicable { reason: reason.clone() }),
            None => Err(fail(format!("{error:?}"))),
        },
        Err(error) => Err(fail(panic_message(&error))),
    };
    if result.is_ok() && !ctx.is_damaged() {
        result = verify(&ctx).await.map_err(fail);
    }
    notes.extend(ctx.take_notes());
    if result.is_err()
        && let Some(place) = store.keep()
    {
        notes.push(format!("the store is kept at {place}"));
    }
    result
}

/// Rule M4 after every case, as another process would see the store. It uses the backend's own
/// findings and also the backend's answers. So a backend that finds nothing is not simply believed.
async fn verify(ctx: &Ctx) -> Result<(), String> {
    let durable = ctx.backend().capabilities.has(Capability::Durable);
    let db = if durable {
        ctx.reopen().await.map_err(|e| format!("does not reopen: {e:?}"))?
    } else {
        ctx.db().clone()
    };
    let failed = |error| format!("verify failed after the case: {error:?}");
    let mut found = db.verify().await.map_err(failed)?;
    found.extend(observe(&*db).await.map_err(failed)?);
    if found.is_empty() {
        return Ok(());
    }
    found.sort_unstable();
    found.dedup();
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    Err(format!("verify found after the case:\n  {}", lines.join("\n  ")))
}

/// Where cases panicked. A panic's payload does not have the location, so the hook notes it by
/// task.
static PANICS: Mutex<BTreeMap<tokio::task::Id, String>> = Mutex::new(BTreeMap::new());

/// Records panics of cases instead of printing them, because they belong in the report.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match tokio::task::try_id() {
            Some(task) => {
                let message = info.payload_as_str().unwrap_or("panicked");
                let place =
                    info.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
                PANICS
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(task, format!("{message}{place}"));
            }
            None => default(info),
        }));
    });
}

/// The message of a panicked task, and where it panicked.
pub(crate) fn panic_message(error: &JoinError) -> String {
    let noted = PANICS.lock().unwrap_or_else(PoisonError::into_inner).remove(&error.id());
    noted.unwrap_or_else(|| error.to_string())
}
