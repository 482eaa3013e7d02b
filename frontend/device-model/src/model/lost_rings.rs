//! The rings of a driver whose backend is gone: no other process works on them.
//!
//! What the backend knew of the guest's files went with it, and the guest would wait for its
//! requests without end: its driver cannot even be unbound. So the requests get error replies,
//! until one opens a new session, which waits for the next backend. Those of a broken device get
//! error replies until the driver resets it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_rings::{
    Addresses, Memory, Progress, QueueError, Reclaimed, SessionOpening, SplitQueue,
    reclaim_inflight, refuse_likely_inflight, reply_errors, wait_until_stable,
};
use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::feature;
use rustix::io::Errno;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::hypervisor::{GuestMemory, GuestRange};
use crate::mmio::{Activation, EventFds};

/// Why the requests in the rings cannot be replied to.
#[derive(Debug, thiserror::Error)]
pub(super) enum LostError {
    /// The guest's memory cannot be reached.
    #[error("the guest's memory cannot be mapped")]
    Map(#[source] io::Error),
    /// The driver broke the ring's rules, or the memory is not where the ring says.
    #[error("queue {index} cannot be worked on")]
    Queue {
        /// The queue.
        index: u16,
        /// The cause.
        #[source]
        source: QueueError,
    },
    /// A wrong reply would break the guest's driver.
    #[error("queue {index} does not tell which of its requests are in flight")]
    Undecidable {
        /// The queue.
        index: u16,
    },
}

/// How far the requests have replies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answered {
    /// All of them.
    All,
    /// All but one that opens a session, and what may follow it.
    UpToInit,
}

/// The rings of one driver.
#[derive(Clone, Debug)]
pub(super) struct LostRings {
    memory: Arc<MappedMemory>,
    event_idx: bool,
    opening: SessionOpening,
    rings: Vec<LostRing>,
}

#[derive(Clone, Debug)]
struct LostRing {
    index: u16,
    size: u16,
    addresses: Addresses,
    /// Index of the next available entry to take.
    base: u16,
}

impl LostRing {
    fn failed(&self) -> impl FnOnce(QueueError) -> LostError {
        let index = self.index;
        move |source| LostError::Queue { index, source }
    }
}

impl LostRings {
    /// The rings that `driver` has set up in `memory`.
    pub(super) fn of(driver: &Activation, memory: &GuestMemory) -> Result<Self, LostError> {
        let rings = driver.queues.iter().map(|queue| LostRing {
            index: queue.index,
            size: queue.size,
            addresses: Addresses {
                descriptors: queue.descriptors,
                used: queue.used,
                available: queue.available,
            },
            base: 0,
        });
        Ok(Self {
            memory: Arc::new(MappedMemory::new(memory).map_err(LostError::Map)?),
            event_idx: driver.features & feature::EVENT_IDX != 0,
            opening: SessionOpening::Stays,
            rings: rings.collect(),
        })
    }

    /// The rings of a driver that waits for a backend, which is to go on at `bases`. A request that
    /// opens a session gets an error reply as well.
    pub(super) fn without_backend(
        driver: &Activation,
        memory: &GuestMemory,
        bases: &[(u16, u16)],
    ) -> Result<Self, LostError> {
        let mut rings = Self::of(driver, memory)?;
        rings.opening = SessionOpening::Refused;
        for ring in &mut rings.rings {
            let known = bases.iter().find(|(index, _)| *index == ring.index);
            ring.base = known.map_or(0, |(_, base)| *base);
        }
        Ok(rings)
    }

    /// Whether a request waits.
    pub(super) fn has_requests(&self) -> Result<bool, LostError> {
        for ring in &self.rings {
            if let Some(queue) = queue(&self.memory, ring, self.event_idx)
                && queue.waiting(ring.base).map_err(ring.failed())? > 0
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the rings of a broken device, and replies to what is most likely in flight. A ring
    /// whose driver breaks the rules is left out. Returns the number of replies.
    pub(super) fn reclaim_broken(&mut self, eventfds: &EventFds) -> u64 {
        let mut replies = 0;
        self.opening = SessionOpening::Refused;
        let (memory, event_idx) = (Arc::clone(&self.memory), self.event_idx);
        self.rings.retain_mut(|ring| {
            let Some(queue) = queue(&memory, ring, event_idx) else {
                return false;
            };
            match refuse_likely_inflight(&queue) {
                Ok((base, refused)) => {
                    ring.base = base;
                    replies += u64::from(refused);
                    true
                }
                Err(error) => {
                    let error = ring.failed()(error);
                    rate_limited!(
                        warn,
                        "requests of a broken device get no reply: {}",
                        error_chain(&error)
                    );
                    false
                }
            }
        });
        // Replies before a failure, and the backend's last ones, may have had no interrupt.
        eventfds.signal_call();
        replies
    }

    /// Whether the rings are those of a device that is broken.
    pub(super) fn are_broken(&self) -> bool {
        self.opening == SessionOpening::Refused
    }

    /// Whether no ring is left.
    pub(super) fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    /// Waits, for a limited time, until no thread of the lost backend works on the rings any more.
    pub(super) fn wait_until_stable(&self) -> Result<(), LostError> {
        self.rings.iter().try_for_each(|ring| {
            let Some(queue) = queue(&self.memory, ring, self.event_idx) else {
                return Ok(());
            };
            wait_until_stable(&queue).map_err(ring.failed())
        })
    }

    /// Finds where the next backend goes on, if each request that the last one took has its reply.
    pub(super) fn find_bases(&mut self) -> Result<(), LostError> {
        for ring in &mut self.rings {
            if let Some(queue) = queue(&self.memory, ring, self.event_idx) {
                ring.base = queue.used_index().map_err(ring.failed())?;
            }
        }
        Ok(())
    }

    /// Takes the rings over from the backend that is gone. Returns how many requests have an error
    /// reply already.
    pub(super) fn reclaim(&mut self, eventfds: &EventFds) -> Result<u64, LostError> {
        let mut replies = 0;
        for ring in &mut self.rings {
            let Some(queue) = queue(&self.memory, ring, self.event_idx) else {
                continue;
            };
            match reclaim_inflight(&queue).map_err(ring.failed())? {
                Reclaimed::At { base, refused } => {
                    ring.base = base;
                    replies += u64::from(refused);
                }
                Reclaimed::Undecidable => {
                    return Err(LostError::Undecidable { index: ring.index });
                }
            }
        }
        // The backend may have died between a reply and its interrupt.
        eventfds.signal_call();
        Ok(replies)
    }

    /// Replies with an error to each request, at most as many per ring as it has entries. Adds the
    /// replies to `count`.
    pub(super) fn reply(
        &mut self,
        eventfds: &EventFds,
        count: &mut u64,
    ) -> Result<Answered, LostError> {
        let mut answered = Answered::All;
        let before = *count;
        for ring in &mut self.rings {
            eventfds.take_kicks(ring.index);
            let Some(queue) = queue(&self.memory, ring, self.event_idx) else {
                continue;
            };
            let progress = reply_errors(&queue, &mut ring.base, count, self.opening);
            match progress.map_err(ring.failed())? {
                Progress::All => {}
                // The next wait for a kick ends at once.
                Progress::Some => eventfds.signal_kick(ring.index),
                Progress::UpToInit => answered = Answered::UpToInit,
            }
        }
        if *count > before {
            eventfds.signal_call();
        }
        Ok(answered)
    }

    /// Leaves a queue alone from now on.
    pub(super) fn remove(&mut self, index: u16) {
        self.rings.retain(|ring| ring.index != index);
    }

    /// The index of each queue, and where the next backend goes on in it.
    pub(super) fn bases(&self) -> Vec<(u16, u16)> {
        let rings = self.rings.iter();
        rings.map(|ring| (ring.index, ring.base)).collect()
    }
}

fn queue<'a>(memory: &'a MappedMemory, ring: &LostRing, event_idx: bool) -> Option<SplitQueue<'a>> {
    SplitQueue::new(memory, ring.addresses, ring.size, event_idx)
}

/// The memory that the guest shares, mapped. The hypervisor's driver lets it be reached in no other
/// way.
#[derive(Debug)]
struct MappedMemory {
    range: GuestRange,
    map: MmapRegion,
}

impl MappedMemory {
    fn new(memory: &GuestMemory) -> io::Result<Self> {
        let file = File::from(memory.descriptor.try_clone()?);
        let len = usize::try_from(memory.range.len()).map_err(|_| Errno::NOMEM)?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), len);
        Ok(Self {
            range: memory.range,
            map: map.map_err(io::Error::other)?,
        })
    }

    /// The offset of `len` bytes at a guest address.
    fn offset(&self, address: u64, len: usize) -> io::Result<usize> {
        let has = u64::try_from(len).is_ok_and(|len| self.range.contains(address, len));
        let offset = has.then(|| address - self.range.start());
        let offset = offset.and_then(|offset| usize::try_from(offset).ok());
        offset.ok_or_else(|| Errno::FAULT.into())
    }
}

impl Memory for MappedMemory {
    fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = self.offset(address, bytes.len())?;
        let slice = self.map.as_volatile_slice();
        slice.read_slice(bytes, at).map_err(io::Error::other)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let at = self.offset(address, bytes.len())?;
        let slice = self.map.as_volatile_slice();
        // A ring's indices, which must arrive together.
        if let Ok(index) = <[u8; 2]>::try_from(bytes)
            && at.is_multiple_of(2)
        {
            let index = u16::from_ne_bytes(index);
            return slice
                .store(index, at, Ordering::Release)
                .map_err(io::Error::other);
        }
        slice.write_slice(bytes, at).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn memory_is_reached_within_its_range_only() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        let memory = MappedMemory::new(&GuestMemory {
            descriptor: file.as_fd().try_clone_to_owned().unwrap(),
            range: GuestRange::new(0x1000_0000, 0x2000).unwrap(),
        })
        .unwrap();
        for (address, bytes) in [
            (0x1000_0000, &[1, 2][..]),
            (0x1000_0011, &[3, 4]),
            (0x1000_1ffc, &[5, 6, 7, 8]),
        ] {
            memory.write(address, bytes).unwrap();
            let mut read = vec![0; bytes.len()];
            memory.read(address, &mut read).unwrap();
            assert_eq!(read, bytes);
        }
        assert_eq!(memory.read_u16(0x1000_0000).unwrap(), 0x201);
        for address in [0xfff_ffff, 0x1000_1fff, 0x1000_2000, u64::MAX] {
            let error = memory.write(address, &[0; 2]).unwrap_err();
            assert_eq!(
                Errno::from_io_error(&error),
                Some(Errno::FAULT),
                "{address:#x}"
            );
            assert!(memory.read(address, &mut [0; 2]).is_err());
        }
    }
}
