//! pread and pwrite: data between the client's memory and the daemon.
//!
//! What is longer than a piece is moved in pieces, some of them on their way between here and the daemon while another is on
//! its way between here and the client.

use std::collections::VecDeque;
use std::sync::Arc;

use gangplank_driver::{Data, Pending, call};
use gangplank_fuse::{Handle, NodeId, ReadIn, WriteFlags, WriteIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::failure::{Failure, Result};
use super::handle::OpenFile;
use super::opened::Opened;
use super::work::{Answer, Work};

/// Most bytes of one call: what DVK copies at most (`MAXCOPYLEN`). Of more that is asked, so much is done.
const MOST: usize = 1 << 20;

/// Bytes of a piece: what one exchange with a node carries (`MAXCOPYBUF`).
const PIECE: usize = 1 << 16;

/// An open file and where in it.
struct At {
    file: Arc<OpenFile>,
    opened: Arc<Opened>,
    node: NodeId,
    fh: Handle,
    flags: u32,
    appends: bool,
    position: u64,
}

impl Work<'_> {
    pub(super) fn pread(
        &self,
        handle: i32,
        count: i32,
        position: u64,
        buffer: u32,
    ) -> Result<Answer> {
        let (at, count) = self.place_of_data(handle, count, position, OpenFile::reads)?;
        let piece = PIECE.min(self.max_read());
        let mut pieces = self.link.pieces;
        let mut flight: VecDeque<(usize, Pending<Data>)> = VecDeque::new();
        let (mut asked, mut done) = (0, 0);
        while done < count {
            while asked < count && flight.len() < pieces {
                let want = piece.min(count - asked);
                let args = ReadIn {
                    fh: at.fh.get(),
                    offset: at.position.saturating_add(asked as u64),
                    flags: at.flags,
                    ..ReadIn::default()
                };
                let call = call::read(at.node, args, self.session.buffer(want)?);
                flight.push_back((want, self.session.submit(call)?));
                asked += want;
            }
            let Some((want, pending)) = flight.pop_front() else {
                break;
            };
            let data = pending.wait()?.to_vec();
            let to = address(buffer, done)?;
            self.copy_to("data", to, &data)?;
            done += data.len();
            if data.is_empty() {
                break;
            }
            if data.len() < want {
                // It may be the end, and it may be that the daemon stops before an error. The client
                // takes a short count for the end, so the daemon is asked behind it. What it was
                // asked for beyond that is of no interest.
                flight.clear();
                (asked, pieces) = (done, 1);
            }
        }
        drop(at.opened);
        Ok(Answer::Result(i32::try_from(done).map_err(|_| Errno::IO)?))
    }

    pub(super) fn pwrite(
        &self,
        handle: i32,
        count: i32,
        position: u64,
        buffer: u32,
    ) -> Result<Answer> {
        let (at, count) = self.place_of_data(handle, count, position, OpenFile::writes)?;
        let piece = PIECE.min(usize::try_from(self.session.max_write()).unwrap_or(PIECE));
        // Pieces behind one another are all the same, but for those that go to wherever the end is then.
        let pieces = if at.appends { 1 } else { self.link.pieces };
        let mut flight: VecDeque<(usize, Pending<u32>)> = VecDeque::new();
        let mut tally = Tally::default();
        let mut sent = 0;
        if count > 0 {
            at.file.wrote();
        }
        loop {
            while tally.goes_on() && sent < count && flight.len() < pieces {
                let want = piece.min(count - sent);
                match self.send(&at, sent, want, buffer) {
                    Ok(pending) => {
                        flight.push_back((want, pending));
                        sent += want;
                    }
                    Err(failure) => tally.failed = Some(failure),
                }
            }
            if let Some((want, pending)) = flight.pop_front() {
                tally.land(want, pending);
            } else if tally.failed.is_none() && tally.done < count {
                // The daemon has taken a part of a piece. It takes the rest, or says why not.
                tally.gap = false;
                sent = tally.done;
            } else {
                break;
            }
        }
        drop(at.opened);
        match tally.failed {
            Some(failure) if tally.done == 0 => Err(failure),
            _ => Ok(Answer::Result(
                i32::try_from(tally.done).map_err(|_| Errno::IO)?,
            )),
        }
    }

    /// Fetches a piece from the client and gives it to the daemon.
    fn send(&self, at: &At, sent: usize, want: usize, buffer: u32) -> Result<Pending<u32>> {
        let mut bytes = vec![0; want];
        self.copy_from("data", address(buffer, sent)?, &mut bytes)?;
        let shared = self.session.buffer(want)?;
        shared.bytes().copy_from(&bytes);
        let kill = if self.settings.identity.uid == 0 {
            WriteFlags::empty()
        } else {
            WriteFlags::KILL_SUIDGID
        };
        let args = WriteIn {
            fh: at.fh.get(),
            offset: at.position.saturating_add(sent as u64),
            size: u32::try_from(want).map_err(|_| Errno::INVAL)?,
            write_flags: kill.bits(),
            flags: at.flags,
            ..WriteIn::default()
        };
        Ok(self.session.submit(call::write(at.node, args, shared))?)
    }

    /// The open file, and how many bytes are to be moved.
    fn place_of_data(
        &self,
        handle: i32,
        count: i32,
        position: u64,
        may: fn(&OpenFile) -> bool,
    ) -> Result<(At, usize)> {
        let count = usize::try_from(count).map_err(|_| Errno::INVAL)?.min(MOST);
        let end = position
            .checked_add(count as u64)
            .and_then(|end| i64::try_from(end).ok());
        let file = self.client.handles().get(handle)?;
        if file.kind() == FileType::Directory {
            return Err(Errno::ISDIR.into());
        }
        if !may(&file) {
            return Err(Errno::BADF.into());
        }
        end.ok_or(Errno::INVAL)?;
        let opened = file.opened(self.link)?;
        let at = At {
            node: opened.id(),
            fh: opened.fh().ok_or(Errno::BADF)?,
            flags: file.flags(),
            appends: file.appends(),
            position,
            opened,
            file,
        };
        Ok((at, count))
    }

    fn max_read(&self) -> usize {
        usize::try_from(self.session.max_read()).unwrap_or(PIECE)
    }
}

/// How much was written, from the first byte on and without a gap.
#[derive(Debug, Default)]
struct Tally {
    done: usize,
    gap: bool,
    failed: Option<Failure>,
}

impl Tally {
    const fn goes_on(&self) -> bool {
        !self.gap && self.failed.is_none()
    }

    /// Waits for a piece of `want` bytes, and counts it unless there is a gap before it.
    fn land(&mut self, want: usize, pending: Pending<u32>) {
        match pending.wait() {
            Ok(written) => {
                let written = usize::try_from(written).unwrap_or(want).min(want);
                if !self.gap {
                    self.done += written;
                    self.gap = written < want;
                    if written == 0 {
                        // No file system does that, and asking again might never end.
                        self.failed.get_or_insert(Errno::IO.into());
                    }
                }
            }
            Err(error) => {
                self.gap = true;
                self.failed.get_or_insert(error.into());
            }
        }
    }
}

/// Where a piece is in the client's memory.
fn address(buffer: u32, offset: usize) -> Result<u32> {
    let offset = u32::try_from(offset).map_err(|_| Errno::FAULT)?;
    Ok(buffer.checked_add(offset).ok_or(Errno::FAULT)?)
}
