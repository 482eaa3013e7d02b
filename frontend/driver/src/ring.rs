//! The driver's side of a split virtqueue (virtio 1.2, 2.7).
//!
//! The daemon can rewrite all memory that it shares, so the driver keeps a private copy of what it
//! relies on: the number of chains in flight, and the next entry to read. The driver reads three
//! things from shared memory: the used index, and the head and length of each used chain. This
//! module checks the index, and the owner of the chains checks head and length.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use gangplank_vhost_user::client::RingAddresses;
use vm_memory::AtomicAccess;

use super::error::{Fault, Result};
use super::memory::Memory;

/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: usize = 16;

/// Alignment of a ring's three parts in bytes: a cache line, so that what the driver writes and
/// what the device writes share none. The specification asks for 16, 2 and 4.
const PART_ALIGNMENT: usize = 64;

/// A further descriptor follows (`VIRTQ_DESC_F_NEXT`).
const NEXT: u16 = 1;
/// The device writes (`VIRTQ_DESC_F_WRITE`).
const WRITE: u16 = 2;
/// It is a table of descriptors (`VIRTQ_DESC_F_INDIRECT`).
const INDIRECT: u16 = 4;

/// Flag of the available ring: do not notify (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: do not kick (`VIRTQ_USED_F_NO_NOTIFY`).
const NO_NOTIFY: u16 = 1;

/// A piece of memory in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub address: u64,
    /// Length, in bytes.
    pub len: u32,
    /// Whether the device writes it; otherwise the device reads it.
    pub writable: bool,
}

/// A chain that the device has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's head, by the device: any number.
    pub head: u32,
    /// The bytes written, by the device: any number.
    pub len: u32,
}

/// Memory that a ring's driver shares with its device. Addresses are the guest's.
pub trait RingMemory {
    /// Copies `bytes` to `address`.
    fn write(&self, address: u64, bytes: &[u8]);

    /// Stores a number after everything that was written before it (release). `address` is aligned
    /// to the number's size.
    fn store<T: AtomicAccess>(&self, address: u64, value: T);

    /// Loads a number before everything that is read after it (acquire). `address` is aligned to
    /// the number's size.
    fn load<T: AtomicAccess>(&self, address: u64) -> T;
}

impl RingMemory for Arc<Memory> {
    fn write(&self, address: u64, bytes: &[u8]) {
        Memory::write(self, address, bytes);
    }

    fn store<T: AtomicAccess>(&self, address: u64, value: T) {
        Memory::store(self, address, value);
    }

    fn load<T: AtomicAccess>(&self, address: u64) -> T {
        Memory::load(self, address)
    }
}

/// One ring.
#[derive(Debug)]
pub struct Ring<M> {
    memory: M,
    index: usize,
    size: u16,
    event_idx: bool,
    addresses: RingAddresses,
    /// Chains made available so far, modulo 2^16.
    available: u16,
    /// Those for which [`Ring::needs_kick`] was asked, modulo 2^16.
    announced: u16,
    /// Chains taken back so far, modulo 2^16.
    used: u16,
}

impl Ring<Arc<Memory>> {
    /// An empty ring of `size` descriptors, a power of two.
    ///
    /// # Errors
    /// The memory has no room.
    pub(super) fn new(
        memory: &Arc<Memory>,
        index: usize,
        size: u16,
        event_idx: bool,
    ) -> Result<Self> {
        let address = memory.allocate(ring_len(size))?;
        Ok(Self::at(
            Arc::clone(memory),
            address,
            index,
            size,
            event_idx,
        ))
    }
}

/// Bytes that a ring of `size` descriptors takes.
#[must_use]
pub fn ring_len(size: u16) -> usize {
    let (available, used) = parts(size);
    available + used + 6 + 8 * usize::from(size)
}

/// Bytes of the descriptor table and of the available ring.
fn parts(size: u16) -> (usize, usize) {
    let entries = usize::from(size);
    let descriptors = (entries * DESCRIPTOR_LEN).next_multiple_of(PART_ALIGNMENT);
    (
        descriptors,
        (6 + 2 * entries).next_multiple_of(PART_ALIGNMENT),
    )
}

impl<M: RingMemory> Ring<M> {
    /// An empty ring of `size` descriptors, a power of two, in the [`ring_len`] bytes at `address`,
    /// a multiple of 64. `index` is the queue's number in errors.
    pub fn at(memory: M, address: u64, index: usize, size: u16, event_idx: bool) -> Self {
        memory.write(address, &vec![0; ring_len(size)]);
        let (descriptors, available) = parts(size);
        let addresses = RingAddresses {
            descriptors: address,
            available: address + descriptors as u64,
            used: address + (descriptors + available) as u64,
        };
        Self {
            memory,
            index,
            size,
            event_idx,
            addresses,
            available: 0,
            announced: 0,
            used: 0,
        }
    }

    /// The ring's addresses, for the device.
    pub const fn addresses(&self) -> RingAddresses {
        self.addresses
    }

    /// Number of descriptors.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Chains that the device has.
    pub const fn in_flight(&self) -> u16 {
        self.available.wrapping_sub(self.used)
    }

    /// Writes a chain into the ring's own table, from descriptor `first` on.
    pub fn chain(&self, first: u16, segments: &[Segment]) {
        let table = self.addresses.descriptors;
        write_chain(&self.memory, table, first, segments);
    }

    /// Writes a chain into a table at `table`, and the table into descriptor `head`.
    pub fn indirect_chain(&self, head: u16, table: u64, segments: &[Segment]) {
        write_chain(&self.memory, table, 0, segments);
        let len = u32::try_from(segments.len() * DESCRIPTOR_LEN).unwrap_or(u32::MAX);
        let at = self.addresses.descriptors + u64::from(head) * DESCRIPTOR_LEN as u64;
        let bytes = descriptor(table, len, INDIRECT, 0);
        self.memory.write(at, &bytes);
    }

    /// Makes the chain at `head` available. Returns whether the device asks to be kicked.
    pub(super) fn publish(&mut self, head: u16) -> bool {
        self.offer(head);
        self.needs_kick()
    }

    /// Makes the chain at `head` available. The caller asks for [`Ring::needs_kick`] after the last
    /// of several.
    pub fn offer(&mut self, head: u16) {
        let entry = u64::from(self.available % self.size);
        let base = self.addresses.available;
        self.memory.store(base + 4 + 2 * entry, head);
        self.available = self.available.wrapping_add(1);
        self.memory.store(base + 2, self.available);
    }

    /// Whether the device asks to be kicked for the chains made available since the last call.
    pub fn needs_kick(&mut self) -> bool {
        let old = std::mem::replace(&mut self.announced, self.available);
        if old == self.available {
            return false;
        }
        // The index must be visible before the driver reads what the device asks for (virtio 1.2,
        // 2.7.10).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event: u16 = self.memory.load(self.available_event());
            passes(event, self.available, old)
        } else {
            let flags: u16 = self.memory.load(self.addresses.used);
            flags & NO_NOTIFY == 0
        }
    }

    /// The next chain that the device has returned.
    ///
    /// # Errors
    /// [`Fault::UsedIndex`] if the device claims more chains than are in flight.
    pub fn take_used(&mut self) -> std::result::Result<Option<Used>, Fault> {
        let claimed = self.claimed();
        let in_flight = self.in_flight();
        if claimed > in_flight {
            return Err(Fault::UsedIndex {
                queue: self.index,
                claimed,
                in_flight,
            });
        }
        if claimed == 0 {
            return Ok(None);
        }
        let entry = u64::from(self.used % self.size);
        let at = self.addresses.used + 4 + 8 * entry;
        self.used = self.used.wrapping_add(1);
        Ok(Some(Used {
            head: self.memory.load(at),
            len: self.memory.load(at + 4),
        }))
    }

    /// Asks to be notified of the next used chain. Returns whether a chain came before the request
    /// was visible, possibly without a notification.
    pub fn ask_for_notice(&self) -> bool {
        if self.event_idx {
            self.memory.store(self.used_event(), self.used);
        } else {
            self.memory.store(self.addresses.available, 0_u16);
        }
        // The request must be visible before the driver checks whether it came too late.
        fence(Ordering::SeqCst);
        self.claimed() != 0
    }

    /// Asks for no notifications. With event indices there is nothing to do: each request is for
    /// one notification.
    pub fn decline_notice(&self) {
        if !self.event_idx {
            self.memory.store(self.addresses.available, NO_INTERRUPT);
        }
    }

    /// Whether [`Ring::take_used`] would return a chain or an error.
    pub fn has_used(&self) -> bool {
        self.claimed() != 0
    }

    /// Chains that the device claims to have returned beyond those taken.
    fn claimed(&self) -> u16 {
        let index: u16 = self.memory.load(self.addresses.used + 2);
        index.wrapping_sub(self.used)
    }

    /// Address of the used index at which the driver wants a notification.
    fn used_event(&self) -> u64 {
        self.addresses.available + 4 + 2 * u64::from(self.size)
    }

    /// Address of the available index at which the device wants a kick.
    fn available_event(&self) -> u64 {
        self.addresses.used + 4 + 8 * u64::from(self.size)
    }
}

/// Whether the step from `old` to `new` passes `event` (virtio 1.2, 2.7.7.1).
const fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn write_chain(memory: &impl RingMemory, table: u64, first: u16, segments: &[Segment]) {
    let last = segments.len().saturating_sub(1);
    for (number, (segment, at)) in segments.iter().zip(first..).enumerate() {
        let more = if number < last { NEXT } else { 0 };
        let flags = more | if segment.writable { WRITE } else { 0 };
        let bytes = descriptor(segment.address, segment.len, flags, at.wrapping_add(1));
        memory.write(table + u64::from(at) * DESCRIPTOR_LEN as u64, &bytes);
    }
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; DESCRIPTOR_LEN] {
    let number = u128::from(address)
        | u128::from(len) << 64
        | u128::from(flags) << 96
        | u128::from(next) << 112;
    number.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_device::FakeDevice;

    fn ring(size: u16, event_idx: bool) -> (Ring<Arc<Memory>>, FakeDevice) {
        let memory = Arc::new(Memory::new(1 << 20).unwrap());
        let ring = Ring::new(&memory, 1, size, event_idx).unwrap();
        let device = FakeDevice::new(&memory, ring.addresses(), size);
        (ring, device)
    }

    #[test]
    fn chains_come_out_of_both_kinds_of_table_as_they_went_in() {
        let (mut ring, mut device) = ring(8, false);
        let table = ring.memory.allocate(256).unwrap();
        let segments = [
            Segment {
                address: table,
                len: 40,
                writable: false,
            },
            Segment {
                address: table + 64,
                len: 16,
                writable: true,
            },
        ];
        ring.chain(4, &segments);
        ring.publish(4);
        ring.indirect_chain(1, table, &segments);
        ring.publish(1);
        assert_eq!(device.take(), Some((4, segments.to_vec())));
        assert_eq!(device.take(), Some((1, segments.to_vec())));
        assert_eq!(device.take(), None);
    }

    #[test]
    fn chains_come_back_in_the_devices_order_across_the_wrap() {
        let (mut ring, mut device) = ring(4, true);
        for round in 0..70_000_u32 {
            for head in 0..2 {
                ring.publish(head);
            }
            let (first, second) = (device.take().unwrap().0, device.take().unwrap().0);
            device.give_back(u32::from(second), round);
            device.give_back(u32::from(first), round + 1);
            assert_eq!(
                ring.take_used(),
                Ok(Some(Used {
                    head: 1,
                    len: round
                }))
            );
            assert_eq!(
                ring.take_used(),
                Ok(Some(Used {
                    head: 0,
                    len: round + 1
                }))
            );
            assert_eq!((ring.take_used(), ring.in_flight()), (Ok(None), 0));
        }
    }

    #[test]
    fn a_used_index_beyond_what_is_out_is_a_fault() {
        for claim in [2, 1000, u16::MAX] {
            let (mut ring, mut device) = ring(8, true);
            ring.publish(0);
            device.claim(claim);
            assert_eq!(
                ring.take_used(),
                Err(Fault::UsedIndex {
                    queue: 1,
                    claimed: claim,
                    in_flight: 1
                })
            );
        }
    }

    #[test]
    fn kicks_are_spared_as_the_device_asks() {
        let (mut by_index, mut device) = ring(8, true);
        assert!(by_index.publish(0), "the device waits for the first");
        device.want_kick_at(2);
        assert!(!by_index.publish(1));
        assert!(by_index.publish(2));
        assert!(!by_index.publish(3));
        let (mut by_flag, mut device) = ring(8, false);
        assert!(by_flag.publish(0));
        device.want_kicks(false);
        assert!(!by_flag.publish(1));
    }

    #[test]
    fn what_came_back_before_notice_was_asked_for_is_seen() {
        for event_idx in [false, true] {
            let (mut ring, mut device) = ring(8, event_idx);
            ring.decline_notice();
            assert!(!device.wants_notice(event_idx) || event_idx);
            assert!(!ring.ask_for_notice());
            assert!(device.wants_notice(event_idx));
            ring.publish(0);
            device.give_back(0, 0);
            assert!(ring.ask_for_notice());
        }
    }
}
