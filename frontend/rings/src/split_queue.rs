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
pub(crate) mod tests {
    use super::*;
    use crate::memory::tests::Bytes;

    /// Addresses of the parts of a [`Driver`]'s ring.
    const DESCRIPTORS: u64 = 0;
    const AVAILABLE: u64 = 0x1000;
    const USED: u64 = 0x2000;

    /// A guest's driver on a ring in memory of its own.
    pub(crate) struct Driver {
        pub(crate) memory: Bytes,
        size: u16,
        available: u16,
    }

    impl Driver {
        pub(crate) fn new(size: u16) -> Self {
            Self {
                memory: Bytes::new(0x1_0000),
                size,
                available: 0,
            }
        }

        pub(crate) fn queue(&self, event_idx: bool) -> SplitQueue<'_> {
            let addresses = Addresses {
                descriptors: DESCRIPTORS,
                used: USED,
                available: AVAILABLE,
            };
            SplitQueue::new(&self.memory, addresses, self.size, event_idx).unwrap()
        }

        pub(crate) fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&next.to_le_bytes());
            self.memory.write(at, &bytes).unwrap();
        }

        /// Makes a chain at `head` of a request, and of room for a reply of 16 bytes if `has_room`.
        pub(crate) fn request(&self, head: u16, request: &[u8], has_room: bool) {
            let table = DESCRIPTORS + u64::from(head) * 16;
            let at = 0x4000 + u64::from(head) * 0x100;
            self.memory.write(at, request).unwrap();
            self.memory.write(at + 0x80, &[0; 16]).unwrap();
            let len = u32::try_from(request.len()).unwrap();
            match has_room {
                true => {
                    self.descriptor(table, at + 0xc0, 32, INDIRECT, 0);
                    self.descriptor(at + 0xc0, at, len, NEXT, 1);
                    self.descriptor(at + 0xd0, at + 0x80, 16, WRITE, 0);
                }
                false => self.descriptor(table, at, len, 0, 0),
            }
        }

        pub(crate) fn reply(&self, head: u16) -> [u8; 16] {
            let mut reply = [0; 16];
            let at = 0x4080 + u64::from(head) * 0x100;
            self.memory.read(at, &mut reply).unwrap();
            reply
        }

        pub(crate) fn set_reply(&self, head: u16, reply: &[u8; 16]) {
            let at = 0x4080 + u64::from(head) * 0x100;
            self.memory.write(at, reply).unwrap();
        }

        pub(crate) fn offer(&mut self, head: u16) {
            let slot = u64::from(self.available % self.size);
            let at = AVAILABLE + 4 + slot * 2;
            self.memory.write(at, &head.to_le_bytes()).unwrap();
            self.available = self.available.wrapping_add(1);
            self.memory
                .write(AVAILABLE + 2, &self.available.to_le_bytes())
                .unwrap();
        }

        /// Head and length of used entry `index`.
        pub(crate) fn used(&self, index: u16) -> (u32, u32) {
            let mut element = [0; 8];
            let at = USED + 4 + u64::from(index % self.size) * 8;
            self.memory.read(at, &mut element).unwrap();
            let [a, b, c, d, e, f, g, h] = element;
            (
                u32::from_le_bytes([a, b, c, d]),
                u32::from_le_bytes([e, f, g, h]),
            )
        }
    }

    #[test]
    fn chain_is_read_and_written_where_its_descriptors_say() {
        let mut driver = Driver::new(8);
        driver.request(3, b"request", true);
        driver.offer(3);
        let queue = driver.queue(true);
        assert_eq!(queue.waiting(0).unwrap(), 1);
        let head = queue.available_head(0).unwrap();
        let chain = queue.chain(head).unwrap();
        assert_eq!(
            &chain.read::<7>(&driver.memory).unwrap().unwrap(),
            b"request"
        );
        assert!(chain.read::<8>(&driver.memory).unwrap().is_none());
        assert!(chain.peek::<17>(&driver.memory).unwrap().is_none());
        assert!(!chain.write_at(&driver.memory, 0, &[1; 17]).unwrap());
        assert!(chain.write_at(&driver.memory, 0, &[1; 16]).unwrap());
        assert_eq!(driver.reply(3), [1; 16]);
        assert_eq!(chain.peek(&driver.memory).unwrap(), Some([1; 16]));
        queue.complete(head, 16).unwrap();
        assert_eq!((queue.used_index().unwrap(), driver.used(0)), (1, (3, 16)));
        assert_eq!(queue.used_head(0).unwrap(), 3);
    }

    #[test]
    fn kicks_are_asked_for_as_the_driver_wants_to_be_asked() {
        let driver = Driver::new(8);
        driver.memory.write(USED, &[1, 0]).unwrap();
        driver.queue(true).ask_for_kick(0x102).unwrap();
        let event = driver.memory.read_u16(USED + 4 + 8 * 8).unwrap();
        assert_eq!((event, driver.memory.read_u16(USED).unwrap()), (0x102, 1));
        driver.queue(false).ask_for_kick(0).unwrap();
        assert_eq!(driver.memory.read_u16(USED).unwrap(), 0);
    }

    #[test]
    fn drivers_that_break_the_rules_are_errors() {
        let mut driver = Driver::new(4);
        for _ in 0..5 {
            driver.offer(0);
        }
        assert!(matches!(
            driver.queue(true).waiting(0),
            Err(QueueError::Overrun(1))
        ));
        let chain = |driver: &Driver, head| driver.queue(true).chain(head);
        assert!(matches!(chain(&driver, 4), Err(QueueError::Chain)));
        // A circle; out of the table; a table in a table; a table without an entry; a table at the
        // end of the address space.
        driver.descriptor(0, 0x4000, 1, NEXT, 0);
        assert!(matches!(chain(&driver, 0), Err(QueueError::Chain)));
        driver.descriptor(0, 0x4000, 1, NEXT, 9);
        assert!(matches!(chain(&driver, 0), Err(QueueError::Chain)));
        driver.descriptor(0, 0x4000, 16, INDIRECT, 0);
        driver.descriptor(0x4000, 0x4000, 16, INDIRECT, 0);
        assert!(matches!(chain(&driver, 0), Err(QueueError::Chain)));
        driver.descriptor(0, 0x4000, 15, INDIRECT, 0);
        assert!(matches!(chain(&driver, 0), Err(QueueError::Chain)));
        driver.descriptor(0, u64::MAX, 16, INDIRECT, 0);
        assert!(matches!(chain(&driver, 0), Err(QueueError::Chain)));
        driver.descriptor(0, 0x1_0000, 16, INDIRECT, 0);
        assert!(matches!(chain(&driver, 0), Err(QueueError::Memory(_))));
        driver.descriptor(0, u64::MAX, 16, 0, 0);
        let chain = chain(&driver, 0).unwrap();
        assert!(chain.read::<8>(&driver.memory).is_err());
    }

    #[test]
    fn a_taken_chain_is_copied_at_any_offset_and_given_back_once() {
        let mut driver = Driver::new(8);
        let request: Vec<u8> = (0..56).collect();
        driver.request(3, &request, true);
        driver.offer(3);
        let queue = driver.queue(true);
        let mut base = 0;
        let (head, chain) = queue.take(&mut base).unwrap().unwrap();
        assert_eq!((head, base), (3, 1));
        assert_eq!((chain.readable_len(), chain.writable_len()), (56, 16));
        let mut part = [0; 10];
        assert!(chain.read_at(&driver.memory, 46, &mut part).unwrap());
        assert_eq!(part.as_slice(), request.get(46..).unwrap());
        assert!(!chain.read_at(&driver.memory, 47, &mut part).unwrap());
        assert!(chain.write_at(&driver.memory, 4, &[7; 12]).unwrap());
        assert!(!chain.write_at(&driver.memory, 5, &[8; 12]).unwrap());
        assert_eq!(driver.reply(3)[4..], [7; 12]);
        // The driver's used event is 0: it asks for a signal of the first chain alone.
        assert!(queue.give_back(3, 16).unwrap());
        assert!(!queue.give_back(3, 16).unwrap());
        assert_eq!(driver.used(0), (3, 16));
        assert!(queue.take(&mut base).unwrap().is_none());
    }
}
