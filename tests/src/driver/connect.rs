//! How a [`Driver`] connects to a vhost-user daemon, shares its memory and starts its rings.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::error::{Error, Result};
use super::memory::Memory;
use super::ring::{Layout, Ring};
use super::vhost_user::{
    F_PROTOCOL_FEATURES, PROTOCOL_REPLY_ACK, Peer, message, ring_addresses, ring_state, words,
};
use super::{Driver, Setup, vhost_user};

/// `VIRTIO_F_VERSION_1`.
const F_VERSION_1: u64 = 1 << 32;

/// `VIRTIO_RING_F_INDIRECT_DESC`.
const F_INDIRECT: u64 = 1 << 28;

/// `VIRTIO_RING_F_EVENT_IDX`.
const F_EVENT_IDX: u64 = 1 << 29;

impl Driver {
    /// Connects and sets the rings up. The session is yet to be opened by [`Driver::init`].
    ///
    /// # Errors
    /// What the daemon refuses.
    pub fn connect(socket: &Path, setup: &Setup) -> Result<Self> {
        Self::on_peer(Peer::connect(socket)?, setup)
    }

    /// The same on a socket that is connected already.
    ///
    /// # Errors
    /// What the daemon refuses.
    pub fn on_stream(socket: UnixStream, setup: &Setup) -> Result<Self> {
        Self::on_peer(Peer::new(socket)?, setup)
    }

    /// Connects and opens a session: what mounting does.
    ///
    /// # Errors
    /// What the daemon refuses.
    pub fn mount(socket: &Path, setup: &Setup) -> Result<Self> {
        let mut driver = Self::connect(socket, setup)?;
        driver.init()?;
        Ok(driver)
    }

    fn on_peer(mut peer: Peer, setup: &Setup) -> Result<Self> {
        let wanted = F_VERSION_1
            | F_PROTOCOL_FEATURES
            | if setup.indirect { F_INDIRECT } else { 0 }
            | if setup.event_idx { F_EVENT_IDX } else { 0 };
        peer.tell(message::SET_OWNER, &[], &[])?;
        let offered = peer.ask_u64(message::GET_FEATURES)?;
        if offered & wanted != wanted {
            return Err(Error::Exhausted("virtio feature"));
        }
        let protocol = peer.ask_u64(message::GET_PROTOCOL_FEATURES)?;
        // MQ, LOG_SHMFD, REPLY_ACK, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS, DEVICE_STATE, as far
        // as they are offered.
        let known =
            (1 << 0) | (1 << 1) | PROTOCOL_REPLY_ACK | (1 << 9) | (1 << 13) | (1 << 15) | (1 << 19);
        let protocol = words(&[protocol & known]);
        peer.tell(message::SET_PROTOCOL_FEATURES, &protocol, &[])?;
        peer.set_need_reply();
        peer.tell(message::SET_FEATURES, &words(&[wanted]), &[])?;

        let mut memory = Memory::new(setup.memory)?;
        let rings = (0..=setup.request_queues)
            .map(|index| {
                let layout = Layout {
                    index,
                    size: setup.ring_size,
                    indirect: setup.indirect,
                    event_idx: setup.event_idx,
                    call: setup.call,
                };
                Ring::new(&mut memory, layout)
            })
            .collect::<Result<Vec<_>>>()?;
        let driver = Self::over(peer, memory, rings);
        driver.share_memory()?;
        for index in 0..driver.rings.len() {
            driver.start_ring(index)?;
        }
        Ok(driver)
    }

    /// Shares the memory with the daemon.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn share_memory(&self) -> Result<()> {
        let table = vhost_user::memory_table(&[self.memory.region()]);
        self.peer
            .tell(message::SET_MEM_TABLE, &table, &[self.memory.file()])
    }

    /// Sets the ring up from where it stands, and enables it.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn start_ring(&self, index: usize) -> Result<()> {
        let ring = self.rings.get(index).ok_or(Error::Exhausted("ring"))?;
        start_ring(&self.peer, &self.memory, ring)?;
        let number = ring.layout().index;
        self.peer
            .tell(message::SET_VRING_ENABLE, &ring_state(number, 1), &[])
    }

    /// Stops the ring by GET_VRING_BASE, and returns where the daemon stopped.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn stop_ring(&self, index: usize) -> Result<u32> {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let answer = self
            .peer
            .ask(message::GET_VRING_BASE, &ring_state(number, 0))?;
        let base = answer.get(4..).and_then(|rest| rest.first_chunk());
        base.map(|base| u32::from_le_bytes(*base))
            .ok_or(Error::WrongAnswer {
                request: message::GET_VRING_BASE,
                answer: message::GET_VRING_BASE,
                len: answer.len(),
            })
    }
}

/// Tells the daemon where a ring lies, in the order that User Mode Linux does, without enabling it.
///
/// # Errors
/// The daemon refuses it.
pub fn start_ring(peer: &Peer, memory: &Memory, ring: &Ring) -> Result<()> {
    let number = ring.layout().index;
    let descriptor = words(&[u64::from(number)]);
    peer.tell(
        message::SET_VRING_CALL,
        &descriptor,
        &[ring.call_descriptor()],
    )?;
    peer.tell(
        message::SET_VRING_ERR,
        &descriptor,
        &[ring.error_descriptor()],
    )?;
    let size = ring_state(number, ring.layout().size.into());
    peer.tell(message::SET_VRING_NUM, &size, &[])?;
    let base = ring_state(number, memory.load_or_zero(ring.used + 2).into());
    peer.tell(message::SET_VRING_BASE, &base, &[])?;
    let [descriptors, used, available] =
        [ring.descriptors, ring.used, ring.available].map(Memory::user_address);
    let addresses = ring_addresses(number, descriptors, used, available, u64::MAX);
    peer.tell(message::SET_VRING_ADDR, &addresses, &[])?;
    peer.tell(
        message::SET_VRING_KICK,
        &descriptor,
        &[ring.kick_descriptor()],
    )
}
