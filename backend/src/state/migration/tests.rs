//! The stream's bytes, and what is refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn inode(id: u64, references: u64, location: Location) -> Inode {
    Inode {
        id,
        references,
        location,
        file_handle: None,
    }
}

fn child(id: u64, parent: u64, name: &str) -> Inode {
    inode(id, 1, Location::child(parent, OsStr::new(name)))
}

fn root(references: u64) -> Inode {
    inode(1, references, Location::Root)
}

/// A guest with these inodes beside the root.
fn guest(inodes: impl IntoIterator<Item = Inode>) -> GuestState {
    GuestState {
        inodes: [root(100)].into_iter().chain(inodes).collect(),
        next_inode: 1000,
        next_handle: 1000,
        ..GuestState::default()
    }
}

/// One of everything.
fn whole() -> GuestState {
    let handle = FileHandle {
        mount_id: 300,
        handle_type: -1,
        bytes: vec![1, 2, 3],
    };
    let mut moved = child(4, 9, "b");
    moved.file_handle = Some(handle.clone());
    let mut state = guest([
        moved,
        inode(9, 2, Location::child(1, OsStr::new("a"))),
        inode(5, 1, Location::Invalid),
        inode(6, 1, Location::Path("x/y".to_owned())),
        inode(7, 1, Location::FileHandle(handle)),
    ]);
    state.handles = vec![
        Handle {
            id: 8,
            inode: 9,
            flags: 0x1_0000,
        },
        Handle {
            id: 3,
            inode: 4,
            flags: 2,
        },
    ];
    state.options.writeback = true;
    state.mount_paths = [(300, ".".to_owned())].into();
    state.extension = Some(Extension {
        init: Some(Init {
            minor: 45,
            flags: 1 << 40 | 3,
        }),
        errors: NegotiatedErrors {
            no_open: true,
            ..NegotiatedErrors::default()
        },
        locks: vec![FileLock {
            inode: 4,
            handle: Some(3),
            owner: u64::MAX,
            pid: 12,
            exclusive: true,
            kind: LockKind::Range {
                start: 0,
                end: u64::MAX,
            },
        }],
        session_name: Some("guest 1".to_owned()),
        waker: Some(77),
    });
    state
}

fn refused(state: GuestState) -> String {
    MigratedGuest::new(state)
        .expect_err("it is wrong")
        .to_string()
}

/// Each byte as virtiofsd's types make it by postcard.
#[test]
fn bytes_are_those_of_virtiofsd() {
    let mut state = whole();
    state.extension = None;
    let stream = MigratedGuest::new(state).unwrap().encode().unwrap();
    #[rustfmt::skip]
    let expected = [
        1, 6,
        1, 100, 0, 0,
        4, 1, 1, 9, 1, b'b', 1, 0xac, 2, 1, 3, 1, 2, 3,
        5, 1, 2, 0,
        6, 1, 3, 3, b'x', b'/', b'y', 0,
        7, 1, 4, 0xac, 2, 1, 3, 1, 2, 3, 0,
        9, 2, 1, 1, 1, b'a', 0,
        0xe8, 7,
        2,
        3, 4, 0, 4,
        8, 9, 0, 0x80, 0x80, 8,
        0xe8, 7,
        1, 0, 0, 0,
        1, 0xac, 2, 1, b'.',
    ];
    assert_eq!(stream, expected);
}

#[test]
fn stream_says_all_that_the_state_does() {
    let checked = MigratedGuest::new(whole()).unwrap();
    let stream = checked.encode().unwrap();
    assert_eq!(MigratedGuest::decode(&stream).unwrap(), checked);
}

#[test]
fn version_1_has_no_mounts() {
    let stream = [0, 1, 1, 2, 0, 0, 2, 0, 0, 0, 1, 0, 1];
    let guest = MigratedGuest::decode(&stream).unwrap();
    assert_eq!(guest.inodes, [root(2)]);
    assert!(guest.options.announce_submounts && guest.options.supplementary_group);
    assert!(guest.mount_paths.is_empty() && guest.extension.is_none());
}

#[test]
fn parents_come_first_however_deep() {
    let depth = 5000;
    // Each inode's parent has a higher id, so that the order by id is the reverse.
    let chain = (0..depth).map(|up| {
        let parent = if up == 0 { 1 } else { 10_001 - up };
        inode(10_000 - up, 2, Location::child(parent, OsStr::new("d")))
    });
    let mut state = guest(chain);
    state.next_inode = 20_000;
    let guest = MigratedGuest::new(state).unwrap();
    let mut opened = std::collections::HashSet::new();
    for inode in &guest.inodes {
        if let Location::Child { parent, .. } = inode.location {
            assert!(opened.contains(&parent), "{inode:?}");
        }
        opened.insert(inode.id);
    }
    assert_eq!(opened.len(), 5001);
    assert_eq!(guest.child_counts().get(&10_000), Some(&1));
}

#[test]
fn deeper_than_the_limit_is_refused() {
    let deepest = 2 + u64::from(MAX_DEPTH);
    let chain = |last| (2..=last).map(|id| inode(id, 2, Location::child(id - 1, OsStr::new("d"))));
    let mut state = guest(chain(deepest));
    state.next_inode = deepest + 1;
    assert!(refused(state.clone()).contains("parents above it"));
    state.inodes.pop();
    MigratedGuest::new(state).unwrap();
}

#[test]
fn names_that_are_not_utf_8_are_lost() {
    assert_eq!(
        Location::child(1, OsStr::from_bytes(b"\xff")),
        Location::Invalid
    );
}

#[test]
fn flags_of_the_first_open_are_removed() {
    let mut state = guest([]);
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_APPEND;
    state.handles.push(Handle {
        id: 0,
        inode: 1,
        flags,
    });
    let guest = MigratedGuest::new(state).unwrap();
    assert_eq!(guest.handles[0].flags, libc::O_RDWR | libc::O_APPEND);
}

#[test]
fn wrong_inode_is_named_with_what_is_wrong() {
    let long = "x".repeat(256);
    let path = |path: &str| inode(5, 1, Location::Path(path.to_owned()));
    let table = [
        (child(5, 1, ""), "a name that is empty"),
        (child(5, 1, "."), "is '.' or '..'"),
        (child(5, 1, ".."), "is '.' or '..'"),
        (child(5, 1, "a/b"), "contains a slash"),
        (child(5, 1, "a\0b"), "contains a NUL byte"),
        (child(5, 1, &long), "has 256 bytes, and 255 are the limit"),
        (
            child(5, 6, "a"),
            "a parent, inode 6, that the stream does not list",
        ),
        (child(5, 5, "a"), "is among its own parents"),
        (path("a/../.."), "a path that contains '..'"),
        (path("/etc"), "begins with a slash"),
        (path(""), "a path that is empty"),
        (inode(5, 0, Location::Invalid), "has no references"),
        (inode(5, 1, Location::Root), "is given as the root"),
    ];
    for (inode, hint) in table {
        let message = refused(guest([inode]));
        assert!(
            message.starts_with("inode 5 of the migration stream"),
            "{message}"
        );
        assert!(message.contains(hint), "{message}");
    }
    let huge = FileHandle {
        mount_id: 1,
        handle_type: 1,
        bytes: vec![0; 129],
    };
    assert!(refused(guest([inode(5, 1, Location::FileHandle(huge))])).contains("129 bytes"));
}

#[test]
fn wrong_relations_are_named() {
    let twice = guest([child(5, 1, "a"), child(5, 1, "b")]);
    let cycle = guest([child(5, 6, "a"), child(6, 5, "b")]);
    let mut few = guest([child(5, 1, "a"), child(6, 5, "b"), child(7, 5, "c")]);
    let mut next = guest([child(5, 1, "a")]);
    next.next_inode = 5;
    let mut rootless = guest([inode(5, 1, Location::Invalid)]);
    rootless.inodes.remove(0);
    let mut root_elsewhere = guest([]);
    root_elsewhere.inodes[0].location = Location::Invalid;
    let mut handle = guest([]);
    handle.handles = vec![Handle {
        id: 3,
        inode: 4,
        flags: 0,
    }];
    let mut mount = guest([]);
    mount.mount_paths.insert(7, "../x".to_owned());
    let table = [
        (twice, "inode 5 of the migration stream is listed twice"),
        (cycle, "is among its own parents"),
        (
            few.clone(),
            "inode 5 of the migration stream has 1 references, but 2",
        ),
        (next, "is not below the next id, 5"),
        (rootless, "not the root"),
        (
            root_elsewhere,
            "inode 1 of the migration stream is the root, but",
        ),
        (handle, "handle 3 of the migration stream refers to inode 4"),
        (
            mount,
            "mount 7 of the migration stream has a path that contains '..'",
        ),
    ];
    for (state, hint) in table {
        let message = refused(state);
        assert!(message.contains(hint), "{hint}: {message}");
    }
    few.inodes[1].references = 2;
    MigratedGuest::new(few).unwrap();
}

#[test]
fn counts_are_believed_only_within_limits() {
    // 2^63 inodes in 12 bytes.
    let huge = [1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1];
    let message = MigratedGuest::decode(&huge).unwrap_err().to_string();
    assert!(message.contains("9223372036854775808 inodes"), "{message}");
    let message = MigratedGuest::decode(&[2]).unwrap_err().to_string();
    assert!(message.contains("unknown version 3"), "{message}");
    let message = MigratedGuest::decode(&[1, 1, 1, 2])
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("cut or damaged in item 0 of the inodes"),
        "{message}"
    );
}

#[test]
fn no_end_within_the_stream_passes_for_a_whole() {
    let stream = MigratedGuest::new(whole()).unwrap().encode().unwrap();
    let theirs = stream.windows(4).position(|four| four == b"GANG").unwrap();
    // Fields may be missing: the part's ends between fields are complete streams.
    let mut complete = Vec::new();
    for len in 0..stream.len() {
        if MigratedGuest::decode(&stream[..len]).is_ok() {
            complete.push(len);
        }
    }
    assert_eq!(complete.first(), Some(&theirs));
    assert_eq!(complete.len(), 1 + 5, "{complete:?}");
}

#[test]
fn our_part_skips_the_unknown_and_refuses_the_wrong() {
    let mut state = guest([]);
    state.extension = None;
    let theirs = MigratedGuest::new(state).unwrap().encode().unwrap();
    let with = |ours: &[u8]| MigratedGuest::decode(&[&theirs, ours].concat());
    let refused = |ours: &[u8]| with(ours).unwrap_err().to_string();

    let unknown = b"GANG\x01\0\0\0\xff\x7f\x02\0\0\0ab\x02\0\x03\0\0\0\0\0\x01";
    let extension = with(unknown).unwrap().into_state().extension.unwrap();
    assert!(extension.errors.no_flush && !extension.errors.no_open);
    assert!(refused(b"GONG\x01\0\0\0").contains("begin with 'GANG'"));
    assert!(refused(b"GANG\x02\0\0\0").contains("unknown version 2"));
    assert!(refused(b"GANG\x01\0\0").contains("is cut"));
    assert!(refused(b"GANG\x01\0\0\0\x02\0\x03\0\0\0\0").contains("is cut"));
    assert!(refused(b"GANG\x01\0\0\0\x02\0\x03\0\0\0\0\0\x05").contains("field of kind 2"));
    assert!(refused(b"GANG\x01\0\0\0\x02\0\x04\0\0\0\0\0\0\0").contains("field of kind 2"));
    let twice = b"\x02\0\x03\0\0\0\0\0\0";
    let twice = [b"GANG\x01\0\0\0".as_slice(), twice, twice].concat();
    assert!(refused(&twice).contains("two fields of kind 2"));
}

#[test]
fn lock_needs_its_inode_and_handle() {
    let wrong = |change: fn(&mut FileLock)| {
        let mut state = whole();
        let extension = state.extension.as_mut().expect("the guest has one");
        change(&mut extension.locks[0]);
        refused(state)
    };
    assert!(wrong(|lock| lock.inode = 77).contains("inode 77"));
    assert!(wrong(|lock| lock.handle = Some(8)).contains("handle 8"));
    assert!(wrong(|lock| lock.kind = LockKind::Range { start: 2, end: 1 }).contains("2 to 1"));
}

proptest! {
    /// Any tree of any ids comes back as it was, in an order that can be loaded.
    #[test]
    fn any_tree_comes_back(
        parents in vec(any::<prop::sample::Index>(), 1..60),
        seed in any::<u64>(),
    ) {
        let mut ids = vec![ROOT_ID];
        let mut inodes = Vec::new();
        for (index, parent) in (1_u64..).zip(parents) {
            let id = 2 + (seed.wrapping_mul(index) % 1_000_003) * 100 + index;
            inodes.push(inode(id, 100, Location::child(*parent.get(&ids), OsStr::new("n"))));
            ids.push(id);
        }
        let mut state = guest(inodes);
        state.next_inode = u64::MAX;
        let checked = MigratedGuest::new(state).unwrap();
        let again = MigratedGuest::decode(&checked.encode().unwrap()).unwrap();
        prop_assert_eq!(&again, &checked);
    }

    /// Damage is refused or gives a guest that can be encoded; nothing panics.
    #[test]
    fn damage_is_harmless(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut stream = MigratedGuest::new(whole()).unwrap().encode().unwrap();
        *at.get_mut(&mut stream) = byte;
        if let Ok(guest) = MigratedGuest::decode(&stream) {
            let again = MigratedGuest::decode(&guest.encode().unwrap()).unwrap();
            prop_assert_eq!(again, guest);
        }
    }
}
