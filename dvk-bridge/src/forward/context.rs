//! What the forwarder and its proxy clients share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::abi::Message;
use crate::endpoint::{BoundEndpoint, Carrier, RequestId};

/// The result for a client that cannot be served: EIO of Linux on i386. A client without an answer
/// would take uninitialised memory for success.
pub(super) const EIO_RESULT: i32 = -5;

/// What all proxy clients have in common.
pub(super) struct Context {
    pub(super) here: Arc<dyn BoundEndpoint>,
    pub(super) there: Arc<dyn Carrier>,
    /// Time limit of the server for a request.
    pub(super) limit: Duration,
    pub(super) answered: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Context {
    /// Answers a request that cannot be passed on.
    pub(super) fn refuse(&self, request: RequestId, message: &Message) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.answer(request, &message.answer(EIO_RESULT));
    }

    pub(super) fn answer(&self, request: RequestId, answer: &Message) {
        // A client that has gone or sent another request does not wait for this answer.
        if let Err(error) = self.here.reply(request, answer) {
            log::debug!("{error}");
        }
    }
}
