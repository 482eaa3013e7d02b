//! The requests in flight of a ring, as they outlive the process.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_queue::{Queue, QueueT};

use super::Vring;
use crate::device::chain::{Chain, Table};
use crate::state::requests::{Blame, InFlight, Pending, RingRequests};

impl Vring {
    /// Keeps the requests in flight in `requests` from now on, and finds what the worker before has
    /// left there, to be taken by [`Vring::take_pending`]. `blame` is `None` if none has died.
    ///
    /// Once, before the first chain is taken.
    pub(in crate::device) fn keep_requests(
        &self,
        requests: Arc<RingRequests>,
        blame: Option<Blame>,
    ) {
        let state = self.0.state.get_mut();
        let queue = state.get_queue();
        let table = Table {
            address: queue.desc_table(),
            entries: queue.size(),
        };
        if let Some(blame) = blame {
            let left = requests.recover(queue.next_used(), blame).into_iter();
            let left = left.map(|(head, pending)| (Chain { head, table }, pending));
            let mut pending = self.0.pending.lock();
            pending.extend(left);
            self.in_flight().chains += pending.len();
            self.0.has_pending.store(true, Ordering::Release);
        }
        let _ = self.0.requests.set(requests);
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

    /// Notifies the driver, whether it suppresses notifications or not.
    pub(in crate::device) fn notify(&self) {
        self.0.call.signal();
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
            Ok(()) => false,
            Err(InFlight { taken }) => {
                chains.truncate(first + taken);
                let taken = u16::try_from(taken).unwrap_or(u16::MAX);
                queue.set_next_avail(start.wrapping_add(taken));
                true
            }
        }
    }
}
