//! Endpoints: what a process of a container can do, independent of the carrier.
//!
//! A [`Carrier`] binds an endpoint. The [`BoundEndpoint`] receives, replies, sends and copies. The
//! semantics are those of DVK:
//!
//! - A process that calls another ([`BoundEndpoint::sendrec`]) is blocked until the answer arrives.
//!   Only meanwhile may the called process copy to and from its memory.
//! - Memory is addressed by 32 bits in the calling process. Here these are handles of the buffers
//!   that it shares for the time of the call ([`SharedBuffers`]).
//! - A request has an id of its own ([`RequestId`]) for its answer and copies. Once its client has
//!   gone, was replaced or has sent another request, nothing is sent for the request any more, not
//!   even to another process at the same endpoint. A command that was sent before may still arrive.
//!   Carriers with our code at both ends recognise such a command, a DVK cannot.
//! - A notification carries no data, and notifications from one source are merged.
//!
//! A carrier enforces its own restrictions, such as one exchange at a time with a peer. Every
//! method may be called from any thread at any time.

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

/// Carries messages to and from other processes.
pub trait Carrier: Send + Sync {
    /// Binds `endpoint` of container `dc` to this process. `name` is shown to people; other
    /// machines see its first 15 bytes.
    fn bind(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<Arc<dyn BoundEndpoint>, EndpointError>;
}

/// An endpoint that is bound to this process. Dropping it unbinds it.
pub trait BoundEndpoint: Send + Sync {
    /// Its container.
    fn dc(&self) -> DcId;

    /// Its number.
    fn endpoint(&self) -> Endpoint;

    /// The dimensions of its container.
    fn limits(&self) -> DcLimits;

    /// Waits for the next event. Fails with [`EndpointError::TimedOut`] after `limit`. Several
    /// threads may wait, and each event goes to one of them.
    fn receive(&self, limit: Duration) -> Result<Delivery, EndpointError>;

    /// Answers `request` with `message`, whose source is filled in. The server calls it once for
    /// each [`Delivery::Request`], after all copies. Fails with [`crate::abi::Code::EDVSPROCSTS`]
    /// if the client no longer waits. Succeeds if the client has sent a newer request, which is
    /// received next.
    fn reply(&self, request: RequestId, message: &Message) -> Result<(), EndpointError>;

    /// Sends `message` to `to` and returns when it was received, at most after `limit`. A message
    /// to a client whose request is being served is the answer to that request.
    fn send(&self, to: Endpoint, message: &Message, limit: Duration) -> Result<(), EndpointError>;

    /// Sends the request `message` to `to` and waits up to `limit` for the answer. Meanwhile `to`
    /// may copy to and from `buffers` and nothing else. Nobody accesses them after this returns.
    /// One call is in progress at a time: the calls of other threads wait for their turn within
    /// their own limits.
    fn sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        buffers: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError>;

    /// How often `of` may have lost what it held for this endpoint, since the endpoint was bound:
    /// `of` went away, or a connection to its node was lost in either direction. Only a change of
    /// the number has a meaning. The number grows before anything can be sent to the next process
    /// at `of`.
    fn losses(&self, of: Endpoint) -> u64;

    /// Notifies `to`, without waiting and without an acknowledgement.
    fn notify(&self, to: Endpoint) -> Result<(), EndpointError>;

    /// Copies from `address` in the memory of the client of `request` until `into` is full. Fails
    /// with [`crate::abi::Code::EDVSPROCSTS`] if the client does not wait for the answer to
    /// `request` any more. An empty copy succeeds without an exchange.
    fn copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), EndpointError>;

    /// Copies all of `from` to `address` in the memory of the client of `request`, with the errors
    /// of [`Self::copy_from`]. An error may leave a part copied.
    fn copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), EndpointError>;

    /// Gives the endpoint up. Every operation in progress or later fails with
    /// [`EndpointError::Unbound`]. Dropping the endpoint does the same.
    fn unbind(&self);
}

/// An event that [`BoundEndpoint::receive`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A request, whose sender waits for [`BoundEndpoint::reply`].
    Request {
        /// The id of the request, with its client.
        request: RequestId,
        /// The client's process id on its own machine, if the carrier knows it. Another id than
        /// before means another process at the same endpoint.
        pid: Option<i32>,
        /// The message, with the client as source.
        message: Message,
    },
    /// A message, whose sender does not wait for an answer.
    Message {
        /// The sender.
        client: Endpoint,
        /// The message, with `client` as source.
        message: Message,
    },
    /// A notification.
    Notification {
        /// The source, or [`Endpoint::HARDWARE`].
        source: Endpoint,
    },
    /// A process that has sent something before is gone for good.
    Gone {
        /// Its endpoint.
        client: Endpoint,
        /// The reason.
        reason: Gone,
    },
}

/// Why a process counts as gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It unbound its endpoint, or it ended.
    Unbound,
    /// The connection to its node or to the switch was lost.
    NodeLost,
    /// Another process has bound its endpoint since.
    Replaced,
}
