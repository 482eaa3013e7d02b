//! READ and WRITE: file data moves straight between the host's file and guest memory.
//!
//! A system call may move a part of what was asked, and keep the error that stopped it for the next
//! call. What the guest may be told then depends on what its kernel does with a short count
//! (`fs/fuse/file.c`):
//!
//! | request | a short count | so the reply is |
//! | --- | --- | --- |
//! | READ into the page cache | ends the file (`fuse_short_read`) | all up to the end of the file, or the error |
//! | READ for a program (`FUSE_READ_LOCKOWNER`) | is the program's, which asks for the rest | what was read |
//! | WRITE from the page cache (`FUSE_WRITE_CACHE`) | is ignored (`fuse_writepage_end`) | all, or the error |
//! | WRITE with `O_DIRECT` past the page cache | becomes EIO (`fuse_get_res_by_io`) | all, or the error |
//! | any other WRITE | is the program's, which writes the rest | what was written |

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use gangplank_fuse::{Handle, InitFlags, NodeId, ReadFlags, ReadIn, WriteFlags, WriteIn};

use super::credentials::without_set_id;
use super::fs::PassthroughFs;
use super::inode::KnownSize;
use super::open_files::OpenFile;
use crate::rate_limited;
use crate::session::IoMode;
use crate::sys::buffers::{Reader, Writer};
use crate::sys::file;

/// What the guest's kernel does with a short count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShortCount {
    /// It passes the count on to a program. The error comes up again at the program's next call.
    Allowed,
    /// It takes the count for something else, so that an error must be answered as an error.
    Misread,
}

impl ShortCount {
    /// The answer to a request of which `done` bytes were moved before `error`.
    fn answer(self, done: usize, error: io::Error) -> io::Result<usize> {
        match self {
            Self::Allowed if done > 0 => Ok(done),
            _ => Err(error),
        }
    }
}

impl PassthroughFs {
    /// Reads at most `args.size` bytes. EAGAIN if it would wait for a disk in
    /// [`IoMode::NonBlocking`].
    ///
    /// Makes one system call for a read that is whole, or that ends where the guest knows the file
    /// to end.
    pub(super) fn do_read(
        &self,
        id: NodeId,
        args: &ReadIn,
        data: &mut Writer<'_>,
        mode: IoMode,
    ) -> io::Result<usize> {
        let file = self.readable(args.fh, id)?;
        let result = self.read_file(&file, args, data, mode);
        self.done_reading(args.fh, &file);
        result
    }

    /// As [`PassthroughFs::do_read`], from what is open.
    fn read_file(
        &self,
        file: &OpenFile,
        args: &ReadIn,
        data: &mut Writer<'_>,
        mode: IoMode,
    ) -> io::Result<usize> {
        let is_program =
            ReadFlags::from_bits_retain(args.read_flags).contains(ReadFlags::LOCKOWNER);
        let short = match is_program {
            true => ShortCount::Allowed,
            false => ShortCount::Misread,
        };
        let mut how = 0;
        if mode == IoMode::NonBlocking && file.tells_waiting.load(Ordering::Relaxed) {
            // What goes past the page cache always waits.
            if file.is_direct() {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            how = libc::RWF_NOWAIT;
        }
        let wanted = size(args.size).min(data.remaining());
        let mut done = 0;
        while done < wanted {
            let offset = position(args.offset, done)?;
            let whole = data.one_call_covers(wanted - done);
            let result = transfer(file, || {
                data.read_from(file.as_fd(), wanted - done, offset, how)
            });
            match result {
                // Linux 5.9 and 5.10 say so of what is not in memory, too (readv(2), BUGS).
                Ok(0) if how != 0 => how = 0,
                Ok(0) => break,
                Ok(read) => {
                    done += read;
                    // Less than asked is the end of the file, or stops before an error, or before
                    // what is not in memory if the call was not to wait.
                    if read < whole
                        && (self.ends_at(file.node, position(args.offset, done)?)
                            || short == ShortCount::Allowed && file.reads_whole && how == 0)
                    {
                        break;
                    }
                }
                Err(error) if how != 0 && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    file.tells_waiting.store(false, Ordering::Relaxed);
                    how = 0;
                }
                // What was read so far is read again.
                Err(error) if how != 0 && error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(error);
                }
                Err(error) => return short.answer(done, error),
            }
        }
        Ok(done)
    }

    /// Whether the guest knows the file to end at `offset`.
    fn ends_at(&self, id: NodeId, offset: u64) -> bool {
        let known = self.inodes.with_known_size(id, KnownSize::get);
        known.flatten() == Some(offset)
    }

    /// Writes at most `args.size` bytes.
    pub(super) fn do_write(
        &self,
        id: NodeId,
        args: &WriteIn,
        data: &mut Reader<'_>,
    ) -> io::Result<usize> {
        self.check_writable()?;
        let file = self.files.get(Handle::new(args.fh), id)?;
        let flags = WriteFlags::from_bits_retain(args.write_flags);
        let is_cached = flags.contains(WriteFlags::CACHE);
        // The guest's page cache writes at fixed offsets; only a process's own write appends. Where
        // the guest collects writes, it alone knows where the file ends.
        let append = args.flags.cast_signed() & libc::O_APPEND != 0
            && !is_cached
            && !self.session.has(InitFlags::WRITEBACK_CACHE);
        let how = if append { libc::RWF_APPEND } else { 0 };
        let short = match is_cached || self.writes_asynchronously(args) {
            true => ShortCount::Misread,
            false => ShortCount::Allowed,
        };
        let mut write = || write_file(&file, args, how, short, data);
        let written = if flags.contains(WriteFlags::KILL_SUIDGID) {
            without_set_id(write)
        } else {
            write()
        };
        // Of a write that failed, a part may be in the file. The guest does not know of it, and a
        // read that finds it ends beyond the known size.
        if let Ok(written) = written {
            self.inodes.with_known_size(id, |known| match append {
                true => known.forget(),
                false => known.grow(args.offset.saturating_add(written as u64)),
            });
        }
        written
    }

    /// Whether the guest's kernel sends this write, and waits for it, like one of many of an
    /// asynchronous transfer: an `O_DIRECT` write on a file that has a page cache.
    fn writes_asynchronously(&self, args: &WriteIn) -> bool {
        self.session.has(InitFlags::ASYNC_DIO)
            && self.numbering.is_direct(args.flags)
            && !self.share.options.cache.bypasses_page_cache()
    }
}

fn write_file(
    file: &OpenFile,
    args: &WriteIn,
    how: i32,
    short: ShortCount,
    data: &mut Reader<'_>,
) -> io::Result<usize> {
    let wanted = size(args.size).min(data.remaining());
    let mut done = 0;
    while done < wanted {
        let offset = position(args.offset, done)?;
        let result = transfer(file, || {
            data.write_to(file.as_fd(), wanted - done, offset, how)
        });
        match result {
            // No file system should, but the rest is not written.
            Ok(0) => return short.answer(done, io::Error::from_raw_os_error(libc::EIO)),
            Ok(written) => done += written,
            Err(error) => return short.answer(done, error),
        }
    }
    Ok(done)
}

/// Calls again when a signal interrupts, and without `O_DIRECT` when the kernel cannot transfer
/// directly to or from this memory: it may be misaligned, or memory of a kind that cannot be pinned.
fn transfer(file: &OpenFile, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        let error = match file::retry(&mut call) {
            Ok(count) => return Ok(count),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::EFAULT) if file.is_direct() => {
                rate_limited!(
                    warn,
                    "direct I/O into guest memory fails ({error}): the file goes through the host's page cache"
                );
                file::set_direct(file.as_fd(), false)?;
                file.direct.store(false, Ordering::Relaxed);
            }
            _ => return Err(error),
        }
    }
}

/// The offset after `done` bytes.
fn position(offset: u64, done: usize) -> io::Result<u64> {
    offset
        .checked_add(done as u64)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

fn size(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
