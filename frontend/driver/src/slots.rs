//! The requests of one queue: which slot is free, which is in flight, which is answered.
//!
//! A slot is a place in the ring with memory of its own for a small request and a small answer; what is longer gets a buffer.
//! While a request is in flight its slot owns all of its memory, and keeps it when nobody waits any longer: the daemon may still
//! write there.

use std::sync::Arc;

use gangplank_fuse::OutHeader;

use super::error::{Fault, Result};
use super::memory::{Buffer, Memory};
use super::ring::{DESCRIPTOR_LEN, Ring, Segment};

/// Descriptors of the longest chain: request, data to send, answer, data to receive.
const MAX_SEGMENTS: usize = 4;

/// Memory of a slot, in bytes: table, request, answer.
const SLOT_LEN: usize = 8192;
/// Where the request is in it.
const REQUEST_AT: usize = MAX_SEGMENTS * DESCRIPTOR_LEN;
/// Where the answer is in it.
const REPLY_AT: usize = 4096;
/// Longest request it holds.
const REQUEST_ROOM: usize = REPLY_AT - REQUEST_AT;
/// Longest answer it holds.
const REPLY_ROOM: usize = SLOT_LEN - REPLY_AT;

/// A request as it goes into the ring.
#[derive(Debug)]
pub(super) struct RequestBuffers {
    /// Header and arguments.
    pub(super) request: Vec<u8>,
    /// Data behind them, and how many bytes of the buffer.
    pub(super) send: Option<(Buffer, u32)>,
    /// Room for the answer's header and structures, in bytes; none if no answer is expected.
    pub(super) reply_room: usize,
    /// Room for data behind them, and how many bytes of the buffer.
    pub(super) receive: Option<(Buffer, u32)>,
}

/// A request that came back.
#[derive(Debug)]
pub(super) struct UsedRequest {
    /// Bytes that the device says it has written; no more than there was room for.
    pub(super) written: u32,
    /// The answer's header and structures, as far as written.
    pub(super) reply: Vec<u8>,
    /// The data behind them, as far as written.
    pub(super) received: Option<(Buffer, u32)>,
    /// The data that was sent, as it was handed over.
    pub(super) sent: Option<(Buffer, u32)>,
}

/// The memory of a request in flight.
#[derive(Debug, Default)]
struct HeldBuffers {
    /// A request too long for the slot, kept for the device to read.
    _request: Option<Buffer>,
    /// The data behind the request.
    sent: Option<(Buffer, u32)>,
    reply: Option<Buffer>,
    reply_room: usize,
    receive: Option<(Buffer, u32)>,
    /// All there is room for, in bytes.
    room: u32,
}

#[derive(Debug)]
enum Slot {
    Free,
    InFlight { held: HeldBuffers, abandoned: bool },
    Answered { held: HeldBuffers, written: u32 },
}

/// A ring and the slots in it.
#[derive(Debug)]
pub(super) struct Slots {
    queue: usize,
    memory: Arc<Memory>,
    ring: Ring,
    indirect: bool,
    /// The slots' memory, one behind another.
    base: u64,
    slots: Vec<Slot>,
    free: Vec<u16>,
}

impl Slots {
    /// The slots of a fresh ring.
    pub(super) fn new(
        memory: &Arc<Memory>,
        queue: usize,
        ring: Ring,
        indirect: bool,
    ) -> Result<Self> {
        let count = if indirect {
            ring.size()
        } else {
            ring.size() / 4
        };
        let base = memory.allocate(usize::from(count) * SLOT_LEN)?;
        Ok(Self {
            queue,
            memory: Arc::clone(memory),
            ring,
            indirect,
            base,
            slots: (0..count).map(|_| Slot::Free).collect(),
            free: (0..count).rev().collect(),
        })
    }

    pub(super) const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Requests that can be in flight at once.
    pub(super) const fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Buffers for what a slot cannot hold; to be had before the queue is locked.
    pub(super) fn overflow(memory: &Arc<Memory>, buffers: &RequestBuffers) -> Result<Overflow> {
        let beyond =
            |len: usize, room: usize| (len > room).then(|| Buffer::new(memory, len)).transpose();
        Ok(Overflow {
            request: beyond(buffers.request.len(), REQUEST_ROOM)?,
            reply: beyond(buffers.reply_room, REPLY_ROOM)?,
        })
    }

    /// Puts a request into a free slot and the ring: the slot, and whether the device wants to be kicked. `None` if no slot is
    /// free; the buffers are still there then.
    pub(super) fn submit(
        &mut self,
        buffers: &mut Option<(RequestBuffers, Overflow)>,
    ) -> Option<(u16, bool)> {
        buffers.as_ref()?;
        let slot = self.free.pop()?;
        let (buffers, overflow) = buffers.take()?;
        let memory = self.base + u64::from(slot) * SLOT_LEN as u64;
        let request = overflow
            .request
            .as_ref()
            .map_or(memory + REQUEST_AT as u64, Buffer::address);
        self.memory.write(request, &buffers.request);
        let reply = overflow
            .reply
            .as_ref()
            .map_or(memory + REPLY_AT as u64, Buffer::address);

        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let mut segments = Vec::with_capacity(MAX_SEGMENTS);
        let mut push = |address, len, writable| {
            if len != 0 {
                segments.push(Segment {
                    address,
                    len,
                    writable,
                });
            }
        };
        push(request, length(buffers.request.len()), false);
        if let Some((buffer, len)) = &buffers.send {
            push(buffer.address(), *len, false);
        }
        push(reply, length(buffers.reply_room), true);
        if let Some((buffer, len)) = &buffers.receive {
            push(buffer.address(), *len, true);
        }
        let received = buffers.receive.as_ref().map_or(0, |(_, len)| *len);
        let held = HeldBuffers {
            _request: overflow.request,
            sent: buffers.send,
            reply: overflow.reply,
            reply_room: buffers.reply_room,
            receive: buffers.receive,
            room: length(buffers.reply_room).saturating_add(received),
        };
        let head = if self.indirect {
            self.ring.indirect_chain(slot, memory, &segments);
            slot
        } else {
            let first = slot.saturating_mul(4);
            self.ring.chain(first, &segments);
            first
        };
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            *entry = Slot::InFlight {
                held,
                abandoned: false,
            };
        }
        Some((slot, self.ring.publish(head)))
    }

    /// Takes everything back that the device has used. How many answers that brought.
    ///
    /// # Errors
    /// [`Fault`] if the device gave back what it did not have, or claims what cannot be.
    pub(super) fn collect(&mut self) -> std::result::Result<usize, Fault> {
        let mut count = 0;
        while let Some(used) = self.ring.take_used()? {
            let unknown = Fault::UsedHead {
                queue: self.queue,
                head: used.head,
            };
            let slot = self.slot_of(used.head).ok_or(unknown)?;
            let entry = self.slots.get_mut(usize::from(slot)).ok_or(unknown)?;
            let Slot::InFlight { held, abandoned } = entry else {
                return Err(unknown);
            };
            if used.len > held.room {
                return Err(Fault::UsedLength {
                    queue: self.queue,
                    len: used.len,
                    room: held.room,
                });
            }
            if *abandoned {
                *entry = Slot::Free;
                self.free.push(slot);
            } else {
                *entry = Slot::Answered {
                    held: std::mem::take(held),
                    written: used.len,
                };
            }
            count += 1;
        }
        Ok(count)
    }

    /// The slot whose chain has that head.
    fn slot_of(&self, head: u32) -> Option<u16> {
        let head = u16::try_from(head).ok()?;
        match self.indirect {
            true => Some(head),
            false => (head % 4 == 0).then_some(head / 4),
        }
    }

    /// Takes the answer out of a slot and frees it; `None` while it is in flight.
    pub(super) fn take_answer(&mut self, slot: u16) -> Option<UsedRequest> {
        let entry = self.slots.get_mut(usize::from(slot))?;
        let Slot::Answered { held, written } = entry else {
            return None;
        };
        let (held, written) = (std::mem::take(held), *written);
        *entry = Slot::Free;
        self.free.push(slot);
        let len = usize::try_from(written).unwrap_or(usize::MAX);
        let reply_at = self.base + u64::from(slot) * SLOT_LEN as u64 + REPLY_AT as u64;
        let reply_at = held.reply.as_ref().map_or(reply_at, Buffer::address);
        let reply = self.memory.read(reply_at, len.min(held.reply_room));
        let beyond = u32::try_from(len.saturating_sub(held.reply_room)).unwrap_or(u32::MAX);
        let received = held
            .receive
            .map(|(buffer, room)| (buffer, beyond.min(room)));
        Some(UsedRequest {
            written,
            reply,
            received,
            sent: held.sent,
        })
    }

    /// Whether the answer is there.
    pub(super) fn is_answered(&self, slot: u16) -> bool {
        let entry = self.slots.get(usize::from(slot));
        matches!(entry, Some(Slot::Answered { .. }))
    }

    /// Nobody waits for the answer any longer: the slot is freed as soon as the device is done with it.
    pub(super) fn abandon(&mut self, slot: u16) {
        let Some(entry) = self.slots.get_mut(usize::from(slot)) else {
            return;
        };
        match entry {
            Slot::Free => {}
            Slot::InFlight { abandoned, .. } => *abandoned = true,
            Slot::Answered { .. } => {
                *entry = Slot::Free;
                self.free.push(slot);
            }
        }
    }

    /// Asks to be notified of the next answer. Whether one has come meanwhile.
    pub(super) fn ask_for_notice(&self) -> bool {
        self.ring.ask_for_notice()
    }

    /// Asks for no notifications.
    pub(super) fn decline_notice(&self) {
        self.ring.decline_notice();
    }
}

/// Buffers for what a slot cannot hold.
#[derive(Debug)]
pub(super) struct Overflow {
    request: Option<Buffer>,
    reply: Option<Buffer>,
}

/// Room for an answer of `len` bytes behind its header.
pub(super) const fn room_for(len: usize) -> usize {
    size_of::<OutHeader>().saturating_add(len)
}

#[cfg(test)]
mod tests;
