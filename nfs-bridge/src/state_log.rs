//! The logs in the directory of `--state`, which survive this program. Each is read at the start,
//! and replaced by one without what means nothing any more.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// An operation on the file failed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is no log of {expected}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it should have.
        expected: &'static str,
    },
    /// Another version of this program has written it.
    #[error(
        "{} is a log of {expected} of another version of this program, in layout {found}: start \
         that version, or move the file away, and with it what clients have from before",
        path.display()
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// What it has.
        expected: &'static str,
        /// The number of its layout.
        found: u32,
    },
    /// Another process uses it.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
}

/// What a failed operation on a file is.
pub fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::File { what, path, source }
}

/// Why a file cannot be used that begins with `bytes` and not with `magic`: the name of the log and
/// the number of its layout, with a space between.
pub fn foreign(path: PathBuf, expected: &'static str, bytes: &[u8], magic: &[u8]) -> LogError {
    let name = magic.iter().rposition(|byte| *byte == b' ').unwrap_or(0);
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let number = magic
        .get(..=name)
        .and_then(|name| line.strip_prefix(name))
        .and_then(|number| str::from_utf8(number).ok())
        .and_then(|number| number.parse().ok());
    match number {
        Some(found) => LogError::Layout {
            path,
            expected,
            found,
        },
        None => LogError::Foreign { path, expected },
    }
}

/// What a log has; `None` if there is none.
///
/// # Errors
/// [`LogError::File`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, LogError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Puts a new log in the place of the one at `path`. Returns the file that `write` has made.
///
/// # Errors
/// [`LogError::File`].
pub fn replace(
    path: &Path,
    write: impl FnOnce(&Path) -> io::Result<File>,
) -> Result<File, LogError> {
    let new = path.with_added_extension("new");
    let file = write(&new).map_err(failed("write", &new))?;
    std::fs::rename(&new, path).map_err(failed("replace", path))?;
    if let Some(directory) = path.parent() {
        sync_directory(directory)?;
    }
    Ok(file)
}

/// Has the names in a directory written to its disk.
///
/// # Errors
/// [`LogError::File`].
pub fn sync_directory(directory: &Path) -> Result<(), LogError> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("write", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_another_version_is_told_from_another_file() {
        let found = |bytes: &[u8]| foreign("log".into(), "handles", bytes, b"a handles 2\n");
        let older = found(b"a handles 1\n\0\xff");
        assert!(matches!(older, LogError::Layout { found: 1, .. }));
        let message = older.to_string();
        assert!(
            message.contains("layout 1: start that version, or move"),
            "{message}"
        );
        for other in [&b"a handles\n1\n"[..], b"a handles x\n", b"b handles 1\n"] {
            assert!(matches!(found(other), LogError::Foreign { .. }));
        }
    }
}
