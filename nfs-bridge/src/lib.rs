//! The library of `gangplank-nfs`: the shared directory by NFSv3, for machines that mount nothing
//! else.
//!
//! ```text
//!   network ─> rpc ─> nfs3, nlm, nsm, mount3, portmap ─> share ─> virtio-fs daemon
//! ```
//!
//! The program opens no file of the share. It sends requests to a virtio-fs daemon, as a guest
//! does.
#![forbid(unsafe_code)]

pub mod args;
pub mod config;
pub mod exports;
pub mod identity;
pub mod manual;
pub mod mount3;
pub mod network;
pub mod nfs3;
pub mod nlm;
pub mod nsm;
pub mod portmap;
pub mod rpc;
pub mod sandbox;
pub mod serve;
pub mod share;
pub mod state_log;
pub mod status;
pub mod xdr;
