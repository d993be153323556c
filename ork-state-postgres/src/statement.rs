//! The statements that this crate sends.
//!
//! A statement is a constant beside the call that sends it. It has placeholders in braces for what
//! the store fills in: the quoted name of its schema, and lists of columns. Nothing else ever
//! enters the text of a statement. Data is bound. Each store renders a statement once, when it
//! first sends it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::rows;

/// The text of a statement, with placeholders such as `{schema}`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Statement(&'static str);

/// The placeholders besides `schema`: lists of the columns that a function of [`rows`] reads.
const COLUMNS: [(&str, &str); 4] =
    [("workflow", rows::WORKFLOW), ("run", rows::RUN), ("task", rows::TASK), ("job", rows::JOB)];

impl Statement {
    /// Takes a text whose placeholders are all known. For a constant, the compiler reports an
    /// unknown one.
    pub(crate) const fn new(text: &'static str) -> Self {
        let mut at = 0;
        while at < text.len() {
            if text.as_bytes()[at] == b'{' {
                let mut known = has_place(text, at, "schema");
                let mut column = 0;
                while column < COLUMNS.len() {
                    known = known || has_place(text, at, COLUMNS[column].0);
                    column += 1;
                }
                assert!(known, "a statement has braces around something that is no place");
            }
            at += 1;
        }
        Self(text)
    }

    /// Renders the text for the schema with this quoted name.
    fn render(self, schema: &str) -> SqlStr {
        let mut parts = self.0.split('{');
        let mut rendered = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (place, after) = part.split_once('}').unwrap_or((part, ""));
            let columns = COLUMNS.iter().find(|(name, _)| *name == place);
            rendered.push_str(columns.map_or(schema, |(_, columns)| columns));
            rendered.push_str(after);
        }
        // Shared by all calls that send it.
        AssertSqlSafe(Arc::<str>::from(rendered)).into_sql_str()
    }
}

/// Whether the text has a placeholder of this name at this brace.
const fn has_place(text: &str, brace: usize, name: &str) -> bool {
    let (text, name) = (text.as_bytes(), name.as_bytes());
    if brace + name.len() + 1 >= text.len() || text[brace + name.len() + 1] != b'}' {
        return false;
    }
    let mut at = 0;
    while at < name.len() {
        if text[brace + 1 + at] != name[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// The statements of one store, each rendered when it is first sent.
pub(crate) struct Statements {
    /// The quoted name of the schema.
    schema: String,
    /// The key is the address of the constant's text in memory. Looking that up is faster than the
    /// text itself.
    rendered: RwLock<HashMap<(usize, usize), SqlStr>>,
}

impl fmt::Debug for Statements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statements").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Statements {
    /// The statements of a store in the schema with this quoted name.
    pub(crate) fn new(schema: impl fmt::Display) -> Self {
        Self { schema: schema.to_string(), rendered: RwLock::default() }
    }

    /// The text to send.
    pub(crate) fn get(&self, statement: Statement) -> SqlStr {
        let place = (statement.0.as_ptr() as usize, statement.0.len());
        if let Some(text) = self.rendered.read().unwrap_or_else(PoisonError::into_inner).get(&place) {
            return text.clone();
        }
        let text = statement.render(&self.schema);
        self.rendered.write().unwrap_or_else(PoisonError::into_inner).insert(place, text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_filled() {
        const TEXT: Statement = Statement::new("SELECT {run} FROM {schema}.runs r WHERE r.id = $1");
        let statements = Statements::new("\"odd {run}\"");
        let text = format!("SELECT {} FROM \"odd {{run}}\".runs r WHERE r.id = $1", rows::RUN);
        for _ in 0..2 {
            assert_eq!(statements.get(TEXT).as_str(), text);
        }
        assert_eq!(statements.rendered.read().unwrap().len(), 1);
    }

    #[test]
    fn only_known_places_are_taken() {
        for wrong in ["SELECT '{}'", "SELECT {runs}", "SELECT {run", "{"] {
            std::panic::catch_unwind(|| Statement::new(wrong)).unwrap_err();
        }
    }
}
