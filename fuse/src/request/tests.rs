//! Requests as kernels lay them out, and what is not a request.

use zerocopy::{FromBytes, IntoBytes};

use super::*;

/// A header for `args` that all belong to the request.
fn header(opcode: Opcode, args: &[u8]) -> InHeader {
    InHeader {
        len: u32::try_from(40 + args.len()).unwrap(),
        opcode: opcode as u32,
        unique: 2,
        nodeid: 1,
        ..InHeader::default()
    }
}

fn decode(opcode: Opcode, args: &[u8]) -> Result<Operation<'_>, DecodeError> {
    Operation::decode(&header(opcode, args), args, Dialect::default()).map(|r| r.operation)
}

fn bytes(words: &[u32], names: &[u8]) -> Vec<u8> {
    [words.as_bytes(), names].concat()
}

#[test]
fn names_follow_their_structure_in_order() {
    let args = bytes(&[7, 0, 1, 0], b"old\0new\0");
    assert_eq!(
        decode(Opcode::Rename2, &args),
        Ok(Operation::Rename2 {
            args: Rename2In {
                newdir: 7,
                flags: 1,
                padding: 0
            },
            name: c"old",
            new_name: c"new",
        })
    );
    assert_eq!(
        decode(Opcode::Symlink, b"link\0/target\0"),
        Ok(Operation::Symlink {
            name: c"link",
            target: c"/target"
        })
    );
}

#[test]
fn a_temporary_file_comes_with_a_placeholder_name() {
    let args = bytes(&[0o100_002, 0o600, 0o22, 0], b"/\0");
    assert!(matches!(
        decode(Opcode::Tmpfile, &args),
        Ok(Operation::Tmpfile { name, .. }) if name == c"/"
    ));
}

#[test]
fn a_name_without_nul_is_refused() {
    assert_eq!(
        decode(Opcode::Lookup, b"name"),
        Err(DecodeError::Unterminated {
            what: "LOOKUP",
            present: 4
        })
    );
    assert!(matches!(
        decode(Opcode::Symlink, b"name\0target"),
        Err(DecodeError::Unterminated { .. })
    ));
}

#[test]
fn bytes_after_the_last_argument_are_refused() {
    assert_eq!(
        decode(Opcode::Lookup, b"name\0x"),
        Err(DecodeError::Trailing {
            what: "LOOKUP",
            surplus: 1
        })
    );
    assert_eq!(
        decode(Opcode::Statfs, &[0; 8]),
        Err(DecodeError::Trailing {
            what: "STATFS",
            surplus: 8
        })
    );
}

#[test]
fn the_header_bounds_the_request_not_the_buffer() {
    let header = header(Opcode::Lookup, b"name\0");
    let request = Operation::decode(&header, b"name\0rubbish", Dialect::default());
    assert_eq!(request, Ok(Operation::Lookup { name: c"name" }.into()));
    let request = Operation::decode(&header, b"nam", Dialect::default());
    assert_eq!(
        request,
        Err(DecodeError::Truncated {
            len: 45,
            present: 43
        })
    );
}

#[test]
fn a_length_below_the_header_is_refused() {
    for len in 0..40 {
        let header = InHeader {
            len,
            ..header(Opcode::Statfs, &[])
        };
        assert_eq!(
            Operation::decode(&header, &[], Dialect::default()),
            Err(DecodeError::HeaderLength { len })
        );
    }
}

#[test]
fn unknown_opcodes_are_told_by_number() {
    let header = InHeader {
        len: 40,
        opcode: 54,
        ..InHeader::default()
    };
    assert_eq!(
        Operation::decode(&header, &[], Dialect::default()),
        Err(DecodeError::UnknownOpcode(UnknownOpcode(54)))
    );
}

#[test]
fn init_is_accepted_in_every_length_kernels_send() {
    // 8 bytes: another major version; 16: before 5.17; 64: since; 80: a future extension.
    for words in [2, 4, 16, 20] {
        let sent: Vec<u32> = (7..).take(words).collect();
        let Ok(Operation::Init(init)) = decode(Opcode::Init, sent.as_bytes()) else {
            panic!("INIT of {words} words was refused");
        };
        assert_eq!((init.major, init.minor), (7, 8));
        assert_eq!(init.flags, if words >= 4 { 10 } else { 0 });
        assert_eq!(init.unused[10], if words >= 16 { 22 } else { 0 });
    }
    assert!(decode(Opcode::Init, &[0; 7]).is_err());
}

#[test]
fn setxattr_has_two_layouts() {
    let short = bytes(&[3, 1], b"user.a\0abc");
    let long = bytes(&[3, 1, 1, 0], b"user.a\0abc");
    let ext = Dialect {
        setxattr_ext: true,
        ..Dialect::default()
    };
    for (args, dialect, setxattr_flags) in [(&short, Dialect::default(), 0), (&long, ext, 1)] {
        let request = Operation::decode(&header(Opcode::Setxattr, args), args, dialect).unwrap();
        assert_eq!(
            request.operation,
            Operation::Setxattr {
                args: SetxattrIn {
                    size: 3,
                    flags: 1,
                    setxattr_flags,
                    padding: 0
                },
                name: c"user.a",
                value: b"abc",
            }
        );
    }
}

#[test]
fn a_value_of_another_size_than_told_is_refused() {
    for size in [0, 2, 4, u32::MAX] {
        let args = bytes(&[size, 0], b"user.a\0abc");
        assert_eq!(
            decode(Opcode::Setxattr, &args),
            Err(DecodeError::Count {
                what: "SETXATTR",
                count: u64::from(size),
                present: 3
            })
        );
    }
}

#[test]
fn batch_forget_counts_what_has_come() {
    let nodes = [
        ForgetOne {
            nodeid: 2,
            nlookup: 1,
        },
        ForgetOne {
            nodeid: 3,
            nlookup: 5,
        },
    ];
    let args = [[2_u32, 0].as_bytes(), nodes.as_bytes()].concat();
    let Ok(Operation::BatchForget(found)) = decode(Opcode::BatchForget, &args) else {
        panic!("BATCH_FORGET was refused");
    };
    assert!(found.iter().eq(nodes));

    let args = [[u32::MAX, 0].as_bytes(), nodes.as_bytes()].concat();
    assert_eq!(
        decode(Opcode::BatchForget, &args),
        Err(DecodeError::Count {
            what: "BATCH_FORGET",
            count: u64::from(u32::MAX),
            present: 2
        })
    );
}

#[test]
fn write_leaves_its_data_in_the_transport() {
    let args = WriteIn {
        fh: 1,
        size: 4096,
        ..WriteIn::default()
    };
    let full = InHeader {
        len: 40 + 40 + 4096,
        ..header(Opcode::Write, &[])
    };
    let request = Operation::decode(&full, args.as_bytes(), Dialect::default()).unwrap();
    assert_eq!(request.operation, Operation::Write(args));
    assert_eq!(request.operation.bulk_len(), 4096);

    let short = InHeader {
        len: 40 + 40 + 4095,
        ..full
    };
    assert_eq!(
        Operation::decode(&short, args.as_bytes(), Dialect::default()),
        Err(DecodeError::Count {
            what: "WRITE",
            count: 4096,
            present: 4095
        })
    );
}

#[test]
fn extensions_end_the_request_unaligned() {
    // Linux 6.3 and later: MKDIR "d" by a caller in the parent's group 1000.
    let mut args = bytes(&[0o40_755, 0o22], b"d\0");
    args.extend_from_slice([16_u32, 32, 1, 1000].as_bytes());
    let header = InHeader {
        total_extlen: 2,
        ..header(Opcode::Mkdir, &args)
    };
    let request = Operation::decode(&header, &args, Dialect::default()).unwrap();
    assert!(matches!(request.operation, Operation::Mkdir { name, .. } if name == c"d"));
    assert!(request.extensions.groups.unwrap().iter().eq([1000]));

    let old = Dialect {
        minor: 37,
        ..Dialect::default()
    };
    assert_eq!(
        Operation::decode(&header, &args, old),
        Err(DecodeError::Trailing {
            what: "MKDIR",
            surplus: 16
        })
    );
}

#[test]
fn more_extensions_than_request_are_refused() {
    let header = InHeader {
        total_extlen: u16::MAX,
        ..header(Opcode::Lookup, b"name\0")
    };
    assert!(matches!(
        Operation::decode(&header, b"name\0", Dialect::default()),
        Err(DecodeError::TooShort {
            wanted: 524_280,
            present: 5,
            ..
        })
    ));
}

#[test]
fn a_label_follows_the_name_uncounted_before_linux_6_3() {
    let mut args = bytes(&[0o100_644, 0, 0o22, 0], b"f\0");
    args.extend_from_slice([40_u32, 1, 6, 0].as_bytes());
    args.extend_from_slice(b"security.selinux\0label\0");
    args.push(0);
    let dialect = Dialect {
        minor: 37,
        security_ctx: true,
        ..Dialect::default()
    };
    let request = Operation::decode(&header(Opcode::Mknod, &args), &args, dialect).unwrap();
    let labels = request.extensions.security_contexts.unwrap();
    assert!(labels.iter().eq([SecurityContext {
        name: c"security.selinux",
        value: b"label\0"
    }]));
    assert!(
        decode(Opcode::Mknod, &args).is_err(),
        "not agreed on, so rubbish"
    );
}

#[test]
fn extensions_behind_bulk_data_are_refused_at_both_ends() {
    let args = WriteIn::default();
    let header = InHeader {
        total_extlen: 2,
        ..header(Opcode::Write, &[0; 56])
    };
    assert_eq!(
        Operation::decode(&header, args.as_bytes(), Dialect::default()),
        Err(DecodeError::MisplacedExtension {
            opcode: Opcode::Write
        })
    );

    let request = Request {
        operation: Operation::Write(args),
        extensions: Extensions {
            groups: Some(Records::new(&[1])),
            security_contexts: None,
        },
    };
    let mut out = vec![1, 2, 3];
    assert_eq!(
        request.encode(&RequestHeader::default(), Dialect::default(), &mut out),
        Err(EncodeError::MisplacedExtension {
            opcode: Opcode::Write
        })
    );
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn encode_counts_bulk_data_it_does_not_carry() {
    let request = Request::from(Operation::Write(WriteIn {
        size: 100,
        ..WriteIn::default()
    }));
    let mut out = Vec::new();
    request
        .encode(&RequestHeader::default(), Dialect::default(), &mut out)
        .unwrap();
    let header = InHeader::read_from_prefix(&out).unwrap().0;
    assert_eq!((out.len(), header.len), (80, 180));
}
