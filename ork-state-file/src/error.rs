//! Maps errors of the file system to the API's.

use std::io;
use std::path::Path;

use ork_state_api::Error;

/// An operation on the store's files failed, and nothing was changed.
pub(crate) fn io(action: &str, source: io::Error) -> Error {
    let hint = match source.kind() {
        io::ErrorKind::PermissionDenied => "Give this user the right to read and write the store's directory",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "Make room on the disk",
        io::ErrorKind::ReadOnlyFilesystem => "The file system is mounted read-only",
        io::ErrorKind::NotFound => "Make the parent directory, or correct the path",
        _ => "Look at the system's log for trouble with the disk",
    };
    Error::unavailable(format!("cannot {action}: {source}")).with_hint(hint).with_source(source)
}

/// Like `io`, with the path.
pub(crate) fn io_at(action: &str, path: &Path, source: io::Error) -> Error {
    io(&format!("{action} {}", path.display()), source)
}
