//! Taking in what another store holds.

use crate::backend::Plugin;
use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::{
    Capability, Dag, DeferredJob, Error, Json, Result, Run, Snapshot, SnapshotId, Task, TaskDetail, TaskId,
    Timestamp, Token, Workflow, WorkflowId,
};

/// A part of a store, as [`copy`](crate::copy::copy) carries it from one to another.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// A snapshot. It comes before what refers to it.
    Snapshot(Snapshot),
    /// A workflow.
    Workflow(Workflow),
    /// A run. Its tasks follow it.
    Run(Run),
    /// A task. Its jobs and its log follow it.
    Task {
        /// As it is read.
        detail: TaskDetail,
        /// A fencing token that is at least that of every claim of it so far.
        token: Token,
    },
    /// A deferred job.
    Job {
        /// As it is read.
        job: DeferredJob,
        /// Grows with each time that its task was deferred; that of a task which waits for it is
        /// the task's token.
        deferral: Token,
        /// A fencing token that is at least that of every claim of it so far.
        token: Token,
    },
    /// A part of a task's log. The parts come in order.
    Log {
        /// Whose.
        task: TaskId,
        /// Where it begins.
        offset: u64,
        /// What it holds.
        bytes: Vec<u8>,
    },
}

impl Record {
    /// What it is, in one word: the key of its [encoded](Self::encode) form.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Snapshot(_) => "snapshot",
            Self::Workflow(_) => "workflow",
            Self::Run(_) => "run",
            Self::Task { .. } => "task",
            Self::Job { .. } => "job",
            Self::Log { .. } => "log",
        }
    }

    /// The form in which a backend keeps it until the import is finished: a JSON object with one
    /// key, its [kind](Self::kind). Payloads are in it as strings, so that what takes it apart need
    /// not keep the text of JSON values.
    ///
    /// # Errors
    /// `Internal`, which is not known to happen.
    pub fn encode(&self) -> Result<String> {
        serde_json::to_string(&Encoded::of(self.clone()))
            .map_err(|source| Error::internal("a record does not serialise").with_source(source))
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Corrupt`
    pub fn decode(text: &str) -> Result<Self> {
        let encoded: Encoded = serde_json::from_str(text).map_err(|source| {
            Error::corrupt("import_records", "?", "record", "is no record").with_source(source)
        })?;
        encoded.into_record()
    }
}

/// A payload as a string that holds its JSON.
struct Payload(Json);

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Json::parse(text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Encoded {
    Snapshot {
        id: SnapshotId,
        workflow: WorkflowId,
        content_hash: String,
        created_at: Timestamp,
        dag: Payload,
    },
    Workflow {
        row: Workflow,
        params: Option<Payload>,
    },
    Run {
        row: Run,
    },
    Task {
        row: Task,
        params: Option<Payload>,
        output: Option<Payload>,
        token: Token,
    },
    Job {
        row: DeferredJob,
        job_data: Payload,
        output: Option<Payload>,
        deferral: Token,
        token: Token,
    },
    Log {
        task: TaskId,
        offset: u64,
        hex: String,
    },
}

impl Encoded {
    fn of(record: Record) -> Self {
        match record {
            Record::Snapshot(Snapshot { id, workflow, content_hash, dag, created_at }) => {
                Self::Snapshot { id, workflow, content_hash, created_at, dag: Payload(dag.to_json().clone()) }
            }
            Record::Workflow(mut row) => {
                let params = row.target.params.take().map(Payload);
                Self::Workflow { row, params }
            }
            Record::Run(row) => Self::Run { row },
            Record::Task { detail: TaskDetail { task, params, output }, token } => {
                Self::Task { row: task, params: params.map(Payload), output: output.map(Payload), token }
            }
            Record::Job { mut job, deferral, token } => {
                let job_data = Payload(std::mem::replace(&mut job.job_data, Json::null()));
                let output = job.output.take().map(Payload);
                Self::Job { row: job, job_data, output, deferral, token }
            }
            Record::Log { task, offset, bytes } => Self::Log { task, offset, hex: to_hex(&bytes) },
        }
    }

    fn into_record(self) -> Result<Record> {
        let payload = |payload: Option<Payload>| payload.map(|Payload(json)| json);
        Ok(match self {
            Self::Snapshot { id, workflow, content_hash, created_at, dag: Payload(dag) } => {
                Record::Snapshot(Snapshot {
                    id,
                    workflow,
                    content_hash,
                    dag: Dag::from_json(dag.as_str())?,
                    created_at,
                })
            }
            Self::Workflow { mut row, params } => {
                row.target.params = payload(params);
                Record::Workflow(row)
            }
            Self::Run { row } => Record::Run(row),
            Self::Task { row, params, output, token } => {
                let detail = TaskDetail { task: row, params: payload(params), output: payload(output) };
                Record::Task { detail, token }
            }
            Self::Job { mut row, job_data: Payload(job_data), output, deferral, token } => {
                (row.job_data, row.output) = (job_data, payload(output));
                Record::Job { job: row, deferral, token }
            }
            Self::Log { task, offset, hex } => {
                let bytes = from_hex(&hex).ok_or_else(|| {
                    Error::corrupt(
                        "import_records",
                        task,
                        "record",
                        "has a log that is no hexadecimal digits",
                    )
                })?;
                Record::Log { task, offset, bytes }
            }
        })
    }
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// How far an import has come: how many records, and a digest of them all, by which it is known
/// whether it may go on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImportProgress {
    /// How many records are there.
    pub records: u64,
    /// The SHA-256 of the digest before the last of them and that one's encoded form, in
    /// hexadecimal digits; empty at the beginning.
    pub digest: String,
}

impl ImportProgress {
    /// How far it will have come with one more [encoded](Record::encode) record.
    #[must_use]
    pub fn then(&self, encoded: &str) -> Self {
        let digest = Sha256::new().chain_update(&self.digest).chain_update(encoded).finalize();
        Self { records: self.records + 1, digest: to_hex(&digest) }
    }
}

impl fmt::Display for ImportProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records", self.records)
    }
}

/// Records that follow others in an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportPage {
    after: ImportProgress,
    to: ImportProgress,
    records: Vec<(&'static str, String)>,
}

impl ImportPage {
    /// What follows the records that lead to this progress.
    #[must_use]
    pub fn new(after: ImportProgress) -> Self {
        Self { to: after.clone(), after, records: Vec::new() }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// Those of [`Record::encode`].
    pub fn push(&mut self, record: &Record) -> Result<()> {
        let encoded = record.encode()?;
        self.to = self.to.then(&encoded);
        self.records.push((record.kind(), encoded));
        Ok(())
    }

    /// How far the import must have come before.
    #[must_use]
    pub const fn after(&self) -> &ImportProgress {
        &self.after
    }

    /// How far it has come with them.
    #[must_use]
    pub const fn to(&self) -> &ImportProgress {
        &self.to
    }

    /// The kinds and the encoded forms.
    #[must_use]
    pub fn records(&self) -> &[(&'static str, String)] {
        &self.records
    }

    /// How many bytes the encoded forms have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|(_, encoded)| encoded.len()).sum()
    }

    /// The error of a page that does not follow what is there (**M6**), for backends.
    #[must_use]
    pub fn does_not_follow(&self, there: Option<&ImportProgress>) -> Error {
        let there = there.map_or_else(|| "none".to_owned(), ToString::to_string);
        Error::conflict(format!("a page of an import follows {}, and there are {there}", self.after))
            .with_hint("Ask import_progress and go on from there, or abandon_import and begin again")
    }
}

/// The error of an import into a store that holds something (**M6**), for backends.
#[must_use]
pub fn not_empty() -> Error {
    Error::conflict("the store is not empty, it has workflows").with_hint("Import into a new store")
}

/// The error of finishing an import that nobody began (**M6**), for backends.
#[must_use]
pub fn no_import() -> Error {
    Error::conflict("no import is under way")
}

/// Takes in what another store holds. Callers use [`copy`](crate::copy::copy), which needs this of
/// the store it copies to.
///
/// **M6** Records are kept apart, page by page. Nothing else sees them until the import is
/// finished. Then all of them become what the store holds, in one transaction. From then on every
/// method answers as the store did that they came from, and work goes on.
///
/// A backend may opt out with [`Capability::Transfer`](crate::Capability::Transfer). All methods
/// are then `Unsupported`, which is what they answer by default.
#[async_trait]
pub trait Transfer: Plugin {
    /// How far an import has come; `None` if none is under way.
    ///
    /// # Errors
    /// `Unsupported`
    async fn import_progress(&self) -> Result<Option<ImportProgress>> {
        Err(self.backend().lacks(Capability::Transfer))
    }

    /// Keeps a page of records, which must follow those that are there. The first begins an import.
    ///
    /// # Errors
    /// `Conflict` if it does not follow, or if the store has a workflow; `Unsupported`.
    ///
    /// # Cancel safety
    /// Kept or not: [`import_progress`](Self::import_progress) tells.
    async fn import(&self, page: ImportPage) -> Result<()> {
        let _ = page;
        Err(self.backend().lacks(Capability::Transfer))
    }

    /// Makes what was imported the content of the store. The import is over with it.
    ///
    /// # Errors
    /// `Conflict` if no import is under way, or if the store has a workflow by now. `Unsupported`.
    /// A failure has changed nothing (G7). [`copy`](crate::copy::copy) sees to it that the records
    /// fit each other, so a backend need not check.
    ///
    /// # Cancel safety
    /// Finished or not: it is if no import is under way any more.
    async fn finish_import(&self) -> Result<()> {
        Err(self.backend().lacks(Capability::Transfer))
    }

    /// Forgets what was imported and is not finished. If nothing was, nothing happens.
    ///
    /// # Errors
    /// `Unsupported`
    async fn abandon_import(&self) -> Result<()> {
        Err(self.backend().lacks(Capability::Transfer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_come_back_and_others_do_not() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&all)), Some(all));
        for bad in ["0", "0g", "é"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn progress_depends_on_every_record_and_on_their_order() {
        let none = ImportProgress::default();
        let (ab, ba) = (none.then("a").then("b"), none.then("b").then("a"));
        assert_eq!((ab.records, ba.records), (2, 2));
        assert_ne!(ab, ba);
        assert_ne!(none.then("ab").digest, ab.digest);
    }
}
