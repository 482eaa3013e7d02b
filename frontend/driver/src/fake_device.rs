//! A device for tests, on the same memory as the driver: it can follow the rules and break them.

use std::sync::Arc;

use gangplank_vhost_user::client::RingAddresses;

use super::memory::Memory;
use super::ring::{DESCRIPTOR_LEN, Segment};

/// The device's side of one ring.
#[derive(Debug)]
pub(super) struct FakeDevice {
    memory: Arc<Memory>,
    addresses: RingAddresses,
    size: u16,
    taken: u16,
    used: u16,
}

impl FakeDevice {
    pub(super) fn new(memory: &Arc<Memory>, addresses: RingAddresses, size: u16) -> Self {
        Self {
            memory: Arc::clone(memory),
            addresses,
            size,
            taken: 0,
            used: 0,
        }
    }

    /// The next available chain: its head and segments.
    pub(super) fn take(&mut self) -> Option<(u16, Vec<Segment>)> {
        let available: u16 = self.memory.load(self.addresses.available + 2);
        if available == self.taken {
            return None;
        }
        let entry = u64::from(self.taken % self.size);
        let head: u16 = self.memory.load(self.addresses.available + 4 + 2 * entry);
        self.taken = self.taken.wrapping_add(1);
        // Asks to be kicked for the next chain.
        self.want_kick_at(self.taken);
        Some((head, self.chain(self.addresses.descriptors, head)))
    }

    fn chain(&self, table: u64, first: u16) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut at = first;
        loop {
            let place = table + u64::from(at) * DESCRIPTOR_LEN as u64;
            let address: u64 = self.memory.load(place);
            let len: u32 = self.memory.load(place + 8);
            let flags: u16 = self.memory.load(place + 12);
            if flags & 4 != 0 {
                return self.chain(address, 0);
            }
            segments.push(Segment {
                address,
                len,
                writable: flags & 2 != 0,
            });
            if flags & 1 == 0 {
                return segments;
            }
            at = self.memory.load(place + 14);
        }
    }

    /// Returns a chain, or claims to.
    pub(super) fn give_back(&mut self, head: u32, len: u32) {
        let at = self.addresses.used + 4 + 8 * u64::from(self.used % self.size);
        self.memory.store(at, head);
        self.memory.store(at + 4, len);
        self.claim(1);
    }

    /// Moves the used index on, whatever is in the ring.
    pub(super) fn claim(&mut self, by: u16) {
        self.used = self.used.wrapping_add(by);
        self.memory.store(self.addresses.used + 2, self.used);
    }

    /// Asks to be kicked when the available index passes `at`.
    pub(super) fn want_kick_at(&mut self, at: u16) {
        let event = self.addresses.used + 4 + 8 * u64::from(self.size);
        self.memory.store(event, at);
    }

    /// Asks to be kicked, or not, by flag.
    pub(super) fn want_kicks(&mut self, wanted: bool) {
        self.memory.store(self.addresses.used, u16::from(!wanted));
    }

    /// Whether the driver asks to be notified of the next chain.
    pub(super) fn wants_notice(&self, event_idx: bool) -> bool {
        if event_idx {
            let event = self.addresses.available + 4 + 2 * u64::from(self.size);
            self.memory.load::<u16>(event) == self.used
        } else {
            self.memory.load::<u16>(self.addresses.available) == 0
        }
    }

    /// Returns the bytes of the readable segments, concatenated.
    pub(super) fn request(&self, segments: &[Segment]) -> Vec<u8> {
        let readable = segments.iter().filter(|segment| !segment.writable);
        readable
            .flat_map(|segment| self.memory.read(segment.address, segment.len as usize))
            .collect()
    }

    /// Writes `bytes` into the writable segments, as much as fits.
    pub(super) fn answer(&self, segments: &[Segment], mut bytes: &[u8]) {
        for segment in segments.iter().filter(|segment| segment.writable) {
            let (now, later) = bytes.split_at(bytes.len().min(segment.len as usize));
            self.memory.write(segment.address, now);
            bytes = later;
        }
    }
}
