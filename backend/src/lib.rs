//! `gangplankd`'s library: a vhost-user virtio-fs daemon that shares one host directory with every guest.
//!
//! A request goes one way: [`device`] takes a descriptor chain from a virtqueue, [`session`] decodes the
//! FUSE request in it and calls a [`session::FileSystem`], [`passthrough`] does the work on the host's
//! files, and the chain goes back with the reply in it.

pub mod args;
mod compat;
pub mod config;
pub mod device;
pub mod passthrough;
pub mod run;
pub mod sandbox;
pub mod serve;
pub mod session;
pub mod socket;
pub mod sys;
