//! Virtio feature bits that a virtio-fs daemon may be asked for (virtio 1.2, 6).

/// Dirty pages are logged (`VHOST_F_LOG_ALL`): vhost-user's own, never a driver's.
pub const LOG_ALL: u64 = 1 << 26;
/// Descriptors may lie in tables of their own (`VIRTIO_RING_F_INDIRECT_DESC`).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are asked for by index (`VIRTIO_RING_F_EVENT_IDX`).
pub const EVENT_IDX: u64 = 1 << 29;
/// There are protocol features (`VHOST_USER_F_PROTOCOL_FEATURES`): vhost-user's own, never a driver's.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Virtio 1.0 and later (`VIRTIO_F_VERSION_1`).
pub const VERSION_1: u64 = 1 << 32;
/// The platform decides on addresses (`VIRTIO_F_ACCESS_PLATFORM`): between driver and device model, never the daemon's.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
