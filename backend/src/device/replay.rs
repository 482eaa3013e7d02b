//! Sets a new device up as the worker before has left it.
//!
//! The messages go to vhost-user-backend as if the frontend sent them once more. The frontend sees
//! none of their replies.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::payload::{encode, from_u64, memory_table, ring_state};
use gangplank_vhost_user::message::{
    FrontendReq, Inbox, MAX_DESCRIPTORS, MemoryRegion, Message, MessageError, VringAddr,
};
use vhost::vhost_user::message::VhostUserVirtioFeatures;

use super::recorder::Recorder;
use crate::state::device::{DeviceState, PendingMessage, RegionState, RingState};

/// A message, with the numbers of its descriptors.
type Replayed = (Message, Vec<RawFd>);

/// Sends what `recorder` has recorded, and waits until all of it is set up. `next_available` is the
/// next index in each ring's available ring. `pass` sees each message before it is sent.
///
/// # Errors
/// vhost-user-backend has ended, because it has refused a message.
pub(super) fn replay<E: From<MessageError>>(
    recorder: &Recorder,
    next_available: impl Fn(usize) -> u16,
    backend: &OwnedFd,
    mut pass: impl FnMut(&Message) -> Result<(), E>,
) -> Result<(), E> {
    let messages = messages(recorder.state(), next_available);
    for (message, descriptors) in &messages {
        pass(message)?;
        let descriptors: Vec<BorrowedFd<'_>> = descriptors
            .iter()
            .filter_map(|number| recorder.descriptor(*number))
            .collect();
        message.send(backend.as_fd(), &descriptors, Deadline::NONE)?;
    }
    let expected = messages.iter().filter(|(message, _)| has_reply(message));
    for _ in expected {
        Inbox::default().wait(backend.as_fd(), Deadline::NONE)?;
    }
    Ok(())
}

/// The rings that run once all is set up.
pub(super) fn running_rings(state: &DeviceState) -> Vec<usize> {
    let rings = state.rings.iter().enumerate();
    let has_enable = needs_enable(state);
    rings
        .filter(|(_, ring)| {
            ring.kick.is_some() && (ring.is_enabled || ring.is_draining || !has_enable)
        })
        .map(|(index, _)| index)
        .collect()
}

/// What disables the rings that are draining once more, as soon as they have begun.
pub(super) fn disabling(state: &DeviceState) -> Vec<Message> {
    let rings = (0..).zip(&state.rings);
    let draining = rings.filter(|(_, ring)| ring.is_draining);
    draining
        .map(|(index, _)| Message::new(FrontendReq::SET_VRING_ENABLE, ring_state(index, 0)))
        .collect()
}

/// The message that was being handled, to be handled again.
pub(super) fn pending(message: &PendingMessage) -> Message {
    Message {
        request: message.request,
        flags: message.flags,
        payload: message.payload.clone(),
        descriptors: Vec::new(),
    }
}

/// Whether rings are enabled by messages; if not, SET_FEATURES enables them.
fn needs_enable(state: &DeviceState) -> bool {
    let bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    state.features.is_none_or(|features| features & bit != 0)
}

fn has_reply(message: &Message) -> bool {
    matches!(
        message.frontend_request(),
        Some(FrontendReq::GET_FEATURES | FrontendReq::GET_PROTOCOL_FEATURES)
    )
}

/// In the order of a handshake. The last has a reply, which says that all before are set up.
fn messages(state: &DeviceState, next_available: impl Fn(usize) -> u16) -> Vec<Replayed> {
    let plain = |request: FrontendReq, payload: Vec<u8>| (Message::new(request, payload), vec![]);
    let mut all = Vec::new();
    if state.has_asked_features {
        all.push(plain(FrontendReq::GET_FEATURES, Vec::new()));
    }
    if state.is_owned {
        all.push(plain(FrontendReq::SET_OWNER, Vec::new()));
    }
    if let Some(features) = state.protocol_features {
        all.push(plain(FrontendReq::GET_PROTOCOL_FEATURES, Vec::new()));
        let features = from_u64(features);
        all.push(plain(FrontendReq::SET_PROTOCOL_FEATURES, features));
    }
    if let Some(features) = state.features {
        all.push(plain(FrontendReq::SET_FEATURES, from_u64(features)));
    }
    if let Some(channel) = state.backend_channel {
        let message = Message::new(FrontendReq::SET_BACKEND_REQ_FD, Vec::new());
        all.push((message, vec![channel]));
    }
    let (table, added) = state
        .regions
        .split_at(state.regions.len().min(MAX_DESCRIPTORS));
    if !table.is_empty() {
        let regions: Vec<MemoryRegion> = table.iter().map(region).collect();
        let message = Message::new(FrontendReq::SET_MEM_TABLE, memory_table(&regions));
        all.push((message, table.iter().map(|region| region.file).collect()));
    }
    for added in added {
        let mut payload = vec![0; 8];
        payload.extend(encode(&region(added)));
        let message = Message::new(FrontendReq::ADD_MEM_REG, payload);
        all.push((message, vec![added.file]));
    }
    for (index, ring) in (0..).zip(&state.rings) {
        let next = next_available(usize::try_from(index).unwrap_or(usize::MAX));
        ring_messages(&mut all, index, ring, next, needs_enable(state));
    }
    all.push(plain(FrontendReq::GET_FEATURES, Vec::new()));
    all
}

fn ring_messages(
    all: &mut Vec<Replayed>,
    index: u32,
    ring: &RingState,
    next_available: u16,
    has_enable: bool,
) {
    let mut push = |request: FrontendReq, payload: Vec<u8>, descriptor: Option<RawFd>| {
        all.push((
            Message::new(request, payload),
            descriptor.into_iter().collect(),
        ));
    };
    if ring.size != 0 {
        push(
            FrontendReq::SET_VRING_NUM,
            ring_state(index, ring.size),
            None,
        );
    }
    let base = ring_state(index, next_available.into());
    push(FrontendReq::SET_VRING_BASE, base, None);
    if let Some([flags, descriptor, used, available, log]) = ring.addresses {
        let addresses = VringAddr {
            index,
            flags: u32::try_from(flags).unwrap_or_default(),
            descriptor,
            used,
            available,
            log,
        };
        push(FrontendReq::SET_VRING_ADDR, encode(&addresses), None);
    }
    for (request, descriptor) in [
        (FrontendReq::SET_VRING_ERR, ring.error),
        (FrontendReq::SET_VRING_CALL, ring.call),
        (FrontendReq::SET_VRING_KICK, ring.kick),
    ] {
        if descriptor.is_some() {
            push(request, from_u64(index.into()), descriptor);
        }
    }
    if has_enable && (ring.is_enabled || ring.is_draining) {
        push(FrontendReq::SET_VRING_ENABLE, ring_state(index, 1), None);
    }
}

fn region(state: &RegionState) -> MemoryRegion {
    MemoryRegion::new(
        state.guest_address,
        state.len,
        state.user_address,
        state.file_offset,
    )
}
