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

pub use error::{Error, Result};
pub use messages::{Messages, Region, RingAddresses};
pub use session::{CONFIG_LEN, Facts, FsConfig, RingSetup, Session, TAG_LEN};
pub use socket::{Deadlines, Socket};
pub use vmm_sys_util::eventfd::EventFd;
