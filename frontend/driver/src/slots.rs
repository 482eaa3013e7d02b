//! The requests of one queue: each slot is free, in flight or answered.
//!
//! A slot is an entry of the ring with memory for a small request and a small reply; longer ones
//! get a buffer. While a request is in flight its slot owns all of its memory. The slot keeps it
//! when the caller gives the request up, because the daemon may still write there.

use std::sync::Arc;

use gangplank_fuse::OutHeader;

use super::error::{Fault, Result};
use super::memory::{Buffer, Memory};
use super::ring::{DESCRIPTOR_LEN, Ring, Segment};

/// Descriptors of the longest chain: request, data to send, reply, data to receive.
const MAX_SEGMENTS: usize = 4;

/// Bytes of memory of a slot: descriptor table, request, reply.
const SLOT_LEN: usize = 8192;
/// Offset of the request.
const REQUEST_AT: usize = MAX_SEGMENTS * DESCRIPTOR_LEN;
/// Offset of the reply.
const REPLY_AT: usize = 4096;
/// Bytes of the longest request that fits.
const REQUEST_ROOM: usize = REPLY_AT - REQUEST_AT;
/// Bytes of the longest reply that fits.
const REPLY_ROOM: usize = SLOT_LEN - REPLY_AT;

/// What a request needs in the ring.
#[derive(Debug)]
pub(super) struct RequestBuffers {
    /// Header and arguments.
    pub(super) request: Vec<u8>,
    /// The data behind them, and its length in bytes.
    pub(super) send: Option<(Buffer, u32)>,
    /// Bytes for the reply's header and structures; zero if no reply is expected.
    pub(super) reply_room: usize,
    /// The buffer for data behind them, and its length in bytes.
    pub(super) receive: Option<(Buffer, u32)>,
}

/// A request that the device has returned.
#[derive(Debug)]
pub(super) struct UsedRequest {
    /// Bytes that the device says it has written; at most as many as there was room for.
    pub(super) written: u32,
    /// The reply's header and structures, as far as written.
    pub(super) reply: Vec<u8>,
    /// The data behind them, as far as written.
    pub(super) received: Option<(Buffer, u32)>,
    /// The data that was sent, as the caller gave it.
    pub(super) sent: Option<(Buffer, u32)>,
}

/// The memory of a request in flight.
#[derive(Debug, Default)]
struct HeldBuffers {
    /// A request too long for the slot. The device reads it.
    _request: Option<Buffer>,
    /// The data behind the request.
    sent: Option<(Buffer, u32)>,
    reply: Option<Buffer>,
    reply_room: usize,
    receive: Option<(Buffer, u32)>,
    /// Bytes that the device may write.
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
    ring: Ring<Arc<Memory>>,
    indirect: bool,
    /// Address of the slots' memory, one after another.
    base: u64,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// A thread waits for a free slot.
    is_free_awaited: bool,
}

impl Slots {
    /// The slots of an empty ring.
    pub(super) fn new(
        memory: &Arc<Memory>,
        queue: usize,
        ring: Ring<Arc<Memory>>,
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
            is_free_awaited: false,
        })
    }

    pub(super) const fn ring(&self) -> &Ring<Arc<Memory>> {
        &self.ring
    }

    /// Requests that can be in flight at once.
    pub(super) const fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Allocates buffers for what does not fit in a slot. Called before the queue is locked.
    pub(super) fn overflow(memory: &Arc<Memory>, buffers: &RequestBuffers) -> Result<Overflow> {
        let beyond =
            |len: usize, room: usize| (len > room).then(|| Buffer::new(memory, len)).transpose();
        Ok(Overflow {
            request: beyond(buffers.request.len(), REQUEST_ROOM)?,
            reply: beyond(buffers.reply_room, REPLY_ROOM)?,
        })
    }

    /// Puts a request into a free slot and the ring. Returns the slot, and whether the device asks
    /// to be kicked; `None` if no slot is free, and then `buffers` is unchanged.
    pub(super) fn submit(
        &mut self,
        buffers: &mut Option<(RequestBuffers, Overflow)>,
    ) -> Option<(u16, bool)> {
        buffers.as_ref()?;
        self.is_free_awaited |= self.free.is_empty();
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

    /// Takes back everything that the device has used. Returns the number of replies.
    ///
    /// # Errors
    /// [`Fault`] if the device returned a chain that it did not have, or claims an impossible
    /// length.
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

    /// The slot whose chain has this head.
    fn slot_of(&self, head: u32) -> Option<u16> {
        let head = u16::try_from(head).ok()?;
        match self.indirect {
            true => Some(head),
            false => (head % 4 == 0).then_some(head / 4),
        }
    }

    /// Takes the reply out of a slot and frees the slot; `None` while it is in flight.
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

    /// Whether the reply has come.
    pub(super) fn is_answered(&self, slot: u16) -> bool {
        let entry = self.slots.get(usize::from(slot));
        matches!(entry, Some(Slot::Answered { .. }))
    }

    /// Gives up the reply: the slot is freed when the device returns the request.
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

    /// Whether a slot has become free for which a thread waits. The next call says so only if one
    /// waits again.
    pub(super) fn take_freed(&mut self) -> bool {
        !self.free.is_empty() && std::mem::take(&mut self.is_free_awaited)
    }

    /// Asks to be notified of the next reply. Returns whether one has come meanwhile.
    pub(super) fn ask_for_notice(&self) -> bool {
        self.ring.ask_for_notice()
    }

    /// Asks for no notifications.
    pub(super) fn decline_notice(&self) {
        self.ring.decline_notice();
    }
}

/// Buffers for what does not fit in a slot.
#[derive(Debug)]
pub(super) struct Overflow {
    request: Option<Buffer>,
    reply: Option<Buffer>,
}

/// Room for a reply of `len` bytes behind its header.
pub(super) const fn room_for(len: usize) -> usize {
    size_of::<OutHeader>().saturating_add(len)
}

#[cfg(test)]
mod tests;
