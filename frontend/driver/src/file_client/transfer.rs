//! File data in both directions, with many requests in flight.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use gangplank_fuse::{Handle, LseekIn, ReadFlags, ReadIn, WriteIn};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::{Error, Result};
use super::path::Node;
use crate::{self as driver, Data, FuseSession, Pending, call};

/// Most bytes of one request, if the daemon accepts that many.
pub(super) const MAX_REQUEST_LEN: u32 = 1 << 20;

/// Most requests in flight.
const MAX_IN_FLIGHT: usize = 16;

/// `SEEK_DATA` of lseek(2).
const SEEK_DATA: u32 = 3;
/// `SEEK_HOLE` of lseek(2).
const SEEK_HOLE: u32 = 4;

/// What happens to the parts of a file that have no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holes {
    /// They are zeros like others.
    Read,
    /// They are left out, where the file tells where they are.
    Skip,
}

/// A part of a file, or all that is left.
enum Extent {
    /// Data here.
    Data(Range<u64>),
    /// A hole up to the end of the file, which is here.
    End(u64),
}

/// An open file of the share. `path` is for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileIo<'a> {
    pub(super) session: &'a FuseSession,
    pub(super) node: &'a Node,
    pub(super) file: Handle,
    pub(super) path: &'a str,
}

impl FileIo<'_> {
    fn refused(&self, what: &'static str, offset: u64) -> impl FnOnce(driver::Error) -> Error {
        let path = self.path.to_owned();
        move |source| Error::Transfer {
            what,
            path,
            offset,
            source,
        }
    }

    /// At most half the queue: a copy within the share reads and writes on the same queue.
    fn depth(&self) -> usize {
        (self.session.depth() / 2).clamp(1, MAX_IN_FLIGHT)
    }

    /// Passes the whole file to `sink`, piece by piece and in order, each with its offset. Returns
    /// the file's length. If a read fails, `sink` has got all data before it.
    pub(super) fn read_all(
        &self,
        holes: Holes,
        sink: impl FnMut(u64, Data) -> Result<()>,
    ) -> Result<u64> {
        self.read_range(0..u64::MAX, holes, sink)
    }

    /// As [`FileIo::read_all`] for a range of the file. Returns where the range or the file ended.
    pub(super) fn read_range(
        &self,
        range: Range<u64>,
        holes: Holes,
        mut sink: impl FnMut(u64, Data) -> Result<()>,
    ) -> Result<u64> {
        let mut position = range.start;
        loop {
            let extent = match holes {
                Holes::Read => position..range.end,
                Holes::Skip => match self.next_extent(position)? {
                    Extent::Data(extent) => extent,
                    Extent::End(len) => return Ok(len.min(range.end)),
                },
            };
            if extent.start >= range.end {
                return Ok(range.end);
            }
            let end = extent.end.min(range.end);
            position = self.read_extent(extent.start..end, &mut sink)?;
            // Shorter than it was: the end of the file.
            if position < end || position >= range.end {
                return Ok(position);
            }
        }
    }

    /// The next data at `position` or behind it. All that is left counts as data if the daemon does
    /// not tell.
    fn next_extent(&self, position: u64) -> Result<Extent> {
        let rest = Extent::Data(position..u64::MAX);
        let data = match self.seek(position, SEEK_DATA)? {
            Ok(data) if data >= position => data,
            Err(Errno::NXIO) => {
                let attr = self.session.getattr(self.node.id, Some(self.file));
                let len = attr.map_err(self.refused("read", position))?.attr.size;
                // A file with a wrong size, as those of procfs, has data behind its end.
                return Ok(if len > position {
                    Extent::End(len)
                } else {
                    rest
                });
            }
            _ => return Ok(rest),
        };
        match self.seek(data, SEEK_HOLE)? {
            Ok(hole) if hole > data => Ok(Extent::Data(data..hole)),
            _ => Ok(rest),
        }
    }

    /// LSEEK. The inner error is the daemon's: it may not know the operation.
    fn seek(&self, offset: u64, whence: u32) -> Result<std::result::Result<u64, Errno>> {
        let args = LseekIn {
            fh: self.file.get(),
            offset,
            whence,
            ..LseekIn::default()
        };
        match self.session.lseek(self.node.id, args) {
            Ok(found) => Ok(Ok(found)),
            Err(error) => match error.errno() {
                Some(errno) => Ok(Err(errno)),
                None => Err(self.refused("read", offset)(error)),
            },
        }
    }

    /// Reads an extent, and returns where its data ended.
    fn read_extent(
        &self,
        extent: Range<u64>,
        sink: &mut impl FnMut(u64, Data) -> Result<()>,
    ) -> Result<u64> {
        let mut in_flight = VecDeque::new();
        let read = self.read_ahead(&mut in_flight, extent, sink);
        wait_for_all(
            self.session,
            in_flight.into_iter().map(|(_, _, pending)| pending),
        );
        read
    }

    fn read_ahead(
        &self,
        in_flight: &mut VecDeque<(u64, u32, Pending<Data>)>,
        extent: Range<u64>,
        sink: &mut impl FnMut(u64, Data) -> Result<()>,
    ) -> Result<u64> {
        // At most what can be written in one request.
        let step = self.session.max_read().min(self.session.max_write());
        let step = step.min(MAX_REQUEST_LEN);
        // The end of an extent is known from the daemon; else the file's reported size is a hint.
        let expected = match extent.end {
            u64::MAX => self.node.attr.size,
            end => end,
        };
        let depth = self.depth();
        let mut next = extent.start;
        loop {
            // Beyond its reported size, a file is read one request at a time.
            while next < extent.end
                && in_flight.len() < depth
                && (next < expected || in_flight.is_empty())
            {
                let left = u32::try_from(extent.end - next).unwrap_or(u32::MAX);
                let len = step.min(left);
                in_flight.push_back((next, len, self.ask(next, len)?));
                next = next.saturating_add(u64::from(len));
            }
            let Some((offset, asked, pending)) = in_flight.pop_front() else {
                return Ok(next);
            };
            let data = pending.wait().map_err(self.refused("read", offset))?;
            let len = data.len() as u64;
            if len == 0 {
                return Ok(offset);
            }
            sink(offset, data)?;
            if len < u64::from(asked) {
                // The end of the file, or the data before an error: the next reply tells which. The
                // requests further on have wrong offsets now.
                let stale = std::mem::take(in_flight);
                wait_for_all(
                    self.session,
                    stale.into_iter().map(|(_, _, pending)| pending),
                );
                next = offset.saturating_add(len);
            }
        }
    }

    /// Reads with the flag of a direct read. A daemon answers a direct read with the data before an
    /// error, and a read for the page cache with the error alone.
    fn ask(&self, offset: u64, len: u32) -> Result<Pending<Data>> {
        let args = ReadIn {
            fh: self.file.get(),
            offset,
            read_flags: ReadFlags::LOCKOWNER.bits(),
            ..ReadIn::default()
        };
        let room = usize::try_from(len).unwrap_or(usize::MAX);
        let buffer = self.session.buffer(room);
        let buffer = buffer.map_err(self.refused("read", offset))?;
        let pending = self.session.submit(call::read(self.node.id, args, buffer));
        pending.map_err(self.refused("read", offset))
    }
}

/// Waits for all replies, at most the session's limit in all: a file is not closed while the daemon
/// still works on it. The replies themselves do not matter any more.
fn wait_for_all<T>(session: &FuseSession, in_flight: impl Iterator<Item = Pending<T>>) {
    let begun = Instant::now();
    for pending in in_flight {
        let left = session.limit().saturating_sub(begun.elapsed());
        match pending.wait_within(left) {
            Err(error) if error.is_fatal() || error.errno().is_none() => return,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Where written data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteStart {
    /// To this offset and behind it.
    At(u64),
    /// To the end of the file, wherever that is when the daemon writes. The offset is for messages.
    End(u64),
}

/// Writes pieces one after another, with many in flight.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    to: FileIo<'a>,
    offset: u64,
    appends: bool,
    in_flight: VecDeque<(u64, Pending<(u32, Data)>)>,
}

impl<'a> Writer<'a> {
    /// Begins at `position`.
    pub(super) const fn new(to: FileIo<'a>, position: WriteStart) -> Self {
        let (offset, appends) = match position {
            WriteStart::At(offset) => (offset, false),
            WriteStart::End(offset) => (offset, true),
        };
        Self {
            to,
            offset,
            appends,
            in_flight: VecDeque::new(),
        }
    }

    /// Leaves a hole up to `offset`, at which the next piece goes.
    pub(super) const fn skip_to(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Most bytes of one piece.
    pub(super) fn room(&self) -> usize {
        let step = self.to.session.max_write().min(MAX_REQUEST_LEN);
        usize::try_from(step).unwrap_or(usize::MAX)
    }

    /// Writes a piece of at most [`Writer::room`] bytes.
    pub(super) fn push(&mut self, data: Data) -> Result<()> {
        // Two appends in flight could arrive in either order.
        let depth = if self.appends { 1 } else { self.to.depth() };
        if self.in_flight.len() >= depth {
            self.finish_oldest()?;
        }
        let len = data.len() as u64;
        let pending = self.submit(self.offset, data)?;
        self.in_flight.push_back((self.offset, pending));
        self.offset = self.offset.saturating_add(len);
        Ok(())
    }

    /// Waits for all pieces in flight.
    pub(super) fn finish(mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.finish_oldest()?;
        }
        Ok(())
    }

    fn submit(&self, offset: u64, data: Data) -> Result<Pending<(u32, Data)>> {
        let flags = if self.appends {
            OFlags::WRONLY | OFlags::APPEND
        } else {
            OFlags::WRONLY
        };
        let args = WriteIn {
            fh: self.to.file.get(),
            offset,
            size: u32::try_from(data.len()).unwrap_or(u32::MAX),
            flags: flags.bits(),
            ..WriteIn::default()
        };
        let call = call::write_and_keep(self.to.node.id, args, data.into_buffer());
        let pending = self.to.session.submit(call);
        pending.map_err(self.to.refused("write", offset))
    }

    /// Waits for the oldest piece in flight, until all of it is written.
    fn finish_oldest(&mut self) -> Result<()> {
        let Some((offset, pending)) = self.in_flight.pop_front() else {
            return Ok(());
        };
        let finished = self.write_whole(offset, pending);
        if finished.is_err() {
            let others = std::mem::take(&mut self.in_flight);
            wait_for_all(
                self.to.session,
                others.into_iter().map(|(_, pending)| pending),
            );
        }
        finished
    }

    /// A daemon that has written less than it was sent reports the reason when it is sent the rest.
    fn write_whole(&self, mut offset: u64, mut pending: Pending<(u32, Data)>) -> Result<()> {
        loop {
            let answer = pending.wait();
            let (written, data) = answer.map_err(self.to.refused("write", offset))?;
            let done = usize::try_from(written).unwrap_or(usize::MAX);
            if done >= data.len() {
                return Ok(());
            }
            if done == 0 {
                return Err(Error::Unwritten {
                    path: self.to.path.to_owned(),
                    offset,
                    len: data.len(),
                });
            }
            offset = offset.saturating_add(u64::from(written));
            pending = self.submit(offset, self.rest(&data, done, offset)?)?;
        }
    }

    /// The data after the first `done` bytes, in a buffer of its own.
    fn rest(&self, data: &Data, done: usize, offset: u64) -> Result<Data> {
        let rest = data.to_vec().split_off(done);
        let buffer = self.to.session.buffer(rest.len());
        let buffer = buffer.map_err(self.to.refused("write", offset))?;
        buffer.bytes().copy_from(&rest);
        Ok(Data::new(buffer, rest.len()))
    }
}
