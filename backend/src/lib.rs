//! `gangplankd`'s library: a vhost-user virtio-fs daemon that shares one host directory with every
//! guest.
//!
//! A request takes one path: [`device`] takes a descriptor chain from a virtqueue, [`session`]
//! decodes its FUSE request and calls a [`session::FileSystem`], [`passthrough`] does the work on
//! the host's files, and [`device`] returns the chain with the reply in it.

pub mod acceptor;
pub mod args;
mod compat;
pub mod config;
pub mod crash_hook;
pub mod device;
pub mod handover;
pub mod holder;
pub mod keeper;
pub mod manual;
pub mod passthrough;
pub mod quota;
pub mod run;
pub mod sandbox;
pub mod session;
pub mod shares;
pub mod socket;
mod start_line;
pub mod state;
pub mod status;
pub mod storage;
pub mod supervisor;
pub mod sys;
pub mod trace;
