//! Makes writes durable. Everything that must survive a loss of power goes through here. So a test
//! can simulate a disk that forgets everything else.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use ork_state_api::Result;

use crate::error::io_at;

/// Syncs a file's contents and its length to disk.
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    #[cfg(test)]
    tests::forgetful::before(file)?;
    file.sync_data()?;
    #[cfg(test)]
    tests::forgetful::keep_content(file)?;
    Ok(())
}

/// A new name is on disk once its directory is synced.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = File::open(path)?;
    #[cfg(test)]
    tests::forgetful::before(&directory)?;
    directory.sync_all()?;
    #[cfg(test)]
    tests::forgetful::keep_names(path)?;
    Ok(())
}

/// Creates a directory unless it exists, and syncs its name to disk.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| sync_directory(&path.join(".."))),
    }
    .map_err(|source| io_at("make the directory", path, source))
}

#[cfg(test)]
mod tests;
