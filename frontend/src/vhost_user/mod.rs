//! The client's side of vhost-user, as a virtio-fs daemon needs it.
//!
//! ```text
//!   connect ── SET_OWNER, features, protocol features, queue count, configuration (cached) ──> idle
//!   idle    ── SET_FEATURES, SET_MEM_TABLE, each ring, enable all, kick all ────────────────> running
//!   running ── disable, GET_VRING_BASE of each ring ────────────────────────────────────────> idle
//!   any     ── RESET_DEVICE, where agreed ──────────────────────────────────────────────────> idle
//! ```
//!
//! [`Session`] keeps to that order on anything that carries [`Messages`]: [`Socket`] is a daemon's socket, a test records.
//! No wait is without a deadline, and a daemon that misses one has lost its connection.

mod error;
mod messages;
mod session;
mod socket;
mod watchdog;

pub use error::{Error, Result};
pub use messages::{Messages, Region, RingAddresses};
pub use session::{CONFIG_LEN, Facts, FsConfig, RingSetup, Session, TAG_LEN};
pub use socket::{Deadlines, Socket};
pub use vmm_sys_util::eventfd::EventFd;

/// Virtio feature bits that a virtio-fs daemon may be asked for (virtio 1.2, 6).
pub mod feature {
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
}
