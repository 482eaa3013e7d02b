//! Endpoints: what a process of a container can do, whichever carrier takes its messages.
//!
//! A [`Carrier`] binds an endpoint; the [`BoundEndpoint`] receives, answers, sends and copies. The semantics are DVK's:
//!
//! - Who asks ([`BoundEndpoint::sendrec`]) is blocked until it is answered, and only so long may the one who serves it copy
//!   to and from its memory.
//! - Memory is named by addresses of 32 bits in the asking process. Here they are labels of what it lends for the time of
//!   its question ([`SharedBuffers`]).
//! - A request has a name of its own ([`RequestId`]), by which it is answered and copied for. One whose client has gone, has
//!   been replaced or has asked again since is not served any more: nothing is sent for it from then on, not even to another
//!   that has bound the same endpoint. What was sent before can still be on its way; carriers whose two ends are ours tell
//!   it from what is due, a DVK cannot.
//! - A notification has no content worth speaking of, and is merged with others from the same source.
//!
//! What a carrier has to keep to, such as one exchange at a time with a peer, it keeps to by itself: every method may be
//! called from any thread at any time.

mod error;
mod handle;
mod request;
mod shared_buffers;

use std::sync::Arc;
use std::time::Duration;

pub use error::{EndpointError, Operation};
pub use request::RequestId;
pub use shared_buffers::{NotShared, RemoteMemory, SharedBuffers};

use crate::abi::{DcId, DcLimits, Endpoint, Message};

/// A way for messages to get to other processes.
pub trait Carrier: Send + Sync {
    /// Binds `endpoint` of container `dc` to this process. `name`, of which others may see 15 bytes, is for people.
    fn bind(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<Arc<dyn BoundEndpoint>, EndpointError>;
}

/// An endpoint that is bound to this process, until it is dropped.
pub trait BoundEndpoint: Send + Sync {
    /// Its container.
    fn dc(&self) -> DcId;

    /// Its number.
    fn endpoint(&self) -> Endpoint;

    /// The dimensions of its container.
    fn limits(&self) -> DcLimits;

    /// Waits for the next event, no longer than `limit`: then [`EndpointError::TimedOut`]. Several threads may wait; each
    /// event goes to one of them.
    fn receive(&self, limit: Duration) -> Result<Delivery, EndpointError>;

    /// Answers `request` with `message`, whose source is filled in. To be done once for each [`Delivery::Request`], after all
    /// copies for it. Fails with [`crate::abi::Code::EDVSPROCSTS`] if its client does not wait for it any more; if that has
    /// asked again, it succeeds, and the newer request is received next.
    fn reply(&self, request: RequestId, message: &Message) -> Result<(), EndpointError>;

    /// Sends `message` to `to`, and returns when it has been received, at most after `limit`. To one whose request is being
    /// served it is the answer.
    fn send(&self, to: Endpoint, message: &Message, limit: Duration) -> Result<(), EndpointError>;

    /// Asks `to`, and waits at most `limit` for the answer. Meanwhile `to` may copy to and from what is `buffers`, and from
    /// and to nothing else; none of it is touched any more when this returns. One question is out at a time: another
    /// thread's waits for its turn, on its own limit.
    fn sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        buffers: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError>;

    /// How often what `of` held for this endpoint may have been lost, since this was bound: `of` went, or a connection to where
    /// it is was lost, in whichever direction. The number says nothing but that: if it is another than before, something was.
    /// It has grown before anything can be sent to whoever is there next.
    fn losses(&self, of: Endpoint) -> u64;

    /// Notifies `to`, without waiting and without hearing whether it came.
    fn notify(&self, to: Endpoint) -> Result<(), EndpointError>;

    /// Copies from `address` in the memory of the client of `request`, which waits for our answer, until `into` is full: all
    /// or an error, [`crate::abi::Code::EDVSPROCSTS`] if the client does not wait for that answer any more. Nothing to copy
    /// is no exchange, and succeeds.
    fn copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), EndpointError>;

    /// Copies all of `from` to `address` in the memory of the client of `request`, as [`Self::copy_from`] does the other way.
    /// An error may leave a part copied.
    fn copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), EndpointError>;

    /// Gives the endpoint up: whoever waits on it, or tries anything later, gets [`EndpointError::Unbound`]. Dropping the
    /// endpoint does the same.
    fn unbind(&self);
}

/// What [`BoundEndpoint::receive`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Somebody asks, and waits for [`BoundEndpoint::reply`].
    Request {
        /// Who asks, and what to name it by.
        request: RequestId,
        /// The asking process's id on its own machine, where the carrier knows. Another one than before is another process that
        /// bound the same endpoint.
        pid: Option<i32>,
        /// What; its source is the client.
        message: Message,
    },
    /// Somebody sent, and does not wait.
    Message {
        /// Who.
        client: Endpoint,
        /// What; its source is `client`.
        message: Message,
    },
    /// Somebody wants attention.
    Notification {
        /// Who, or [`Endpoint::HARDWARE`].
        source: Endpoint,
    },
    /// One that was heard of before has gone, and will not come back as the same.
    Gone {
        /// Who.
        client: Endpoint,
        /// How that is known.
        reason: Gone,
    },
}

/// How it is known that somebody has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It gave up its endpoint, or its process ended.
    Unbound,
    /// The connection to its node, or to whoever joins us with it, was lost.
    NodeLost,
    /// Another process has bound its endpoint since.
    Replaced,
}
