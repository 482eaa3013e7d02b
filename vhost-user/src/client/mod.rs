//! The frontend's side of vhost-user, as a virtio-fs daemon needs it.
//!
//! ```text
//!   connect ── SET_OWNER, features, protocol features, queue count, configuration ──> idle
//!   idle    ── SET_FEATURES, SET_MEM_TABLE, each ring, enable all, kick all ────────> running
//!   running ── disable, GET_VRING_BASE of each ring ────────────────────────────────> idle
//!   any     ── RESET_DEVICE, where agreed ──────────────────────────────────────────> idle
//! ```
//!
//! [`Backend`] keeps to that order on anything that carries [`Messages`]: a [`Socket`], or a test's
//! recorder. Every wait has a deadline, and a daemon that misses one loses its connection.

mod backend;
mod error;
mod messages;
mod socket;

pub use backend::{Backend, CONFIG_LEN, Facts, FsConfig, RingSetup, TAG_LEN};
pub use error::{Error, Result};
pub use messages::{Messages, Region, RingAddresses};
pub use socket::{Deadlines, Socket};
pub use vmm_sys_util::eventfd::EventFd;
