//! A split virtqueue from the device's side, read and written a few bytes at a time (virtio 1.2,
//! 2.7).
//!
//! It is not made for speed. A frontend works on a ring when a daemon is replaced or lost, and the
//! tunnel over DVK always, where each request takes several messages over a network.

use std::io;
use std::sync::atomic::{Ordering, fence};

use rustix::io::Errno;

use crate::memory::Memory;

/// Descriptor flag: the chain continues at `next` (`VIRTQ_DESC_F_NEXT`).
const NEXT: u16 = 1;

/// Descriptor flag: the device writes to the buffer (`VIRTQ_DESC_F_WRITE`).
const WRITE: u16 = 2;

/// Descriptor flag: the buffer is a table of descriptors (`VIRTQ_DESC_F_INDIRECT`).
const INDIRECT: u16 = 4;

/// Flag of the available ring: the driver wants no signals (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
const NO_INTERRUPT: u16 = 1;

/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u64 = 16;

/// Bytes of an element of the used ring.
const USED_LEN: u64 = 8;

/// Why a ring cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// It lies where the guest has no memory, or the memory's file cannot be read or written.
    #[error("the guest's memory cannot be read or written")]
    Memory(#[from] io::Error),
    /// The available index is too far ahead.
    #[error("its driver offers {0} buffers more than the ring holds")]
    Overrun(u16),
    /// A chain does not end, or leaves the table.
    #[error("its driver offers a chain of descriptors that does not end or leaves its table")]
    Chain,
}

/// The guest physical addresses of a ring's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
}

/// A ring on which no other process works at the device's side.
#[derive(Clone, Copy, Debug)]
pub struct SplitQueue<'a> {
    memory: &'a dyn Memory,
    addresses: Addresses,
    size: u16,
    event_idx: bool,
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    address: u64,
    len: u32,
}

/// A chain of descriptors: buffers that the device reads, and buffers that it writes.
#[derive(Debug, Default)]
pub struct Chain {
    readable: Vec<Piece>,
    writable: Vec<Piece>,
}

impl<'a> SplitQueue<'a> {
    /// The ring of `size` entries at `addresses`; None if it has no entry. `event_idx` is whether
    /// its driver has accepted VIRTIO_F_EVENT_IDX.
    pub fn new(
        memory: &'a dyn Memory,
        addresses: Addresses,
        size: u16,
        event_idx: bool,
    ) -> Option<Self> {
        (size > 0).then_some(Self {
            memory,
            addresses,
            size,
            event_idx,
        })
    }

    /// Its entries.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    pub(crate) const fn memory(&self) -> &'a dyn Memory {
        self.memory
    }

    /// The available index: behind the last entry that the driver made available.
    pub(crate) fn available_index(&self) -> Result<u16, QueueError> {
        let index = self.memory.read_u16(self.addresses.available + 2)?;
        // The entries are read after the index.
        fence(Ordering::Acquire);
        Ok(index)
    }

    /// The used index: behind the last entry that the device has used.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn used_index(&self) -> Result<u16, QueueError> {
        Ok(self.memory.read_u16(self.addresses.used + 2)?)
    }

    /// Head of the chain in available entry `index`.
    pub(crate) fn available_head(&self, index: u16) -> Result<u16, QueueError> {
        let slot = u64::from(index % self.size);
        let at = self.addresses.available + 4 + slot * 2;
        Ok(self.memory.read_u16(at)?)
    }

    /// Head of the chain in used entry `index`.
    pub(crate) fn used_head(&self, index: u16) -> Result<u16, QueueError> {
        Ok(self.memory.read_u16(self.used_at(index))?)
    }

    /// Available entries from `index` on.
    ///
    /// # Errors
    /// The driver offers more than the ring holds, or the memory cannot be read.
    pub fn waiting(&self, index: u16) -> Result<u16, QueueError> {
        let waiting = self.available_index()?.wrapping_sub(index);
        match waiting.checked_sub(self.size) {
            None | Some(0) => Ok(waiting),
            Some(beyond) => Err(QueueError::Overrun(beyond)),
        }
    }

    /// Adds a chain to the used ring, with `len` bytes written into it.
    pub(crate) fn complete(&self, head: u16, len: u32) -> Result<(), QueueError> {
        let index = self.used_index()?;
        let mut element = u32::from(head).to_le_bytes().to_vec();
        element.extend_from_slice(&len.to_le_bytes());
        self.memory.write(self.used_at(index), &element)?;
        // The driver sees the element before the index.
        fence(Ordering::Release);
        let next = index.wrapping_add(1).to_le_bytes();
        Ok(self.memory.write(self.addresses.used + 2, &next)?)
    }

    /// Takes the chain in available entry `base`, with its head, and moves `base` on. If there is
    /// none, asks the driver to kick for the next.
    ///
    /// # Errors
    /// The driver breaks the ring's rules, or the guest's memory cannot be read or written.
    pub fn take(&self, base: &mut u16) -> Result<Option<(u16, Chain)>, QueueError> {
        if self.waiting(*base)? == 0 {
            self.ask_for_kick(*base)?;
            if self.waiting(*base)? == 0 {
                return Ok(None);
            }
        }
        let head = self.available_head(*base)?;
        let chain = self.chain(head)?;
        *base = base.wrapping_add(1);
        Ok(Some((head, chain)))
    }

    /// Adds a chain to the used ring, with `len` bytes written into it. Returns whether the driver
    /// asks for a signal.
    ///
    /// # Errors
    /// The guest's memory cannot be read or written.
    pub fn give_back(&self, head: u16, len: u32) -> Result<bool, QueueError> {
        let index = self.used_index()?;
        self.complete(head, len)?;
        // The driver asks for signals before it looks at the used index for the last time.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.addresses.available + 4 + u64::from(self.size) * 2;
            return Ok(self.memory.read_u16(event)? == index);
        }
        Ok(self.memory.read_u16(self.addresses.available)? & NO_INTERRUPT == 0)
    }

    /// Asks the driver to kick when it makes entry `index` available. The caller then has to look
    /// for entries that came meanwhile.
    pub(crate) fn ask_for_kick(&self, index: u16) -> Result<(), QueueError> {
        if self.event_idx {
            let event = self.addresses.used + 4 + u64::from(self.size) * USED_LEN;
            self.memory.write(event, &index.to_le_bytes())?;
        } else {
            // The lost daemon may have disabled kicks (`VIRTQ_USED_F_NO_NOTIFY`).
            self.memory.write(self.addresses.used, &[0, 0])?;
        }
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn used_at(&self, index: u16) -> u64 {
        self.addresses.used + 4 + u64::from(index % self.size) * USED_LEN
    }

    /// Follows the chain from `head` on.
    ///
    /// # Errors
    /// The driver breaks the ring's rules, or the guest's memory cannot be read.
    pub fn chain(&self, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain::default();
        let (mut table, mut entries) = (self.addresses.descriptors, u64::from(self.size));
        let mut next = u64::from(head);
        let mut is_indirect = false;
        // A chain without a circle is not longer than its table.
        let mut left = entries;
        loop {
            if next >= entries || left == 0 {
                return Err(QueueError::Chain);
            }
            left -= 1;
            let mut bytes = [0; 16];
            self.memory
                .read(table + next * DESCRIPTOR_LEN, &mut bytes)?;
            let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
            let piece = Piece {
                address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                len: u32::from_le_bytes([l0, l1, l2, l3]),
            };
            let flags = u16::from_le_bytes([f0, f1]);
            if flags & INDIRECT != 0 {
                entries = u64::from(piece.len) / DESCRIPTOR_LEN;
                if is_indirect || entries > u64::from(u16::MAX) {
                    return Err(QueueError::Chain);
                }
                // The addresses of its descriptors must not overflow.
                let end = piece.address.checked_add(u64::from(piece.len));
                end.ok_or(QueueError::Chain)?;
                (table, next, left, is_indirect) = (piece.address, 0, entries, true);
                continue;
            }
            match flags & WRITE {
                0 => chain.readable.push(piece),
                _ => chain.writable.push(piece),
            }
            if flags & NEXT == 0 {
                return Ok(chain);
            }
            next = u64::from(u16::from_le_bytes([n0, n1]));
        }
    }
}

impl Chain {
    /// The pieces of its buffers.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// Bytes that the device reads.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// Fills `bytes` from offset `from` of what the device reads. Returns whether there was enough.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn read_at(&self, memory: &dyn Memory, from: u64, bytes: &mut [u8]) -> io::Result<bool> {
        let pieces = behind(&self.readable, from);
        let wanted = bytes.len();
        let filled = walk(&pieces, wanted, |address, from, len| {
            memory.read(address, bytes.get_mut(from..from + len).unwrap_or_default())
        })?;
        Ok(filled == wanted)
    }

    /// Writes `bytes` at offset `from` of what the device writes. Returns whether there was room;
    /// without, nothing is written.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn write_at(&self, memory: &dyn Memory, from: u64, bytes: &[u8]) -> io::Result<bool> {
        let pieces = behind(&self.writable, from);
        if total(&pieces) < u64::try_from(bytes.len()).unwrap_or(u64::MAX) {
            return Ok(false);
        }
        walk(&pieces, bytes.len(), |address, from, len| {
            memory.write(address, bytes.get(from..from + len).unwrap_or_default())
        })?;
        Ok(true)
    }

    /// The first `N` bytes that the device reads; None if there are fewer.
    pub(crate) fn read<const N: usize>(&self, memory: &dyn Memory) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        let filled = walk(&self.readable, N, |address, from, len| {
            let part = bytes.get_mut(from..from + len).unwrap_or_default();
            memory.read(address, part)
        })?;
        Ok((filled == N).then_some(bytes))
    }

    /// The first `N` bytes that the device writes, as they are now; None if there are fewer.
    pub(crate) fn peek<const N: usize>(&self, memory: &dyn Memory) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        let filled = walk(&self.writable, N, |address, from, len| {
            let part = bytes.get_mut(from..from + len).unwrap_or_default();
            memory.read(address, part)
        })?;
        Ok((filled == N).then_some(bytes))
    }
}

/// Bytes of all pieces.
fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

/// What of `pieces` follows their first `skip` bytes.
fn behind(pieces: &[Piece], skip: u64) -> Vec<Piece> {
    let mut left = skip;
    let rest = pieces.iter().filter_map(|piece| {
        let skipped = left.min(u64::from(piece.len));
        left -= skipped;
        let skipped_len = u32::try_from(skipped).ok()?;
        (skipped_len < piece.len).then_some(Piece {
            // A piece that wraps around is refused when it is reached.
            address: piece.address.saturating_add(skipped),
            len: piece.len - skipped_len,
        })
    });
    rest.collect()
}

/// Calls `each` with address, offset and length of each piece's part, up to `wanted` bytes in all.
/// Returns how many bytes there were.
fn walk(
    pieces: &[Piece],
    wanted: usize,
    mut each: impl FnMut(u64, usize, usize) -> io::Result<()>,
) -> io::Result<usize> {
    let mut done = 0;
    for piece in pieces {
        if done == wanted {
            break;
        }
        let len = usize::try_from(piece.len)
            .unwrap_or(usize::MAX)
            .min(wanted - done);
        if piece.address.checked_add(u64::from(piece.len)).is_none() {
            return Err(Errno::FAULT.into());
        }
        each(piece.address, done, len)?;
        done += len;
    }
    Ok(done)
}

#[cfg(test)]
pub(crate) mod tests;
