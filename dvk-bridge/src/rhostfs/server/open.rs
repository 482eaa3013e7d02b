//! open, close, dup2, fsync.

use std::ffi::CStr;

use gangplank_fuse::{CreateIn, FsyncIn, OpenIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::call::Name;
use super::failure::Result;
use super::handle::{self, OpenFile};
use super::identity::Access;
use super::opened::{Content, Opened, flag};
use super::path::Path;
use super::tree::{Found, Last};
use super::work::{Answer, Work};

/// Attempts to make a file that others make and remove at the same time.
const ATTEMPTS: usize = 8;

/// FSYNC is about data alone (`FUSE_FSYNC_FDATASYNC`).
const DATA_ONLY: u32 = 1;

/// What of `mode` is an access mode where the client puts it there: `O_ACCMODE` and `O_APPEND`.
const MISPLACED: u32 = flag::ACCESS | flag::APPEND;

/// Flags that reach the daemon.
const HANDED_ON: u32 = flag::ACCESS | flag::APPEND | flag::TRUNCATE;

impl Work<'_> {
    /// Opens a file, or makes it. For a file that is there the client says in `mode` how, and nothing in `flags`.
    pub(super) fn open(&self, name: Name, flags: u32, mode: u32) -> Result<Answer> {
        let creates = flags & flag::CREATE != 0;
        let flags = if creates {
            flags
        } else {
            flags | mode & MISPLACED
        };
        if flags & flag::ACCESS == flag::ACCESS {
            return Err(Errno::INVAL.into());
        }
        let path = self.path(name)?;
        let file = if creates {
            self.create(path, flags, mode)?
        } else {
            let found = self.tree().find(&path, Last::Follow)?;
            self.open_found(path, &found, flags)?
        };
        // One too many is closed again.
        let number = self.client.handles().insert(file, self.settings.handles)?;
        Ok(Answer::Result(number))
    }

    fn create(&self, path: Path, flags: u32, mode: u32) -> Result<OpenFile> {
        if path.means_directory() {
            return Err(Errno::ISDIR.into());
        }
        let exclusive = flags & flag::EXCLUSIVE != 0;
        for _ in 0..ATTEMPTS {
            let (parent, name) = self.tree().parent(&path, Errno::ISDIR)?;
            if let Some(found) = self.tree().child(&parent, name)? {
                if exclusive {
                    return Err(Errno::EXIST.into());
                }
                let found = if found.kind() == FileType::Symlink {
                    self.tree().find(&path, Last::Follow)?
                } else {
                    found
                };
                if found.is_directory() {
                    return Err(Errno::ISDIR.into());
                }
                return self.open_found(path, &found, flags);
            }
            match self.make(&path, &parent, name, flags, mode) {
                // Somebody was faster. It is what is to be opened.
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
        let remembered = self.client.memory.remember(path.clone())?;
        let args = CreateIn {
            flags: flags & HANDED_ON | flag::CREATE | flag::EXCLUSIVE,
            mode: 0o100_000 | mode & 0o7777,
            umask: 0,
            open_flags: 0,
        };
        let (entry, open) = self.session.create(parent.id(), name, args)?;
        let found = self.tree().found(&entry);
        let count = &self.client.open;
        let birth = self.link.births.ask(&self.session, found.id());
        let opened = Opened::file(self.link, found.node, &open, count);
        Ok(OpenFile::new(
            remembered,
            &found.attr,
            birth.wait(),
            flags,
            opened,
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
            // The client's kernel opens these itself.
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
        self.settings.identity.check(&found.attr, access)?;
        let path = self.client.memory.remember(path)?;
        let count = &self.client.open;
        let birth = self.link.births.ask(&self.session, found.id());
        let opened = Opened::open(self.link, found, flags & HANDED_ON, count)?;
        Ok(OpenFile::new(
            path,
            &found.attr,
            birth.wait(),
            flags,
            opened,
            count,
        ))
    }

    pub(super) fn close(&self, handle: i32) -> Result<Answer> {
        // Not with the client's handles locked: the daemon has a say.
        let file = self.client.handles().remove(handle)?;
        handle::close(file, self.link)?;
        Ok(Answer::DONE)
    }

    pub(super) fn dup2(&self, old: i32, new: i32) -> Result<Answer> {
        let before = self.client.handles().duplicate(old, new)?;
        drop(before);
        Ok(Answer::Result(new))
    }

    pub(super) fn sync(&self, handle: i32, data_only: bool) -> Result<Answer> {
        let file = self.client.handles().get(handle)?;
        let opened = file.opened(self.link)?;
        let sync = |fh: u64| FsyncIn {
            fh,
            fsync_flags: if data_only { DATA_ONLY } else { 0 },
            ..FsyncIn::default()
        };
        let synced = match (&opened.content, file.kind()) {
            (Content::File { fh, .. }, _) => self.session.fsync(opened.id(), sync(fh.get())),
            (_, FileType::Directory) => {
                let open = self.session.opendir(opened.id(), OpenIn::default())?;
                let synced = self.session.fsyncdir(opened.id(), sync(open.fh));
                let release = gangplank_fuse::ReleaseIn {
                    fh: open.fh,
                    ..gangplank_fuse::ReleaseIn::default()
                };
                self.session.releasedir(opened.id(), release)?;
                synced
            }
            _ => return Err(Errno::INVAL.into()),
        };
        match synced {
            // A daemon that writes nothing behind.
            Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(Answer::DONE),
            synced => {
                synced?;
                Ok(Answer::DONE)
            }
        }
    }
}
