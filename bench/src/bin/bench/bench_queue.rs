//! The driver's side of one split virtqueue (virtio 1.2, 2.7) for measurements: chains are written
//! before the time is taken, and making one available or taking one back allocates nothing.
//!
//! The ring of `gangplank-driver` would slow what is measured. Its `publish` ends with a full
//! memory fence and a look at the daemon's event index for each chain, where [`BenchQueue::kick`]
//! does both once for all chains since the last kick, as Linux does. Its memory is an allocator of
//! whole pages behind a lock, and its public interface ([`gangplank_driver::FuseSession`]) adds a
//! lock, a slot and a wake-up to each request. The reference workload `virtio-fs` of `--rhostfs`
//! measures that driver.

use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, ensure};
use gangplank_vhost_user::client::{RingAddresses, RingSetup};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::Memory;

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR_LEN: usize = 16;

/// `VIRTQ_DESC_F_NEXT`.
const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
const INDIRECT: u16 = 4;

/// A piece of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Offset in the memory.
    pub(crate) offset: usize,
    /// Length in bytes.
    pub(crate) len: usize,
    /// Whether the device writes it.
    pub(crate) writable: bool,
}

/// One queue.
pub(crate) struct BenchQueue {
    index: usize,
    size: u16,
    kick: EventFd,
    call: EventFd,
    descriptors: usize,
    available: usize,
    used: usize,
    /// Chains made available so far, modulo 2^16, and how many of those a kick was considered for.
    published: u16,
    announced: u16,
    /// Chains taken back so far, modulo 2^16.
    seen: u16,
}

impl BenchQueue {
    /// A fresh ring of `size` descriptors.
    pub(crate) fn new(memory: &mut Memory, index: usize, size: u16) -> Result<Self> {
        let entries = usize::from(size);
        let offset = |memory: &mut Memory, len: usize| -> Result<usize> {
            let offset = memory.take(len, 4096)?;
            memory.write(offset, &vec![0; len]);
            Ok(offset)
        };
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).context("making an eventfd");
        Ok(Self {
            index,
            size,
            kick: event()?,
            call: event()?,
            descriptors: offset(memory, DESCRIPTOR_LEN * entries)?,
            available: offset(memory, 6 + 2 * entries)?,
            used: offset(memory, 6 + 8 * entries)?,
            published: 0,
            announced: 0,
            seen: 0,
        })
    }

    /// The ring in the form that `SET_VRING_*` needs.
    pub(crate) fn setup(&self) -> RingSetup<'_> {
        RingSetup {
            index: self.index,
            size: self.size,
            addresses: RingAddresses {
                descriptors: Memory::address(self.descriptors),
                available: Memory::address(self.available),
                used: Memory::address(self.used),
            },
            base: 0,
            call: &self.call,
            kick: &self.kick,
            error: None,
        }
    }

    /// The descriptor by which the daemon notifies.
    pub(crate) const fn call(&self) -> &EventFd {
        &self.call
    }

    /// Writes a chain into an indirect table at `table`, and its head into the ring.
    pub(crate) fn put_chain(&self, memory: &Memory, head: u16, table: usize, segments: &[Segment]) {
        let last = segments.len().saturating_sub(1);
        for (at, segment) in segments.iter().enumerate() {
            let more = if at < last { NEXT } else { 0 };
            let flags = more | if segment.writable { WRITE } else { 0 };
            let next = u16::try_from(at + 1).unwrap_or_default();
            let bytes = descriptor(segment.offset, segment.len, flags, next);
            memory.write(table + at * DESCRIPTOR_LEN, &bytes);
        }
        let bytes = descriptor(table, segments.len() * DESCRIPTOR_LEN, INDIRECT, 0);
        let offset = self.descriptors + usize::from(head) * DESCRIPTOR_LEN;
        memory.write(offset, &bytes);
    }

    /// Makes the chain at `head` available, without a kick.
    pub(crate) fn publish(&mut self, memory: &Memory, head: u16) {
        let entry = usize::from(self.published % self.size);
        memory.store(self.available + 4 + 2 * entry, head);
        self.published = self.published.wrapping_add(1);
        memory.store(self.available + 2, self.published);
    }

    /// Kicks the daemon for the chains made available since the last call, unless its event index
    /// says that no kick is needed.
    pub(crate) fn kick(&mut self, memory: &Memory) -> Result<()> {
        let fresh = self.published.wrapping_sub(self.announced);
        if fresh == 0 {
            return Ok(());
        }
        self.announced = self.published;
        // The daemon must see the index before this thread reads the event index (virtio 1.2,
        // 2.7.10).
        fence(Ordering::SeqCst);
        let event: u16 = memory.load(self.used + 4 + 8 * usize::from(self.size));
        if self.published.wrapping_sub(event).wrapping_sub(1) < fresh {
            self.kick.write(1).context("kicking a queue")?;
        }
        Ok(())
    }

    /// The next chain that the daemon returned: its head, and the number of bytes written.
    pub(crate) fn take(&mut self, memory: &Memory) -> Result<Option<(u16, u32)>> {
        if memory.load::<u16>(self.used + 2) == self.seen {
            return Ok(None);
        }
        ensure!(
            self.seen != self.published,
            "the daemon returned more chains than it had"
        );
        let entry = self.used + 4 + 8 * usize::from(self.seen % self.size);
        let head: u32 = memory.load(entry);
        let len: u32 = memory.load(entry + 4);
        self.seen = self.seen.wrapping_add(1);
        let head = u16::try_from(head)
            .ok()
            .filter(|head| *head < self.size)
            .with_context(|| format!("the daemon returned a chain with the invalid head {head}"))?;
        Ok(Some((head, len)))
    }

    /// Asks for a notification of the next returned chain. Returns whether one was returned
    /// already.
    pub(crate) fn ask_for_notice(&self, memory: &Memory) -> bool {
        memory.store(self.available + 4 + 2 * usize::from(self.size), self.seen);
        // The daemon must see the event index before this thread reads the used index.
        fence(Ordering::SeqCst);
        self.has_come(memory)
    }

    /// Whether the daemon has returned a chain.
    pub(crate) fn has_come(&self, memory: &Memory) -> bool {
        memory.load::<u16>(self.used + 2) != self.seen
    }

    /// Chains that the daemon has not returned yet.
    pub(crate) const fn in_flight(&self) -> u16 {
        self.published.wrapping_sub(self.seen)
    }
}

fn descriptor(offset: usize, len: usize, flags: u16, next: u16) -> [u8; DESCRIPTOR_LEN] {
    let number = u128::from(Memory::address(offset))
        | (len as u128) << 64
        | u128::from(flags) << 96
        | u128::from(next) << 112;
    number.to_le_bytes()
}
