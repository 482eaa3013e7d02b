//! Requests that are malformed, unknown or leave too little room for the reply.

use proptest::prelude::*;

use super::*;
use crate::device::request::Cost;

#[test]
fn a_reply_that_does_not_fit_is_an_error_or_nothing() {
    let mut guest = Guest::new();
    for room in 0..150 {
        let lookup = Operation::Lookup { name: c"x" };
        let (_, reply) = guest.send(&mut encode(lookup, Extensions::default(), &[]), room, 4096);
        match room {
            0..16 => assert_eq!(reply.len(), 0),
            16..144 => assert_eq!(
                OutHeader::read_from_prefix(&reply)
                    .expect("a header")
                    .0
                    .error,
                -libc::EIO
            ),
            _ => assert_eq!(reply.len(), 144),
        }
    }
}

#[test]
fn unknown_and_unsupported_operations_get_enosys() {
    let mut guest = Guest::new();
    let mut bytes = InHeader {
        len: 40,
        opcode: 4711,
        unique: 9,
        ..InHeader::default()
    }
    .as_bytes()
    .to_vec();
    let (_, reply) = guest.send(&mut bytes, 64, 4096);
    assert_eq!(
        OutHeader::read_from_bytes(&reply).expect("a header"),
        OutHeader::error(Unique::new(9), libc::ENOSYS)
    );
    assert_eq!(
        guest.call(Operation::Bmap(gangplank_fuse::BmapIn::default())),
        Err(libc::ENOSYS)
    );
}

#[test]
fn a_header_that_lies_about_the_length_is_refused() {
    let mut guest = Guest::new();
    for len in [0, 39, 41, u32::MAX] {
        let mut bytes = InHeader {
            len,
            opcode: 17,
            unique: 9,
            ..InHeader::default()
        }
        .as_bytes()
        .to_vec();
        let (_, reply) = guest.send(&mut bytes, 128, 4096);
        assert_eq!(
            OutHeader::read_from_bytes(&reply).expect("a header").error,
            -libc::EINVAL
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_get_a_reply_that_fits_and_harm_nothing(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        opcode in 0u32..60,
        room in 0usize..300,
        cut in 1usize..200,
        honest in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        let len = u32::try_from(bytes.len()).expect("short");
        if honest && bytes.len() >= 8 {
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        }
        let (served, reply) = guest.send(&mut bytes, room, cut);
        if let Served::Replied(len) = served {
            prop_assert!(len <= room && (len == 0 || len >= 16));
            if len > 0 {
                prop_assert!(Reply::decode(&reply).is_ok());
            }
        }
    }
}

/// The device has charged what the request was when it asked. The guest has changed it since.
#[test]
fn a_request_that_does_more_than_it_was_charged_for_is_refused() {
    let mut guest = Guest::new();
    let read = |size| {
        Operation::Read(ReadIn {
            size,
            ..ReadIn::default()
        })
    };
    guest.scratch.charged = Some(Cost {
        operations: 1,
        sent: 0,
        returned: 100,
    });
    assert_eq!(guest.call(read(101)), Err(libc::EIO));
    assert!(guest.call(read(100)).is_ok());
    // It was taken as one that costs nothing.
    guest.scratch.charged = Some(Cost::default());
    let statfs = guest.call(Operation::Statfs);
    assert_eq!(statfs, Err(libc::EIO));
    assert!(guest.call(Operation::Destroy).is_ok());
}
