//! What the forwarder and its proxy clients share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::abi::Message;
use crate::endpoint::{BoundEndpoint, Carrier, RequestId};

/// What a client is answered that cannot be served: EIO of Linux on i386. One that is not answered takes its own rubbish for
/// success.
pub(super) const EIO_RESULT: i32 = -5;

/// What all visitors have in common.
pub(super) struct Context {
    pub(super) here: Arc<dyn BoundEndpoint>,
    pub(super) there: Arc<dyn Carrier>,
    /// How long the server may take for a request.
    pub(super) limit: Duration,
    pub(super) answered: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Context {
    /// Answers what cannot be passed on.
    pub(super) fn refuse(&self, request: RequestId, message: &Message) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.answer(request, &message.answer(EIO_RESULT));
    }

    pub(super) fn answer(&self, request: RequestId, answer: &Message) {
        // A client that has gone, or asked anew, waits for it no more.
        if let Err(error) = self.here.reply(request, answer) {
            log::debug!("{error}");
        }
    }
}
