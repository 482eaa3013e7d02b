//! vhost-user as virtio-fs needs it: messages, descriptor passing, and a client with deadlines.
//!
//! ```text
//!   client      negotiates with a daemon and starts its rings, in the order that daemons accept
//!   connection  sends a request and waits for its reply
//!   message     header, request numbers, payloads; a message with its descriptors
//!   descriptors bytes and file descriptors over a Unix socket (SCM_RIGHTS)
//! ```
//!
//! The crate knows sockets and descriptors, and neither FUSE nor files nor the content of rings.
//! Request numbers and payload structures are those of the `vhost` crate. The source is the
//! vhost-user specification, <https://qemu.readthedocs.io/en/latest/interop/vhost-user.html>.

pub mod client;
pub mod connection;
mod deadline;
pub mod descriptors;
pub mod feature;
pub mod message;

pub use deadline::Deadline;
