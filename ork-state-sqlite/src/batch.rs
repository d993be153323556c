//! Passes batches of any size to a statement as parameters.

use std::collections::BTreeSet;

use ork_state_api::Error;
use serde_json::Value;
use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;

use crate::error::Attempt;

/// The rows of a batch as JSON, for `json_each`.
pub(crate) fn json(rows: &[Value]) -> Attempt<String> {
    serde_json::to_string(rows)
        .map_err(|source| Error::internal("a batch does not serialise").with_source(source).into())
}

/// A set of statuses as JSON, if there is one.
pub(crate) fn words<S>(
    statuses: Option<BTreeSet<S>>,
    word: fn(S) -> &'static str,
) -> Attempt<Option<String>> {
    let Some(statuses) = statuses else { return Ok(None) };
    let words: Vec<Value> = statuses.into_iter().map(|status| Value::from(word(status))).collect();
    json(&words).map(Some)
}

/// A statement whose first parameter is a batch.
pub(crate) fn query(sql: &'static str, rows: &[Value]) -> Attempt<Query<'static, Sqlite, SqliteArguments>> {
    let json = json(rows)?;
    let keep_prepared = is_small(json.len());
    Ok(sqlx::query(sql).bind(json).persistent(keep_prepared))
}

/// The long texts of a batch, bound as one blob beside its rows. The rows say where in the blob
/// each text is, and SQLite cuts it out with `substr(blob, start, length)`. No text is escaped,
/// parsed or rendered, so each stays the same to the byte. And a batch of 256 MiB stays one of 256
/// MiB.
#[derive(Debug)]
pub(crate) struct Texts(Vec<u8>);

impl Texts {
    pub(crate) fn new() -> Self {
        // `substr` of an empty blob is NULL, even where an empty text is meant.
        Self(vec![b' '])
    }

    /// Adds a text. Returns its start, counted from 1, and its length, or two NULLs if there is no
    /// text.
    pub(crate) fn add(&mut self, text: Option<&str>) -> [Value; 2] {
        let Some(text) = text else { return [Value::Null, Value::Null] };
        let start = self.0.len() + 1;
        self.0.extend_from_slice(text.as_bytes());
        [Value::from(start), Value::from(text.len())]
    }

    pub(crate) fn into_blob(self) -> Vec<u8> {
        self.0
    }
}

/// Whether a statement with this many bytes of parameters may stay prepared. The driver keeps the
/// parameters of a prepared statement until its next use.
pub(crate) const fn is_small(bytes: usize) -> bool {
    bytes <= 64 * 1024
}
