//! pread and pwrite: data between the client's memory and the daemon.
//!
//! Longer data moves in pieces. Several pieces are in flight at the daemon while another is copied
//! from or to the client.

use std::collections::VecDeque;
use std::sync::Arc;

use gangplank_driver::{Data, Pending, call};
use gangplank_fuse::{Handle, NodeId, ReadIn, WriteFlags, WriteIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::backend_file::BackendFile;
use super::failure::{Failure, Result};
use super::handle::OpenFile;
use super::request_context::{Answer, RequestContext};

/// Bytes of one call at most, the limit of DVK's copies (`MAXCOPYLEN`). A longer call is done in
/// part.
const MAX_TRANSFER: usize = 1 << 20;

/// Bytes of a piece: the payload of one exchange with a node (`MAXCOPYBUF`).
const PIECE_SIZE: usize = 1 << 16;

/// An open file and a position in it.
struct DataTarget {
    file: Arc<OpenFile>,
    backend_file: Arc<BackendFile>,
    node: NodeId,
    fh: Handle,
    flags: u32,
    appends: bool,
    position: u64,
}

impl RequestContext<'_> {
    pub(super) fn pread(
        &self,
        handle: i32,
        count: i32,
        position: u64,
        buffer: u32,
    ) -> Result<Answer> {
        let (target, count) = self.data_target(handle, count, position, OpenFile::reads)?;
        let piece = PIECE_SIZE.min(self.max_read());
        let mut pieces = self.backend.pieces;
        let mut flight: VecDeque<(usize, Pending<Data>)> = VecDeque::new();
        let (mut asked, mut done) = (0, 0);
        while done < count {
            while asked < count && flight.len() < pieces {
                let want = piece.min(count - asked);
                let args = ReadIn {
                    fh: target.fh.get(),
                    offset: target.position.saturating_add(asked as u64),
                    flags: target.flags,
                    ..ReadIn::default()
                };
                let call = call::read(target.node, args, self.session.buffer(want)?);
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
                // A short count may be the end of the file, or the daemon may have stopped before
                // an error. The client would take it for the end, so the daemon is asked for the
                // next bytes. The requests beyond are dropped.
                flight.clear();
                (asked, pieces) = (done, 1);
            }
        }
        drop(target.backend_file);
        Ok(Answer::Result(i32::try_from(done).map_err(|_| Errno::IO)?))
    }

    pub(super) fn pwrite(
        &self,
        handle: i32,
        count: i32,
        position: u64,
        buffer: u32,
    ) -> Result<Answer> {
        let (target, count) = self.data_target(handle, count, position, OpenFile::writes)?;
        let piece = PIECE_SIZE.min(usize::try_from(self.session.max_write()).unwrap_or(PIECE_SIZE));
        // Pieces may be written in any order, except in append mode.
        let pieces = if target.appends {
            1
        } else {
            self.backend.pieces
        };
        let mut flight: VecDeque<(usize, Pending<u32>)> = VecDeque::new();
        let mut progress = WriteProgress::default();
        let mut sent = 0;
        if count > 0 {
            target.file.wrote();
        }
        loop {
            while progress.can_continue() && sent < count && flight.len() < pieces {
                let want = piece.min(count - sent);
                match self.send(&target, sent, want, buffer) {
                    Ok(pending) => {
                        flight.push_back((want, pending));
                        sent += want;
                    }
                    Err(failure) => progress.failed = Some(failure),
                }
            }
            if let Some((want, pending)) = flight.pop_front() {
                progress.complete(want, pending);
            } else if progress.failed.is_none() && progress.done < count {
                // The daemon has written a part of a piece. It writes the rest or reports why not.
                progress.gap = false;
                sent = progress.done;
            } else {
                break;
            }
        }
        drop(target.backend_file);
        match progress.failed {
            Some(failure) if progress.done == 0 => Err(failure),
            _ => Ok(Answer::Result(
                i32::try_from(progress.done).map_err(|_| Errno::IO)?,
            )),
        }
    }

    /// Copies a piece from the client and sends it to the daemon.
    fn send(
        &self,
        target: &DataTarget,
        sent: usize,
        want: usize,
        buffer: u32,
    ) -> Result<Pending<u32>> {
        let mut bytes = vec![0; want];
        self.copy_from("data", address(buffer, sent)?, &mut bytes)?;
        let shared = self.session.buffer(want)?;
        shared.bytes().copy_from(&bytes);
        let kill = if self.settings.credentials.uid == 0 {
            WriteFlags::empty()
        } else {
            WriteFlags::KILL_SUIDGID
        };
        let args = WriteIn {
            fh: target.fh.get(),
            offset: target.position.saturating_add(sent as u64),
            size: u32::try_from(want).map_err(|_| Errno::INVAL)?,
            write_flags: kill.bits(),
            flags: target.flags,
            ..WriteIn::default()
        };
        Ok(self
            .session
            .submit(call::write(target.node, args, shared))?)
    }

    /// The open file and the number of bytes to move.
    fn data_target(
        &self,
        handle: i32,
        count: i32,
        position: u64,
        may: fn(&OpenFile) -> bool,
    ) -> Result<(DataTarget, usize)> {
        let count = usize::try_from(count)
            .map_err(|_| Errno::INVAL)?
            .min(MAX_TRANSFER);
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
        let backend_file = file.backend_file(self.backend)?;
        let target = DataTarget {
            node: backend_file.id(),
            fh: backend_file.fh().ok_or(Errno::BADF)?,
            flags: file.flags(),
            appends: file.appends(),
            position,
            backend_file,
            file,
        };
        Ok((target, count))
    }

    fn max_read(&self) -> usize {
        usize::try_from(self.session.max_read()).unwrap_or(PIECE_SIZE)
    }
}

/// Bytes that were written without a gap.
#[derive(Debug, Default)]
struct WriteProgress {
    done: usize,
    gap: bool,
    failed: Option<Failure>,
}

impl WriteProgress {
    const fn can_continue(&self) -> bool {
        !self.gap && self.failed.is_none()
    }

    /// Waits for a piece of `want` bytes and counts it, unless there is a gap before it.
    fn complete(&mut self, want: usize, pending: Pending<u32>) {
        match pending.wait() {
            Ok(written) => {
                let written = usize::try_from(written).unwrap_or(want).min(want);
                if !self.gap {
                    self.done += written;
                    self.gap = written < want;
                    if written == 0 {
                        // No file system writes zero bytes, and a retry might never end.
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

/// The address of a piece in the client's memory.
fn address(buffer: u32, offset: usize) -> Result<u32> {
    let offset = u32::try_from(offset).map_err(|_| Errno::FAULT)?;
    Ok(buffer.checked_add(offset).ok_or(Errno::FAULT)?)
}
