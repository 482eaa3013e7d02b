//! Splits a peer's bytes into commands and checks each command first.

use crate::abi::{Command, Generation, Header, HeaderError, HeaderFlags, MAX_BATCH, NodeId};

/// The bytes of a connection that do not form a command yet.
#[derive(Debug)]
pub(crate) struct Frames {
    here: NodeId,
    peer: NodeId,
    generation: Generation,
    /// Fixed in size, with room for the longest command.
    room: Box<[u8]>,
    /// Bytes at the front that were delivered.
    done: usize,
    /// Bytes at the front that are filled, including the delivered ones.
    filled: usize,
    /// The first bytes of the connection, up to [`MAX_BEGIN`] of them.
    begin: Vec<u8>,
    /// Bytes of the connection so far.
    total: usize,
}

/// Bytes of a connection's beginning by which another generation is recognized: some headers.
const MAX_BEGIN: usize = 1024;

/// Bytes that are not the protocol, or not this generation of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// An invalid header.
    #[error(
        "{error} in a header of {} bytes ({generation}){}",
        generation.header_size(),
        hint(candidates)
    )]
    Header {
        /// The reason.
        error: HeaderError,
        /// The generation by which it was read.
        generation: Generation,
        /// The generations by which it would be valid.
        candidates: Vec<Generation>,
    },
    /// A batch contains a command that cannot be batched.
    #[error("a batch cannot contain {0}")]
    Batched(Command),
}

fn hint(candidates: &[Generation]) -> String {
    let sizes: Vec<String> = candidates
        .iter()
        .map(|it| format!("{} bytes ({it})", it.header_size()))
        .collect();
    match sizes.as_slice() {
        [] => "; it fits no other generation".to_owned(),
        sizes => format!("; it would fit {}", sizes.join(" or ")),
    }
}

/// Room for the longest command, which is a batch, and as much again to read ahead.
const BUFFER_SIZE: usize = 2 * MAX_BATCH * 132;

impl Frames {
    pub(crate) fn new(here: NodeId, peer: NodeId, generation: Generation) -> Self {
        Self {
            here,
            peer,
            generation,
            room: vec![0; BUFFER_SIZE].into_boxed_slice(),
            done: 0,
            filled: 0,
            begin: Vec::new(),
            total: 0,
        }
    }

    /// Appends the bytes that `read` stores in the room it is given. `read` returns their number.
    pub(crate) fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        if self.done == self.filled || self.filled > BUFFER_SIZE / 2 {
            self.room.copy_within(self.done..self.filled, 0);
            self.filled -= self.done;
            self.done = 0;
        }
        let room = self.room.get_mut(self.filled..).unwrap_or_default();
        let more = read(room)?;
        let new = room.get(..more).unwrap_or_default();
        let left = MAX_BEGIN.saturating_sub(self.begin.len());
        self.begin.extend(new.iter().take(left));
        self.total = self.total.saturating_add(more);
        self.filled += more.min(room.len());
        Ok(more)
    }

    /// Whether a command has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        self.done < self.filled
    }

    /// Describes a command that does not end.
    pub(crate) fn describe_rest(&self) -> String {
        let bytes = self.rest();
        let candidates = self.others(bytes);
        format!(
            "only {} bytes of a command, but a header has {} bytes ({}){}",
            bytes.len(),
            self.generation.header_size(),
            self.generation,
            hint(&candidates)
        )
    }

    /// The generations by which all that has come is whole commands. A peer that sends no more
    /// after a part of a command has probably one of them: the beginning of a header is the same in
    /// all.
    pub(crate) fn ended_as(&self) -> Vec<Generation> {
        if self.total != self.begin.len() {
            return Vec::new();
        }
        let others = Generation::ALL.into_iter();
        let others = others.filter(|&it| it != self.generation);
        others
            .filter(|it| it.ends_at_a_command(&self.begin, self.peer, self.here))
            .collect()
    }

    fn rest(&self) -> &[u8] {
        self.room.get(self.done..self.filled).unwrap_or_default()
    }

    /// Passes the next complete command and its payload to `deliver`, or the commands of a batch
    /// one by one. Returns whether there was a complete command.
    pub(crate) fn next(
        &mut self,
        mut deliver: impl FnMut(&Header, &[u8]),
    ) -> Result<bool, FrameError> {
        let bytes = self.rest();
        let size = self.generation.header_size();
        let Some((head, behind)) = bytes.split_at_checked(size) else {
            return Ok(false);
        };
        let header = self.examined(head, bytes)?;
        let length = header.payload(self.generation);
        let length = length.map_err(|error| self.refused(error, bytes))?;
        let Some(payload) = behind.get(..length) else {
            return Ok(false);
        };
        if header.is_batch() {
            let headers = payload.chunks_exact(size);
            let headers: Result<Vec<_>, _> = headers.map(|head| self.batched(head)).collect();
            let headers = headers?;
            let first = Header {
                len: 0,
                batch_nr: 0,
                flags: header.flags - HeaderFlags::BATCH,
                ..header
            };
            deliver(&first, &[]);
            for header in headers {
                deliver(&header, &[]);
            }
        } else {
            deliver(&header, payload);
        }
        self.done += size + length;
        Ok(true)
    }

    /// Decodes and checks the header `head`, at the start of `bytes`.
    fn examined(&self, head: &[u8], bytes: &[u8]) -> Result<Header, FrameError> {
        let header = Header::decode(head, self.generation);
        let header = header.and_then(|header| {
            header.check(self.generation, self.peer, self.here)?;
            Ok(header)
        });
        header.map_err(|error| self.refused(error, bytes))
    }

    fn batched(&self, head: &[u8]) -> Result<Header, FrameError> {
        let header = self.examined(head, head)?;
        if header.len != 0 || header.is_batch() {
            return Err(FrameError::Batched(header.command));
        }
        Ok(header)
    }

    fn refused(&self, error: HeaderError, bytes: &[u8]) -> FrameError {
        let candidates = self.others(bytes);
        FrameError::Header {
            error,
            generation: self.generation,
            candidates,
        }
    }
}

impl Frames {
    /// The other generations that match `bytes`.
    fn others(&self, bytes: &[u8]) -> Vec<Generation> {
        let mut candidates = Generation::guess(bytes, self.peer, self.here);
        candidates.retain(|&candidate| candidate != self.generation);
        candidates
    }
}
