//! Runs a request on the calling thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::device::request::{Handled, Handler, IoMode, Request};
use crate::device::vring::Vring;
use crate::state::requests::Interrupted;

/// Calls the handler. If it panics, stops the request's ring; the daemon goes on.
pub(super) fn run(
    handler: &dyn Handler,
    ring: &Vring,
    request: Box<Request>,
    mode: IoMode,
) -> Handled {
    let _current = request.start();
    guarded(ring, || handler.handle(request, mode))
}

/// Calls the handler for a request that was running when the worker before died.
pub(super) fn recover(
    handler: &dyn Handler,
    ring: &Vring,
    request: Box<Request>,
    interrupted: Interrupted,
) -> Handled {
    let _current = request.start();
    guarded(ring, || handler.recover(request, interrupted))
}

/// A worker process ends by a panic; this is for processes that do not.
fn guarded(ring: &Vring, handle: impl FnOnce() -> Handled) -> Handled {
    catch_unwind(AssertUnwindSafe(handle)).unwrap_or_else(|_| {
        ring.set_broken("serving a request failed inside the daemon; please report this");
        Handled::Kept
    })
}

/// Calls the handler in blocking mode and returns the request's chain to the driver.
pub(super) fn run_to_end(handler: &dyn Handler, request: Box<Request>) {
    let Some(ring) = request.ring().cloned() else {
        return;
    };
    match run(handler, &ring, request, IoMode::Blocking) {
        // A handler that would block in blocking mode breaks its contract: the reply is empty.
        Handled::Replied(request) | Handled::WouldBlock(request) => request.finish(),
        Handled::Kept => {}
    }
}
