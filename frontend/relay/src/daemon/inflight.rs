//! Memory in which a daemon notes the requests that it has in flight. The relay keeps it for the
//! daemon's successor (vhost-user, "Inflight I/O tracking").

use std::os::fd::{AsFd, OwnedFd};

use gangplank_vhost_backend::Ring;
use gangplank_vhost_user::message::{FrontendReq, Inflight, Message, ProtocolFeatures, payload};

use super::{Daemon, Result};

/// The memory of one guest.
#[derive(Debug)]
pub(crate) struct InflightMemory {
    file: OwnedFd,
    /// The payload that describes it, as the daemon that made it says.
    description: Vec<u8>,
    rings: usize,
    ring_size: u16,
}

impl InflightMemory {
    /// Whether it has room for the requests of all these rings.
    pub(crate) fn covers(&self, rings: &[Ring]) -> bool {
        rings.len() <= self.rings && rings.iter().all(|ring| ring.size <= self.ring_size)
    }
}

impl Daemon {
    /// Whether it notes its requests in flight, and the relay has asked for that.
    pub(crate) const fn has_inflight(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// Has it make the memory for this number of rings, with this number of descriptors each.
    pub(crate) fn new_inflight(&mut self, rings: u16, ring_size: u16) -> Result<InflightMemory> {
        let request = FrontendReq::GET_INFLIGHT_FD;
        let wanted = payload::encode(&Inflight::new(0, 0, rings, ring_size));
        let Message {
            payload: description,
            mut descriptors,
            ..
        } = self.ask(request, wanted)?;
        match (payload::decode::<Inflight>(&description), descriptors.pop()) {
            (Some(_), Some(file)) => Ok(InflightMemory {
                file,
                description,
                rings: rings.into(),
                ring_size,
            }),
            _ => Err(self.wrong_reply(request)),
        }
    }

    /// Has it use this memory, and finish what is noted there.
    pub(crate) fn set_inflight(&mut self, memory: &InflightMemory) -> Result<()> {
        let description = memory.description.clone();
        let file = [memory.file.as_fd()];
        self.tell(FrontendReq::SET_INFLIGHT_FD, description, &file)
    }
}
