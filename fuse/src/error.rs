//! How bytes can fail to be a request or a reply.

use crate::{Opcode, UnknownOpcode};

/// Why bytes are not a request, reply or directory stream. Nothing of them was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The header asks for something 7.45 does not define: answer ENOSYS.
    #[error(transparent)]
    UnknownOpcode(#[from] UnknownOpcode),
    /// The header's `len` does not even cover the header.
    #[error("a header gives the length of its message as {len} bytes, less than the header itself")]
    HeaderLength {
        /// The `len` found.
        len: u32,
    },
    /// The header's `len` is larger than the message.
    #[error(
        "a header gives the length of its message as {len} bytes, but only {present} were received"
    )]
    Truncated {
        /// The `len` found.
        len: u32,
        /// Bytes at hand, header included.
        present: usize,
    },
    /// A structure does not fit in what is left.
    #[error("{what}: {wanted} bytes are needed where {present} are left")]
    TooShort {
        /// Opcode or structure being decoded.
        what: &'static str,
        /// Bytes the structure takes.
        wanted: usize,
        /// Bytes left.
        present: usize,
    },
    /// A name has no terminating NUL.
    #[error("{what}: a name has no NUL within the {present} bytes left")]
    Unterminated {
        /// Opcode or structure being decoded.
        what: &'static str,
        /// Bytes left.
        present: usize,
    },
    /// Bytes follow where the message should end.
    #[error("{what}: {surplus} bytes follow the end of the message")]
    Trailing {
        /// Opcode or structure being decoded.
        what: &'static str,
        /// Bytes too many.
        surplus: usize,
    },
    /// A count in the message exceeds the bytes that came with it.
    #[error("{what}: counts {count} where {present} have come")]
    Count {
        /// Opcode or structure being decoded.
        what: &'static str,
        /// The count found.
        count: u64,
        /// What the bytes at hand allow, in the same unit.
        present: u64,
    },
    /// The same extension comes twice.
    #[error("{opcode}: an extension of type {kind} comes twice")]
    RepeatedExtension {
        /// Request being decoded.
        opcode: Opcode,
        /// `fuse_ext_header.type`; security contexts count as 0.
        kind: u32,
    },
    /// An extension is announced by an operation whose end stays in the transport.
    #[error("{opcode}: extensions cannot follow bulk data")]
    MisplacedExtension {
        /// Request being decoded.
        opcode: Opcode,
    },
    /// A reply's `error` is neither zero nor a negated errno.
    #[error("a reply's error is {error}, neither zero nor a negated errno")]
    BadError {
        /// The `error` found.
        error: i32,
    },
}

/// Why a request cannot be put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The request would exceed what the header's 32-bit `len` can say.
    #[error("{opcode}: a request of {bytes} bytes exceeds the protocol's 4 GiB")]
    TooLong {
        /// Request being encoded.
        opcode: Opcode,
        /// Its length, in bytes.
        bytes: u64,
    },
    /// The extensions would exceed what the header's 16-bit `total_extlen` can say.
    #[error("{opcode}: {bytes} bytes of extensions exceed the protocol's 512 KiB")]
    ExtensionsTooLong {
        /// Request being encoded.
        opcode: Opcode,
        /// Their length, in bytes.
        bytes: usize,
    },
    /// Extensions on an operation whose end stays in the transport.
    #[error("{opcode}: extensions cannot follow bulk data")]
    MisplacedExtension {
        /// Request being encoded.
        opcode: Opcode,
    },
}
