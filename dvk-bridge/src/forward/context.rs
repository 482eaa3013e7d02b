//! What the forwarder and its proxy clients share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::abi::{DcId, Message};
use crate::endpoint::{BoundEndpoint, Carrier, RequestId};

/// The result for a client that cannot be served: EIO of Linux on i386. A client without an answer
/// would take uninitialised memory for success.
pub(super) const EIO_RESULT: i32 = -5;

/// A request of a client.
pub(super) struct ClientRequest {
    /// The endpoint here that has received it.
    pub(super) here: Arc<dyn BoundEndpoint>,
    pub(super) request: RequestId,
    pub(super) message: Message,
}

/// What all proxy clients have in common.
pub(super) struct Context {
    pub(super) dc: DcId,
    pub(super) there: Arc<dyn Carrier>,
    /// Time limit of the server for a request.
    pub(super) limit: Duration,
    pub(super) answered: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Context {
    /// Answers a request that cannot be passed on.
    pub(super) fn refuse(&self, asked: &ClientRequest) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        asked.answer(&asked.message.answer(EIO_RESULT));
    }
}

impl ClientRequest {
    pub(super) fn answer(&self, answer: &Message) {
        // A client that has gone or sent another request does not wait for this answer.
        if let Err(error) = self.here.reply(self.request, answer) {
            log::debug!("{error}");
        }
    }
}
