//! Keeping guests when all processes of the daemon die at once: a holder outside of the daemon has
//! duplicates of what cannot be made again. It is the service manager, or the relay that `--holder`
//! names.
//!
//! ```text
//! worker ── Hold, Unhold ──> supervisor ── FDSTORE=1 ──> service manager, or relay
//!                                                             │ everything of the daemon dies
//! keeper <── as at a reload ── supervisor <── LISTEN_FDS ─────┘ or by the relay's socket
//! ```
//!
//! The holder has a guest's state, connection, root and mount namespace, what its frontend has
//! sent, and descriptors that hold locks or files without a name. The many `O_PATH` descriptors of
//! inodes are not held: as long as a holder is in use, the state has a reference to each inode
//! that the guest learns, and the next worker finds them again by it, like inodes whose descriptors
//! were evicted.
//!
//! The next program's supervisor plays the acceptor and the keepers of an older program
//! ([`crate::handover`]), and the new keepers know that descriptors are missing.

pub mod client;
pub mod comeback;
pub mod place;
pub mod store;
