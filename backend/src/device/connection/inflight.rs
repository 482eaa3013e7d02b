//! GET_INFLIGHT_FD and SET_INFLIGHT_FD: vhost-user-backend does not know them, so the forwarder
//! answers them itself.

use std::io;
use std::os::fd::{AsFd, RawFd};

use gangplank_vhost_user::message::payload::{decode, encode, from_u64};
use gangplank_vhost_user::message::{
    FrontendReq, Inflight, Message, ProtocolFeatures, REPLY, VERSION,
};

use super::{Error, Forwarder};
use crate::device::recorder::Author;
use crate::device::{reconnect, recorder};
use crate::state::device::InflightState;
use crate::state::inflight::InflightMemory;

/// The memory for requests in flight cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// The message has another length, or lacks the descriptor.
    #[error("the frontend's message about its requests in flight is malformed")]
    Malformed,
    /// More rings, or larger ones, than the device has.
    #[error(
        "the frontend wants memory for the requests in flight of {rings} rings of {ring_size} \
         descriptors, and the device has {max_rings} of {max_ring_size}"
    )]
    Size {
        /// Rings.
        rings: u16,
        /// Descriptors of each.
        ring_size: u16,
        /// Rings of the device.
        max_rings: u64,
        /// Descriptors that each can have.
        max_ring_size: u16,
    },
    /// No memory.
    #[error("cannot create memory for a frontend's requests in flight")]
    Create(#[source] io::Error),
    /// The frontend's memory cannot be used.
    #[error("cannot use the frontend's memory for its requests in flight")]
    Map(#[source] io::Error),
}

impl Forwarder<'_> {
    /// Whether the message is one of these, from a frontend that may send it.
    pub(super) fn is_inflight(&self, message: &Message) -> bool {
        let features = self.recorder.state().protocol_features.unwrap_or_default();
        features & ProtocolFeatures::INFLIGHT_SHMFD.bits() != 0
            && matches!(
                message.frontend_request(),
                Some(FrontendReq::GET_INFLIGHT_FD | FrontendReq::SET_INFLIGHT_FD)
            )
    }

    /// Carries the message out and replies. Returns false if the frontend has hung up.
    pub(super) fn answer_inflight(
        &mut self,
        message: &Message,
        descriptors: &[RawFd],
    ) -> Result<bool, Error> {
        let mut reply = Message {
            request: message.request,
            flags: VERSION | REPLY,
            payload: from_u64(0),
            descriptors: Vec::new(),
        };
        if message.frontend_request() == Some(FrontendReq::GET_INFLIGHT_FD) {
            let asked: Inflight = decode(&message.payload).ok_or(InflightError::Malformed)?;
            let (rings, ring_size) = (asked.num_queues, asked.queue_size);
            self.check_inflight(rings, ring_size)?;
            let file = InflightMemory::create(rings, ring_size).map_err(InflightError::Create)?;
            let len = InflightMemory::len(rings, ring_size) as u64;
            reply.payload = encode(&Inflight::new(len, 0, rings, ring_size));
            reply.descriptors.push(file);
            return self.reply(&reply, Author::Forwarder);
        }
        let file = descriptors.first().ok_or(InflightError::Malformed)?;
        let given = recorder::inflight(&message.payload, *file);
        let given = given.ok_or(InflightError::Malformed)?;
        let memory = self.map_inflight(given)?;
        self.find_session(&memory, *file);
        self.device.set_inflight(memory);
        match self.recorder.is_pending() {
            true => self.reply(&reply, Author::Forwarder),
            false => Ok(true),
        }
    }

    /// Uses the memory that the worker before has used.
    pub(super) fn continue_inflight(&self) -> Result<(), Error> {
        if let Some(given) = self.recorder.state().inflight {
            self.device.set_inflight(self.map_inflight(given)?);
        }
        Ok(())
    }

    fn map_inflight(&self, given: InflightState) -> Result<InflightMemory, InflightError> {
        let (rings, ring_size) = (given.rings, given.ring_size);
        self.check_inflight(rings, ring_size)?;
        let file = self.recorder.descriptor(given.file);
        let file = file.ok_or(InflightError::Malformed)?;
        InflightMemory::map(file, given.offset, rings, ring_size).map_err(InflightError::Map)
    }

    fn check_inflight(&self, rings: u16, ring_size: u16) -> Result<(), InflightError> {
        let (max_rings, max_ring_size) = self.ring_limits;
        if rings == 0 || ring_size == 0 || u64::from(rings) > max_rings || ring_size > max_ring_size
        {
            return Err(InflightError::Size {
                rings,
                ring_size,
                max_rings,
                max_ring_size,
            });
        }
        Ok(())
    }

    /// If the guest was served before, on a connection that was lost, gives this connection to the
    /// processes that have the session. Otherwise makes the memory known, and tells the operator if
    /// a session is lost.
    fn find_session(&self, memory: &InflightMemory, file: RawFd) {
        let has_begun = reconnect::rings(self.guest.arena).any(|requests| requests.has_begun());
        let marked = memory.marked().filter(|_| !has_begun);
        if let Some(kept) = self.guest.kept
            && let Some(file) = self.recorder.descriptor(file)
        {
            let is_there = marked.is_none() || kept.find(file, self.frontend.as_fd());
            if !is_there {
                // Its next connection may find the session.
                return;
            }
            kept.announce(file);
        }
        if let Some(marked) = marked {
            log::warn!(
                "guest {} was served before it reconnected, and what was known of its files is \
                 lost: {marked} requests in flight fail with EIO, and all others until the guest \
                 mounts again",
                self.guest.number
            );
        }
    }
}
