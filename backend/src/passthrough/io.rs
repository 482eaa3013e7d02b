//! Reading and writing: straight between the host's file and guest memory.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use gangplank_fuse::{Handle, InitFlags, NodeId, ReadIn, WriteFlags, WriteIn};

use super::credentials::without_set_id;
use super::fs::PassthroughFs;
use super::open_files::OpenFile;
use crate::rate_limited;
use crate::sys::buffers::{Reader, Writer};
use crate::sys::file;

impl PassthroughFs {
    /// Reads at most `args.size` bytes, by one system call where a short read is known to mean the end. EAGAIN where it would
    /// have to wait for the disk, and may not.
    pub(super) fn do_read(
        &self,
        id: NodeId,
        args: &ReadIn,
        data: &mut Writer<'_>,
        may_block: bool,
    ) -> io::Result<usize> {
        let file = self.readable(args.fh, id)?;
        let result = read_all(&file, args, data, may_block);
        self.done_reading(args.fh, &file);
        result
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
        // The guest's page cache writes at fixed offsets; only a process's own write appends. Where the guest collects
        // writes, it alone knows where the file ends.
        let append = args.flags.cast_signed() & libc::O_APPEND != 0
            && !flags.contains(WriteFlags::CACHE)
            && !self.session.has(InitFlags::WRITEBACK_CACHE);
        let how = if append { libc::RWF_APPEND } else { 0 };
        if flags.contains(WriteFlags::KILL_SUIDGID) {
            return without_set_id(|| write_all(&file, args, how, data));
        }
        write_all(&file, args, how, data)
    }
}

/// As [`PassthroughFs::do_read`], from what is open.
fn read_all(
    file: &OpenFile,
    args: &ReadIn,
    data: &mut Writer<'_>,
    may_block: bool,
) -> io::Result<usize> {
    let mut how = 0;
    if !may_block && file.tells_waiting.load(Ordering::Relaxed) {
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
        let whole = data.fits_one_call(wanted - done);
        let result = transfer(file, || {
            data.read_from(file.as_fd(), wanted - done, offset, how)
        });
        match result {
            // Linux 5.9 and 5.10 say so of what is not in memory, too (readv(2), BUGS).
            Ok(0) if how != 0 => how = 0,
            Ok(0) => break,
            Ok(read) => {
                done += read;
                // Less may also be all that is in the page cache, if it is not to wait.
                if file.short_read_is_end && whole && how == 0 {
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
            // What was read is the guest's; the error comes up again when it asks for the rest.
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn write_all(
    file: &OpenFile,
    args: &WriteIn,
    how: i32,
    data: &mut Reader<'_>,
) -> io::Result<usize> {
    let wanted = size(args.size).min(data.remaining());
    let mut done = 0;
    while done < wanted {
        let offset = position(args.offset, done)?;
        match transfer(file, || {
            data.write_to(file.as_fd(), wanted - done, offset, how)
        }) {
            Ok(0) => break,
            Ok(written) => done += written,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Calls once more when a signal interrupts, and without `O_DIRECT` when the kernel cannot transfer directly to or from
/// this memory: it may be misaligned, or memory of a kind that cannot be pinned.
fn transfer(file: &OpenFile, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        let error = match call() {
            Ok(count) => return Ok(count),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
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
