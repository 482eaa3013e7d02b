//! Any bytes are a request, a reply, a directory stream or a typed error; what is accepted means
//! the same when sent again.

use gangplank_fuse::dir::{Direntplusses, Dirents};
use gangplank_fuse::*;
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::requests::{dialect, material, opcode, with_request};

/// Decodes; what is accepted is looked at, encoded and decoded again.
fn decode(header: &InHeader, args: &[u8], dialect: Dialect) {
    let Ok(request) = Operation::decode(header, args, dialect) else {
        return;
    };
    walk(&request);
    let again = RequestHeader {
        unique: header.unique(),
        ..RequestHeader::default()
    };
    let mut out = Vec::new();
    request.encode(&again, dialect, &mut out).unwrap();
    let (header, args) = InHeader::read_from_prefix(&out).unwrap();
    assert_eq!(Operation::decode(&header, args, dialect), Ok(request));
}

/// Looks at everything in a request, lists included.
fn walk(request: &Request<'_>) -> usize {
    let lists = match request.operation {
        Operation::BatchForget(nodes) => nodes.iter().count(),
        Operation::Removemapping(mappings) => mappings.iter().count(),
        _ => 0,
    };
    let groups = request
        .extensions
        .groups
        .map_or(0, |groups| groups.iter().count());
    let labels = request.extensions.security_contexts.map_or(0, |labels| {
        let count = labels.iter().count();
        assert_eq!(count, labels.len() as usize);
        count
    });
    lists + groups + labels + format!("{request:?}").len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_decode(
        header in vec(any::<u8>(), 40), args in vec(any::<u8>(), 0..300), dialect in dialect(),
    ) {
        decode(&InHeader::read_from_bytes(&header).unwrap(), &args, dialect);
    }

    #[test]
    fn any_arguments_of_a_known_operation_decode(
        opcode in opcode(),
        args in vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..300),
        total_extlen in prop_oneof![3 => Just(0_u16), 1 => 0..20_u16],
        dialect in dialect(),
    ) {
        let len = u32::try_from(40 + args.len()).unwrap();
        let header = InHeader { len, opcode: opcode as u32, total_extlen, ..InHeader::default() };
        decode(&header, &args, dialect);
    }

    #[test]
    fn damaged_requests_decode(
        opcode in opcode(),
        material in material(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        agree in any::<bool>(),
    ) {
        let mut bytes = Vec::new();
        with_request(opcode, &material, |request, _| {
            request.encode(&material.header, material.dialect, &mut bytes).unwrap();
        });
        for (place, value) in &damage {
            let place = place.index(bytes.len());
            bytes[place] = *value;
        }
        if let Some(cut) = cut {
            bytes.truncate(40 + cut.index(bytes.len() - 39));
        }
        let (mut header, args) = InHeader::read_from_prefix(&bytes).unwrap();
        if agree {
            header.len = u32::try_from(bytes.len()).unwrap();
        }
        decode(&header, args, material.dialect);
    }

    #[test]
    fn any_bytes_read_as_replies(bytes in vec(prop_oneof![Just(0_u8), any::<u8>()], 0..400)) {
        let _ = reply::Reply::decode(&bytes);
        let _ = reply::decode_create(&bytes);
        let _ = reply::decode_init(&bytes);
        let _ = reply::decode_ioctl(&bytes);
        let _ = reply::decode_statx(&bytes);
        reply::decode_xattr_names(&bytes).for_each(drop);
        prop_assert!(Dirents::new(&bytes).count() <= bytes.len());
        prop_assert!(Direntplusses::new(&bytes).count() <= bytes.len());
    }
}

#[test]
fn an_error_says_what_was_being_done() {
    let header = InHeader {
        len: 44,
        opcode: Opcode::Lookup as u32,
        ..InHeader::default()
    };
    let error = Operation::decode(&header, b"name", Dialect::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "LOOKUP: a name has no NUL within the 4 bytes left"
    );
    let header = InHeader {
        len: 40 + 8,
        opcode: Opcode::BatchForget as u32,
        ..InHeader::default()
    };
    let error = Operation::decode(&header, [5_u32, 0].as_bytes(), Dialect::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "BATCH_FORGET: counts 5 where 0 have come"
    );
}
