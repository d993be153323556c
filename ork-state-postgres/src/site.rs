//! The location of a store: its server and its schema.

use sqlx::postgres::PgArguments;
use sqlx::{Postgres, SqlStr};

use crate::options::Schema;
use crate::statement::{Statement, Statements};

/// A statement with its arguments.
pub(crate) type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

/// A store's server, as messages name it, and its schema, with the rendered statements.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) place: String,
    pub(crate) schema: Schema,
    statements: Statements,
}

impl Site {
    pub(crate) fn new(place: String, schema: Schema) -> Self {
        Self { place, statements: Statements::new(&schema), schema }
    }

    /// The text of a statement for this store.
    pub(crate) fn text(&self, statement: Statement) -> SqlStr {
        self.statements.get(statement)
    }

    /// A statement to bind arguments to.
    pub(crate) fn query(&self, statement: Statement) -> Query {
        sqlx::query(self.text(statement))
    }
}
