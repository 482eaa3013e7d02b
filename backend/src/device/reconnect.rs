//! Frontends that reconnect.
//!
//! One that keeps the requests in flight (`INFLIGHT_SHMFD`) is recognised by that memory, and finds
//! its guest's session again ([`KeptSession`]).
//!
//! Another one goes on without a handshake. QEMU's `vhost-user-fs` device does not notice that its
//! character device has a new connection (`-chardev socket,reconnect=1`). It says nothing until the
//! guest resets the device. Then it stops the rings (SET_VRING_ENABLE, GET_VRING_BASE) and sets the
//! device up again (SET_FEATURES, memory, rings), in the protocol that it has negotiated on its
//! first connection.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_vhost_user::message::{FrontendReq, Message, ProtocolFeatures};
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::state::arena::Arena;
use crate::state::device::DeviceState;
use crate::state::requests::RingRequests;

/// How long requests that are running may take after the connection is lost. Those that take longer
/// are finished by the next worker, as after a death. A request that the storage does not answer
/// keeps the process from ending for longer.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the requests that are running are looked at meanwhile.
const RUNNING_INTERVAL: Duration = Duration::from_millis(1);

/// The ways by which a session outlives its connection.
pub trait KeptSession {
    /// Tells the acceptor that this guest's frontend keeps its requests in flight in `memory`.
    fn announce(&self, memory: BorrowedFd<'_>);

    /// Has the processes that have served the frontend with this `memory` before take `frontend`,
    /// the connection, over. Returns if there are none, or they do not: whether the frontend is
    /// still there.
    fn find(&self, memory: BorrowedFd<'_>, frontend: BorrowedFd<'_>) -> bool;

    /// Whether the session is to outlive the connection, which is lost.
    fn is_kept(&self) -> bool;

    /// Ends the worker, and leaves the session to the next one.
    fn leave(&self) -> !;
}

/// Whether a frontend that set `state` up may come back for the guest's session: it keeps the
/// requests in flight, the guest has mounted, and a ring runs. One that ends in order has stopped
/// its rings.
pub(super) fn may_come_back(state: &DeviceState, arena: &Arc<Arena>) -> bool {
    let is_mounted = arena.header().session.offer().is_some();
    let runs = state.rings.iter().any(|ring| ring.kick.is_some())
        || rings(arena).any(|requests| requests.is_carried_over());
    state.inflight.is_some() && is_mounted && runs
}

/// Waits until no thread serves a request, for at most [`RUNNING_TIMEOUT`].
pub(super) fn wait_for_running(arena: &Arc<Arena>) {
    let end = Instant::now() + RUNNING_TIMEOUT;
    while rings(arena).any(|requests| requests.is_running()) && Instant::now() < end {
        std::thread::sleep(RUNNING_INTERVAL);
    }
}

/// The rings for which the arena has room.
pub(super) fn rings(arena: &Arc<Arena>) -> impl Iterator<Item = Arc<RingRequests>> {
    (0..).map_while(|ring| RingRequests::new(arena, ring))
}

/// Whether `message` is the first of a frontend that has had its handshake on an earlier
/// connection.
pub(super) fn goes_on(state: &DeviceState, message: &Message) -> bool {
    let has_begun = state.is_owned
        || state.has_asked_features
        || state.features.is_some()
        || state.protocol_features.is_some();
    let is_later = matches!(
        message.frontend_request(),
        Some(
            FrontendReq::SET_FEATURES
                | FrontendReq::SET_MEM_TABLE
                | FrontendReq::GET_VRING_BASE
                | FrontendReq::SET_VRING_ENABLE
        )
    );
    is_later && !has_begun
}

/// What such a frontend has set up. A protocol feature that it has not negotiated changes nothing,
/// since it sends none of that feature's messages and no flag that asks for acknowledgements.
pub(super) fn handshake() -> DeviceState {
    let protocol = ProtocolFeatures::MQ
        | ProtocolFeatures::REPLY_ACK
        | ProtocolFeatures::RESET_DEVICE
        | ProtocolFeatures::BACKEND_REQ;
    let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << VIRTIO_F_VERSION_1;
    DeviceState {
        is_owned: true,
        has_asked_features: true,
        features: Some(features),
        protocol_features: Some(protocol.bits()),
        ..DeviceState::default()
    }
}
