use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn vector(name: &str) -> Message {
    let document: Value =
        serde_json::from_str(include_str!("../../../../tests/vectors.json")).unwrap();
    let vectors = document["vectors"].as_array().unwrap();
    let found = vectors
        .iter()
        .find(|vector| vector["name"] == name)
        .unwrap();
    let hex = found["hex"].as_str().unwrap().as_bytes();
    let bytes: Vec<u8> = hex
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    Message::decode(&bytes).unwrap()
}

#[test]
fn only_our_client_has_whole_sizes() {
    let arm = |i2| M2 {
        i1: 7,
        i2,
        l1: -1,
        l2: 5,
        ..M2::default()
    };
    for (i2, sizes, length) in [
        (0x7fbd_4949, Sizes::Half, 0xffff_ffff),
        (WHOLE_SIZES, Sizes::Whole, 0x5_ffff_ffff),
    ] {
        let file = File::Handle(7);
        let truncate = Call::decode(&Message::new(93, &arm(i2)));
        assert_eq!(truncate, Ok(Call::Truncate { file, length }));
        let asks = M1 {
            i1: 7,
            i2,
            ..M1::default()
        };
        let stat = Call::decode(&Message::new(197, &asks));
        let buffer = 0;
        assert_eq!(
            stat,
            Ok(Call::Stat {
                file,
                buffer,
                sizes
            })
        );
    }
}

#[test]
fn the_originals_requests_are_understood() {
    let name = |len, address| Name { len, address };
    let times = 0x4849_bd60;
    for (vector_name, call) in [
        (
            "access_dslash_x_request",
            Call::Access {
                name: name(3, 0x47d1_1000),
                mask: 1,
            },
        ),
        (
            "get_rootpath_request",
            Call::RootPath {
                buffer: 0x0850_33a0,
            },
        ),
        (
            "lstat64_root_request",
            Call::Stat {
                file: File::Name(name(3, 0x47d1_2000)),
                buffer: 0x4849_bc90,
                sizes: Sizes::Half,
            },
        ),
        (
            "open_rdwr_existing_request",
            Call::Open {
                name: name(11, 0x48ca_a000),
                flags: 0,
                mode: 2,
            },
        ),
        (
            "open_create_request",
            Call::Open {
                name: name(9, 0x48ca_a000),
                flags: 0x42,
                mode: 0o644,
            },
        ),
        (
            "pread64_5gib_request",
            Call::Pread {
                handle: 5,
                count: 4096,
                position: 0x1_4000_1000,
                buffer: 0x4582_e000,
            },
        ),
        (
            "pwrite64_request",
            Call::Pwrite {
                handle: 5,
                count: 4096,
                position: 2_568_192,
                buffer: 0x4582_e000,
            },
        ),
        (
            "opendir_request",
            Call::Opendir {
                name: name(3, 0x46c5_c000),
            },
        ),
        (
            "seekdir_request",
            Call::Seekdir {
                dir_handle: 0x101,
                cookie: 685_728_586,
            },
        ),
        (
            "readdir_request",
            Call::Readdir {
                dir_handle: 0x101,
                buffer: 0x0843_2660,
            },
        ),
        ("closedir_request", Call::Closedir { dir_handle: 0x101 }),
        (
            "rename_request",
            Call::Rename {
                old: name(8, 0x48aa_1000),
                new: name(8, 0x48aa_2000),
                flags: 0,
            },
        ),
        (
            "renameat2_371_request",
            Call::Rename {
                old: name(8, 0x48aa_1000),
                new: name(8, 0x48aa_2000),
                flags: 1,
            },
        ),
        (
            "renameat2_353_request",
            Call::Rename {
                old: name(8, 0x48aa_1000),
                new: name(8, 0x48aa_2000),
                flags: 1,
            },
        ),
        (
            "utimes_request",
            Call::Utimes {
                file: File::Name(name(11, 0x48aa_1000)),
                times,
            },
        ),
        (
            "futimes_request",
            Call::Utimes {
                file: File::Handle(5),
                times,
            },
        ),
        (
            "truncate_3e9_request",
            Call::Truncate {
                file: File::Name(name(11, 0x48aa_1000)),
                length: 3_000_000_000,
            },
        ),
    ] {
        assert_eq!(
            Call::decode(&vector(vector_name)),
            Ok(call),
            "{vector_name}"
        );
    }
    assert_eq!(
        Call::decode(&vector("lseek_19_request")),
        Err(DecodeError::Unknown)
    );
}

proptest! {
    #[test]
    fn any_message_is_a_call_or_refused(kind: i32, bytes: [u8; 28]) {
        let mut message = Message::default();
        message.kind = kind;
        message.set_arm(&crate::abi::M6 { ca1: bytes });
        match Call::decode(&message) {
            Ok(_) => prop_assert!(kind > 0),
            Err(DecodeError::Again) => prop_assert_eq!(kind, 0),
            Err(DecodeError::Negative) => prop_assert!(kind < 0),
            Err(DecodeError::Unknown) => prop_assert!(kind > 0),
        }
    }
}
