//! The layout of a call's arguments in its message, and the stamp that ties an answer to its
//! request.

use super::syscall_nr;
use crate::abi::{M1, M2, Message};

/// A path for the server.
pub(super) struct Name {
    pub(super) bytes: Vec<u8>,
    /// Length with the NUL.
    pub(super) length: i32,
}

impl Name {
    pub(super) fn new(path: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(path.len() + 1);
        bytes.extend_from_slice(path);
        bytes.push(0);
        // The server refuses longer paths, and refuses this length too.
        let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
        Self { bytes, length }
    }
}

/// The common arguments of read and write, the position's low word first.
pub(super) fn data_arm(handle: i32, position: u64, count: usize) -> M2 {
    let [a, b, c, d, e, f, g, h] = position.to_le_bytes();
    M2 {
        i1: handle,
        // Pieces are far shorter.
        i2: i32::try_from(count).unwrap_or(i32::MAX),
        l1: i32::from_le_bytes([a, b, c, d]),
        l2: i32::from_le_bytes([e, f, g, h]),
        ..M2::default()
    }
}

/// The length of the text in `buffer` before its NUL.
pub(super) fn text_length(buffer: &[u8]) -> usize {
    buffer
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(buffer.len())
}

/// Whether the call uses the third integer, so that its stamp must go to the third address.
const fn third_integer_is_taken(syscall_nr: i32) -> bool {
    matches!(
        syscall_nr,
        syscall_nr::OPEN | syscall_nr::MKNOD | syscall_nr::CHOWN | syscall_nr::FCHOWN
    )
}

/// Puts a stamp into a field that the call does not use. Servers answer with the request's message,
/// so the answer has the stamp too. All message layouts of rhostfs have the third integer at the
/// same offset.
pub(super) fn put_stamp(request: &mut Message, stamp: i32) {
    let mut arm: M1 = request.arm();
    if third_integer_is_taken(request.kind) {
        arm.p3 = stamp.cast_unsigned();
    } else {
        arm.i3 = stamp;
    }
    request.set_arm(&arm);
}

/// The stamp in the answer to the call `syscall_nr`.
pub(super) fn stamp_of(syscall_nr: i32, answer: &Message) -> i32 {
    let arm: M1 = answer.arm();
    if third_integer_is_taken(syscall_nr) {
        arm.p3.cast_signed()
    } else {
        arm.i3
    }
}
