//! Receiving messages that may arrive in parts.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::{HEADER_LEN, Header, MAX_DESCRIPTORS, MAX_PAYLOAD_LEN, Message, MessageError};
use crate::{Deadline, descriptors};

/// A message of which a part may have arrived.
#[derive(Debug)]
pub struct Inbox {
    max_descriptors: usize,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Default for Inbox {
    /// Takes up to [`MAX_DESCRIPTORS`] beside each message.
    fn default() -> Self {
        Self::new(MAX_DESCRIPTORS)
    }
}

impl Inbox {
    /// Takes up to `max_descriptors` beside each message; one with more is an error.
    #[must_use]
    pub const fn new(max_descriptors: usize) -> Self {
        Self {
            max_descriptors,
            bytes: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// Whether a message has begun and is not whole.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Takes what has arrived, without waiting. Returns a message once it is whole.
    ///
    /// # Errors
    /// Any [`MessageError`] but [`MessageError::Late`] and [`MessageError::Flags`]. The connection
    /// is of no more use then.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, MessageError> {
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                return Ok(Some(self.take()));
            }
            let filled = self.bytes.len();
            self.bytes.resize(filled + missing, 0);
            let part = self.bytes.get_mut(filled..).unwrap_or_default();
            let received = descriptors::receive(socket, part, &mut self.descriptors);
            let len = received.map_or(0, |received| received.len);
            self.bytes.truncate(filled + len);
            let is_truncated = received.is_ok_and(|received| received.is_truncated);
            if is_truncated || self.descriptors.len() > self.max_descriptors {
                self.descriptors.clear();
                return Err(MessageError::TooManyDescriptors {
                    limit: self.max_descriptors,
                });
            }
            match received {
                Ok(_) if len == 0 && self.has_begun() => return Err(MessageError::Cut),
                Ok(_) if len == 0 => return Err(MessageError::HungUp),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for a whole message.
    ///
    /// # Errors
    /// As [`Inbox::receive`]; [`MessageError::Late`] if it is not whole by the deadline.
    pub fn wait(
        &mut self,
        socket: BorrowedFd<'_>,
        deadline: Deadline,
    ) -> Result<Message, MessageError> {
        loop {
            if let Some(message) = self.receive(socket)? {
                return Ok(message);
            }
            deadline.wait(socket, PollFlags::IN)?;
        }
    }

    fn header(&self) -> Option<Header> {
        let (header, _) = Header::read_from_prefix(&self.bytes).ok()?;
        Some(header)
    }

    /// Bytes still to come: the rest of the header first, which tells the length of the payload.
    fn missing(&self) -> Result<usize, MessageError> {
        let Some(Header { request, len, .. }) = self.header() else {
            return Ok(HEADER_LEN - self.bytes.len());
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD_LEN {
            return Err(MessageError::TooLong { request, len });
        }
        Ok((HEADER_LEN + len).saturating_sub(self.bytes.len()))
    }

    fn take(&mut self) -> Message {
        let header = self.header().unwrap_or_default();
        let mut payload = std::mem::take(&mut self.bytes);
        payload.drain(..HEADER_LEN);
        Message {
            request: header.request,
            flags: header.flags,
            payload,
            descriptors: std::mem::take(&mut self.descriptors),
        }
    }
}
