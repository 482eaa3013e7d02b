//! The FUSE wire protocol up to 7.45 (Linux 6.18), for both ends: structures, opcodes, flags,
//! requests and replies as bytes.
//!
//! No transport, no files, no sockets: a server passes the bytes of a request to
//! [`Operation::decode`] and replies with plain structures behind an [`OutHeader`]; a client writes
//! requests with [`Request::encode`] and reads replies with [`reply`]. Everything is host-endian
//! and therefore little-endian, as virtio-fs is on x86-64 and aarch64.
//!
//! Sources: the kernel's `include/uapi/linux/fuse.h` for all layouts, and `fs/fuse/` for the sender
//! of each message.
#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!(
    "the FUSE wire is host-endian and every virtio-fs peer supported here is little-endian"
);

#[macro_use]
mod wire;

mod cursor;
mod dialect;
mod error;
mod ext;
mod header;
mod ids;
mod opcode;
pub mod ops;
mod records;
pub mod reply;
mod request;

#[cfg(test)]
mod header_check;

pub use dialect::Dialect;
pub use error::{DecodeError, EncodeError};
pub use ext::{
    EXT_GROUPS, ExtHeader, Extensions, MAX_NR_SECCTX, Secctx, SecctxHeader, SecurityContext,
    SecurityContexts, SuppGroups, SupplementaryGroups,
};
pub use header::{INVALID_UIDGID, InHeader, OutHeader};
pub use ids::{Handle, NodeId, Unique};
pub use opcode::{Opcode, UnknownOpcode};
pub use ops::attr::*;
pub use ops::bmap::*;
pub use ops::cuse::*;
pub use ops::dax::*;
pub use ops::dir::{Dirent, Direntplus};
pub use ops::fs::*;
pub use ops::init::*;
pub use ops::io::*;
pub use ops::ioctl::*;
pub use ops::lock::*;
pub use ops::lookup::*;
pub use ops::notify::*;
pub use ops::open::*;
pub use ops::poll::*;
pub use ops::tree::*;
pub use ops::xattr::*;
pub use ops::{attr, dir, init, notify};
pub use records::Records;
pub use request::{Operation, Request, RequestHeader};

/// Major version of the protocol (`FUSE_KERNEL_VERSION`).
pub const KERNEL_VERSION: u32 = 7;

/// Newest minor version whose layouts this crate knows (`FUSE_KERNEL_MINOR_VERSION` of Linux 6.18).
pub const KERNEL_MINOR_VERSION: u32 = 45;

/// Oldest minor version whose layouts this crate accepts: Linux 4.19. What older kernels shortened
/// is not decoded.
pub const MIN_KERNEL_MINOR_VERSION: u32 = 27;

/// A server's request buffer must hold at least this many bytes (`FUSE_MIN_READ_BUFFER`).
pub const MIN_READ_BUFFER: usize = 8192;

/// Longest name the kernel sends or accepts in a directory entry, in bytes without the NUL
/// (`FUSE_NAME_MAX`, fs/fuse/fuse_i.h).
pub const NAME_MAX: usize = 1024;
