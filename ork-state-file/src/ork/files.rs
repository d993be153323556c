//! Files with one JSON value each, replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ork_state_api::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::disk::{make_directory, sync_directory, sync_file};
use crate::error::io_at;
use crate::lock::{self, Deadline, Locked};

/// The name under which a file is written before it gets its own. There is one per directory, and
/// no file of ours has this name.
const STAGED: &str = ".staged";

/// A directory that a store may write to, created if its parent exists.
///
/// Its path is made absolute, because the process may change its own directory later.
pub(super) fn base_directory(path: &Path) -> Result<PathBuf> {
    make_directory(path)?;
    let path = path.canonicalize().map_err(|source| io_at("find", path, source))?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(Error::invalid("store directory", format!("{} is not a directory", path.display())))
    }
}

/// The bytes of a file, if it exists.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_at("read", path, source)),
    }
}

/// Parses a value. `what` and `file` are for the error, which does not quote the value.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], file: &str, what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let reason = match error.classify() {
            _ if bytes.is_empty() => "the file is empty".to_owned(),
            Category::Eof => "the file is cut short".to_owned(),
            Category::Syntax | Category::Io => "the file is not JSON".to_owned(),
            Category::Data => format!("this is not what {what} has there"),
        };
        Error::corrupt(file, format!("line {}", error.line()), error.column().to_string(), reason)
            .with_hint("Repair the file, or remove it to do without")
    })
}

/// The error for a file whose contents name another file.
pub(super) fn misplaced(file: &str, field: &str) -> Error {
    Error::corrupt(file, "as a whole", field, "it is not the one that the file's path tells")
        .with_hint("Move the file to its place, or remove it")
}

/// The text of a value, readable for people too.
pub(super) fn print(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value)
        .map_err(|source| Error::internal("a value does not serialise").with_source(source))
}

/// Writes a file below `base` in these directories, which are created. A reader gets the old
/// contents or the new ones. Once this returns they survive loss of power.
///
/// Two writers in one directory take turns, by a lock of the staged file.
pub(super) fn replace(
    base: &Path,
    directories: &[&str],
    name: &str,
    bytes: &[u8],
    deadline: Deadline,
) -> Result<()> {
    let mut directory = base.to_owned();
    for name in directories {
        directory.push(name);
        make_directory(&directory)?;
    }
    let path = directory.join(name);
    let staged = directory.join(STAGED);
    let (file, _locked) = stage(&staged, deadline)?;
    let is_new = !path.exists();
    let written = (|| {
        // Left by a process that was killed.
        file.set_len(0)?;
        (&*file).write_all(bytes)?;
        sync_file(&file)?;
        fs::rename(&staged, &path)
    })();
    if let Err(source) = written {
        let _ = fs::remove_file(&staged);
        return Err(io_at("write", &path, source));
    }
    // A new file's directories may be new too. A process may have made them and been killed before
    // it synced them.
    let above = directory.ancestors().take(if is_new { directories.len() + 1 } else { 1 });
    for directory in above {
        sync_directory(directory).map_err(|source| {
            let error = io_at("sync", directory, source);
            Error::unknown_effect(format!(
                "{} was written, but may not survive loss of power",
                path.display()
            ))
            .with_source(error)
        })?;
    }
    Ok(())
}

/// Opens the staged file of a directory, and locks it.
fn stage(staged: &Path, deadline: Deadline) -> Result<(Arc<File>, Locked)> {
    let failed = |source| io_at("write", staged, source);
    loop {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(staged);
        let file = Arc::new(file.map_err(failed)?);
        let locked = lock::wait(&file, staged, File::try_lock, deadline)?;
        let there = match fs::metadata(staged) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed(source)),
        };
        // The previous owner of the lock may have renamed the file that we opened. Then we must not
        // write to it.
        if there.ino() == file.metadata().map_err(failed)?.ino() {
            return Ok((file, locked));
        }
    }
}
