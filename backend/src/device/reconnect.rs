//! A frontend that reconnects without a handshake.
//!
//! QEMU's `vhost-user-fs` device does not notice that its character device has a new connection
//! (`-chardev socket,reconnect=1`). It says nothing until the guest resets the device. Then it
//! stops the rings (SET_VRING_ENABLE, GET_VRING_BASE) and sets the device up again (SET_FEATURES,
//! memory, rings), in the protocol that it has negotiated on its first connection.

use gangplank_vhost_user::message::{FrontendReq, Message, ProtocolFeatures};
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::state::device::DeviceState;

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
