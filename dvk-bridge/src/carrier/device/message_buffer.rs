//! The buffer through which messages pass to and from the kernel, and the size of the kernel's
//! messages.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::abi::{Code, Generation, Message};

/// Bytes of the longest message of any build of DVK: the legacy one on a 64-bit machine.
const MAX_MESSAGE_SIZE: usize = 144;

/// The value of bytes that nothing was written to.
const FILL_BYTE: u8 = 0xa5;

/// Room for a message of any size. A kernel copies as many bytes as its own messages have.
#[derive(Clone)]
#[repr(C, align(8))]
pub(super) struct MessageBuffer {
    bytes: [u8; MAX_MESSAGE_SIZE],
}

impl MessageBuffer {
    /// A buffer to receive into, filled with [`FILL_BYTE`] so that written bytes can be told apart.
    pub(super) fn blank() -> Self {
        Self {
            bytes: [FILL_BYTE; MAX_MESSAGE_SIZE],
        }
    }

    /// A buffer to send from, with `message` in the longest form that a kernel may read.
    pub(super) fn with_message(message: &Message) -> Self {
        let mut bytes = [0; MAX_MESSAGE_SIZE];
        message.encode(&mut bytes);
        Self { bytes }
    }

    /// The whole buffer, for the kernel.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The number of bytes up to the last one that differs from [`FILL_BYTE`].
    fn written(&self) -> usize {
        let last = self.bytes.iter().rposition(|&byte| byte != FILL_BYTE);
        last.map_or(0, |last| last + 1)
    }

    /// The message in the first `size` bytes.
    fn message(&self, size: usize) -> Message {
        let bytes = self.bytes.get(..size).unwrap_or(&self.bytes);
        Message::decode(bytes).unwrap_or_default() // every size has room for source and type
    }
}

/// The size of the kernel's messages, as observed so far. Zero before the first message.
#[derive(Debug, Default)]
pub(super) struct MessageSize(AtomicUsize);

impl MessageSize {
    /// The message that was written to a blank `buffer`. Returns `None` if nothing was written.
    ///
    /// A message may end in fill bytes, so the largest size seen so far counts.
    pub(super) fn received(&self, buffer: &MessageBuffer) -> Result<Option<Message>, Code> {
        let written = buffer.written();
        if written == 0 {
            return Ok(None);
        }
        let sizes = [Generation::Current, Generation::Legacy].map(Generation::message_size);
        let size = sizes.into_iter().find(|&size| written <= size);
        let size = size.ok_or(Code::EDVSMSGSIZE)?;
        let known = self.0.fetch_max(size, Ordering::Relaxed).max(size);
        Ok(Some(buffer.message(known)))
    }

    /// The message that has replaced another in `buffer`.
    pub(super) fn answered(&self, buffer: &MessageBuffer) -> Message {
        let least = Generation::Current.message_size();
        buffer.message(self.0.load(Ordering::Relaxed).max(least))
    }
}

impl fmt::Display for MessageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.load(Ordering::Relaxed) {
            0 => f.write_str("messages of a length not seen yet"),
            size => write!(f, "messages of {size} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{M1, MBLegacy};

    /// A buffer as a kernel with messages of `size` bytes fills it.
    fn written(message: &Message, size: usize) -> MessageBuffer {
        let mut buffer = MessageBuffer::blank();
        message.encode(&mut buffer.bytes[..size]);
        buffer
    }

    #[test]
    fn the_written_bytes_show_the_size() {
        let message = Message::new(33, &M1::default());
        for (size, text) in [(36, "messages of 36 bytes"), (76, "messages of 76 bytes")] {
            let seen = MessageSize::default();
            let received = seen.received(&written(&message, size)).unwrap();
            assert_eq!(received, Some(message));
            assert_eq!(seen.to_string(), text);
        }
    }

    #[test]
    fn a_message_that_ends_in_pattern_is_as_long_as_those_before() {
        let seen = MessageSize::default();
        let long = Message::new(1, &MBLegacy::default());
        seen.received(&written(&long, 76)).unwrap();
        let arm = MBLegacy {
            nr: 7,
            md5: [i32::from_ne_bytes([FILL_BYTE; 4]); 16],
        };
        let like_pattern = Message::new(2, &arm);
        let received = seen.received(&written(&like_pattern, 76)).unwrap();
        assert_eq!(received, Some(like_pattern));
    }

    #[test]
    fn an_unwritten_buffer_is_not_a_message() {
        let seen = MessageSize::default();
        assert_eq!(seen.received(&MessageBuffer::blank()), Ok(None));
        assert_eq!(seen.to_string(), "messages of a length not seen yet");
    }

    #[test]
    fn messages_of_a_64_bit_kernel_are_refused() {
        let seen = MessageSize::default();
        let mut buffer = MessageBuffer::blank();
        buffer.bytes[..144].fill(1);
        assert_eq!(seen.received(&buffer), Err(Code::EDVSMSGSIZE));
    }

    #[test]
    fn an_answer_is_read_as_long_as_messages_are() {
        let seen = MessageSize::default();
        let arm = MBLegacy {
            nr: 1,
            md5: [7; 16],
        };
        let answer = Message::new(0, &arm);
        let buffer = MessageBuffer::with_message(&answer);
        assert_eq!(
            seen.answered(&buffer).arm::<MBLegacy>().md5[15],
            0,
            "36 bytes until more is known"
        );
        seen.received(&written(&answer, 76)).unwrap();
        assert_eq!(seen.answered(&buffer), answer);
    }
}
