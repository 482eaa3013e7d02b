//! A virtio-fs guest without a guest: a vhost-user frontend and a FUSE client in this process.
//!
//! [`Driver`] follows the rules, with one request after another or many in flight. Its parts
//! ([`vhost_user::Peer`], [`memory::Memory`], [`ring::Ring`]) are public, so that a test can break
//! the rules. Every wait has a deadline.

mod calls;
pub mod changing_request;
mod connect;
mod device_state;
pub mod error;
pub mod events;
pub mod fixture;
pub mod memory;
pub mod neighbour;
mod peak_memory;
pub mod ring;
pub mod stalling_memory;
pub mod vhost_user;

use std::collections::HashMap;
use std::time::Duration;

use gangplank_fuse::reply::Reply as Decoded;
use gangplank_fuse::{
    Dialect, InitFlags, NodeId, Operation, OutHeader, Request, RequestHeader, Unique,
};
use rustix::io::Errno;

pub use calls::{NameAndNode, NodeAndFile};
pub use connect::start_ring;
pub use error::{Error, Result};

use memory::Memory;
use ring::{CallKind, Ring, Segment};
use vhost_user::Peer;

/// How long a request may take before the test fails.
pub const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// The features and sizes of a driver.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Request queues beside the high-priority one.
    pub request_queues: u32,
    /// Descriptors in each ring.
    pub ring_size: u16,
    /// Use indirect tables.
    pub indirect: bool,
    /// Ask for notifications by index.
    pub event_idx: bool,
    /// The kind of descriptor by which the daemon notifies.
    pub call: CallKind,
    /// Bytes of memory.
    pub memory: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            request_queues: 1,
            ring_size: 256,
            indirect: false,
            event_idx: false,
            call: CallKind::Event,
            memory: 16 << 20,
        }
    }
}

/// How a driver and its device notify each other.
pub trait Notifier {
    /// Notifies the device that `ring` has new chains.
    ///
    /// # Errors
    /// The kick fails.
    fn kick(&self, ring: &Ring) -> Result<()>;

    /// Waits until the device has used something more in `ring`, or has already.
    ///
    /// # Errors
    /// It does not within `limit`, or is broken.
    fn wait(&self, ring: &Ring, memory: &Memory, limit: Duration) -> Result<()>;
}

/// A vhost-user daemon uses the rings' kick and call descriptors.
impl Notifier for Peer {
    fn kick(&self, ring: &Ring) -> Result<()> {
        ring.kick_anyway()
    }

    fn wait(&self, ring: &Ring, memory: &Memory, limit: Duration) -> Result<()> {
        ring.wait(memory, limit)
    }
}

/// A guest that is connected and whose rings run.
pub struct Driver<L = Peer> {
    /// The vhost-user connection, or another path to the device.
    pub peer: L,
    /// Guest memory.
    pub memory: Memory,
    /// The high-priority ring, then the request rings.
    pub rings: Vec<Ring>,
    /// The fields of each request's header, except number and node.
    pub header: RequestHeader,
    /// The ring for calls that name no other.
    pub queue: usize,
    /// The flags that INIT offers.
    pub offer: InitFlags,
    dialect: Dialect,
    unique: u64,
    /// Chains that were used before the test waited for them: queue and head, with the number of
    /// bytes written. A head is used once until then.
    early: HashMap<(usize, u16), u32>,
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "its memory is lost until it is waited for"]
pub struct Ticket {
    /// The request's number.
    pub unique: Unique,
    queue: usize,
    head: u16,
    request: (u64, usize),
    reply: (u64, usize),
}

impl Ticket {
    /// The guest address of the request's bytes.
    #[must_use]
    pub const fn request_address(&self) -> u64 {
        self.request.0
    }
}

/// The parts of a request.
#[derive(Clone, Copy, Debug)]
struct Bytes<'a> {
    request: &'a [u8],
    data: &'a [u8],
}

impl<L: Notifier> Driver<L> {
    /// A driver on a device that runs `rings` in `memory` and is notified by `line`.
    #[must_use]
    pub fn over(line: L, memory: Memory, rings: Vec<Ring>) -> Self {
        Self {
            peer: line,
            memory,
            rings,
            header: RequestHeader::default(),
            queue: 1,
            offer: InitFlags::all() - InitFlags::INIT_RESERVED,
            dialect: Dialect::default(),
            unique: 0,
            early: HashMap::new(),
        }
    }

    /// The dialect that INIT negotiated.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The header that the next request gets.
    pub fn next_header(&mut self, node: NodeId) -> RequestHeader {
        // Linux counts in twos. Odd numbers are for INTERRUPT.
        self.unique += 2;
        RequestHeader {
            unique: Unique::new(self.unique),
            node,
            ..self.header
        }
    }

    /// Sends a request, with room for `capacity` bytes of reply behind its header, and waits for
    /// the reply's payload.
    ///
    /// # Errors
    /// The errno in the reply, or why there is none.
    pub fn call(
        &mut self,
        node: NodeId,
        operation: Operation<'_>,
        data: &[u8],
        capacity: usize,
    ) -> Result<Vec<u8>> {
        let ticket = self.submit(self.queue, node, operation, data, capacity)?;
        self.finish(ticket)
    }

    /// Sends a request and does not wait.
    ///
    /// # Errors
    /// The ring or memory is full, or the request cannot be encoded.
    pub fn submit(
        &mut self,
        queue: usize,
        node: NodeId,
        operation: Operation<'_>,
        data: &[u8],
        capacity: usize,
    ) -> Result<Ticket> {
        let header = self.next_header(node);
        let room = if operation.opcode().expects_reply() {
            size_of::<OutHeader>() + capacity
        } else {
            0
        };
        let mut request = Vec::new();
        Request::from(operation).encode(&header, self.dialect, &mut request)?;
        let bytes = Bytes {
            request: &request,
            data,
        };
        self.submit_parts(queue, header.unique, bytes, room)
    }

    /// The bytes of a request, with the number it got.
    ///
    /// # Errors
    /// The request cannot be encoded.
    pub fn encode(&mut self, node: NodeId, operation: Operation<'_>) -> Result<(Unique, Vec<u8>)> {
        let header = self.next_header(node);
        let mut request = Vec::new();
        Request::from(operation).encode(&header, self.dialect, &mut request)?;
        Ok((header.unique, request))
    }

    /// Sends a chain of any `segments`, waits for it, and returns the number of bytes written.
    ///
    /// # Errors
    /// The ring is full, or the chain does not come back.
    pub fn exchange(&mut self, queue: usize, segments: &[Segment]) -> Result<u32> {
        let ring = self.rings.get_mut(queue).ok_or(Error::Exhausted("ring"))?;
        let head = ring.publish_chain(&mut self.memory, segments)?;
        if ring.wants_kick(&self.memory) {
            self.peer.kick(ring)?;
        }
        let ticket = Ticket {
            unique: Unique::default(),
            queue,
            head,
            request: (0, 0),
            reply: (0, 0),
        };
        self.wait_used(ticket, REPLY_LIMIT)
    }

    /// Fills the descriptor table of a ring that is not in use from the start on, makes the chain
    /// at its first entry available and kicks.
    ///
    /// # Errors
    /// The kick descriptor cannot be written.
    pub fn offer_table(&mut self, queue: usize, table: &[ring::Descriptor]) -> Result<()> {
        let ring = self.rings.get_mut(queue).ok_or(Error::Exhausted("ring"))?;
        for (index, descriptor) in (0..).zip(table) {
            ring.put_descriptor(&self.memory, index, *descriptor);
        }
        ring.publish(&self.memory, 0);
        self.peer.kick(ring)
    }

    /// Sends any bytes as a request, with room for `room` bytes of reply, header included.
    ///
    /// # Errors
    /// The ring or memory is full.
    pub fn submit_bytes(
        &mut self,
        queue: usize,
        unique: Unique,
        request: &[u8],
        room: usize,
    ) -> Result<Ticket> {
        let bytes = Bytes { request, data: &[] };
        self.submit_parts(queue, unique, bytes, room)
    }

    fn submit_parts(
        &mut self,
        queue: usize,
        unique: Unique,
        bytes: Bytes<'_>,
        room: usize,
    ) -> Result<Ticket> {
        let len = bytes.request.len() + bytes.data.len();
        let request = (self.memory.allocate(len)?, len);
        self.memory.write(request.0, bytes.request);
        let data_at = request.0 + bytes.request.len() as u64;
        self.memory.write(data_at, bytes.data);
        let reply = (self.memory.allocate(room)?, room);
        // A previous reply there must not pass for this one's.
        self.memory.write(reply.0, &vec![0xa5; room]);
        // Linux separates header, arguments and data; the separation must not matter.
        let seams = [40.min(bytes.request.len()), bytes.request.len(), len];
        let mut segments = Vec::with_capacity(5);
        let mut start = 0;
        for end in seams {
            push(&mut segments, request.0, start, end, false);
            start = end;
        }
        push(&mut segments, reply.0, 0, 16.min(room), true);
        push(&mut segments, reply.0, 16.min(room), room, true);
        let ring = self.rings.get_mut(queue).ok_or(Error::Exhausted("ring"))?;
        let head = ring.publish_chain(&mut self.memory, &segments)?;
        if ring.wants_kick(&self.memory) {
            self.peer.kick(ring)?;
        }
        Ok(Ticket {
            unique,
            queue,
            head,
            request,
            reply,
        })
    }

    /// Waits for a request's reply and returns its payload.
    ///
    /// # Errors
    /// The errno in the reply, or why there is none.
    pub fn finish(&mut self, ticket: Ticket) -> Result<Vec<u8>> {
        self.finish_within(ticket, REPLY_LIMIT)
    }

    /// The same with another limit.
    ///
    /// # Errors
    /// The errno in the reply, or why there is none.
    pub fn finish_within(&mut self, ticket: Ticket, limit: Duration) -> Result<Vec<u8>> {
        let used = self.wait_used(ticket, limit)?;
        let reply = self.memory.read(ticket.reply.0, ticket.reply.1);
        self.memory.release(ticket.request.0, ticket.request.1);
        self.memory.release(ticket.reply.0, ticket.reply.1);
        let used_len = usize::try_from(used).unwrap_or(usize::MAX);
        if ticket.reply.1 == 0 && used == 0 {
            return Ok(Vec::new());
        }
        let written = reply.get(..used_len).ok_or(Error::BadUsed {
            head: ticket.head.into(),
            len: used,
        })?;
        if used_len < size_of::<OutHeader>() {
            return Err(Error::NoReply { used });
        }
        let decoded = Decoded::decode(written)?;
        if decoded.unique != ticket.unique {
            return Err(Error::WrongUnique {
                expected: ticket.unique.get(),
                found: decoded.unique.get(),
            });
        }
        match decoded.result {
            Ok(payload) if payload.len() + size_of::<OutHeader>() == used_len => {
                Ok(payload.to_vec())
            }
            Ok(_) => Err(Error::BadUsed {
                head: ticket.head.into(),
                len: used,
            }),
            Err(errno) => Err(Error::Errno(Errno::from_raw_os_error(errno))),
        }
    }

    /// Whether the request is answered already.
    ///
    /// # Errors
    /// The daemon has used something that it was not given.
    pub fn is_finished(&mut self, ticket: &Ticket) -> Result<bool> {
        self.collect(ticket.queue)?;
        Ok(self.early.contains_key(&(ticket.queue, ticket.head)))
    }

    fn wait_used(&mut self, ticket: Ticket, limit: Duration) -> Result<u32> {
        loop {
            self.collect(ticket.queue)?;
            if let Some(used) = self.early.remove(&(ticket.queue, ticket.head)) {
                return Ok(used);
            }
            let ring = self
                .rings
                .get(ticket.queue)
                .ok_or(Error::Exhausted("ring"))?;
            self.peer.wait(ring, &self.memory, limit)?;
        }
    }

    /// Takes all used chains from a ring, in the daemon's order.
    fn collect(&mut self, queue: usize) -> Result<()> {
        let ring = self.rings.get_mut(queue).ok_or(Error::Exhausted("ring"))?;
        while let Some((head, len)) = ring.take_used(&mut self.memory)? {
            self.early.insert((queue, head), len);
        }
        Ok(())
    }
}

fn push(segments: &mut Vec<Segment>, base: u64, start: usize, end: usize, writable: bool) {
    if start < end {
        segments.push(Segment {
            address: base + start as u64,
            len: u32::try_from(end - start).unwrap_or(u32::MAX),
            writable,
        });
    }
}
