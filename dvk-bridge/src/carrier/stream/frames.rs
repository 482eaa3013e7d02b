//! A peer's bytes taken apart into commands, each examined before anything is done for it.

use crate::abi::{Command, Generation, Header, HeaderError, HeaderFlags, MAX_BATCH, NodeId};

/// The bytes of a connection that are not commands yet.
#[derive(Debug)]
pub(crate) struct Frames {
    here: NodeId,
    peer: NodeId,
    generation: Generation,
    /// As long as can be needed, whatever comes.
    room: Box<[u8]>,
    /// Bytes at the front that are done with.
    done: usize,
    /// Bytes at the front that came, the done ones included.
    filled: usize,
}

/// Something that is not the protocol, or not this generation of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// A header that cannot be.
    #[error("{error}, as a header of {} bytes ({generation}) has it{}", generation.header_size(), hint(candidates))]
    Header {
        /// Why.
        error: HeaderError,
        /// As which it was read.
        generation: Generation,
        /// As which it could be.
        candidates: Vec<Generation>,
    },
    /// A batch with something in it that cannot be batched.
    #[error("a batch has a {0} in it, which cannot be")]
    Batched(Command),
}

fn hint(candidates: &[Generation]) -> String {
    let sizes: Vec<String> = candidates
        .iter()
        .map(|it| format!("{} bytes ({it})", it.header_size()))
        .collect();
    match sizes.as_slice() {
        [] => "; and it would fit no other generation".to_owned(),
        sizes => format!("; it would fit {}", sizes.join(" or ")),
    }
}

/// Room for the longest command, a batch, and as much again to read ahead.
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
        }
    }

    /// Adds what `read` puts into the room that it is given, of which it says how much.
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
        self.filled += more.min(room.len());
        Ok(more)
    }

    /// Whether a command has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        self.done < self.filled
    }

    /// What can be said of a command that does not end.
    pub(crate) fn describe_rest(&self) -> String {
        let bytes = self.rest();
        let candidates = self.others(bytes);
        format!(
            "{} bytes of a command and no more, where a header has {} bytes ({}){}",
            bytes.len(),
            self.generation.header_size(),
            self.generation,
            hint(&candidates)
        )
    }

    fn rest(&self) -> &[u8] {
        self.room.get(self.done..self.filled).unwrap_or_default()
    }

    /// Gives the next command that is whole to `deliver`, with its payload, or those of a batch one by one; whether there
    /// was one.
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

    /// The header in `head`, which is the beginning of `bytes`.
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
    /// The other generations that `bytes` would fit.
    fn others(&self, bytes: &[u8]) -> Vec<Generation> {
        let mut candidates = Generation::guess(bytes, self.peer, self.here);
        candidates.retain(|&candidate| candidate != self.generation);
        candidates
    }
}
