//! Requests whose bytes the caller has, and does not know.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::device::Driver;
use super::error::{Error, Fault, Result};
use super::memory::Buffer;
use super::slots::RequestBuffers;

/// A request in flight that was submitted as bytes. Dropping it gives up the reply; the daemon
/// carries the request out all the same.
#[derive(Debug)]
#[must_use = "dropping it gives up the reply"]
pub struct RawRequest {
    core: Arc<Core>,
    queue: usize,
    slot: u16,
    is_taken: bool,
}

/// The reply to a request that was submitted as bytes.
#[derive(Debug)]
pub struct RawReply {
    /// The memory that the daemon has written to; `None` if the request had no room for a reply.
    pub buffer: Option<Buffer>,
    /// Bytes at its start that the daemon has written; at most the buffer's length.
    pub written: u32,
}

impl Driver {
    /// Allocates `len` bytes of the memory that is shared with the daemon.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn buffer(&self, len: usize) -> Result<Buffer> {
        Buffer::new(&self.core.memory, len)
    }

    /// Queues that can be used: the high-priority queue, 0, and the request queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.core.queues.len()
    }

    /// Requests that a queue can hold at once.
    #[must_use]
    pub fn depth(&self, queue: usize) -> usize {
        self.core.depth(queue)
    }

    /// Why no further call can succeed, if that is so.
    #[must_use]
    pub fn broken(&self) -> Option<Error> {
        self.core.broken()
    }

    /// Declares the device broken, so that all requests in flight and later fail.
    pub fn give_up(&self) {
        self.core.declare_broken(Fault::Stopped);
    }

    /// Submits the first `len` bytes of `request` on `queue`, as they are, with `room` for the
    /// reply. Waits up to `limit` for a free entry of the ring; `None` if there is none in time.
    ///
    /// # Errors
    /// [`Error::NoQueue`] or [`Error::Broken`].
    pub fn submit_raw(
        &self,
        queue: usize,
        request: (Buffer, u32),
        room: Option<(Buffer, u32)>,
        limit: Duration,
    ) -> Result<Option<RawRequest>> {
        let buffers = RequestBuffers {
            request: Vec::new(),
            send: Some(request),
            reply_room: 0,
            receive: room,
        };
        let slot = self.core.try_submit(queue, buffers, limit)?;
        Ok(slot.map(|slot| RawRequest {
            core: Arc::clone(&self.core),
            queue,
            slot,
            is_taken: false,
        }))
    }
}

impl RawRequest {
    /// Waits up to `limit` for the reply. `None` if it has not come, or was taken before.
    ///
    /// # Errors
    /// [`Error::Broken`] if the reply will never come.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<RawReply>> {
        if self.is_taken {
            return Ok(None);
        }
        let Some(used) = self.core.try_answer(self.queue, self.slot, limit)? else {
            return Ok(None);
        };
        self.is_taken = true;
        let (buffer, written) = match used.received {
            Some((buffer, written)) => (Some(buffer), written),
            None => (None, 0),
        };
        Ok(Some(RawReply { buffer, written }))
    }
}

impl Drop for RawRequest {
    fn drop(&mut self) {
        if !self.is_taken {
            self.core.abandon(self.queue, self.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use gangplank_fuse::{InHeader, Opcode};
    use zerocopy::IntoBytes;

    use super::super::fake_daemon::{FakeDaemon, ReplyOrder};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// The bytes of a request with `opcode` and 4 bytes of arguments.
    fn request(driver: &Driver, opcode: Opcode) -> (Buffer, u32) {
        let header = InHeader {
            len: 44,
            opcode: opcode as u32,
            unique: 7,
            ..InHeader::default()
        };
        let bytes = [header.as_bytes(), &[1, 2, 3, 4]].concat();
        let buffer = driver.buffer(bytes.len()).unwrap();
        buffer.bytes().copy_from(&bytes);
        (buffer, 44)
    }

    #[test]
    fn bytes_reach_the_daemon_as_they_are_and_so_does_its_reply_reach_the_caller() {
        let daemon = FakeDaemon::start(ReplyOrder::Forward, |header, body| {
            assert_eq!(header.opcode, Opcode::Statfs as u32);
            Ok(body.iter().rev().copied().collect())
        });
        let driver = daemon.driver();
        let room = driver.buffer(100).unwrap();
        let sent = request(driver, Opcode::Statfs);
        let raw = driver.submit_raw(1, sent, Some((room, 100)), LIMIT);
        let mut raw = raw.unwrap().unwrap();
        let reply = raw.wait(LIMIT).unwrap().unwrap();
        assert_eq!(reply.written, 20);
        let mut bytes = [0_u8; 20];
        reply.buffer.unwrap().bytes().copy_to(&mut bytes);
        assert_eq!(bytes[16..], [4, 3, 2, 1]);
        assert!(raw.wait(Duration::ZERO).unwrap().is_none(), "taken before");
    }

    #[test]
    fn a_request_without_room_is_returned_without_a_reply() {
        let daemon = FakeDaemon::start(ReplyOrder::Forward, |_, _| Ok(Vec::new()));
        let driver = daemon.driver();
        let sent = request(driver, Opcode::Forget);
        let raw = driver.submit_raw(0, sent, None, LIMIT);
        let reply = raw.unwrap().unwrap().wait(LIMIT).unwrap().unwrap();
        assert!(reply.buffer.is_none() && reply.written == 0);
    }

    #[test]
    fn requests_in_flight_fail_when_the_device_is_given_up() {
        let daemon = FakeDaemon::start(ReplyOrder::Forward, |_, _| Ok(Vec::new()));
        let driver = daemon.driver();
        driver.give_up();
        let sent = request(driver, Opcode::Statfs);
        let refused = driver.submit_raw(3, sent, None, LIMIT);
        assert!(matches!(refused, Err(Error::NoQueue { .. })));
        let room = driver.buffer(100).unwrap();
        let sent = request(driver, Opcode::Statfs);
        let raw = driver.submit_raw(1, sent, Some((room, 100)), LIMIT);
        let ended = raw.map(|raw| raw.unwrap().wait(LIMIT).is_err());
        assert!(ended.unwrap_or(true));
    }
}
