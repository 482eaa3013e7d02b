//! `gangplank-frontend`'s library: what stands on the driver's side of a vhost-user virtio-fs daemon.
//!
//! It shares no code with the backend but the FUSE wire, and works with any virtio-fs daemon.

pub mod args;
pub mod bao;
pub mod config;
mod connecting;
pub mod driver;
pub mod failure;
pub mod fake;
mod fnv;
pub mod fs;
pub mod holder;
pub mod hypervisor;
pub mod journal;
mod limits;
pub mod listening;
pub mod mmio;
pub mod model;
pub mod program;
pub mod relay;
pub mod seldom;
pub mod vhost_user;
