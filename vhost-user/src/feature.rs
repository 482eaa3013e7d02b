//! Feature bits of a virtio-fs device (virtio 1.2, 6), and vhost-user's own among them.

/// The daemon logs dirty pages (`VHOST_F_LOG_ALL`). No driver may take it.
pub const LOG_ALL: u64 = 1 << 26;
/// Chains may use indirect tables (`VIRTIO_RING_F_INDIRECT_DESC`).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Driver and device ask for notifications by index (`VIRTIO_RING_F_EVENT_IDX`).
pub const EVENT_IDX: u64 = 1 << 29;
/// The daemon has protocol features (`VHOST_USER_F_PROTOCOL_FEATURES`). No driver may take it.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// The device follows virtio 1.0 or later (`VIRTIO_F_VERSION_1`).
pub const VERSION_1: u64 = 1 << 32;
/// The platform translates or restricts addresses (`VIRTIO_F_ACCESS_PLATFORM`): a matter of driver
/// and device model, not of the daemon.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
