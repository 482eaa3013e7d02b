//! Records what the frontend sets up, so that the next worker can set it up again.
//!
//! Of a message without a reply, the record is stored before the message is handled: if the worker
//! dies, the next one sets up what the record says, and nobody can tell the difference. A message
//! whose reply the frontend waits for is stored as pending before it is handled. When
//! vhost-user-backend has replied, one store makes the message's effect part of the record and ends
//! that it is pending, and then the reply is sent. If the worker dies before that store, the next
//! one handles the message again; if it dies before the reply is sent, the next one sends it
//! (`super::reply_pipe`).
//!
//! A message is read without taking it out of the socket, stored, and then taken out. The next
//! worker finds a message that is stored as arriving at the head of the socket if it has not been
//! taken out, and takes it out. A message that came in several parts cannot be read as a whole; it
//! is taken out first, and lost if the worker dies before it is stored.
//!
//! A ring that the frontend disables without waiting for a reply is noted as draining until a later
//! message was replied to. Until then its requests in flight may not have been finished: the next
//! worker finishes them, and takes no others off that ring.
//!
//! Windows remain:
//!
//! - A few instructions between the store that ends GET_INFLIGHT_FD, and sending its reply, whose
//!   descriptor no pipe can carry. A worker that dies there leaves a frontend that waits for ever.
//!   The same goes for any message if all processes of the daemon die there, since the pipe dies
//!   with them. The other order, to send a reply first, has a worse window: the frontend wakes up,
//!   may take the CPU, and gets the reply twice if the worker is killed before it runs again.
//! - A worker that dies after it took a message out, while the frontend has sent the same bytes
//!   once more with another descriptor: the second message is taken for the first.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use gangplank_service::rate_limited;
use gangplank_vhost_user::message::payload::{NO_DESCRIPTOR, VRING_INDEX_MASK};
use gangplank_vhost_user::message::{
    FrontendReq, Inflight, MemoryRegion, MemoryTableHead, Message, ProtocolFeatures, VringAddr,
    VringState, payload,
};

use crate::state::arena::Arena;
use crate::state::device::{DeviceState, InflightState, LogState, PendingMessage, RegionState};
use crate::state::requests::RingRequests;
use crate::storage::kind::has_server;
use crate::sys::file::file_system_magic;
use crate::sys::process;

/// Bytes of padding before the region of ADD_MEM_REG and REM_MEM_REG.
const REGION_PADDING: usize = 8;

/// What one frontend has set up, with the descriptors.
#[derive(Debug)]
pub(super) struct Recorder {
    arena: Arc<Arena>,
    rings: usize,
    state: DeviceState,
    /// The descriptors of the state.
    descriptors: HashMap<RawFd, OwnedFd>,
    /// Those that a holder outside of the daemon has, if there is one.
    held: HashSet<RawFd>,
}

/// Who replies to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    /// vhost-user-backend, which carries messages out one after another.
    Device,
    /// The forwarder, for itself.
    Forwarder,
}

/// Whether a frontend's descriptor may be held outside of the daemon: the supervisor opens and
/// closes what is held, and must not wait for whoever answers for the file.
fn may_be_held(number: RawFd) -> bool {
    let magic = file_system_magic(process::borrow(number));
    let is_foreign = magic.is_ok_and(has_server);
    if is_foreign {
        rate_limited!(
            warn,
            "the frontend's descriptor {number} is a file of a network or FUSE file system, and is \
             not held: its guest ends with the daemon"
        );
    }
    !is_foreign
}

impl Recorder {
    /// Continues the record in the arena, for a device with this number of rings.
    ///
    /// # Errors
    /// The record cannot be read, or one of its descriptors is closed.
    pub(super) fn load(arena: &Arc<Arena>, rings: usize) -> io::Result<Self> {
        let state = DeviceState::load(arena).ok_or_else(|| {
            io::Error::other("the record of what the frontend has set up is damaged")
        })?;
        let mut descriptors = HashMap::new();
        for number in state.descriptors() {
            if let Entry::Vacant(entry) = descriptors.entry(number) {
                entry.insert(process::adopt(number)?);
            }
        }
        Ok(Self {
            arena: Arc::clone(arena),
            rings,
            held: descriptors.keys().copied().collect(),
            state,
            descriptors,
        })
    }

    /// What the frontend has set up.
    pub(super) const fn state(&self) -> &DeviceState {
        &self.state
    }

    /// Takes `state`, which has no descriptors, for what the frontend has set up.
    pub(super) fn assume(&mut self, state: DeviceState) {
        self.state = state;
        self.store();
    }

    /// Whether the frontend waits for a reply.
    pub(super) const fn is_pending(&self) -> bool {
        self.state.pending.is_some()
    }

    /// The descriptor of this number, if it is one of the record's.
    pub(super) fn descriptor(&self, number: RawFd) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(&number).map(AsFd::as_fd)
    }

    /// Records a message of the frontend before it is handled. Takes its descriptors and returns
    /// their numbers. `arriving` is the message as it is in the socket, if it is still there.
    pub(super) fn begin(&mut self, message: &mut Message, arriving: Option<Vec<u8>>) -> Vec<RawFd> {
        let mut numbers = Vec::with_capacity(message.descriptors.len());
        for descriptor in message.descriptors.drain(..) {
            numbers.push(descriptor.as_raw_fd());
            self.descriptors.insert(descriptor.as_raw_fd(), descriptor);
        }
        let pending = PendingMessage {
            request: message.request,
            flags: message.flags,
            payload: message.payload.clone(),
            descriptors: numbers.clone(),
        };
        self.state.arriving = arriving;
        if self.has_reply(message) {
            self.state.pending = Some(pending);
        } else {
            self.apply(&pending);
        }
        self.store();
        numbers
    }

    /// The arriving message was taken out of the socket.
    pub(super) fn taken_out(&mut self) {
        if self.state.arriving.take().is_some() {
            self.store();
        }
    }

    /// Closes the descriptors that are not part of the record, after the message was passed on.
    pub(super) fn close_unused(&mut self) {
        let used = self.state.descriptors();
        self.descriptors.retain(|number, _| used.contains(number));
    }

    /// The pending message has got `reply`, which is to be sent next. `by` has carried out all
    /// messages before it.
    pub(super) fn end(&mut self, reply: &Message, by: Author) {
        let Some(pending) = self.state.pending.take() else {
            return;
        };
        let is_acknowledgement = !always_has_reply(pending.request);
        if !is_acknowledgement || reply.u64() == Some(0) {
            self.apply(&pending);
        }
        if by == Author::Device {
            // In the order of the messages.
            let rings = self.state.rings.iter_mut();
            rings.for_each(|ring| ring.is_draining = false);
        }
        self.store();
    }

    /// What becomes part of the state is held before, and what is not part of it any more is held
    /// no longer before it is closed. So the numbers in the state are those that are held.
    fn store(&mut self) {
        let Some(holder) = self.arena.holder().cloned() else {
            return self.store_state();
        };
        let used: HashSet<RawFd> = self.state.descriptors().into_iter().collect();
        let new = used.difference(&self.held).copied();
        let new = new.filter(|number| may_be_held(*number));
        let memory: HashSet<RawFd> = self.state.memory_files().into_iter().collect();
        let (memory, others): (Vec<_>, Vec<_>) = new.partition(|number| memory.contains(number));
        holder.hold(&others);
        holder.hold_memory(&memory);
        self.store_state();
        let unused: Vec<_> = self.held.difference(&used).copied().collect();
        holder.release(&unused);
        self.held = used;
    }

    fn store_state(&self) {
        if !self.state.store(&self.arena) {
            log::error!("a guest's set-up is too large to be recorded; please report this");
        }
    }

    /// Whether vhost-user-backend replies to a message.
    fn has_reply(&self, message: &Message) -> bool {
        if always_has_reply(message.request) {
            return true;
        }
        let mut features = self.state.protocol_features;
        if message.frontend_request() == Some(FrontendReq::SET_PROTOCOL_FEATURES) {
            features = message.u64();
        }
        let acknowledges =
            features.is_some_and(|features| features & ProtocolFeatures::REPLY_ACK.bits() != 0);
        message.needs_reply() && acknowledges && self.state.has_asked_features
    }

    /// Makes a message's effect part of the state. vhost-user-backend refuses what is malformed.
    fn apply(&mut self, message: &PendingMessage) {
        let Ok(request) = FrontendReq::try_from(message.request) else {
            return;
        };
        let state = &mut self.state;
        let number = payload::to_u64(&message.payload);
        let first = message.descriptors.first().copied();
        match request {
            FrontendReq::SET_OWNER => state.is_owned = true,
            FrontendReq::RESET_OWNER => {
                state.is_owned = false;
                (state.features, state.protocol_features) = (None, None);
            }
            FrontendReq::GET_FEATURES => state.has_asked_features = true,
            FrontendReq::SET_FEATURES => state.features = number,
            FrontendReq::SET_PROTOCOL_FEATURES => state.protocol_features = number,
            FrontendReq::SET_BACKEND_REQ_FD => state.backend_channel = first,
            FrontendReq::SET_INFLIGHT_FD => {
                state.inflight = first.and_then(|file| inflight(&message.payload, file));
            }
            FrontendReq::SET_LOG_BASE => {
                let area = log_area(&message.payload).zip(first);
                state.log = area.map(|([size, offset], file)| LogState { size, offset, file });
            }
            FrontendReq::SET_MEM_TABLE => {
                let offset = size_of::<MemoryTableHead>();
                state.regions = regions(&message.payload, offset, &message.descriptors);
            }
            FrontendReq::ADD_MEM_REG => {
                let added = regions(&message.payload, REGION_PADDING, &message.descriptors);
                state.regions.extend(added);
            }
            FrontendReq::REM_MEM_REG => {
                for removed in regions(&message.payload, REGION_PADDING, &[0]) {
                    state.regions.retain(|region| {
                        (region.guest_address, region.len) != (removed.guest_address, removed.len)
                    });
                }
            }
            FrontendReq::RESET_DEVICE => {
                state.features = None;
                state
                    .rings
                    .iter_mut()
                    .for_each(|ring| (ring.is_enabled, ring.is_draining) = (false, false));
            }
            _ => self.apply_to_ring(request, message),
        }
    }

    fn apply_to_ring(&mut self, request: FrontendReq, message: &PendingMessage) {
        let address: Option<VringAddr> = payload::decode(&message.payload);
        let value: Option<VringState> = payload::decode(&message.payload);
        let number = payload::to_u64(&message.payload);
        let index = match request {
            FrontendReq::SET_VRING_KICK
            | FrontendReq::SET_VRING_CALL
            | FrontendReq::SET_VRING_ERR => number.map(|number| number & VRING_INDEX_MASK),
            FrontendReq::SET_VRING_ADDR => address.map(|address| address.index.into()),
            _ => value.map(|value| value.index.into()),
        };
        let index = index.and_then(|index| usize::try_from(index).ok());
        let Some(index) = index.filter(|index| *index < self.rings) else {
            return;
        };
        let ring = self.state.ring(index);
        let given = message.descriptors.first().copied();
        let descriptor = given.filter(|_| number.is_some_and(|n| n & NO_DESCRIPTOR == 0));
        match (request, value, address) {
            (FrontendReq::SET_VRING_KICK, ..) => ring.kick = descriptor,
            (FrontendReq::SET_VRING_CALL, ..) => ring.call = descriptor,
            (FrontendReq::SET_VRING_ERR, ..) => ring.error = descriptor,
            (FrontendReq::SET_VRING_NUM, Some(value), _) => ring.size = value.num,
            (FrontendReq::SET_VRING_ENABLE, Some(value), _) => {
                let has_run = ring.is_enabled && ring.kick.is_some();
                ring.is_enabled = value.num != 0;
                ring.is_draining = !ring.is_enabled && (has_run || ring.is_draining);
            }
            (FrontendReq::GET_VRING_BASE, ..) => {
                (ring.kick, ring.call, ring.addresses) = (None, None, None);
            }
            (FrontendReq::SET_VRING_ADDR, _, Some(address)) => {
                ring.addresses = Some([
                    address.flags.into(),
                    address.descriptor,
                    address.used,
                    address.available,
                    address.log,
                ]);
            }
            // User Mode Linux stops a ring by disabling it.
            (FrontendReq::SET_VRING_BASE, Some(value), _)
                if ring.kick.is_none() || !ring.is_enabled =>
            {
                if let Some(requests) = RingRequests::new(&self.arena, index)
                    && !requests.is_carried_over()
                {
                    // The ring is stopped. An index has 16 bits.
                    requests.set_up(u16::try_from(value.num & 0xffff).unwrap_or_default());
                }
            }
            _ => {}
        }
    }
}

/// Whether a message has a reply of its own, rather than an acknowledgement.
fn always_has_reply(request: u32) -> bool {
    matches!(
        FrontendReq::try_from(request),
        Ok(FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::GET_CONFIG
            | FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::GET_INFLIGHT_FD
            | FrontendReq::GET_SHARED_OBJECT
            | FrontendReq::GET_SHMEM_CONFIG
            | FrontendReq::SET_LOG_BASE
            | FrontendReq::SET_DEVICE_STATE_FD
            | FrontendReq::CHECK_DEVICE_STATE)
    )
}

/// The memory of SET_INFLIGHT_FD, with its file.
pub(super) fn inflight(payload: &[u8], file: RawFd) -> Option<InflightState> {
    let inflight: Inflight = payload::decode(payload)?;
    Some(InflightState {
        file,
        offset: inflight.mmap_offset,
        rings: inflight.num_queues,
        ring_size: inflight.queue_size,
    })
}

/// Size and offset of the bitmap of SET_LOG_BASE, in bytes.
pub(super) fn log_area(payload: &[u8]) -> Option<[u64; 2]> {
    let (size, rest) = payload.split_first_chunk()?;
    let (offset, _) = rest.split_first_chunk()?;
    Some([u64::from_le_bytes(*size), u64::from_le_bytes(*offset)])
}

/// The regions of a message from the byte `offset` on, with their files.
fn regions(payload: &[u8], offset: usize, files: &[RawFd]) -> Vec<RegionState> {
    let bytes = payload.get(offset..).unwrap_or_default();
    let regions = bytes.chunks_exact(size_of::<MemoryRegion>());
    let regions = regions.filter_map(payload::decode::<MemoryRegion>);
    regions
        .zip(files)
        .map(|(region, file)| RegionState {
            guest_address: region.guest_phys_addr,
            len: region.memory_size,
            user_address: region.user_addr,
            file_offset: region.mmap_offset,
            file: *file,
        })
        .collect()
}

#[cfg(test)]
mod tests;
