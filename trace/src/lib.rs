//! The file format of gangplankd's `--trace`: one record for each FUSE request.
//!
//! A trace is a pcapng file (draft-ietf-opsawg-pcapng), so that tools cut, merge and show it:
//! `editcap -A`, `mergecap`, Wireshark. Each record is an Enhanced Packet Block whose packet has
//! the link type [`LINK_TYPE`] and the content of [`Record`]. The block's time is when a thread
//! began to serve the request. The option `epb_dropcount` counts the records that were lost before it.
//!
//! Several processes append to one file, each a few whole blocks by one write(2). Each program that
//! opens a trace appends a section header, which says that the format begins anew. A process that
//! is killed may leave a part of a block; [`Reader`] finds the next whole one.
//!
//! A record has the bytes of the request as the guest sent them, without file data: reader and
//! writer share the decoder of `gangplank-fuse`, and a field that a newer kernel sends is kept.
//!
//! ```text
//!  0  version (1), kind (0: request, 1: a worker begins, 2: a worker ends), ring u16
//!  4  guest u32
//!  8  duration in ns u64
//! 16  errno u32 (0: success)     20  bytes of the reply u32
//! 24  minor version u32          28  flags u32 (1: SETXATTR_EXT, 2: SECURITY_CTX)
//! 32  what the reply named, two u64: a node id, a handle, a count
//! 48  bytes of the arguments u32, of which the record may have fewer; 4 bytes 0
//! 56  the request's header (struct fuse_in_header), then its arguments
//! ```
//!
//! All numbers are little-endian.
#![forbid(unsafe_code)]

mod block;
mod reader;
mod record;

pub use block::{MAX_RECORD, section_header, write_record};
pub use reader::{Item, ReadError, Reader};
pub use record::{Kind, MAX_ARGS, Record, Told};

/// The link type of a packet with a record: `LINKTYPE_USER0`, whose meaning the user defines.
pub const LINK_TYPE: u16 = 147;

/// Version of the records.
pub const VERSION: u8 = 1;
