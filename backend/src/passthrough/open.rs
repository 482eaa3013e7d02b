//! Opening, creating and closing files and directories.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gangplank_fuse::{
    CreateIn, EntryOut, FopenFlags, Handle, InitFlags, NodeId, OpenIn, OpenInFlags, OpenOut,
    ReleaseFlags, ReleaseIn,
};

use super::budget::{Descriptor, Permit};
use super::credentials::without_set_id;
use super::directory::Listing;
use super::fs::{Node, PassthroughFs};
use super::inodes::{Kind, OpenChange, stale};
use super::open_files::OpenFile;
use super::open_flags::OpenRequest;
use super::options::{CachePolicy, Locks};
use super::places::Place;
use crate::session::{Creator, Name};
use crate::sys::file;
use crate::sys::file_content;
use crate::sys::file_lock::{self, LockKind};

impl PassthroughFs {
    /// Opens a regular file.
    pub(super) fn do_open(&self, id: NodeId, args: &OpenIn) -> io::Result<OpenOut> {
        let request = self.request(args.flags)?;
        let node = self.node(id)?;
        if node.kind != Kind::Regular {
            return Err(not_openable(node.kind, request.write));
        }
        if !request.write {
            self.refuse_needless_opening()?;
        }
        let kill =
            OpenInFlags::from_bits_retain(args.open_flags).contains(OpenInFlags::KILL_SUIDGID);
        self.open_node(&node, request, kill && request.truncate)
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// ESTALE where the name is taken, unless the guest wants to know just that. The guest believed the name to be free, and
    /// so has checked no permission to open what is there. It then looks again, finds it, and opens it with all checks.
    pub(super) fn do_create(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.check_writable()?;
        let request = self.request(args.flags)?;
        let parent = self.directory(parent)?;
        let name = name.as_c_str();
        let permits = (self.permit_inode()?, self.permit_open()?);
        let flags = creation_flags(request) | libc::O_CREAT | libc::O_EXCL;
        // Making room is not for the caller's credentials, so it is outside.
        let made = self.share.open(|| {
            self.impersonation().create(creator, args.mode, |mode| {
                file::open_at(parent.as_fd(), name, flags, mode)
            })
        });
        match made {
            Ok(made) => self.made(&parent, made, permits, request),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && !request.exclusive => {
                Err(stale())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a file without a name and opens it.
    pub(super) fn do_tmpfile(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.check_writable()?;
        let request = self.request(args.flags)?;
        let parent = self.directory(parent)?;
        let permits = (self.permit_inode()?, self.permit_open()?);
        let mut flags = creation_flags(request) | libc::O_TMPFILE;
        if request.exclusive {
            // Says that the file will never get a name.
            flags |= libc::O_EXCL;
        }
        let made = self.share.open(|| {
            self.impersonation().create(creator, args.mode, |mode| {
                file::open_at(parent.as_fd(), c".", flags, mode)
            })
        })?;
        self.made(&parent, made, permits, request)
    }

    /// Opens a directory.
    pub(super) fn do_opendir(&self, id: NodeId, args: &OpenIn) -> io::Result<OpenOut> {
        self.numbering.learn(args.flags);
        let node = self.directory(id)?;
        self.refuse_needless_opening()?;
        let file = self.directory_of(&node)?;
        let mut open_flags = FopenFlags::empty();
        if matches!(
            self.share.options.cache,
            CachePolicy::Metadata | CachePolicy::Always
        ) {
            open_flags |= FopenFlags::CACHE_DIR | FopenFlags::KEEP_CACHE;
        }
        self.opened(file, open_flags)
    }

    /// Closes a file or directory.
    pub(super) fn do_release(&self, id: NodeId, args: &ReleaseIn) -> io::Result<()> {
        let file = self.files.remove(Handle::new(args.fh), id)?;
        let close = || self.inodes.count_open(id, OpenChange::Closed);
        if self.share.options.locks != Locks::Host {
            close();
            self.keep_closed(&file);
            return Ok(());
        }
        self.range_locks.release_with_last(id, close);
        let flags = ReleaseFlags::from_bits_retain(args.release_flags);
        if flags.contains(ReleaseFlags::FLOCK_UNLOCK) {
            // A thread still at work on the file may keep the descriptor, and with it the lock, for a while.
            file_lock::set_whole_lock(file.as_fd(), LockKind::Unlock, false)?;
        }
        Ok(())
    }

    /// A guest process closes a descriptor.
    ///
    /// ENOSYS would spare the guest all further ones, but for every file of the mount, and so for those of a network file
    /// system that is come upon later and whose close reports what could not be written. Files of which nothing depends on it
    /// are opened with [`FopenFlags::NOFLUSH`] instead.
    pub(super) fn do_flush(&self, id: NodeId, handle: Handle, lock_owner: u64) -> io::Result<()> {
        // There is nothing that could be reported.
        self.refuse_needless_opening()?;
        let file = self.files.get(handle, id)?;
        if self.share.options.locks == Locks::Host {
            self.range_locks.release(id, lock_owner);
        }
        if file.close_reports {
            return file::close_duplicate(file.as_fd());
        }
        Ok(())
    }

    /// Brings a file or directory to stable storage.
    ///
    /// The kernel reports a writeback error once to each open file, and each open file of the guest
    /// is one of the host's.
    pub(super) fn do_fsync(&self, id: NodeId, handle: Handle, data_only: bool) -> io::Result<()> {
        let file = self.readable(handle.get(), id)?;
        file_content::sync(file.as_fd(), data_only).inspect_err(|_| {
            // Files that were closed and kept have this error yet to report. Who opens one of them
            // now, after it was reported, would not get it on the host.
            self.inodes.closed().close_all();
        })
    }

    /// Reads a guest's open flags as far as the share allows what they ask for.
    fn request(&self, raw: u32) -> io::Result<OpenRequest> {
        let mut request = self.numbering.decode(raw)?;
        if request.changes() {
            self.check_writable()?;
        }
        if !self.share.options.allow_direct_io {
            request.direct = false;
        }
        if self.session.has(InitFlags::WRITEBACK_CACHE) && request.write {
            // The guest reads what it writes a part of.
            request.read = true;
        }
        Ok(request)
    }

    fn open_node(&self, node: &Node, request: OpenRequest, kill: bool) -> io::Result<OpenOut> {
        let descriptor = self.descriptor_of(node, request, kill)?;
        self.opened_again(node, descriptor, request)
    }

    /// A directory, open to be listed from its beginning.
    pub(super) fn directory_of(&self, node: &Node) -> io::Result<OpenFile> {
        let permit = self.permit_open()?;
        let fd = self.reopen(node, libc::O_RDONLY | libc::O_DIRECTORY)?;
        Ok(OpenFile::directory(
            node.id,
            Descriptor::new(fd, permit),
            Listing::new(node.identity.place),
        ))
    }

    /// A descriptor of a file, which may be one that was closed lately.
    pub(super) fn descriptor_of(
        &self,
        node: &Node,
        request: OpenRequest,
        kill: bool,
    ) -> io::Result<Arc<Descriptor>> {
        if request.only_reads()
            && self.keeps_closed()
            && let Some(kept) = self.inodes.closed().take(node.id)
        {
            return Ok(kept);
        }
        if request.write {
            self.prepare_syncfs();
        }
        let permit = self.permit_open()?;
        let flags = request.host_flags();
        let fd = if kill {
            without_set_id(|| self.reopen(node, flags))?
        } else {
            self.reopen(node, flags)?
        };
        Ok(Arc::new(Descriptor::new(fd, permit)))
    }

    /// Keeps a file that nobody reads any more for who opens it next, if that may be.
    pub(super) fn keep_closed(&self, file: &OpenFile) {
        if file.may_be_kept && self.keeps_closed() {
            let descriptor = Arc::clone(file.descriptor());
            self.inodes.closed().keep(file.node, descriptor);
        }
    }

    /// Replies to a file opened that was there before, of which the guest may have cached something.
    fn opened_again(
        &self,
        node: &Node,
        descriptor: Arc<Descriptor>,
        request: OpenRequest,
    ) -> io::Result<OpenOut> {
        let place = self.share.place(node.identity.place)?;
        let keeps = self.share.options.cache == CachePolicy::Auto
            && self.content_is_as_before(node, &place, descriptor.as_fd());
        let mut opened = self.opened_file(node, &place, descriptor, request)?;
        if keeps {
            opened.open_flags |= FopenFlags::KEEP_CACHE.bits();
        }
        Ok(opened)
    }

    /// Whether files that were closed may be used again. A host's lock belongs to what was opened, and so do the permissions
    /// with which it was: who wants to see every change at once sees that of a permission, too.
    fn keeps_closed(&self) -> bool {
        let options = &self.share.options;
        options.locks != Locks::Host && options.cache != CachePolicy::Never
    }

    /// Opens what a node stands for; without moving its access time where nothing may change.
    fn reopen(&self, node: &Node, flags: i32) -> io::Result<OwnedFd> {
        let proc = self.share.proc_self_fd();
        let open = |flags| self.share.open(|| file::reopen(proc, node.as_fd(), flags));
        let quiet = if self.share.options.readonly {
            flags | libc::O_NOATIME
        } else {
            flags
        };
        let result = match open(quiet) {
            // Only a file's owner may have that.
            Err(error)
                if quiet & libc::O_NOATIME != 0 && error.raw_os_error() == Some(libc::EPERM) =>
            {
                open(quiet & !libc::O_NOATIME)
            }
            // A file system that cannot do it says so when a file is opened.
            Err(error)
                if quiet & libc::O_DIRECT != 0 && error.raw_os_error() == Some(libc::EINVAL) =>
            {
                open(quiet & !libc::O_DIRECT)
            }
            result => result,
        };
        match result {
            // The inode is held, so that it is not a name that is missing.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(io::Error::from_raw_os_error(libc::ESTALE))
            }
            result => result,
        }
    }

    /// Replies to a file just made: makes its inode and its handle known.
    fn made(
        &self,
        parent: &Node,
        made: OwnedFd,
        permits: (Permit, Permit),
        mut request: OpenRequest,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.prepare_syncfs();
        let stat = file::stat(made.as_fd())?;
        request.direct = request.direct && file::set_direct(made.as_fd(), true).is_ok();
        // The inode gets a descriptor of its own. With the opened one, the file would count as open for writing on
        // the host for as long as the guest remembers it.
        let proc = self.share.proc_self_fd();
        let path = self
            .share
            .open(|| file::reopen(proc, made.as_fd(), libc::O_PATH))?;
        let entry = self.insert(parent.identity.place, path, permits.0, &stat)?;
        let id = NodeId::new(entry.nodeid);
        let opened = Arc::new(Descriptor::new(made, permits.1));
        let open = self.node(id).and_then(|node| {
            let place = self.share.place(node.identity.place)?;
            self.opened_file(&node, &place, opened, request)
        });
        match open {
            Ok(open) => Ok((entry, open)),
            Err(error) => {
                self.inodes.forget(id, 1);
                Err(error)
            }
        }
    }

    fn opened_file(
        &self,
        node: &Node,
        place: &Place,
        descriptor: Arc<Descriptor>,
        request: OpenRequest,
    ) -> io::Result<OpenOut> {
        let file = OpenFile::file(node.id, descriptor, request, place);
        let options = &self.share.options;
        let mut flags = match options.cache {
            CachePolicy::Never | CachePolicy::Metadata => {
                FopenFlags::DIRECT_IO | FopenFlags::PARALLEL_DIRECT_WRITES
            }
            CachePolicy::Auto => FopenFlags::empty(),
            CachePolicy::Always => FopenFlags::KEEP_CACHE,
        };
        // With NOFLUSH, the guest's kernel does not write back at close what a program has changed
        // through a mapping, and so does not report there what the host could not take. Such a
        // mapping needs a file that is open for reading and writing, and a page cache.
        let may_be_dirty = request.read
            && request.write
            && (!options.cache.bypasses_page_cache() || options.allow_mmap);
        if options.locks == Locks::Guest && !file.close_reports && !may_be_dirty {
            flags |= FopenFlags::NOFLUSH;
        }
        self.opened(file, flags)
    }

    fn opened(&self, file: OpenFile, flags: FopenFlags) -> io::Result<OpenOut> {
        let node = file.node;
        let handle = self.files.insert(file)?;
        self.inodes.count_open(node, OpenChange::Opened);
        Ok(OpenOut {
            fh: handle.get(),
            open_flags: flags.bits(),
            ..OpenOut::default()
        })
    }
}

/// The flags for a new file. `O_DIRECT` comes when it is there: with it, a file system that has none would make the file
/// and then refuse to open it.
fn creation_flags(request: OpenRequest) -> i32 {
    request.host_flags() & !(libc::O_TRUNC | libc::O_DIRECT)
}

/// What a guest gets for opening what is not a file: devices, FIFOs and sockets are its own kernel's business.
pub(super) fn not_openable(kind: Kind, write: bool) -> io::Error {
    io::Error::from_raw_os_error(match kind {
        Kind::Directory if write => libc::EISDIR,
        Kind::Symlink => libc::ELOOP,
        Kind::Directory | Kind::Regular | Kind::Special => libc::ENXIO,
    })
}
