//! One queue of the measuring driver: the driver crate's ring, its eventfds, and chains that are laid
//! out before the time is taken. Making a chain available and taking one back allocates nothing, and
//! one look at the daemon's event index serves all chains since the last kick, as in Linux.

use anyhow::{Context, Result};
use gangplank_driver::ring::{Ring, Segment as RingSegment, Used, ring_len};
use gangplank_vhost_user::client::RingSetup;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::{Memory, RingMap};

pub(crate) use gangplank_driver::ring::DESCRIPTOR_LEN;

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
    ring: Ring<RingMap>,
    kick: EventFd,
    call: EventFd,
}

impl BenchQueue {
    /// A fresh ring of `size` descriptors.
    pub(crate) fn new(memory: &mut Memory, index: usize, size: u16) -> Result<Self> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).context("making an eventfd");
        let offset = memory.take(ring_len(size), 4096)?;
        Ok(Self {
            index,
            ring: Ring::at(
                memory.for_ring(),
                Memory::address(offset),
                index,
                size,
                true,
            ),
            kick: event()?,
            call: event()?,
        })
    }

    /// The ring in the form that `SET_VRING_*` needs.
    pub(crate) fn setup(&self) -> RingSetup<'_> {
        RingSetup {
            index: self.index,
            size: self.ring.size(),
            addresses: self.ring.addresses(),
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
    pub(crate) fn put_chain(&self, head: u16, table: usize, segments: &[Segment]) {
        let segments: Vec<RingSegment> = segments
            .iter()
            .map(|segment| RingSegment {
                address: Memory::address(segment.offset),
                len: u32::try_from(segment.len).expect("a segment is short"),
                writable: segment.writable,
            })
            .collect();
        self.ring
            .indirect_chain(head, Memory::address(table), &segments);
    }

    /// Makes the chain at `head` available, without a kick.
    pub(crate) fn publish(&mut self, head: u16) {
        self.ring.offer(head);
    }

    /// Kicks the daemon for the chains made available since the last call, unless its event index
    /// says that no kick is needed.
    pub(crate) fn kick(&mut self) -> Result<()> {
        if self.ring.needs_kick() {
            self.kick.write(1).context("kicking a queue")?;
        }
        Ok(())
    }

    /// The next chain that the daemon returned: its head, and the number of bytes written.
    pub(crate) fn take(&mut self) -> Result<Option<(u16, u32)>> {
        let Some(Used { head, len }) = self.ring.take_used().context("taking a chain back")? else {
            return Ok(None);
        };
        let head = u16::try_from(head)
            .ok()
            .filter(|head| *head < self.ring.size())
            .with_context(|| format!("the daemon returned a chain with the invalid head {head}"))?;
        Ok(Some((head, len)))
    }

    /// Asks for a notification of the next returned chain. Returns whether one was returned
    /// already.
    pub(crate) fn ask_for_notice(&self) -> bool {
        self.ring.ask_for_notice()
    }

    /// Whether the daemon has returned a chain.
    pub(crate) fn has_come(&self) -> bool {
        self.ring.has_used()
    }

    /// Chains that the daemon has not returned yet.
    pub(crate) const fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }
}
