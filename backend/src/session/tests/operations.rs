//! Operations reach the file system with their arguments, and results reach the guest.

use super::*;

#[test]
fn operations_reach_the_file_system_with_their_arguments() {
    let mut guest = Guest::new();
    guest.calls();
    let name = c"name";
    let create = Operation::Create {
        args: CreateIn {
            mode: 0o640,
            ..CreateIn::default()
        },
        name,
    };
    let groups = Extensions {
        groups: Some(SupplementaryGroups::new(&[5, 6])),
        ..Extensions::default()
    };
    assert!(guest.call(Operation::Lookup { name }).is_ok());
    assert!(guest.call_with(create, groups, &[]).is_ok());
    let rename = gangplank_fuse::Rename2In {
        newdir: 3,
        flags: 2,
        padding: 0,
    };
    assert!(
        guest
            .call(Operation::Rename2 {
                args: rename,
                name,
                new_name: c"new"
            })
            .is_ok()
    );
    let getattr = GetattrIn {
        getattr_flags: GetattrFlags::FH.bits(),
        fh: 8,
        ..GetattrIn::default()
    };
    assert!(guest.call(Operation::Getattr(getattr)).is_ok());
    assert!(
        guest
            .call(Operation::Getattr(GetattrIn {
                fh: 8,
                ..GetattrIn::default()
            }))
            .is_ok()
    );
    assert_eq!(
        guest.calls(),
        [
            "lookup 1 name",
            "create 1 name 640 [5, 6]",
            "lookup 1 name",
            "forget 77 1",
            "rename 1 name 3 new 2",
            "getattr 1 Some(Handle(8))",
            "getattr 1 None"
        ]
    );
}

#[test]
fn names_that_lead_out_of_their_directory_never_reach_the_file_system() {
    let mut guest = Guest::new();
    guest.calls();
    for name in [c"..", c".", c"", c"a/b", c"/etc/passwd"] {
        assert_eq!(guest.call(Operation::Lookup { name }), Err(libc::EINVAL));
        assert_eq!(guest.call(Operation::Unlink { name }), Err(libc::EINVAL));
        let rename = gangplank_fuse::RenameIn { newdir: 1 };
        assert_eq!(
            guest.call(Operation::Rename {
                args: rename,
                name: c"ok",
                new_name: name
            }),
            Err(libc::EINVAL)
        );
    }
    assert_eq!(guest.calls(), [""; 0]);
}

#[test]
fn reads_and_writes_move_data_whatever_the_segments() {
    let mut guest = Guest::new();
    guest.calls();
    for cut in [1, 7, 40, 4096] {
        let read = Operation::Read(ReadIn {
            size: 9,
            ..ReadIn::default()
        });
        let (_, reply) = guest.send(&mut encode(read, Extensions::default(), &[]), 16 + 9, cut);
        assert_eq!(&reply[16..], b"file data");
        let write = Operation::Write(WriteIn {
            offset: 3,
            size: 5,
            ..WriteIn::default()
        });
        let (_, reply) = guest.send(&mut encode(write, Extensions::default(), b"hello"), 24, cut);
        let written = WriteOut::read_from_bytes(&reply[16..]).expect("a write reply");
        assert_eq!(written.size, 5);
        assert_eq!(guest.calls(), ["write 3 hello"]);
    }
}

#[test]
fn a_write_that_announces_another_size_than_it_brings_is_refused() {
    let mut guest = Guest::new();
    guest.calls();
    for size in [4, 6, 1 << 20] {
        let write = Operation::Write(WriteIn {
            size,
            ..WriteIn::default()
        });
        assert_eq!(
            guest.call_with(write, Extensions::default(), b"hello"),
            Err(libc::EINVAL)
        );
    }
    assert_eq!(guest.calls(), [""; 0]);
}

#[test]
fn attribute_values_come_whole_or_by_length_alone() {
    let mut guest = Guest::new();
    let get = |size| Operation::Getxattr {
        args: GetxattrIn { size, padding: 0 },
        name: c"user.a",
    };
    assert_eq!(
        guest.call(get(0)).expect("length"),
        [5, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(guest.call(get(4)), Err(libc::ERANGE));
    assert_eq!(guest.call(get(u32::MAX)).expect("value"), b"value");
}

#[test]
fn directory_entries_stop_where_the_guest_s_room_ends() {
    let mut guest = Guest::new();
    let list = |size| {
        Operation::Readdir(ReadIn {
            size,
            ..ReadIn::default()
        })
    };
    let all = guest.call(list(4096)).expect("entries");
    let some = guest.call(list(40)).expect("entries");
    assert_eq!(gangplank_fuse::dir::Dirents::new(&all).count(), 2);
    assert_eq!(gangplank_fuse::dir::Dirents::new(&some).count(), 1);
    assert_eq!(guest.call(list(3)).expect("none"), b"");
}

#[test]
fn forgets_have_no_reply() {
    let mut guest = Guest::new();
    guest.calls();
    let nodes = [
        ForgetOne {
            nodeid: 5,
            nlookup: 1,
        },
        ForgetOne {
            nodeid: 6,
            nlookup: 2,
        },
    ];
    for operation in [
        Operation::Forget(ForgetIn { nlookup: 3 }),
        Operation::BatchForget(BatchForget::new(&nodes)),
    ] {
        let (served, _) = guest.send(&mut encode(operation, Extensions::default(), &[]), 0, 4096);
        assert!(matches!(served, Served::Replied(0)));
    }
    assert_eq!(guest.calls(), ["forget 1 3", "forget 5 1", "forget 6 2"]);
}
