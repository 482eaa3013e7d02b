//! Messages to a daemon over its Unix socket.

use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gangplank_service::connect_timeout::connect_timeout;
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Messages, Region, Result, RingAddresses};
use crate::connection::{CallError, Connection, check_acknowledgement};
use crate::descriptors::borrow_event;
use crate::message::payload::{self, MAX_RINGS};
use crate::message::{
    Config, ConfigFlags, FrontendReq, MemoryRegion, Message, MessageError, ProtocolFeatures,
    VringAddr, VringState, request_name,
};

/// Rings that GET_QUEUE_NUM may tell at most; a daemon that tells more is broken.
const MAX_TOLD_RINGS: u64 = vhost::vhost_user::message::VHOST_USER_MAX_VRINGS;

/// How long a daemon may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// To take the connection.
    pub connect: Duration,
    /// To answer a message.
    pub answer: Duration,
}

impl Default for Deadlines {
    /// 2 seconds to take the connection, 5 to answer: a daemon that stops a ring first completes
    /// the requests in it.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(5),
        }
    }
}

/// A connection to a daemon.
///
/// A reply that misses its deadline ends the connection, because it could not be told from the
/// reply to the next request.
#[derive(Debug)]
pub struct Socket {
    daemon: PathBuf,
    connection: Connection,
    limit: Duration,
    /// Requests ask for an acknowledgement (REPLY_ACK).
    need_reply: bool,
    /// A reply was late, and the socket was shut down.
    is_late: bool,
    /// Rings that the daemon takes; what the protocol can number until GET_QUEUE_NUM.
    max_rings: u64,
}

impl Socket {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// [`Error::Connect`] at once if no process listens there, [`Error::LateConnect`] if the
    /// listener does not take the connection in time.
    pub fn connect(path: &Path, deadlines: Deadlines) -> Result<Self> {
        let stream = connect(path, deadlines.connect)?;
        Ok(Self::from_stream(stream, path, deadlines.answer))
    }

    /// Takes a connected socket; `daemon` names its peer in error messages.
    #[must_use]
    pub fn from_stream(stream: UnixStream, daemon: &Path, limit: Duration) -> Self {
        Self {
            daemon: daemon.to_owned(),
            connection: Connection::new(stream),
            limit,
            need_reply: false,
            is_late: false,
            max_rings: u64::try_from(MAX_RINGS).unwrap_or(u64::MAX),
        }
    }

    /// A descriptor that polls as `RDHUP` once the daemon has closed the connection. The caller
    /// must not read from it.
    ///
    /// # Errors
    /// [`Error::System`] if the host refuses another descriptor.
    pub fn hang_up(&self) -> Result<OwnedFd> {
        let clone = self.connection.socket().try_clone();
        clone.map(OwnedFd::from).map_err(|source| Error::System {
            what: "watching the connection to the daemon",
            source,
        })
    }

    fn request(&self, request: FrontendReq, payload: Vec<u8>) -> Message {
        let message = Message::new(request, payload);
        match self.need_reply {
            true => message.with_need_reply(),
            false => message,
        }
    }

    /// Sends a request that has no reply of its own, and waits for the acknowledgement if that was
    /// agreed on.
    fn tell(
        &mut self,
        request: FrontendReq,
        payload: Vec<u8>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let message = self.request(request, payload);
        let sent = self.connection.send(&message, descriptors, self.limit);
        let done = match sent {
            Ok(()) if message.needs_reply() => self.reply(&message).and_then(|reply| {
                check_acknowledgement(&reply)?;
                Ok(())
            }),
            sent => sent.map_err(CallError::from),
        };
        done.map_err(|error| self.failed(request, error))
    }

    /// Sends a request that has a reply of its own, which `decode` reads.
    fn ask<R>(
        &mut self,
        request: FrontendReq,
        payload: Vec<u8>,
        decode: impl FnOnce(&Message) -> Option<R>,
    ) -> Result<R> {
        let message = self.request(request, payload);
        let sent = self.connection.send(&message, &[], self.limit);
        let reply = sent
            .map_err(CallError::from)
            .and_then(|()| self.reply(&message));
        let decoded =
            reply.and_then(|reply| decode(&reply).ok_or_else(|| CallError::wrong_reply(&reply)));
        decoded.map_err(|error| self.failed(request, error))
    }

    fn ask_u64(&mut self, request: FrontendReq) -> Result<u64> {
        self.ask(request, Vec::new(), Message::u64)
    }

    /// Replies carry no descriptors, and flags of version 1.
    fn reply(&mut self, message: &Message) -> std::result::Result<Message, CallError> {
        let reply = self.connection.reply(message, self.limit)?;
        match reply.descriptors.is_empty() && reply.has_known_flags() {
            true => Ok(reply),
            false => Err(CallError::wrong_reply(&reply)),
        }
    }

    fn failed(&mut self, request: FrontendReq, error: CallError) -> Error {
        let (message, daemon) = (request_name(request), self.daemon.clone());
        if matches!(error, CallError::Message(MessageError::Late(_))) && !self.is_late {
            self.is_late = true;
            // It fails only if the daemon has closed the connection meanwhile.
            let _ = self.connection.socket().shutdown(Shutdown::Both);
        }
        match error {
            _ if self.is_late => Error::Late {
                message,
                daemon,
                limit: self.limit,
            },
            CallError::Refused => Error::Refused { message, daemon },
            CallError::Message(error) if error.is_end() => Error::Gone { message, daemon },
            source => Error::Protocol {
                message,
                daemon,
                source,
            },
        }
    }

    /// The ring's number as the protocol has it.
    fn ring(&self, ring: usize) -> Result<u32> {
        let number = u32::try_from(ring).unwrap_or(u32::MAX);
        match u64::from(number) < self.max_rings {
            true => Ok(number),
            false => Err(Error::Misuse(
                "a ring's number is beyond those that the daemon takes",
            )),
        }
    }

    fn set_ring_state(&mut self, request: FrontendReq, ring: usize, value: u32) -> Result<()> {
        let payload = payload::ring_state(self.ring(ring)?, value);
        self.tell(request, payload, &[])
    }

    fn set_ring_event(&mut self, request: FrontendReq, ring: usize, event: &EventFd) -> Result<()> {
        let payload = payload::from_u64(self.ring(ring)?.into());
        self.tell(request, payload, &[borrow_event(event)])
    }
}

impl Messages for Socket {
    fn daemon(&self) -> &Path {
        &self.daemon
    }

    fn resume(&mut self, features: ProtocolFeatures, max_rings: Option<u64>) {
        self.need_reply = features.contains(ProtocolFeatures::REPLY_ACK);
        if let Some(count) = max_rings {
            self.max_rings = count;
        }
    }

    fn set_owner(&mut self) -> Result<()> {
        self.tell(FrontendReq::SET_OWNER, Vec::new(), &[])
    }

    fn features(&mut self) -> Result<u64> {
        self.ask_u64(FrontendReq::GET_FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.tell(FrontendReq::SET_FEATURES, payload::from_u64(features), &[])
    }

    fn protocol_features(&mut self) -> Result<ProtocolFeatures> {
        let features = self.ask_u64(FrontendReq::GET_PROTOCOL_FEATURES)?;
        Ok(ProtocolFeatures::from_bits_truncate(features))
    }

    fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<()> {
        let payload = payload::from_u64(features.bits());
        self.tell(FrontendReq::SET_PROTOCOL_FEATURES, payload, &[])?;
        self.need_reply |= features.contains(ProtocolFeatures::REPLY_ACK);
        Ok(())
    }

    fn queue_count(&mut self) -> Result<u64> {
        let count = self.ask(FrontendReq::GET_QUEUE_NUM, Vec::new(), |reply| {
            reply.u64().filter(|count| *count <= MAX_TOLD_RINGS)
        })?;
        self.max_rings = count;
        Ok(count)
    }

    fn config(&mut self, config: &mut [u8]) -> Result<()> {
        let size = u32::try_from(config.len()).unwrap_or(u32::MAX);
        let head = payload::encode(&Config::new(0, size, ConfigFlags::empty()));
        let question = [&head, &*config].concat();
        self.ask(FrontendReq::GET_CONFIG, question, |reply| {
            // The reply repeats offset and size.
            let bytes = reply.payload.strip_prefix(head.get(..8)?)?.get(4..)?;
            (bytes.len() == config.len()).then(|| config.copy_from_slice(bytes))
        })
    }

    fn set_memory(&mut self, regions: &[Region<'_>]) -> Result<()> {
        let table: Vec<_> = regions
            .iter()
            .map(|region| {
                let address = region.guest_address;
                MemoryRegion::new(address, region.len, address, region.mmap_offset)
            })
            .collect();
        let files: Vec<_> = regions.iter().map(|region| region.file).collect();
        let payload = payload::memory_table(&table);
        self.tell(FrontendReq::SET_MEM_TABLE, payload, &files)
    }

    fn set_ring_size(&mut self, ring: usize, size: u16) -> Result<()> {
        self.set_ring_state(FrontendReq::SET_VRING_NUM, ring, size.into())
    }

    fn set_ring_addresses(&mut self, ring: usize, addresses: &RingAddresses) -> Result<()> {
        let addresses = VringAddr {
            index: self.ring(ring)?,
            descriptor: addresses.descriptors,
            used: addresses.used,
            available: addresses.available,
            ..VringAddr::default()
        };
        let payload = payload::encode(&addresses);
        self.tell(FrontendReq::SET_VRING_ADDR, payload, &[])
    }

    fn set_ring_base(&mut self, ring: usize, base: u16) -> Result<()> {
        self.set_ring_state(FrontendReq::SET_VRING_BASE, ring, base.into())
    }

    fn set_ring_call(&mut self, ring: usize, call: &EventFd) -> Result<()> {
        self.set_ring_event(FrontendReq::SET_VRING_CALL, ring, call)
    }

    fn set_ring_error(&mut self, ring: usize, error: &EventFd) -> Result<()> {
        self.set_ring_event(FrontendReq::SET_VRING_ERR, ring, error)
    }

    fn set_ring_kick(&mut self, ring: usize, kick: &EventFd) -> Result<()> {
        self.set_ring_event(FrontendReq::SET_VRING_KICK, ring, kick)
    }

    fn set_ring_enabled(&mut self, ring: usize, enabled: bool) -> Result<()> {
        self.set_ring_state(FrontendReq::SET_VRING_ENABLE, ring, enabled.into())
    }

    fn ring_base(&mut self, ring: usize) -> Result<u32> {
        let payload = payload::ring_state(self.ring(ring)?, 0);
        self.ask(FrontendReq::GET_VRING_BASE, payload, |reply| {
            reply.payload_as::<VringState>().map(|state| state.num)
        })
    }

    fn reset_device(&mut self) -> Result<()> {
        self.tell(FrontendReq::RESET_DEVICE, Vec::new(), &[])
    }
}

fn connect(path: &Path, limit: Duration) -> Result<UnixStream> {
    let stream = connect_timeout(path, limit).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => Error::LateConnect {
            daemon: path.to_owned(),
            limit,
        },
        _ => Error::Connect {
            daemon: path.to_owned(),
            source,
        },
    })?;
    stream
        .set_nonblocking(false)
        .map_err(|source| Error::System {
            what: "preparing the connection to the daemon",
            source,
        })?;
    Ok(stream)
}

#[cfg(test)]
mod tests;
