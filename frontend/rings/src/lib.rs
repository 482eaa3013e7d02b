//! The rings of a guest whose virtio-fs daemon is lost.
//!
//! While no daemon has a guest's rings, another process may work on them. This crate finds the
//! requests that a lost daemon had in flight ([`reclaim_inflight`]), and replies to these and to
//! all that come after them with errors ([`reply_errors`]), so that the guest does not wait without
//! end.
//!
//! The tunnel over DVK, whose daemon has no access to the guest's memory, takes chains one by one
//! and gives them back ([`SplitQueue::take`], [`SplitQueue::give_back`]).
//!
//! - `memory` is how the guest's memory is reached, which is the caller's business.
//! - `split_queue` reads and writes one ring in it.
//! - `inflight` tells which requests a lost daemon had.
//! - `error_replies` replies to requests.

mod error_replies;
mod inflight;
mod memory;
mod split_queue;

pub use error_replies::{
    Progress, Reclaimed, SessionOpening, is_drained, opens_session, reclaim_inflight, refuse,
    refuse_likely_inflight, reply_errors, wait_until_stable,
};
pub use memory::Memory;
pub use split_queue::{Addresses, Chain, QueueError, SplitQueue};
