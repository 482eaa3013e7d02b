//! Opening descriptors of inodes, or reusing cached ones.
//!
//! Only regular files and directories are opened. Each descriptor in the inode table was checked by
//! `statx(2)` to be of the type that its node has, so the type of a node is the type of the file
//! that [`PassthroughFs::reopen_file`] opens.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::budget::Descriptor;
use super::credentials::without_set_id;
use super::dir_stream::DirStream;
use super::errno::not_openable;
use super::fs::{Node, PassthroughFs};
use super::open_file::OpenFile;
use super::open_flags::OpenFlags;
use super::options::{CachePolicy, Locks};
use crate::sys::file;

impl PassthroughFs {
    /// Opens a directory for listing from the start.
    pub(super) fn open_directory(&self, node: &Node) -> io::Result<OpenFile> {
        let permit = self.acquire_file_permit()?;
        let fd = self.open_inode(node, libc::O_RDONLY | libc::O_DIRECTORY)?;
        Ok(OpenFile::directory(
            node.id,
            Descriptor::new(fd, permit),
            DirStream::new(node.identity.mount),
        ))
    }

    /// Opens a descriptor of a file, or takes one from the cache.
    pub(super) fn open_descriptor(
        &self,
        node: &Node,
        request: OpenFlags,
        kill: bool,
    ) -> io::Result<Arc<Descriptor>> {
        if request.is_read_only()
            && self.uses_fd_cache()
            && let Some(cached) = self.state.inodes.fd_cache().take(node.id)
        {
            return Ok(cached);
        }
        if request.write {
            self.prepare_syncfs(node);
        }
        let permit = self.acquire_file_permit()?;
        let flags = request.host_flags();
        if request.truncate {
            self.drop_file_capabilities(node.file_type, node)?;
        }
        let fd = if kill {
            without_set_id(|| self.open_inode(node, flags))?
        } else {
            self.open_inode(node, flags)?
        };
        Ok(Arc::new(Descriptor::new(fd, permit)))
    }

    /// Caches the descriptor of a closed file, if the options and the file allow it.
    pub(super) fn cache_fd(&self, file: &OpenFile) {
        if file.cacheable && self.uses_fd_cache() {
            let descriptor = Arc::clone(file.descriptor());
            self.state.inodes.fd_cache().insert(file.node, descriptor);
        }
    }

    /// Whether descriptors of closed files may be reused. A host lock belongs to the open file
    /// description. With `--cache=never` a change of permissions must take effect at the next open.
    fn uses_fd_cache(&self) -> bool {
        let options = &self.share.options;
        options.locks != Locks::Host && options.cache != CachePolicy::Never
    }

    /// Opens the file behind a node's descriptor, which must be a regular file or a directory.
    ///
    /// With `O_NONBLOCK`, whatever the guest's flags say: an open never waits for another process,
    /// except for one that holds a lease on the file.
    pub(super) fn reopen_file(&self, node: &Node, flags: i32) -> io::Result<OwnedFd> {
        if !node.file_type.can_be_opened() {
            return Err(not_openable(node.file_type, false));
        }
        let proc = self.share.proc_self_fd();
        let open =
            |flags| self.open_or_evict(|| file::reopen_through_proc(proc, node.as_fd(), flags));
        match open(flags | libc::O_NONBLOCK) {
            // The kernel has told the holder of the lease to give it up, and waits for that at most
            // /proc/sys/fs/lease-break-time (fcntl(2), F_SETLEASE).
            Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => {
                open(flags & !libc::O_NONBLOCK)
            }
            result => result,
        }
    }

    /// Opens an inode; on a read-only share without updating its access time.
    pub(super) fn open_inode(&self, node: &Node, flags: i32) -> io::Result<OwnedFd> {
        let open = |flags| self.reopen_file(node, flags);
        let noatime_flags = if self.share.options.readonly {
            flags | libc::O_NOATIME
        } else {
            flags
        };
        let result = match open(noatime_flags) {
            // Only the file's owner may use O_NOATIME.
            Err(error)
                if noatime_flags & libc::O_NOATIME != 0
                    && error.raw_os_error() == Some(libc::EPERM) =>
            {
                open(noatime_flags & !libc::O_NOATIME)
            }
            // A file system without direct I/O answers EINVAL.
            Err(error)
                if noatime_flags & libc::O_DIRECT != 0
                    && error.raw_os_error() == Some(libc::EINVAL) =>
            {
                open(noatime_flags & !libc::O_DIRECT)
            }
            result => result,
        };
        match result {
            // The inode is pinned, so ENOENT does not mean a missing name.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(io::Error::from_raw_os_error(libc::ESTALE))
            }
            result => result,
        }
    }
}
