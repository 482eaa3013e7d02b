//! The requests in flight of a ring, as they outlive the process.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::Vring;
use crate::device::chain::{Chain, Table};
use crate::state::inflight::InflightRing;
use crate::state::requests::{Blame, InFlight, Pending, RingRequests};

impl Vring {
    /// Keeps the requests in flight in `requests` from now on, and finds what the worker before has
    /// left there, to be taken by [`Vring::take_pending`]. `blame` is `None` if none has died. The
    /// ring lies in `memory`.
    ///
    /// Once, before the first chain is taken.
    pub(in crate::device) fn keep_requests(
        &self,
        requests: Arc<RingRequests>,
        blame: Option<Blame>,
        memory: &GuestMemoryMmap,
    ) {
        let mut state = self.0.state.get_mut();
        let queue = state.get_queue_mut();
        let table = Table {
            address: queue.desc_table(),
            entries: queue.size(),
        };
        let used = queue.next_used();
        if requests.is_carried_over() {
            match self.inflight() {
                Some(inflight)
                    if !inflight.is_of(used)
                        || !goes_on_at(queue, requests.next_available(), memory) =>
                {
                    // The guest has reset its device meanwhile.
                    requests.set_up(queue.next_avail());
                    inflight.keep(&[], used);
                }
                _ => queue.set_next_avail(requests.next_available()),
            }
        }
        let mut left = blame.map(|blame| requests.recover(used, blame));
        match self.inflight() {
            Some(inflight) if requests.has_begun() => {
                let left = left.iter().flatten();
                let heads: Vec<u16> = left.map(|(head, _)| *head).collect();
                inflight.keep(&heads, used);
            }
            Some(inflight) => {
                if let Some(heads) = inflight.attach(used) {
                    // The frontend does not know which chains were taken: all that are used or in
                    // flight.
                    let count = u16::try_from(heads.len()).unwrap_or(u16::MAX);
                    let next = used.wrapping_add(count);
                    requests.set_taken(&heads, next);
                    queue.set_next_avail(next);
                    let heads = heads.into_iter();
                    left = Some(heads.map(|head| (head, Pending::Taken)).collect());
                }
            }
            None => {}
        }
        requests.begin();
        if let Some(left) = left {
            let left = left.into_iter();
            let left = left.map(|(head, pending)| (Chain { head, table }, pending));
            let mut pending = self.0.pending.lock();
            pending.extend(left);
            self.in_flight().chains += pending.len();
            self.0.has_pending.store(true, Ordering::Release);
        }
        let _ = self.0.requests.set(requests);
    }

    /// Keeps the requests in flight also in the frontend's memory from now on.
    pub(in crate::device) fn set_inflight(&self, inflight: Option<Arc<InflightRing>>) {
        let is_set = inflight.is_some();
        *self.0.inflight.lock() = inflight;
        self.0.has_inflight.store(is_set, Ordering::Release);
    }

    /// The same for a ring that has run in this process, and is stopped.
    pub(in crate::device) fn replace_inflight(&self, inflight: Option<Arc<InflightRing>>) {
        let state = self.0.state.get_mut();
        if let Some(inflight) = &inflight {
            inflight.keep(&[], state.get_queue().next_used());
        }
        self.set_inflight(inflight);
    }

    /// Where the frontend keeps the requests in flight.
    pub(super) fn inflight(&self) -> Option<Arc<InflightRing>> {
        match self.0.has_inflight.load(Ordering::Relaxed) {
            true => self.0.inflight.lock().clone(),
            false => None,
        }
    }

    /// What the worker before has left, oldest first. `None` if it was taken already.
    pub(in crate::device) fn take_pending(&self) -> Option<Vec<(Chain, Pending)>> {
        if !self.0.has_pending.load(Ordering::Acquire) {
            return None;
        }
        self.0.has_pending.store(false, Ordering::Release);
        Some(std::mem::take(&mut *self.0.pending.lock()))
    }

    /// Where the requests in flight outlive the process.
    pub(in crate::device) fn requests(&self) -> Option<&Arc<RingRequests>> {
        self.0.requests.get()
    }

    /// The reply to the request at `head` is complete.
    pub(in crate::device) fn note_reply(&self, head: u16, len: u32) {
        if let Some(requests) = self.requests() {
            requests.done(head, len);
        }
    }

    /// Notifies the driver, whether it suppresses notifications or not. Returns whether it may miss
    /// that: see [`crate::device::reminder`].
    pub(in crate::device) fn notify(&self) -> bool {
        self.0.call.signal();
        self.0.call.is_stream()
    }

    /// Notes the chains from `first` on as taken. If the driver has not got one of them back,
    /// removes it and those behind it, and returns true.
    pub(super) fn note_taken(
        &self,
        queue: &mut Queue,
        chains: &mut Vec<Chain>,
        first: usize,
    ) -> bool {
        let Some(requests) = self.requests() else {
            return false;
        };
        let heads = chains.get(first..).unwrap_or_default();
        if heads.is_empty() {
            return false;
        }
        let count = u16::try_from(heads.len()).unwrap_or(u16::MAX);
        let start = queue.next_avail().wrapping_sub(count);
        if requests.next_available() != start {
            // The frontend has moved it while the ring was running.
            requests.move_to(start);
        }
        match requests.take(heads.iter().map(|chain| chain.head)) {
            Ok(()) => {
                if let Some(inflight) = self.inflight() {
                    heads.iter().for_each(|chain| inflight.take(chain.head));
                }
                false
            }
            Err(InFlight { taken }) => {
                chains.truncate(first + taken);
                let taken = u16::try_from(taken).unwrap_or(u16::MAX);
                queue.set_next_avail(start.wrapping_add(taken));
                true
            }
        }
    }
}

/// Whether the driver can be one whose next chain to be taken has the index `next` of the available
/// ring: it has not offered more chains since than the ring has entries. A driver that has begun
/// anew is elsewhere, most of the time. If its index cannot be read, that is found out when chains
/// are taken.
fn goes_on_at(queue: &Queue, next: u16, memory: &GuestMemoryMmap) -> bool {
    let available = queue.avail_idx(memory, Ordering::Acquire);
    !available.is_ok_and(|available| available.0.wrapping_sub(next) > queue.size())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic};

    use super::*;
    use crate::state::arena::Arena;
    use crate::state::inflight::InflightMemory;

    /// Where the available ring of the test's ring is.
    const AVAILABLE: u64 = 0x100;

    /// Index of the used ring, which says nothing.
    const USED: u16 = 2;

    /// A ring of 8 entries whose driver has offered chains up to the index `available`.
    fn ring(available: u16) -> (Vring, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let index = GuestAddress(AVAILABLE + 2);
        memory.write_obj(available.to_le(), index).unwrap();
        let ring = Vring::new(GuestMemoryAtomic::new(memory.clone()), 8).unwrap();
        ring.set_queue_size(8);
        ring.set_queue_info(0, AVAILABLE, 0x200).unwrap();
        ring.set_queue_next_used(USED);
        ring.set_queue_next_avail(available);
        (ring, memory)
    }

    #[test]
    fn a_ring_of_a_driver_that_has_begun_anew_is_not_gone_on_with() {
        let taken_before = 10;
        for (available, goes_on) in [
            (taken_before, true),
            (taken_before + 8, true),
            (taken_before + 9, false),
            (taken_before - 1, false),
            (USED + 1, false),
        ] {
            let (ring, memory) = ring(available);
            let arena = Arena::small();
            let requests = RingRequests::new(&arena, 0).unwrap();
            requests.begin();
            requests.set_taken(&[3], taken_before);
            requests.carry_over();
            let file = InflightMemory::create(1, 8).unwrap();
            let inflight = InflightMemory::map(file.as_fd(), 0, 1, 8).unwrap();
            let inflight = inflight.ring(0).unwrap();
            inflight.keep(&[3], USED);
            ring.set_inflight(Some(inflight));
            ring.keep_requests(Arc::clone(&requests), Some(Blame::Stopped), &memory);
            let left = ring.take_pending().unwrap_or_default();
            assert_eq!(left.len(), usize::from(goes_on), "{available}");
            let next = if goes_on { taken_before } else { available };
            assert_eq!(ring.queue_next_avail(), next, "{available}");
            assert_eq!(requests.next_available(), next, "{available}");
        }
    }
}
