//! The request that the calling thread runs, and what its handler notes of it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::time::ClockId;

use super::{RequestSlot, RingRequests, store};
use crate::sys::clock;

thread_local! {
    /// The ring of the request that this thread ran last.
    static RING: RefCell<Option<Arc<RingRequests>>> = const { RefCell::new(None) };
    /// The head of the request that this thread runs.
    static HEAD: Cell<Option<u16>> = const { Cell::new(None) };
}

/// The calling thread runs a request, until this is dropped.
#[derive(Debug)]
pub struct Current(());

impl Current {
    /// From now on the calling thread runs the request at `head` of `ring`.
    pub fn enter(ring: &Arc<RingRequests>, head: u16) -> Self {
        RING.with_borrow_mut(|last| match last {
            Some(last) if Arc::ptr_eq(last, ring) => {}
            last => *last = Some(Arc::clone(ring)),
        });
        HEAD.set(Some(head));
        Self(())
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        HEAD.set(None);
    }
}

/// Notes the operation of the calling thread's request. If it changes something, notes the time as
/// well, before it begins.
pub fn note_operation(opcode: u32, changes: bool) {
    with_current(|slot| {
        slot.opcode.store(opcode, Ordering::Release);
        if changes {
            // The clock of files' times.
            let now = clock::now(ClockId::RealtimeCoarse);
            store(&slot.time, now.cast_unsigned());
        }
    });
}

/// Notes a number with the calling thread's request, such as that of an open file which the
/// operation is about to add. [`super::Interrupted::auxiliary`] has it after a death.
pub fn note_auxiliary(number: u64) {
    with_current(|slot| store(&slot.auxiliary, number));
}

fn with_current(note: impl FnOnce(&RequestSlot)) {
    let Some(head) = HEAD.get() else { return };
    RING.with_borrow(|ring| {
        if let Some(slot) = ring.as_ref().and_then(|ring| ring.slot(head)) {
            note(slot);
        }
    });
}
