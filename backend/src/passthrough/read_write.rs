//! READ and WRITE: file data moves directly between the host's file and guest memory.
//!
//! A system call may transfer a part of the data and report the error only at the next call. The
//! guest's kernel treats a short count differently for each request (`fs/fuse/file.c`):
//!
//! | request | effect of a short count | reply |
//! | --- | --- | --- |
//! | READ into the page cache | marks the end of the file (`fuse_short_read`) | all up to the end of the file, or the error |
//! | READ for a program (`FUSE_READ_LOCKOWNER`) | the program reads the rest | the bytes read |
//! | WRITE from the page cache (`FUSE_WRITE_CACHE`) | ignored (`fuse_writepage_end`) | all, or the error |
//! | WRITE with `O_DIRECT` on a file with a page cache | becomes EIO (`fuse_get_res_by_io`) | all, or the error |
//! | any other WRITE | the program writes the rest | the bytes written |
//!
//! The kernel copies between a file and guest memory while it holds the inode's lock (`i_rwsem`): on
//! most local file systems for a WRITE (`generic_file_write_iter`), on XFS for a READ as well. Guest
//! memory may be a file on a FUSE server that never provides a page. So data from and to memory that
//! is neither the host's memory nor on a local disk goes through a buffer of the worker
//! (`crate::sys::buffers`): the worker's own thread waits for the page, without a lock. An access
//! to memory on a local disk waits as long as that disk takes.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use gangplank_fuse::{Handle, InitFlags, NodeId, ReadFlags, ReadIn, WriteFlags, WriteIn};
use gangplank_service::rate_limited;

use super::credentials::without_set_id;
use super::file_type::FileType;
use super::fs::PassthroughFs;
use super::open_file::OpenFile;
use crate::session::IoMode;
use crate::session::file_system::FileData;
use crate::sys::buffers::{Reader, Writer};
use crate::sys::file;

/// How the guest's kernel treats a short count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShortCount {
    /// It returns the count to a program. The program's next call reports the error.
    Allowed,
    /// It misinterprets the count, so an error must be reported as an error.
    Misread,
}

impl ShortCount {
    /// The result of a request that transferred `done` bytes before `error`.
    fn answer(self, done: usize, error: io::Error) -> io::Result<usize> {
        match self {
            Self::Allowed if done > 0 => Ok(done),
            _ => Err(error),
        }
    }
}

impl FileData for PassthroughFs {
    /// Reads at most `args.size` bytes. Returns EAGAIN if the read would wait for the disk and may
    /// not.
    ///
    /// A full read takes one system call; so does a read that ends where the guest knows the file
    /// to end.
    fn read(
        &self,
        id: NodeId,
        args: &ReadIn,
        data: &mut Writer<'_>,
        mode: IoMode,
    ) -> io::Result<usize> {
        let file = self.file_to_read(args.fh, id)?;
        let result = self.read_file(&file, args, data, mode);
        self.end_read(args.fh, &file);
        result
    }

    /// Writes at most `args.size` bytes.
    fn write(&self, id: NodeId, args: &WriteIn, data: &mut Reader<'_>) -> io::Result<usize> {
        self.check_writable()?;
        let file = self.state.files.get(Handle::new(args.fh), id)?;
        self.drop_file_capabilities(FileType::Regular, &*file)?;
        let flags = WriteFlags::from_bits_retain(args.write_flags);
        let is_cached = flags.contains(WriteFlags::CACHE);
        // The guest's page cache writes at fixed offsets; only a program's own write appends. With
        // writeback caching only the guest knows the end of the file.
        let append = args.flags.cast_signed() & libc::O_APPEND != 0
            && !is_cached
            && !self.state.negotiated.has(InitFlags::WRITEBACK_CACHE);
        let rwf_flags = if append { libc::RWF_APPEND } else { 0 };
        let short_count = match is_cached || self.writes_asynchronously(args) {
            true => ShortCount::Misread,
            false => ShortCount::Allowed,
        };
        let mut write = || write_file(&file, args, rwf_flags, short_count, data);
        let written = if flags.contains(WriteFlags::KILL_SUIDGID) {
            without_set_id(write)
        } else {
            write()
        };
        // A failed write may have changed a part of the file without the guest knowing. A read that
        // finds this data ends beyond the known size, so it is continued.
        if let Ok(written) = written {
            self.state.inodes.with_known_size(id, |known| match append {
                true => known.forget(),
                false => known.raise(args.offset.saturating_add(written as u64)),
            });
        }
        written
    }

    fn append_again(&self, id: NodeId, args: &WriteIn, data: &mut Reader<'_>) -> io::Result<usize> {
        self.check_writable()?;
        match self.state.negotiated.has(InitFlags::WRITEBACK_CACHE) {
            true => self.write(id, args, data),
            false => self.continue_append(id, args, data),
        }
    }
}

impl PassthroughFs {
    /// [`PassthroughFs::read`] on an open file.
    fn read_file(
        &self,
        file: &OpenFile,
        args: &ReadIn,
        data: &mut Writer<'_>,
        mode: IoMode,
    ) -> io::Result<usize> {
        let is_program =
            ReadFlags::from_bits_retain(args.read_flags).contains(ReadFlags::LOCKOWNER);
        let short_count = match is_program {
            true => ShortCount::Allowed,
            false => ShortCount::Misread,
        };
        let mut rwf_flags = 0;
        if mode == IoMode::NonBlocking && file.supports_nowait.load(Ordering::Relaxed) {
            // Direct I/O always waits.
            if file.is_direct() {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            rwf_flags = libc::RWF_NOWAIT;
        }
        let length = to_len(args.size).min(data.remaining());
        let mut done = 0;
        while done < length {
            let offset = offset_after(args.offset, done)?;
            let requested = data.max_per_call(length - done);
            let result = transfer(file, || {
                data.read_from(file.as_fd(), length - done, offset, rwf_flags)
            });
            match result {
                // Linux 5.9 and 5.10 return 0 also for data that is not in the page cache
                // (readv(2), BUGS).
                Ok(0) if rwf_flags != 0 => rwf_flags = 0,
                Ok(0) => break,
                Ok(read) => {
                    done += read;
                    // A short read ends at the end of the file, before an error, or, with
                    // RWF_NOWAIT, before data that is not in the page cache.
                    if read < requested
                        && (self.guest_eof_is(file.node, offset_after(args.offset, done)?)
                            || short_count == ShortCount::Allowed
                                && file.short_read_is_final
                                && rwf_flags == 0)
                    {
                        break;
                    }
                }
                Err(error) if rwf_flags != 0 && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    file.supports_nowait.store(false, Ordering::Relaxed);
                    rwf_flags = 0;
                }
                // The blocking retry reads everything again.
                Err(error) if rwf_flags != 0 && error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(error);
                }
                Err(error) => return short_count.answer(done, error),
            }
        }
        Ok(done)
    }

    /// Whether `offset` is the end of the file that the guest knows.
    ///
    /// A guest that collects writes knows of more than it has written, so nothing is known of it.
    fn guest_eof_is(&self, id: NodeId, offset: u64) -> bool {
        if self.state.negotiated.has(InitFlags::WRITEBACK_CACHE) {
            return false;
        }
        let known = self.state.inodes.with_known_size(id, |known| known.get());
        known.flatten() == Some(offset)
    }

    /// Whether the guest's kernel sends this write as a part of an asynchronous transfer: an
    /// `O_DIRECT` write on a file with a page cache. Without a page cache only writes of libaio and
    /// io_uring are sent so, and they look like all others: their short counts become EIO.
    fn writes_asynchronously(&self, args: &WriteIn) -> bool {
        self.state.negotiated.has(InitFlags::ASYNC_DIO)
            && self.state.guest_arch.is_direct(args.flags)
            && !self.share.options.cache.bypasses_page_cache()
    }
}

fn write_file(
    file: &OpenFile,
    args: &WriteIn,
    rwf_flags: i32,
    short_count: ShortCount,
    data: &mut Reader<'_>,
) -> io::Result<usize> {
    let length = to_len(args.size).min(data.remaining());
    let mut done = 0;
    while done < length {
        let offset = offset_after(args.offset, done)?;
        let result = transfer(file, || {
            data.write_to(file.as_fd(), length - done, offset, rwf_flags)
        });
        match result {
            // A file system should not return 0; the rest is not written.
            Ok(0) => return short_count.answer(done, io::Error::from_raw_os_error(libc::EIO)),
            Ok(written) => done += written,
            Err(error) => return short_count.answer(done, error),
        }
    }
    Ok(done)
}

/// Repeats an interrupted call. Repeats it without `O_DIRECT` if the kernel cannot transfer
/// directly to or from this memory, which may be misaligned or of a type that cannot be pinned.
pub(super) fn transfer(
    file: &OpenFile,
    mut call: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        let error = match file::retry(&mut call) {
            Ok(count) => return Ok(count),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::EFAULT) if file.is_direct() => {
                rate_limited!(
                    warn,
                    "direct I/O into guest memory failed ({error}): the file now uses the host's \
                     page cache"
                );
                file::set_direct(file.as_fd(), false)?;
                file.direct.store(false, Ordering::Relaxed);
            }
            _ => return Err(error),
        }
    }
}

/// The offset after `done` bytes.
fn offset_after(offset: u64, done: usize) -> io::Result<u64> {
    offset
        .checked_add(done as u64)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

pub(super) fn to_len(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
