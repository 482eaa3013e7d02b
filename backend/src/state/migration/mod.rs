//! The state of a guest that migrates between daemons, in virtiofsd's stream.
//!
//! The stream is what a daemon writes after `SET_DEVICE_STATE_FD` (vhost-user, "Migrating back-end
//! state"). Its first part has the format of virtiofsd 1.14 (`src/passthrough/device_state`), so
//! that guests migrate between both daemons in both directions. [`MigratedGuest::decode`] reads
//! versions 1 and 2, [`MigratedGuest::encode`] writes version 2.
//!
//! # Primitives
//!
//! The encoding is postcard's, version 1. An unsigned number is a varint: 7 bits a byte, the
//! lowest first, bit 7 set in all bytes but the last. A signed number is mapped to an unsigned one
//! first: 0, -1, 1, -2 become 0, 1, 2, 3 (zigzag). A bool is one byte. A string, a list and a map
//! begin with their length as a varint. An optional value begins with a byte, 0 or 1. An
//! enumeration begins with the number of its variant as a varint.
//!
//! # virtiofsd's part
//!
//! ```text
//! stream      0, state                      version 1
//!             1, state, map u64 -> string   version 2: mount id of the source -> path in the share
//! state       list of inode, next inode u64, list of handle, next handle u64, options
//! inode       id u64, references u64, location, optional file handle
//! location    0                             the root
//!             1, parent u64, name string    a name in another inode
//!             2                             the source has lost it
//!             3, path string                a path from the root
//!             4, file handle
//! file handle mount id u64, type i32, list of u8
//! handle      id u64, inode u64, 0, open flags i32
//! options     writeback, announce submounts, POSIX ACLs, supplementary groups: bool each
//! ```
//!
//! - Inode 1 is the root. The destination finds it by its own command line.
//! - An inode whose location is a name holds one of its parent's references. The destination drops
//!   that reference once it has opened the inode: [`GuestState::child_counts`].
//! - A name is UTF-8. A source marks an inode whose name is not as lost: [`Location::child`].
//! - A file handle beside the location is for comparison, without its mount id
//!   (`--migration-verify-handles`). A file handle as location is opened below the path that the
//!   map gives for its mount id (`--migration-mode=file-handles`).
//! - The flags of open(2) are the source host's, without those that only matter while a file is
//!   opened first: O_CREAT, O_EXCL and O_TRUNC.
//! - virtiofsd lists inodes and handles by rising id. The encoder does the same, and also sorts the
//!   map, whose order virtiofsd leaves open.
//!
//! # Our part
//!
//! The bytes "GANG", the version as u32, and fields follow; see the module `extension`. virtiofsd
//! ignores what follows its part. A stream without ours comes from virtiofsd.
//!
//! # Trust
//!
//! Whoever can write the stream can choose every byte. Nothing is allocated by a count before the
//! items are there, and every list, name and depth has a limit. A [`MigratedGuest`] is complete:
//! its ids are unique, each parent and each handle's inode exists, and no name leads out of its
//! parent.

mod check;
mod decode;
mod encode;
mod error;
mod extension;
mod model;
mod options;
mod transfer;
mod wire;

pub use check::MigratedGuest;
pub use error::{Error, ExtensionProblem, HandleProblem, InodeProblem, NameProblem, Part};
pub use extension::{Extension, FileLock, Init, LockKind, NegotiatedErrors};
pub use model::{FileHandle, GuestState, Handle, Inode, Location, NegotiatedOptions};
pub use options::{MigrationMode, MigrationOnError, MigrationOptions};
pub use transfer::TransferError;

/// Bytes that a stream may have. The relay of this workspace keeps no more either.
pub const MAX_STREAM_LEN: usize = 1 << 30;

/// Inodes that a stream may list: what 2 GiB of memory hold.
pub const MAX_INODES: u64 = 1 << 24;

/// Handles that a stream may list. Each is an open descriptor, of which Linux permits a process
/// 1 Mi unless `fs.nr_open` is raised.
pub const MAX_HANDLES: u64 = 1 << 20;

/// Mounts that a stream may list; Linux permits 100,000 for each namespace (`fs.mount-max`).
pub const MAX_MOUNTS: u64 = 100_000;

/// File locks that a stream may list.
pub const MAX_LOCKS: u64 = 1 << 20;

/// Bytes in a name (`NAME_MAX`, linux/limits.h).
pub const MAX_NAME_LEN: usize = 255;

/// Bytes in a path (`PATH_MAX` without the final NUL, linux/limits.h).
pub const MAX_PATH_LEN: usize = 4095;

/// Bytes in a file handle (`MAX_HANDLE_SZ`, linux/exportfs.h).
pub const MAX_FILE_HANDLE_LEN: usize = 128;

/// Parents that an inode may have above it, the root included.
pub const MAX_DEPTH: u32 = 1 << 16;

/// The id of the root (`FUSE_ROOT_ID`, linux/fuse.h).
pub const ROOT_ID: u64 = 1;

#[cfg(test)]
mod tests;
