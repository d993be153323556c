//! Identifiers: a type an entity, so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, Result};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// A UUID, version 7 where the store made it (rule G3), so newer ids sort after older ones.
        /// Ids of databases that are older than this crate may be of any version: never read a
        /// time out of one. It shows and serialises as the hyphenated lower-case form.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Makes a new id. For backends: the store makes ids, its callers do not.
            ///
            /// Ids made by one process grow strictly, so rows inserted together keep their order.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// Takes an id as it was stored.
            #[must_use]
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            /// The plain UUID, as a database stores it.
            #[must_use]
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|source| Error::invalid($what, "is not a UUID").with_source(source))
            }
        }
    };
}

id!(
    /// Names a workflow.
    WorkflowId, "workflow id"
);
id!(
    /// Names an immutable snapshot of a workflow's DAG.
    SnapshotId, "snapshot id"
);
id!(
    /// Names one run of a workflow.
    RunId, "run id"
);
id!(
    /// Names one task of one run.
    TaskId, "task id"
);
id!(
    /// Names one deferred job of one task.
    JobId, "deferred job id"
);
