//! A worker dies, and the next one goes on with the state in the arena.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use gangplank_fuse::dir::DirentWriter;

use super::super::inode_shard::{SHARDS, decode_node_id};
use super::super::options::Locks;
use super::*;
use crate::session::LockWait;
use gangplank_fuse::{FileLock, LkIn};

const ROOT: NodeId = NodeId::ROOT;

/// The next worker's file system, after this one's worker was killed: nothing is dropped, and all
/// descriptors stay open.
fn after_death(guest: Guest) -> Guest {
    let Guest { fs, directory } = guest;
    let share = Arc::clone(&fs.share);
    std::mem::forget(fs);
    let (options, abilities) = (share.options.clone(), share.abilities);
    let arena = Arc::clone(&share.arena);
    Guest {
        fs: PassthroughFs::new(share_in(arena, directory.path(), options, abilities)),
        directory,
    }
}

fn entries(guest: &Guest, directory: NodeId, handle: Handle, offset: u64, room: usize) -> Vec<u8> {
    let args = ReadIn {
        fh: handle.get(),
        offset,
        ..ReadIn::default()
    };
    let mut buffer = vec![0; room];
    let mut writer = DirentWriter::new(&mut buffer);
    let listed = guest.fs.readdir(directory, &args, &mut writer);
    listed.expect("listed");
    let len = writer.written();
    buffer.truncate(len);
    buffer
}

#[test]
fn a_state_with_nothing_in_it_takes_little_memory_whoever_looks_for_something() {
    let guest = after_death(Guest::new());
    let arena = Arc::clone(&guest.fs.share.arena);
    let used = || arena.used_bytes().expect("attributes");
    assert!(used() <= 32 << 10, "{}", used());
    super::super::forget_lost(&arena, &HashSet::new());
    crate::state::counters::Counters::new(&arena);
    assert!(used() <= 160 << 10, "{}", used());
}

#[test]
fn node_ids_and_look_ups_are_those_of_before() {
    let guest = Guest::new();
    let dir = guest.mkdir(ROOT, c"dir");
    let (file, _) = guest.create(dir, c"file", libc::O_RDWR).expect("created");
    let file = NodeId::new(file.nodeid);
    let guest = after_death(guest);

    assert_eq!(guest.fs.held_inodes(), 2);
    let again = guest.lookup(dir, c"file").expect("found");
    assert_eq!(NodeId::new(again.nodeid), file);
    assert_eq!(guest.lookup(ROOT, c"dir").expect("found").nodeid, dir.get());
    // Two look-ups of each.
    guest.fs.forget(file, 1);
    guest.fs.getattr(file, None).expect("known");
    guest.fs.forget(file, 1);
    assert!(guest.fs.getattr(file, None).is_err());
    let held = guest.fs.share.held_descriptors();
    guest.fs.forget(dir, 2);
    assert_eq!(guest.fs.held_inodes(), 0);
    assert_eq!(guest.fs.share.held_descriptors(), held - 1);
}

#[test]
fn open_files_go_on_also_without_a_name() {
    let guest = Guest::new();
    let (entry, opened) = guest.create(ROOT, c"file", libc::O_RDWR).expect("created");
    let (node, handle) = (NodeId::new(entry.nodeid), Handle::new(opened.fh));
    guest.write(node, handle, 0, b"before").expect("written");
    guest.fs.unlink(ROOT, checked(c"file")).expect("removed");
    let guest = after_death(guest);

    assert_eq!(guest.fs.open_files(), 1);
    guest
        .write(node, handle, 6, b" and after")
        .expect("written");
    let mut content = [0; 32];
    let len = guest.read(node, handle, 0, &mut content).expect("read");
    assert_eq!(&content[..len], b"before and after");
    assert!(
        guest
            .fs
            .getattr(NodeId::new(entry.nodeid + 16), Some(handle))
            .is_err()
    );
    guest.release(node, handle);
    assert_eq!(guest.fs.open_files(), 0);
    guest.fs.forget(node, 1);
    assert_eq!(guest.fs.share.held_descriptors(), 0, "nothing is left open");
}

#[test]
fn a_listing_goes_on_where_it_stood() {
    let guest = Guest::new();
    let dir = guest.mkdir(ROOT, c"dir");
    for number in 0..100 {
        std::fs::write(guest.path(&format!("dir/a-file-{number}")), b"").expect("written");
    }
    let open = |guest: &Guest| {
        Handle::new(
            guest
                .fs
                .opendir(dir, &OpenIn::default())
                .expect("opened")
                .fh,
        )
    };
    let handle = open(&guest);
    let expected = entries(&guest, dir, open(&guest), 0, 1 << 16);
    let first = entries(&guest, dir, handle, 0, 1000);
    let guest = after_death(guest);

    // Bytes 8 to 16 of an entry are its offset (`struct fuse_dirent`).
    let mut at = 0;
    let mut offset = 0;
    while at < first.len() {
        let field = |from: usize, len: usize| &first[at + from..at + from + len];
        offset = u64::from_ne_bytes(field(8, 8).try_into().expect("8 bytes"));
        let name_len = u32::from_ne_bytes(field(16, 4).try_into().expect("4 bytes")) as usize;
        at += (24 + name_len).next_multiple_of(8);
    }
    let rest = entries(&guest, dir, handle, offset, 1 << 16);
    assert!(!first.is_empty() && !rest.is_empty());
    assert_eq!([first, rest].concat(), expected);
}

#[test]
fn a_lock_is_still_held_and_can_be_released() {
    let guest = Guest::with(Options {
        locks: Locks::Host,
        ..Options::default()
    });
    let (entry, opened) = guest.create(ROOT, c"file", libc::O_RDWR).expect("created");
    let node = NodeId::new(entry.nodeid);
    let lock = |owner, kind: i32| LkIn {
        fh: opened.fh,
        owner,
        lk: FileLock {
            start: 0,
            end: 9,
            r#type: kind.cast_unsigned(),
            pid: 1,
        },
        ..LkIn::default()
    };
    let take = |guest: &Guest, owner, kind| guest.fs.setlk(node, &lock(owner, kind), LockWait::No);
    take(&guest, 1, libc::F_WRLCK).expect("free");
    let guest = after_death(guest);

    assert!(take(&guest, 2, libc::F_WRLCK).is_err());
    take(&guest, 1, libc::F_WRLCK).expect("its own");
    take(&guest, 1, libc::F_UNLCK).expect("its own");
    take(&guest, 2, libc::F_WRLCK).expect("free");
    guest.release(node, Handle::new(opened.fh));
    guest.fs.forget(node, 1);
    assert_eq!(guest.fs.share.held_descriptors(), 0);
}

#[test]
fn inodes_without_a_descriptor_are_found_again() {
    for can_open_by_handle in [true, false] {
        if can_open_by_handle && skipped_without_root("inodes_without_a_descriptor_are_found_again")
        {
            continue;
        }
        let options = Options {
            fd_budget: 64,
            ..Options::default()
        };
        let able = Abilities {
            can_open_by_handle,
            ..abilities()
        };
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        let guest = Guest::able(directory, options, able);
        let dir = guest.mkdir(ROOT, c"dir");
        let nodes: Vec<NodeId> = (0..300)
            .map(|number| {
                std::fs::write(guest.path(&format!("dir/{number}")), b"").expect("written");
                let name = CString::new(number.to_string()).expect("no NUL");
                NodeId::new(guest.lookup(dir, &name).expect("found").nodeid)
            })
            .collect();
        let used = guest.fs.state.inodes.memory().used();
        let guest = after_death(guest);

        assert_eq!(guest.fs.held_inodes(), 301);
        assert_eq!(guest.fs.state.inodes.memory().used(), used);
        for (number, node) in nodes.iter().enumerate() {
            let path = guest.path(&format!("dir/{number}"));
            let ino = std::fs::metadata(path).expect("there").ino();
            assert_eq!(guest.fs.getattr(*node, None).expect("known").attr.ino, ino);
        }
        for node in nodes {
            guest.fs.forget(node, 1);
        }
        guest.fs.forget(dir, 1);
        assert_eq!(guest.fs.held_inodes(), 0);
        assert_eq!(guest.fs.share.held_descriptors(), 0);
    }
}

#[test]
fn counts_that_a_worker_damaged_end_in_errors_and_not_in_a_panic() {
    let guest = Guest::new();
    let dir = guest.mkdir(ROOT, c"dir");
    guest.create(dir, c"file", libc::O_RDWR).expect("created");
    let arena = Arc::clone(&guest.fs.share.arena);
    for shard in 0..SHARDS {
        let table = arena.inode_table(shard);
        for count in [&table[0].descriptors, &table[0].extra_bytes] {
            count.store(u64::MAX, Ordering::Relaxed);
        }
    }
    let directories = &arena.header().heap.directory_bytes;
    directories.store(u64::MAX, Ordering::Relaxed);
    let guest = after_death(guest);

    assert_eq!(guest.fs.held_inodes(), 2);
    guest.fs.getattr(dir, None).expect("known");
    assert!(guest.lookup(dir, c"file").is_ok());
    assert!(guest.create(dir, c"other", libc::O_RDWR).is_err());
}

#[test]
fn a_shard_that_was_half_changed_is_made_whole() {
    let guest = Guest::new();
    let nodes: Vec<NodeId> = (0..200)
        .map(|number| {
            let name = CString::new(format!("{number}")).expect("no NUL");
            NodeId::new(
                guest
                    .create(ROOT, &name, libc::O_RDWR)
                    .expect("created")
                    .0
                    .nodeid,
            )
        })
        .collect();
    let arena = Arc::clone(&guest.fs.share.arena);
    // As if the worker had died in the middle of changes: everything that follows from the records
    // is wrong.
    let (shard, key) = decode_node_id(nodes[0]).expect("a node id");
    arena.inode_table(shard)[0].begin_change();
    arena.used_inodes(shard)[0].store(0, std::sync::atomic::Ordering::Relaxed);
    let places = arena.inode_index(shard);
    places
        .iter()
        .for_each(|place| place.store(1, std::sync::atomic::Ordering::Relaxed));
    let inode = &arena.inodes(shard)[key.index() as usize];
    let descriptor = inode.descriptor.get().expect("a descriptor");
    let owners = arena.descriptor_owners();
    let owner = &owners[usize::try_from(descriptor).expect("a number")];
    owner.store(0, std::sync::atomic::Ordering::Relaxed);
    super::super::inode_shard::Shard::correct(&arena, shard);
    assert_ne!(owner.load(std::sync::atomic::Ordering::Relaxed), 0);
    let guest = after_death(guest);

    assert_eq!(guest.fs.held_inodes(), 200);
    for (number, node) in nodes.iter().enumerate() {
        let name = CString::new(format!("{number}")).expect("no NUL");
        let found = guest.lookup(ROOT, &name).expect("found");
        assert_eq!(NodeId::new(found.nodeid), *node);
        let ino = std::fs::metadata(guest.path(&number.to_string()))
            .expect("there")
            .ino();
        assert_eq!(found.attr.ino, ino);
    }
}
