//! A file of the host that a copy makes or replaces.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use gangplank_service::output::close;
use rustix::fs::{OFlags, SeekFrom, seek};
use std::io;
use tempfile::{NamedTempFile, TempPath};

use super::error::{Error, Result};
use super::host::write_all;
use super::transfer::Holes;
use crate::Data;

/// Permission bits that a copy takes over.
const PERMISSIONS: u32 = 0o777;

/// A file of the host, written from its beginning. A regular file has a temporary name until
/// [`HostTarget::publish`]; dropping it removes it. A device or a pipe is written directly.
#[derive(Debug)]
pub(super) struct HostTarget {
    file: File,
    /// What the user typed, for messages.
    path: PathBuf,
    /// The temporary name, and the name to be.
    rename: Option<(TempPath, PathBuf)>,
    offset: u64,
}

impl HostTarget {
    /// Begins a file for `path`. `mode` is for a name that does not exist yet. A file that exists
    /// passes its permissions on, and must be writable.
    pub(super) fn begin(path: PathBuf, mode: u32) -> Result<Self> {
        // A path that ends in a slash names a directory.
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") && !path.is_dir() {
            return Err(Error::Path {
                path: path.display().to_string(),
                why: "there is no such directory",
            });
        }
        let failed = |what| {
            let path = path.clone();
            move |source| Error::Host { what, path, source }
        };
        let old = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("open")(error)),
        };
        let metadata = old.as_ref().map(File::metadata).transpose();
        let metadata = metadata.map_err(failed("look at"))?;
        if let (Some(old), Some(metadata)) = (old, &metadata)
            && !metadata.is_file()
        {
            return Ok(Self {
                file: old,
                path,
                rename: None,
                offset: 0,
            });
        }
        // The file that a link leads to is replaced, and not the link.
        let name = match (&metadata, path.read_link()) {
            (Some(_), _) => path.canonicalize().map_err(failed("find"))?,
            (None, Ok(_)) => {
                return Err(Error::Path {
                    path: path.display().to_string(),
                    why: "it is a symbolic link to a file that does not exist",
                });
            }
            (None, Err(_)) => path.clone(),
        };
        let new = temporary_beside(&name, mode).map_err(failed("make"))?;
        if let Some(old) = &metadata {
            take_over(&new, old.uid(), old.gid(), old.mode()).map_err(failed("make"))?;
        }
        let (file, temporary) = new.into_parts();
        Ok(Self {
            file,
            path,
            rename: Some((temporary, name)),
            offset: 0,
        })
    }

    /// Begins a file for `path`, which is replaced without a look at it.
    pub(super) fn begin_anew(path: PathBuf, mode: u32) -> Result<Self> {
        let new = temporary_beside(&path, mode).map_err(|source| Error::Host {
            what: "make",
            path: path.clone(),
            source,
        })?;
        let (file, temporary) = new.into_parts();
        Ok(Self {
            file,
            rename: Some((temporary, path.clone())),
            path,
            offset: 0,
        })
    }

    /// Continues the file `temporary` behind its first `start` bytes, or makes it without a
    /// `start`. It stays if the copy fails.
    pub(super) fn resume(
        path: PathBuf,
        temporary: PathBuf,
        start: Option<u64>,
        mode: u32,
    ) -> Result<Self> {
        let failed = |what| {
            let path = temporary.clone();
            move |source| Error::Host { what, path, source }
        };
        let mut options = OpenOptions::new();
        options.write(true).mode(mode & PERMISSIONS);
        options.create_new(start.is_none());
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&temporary).map_err(failed("open"))?;
        if let Some(start) = start {
            file.set_len(start).map_err(failed("cut"))?;
        }
        let kept = TempPath::try_from_path(temporary.clone());
        let mut kept = kept.map_err(failed("find"))?;
        kept.disable_cleanup(true);
        Ok(Self {
            file,
            rename: Some((kept, path.clone())),
            path,
            offset: 0,
        })
    }

    /// Whether holes can be left out: the rest of the file is not old data.
    pub(super) const fn holes(&self) -> Holes {
        match self.rename {
            Some(_) => Holes::Skip,
            None => Holes::Read,
        }
    }

    /// Writes a piece at `offset`, behind the previous one.
    pub(super) fn write(&mut self, offset: u64, data: &Data) -> Result<()> {
        let skipped = match offset == self.offset {
            true => Ok(()),
            false => seek(&self.file, SeekFrom::Start(offset))
                .map(|at| self.offset = at)
                .map_err(io::Error::from),
        };
        let written = skipped.and_then(|()| write_all(&self.file, data, &mut self.offset));
        written.map_err(|source| Error::HostTransfer {
            what: "write",
            path: self.path.clone(),
            offset: self.offset,
            source,
        })
    }

    /// Sets the file's length, closes it, and gives it its name. A network file system may report
    /// only here what it could not write.
    pub(super) fn publish(self, len: u64) -> Result<()> {
        self.publish_with(len, |_| Ok(()))
    }

    /// As [`HostTarget::publish`]. `prepare` changes the closed file before it gets its name.
    pub(super) fn publish_with(
        self,
        len: u64,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let failed = |what| {
            let path = self.path.clone();
            move |source| Error::Host { what, path, source }
        };
        let Some((temporary, name)) = self.rename else {
            return close(self.file).map_err(failed("close"));
        };
        if len != self.offset {
            // A hole at the end was not written.
            self.file
                .set_len(len)
                .map_err(failed("set the length of"))?;
        }
        close(self.file).map_err(failed("close"))?;
        prepare(&temporary)?;
        let renamed = temporary.persist(name);
        renamed.map_err(|error| failed("replace")(error.error))
    }
}

/// A file with a temporary name in the directory of `name`.
fn temporary_beside(name: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let parent = name.parent().filter(|path| !path.as_os_str().is_empty());
    tempfile::Builder::new()
        .prefix(".gangplank-")
        .suffix(".part")
        .permissions(Permissions::from_mode(mode & PERMISSIONS))
        .tempfile_in(parent.unwrap_or(Path::new(".")))
}

/// Gives a new file the owner, where that is permitted, and the permissions of the one that it
/// replaces.
fn take_over(new: &NamedTempFile, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    let file = new.as_file();
    let metadata = file.metadata()?;
    if (metadata.uid(), metadata.gid()) != (uid, gid) {
        // Only root may. Everybody else's copy is their own.
        let _ = fchown(file, Some(uid), Some(gid));
    }
    file.set_permissions(Permissions::from_mode(mode & PERMISSIONS))
}
