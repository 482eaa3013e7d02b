//! Blocks of pcapng, written.

use crate::LINK_TYPE;
use crate::record::{HEAD_LEN, MAX_ARGS, Record};

/// Type of a Section Header Block.
pub(crate) const SECTION: u32 = 0x0a0d_0d0a;

/// Type of an Interface Description Block.
pub(crate) const INTERFACE: u32 = 1;

/// Type of an Enhanced Packet Block.
pub(crate) const PACKET: u32 = 6;

/// What tells a section's byte order.
pub(crate) const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// Option of an interface: the resolution of times, as a negative power of ten.
pub(crate) const IF_TSRESOL: u16 = 9;

/// Option of a packet: packets lost between the one before and this one.
pub(crate) const EPB_DROPCOUNT: u16 = 4;

/// Option of a section: the program.
const SHB_USERAPPL: u16 = 4;

/// Option of an interface: its name.
const IF_NAME: u16 = 2;

/// Bytes of a block beside its body: type, and length at both ends.
pub(crate) const FRAME: usize = 12;

/// Bytes of a packet's block before the packet.
pub(crate) const PACKET_HEAD: usize = 20;

/// Bytes of a record's block at most.
pub const MAX_RECORD: usize = FRAME + PACKET_HEAD + HEAD_LEN + MAX_ARGS + 3 + 16;

const _: () = assert!(
    MAX_RECORD <= 4096,
    "a FIFO takes PIPE_BUF bytes in one piece"
);

/// What every program that opens a trace appends first: a section header and an interface.
/// `program` is its name and version.
#[must_use]
pub fn section_header(program: &str) -> Vec<u8> {
    let mut out = Vec::new();
    block(&mut out, SECTION, |out| {
        out.extend(BYTE_ORDER.to_le_bytes());
        // Version 1.0 of pcapng, and a section of unknown length.
        out.extend([1, 0, 0, 0]);
        out.extend(u64::MAX.to_le_bytes());
        option(out, SHB_USERAPPL, program.as_bytes());
        option(out, 0, &[]);
    });
    block(&mut out, INTERFACE, |out| {
        out.extend(LINK_TYPE.to_le_bytes());
        // Reserved, and no limit of a packet's length.
        out.extend([0; 6]);
        option(out, IF_NAME, b"fuse");
        option(out, IF_TSRESOL, &[9]);
        option(out, 0, &[]);
    });
    out
}

/// Appends a record's block. `args` are the request's arguments, used in place of `record.args`;
/// `lost` is the number of records that were lost before it.
pub fn write_record(out: &mut Vec<u8>, record: &Record, args: &[u8], lost: u64) {
    block(out, PACKET, |out| {
        let time = record.time;
        out.extend(0u32.to_le_bytes());
        for half in [time >> 32, time & u64::from(u32::MAX)] {
            out.extend(u32::try_from(half).unwrap_or_default().to_le_bytes());
        }
        let lengths = out.len();
        out.extend([0; 8]);
        let begin = out.len();
        record.encode(args, out);
        let len = u32::try_from(out.len() - begin).unwrap_or_default();
        let len = len.to_le_bytes();
        for (to, from) in out.iter_mut().skip(lengths).zip(len.into_iter().chain(len)) {
            *to = from;
        }
        pad(out, begin);
        if lost > 0 {
            option(out, EPB_DROPCOUNT, &lost.to_le_bytes());
            option(out, 0, &[]);
        }
    });
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = u32::try_from(out.len() + 4 - begin).unwrap_or_default();
    out.extend(len.to_le_bytes());
    for (to, from) in out.iter_mut().skip(begin + 4).zip(len.to_le_bytes()) {
        *to = from;
    }
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_le_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or_default().to_le_bytes());
    let begin = out.len();
    out.extend(value);
    pad(out, begin);
}

/// Fills up to a multiple of 4 bytes from `begin` on.
fn pad(out: &mut Vec<u8>, begin: usize) {
    let len = (out.len() - begin).next_multiple_of(4);
    out.resize(begin + len, 0);
}
