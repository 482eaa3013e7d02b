//! A driver on a ring, and what a device finds there.

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
