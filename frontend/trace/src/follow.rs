//! The records of a file, and of what is appended to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gangplank_trace::{Item, Reader};

use crate::error::Error;

/// Pause between two looks at the end of a file.
const INTERVAL: Duration = Duration::from_millis(100);

/// Where the records come from.
#[derive(Debug)]
pub(crate) struct Source {
    reader: Reader<File>,
    path: PathBuf,
    is_followed: bool,
}

impl Source {
    /// Reads `file`, which is at `path`. If it is followed, it has no end.
    pub(crate) fn new(file: File, path: &Path, is_followed: bool) -> Self {
        Self {
            reader: Reader::new(file),
            path: path.to_owned(),
            is_followed,
        }
    }

    /// The next item; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, Error> {
        loop {
            let next = self.reader.next(self.is_followed);
            let next = next.map_err(|source| Error::Read {
                path: self.path.clone(),
                source,
            })?;
            if next.is_some() || !self.is_followed {
                return Ok(next);
            }
            std::thread::sleep(INTERVAL);
        }
    }
}
