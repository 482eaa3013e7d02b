//! Runs a request on the calling thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::device::request::{Handled, Handler, IoMode, Request};
use crate::device::vring::Vring;

/// Calls the handler. If it panics, stops the request's ring; the daemon goes on.
pub(super) fn run(
    handler: &dyn Handler,
    ring: &Vring,
    request: Box<Request>,
    mode: IoMode,
) -> Handled {
    catch_unwind(AssertUnwindSafe(|| handler.handle(request, mode))).unwrap_or_else(|_| {
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
