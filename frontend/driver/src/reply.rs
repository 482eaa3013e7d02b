//! The reply to a request.

use gangplank_fuse::{Opcode, OutHeader, Unique};
use rustix::io::Errno;
use vm_memory::VolatileSlice;
use zerocopy::FromBytes;

use super::error::{BadReply, Error, Result};
use super::memory::Buffer;
use super::slots::UsedRequest;

/// The least error of a reply (fs/fuse/dev.c accepts -511 to 0).
const LEAST_ERROR: i32 = -511;

/// File data in a buffer: read by the daemon, or to be written by it.
#[derive(Debug)]
pub struct Data {
    buffer: Buffer,
    len: usize,
}

impl Data {
    /// The first `len` bytes of `buffer`, at most all of it.
    #[must_use]
    pub fn new(buffer: Buffer, len: usize) -> Self {
        Self {
            len: len.min(buffer.len()),
            buffer,
        }
    }

    /// Bytes of data.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes: a READ found the end of the file.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes in place; see [`Buffer::bytes`].
    #[must_use]
    pub fn bytes(&self) -> VolatileSlice<'_> {
        let all = self.buffer.bytes();
        all.subslice(0, self.len).unwrap_or(all)
    }

    /// A copy of the bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut copy = vec![0; self.len];
        self.bytes().copy_to(&mut copy);
        copy
    }

    /// The buffer, for another request.
    #[must_use]
    pub fn into_buffer(self) -> Buffer {
        self.buffer
    }
}

/// The reply to a request that succeeded.
#[derive(Debug)]
pub(super) struct Answer {
    /// The structures behind the header.
    pub(super) payload: Vec<u8>,
    /// The data behind them.
    pub(super) data: Option<Data>,
    /// The data that the request has sent.
    pub(super) sent: Option<Data>,
    /// Bytes that the request asked to read, write or copy; zero for other operations.
    pub(super) asked: u64,
}

/// Makes a value of a reply.
pub(super) type Decode<T> = fn(Answer) -> std::result::Result<T, BadReply>;

/// Checks a request that came back: header, length, number, errno.
pub(super) fn examine(
    opcode: Opcode,
    unique: Unique,
    asked: u64,
    finished: UsedRequest,
) -> Result<Answer> {
    let bad = |source| Error::Reply { opcode, source };
    let written = finished.written;
    let mut payload = finished.reply;
    // virtiofsd 1.14 returns DESTROY without a reply.
    if written == 0 && (!opcode.expects_reply() || opcode == Opcode::Destroy) {
        return Ok(Answer {
            payload,
            data: None,
            sent: None,
            asked,
        });
    }
    let (header, _) =
        OutHeader::read_from_prefix(&payload).map_err(|_| bad(BadReply::NoHeader { written }))?;
    if header.len != written {
        let len = header.len;
        return Err(bad(BadReply::Length { len, written }));
    }
    // A daemon answers INTERRUPT, if at all, with its own number or that of the interrupted
    // request.
    let same = header.unique == unique.get()
        || (opcode == Opcode::Interrupt && header.unique | 1 == unique.get());
    if !same {
        return Err(bad(BadReply::Unique {
            expected: unique.get(),
            found: header.unique,
        }));
    }
    match header.error {
        0 => {}
        error @ LEAST_ERROR..0 if payload.len() == size_of::<OutHeader>() => {
            let errno = Errno::from_raw_os_error(-error);
            return Err(Error::Errno { opcode, errno });
        }
        error => return Err(bad(BadReply::Error { error, written })),
    }
    payload.drain(..size_of::<OutHeader>());
    let to_data = |(buffer, len)| Data::new(buffer, usize::try_from(len).unwrap_or(usize::MAX));
    Ok(Answer {
        payload,
        data: finished.received.map(to_data),
        sent: finished.sent.map(to_data),
        asked,
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn finished(len: u32, error: i32, unique: u64, payload: &[u8], written: u32) -> UsedRequest {
        let header = OutHeader { len, error, unique };
        UsedRequest {
            written,
            reply: [header.as_bytes(), payload].concat(),
            received: None,
            sent: None,
        }
    }

    fn look(finished: UsedRequest) -> Result<Answer> {
        examine(Opcode::Getattr, Unique::new(6), 0, finished)
    }

    #[test]
    fn a_good_answer_gives_its_payload() {
        let answer = look(finished(20, 0, 6, b"attr", 20)).unwrap();
        assert_eq!(answer.payload, b"attr");
    }

    #[test]
    fn an_errno_is_the_callers() {
        let error = look(finished(16, -2, 6, b"", 16)).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOENT));
    }

    #[test]
    fn answers_that_contradict_themselves_are_refused() {
        let cases = [
            finished(16, 0, 6, b"", 20),
            finished(20, 0, 6, b"attr", 16),
            finished(16, 0, 8, b"", 16),
            finished(16, 2, 6, b"", 16),
            finished(16, -512, 6, b"", 16),
            finished(16, i32::MIN, 6, b"", 16),
            finished(20, -2, 6, b"attr", 20),
        ];
        for case in cases {
            let text = format!("{case:?}");
            assert!(matches!(look(case), Err(Error::Reply { .. })), "{text}");
        }
        let nothing = UsedRequest {
            written: 0,
            reply: Vec::new(),
            received: None,
            sent: None,
        };
        assert!(matches!(
            look(nothing),
            Err(Error::Reply {
                source: BadReply::NoHeader { written: 0 },
                ..
            })
        ));
    }
}
