//! File data in both directions, many requests in flight.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use gangplank_fuse::{Handle, ReadIn, WriteIn};
use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::error::{Error, Result};
use super::path::Node;
use crate::driver::{Data, Pending, Session, call};

/// Bytes of one request, where the daemon takes as many.
const REQUEST: u32 = 1 << 20;

/// Requests in flight at once.
const DEPTH: usize = 16;

/// An open file of the share; `path` is for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open<'a> {
    pub(super) session: &'a Session,
    pub(super) node: &'a Node,
    pub(super) file: Handle,
    pub(super) path: &'a str,
}

impl Open<'_> {
    fn refused(&self, what: &'static str) -> impl FnOnce(crate::driver::Error) -> Error {
        let path = self.path.to_owned();
        move |source| Error::Refused { what, path, source }
    }

    /// Half the queue at most: a copy within the share reads and writes over the same.
    fn depth(&self) -> usize {
        (self.session.depth() / 2).clamp(1, DEPTH)
    }

    /// Hands the whole file to `sink`, piece by piece and in order.
    pub(super) fn read_all(&self, mut sink: impl FnMut(Data) -> Result<()>) -> Result<()> {
        // No more than can be written again at once.
        let step = self.session.max_read().min(self.session.max_write());
        let step = step.min(REQUEST);
        let size = self.node.attr.size;
        let depth = self.depth();
        let mut flight: VecDeque<(u64, Pending<Data>)> = VecDeque::new();
        let mut next = 0_u64;
        loop {
            // Beyond the size it is known by, a file is felt for one request at a time.
            while flight.len() < depth && (next < size || flight.is_empty()) {
                let args = ReadIn {
                    fh: self.file.get(),
                    offset: next,
                    ..ReadIn::default()
                };
                let room = usize::try_from(step).unwrap_or(usize::MAX);
                let buffer = self.session.buffer(room).map_err(self.refused("read"))?;
                let call = call::read(self.node.id, args, buffer);
                let pending = self.session.submit(call).map_err(self.refused("read"))?;
                flight.push_back((next, pending));
                next = next.saturating_add(u64::from(step));
            }
            let Some((offset, pending)) = flight.pop_front() else {
                return Ok(());
            };
            let data = pending.wait().map_err(self.refused("read"))?;
            let len = data.len() as u64;
            if len == 0 {
                return Ok(());
            }
            sink(data)?;
            if len < u64::from(step) {
                // The end, or less than could be had: what was asked for further on has its offset wrong.
                flight.clear();
                next = offset.saturating_add(len);
            }
        }
    }
}

/// Writes pieces one behind another, many of them in flight.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    to: Open<'a>,
    offset: u64,
    flight: VecDeque<(u32, Pending<u32>)>,
}

impl<'a> Writer<'a> {
    /// Begins at `offset`.
    pub(super) const fn new(to: Open<'a>, offset: u64) -> Self {
        Self {
            to,
            offset,
            flight: VecDeque::new(),
        }
    }

    /// Bytes that one piece holds at most.
    pub(super) fn room(&self) -> usize {
        let step = self.to.session.max_write().min(REQUEST);
        usize::try_from(step).unwrap_or(usize::MAX)
    }

    /// Writes a piece, which must fit in [`Writer::room`].
    pub(super) fn push(&mut self, data: Data) -> Result<()> {
        if self.flight.len() >= self.to.depth() {
            self.land()?;
        }
        let to = &self.to;
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let args = WriteIn {
            fh: to.file.get(),
            offset: self.offset,
            size,
            ..WriteIn::default()
        };
        let call = call::write(to.node.id, args, data.into_buffer());
        let pending = to.session.submit(call).map_err(to.refused("write"))?;
        self.flight.push_back((size, pending));
        self.offset = self.offset.saturating_add(u64::from(size));
        Ok(())
    }

    /// Waits for all that is in flight.
    pub(super) fn finish(mut self) -> Result<()> {
        while !self.flight.is_empty() {
            self.land()?;
        }
        Ok(())
    }

    fn land(&mut self) -> Result<()> {
        let Some((len, pending)) = self.flight.pop_front() else {
            return Ok(());
        };
        let written = pending.wait().map_err(self.to.refused("write"))?;
        if written < len {
            return Err(Error::Short {
                path: self.to.path.to_owned(),
                written,
                len,
            });
        }
        Ok(())
    }
}

/// The next piece of a file of the host, up to `room` bytes, straight into shared memory. `None` at its end.
pub(super) fn from_host(
    file: &mut File,
    session: &Session,
    room: usize,
) -> io::Result<Option<Data>> {
    let buffer = session.buffer(room).map_err(io::Error::other)?;
    let mut filled = 0;
    while filled < room {
        let mut rest = buffer.bytes().offset(filled).map_err(to_io)?;
        match file.read_volatile(&mut rest).map_err(to_io) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((filled != 0).then(|| Data::new(buffer, filled)))
}

/// Writes a piece to a file of the host, straight out of shared memory.
pub(super) fn to_host(file: &mut File, data: &Data) -> io::Result<()> {
    file.write_all_volatile(&data.bytes()).map_err(to_io)
}

fn to_io(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}
