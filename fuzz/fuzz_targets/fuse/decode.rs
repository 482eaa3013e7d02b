//! Any bytes as a request: a typed error, or a request that can be looked at and means the same
//! when encoded again.
//!
//! The input is one byte that picks the dialect and whether the header's length is made to fit, the
//! 40 bytes of the header, the arguments. The arguments also serve as reply and as directory
//! streams.
#![no_main]

use gangplank_fuse::dir::{Direntplusses, Dirents};
use gangplank_fuse::reply::{self, Reply};
use gangplank_fuse::{Dialect, InHeader, Operation, RequestHeader};
use libfuzzer_sys::fuzz_target;
use zerocopy::FromBytes;

const MINORS: [u32; 4] = [45, 38, 37, 27];

fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else {
        return;
    };
    let Ok((mut header, args)) = InHeader::read_from_prefix(input) else {
        return;
    };
    let dialect = Dialect {
        minor: MINORS[usize::from(choice & 3)],
        setxattr_ext: choice & 4 != 0,
        security_ctx: choice & 8 != 0,
    };
    if choice & 16 == 0 {
        header.len = u32::try_from(input.len()).expect("libFuzzer's inputs are shorter");
    }
    requests(&header, args, dialect);
    replies(args);
});

fn requests(header: &InHeader, args: &[u8], dialect: Dialect) {
    let Ok(request) = Operation::decode(header, args, dialect) else {
        return;
    };
    // Printing goes through all lists.
    let shown = format!("{request:?}");
    assert!(!shown.is_empty());

    let mut bytes = Vec::new();
    request
        .encode(&RequestHeader::default(), dialect, &mut bytes)
        .expect("what came on the wire goes on the wire");
    let (header, args) = InHeader::read_from_prefix(&bytes).expect("a request has a header");
    assert_eq!(Operation::decode(&header, args, dialect), Ok(request));
}

fn replies(bytes: &[u8]) {
    if let Ok(Reply {
        result: Ok(payload),
        ..
    }) = Reply::decode(bytes)
    {
        assert!(payload.len() + 16 <= bytes.len());
    }
    let _ = reply::decode_init(bytes);
    reply::decode_xattr_names(bytes).for_each(drop);
    for entry in Dirents::new(bytes).flatten() {
        assert_eq!(entry.name.len(), entry.dirent.namelen as usize);
    }
    for entry in Direntplusses::new(bytes).flatten() {
        assert_eq!(entry.name.len(), entry.dirent.namelen as usize);
    }
}
