//! Batches of any size as one statement's parameters.

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

/// Long texts of a batch, bound as one blob beside its rows, which say where in it each text is.
/// SQLite cuts `substr(blob, start, length)` out of it: no text is escaped, parsed or rendered, so
/// each stays what it is to the byte, and a batch of 256 MiB stays one of 256 MiB.
#[derive(Debug)]
pub(crate) struct Texts(Vec<u8>);

impl Texts {
    pub(crate) fn new() -> Self {
        // `substr` of an empty blob is NULL, also where an empty text is meant.
        Self(vec![b' '])
    }

    /// Adds a text; gives its start, from 1, and its length, or two NULLs for none.
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

/// Whether a statement may stay prepared after it was given so many bytes. The driver keeps the
/// parameters of a prepared statement until its next use.
pub(crate) const fn is_small(bytes: usize) -> bool {
    bytes <= 64 * 1024
}
