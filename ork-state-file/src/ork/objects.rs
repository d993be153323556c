//! Where the files of tasks are: a directory of ours, or anything that the `object_store` crate
//! supports.

use std::path::PathBuf;
use std::sync::Arc;

use ::object_store::path::Path;
use ::object_store::{Error as StoreError, GetOptions, ObjectStore, PutOptions};
use ork_state_api::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{blocking, files};
use crate::lock::Deadline;
use crate::options::LOCK_TIMEOUT;

/// The characters that need no escape in a URL (RFC 3986, unreserved).
const IN_URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The place of all files.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// `object_store` could write here too, atomically and with syncs. But its files and
    /// directories get the process's default modes. And it never removes what a killed writer left.
    Directory {
        base: PathBuf,
        /// The same, for reported paths.
        shown: String,
    },
    Objects {
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        /// The URL, without a trailing slash.
        shown: String,
    },
}

/// Identifies a file: the run, the task, and the name of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) run: &'a str,
    pub(super) task: &'a str,
    pub(super) file: &'a str,
}

impl Place {
    /// Where a task's files are, in a form for others.
    pub(super) fn task_dir(&self, run: &str, task: &str) -> String {
        match self {
            Self::Directory { shown, .. } if shown.ends_with('/') => format!("{shown}{run}/{task}"),
            Self::Directory { shown, .. } => format!("{shown}/{run}/{task}"),
            Self::Objects { shown, .. } => {
                format!("{shown}/{}/{}", utf8_percent_encode(run, IN_URL), utf8_percent_encode(task, IN_URL))
            }
        }
    }

    /// Where a file is, in a form for others.
    pub(super) fn shown(&self, key: Key<'_>) -> String {
        format!("{}/{}", self.task_dir(key.run, key.task), key.file)
    }

    /// Replaces a file.
    pub(super) async fn put(&self, key: Key<'_>, bytes: Vec<u8>) -> Result<()> {
        match self {
            Self::Directory { base, .. } => {
                let base = base.clone();
                let [run, task, file] = [key.run, key.task, key.file].map(str::to_owned);
                let deadline = Deadline::after(LOCK_TIMEOUT);
                blocking(move || files::replace(&base, &[&run, &task], &file, &bytes, deadline)).await
            }
            Self::Objects { store, prefix, .. } => {
                let put = store.put_opts(&location(prefix, key)?, bytes.into(), PutOptions::default()).await;
                put.map(drop).map_err(|source| match denied(&source, &self.shown(key)) {
                    Some(error) => error.with_source(source),
                    // The write may have succeeded and only the answer been lost.
                    None => Error::unknown_effect(format!("cannot write {}", self.shown(key)))
                        .with_hint("Write it again: that does no harm")
                        .with_source(source),
                })
            }
        }
    }

    /// Reads a file, if it exists.
    pub(super) async fn get(&self, key: Key<'_>) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Directory { base, .. } => {
                let path = base.join(key.run).join(key.task).join(key.file);
                blocking(move || files::read(&path)).await
            }
            Self::Objects { store, prefix, .. } => {
                let got = match store.get_opts(&location(prefix, key)?, GetOptions::default()).await {
                    Ok(found) => found.bytes().await,
                    Err(StoreError::NotFound { .. }) => return Ok(None),
                    Err(error) => Err(error),
                };
                got.map(|bytes| Some(bytes.into())).map_err(|source| {
                    denied(&source, &self.shown(key))
                        .unwrap_or_else(|| Error::unavailable(format!("cannot read {}", self.shown(key))))
                        .with_source(source)
                })
            }
        }
    }
}

/// The name of an object, unescaped so that others find it. `object_store` encodes it when it sends
/// it.
fn location(prefix: &Path, key: Key<'_>) -> Result<Path> {
    Path::parse(format!("{prefix}/{}/{}/{}", key.run, key.task, key.file))
        .map_err(|source| Error::invalid("object name", "is none that can be stored").with_source(source))
}

/// The error if the store has certainly done nothing, with what to do about it.
fn denied(error: &StoreError, shown: &str) -> Option<Error> {
    let (reason, hint) = match error {
        StoreError::NotFound { .. } => {
            ("there is no such bucket or container", "Make it, or correct the URL")
        }
        StoreError::PermissionDenied { .. } => {
            ("permission was denied", "Give this identity the right to read and write there")
        }
        StoreError::Unauthenticated { .. } => {
            ("the credentials are not valid", "Correct the credentials in the environment")
        }
        _ => return None,
    };
    Some(Error::unavailable(format!("cannot use {shown}: {reason}")).with_hint(hint))
}
