//! FALLOCATE, LSEEK and COPY_FILE_RANGE.

use std::io;
use std::os::fd::AsFd;

use gangplank_fuse::{CopyFileRangeIn, FallocateIn, Handle, InitFlags, LseekIn, NodeId};

use super::credentials::without_set_id;
use super::file_type::FileType;
use super::fs::PassthroughFs;
use crate::session::Caller;
use crate::session::file_system::{FileRanges, GuestUid};
use crate::sys::file;
use crate::sys::file_content::{self, SeekTarget};

/// Limit of bytes copied per request, so that a guest cannot occupy a thread for long.
const COPY_LIMIT: u64 = 1 << 30;

impl FileRanges for PassthroughFs {
    /// Allocates, punches, zeroes, collapses or inserts a range.
    fn fallocate(&self, caller: Caller, id: NodeId, args: &FallocateIn) -> io::Result<()> {
        const SUPPORTED: i32 = libc::FALLOC_FL_KEEP_SIZE
            | libc::FALLOC_FL_PUNCH_HOLE
            | libc::FALLOC_FL_COLLAPSE_RANGE
            | libc::FALLOC_FL_ZERO_RANGE
            | libc::FALLOC_FL_INSERT_RANGE
            | libc::FALLOC_FL_UNSHARE_RANGE;
        self.check_writable()?;
        let file = self.state.files.get(Handle::new(args.fh), id)?;
        if args.mode & !SUPPORTED.cast_unsigned() != 0 {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        check_off_t(args.offset)?;
        check_off_t(args.length)?;
        self.drop_file_capabilities(FileType::Regular, &*file)?;
        self.with_caller_fsetid(caller, || {
            file_content::allocate(file.as_fd(), args.mode, args.offset, args.length)
        })?;
        self.state.inodes.with_known_size(id, |known| {
            match args.mode & libc::FALLOC_FL_INSERT_RANGE.cast_unsigned() {
                0 => known.raise(args.offset.saturating_add(args.length)),
                // The whole file grows by the length of the hole.
                _ => known.forget(),
            }
        });
        Ok(())
    }

    /// Finds the next data or hole.
    fn lseek(&self, id: NodeId, args: &LseekIn) -> io::Result<u64> {
        let file = self.file_to_read(args.fh, id)?;
        let target = match args.whence.cast_signed() {
            libc::SEEK_DATA => SeekTarget::Data,
            libc::SEEK_HOLE => SeekTarget::Hole,
            // The guest's kernel handles SEEK_SET, SEEK_CUR and SEEK_END itself.
            _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        if file.dir_stream.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // No file reaches an offset beyond the maximum of `off_t`.
        check_off_t(args.offset).map_err(|_| io::Error::from_raw_os_error(libc::ENXIO))?;
        file_content::seek(file.as_fd(), args.offset, target)
    }

    /// Copies between two open files on the host.
    fn copy_file_range(
        &self,
        caller: Caller,
        id: NodeId,
        args: &CopyFileRangeIn,
    ) -> io::Result<u64> {
        self.check_writable()?;
        if args.flags != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let source = self.state.files.get(Handle::new(args.fh_in), id)?;
        let target_id = NodeId::new(args.nodeid_out);
        let target = self.state.files.get(Handle::new(args.fh_out), target_id)?;
        check_off_t(args.off_in)?;
        check_off_t(args.off_out)?;
        let length = usize::try_from(args.len.min(COPY_LIMIT)).unwrap_or(usize::MAX);
        self.drop_file_capabilities(FileType::Regular, &*target)?;
        let copied = self.with_caller_fsetid(caller, || {
            file_content::copy_range(
                source.as_fd(),
                args.off_in,
                target.as_fd(),
                args.off_out,
                length,
            )
        })?;
        self.state.inodes.with_known_size(target_id, |known| {
            known.raise(args.off_out.saturating_add(copied as u64));
        });
        if copied == 0 && length > 0 && args.off_in < file::stat(source.as_fd())?.stx_size {
            // Some file systems return 0 when they cannot copy. After this error the guest's kernel
            // reads and writes the data itself.
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(copied as u64)
    }
}

impl PassthroughFs {
    /// Calls `change` so that the host clears set-id bits as for the caller.
    ///
    /// Unlike WRITE, FALLOCATE and COPY_FILE_RANGE have no flag for that; the guest's kernel leaves
    /// it to the file system. The request does not carry the caller's capabilities, so only root
    /// counts as having `CAP_FSETID`, and with id-mapped mounts everyone, because the request does
    /// not tell who the caller is.
    fn with_caller_fsetid<T>(
        &self,
        caller: Caller,
        change: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let may_keep = [GuestUid::ROOT, GuestUid::UNKNOWN].contains(&caller.uid);
        if !may_keep && self.state.negotiated.has(InitFlags::HANDLE_KILLPRIV_V2) {
            return without_set_id(change);
        }
        change()
    }
}

/// Rejects an offset or a length that does not fit `off_t`.
fn check_off_t(number: u64) -> io::Result<()> {
    match i64::try_from(number) {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}
