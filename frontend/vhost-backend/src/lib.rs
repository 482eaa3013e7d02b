//! The device's side of a guest's vhost-user connection, for programs that offer a virtio-fs device
//! and are no daemon: the relay, and the tunnel over DVK.
//!
//! - `connection` takes the guest's messages and replies. A [`Device`] does what they say.
//! - `ring` is a ring as the guest has set it up, with its notifications.
//! - `memory` is the guest's memory table. It maps nothing.

mod connection;
mod memory;
mod ring;

pub use connection::{Connection, Device, GuestError, RequestError};
pub use memory::{Memory, TableError};
pub use ring::{MAX_RING_SIZE, Ring, Signal};
