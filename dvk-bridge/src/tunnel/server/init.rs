//! The reply to INIT, cut to what a tunnel carries.

use gangplank_fuse::Opcode;

use crate::tunnel::wire::{MAX_DATA, MAX_PAGES};

/// Where the opcode is in a request (`struct fuse_in_header`).
const OPCODE_AT: usize = 4;

/// Where `max_write` and `max_pages` are in a reply to INIT (`struct fuse_out_header`, `struct
/// fuse_init_out`).
const MAX_WRITE_AT: usize = 16 + 20;
const MAX_PAGES_AT: usize = 16 + 28;

/// Whether `request` is INIT.
pub(super) fn is_init(request: &[u8]) -> bool {
    let opcode = request.get(OPCODE_AT..).and_then(<[u8]>::first_chunk);
    opcode.is_some_and(|opcode| u32::from_le_bytes(*opcode) == Opcode::Init as u32)
}

/// Lowers the sizes in the reply to INIT. Fields that the reply does not have stay absent.
pub(super) fn cut(reply: &mut [u8]) {
    if let Some(bytes) = reply
        .get_mut(MAX_WRITE_AT..)
        .and_then(<[u8]>::first_chunk_mut)
    {
        *bytes = u32::from_le_bytes(*bytes).min(MAX_DATA).to_le_bytes();
    }
    if let Some(bytes) = reply
        .get_mut(MAX_PAGES_AT..)
        .and_then(<[u8]>::first_chunk_mut)
    {
        *bytes = u16::from_le_bytes(*bytes).min(MAX_PAGES).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use gangplank_fuse::{InHeader, InitOut, OutHeader, Unique};
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;

    #[test]
    fn sizes_beyond_a_copy_are_lowered_and_nothing_else_changes() {
        for (max_write, max_pages, wanted) in
            [(1 << 21, 512, (MAX_DATA, 256)), (4096, 32, (4096, 32))]
        {
            let init = InitOut {
                max_write,
                max_pages,
                ..InitOut::default()
            };
            let header = OutHeader::ok(Unique::new(2), size_of::<InitOut>());
            let mut reply = [header.as_bytes(), init.as_bytes()].concat();
            cut(&mut reply);
            let (after, _) = InitOut::read_from_prefix(&reply[16..]).unwrap();
            assert_eq!((after.max_write, after.max_pages), wanted);
            let (max_write, max_pages) = wanted;
            let expected = InitOut {
                max_write,
                max_pages,
                ..init
            };
            assert_eq!(after.as_bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn a_short_reply_is_cut_as_far_as_it_goes() {
        for len in 0..=MAX_PAGES_AT + 2 {
            let mut reply = vec![0xff; len];
            cut(&mut reply);
            assert_eq!(reply.len(), len);
            assert_eq!(
                len >= MAX_WRITE_AT + 4,
                reply.iter().any(|byte| *byte != 0xff)
            );
        }
    }

    #[test]
    fn init_is_known_by_its_opcode() {
        let mut header = InHeader {
            opcode: Opcode::Init as u32,
            ..InHeader::default()
        };
        assert!(is_init(header.as_bytes()));
        header.opcode = Opcode::Write as u32;
        assert!(!is_init(header.as_bytes()));
        assert!(!is_init(&[0; 7]));
    }
}
