//! vhost-user messages: header, payload, descriptors (vhost-user, "Message Specification").
//!
//! ```text
//!   [request | flags | payload length] payload          descriptors beside it
//! ```

mod error;
mod header;
mod inbox;
pub mod payload;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};
use vm_memory::ByteValued;

pub use error::MessageError;
pub use header::{HEADER_LEN, Header, NEED_REPLY, REPLY, VERSION};
pub use inbox::Inbox;
pub use vhost::vhost_user::message::{
    FrontendReq, VhostTransferStateDirection as StateDirection,
    VhostTransferStatePhase as StatePhase, VhostUserConfig as Config,
    VhostUserConfigFlags as ConfigFlags, VhostUserInflight as Inflight,
    VhostUserMemory as MemoryTableHead, VhostUserMemoryRegion as MemoryRegion,
    VhostUserProtocolFeatures as ProtocolFeatures,
    VhostUserTransferDeviceState as TransferDeviceState, VhostUserVringAddr as VringAddr,
    VhostUserVringState as VringState,
};

use crate::{Deadline, descriptors};

/// Bytes of a message's payload at most: what the vhost crate takes. The longest payload in use,
/// a reply to GET_CONFIG, has 12 bytes and up to 256 of configuration space.
pub const MAX_PAYLOAD_LEN: usize = MAX_MSG_SIZE;

/// Descriptors beside one message at most: what the vhost crate takes. The specification's most
/// is one for each of the 8 regions of a memory table.
pub const MAX_DESCRIPTORS: usize = MAX_ATTACHED_FD_ENTRIES;

/// The request's name in the specification, without VHOST_USER_.
#[must_use]
pub const fn request_name(request: FrontendReq) -> &'static str {
    macro_rules! names {
        ($($name:ident)*) => {
            match request {
                $(FrontendReq::$name => stringify!($name),)*
                _ => "a request that virtio-fs does not use",
            }
        };
    }
    names! {
        GET_FEATURES SET_FEATURES SET_OWNER RESET_OWNER SET_MEM_TABLE
        SET_VRING_NUM SET_VRING_ADDR SET_VRING_BASE GET_VRING_BASE
        SET_VRING_KICK SET_VRING_CALL SET_VRING_ERR SET_VRING_ENABLE
        GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM SET_BACKEND_REQ_FD
        GET_CONFIG SET_CONFIG RESET_DEVICE SET_DEVICE_STATE_FD CHECK_DEVICE_STATE
        GET_INFLIGHT_FD SET_INFLIGHT_FD
    }
}

/// One message in either direction.
#[derive(Debug)]
pub struct Message {
    /// Its number: a [`FrontendReq`], or one that no specification knows.
    pub request: u32,
    /// Version and flags ([`VERSION`], [`REPLY`], [`NEED_REPLY`]).
    pub flags: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// What was received beside it.
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// A request of version 1 without descriptors.
    pub fn new(request: impl Into<u32>, payload: Vec<u8>) -> Self {
        Self {
            request: request.into(),
            flags: VERSION,
            payload,
            descriptors: Vec::new(),
        }
    }

    /// The same request, which asks for an acknowledgement ([`ProtocolFeatures::REPLY_ACK`]).
    #[must_use]
    pub fn with_need_reply(mut self) -> Self {
        self.flags |= NEED_REPLY;
        self
    }

    /// A reply to this message.
    #[must_use]
    pub fn reply(&self, payload: Vec<u8>) -> Self {
        Self {
            request: self.request,
            flags: VERSION | REPLY,
            payload,
            descriptors: Vec::new(),
        }
    }

    /// The request, if the specification knows it.
    #[must_use]
    pub fn frontend_request(&self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.request).ok()
    }

    /// Whether it asks for an acknowledgement.
    #[must_use]
    pub const fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// Whether it is a reply to `request`.
    #[must_use]
    pub const fn is_reply_to(&self, request: u32) -> bool {
        self.request == request && self.flags & REPLY != 0
    }

    /// Whether it has version 1, and no flag that the specification reserves.
    #[must_use]
    pub const fn has_known_flags(&self) -> bool {
        self.flags & !(REPLY | NEED_REPLY) == VERSION
    }

    /// Fails unless version and flags are those of a request.
    ///
    /// # Errors
    /// [`MessageError::Flags`].
    pub const fn check_request(&self) -> Result<(), MessageError> {
        if self.flags & !NEED_REPLY == VERSION {
            return Ok(());
        }
        Err(MessageError::Flags {
            request: self.request,
            flags: self.flags,
        })
    }

    /// The payload, if it is one number of 8 bytes.
    #[must_use]
    pub fn u64(&self) -> Option<u64> {
        payload::to_u64(&self.payload)
    }

    /// The payload, if it is exactly one `T`.
    #[must_use]
    pub fn payload_as<T: ByteValued>(&self) -> Option<T> {
        payload::decode(&self.payload)
    }

    /// Its header as it is sent: the length is the payload's.
    #[must_use]
    pub fn header(&self) -> Header {
        Header {
            request: self.request,
            flags: self.flags,
            len: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
        }
    }

    /// Header and payload.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.header().with_payload(&self.payload)
    }

    /// Its own descriptors, to be sent on.
    #[must_use]
    pub fn borrowed_descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd).collect()
    }

    /// Sends header and payload, with `descriptors` beside them; its own descriptors stay.
    ///
    /// # Errors
    /// As [`descriptors::send_all`].
    pub fn send(
        &self,
        socket: BorrowedFd<'_>,
        descriptors: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), MessageError> {
        descriptors::send_all(socket, &self.to_bytes(), descriptors, deadline)
    }
}

#[cfg(test)]
mod tests;
