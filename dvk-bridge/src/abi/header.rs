//! The header of a command between nodes, in its three generations.
//!
//! ```text
//! current  cmd dcid src dst snode dnode rcode len pid batch flags snd ack time
//!          message(36) copy(24)     120 bytes
//! legacy   cmd dcid src dst snode dnode rcode len     batch flags snd ack time
//!          message(76) | copy       132 bytes
//! early    the same as legacy, but with
//!          message(36) | copy        92 bytes
//! ```
//!
//! There is no magic number, version or checksum. The generation of a peer is configured.
//! [`Header::check`] detects an invalid header, and [`Generation::guess`] finds the generations
//! that would fit.

use zerocopy::{FromBytes, IntoBytes};

use super::command::Command;
use super::endpoint::{DcId, Endpoint, NodeId};
use super::generation::Generation;
use super::message::Message;
use super::wire::wire_struct;

/// Bytes that may follow a header at most. A copy is done in pieces of this size (`MAXCOPYBUF`).
pub const MAX_PAYLOAD: usize = 65_536;

/// Headers in a batch at most: more than any known proxy collects.
pub const MAX_BATCH: usize = 1024;

bitflags::bitflags! {
    /// Properties of a command.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct HeaderFlags: u32 {
        /// The payload consists of further headers.
        const BATCH = 1;
        /// The payload is an LZ4 frame.
        const LZ4 = 1 << 1;
        /// A load balancer has rewritten the header.
        const BALANCED = 1 << 2;
        const _ = !0;
    }
}

wire_struct! {
    /// The range of a copy.
    pub CopyBlock = "vcopy_t", 24 bytes from 0 {
        /// The endpoint whose memory is read.
        #[doc(alias = "v_src")]
        src: i32 => 0,
        /// The endpoint whose memory is written.
        #[doc(alias = "v_dst")]
        dst: i32 => 4,
        /// The endpoint that requests the copy.
        #[doc(alias = "v_rqtr")]
        requester: i32 => 8,
        /// Address in the source's memory.
        #[doc(alias = "v_saddr")]
        src_address: u32 => 12,
        /// Address in the destination's memory.
        #[doc(alias = "v_daddr")]
        dst_address: u32 => 16,
        /// Number of bytes.
        #[doc(alias = "v_bytes")]
        bytes: i32 => 20,
    }
}

wire_struct! {
    /// A point in time.
    pub Timestamp = "struct timespec", 8 bytes from 0 {
        /// Seconds since 1970.
        sec: i32 => 0,
        /// Nanoseconds.
        nsec: i32 => 4,
    }
}

wire_struct! {
    Current = "cmd_t (2022)", 120 bytes from 0 {
        cmd: i32 => 0,
        dcid: i32 => 4,
        src: i32 => 8,
        dst: i32 => 12,
        snode: i32 => 16,
        dnode: i32 => 20,
        rcode: i32 => 24,
        len: i32 => 28,
        pid: i32 => 32,
        batch_nr: i32 => 36,
        flags: u32 => 40,
        snd_seq: u32 => 44,
        ack_seq: u32 => 48,
        timestamp: Timestamp => 52,
        message: [u8; 36] => 60,
        copy: CopyBlock => 96,
    }
}

wire_struct! {
    Legacy = "cmd_t (2019)", 132 bytes from 0 {
        cmd: i32 => 0,
        dcid: i32 => 4,
        src: i32 => 8,
        dst: i32 => 12,
        snode: i32 => 16,
        dnode: i32 => 20,
        rcode: i32 => 24,
        len: i32 => 28,
        batch_nr: i32 => 32,
        flags: u32 => 36,
        snd_seq: u32 => 40,
        ack_seq: u32 => 44,
        timestamp: Timestamp => 48,
        content: [u8; 76] => 56,
    }
}

wire_struct! {
    Early = "cmd_t (early 2019)", 92 bytes from 0 {
        cmd: i32 => 0,
        dcid: i32 => 4,
        src: i32 => 8,
        dst: i32 => 12,
        snode: i32 => 16,
        dnode: i32 => 20,
        rcode: i32 => 24,
        len: i32 => 28,
        batch_nr: i32 => 32,
        flags: u32 => 36,
        snd_seq: u32 => 40,
        ack_seq: u32 => 44,
        timestamp: Timestamp => 48,
        content: [u8; 36] => 56,
    }
}

/// A command between nodes, independent of the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The command.
    pub command: Command,
    /// The container.
    pub dc: i32,
    /// The source: the requester of a copy, or the sender of an acknowledgement.
    pub src: Endpoint,
    /// The destination.
    pub dst: Endpoint,
    /// Node of the source.
    pub snode: i32,
    /// Node of the destination.
    pub dnode: i32,
    /// The result. In a notification the update bit or -1.
    pub rcode: i32,
    /// Bytes of the payload.
    pub len: i32,
    /// The process id of the source on its node. 0 where the generation has none.
    pub pid: i32,
    /// Headers in the payload.
    pub batch_nr: i32,
    /// How to read the payload.
    pub flags: HeaderFlags,
    /// Counts sent commands, for information only.
    pub snd_seq: u32,
    /// Counts received commands, for information only between nodes. The switch's programs put the
    /// number of their call here.
    pub ack_seq: u32,
    /// Time of sending, for information only.
    pub timestamp: Timestamp,
    /// The message. Generations with one place for both read the bytes of a copy here as well.
    pub message: Message,
    /// The copy. Generations with one place for both read the bytes of a message here as well.
    pub copy: CopyBlock,
}

/// Why a header is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer bytes than a header has.
    #[error("{got} bytes where a header has {wanted}")]
    Short {
        /// Bytes that there are.
        got: usize,
        /// Bytes of a header.
        wanted: usize,
    },
    /// An unknown command.
    #[error("unknown command {0:#x}")]
    Command(i32),
    /// An invalid length.
    #[error("{len} bytes cannot follow a {command}")]
    Length {
        /// The length.
        len: i32,
        /// The command.
        command: Command,
    },
    /// The length of a batch does not match its number of headers.
    #[error("a batch of {batch_nr} headers cannot be {len} bytes")]
    Batch {
        /// Number of headers.
        batch_nr: i32,
        /// Number of bytes.
        len: i32,
    },
    /// The source node is not the peer.
    #[error("the message is from node {got}, but the peer is node {wanted}")]
    SourceNode {
        /// The node in the header.
        got: i32,
        /// The configured node.
        wanted: NodeId,
    },
    /// The destination node is not this node.
    #[error("the message is for node {got}, but this is node {wanted}")]
    DestinationNode {
        /// The node in the header.
        got: i32,
        /// The configured node.
        wanted: NodeId,
    },
    /// An invalid container.
    #[error("unknown container {0}")]
    Container(i32),
}

impl Header {
    /// A header of `command`, with zeros elsewhere.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            dc: 0,
            src: Endpoint::from_raw(0),
            dst: Endpoint::from_raw(0),
            snode: 0,
            dnode: 0,
            rcode: 0,
            len: 0,
            pid: 0,
            batch_nr: 0,
            flags: HeaderFlags::empty(),
            snd_seq: 0,
            ack_seq: 0,
            timestamp: Timestamp::default(),
            message: Message::default(),
            copy: CopyBlock::default(),
        }
    }

    /// The acknowledgement `command` of this command with the result `rcode`: back to the sender,
    /// about the same copy.
    #[must_use]
    pub fn answer(&self, command: Command, rcode: i32) -> Self {
        Self {
            dc: self.dc,
            src: self.dst,
            dst: self.src,
            rcode,
            ack_seq: self.ack_seq,
            copy: self.copy,
            ..Self::new(command)
        }
    }

    /// Decodes a header of `generation` from the start of `bytes`.
    pub fn decode(bytes: &[u8], generation: Generation) -> Result<Self, HeaderError> {
        match generation {
            Generation::Current => Current::read_from_prefix(bytes)
                .ok()
                .map(|(it, _)| it.into()),
            Generation::Legacy => Legacy::read_from_prefix(bytes)
                .ok()
                .map(|(it, _)| it.into()),
            Generation::Early => Early::read_from_prefix(bytes).ok().map(|(it, _)| it.into()),
        }
        .ok_or(HeaderError::Short {
            got: bytes.len(),
            wanted: generation.header_size(),
        })
    }

    /// Appends the header to `bytes` in the layout of `generation`.
    pub fn encode(&self, generation: Generation, bytes: &mut Vec<u8>) {
        match generation {
            Generation::Current => bytes.extend_from_slice(Current::from(self).as_bytes()),
            Generation::Legacy => bytes.extend_from_slice(Legacy::from(self).as_bytes()),
            Generation::Early => bytes.extend_from_slice(Early::from(self).as_bytes()),
        }
    }

    /// Checks the fields that a receiver relies on, in a header of `generation` from node `peer` to
    /// node `here`.
    ///
    /// A hello ([`Command::NONE`]) is checked less, because some peers leave the fields of their
    /// last command in it.
    pub fn check(
        &self,
        generation: Generation,
        peer: NodeId,
        here: NodeId,
    ) -> Result<(), HeaderError> {
        if self.command.name().is_none() {
            return Err(HeaderError::Command(self.command.raw()));
        }
        self.payload(generation)?;
        if self.command == Command::NONE {
            return Ok(());
        }
        self.check_addresses(peer, here)
    }

    pub(super) fn check_addresses(&self, peer: NodeId, here: NodeId) -> Result<(), HeaderError> {
        if self.snode != peer.raw() {
            return Err(HeaderError::SourceNode {
                got: self.snode,
                wanted: peer,
            });
        }
        if self.dnode != here.raw() {
            return Err(HeaderError::DestinationNode {
                got: self.dnode,
                wanted: here,
            });
        }
        if self.dc != -1 && DcId::new(self.dc).is_none() {
            return Err(HeaderError::Container(self.dc));
        }
        Ok(())
    }

    /// The length of the payload: at most [`MAX_PAYLOAD`], or [`MAX_BATCH`] headers. Fails for any
    /// other length.
    pub fn payload(&self, generation: Generation) -> Result<usize, HeaderError> {
        let (command, len) = (self.command, self.len);
        if self.is_batch() {
            let headers = usize::try_from(self.batch_nr).ok();
            let headers = headers.filter(|&headers| headers <= MAX_BATCH);
            let bytes = headers.map(|headers| headers * generation.header_size());
            return bytes
                .filter(|&bytes| usize::try_from(len) == Ok(bytes))
                .ok_or(HeaderError::Batch {
                    batch_nr: self.batch_nr,
                    len,
                });
        }
        match usize::try_from(len) {
            Ok(bytes) if bytes <= MAX_PAYLOAD => Ok(bytes),
            _ => Err(HeaderError::Length { len, command }),
        }
    }

    /// Whether the payload consists of headers. A hello may carry the flag of an earlier command.
    pub fn is_batch(&self) -> bool {
        self.flags.contains(HeaderFlags::BATCH) && self.command != Command::NONE
    }
}

impl From<Current> for Header {
    fn from(wire: Current) -> Self {
        Self {
            command: Command::from_raw(wire.cmd),
            dc: wire.dcid,
            src: Endpoint::from_raw(wire.src),
            dst: Endpoint::from_raw(wire.dst),
            snode: wire.snode,
            dnode: wire.dnode,
            rcode: wire.rcode,
            len: wire.len,
            pid: wire.pid,
            batch_nr: wire.batch_nr,
            flags: HeaderFlags::from_bits_retain(wire.flags),
            snd_seq: wire.snd_seq,
            ack_seq: wire.ack_seq,
            timestamp: wire.timestamp,
            message: Message::decode(&wire.message).unwrap_or_default(),
            copy: wire.copy,
        }
    }
}

impl From<&Header> for Current {
    fn from(header: &Header) -> Self {
        let mut message = [0; 36];
        header.message.encode(&mut message);
        Self {
            cmd: header.command.raw(),
            dcid: header.dc,
            src: header.src.raw(),
            dst: header.dst.raw(),
            snode: header.snode,
            dnode: header.dnode,
            rcode: header.rcode,
            len: header.len,
            pid: header.pid,
            batch_nr: header.batch_nr,
            flags: header.flags.bits(),
            snd_seq: header.snd_seq,
            ack_seq: header.ack_seq,
            timestamp: header.timestamp,
            message,
            copy: header.copy,
        }
    }
}

/// The two generations that have one place for message and copy, and no process id.
macro_rules! shared_place {
    ($wire:ident, $size:literal) => {
        impl From<$wire> for Header {
            fn from(wire: $wire) -> Self {
                Self {
                    command: Command::from_raw(wire.cmd),
                    dc: wire.dcid,
                    src: Endpoint::from_raw(wire.src),
                    dst: Endpoint::from_raw(wire.dst),
                    snode: wire.snode,
                    dnode: wire.dnode,
                    rcode: wire.rcode,
                    len: wire.len,
                    pid: 0,
                    batch_nr: wire.batch_nr,
                    flags: HeaderFlags::from_bits_retain(wire.flags),
                    snd_seq: wire.snd_seq,
                    ack_seq: wire.ack_seq,
                    timestamp: wire.timestamp,
                    message: Message::decode(&wire.content).unwrap_or_default(),
                    copy: CopyBlock::read_from_prefix(&wire.content)
                        .map_or_else(|_| CopyBlock::default(), |(copy, _)| copy),
                }
            }
        }

        impl From<&Header> for $wire {
            fn from(header: &Header) -> Self {
                let mut content = [0; $size];
                // The bytes behind a copy have no meaning and are kept.
                header.message.encode(&mut content);
                if header.command.is_copy() {
                    // The place is longer than a copy.
                    let _ = header.copy.write_to_prefix(&mut content);
                }
                Self {
                    cmd: header.command.raw(),
                    dcid: header.dc,
                    src: header.src.raw(),
                    dst: header.dst.raw(),
                    snode: header.snode,
                    dnode: header.dnode,
                    rcode: header.rcode,
                    len: header.len,
                    batch_nr: header.batch_nr,
                    flags: header.flags.bits(),
                    snd_seq: header.snd_seq,
                    ack_seq: header.ack_seq,
                    timestamp: header.timestamp,
                    content,
                }
            }
        }
    };
}

shared_place!(Legacy, 76);
shared_place!(Early, 36);

#[cfg(test)]
mod tests;
