//! OPEN, CREATE, TMPFILE, RELEASE, FLUSH and FSYNC.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gangplank_fuse::{
    CreateIn, EntryOut, FopenFlags, Handle, InitFlags, NodeId, OpenIn, OpenInFlags, OpenOut,
    ReleaseFlags, ReleaseIn,
};

use super::budget::{Descriptor, Permit};
use super::errno::{not_openable, stale};
use super::file_type::FileType;
use super::fs::{Node, PassthroughFs};
use super::inode_table::OpenChange;
use super::mounts::Mount;
use super::open_file::OpenFile;
use super::open_flags::OpenFlags;
use super::options::{CachePolicy, Locks};
use crate::session::file_system::Files;
use crate::session::{Creator, Name};
use crate::sys::file_lock::{self, LockKind};
use crate::sys::{file, file_content};

impl Files for PassthroughFs {
    /// Opens a regular file.
    fn open(&self, id: NodeId, args: &OpenIn) -> io::Result<OpenOut> {
        let request = self.decode_flags(args.flags)?;
        let node = self.node(id)?;
        if node.file_type != FileType::Regular {
            return Err(not_openable(node.file_type, request.write));
        }
        if !request.write {
            self.check_open_needed()?;
        }
        let kill =
            OpenInFlags::from_bits_retain(args.open_flags).contains(OpenInFlags::KILL_SUIDGID);
        self.open_node(&node, request, kill && request.truncate)
    }

    /// Creates a file and opens it.
    ///
    /// # Errors
    /// ESTALE if the name exists, or EEXIST with `O_EXCL`. The guest assumed that the name was free
    /// and did not check permissions on an existing file. After ESTALE it looks up the name again
    /// and opens the file with all checks.
    fn create(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.check_writable()?;
        let request = self.decode_flags(args.flags)?;
        let parent = self.directory(parent)?;
        let mode = libc::S_IFREG | args.mode & 0o7777;
        let additions = self.additions(creator, &parent, mode, None)?;
        let name = name.as_c_str();
        let permits = (
            self.acquire_new_inode_permit()?,
            self.acquire_file_permit()?,
        );
        let flags = creation_flags(request) | libc::O_CREAT | libc::O_EXCL;
        // Evicting descriptors must not run under the caller's credentials, so it is outside.
        let created = self.open_or_evict(|| {
            self.impersonation()
                .create(creator, self.host_mode(mode), |mode| {
                    file::open_at(parent.as_fd(), name, flags, mode)
                })
        });
        match created {
            Ok(created) => {
                self.complete_made(created.as_fd(), Some((&parent, name)), &additions)?;
                self.finish_create((&parent, Some(name)), created, permits, request)
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && !request.exclusive => {
                Err(stale())
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a file without a name and opens it.
    fn tmpfile(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.check_writable()?;
        let request = self.decode_flags(args.flags)?;
        let parent = self.directory(parent)?;
        let mode = libc::S_IFREG | args.mode & 0o7777;
        let additions = self.additions(creator, &parent, mode, None)?;
        let permits = (
            self.acquire_new_inode_permit()?,
            self.acquire_file_permit()?,
        );
        let mut flags = creation_flags(request) | libc::O_TMPFILE;
        if request.exclusive {
            // With O_EXCL the file can never be linked to a name.
            flags |= libc::O_EXCL;
        }
        let created = self.open_or_evict(|| {
            self.impersonation()
                .create(creator, self.host_mode(mode), |mode| {
                    file::open_at(parent.as_fd(), c".", flags, mode)
                })
        })?;
        self.complete_made(created.as_fd(), None, &additions)?;
        self.finish_create((&parent, None), created, permits, request)
    }

    /// Closes a file or directory.
    fn release(&self, id: NodeId, args: &ReleaseIn) -> io::Result<()> {
        let file = self.state.files.remove(Handle::new(args.fh), id)?;
        let close = || self.state.inodes.count_open(id, OpenChange::Closed);
        if self.share.options.locks != Locks::Host {
            close();
            self.cache_fd(&file);
            return Ok(());
        }
        self.state.posix_locks.release_with_last(id, close);
        let flags = ReleaseFlags::from_bits_retain(args.release_flags);
        if flags.contains(ReleaseFlags::FLOCK_UNLOCK) {
            // Another thread may still use the file and keep its lock alive, so the lock is
            // released explicitly.
            file_lock::set_flock(file.as_fd(), LockKind::Unlock, false)?;
        }
        Ok(())
    }

    /// A guest process closes a descriptor.
    ///
    /// ENOSYS would save all further FLUSH requests, but for the whole mount, so also for a network
    /// file system found later whose close reports write errors. Files that need no FLUSH are
    /// opened with [`FopenFlags::NOFLUSH`] instead.
    fn flush(&self, id: NodeId, handle: Handle, lock_owner: u64) -> io::Result<()> {
        // Without OPEN there are no writes whose errors a close could report.
        self.check_open_needed()?;
        let file = self.state.files.get(handle, id)?;
        if self.share.options.locks == Locks::Host {
            self.state.posix_locks.release(id, lock_owner);
        }
        if file.close_reports_errors {
            return file::close_duplicate(file.as_fd());
        }
        Ok(())
    }

    /// Writes a file or directory to stable storage.
    ///
    /// The kernel reports a writeback error once per open file description. Each open file of the
    /// guest has its own on the host.
    fn fsync(&self, id: NodeId, handle: Handle, data_only: bool) -> io::Result<()> {
        let file = self.file_to_read(handle.get(), id)?;
        file_content::sync(file.as_fd(), data_only).inspect_err(|_| {
            // Cached descriptors still have to report this error. A file opened on the host from
            // now on would not report it any more.
            self.state.inodes.fd_cache().clear();
        })
    }
}

impl PassthroughFs {
    /// Decodes a guest's open flags and removes those that the share does not allow.
    fn decode_flags(&self, raw: u32) -> io::Result<OpenFlags> {
        let mut request = self.state.guest_arch.decode(raw)?;
        if request.changes() {
            self.check_writable()?;
        }
        if !self.share.options.allow_direct_io {
            request.direct = false;
        }
        if !self.share.options.preserve_noatime {
            request.no_atime = false;
        }
        if self.state.negotiated.has(InitFlags::WRITEBACK_CACHE) && request.write {
            // With writeback caching the guest reads pages that it writes partially.
            request.read = true;
        }
        Ok(request)
    }

    fn open_node(&self, node: &Node, request: OpenFlags, kill: bool) -> io::Result<OpenOut> {
        let descriptor = self.open_descriptor(node, request, kill)?;
        self.finish_open(node, descriptor, request)
    }

    /// Completes the open of an existing file, of which the guest may have cached pages.
    fn finish_open(
        &self,
        node: &Node,
        descriptor: Arc<Descriptor>,
        request: OpenFlags,
    ) -> io::Result<OpenOut> {
        let mount = self.share.mount(node.identity.mount)?;
        let keep_cache = self.share.options.cache == CachePolicy::Auto
            && self.cache_is_valid(node, &mount, descriptor.as_fd());
        let mut opened = self.insert_regular_file(node, &mount, descriptor, request)?;
        if keep_cache {
            opened.open_flags |= FopenFlags::KEEP_CACHE.bits();
        }
        Ok(opened)
    }

    /// Completes the creation of a file: inserts its inode and its open file. `place` is its
    /// directory, and its name there, if it has one.
    fn finish_create(
        &self,
        place: (&Node, Option<&CStr>),
        created: OwnedFd,
        permits: (Permit, Permit),
        mut request: OpenFlags,
    ) -> io::Result<(EntryOut, OpenOut)> {
        let (parent, name) = place;
        self.prepare_syncfs(parent);
        let stat = file::stat(created.as_fd())?;
        request.direct = request.direct && file::set_direct(created.as_fd(), true).is_ok();
        // The inode gets its own `O_PATH` descriptor. With the opened one the file would count as
        // open for writing on the host until the guest forgets it.
        let proc = self.share.proc_self_fd();
        let path =
            self.open_or_evict(|| file::reopen_through_proc(proc, created.as_fd(), libc::O_PATH))?;
        let entry = self.insert(parent, name, path, permits.0, &stat)?;
        let id = NodeId::new(entry.nodeid);
        let opened = Arc::new(Descriptor::new(created, permits.1));
        let open = self.node(id).and_then(|node| {
            let mount = self.share.mount(node.identity.mount)?;
            self.insert_regular_file(&node, &mount, opened, request)
        });
        match open {
            Ok(open) => Ok((entry, open)),
            Err(error) => {
                self.state.inodes.forget(id, 1);
                Err(error)
            }
        }
    }

    fn insert_regular_file(
        &self,
        node: &Node,
        mount: &Mount,
        descriptor: Arc<Descriptor>,
        request: OpenFlags,
    ) -> io::Result<OpenOut> {
        let file = OpenFile::file(node.id, descriptor, request, mount);
        let options = &self.share.options;
        let mut flags = match options.cache {
            CachePolicy::Never | CachePolicy::Metadata => {
                FopenFlags::DIRECT_IO | FopenFlags::PARALLEL_DIRECT_WRITES
            }
            CachePolicy::Auto => FopenFlags::empty(),
            CachePolicy::Always => FopenFlags::KEEP_CACHE,
        };
        // With NOFLUSH the guest's kernel does not write back dirty pages of a mapping at close, so
        // it does not report write errors there. A writable mapping needs a file open for reading
        // and writing, and a page cache.
        let may_be_dirty = request.read
            && request.write
            && (!options.cache.bypasses_page_cache() || options.allow_mmap);
        if options.locks == Locks::Guest && !file.close_reports_errors && !may_be_dirty {
            flags |= FopenFlags::NOFLUSH;
        }
        self.insert_open_file(file, flags)
    }

    /// Adds an open file to the table and returns the reply.
    pub(super) fn insert_open_file(
        &self,
        file: OpenFile,
        flags: FopenFlags,
    ) -> io::Result<OpenOut> {
        let node = file.node;
        // Counted first: a count that is too high after a death only keeps locks longer.
        let inodes = &self.state.inodes;
        inodes.count_open(node, OpenChange::Opened);
        let handle = self.state.files.insert(file).inspect_err(|_| {
            inodes.count_open(node, OpenChange::Closed);
        })?;
        Ok(OpenOut {
            fh: handle.get(),
            open_flags: flags.bits(),
            ..OpenOut::default()
        })
    }
}

/// The host flags for a new file. `O_DIRECT` is set later, because a file system without direct I/O
/// would create the file and then fail to open it.
fn creation_flags(request: OpenFlags) -> i32 {
    request.host_flags() & !(libc::O_TRUNC | libc::O_DIRECT)
}
