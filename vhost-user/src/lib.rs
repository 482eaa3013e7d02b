//! vhost-user as virtio-fs needs it: messages, descriptor passing, and a client with deadlines.
//!
//! It knows sockets and descriptors, and neither FUSE nor files nor the content of rings. Message
//! numbers and structures are those of the `vhost` crate.

pub mod client;
pub mod feature;
