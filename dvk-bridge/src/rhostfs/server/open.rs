//! open, close, dup2, fsync.

use std::ffi::CStr;

use gangplank_fuse::{CreateIn, FsyncIn, OpenIn, ReleaseIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::backend_file::{BackendFile, DATA_ONLY};
use super::call::Name;
use super::credentials::Access;
use super::failure::Result;
use super::handle::OpenFile;
use super::open_flags as flag;
use super::path::Path;
use super::request_context::{Answer, RequestContext};
use super::resolver::{Found, Last};

/// Attempts to create a file that others create and remove meanwhile.
const MAX_CREATE_ATTEMPTS: usize = 8;

/// The bits of `mode` that are an access mode where the client puts it there: `O_ACCMODE` and
/// `O_APPEND`.
const MODE_ACCESS_BITS: u32 = flag::ACCESS | flag::APPEND;

/// The flags that are passed to the daemon.
const FORWARDED_FLAGS: u32 = flag::ACCESS | flag::APPEND | flag::TRUNCATE;

impl RequestContext<'_> {
    /// Opens or creates a file. For an existing file the client puts the access mode into `mode`
    /// and nothing into `flags`.
    pub(super) fn open(&self, name: Name, flags: u32, mode: u32) -> Result<Answer> {
        let creates = flags & flag::CREATE != 0;
        let flags = if creates {
            flags
        } else {
            flags | mode & MODE_ACCESS_BITS
        };
        if flags & flag::ACCESS == flag::ACCESS {
            return Err(Errno::INVAL.into());
        }
        let path = self.path(name)?;
        // Checked before a file is created or truncated.
        self.client.handles().free_number(self.settings.handles)?;
        let file = if creates {
            self.create(path, flags, mode)?
        } else {
            let found = self.resolver().find(&path, Last::Follow)?;
            self.open_found(path, &found, flags)?
        };
        let number = self.client.handles().insert(file, self.settings.handles)?;
        Ok(Answer::Result(number))
    }

    fn create(&self, path: Path, flags: u32, mode: u32) -> Result<OpenFile> {
        if path.means_directory() {
            return Err(Errno::ISDIR.into());
        }
        let exclusive = flags & flag::EXCLUSIVE != 0;
        for _ in 0..MAX_CREATE_ATTEMPTS {
            let (parent, name) = self.resolver().parent(&path, Errno::ISDIR)?;
            if let Some(found) = self.resolver().child(&parent, name)? {
                if exclusive {
                    return Err(Errno::EXIST.into());
                }
                let found = if found.kind() == FileType::Symlink {
                    self.resolver().find(&path, Last::Follow)?
                } else {
                    found
                };
                if found.is_directory() {
                    return Err(Errno::ISDIR.into());
                }
                return self.open_found(path, &found, flags);
            }
            match self.make(&path, &parent, name, flags, mode) {
                // Another process was faster. Its file is opened.
                Err(failure)
                    if !exclusive && (failure.is(Errno::EXIST) || failure.is(Errno::STALE)) => {}
                made => return made,
            }
        }
        Err(Errno::AGAIN.into())
    }

    fn make(
        &self,
        path: &Path,
        parent: &Found,
        name: &CStr,
        flags: u32,
        mode: u32,
    ) -> Result<OpenFile> {
        if self.settings.read_only {
            return Err(Errno::ROFS.into());
        }
        self.check_change(parent)?;
        let cached_path = self.client.memory.remember(path.clone())?;
        let args = CreateIn {
            flags: flags & FORWARDED_FLAGS | flag::CREATE | flag::EXCLUSIVE,
            mode: 0o100_000 | mode & 0o7777,
            umask: 0,
            open_flags: 0,
        };
        let (entry, open) = self.session.create(parent.id(), name, args)?;
        let found = self.resolver().found(&entry);
        let count = &self.client.open;
        let birth_time = self.backend.birth_times.ask(&self.session, found.id());
        let backend_file = BackendFile::file(self.backend, found.node, &open, count);
        Ok(OpenFile::new(
            cached_path,
            &found.attr,
            birth_time.wait(),
            flags,
            backend_file,
            count,
        ))
    }

    fn open_found(&self, path: Path, found: &Found, flags: u32) -> Result<OpenFile> {
        let writes = flags & flag::ACCESS != 0 || flags & flag::TRUNCATE != 0;
        if self.settings.read_only && writes {
            return Err(Errno::ROFS.into());
        }
        match found.kind() {
            FileType::RegularFile if flags & flag::DIRECTORY != 0 => {
                return Err(Errno::NOTDIR.into());
            }
            FileType::Directory if writes => return Err(Errno::ISDIR.into()),
            FileType::Symlink => return Err(Errno::LOOP.into()),
            FileType::RegularFile | FileType::Directory => {}
            // The client's kernel opens these files itself.
            _ => return Err(Errno::NXIO.into()),
        }
        let access = match flags & flag::ACCESS {
            flag::WRITE_ONLY => Access::WRITE,
            flag::READ_WRITE => Access::READ.and(Access::WRITE),
            _ => Access::READ,
        };
        let access = if writes {
            access.and(Access::WRITE)
        } else {
            access
        };
        self.settings.credentials.check(&found.attr, access)?;
        let path = self.client.memory.remember(path)?;
        let count = &self.client.open;
        let birth_time = self.backend.birth_times.ask(&self.session, found.id());
        let backend_file = BackendFile::open(self.backend, found, flags & FORWARDED_FLAGS, count)?;
        Ok(OpenFile::new(
            path,
            &found.attr,
            birth_time.wait(),
            flags,
            backend_file,
            count,
        ))
    }

    /// Closes a handle. Reports failed writes even if another handle stands for the same file, as
    /// each close does on Linux.
    pub(super) fn close(&self, handle: i32) -> Result<Answer> {
        // The handles are not locked while the daemon is asked.
        let file = self.client.handles().remove(handle)?;
        file.flush(self.backend)?;
        Ok(Answer::DONE)
    }

    /// Makes `new` stand for the file of `old`. If both are equal, reports failed writes: a client
    /// sends that when a program closes a file that stays open.
    pub(super) fn dup2(&self, old: i32, new: i32) -> Result<Answer> {
        let file = self.client.handles().get(old)?;
        if old == new {
            file.flush(self.backend)?;
            return Ok(Answer::Result(new));
        }
        let before = self.client.handles().duplicate(old, new)?;
        // The client continues with `new` as the same file, and gets this error with its next
        // request.
        if let Err(failure) = before.flush(self.backend) {
            file.defer_error(&failure);
        }
        Ok(Answer::Result(new))
    }

    pub(super) fn sync(&self, handle: i32, data_only: bool) -> Result<Answer> {
        let file = self.client.handles().get(handle)?;
        if file.kind() != FileType::Directory {
            file.sync(self.backend, data_only)?;
            return Ok(Answer::DONE);
        }
        let backend_file = file.backend_file(self.backend)?;
        let open = self.session.opendir(backend_file.id(), OpenIn::default())?;
        let sync = FsyncIn {
            fh: open.fh,
            fsync_flags: if data_only { DATA_ONLY } else { 0 },
            ..FsyncIn::default()
        };
        let synced = self.session.fsyncdir(backend_file.id(), sync);
        let release = ReleaseIn {
            fh: open.fh,
            ..ReleaseIn::default()
        };
        let released = self.session.releasedir(backend_file.id(), release);
        match synced {
            // The daemon buffers no writes.
            Err(error) if error.errno() == Some(Errno::NOSYS) => {}
            synced => synced?,
        }
        released?;
        Ok(Answer::DONE)
    }
}
