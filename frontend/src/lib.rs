//! `gangplank-frontend`'s library: what stands on the driver's side of a vhost-user virtio-fs daemon.
//!
//! It shares no code with the backend but the FUSE wire, and works with any virtio-fs daemon.
//!
//! What maps guest memory is for machines of 64 bits, as vm-memory is. Others get the little that does not.

#[cfg(target_pointer_width = "64")]
pub mod args;
#[cfg(target_pointer_width = "64")]
pub mod bao;
#[cfg(target_pointer_width = "64")]
pub mod config;
#[cfg(target_pointer_width = "64")]
pub mod fake;
#[cfg(target_pointer_width = "64")]
pub mod holder;
#[cfg(target_pointer_width = "64")]
pub mod hypervisor;
#[cfg(target_pointer_width = "64")]
pub mod journal;
#[cfg(target_pointer_width = "64")]
pub mod mmio;
#[cfg(target_pointer_width = "64")]
pub mod model;
#[cfg(target_pointer_width = "64")]
pub mod program;
