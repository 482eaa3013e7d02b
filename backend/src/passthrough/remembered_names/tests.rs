//! Tests of remembered directories.

use super::super::file_type::FileType;
use super::super::mounts::MountIndex;
use super::*;
use crate::state::arena::{Arena, Limits};
use crate::state::change::killing;

fn identity(ino: u64) -> Identity {
    Identity {
        mount: MountIndex::ROOT,
        ino,
        file_type: FileType::Directory,
    }
}

fn in_dir(dir: Option<&RememberedDir>, name: &CStr) -> RememberedName {
    RememberedName {
        dir: dir.cloned(),
        name: name.into(),
    }
}

fn arena() -> Arc<Arena> {
    let limits = Limits {
        inode_bytes: 4 << 20,
        ..Limits::SMALL
    };
    Arena::new(limits).expect("an arena")
}

fn dirs(arena: &Arc<Arena>) -> RememberedDirs {
    RememberedDirs::new(Heap::new(arena), InodeMemory::with_used(0, u64::MAX))
}

#[test]
fn a_directory_is_remembered_once_and_by_its_latest_name() {
    let memory = InodeMemory::with_used(0, u64::MAX);
    let dirs = RememberedDirs::new(Heap::new(&arena()), Arc::clone(&memory));
    let remember = |name, number| dirs.remember(name, identity(number), None).expect("room");
    let a = remember(in_dir(None, c"a"), 1);
    let b = remember(in_dir(Some(&a), c"b\xff"), 2);
    assert_eq!(b, remember(in_dir(Some(&a), c"b\xff"), 2));
    assert!(b.has_path(b"a/b\xff"));
    for other in [&b"b\xff"[..], b"a", b"x/a/b\xff", b"a/b", b""] {
        assert!(!b.has_path(other), "{other:?}");
    }
    let renamed = remember(in_dir(None, c"c"), 2);
    assert!(renamed.has_path(b"c") && b.has_path(b"a/b\xff"));
    assert_eq!(Some(&renamed), dirs.find(identity(2)).as_ref());
    // Another directory got the inode number.
    let birth_time = Some(BirthTime::from_parts(-5, 999_999_999));
    let later = dirs.remember(in_dir(None, c"c"), identity(2), birth_time);
    let later = later.expect("room");
    assert!(later != renamed && later.birth_time() == birth_time);
    assert_eq!(renamed.birth_time(), None);
    drop((a, b, renamed, later));
    assert_eq!(memory.used(), 0);
    assert!(dirs.find(identity(1)).is_none());
    assert_eq!(dirs.known.heap.bytes_in_use(), 0);
}

#[test]
fn a_directory_keeps_those_above_it_and_a_deep_path_is_freed_at_once() {
    let memory = InodeMemory::with_used(0, u64::MAX);
    let dirs = RememberedDirs::new(Heap::new(&arena()), Arc::clone(&memory));
    let name = std::ffi::CString::new([b'n'; 255]).expect("no NUL");
    let mut deepest = None;
    for number in 0..MAX_DEPTH as u64 {
        let name = in_dir(deepest.as_ref(), &name);
        deepest = dirs.remember(name, identity(number), None).ok();
    }
    let deepest = deepest.expect("room");
    let found: Vec<_> = deepest.and_above().collect();
    assert_eq!(found.len(), MAX_DEPTH);
    for (dir, number) in found.iter().rev().zip(0..) {
        assert_eq!(dir.identity(), identity(number));
        assert_eq!(*dir.name(), *name);
    }
    drop(deepest);
    assert_eq!(memory.used(), 0);
    assert_eq!(dirs.known.heap.bytes_in_use(), 0);
}

#[test]
fn what_is_no_longer_in_use_is_removed() {
    let dirs = dirs(&arena());
    let all: Vec<RememberedDir> = (0..10_000)
        .map(|number| dirs.remember(in_dir(None, c"name"), identity(number), None))
        .map(|dir| dir.expect("room"))
        .collect();
    drop(all);
    let by_identity = dirs.known.by_identity.lock();
    assert!(by_identity.is_empty());
    assert!(by_identity.capacity() <= 4 * FEW_DIRS);
}

#[test]
fn a_directory_that_does_not_fit_is_not_remembered() {
    let memory = InodeMemory::with_used(0, 2 * DIR_BYTES);
    let dirs = RememberedDirs::new(Heap::new(&arena()), Arc::clone(&memory));
    let first = dirs.remember(in_dir(None, c"first"), identity(1), None);
    let second = dirs.remember(in_dir(None, c"second"), identity(2), None);
    assert!(first.is_ok() && second.is_err());
    drop((first, second));
    assert_eq!(memory.used(), 0);
}

#[test]
fn a_full_heap_leaves_no_use_counted() {
    let dirs = dirs(&arena());
    let parent = dirs.remember(in_dir(None, c"parent"), identity(0), None);
    let parent = parent.expect("room");
    let blocks: Vec<Block> =
        std::iter::from_fn(|| dirs.known.heap.allocate(DirBlock::len(c"name"))).collect();
    let refused = dirs.remember(in_dir(Some(&parent), c"name"), identity(1), None);
    let error = refused.expect_err("the heap is full");
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    drop(parent);
    blocks
        .into_iter()
        .for_each(|block| dirs.known.heap.free(block));
    assert_eq!(dirs.known.heap.bytes_in_use(), 0);
    assert_eq!(dirs.known.memory.used(), 0);
}

/// Remembers a path, stores the use of its directories, and removes that, and kills the worker
/// before each change. What is stored is whole for the next worker, with all directories above it.
#[test]
fn the_next_worker_finds_the_directories_of_what_is_stored() {
    for kill_at in 0.. {
        let arena = arena();
        let first = dirs(&arena);
        // As inode records have them.
        let stored = std::cell::RefCell::new(Vec::new());
        let finished = killing::until(kill_at, || {
            let mut dir = None;
            for (name, number) in [(c"a", 1), (c"b", 2), (c"c", 3)] {
                let name = in_dir(dir.as_ref(), name);
                let deeper = first.remember(name, identity(number), None).expect("room");
                stored.borrow_mut().push((deeper.link(), number));
                dir = Some(deeper);
            }
            drop(dir);
            loop {
                let Some((block, _)) = stored.borrow_mut().pop() else {
                    break;
                };
                first.unlink(block);
            }
        })
        .is_some();
        std::mem::forget(first);
        let next = dirs(&arena);
        // The next worker changes the heap at once.
        let other = next.remember(in_dir(None, c"other"), identity(9), None);
        for (block, number) in stored.take() {
            let dir = next.share(block);
            let path = &b"a/b/c"[..2 * usize::try_from(number).expect("few") - 1];
            assert!(dir.has_path(path), "{kill_at}: {number}");
            let above: Vec<u64> = dir.and_above().map(|dir| dir.identity().ino).collect();
            assert_eq!(above, (1..=number).rev().collect::<Vec<u64>>());
            assert!(next.find(identity(number)).is_none());
            drop(dir);
            next.unlink(block);
        }
        drop(other);
        // At most the path that the dead worker's request had is left.
        assert!(next.known.heap.bytes_in_use() <= 4096);
        let bytes = next
            .known
            .heap
            .record()
            .directory_bytes
            .load(Ordering::Relaxed);
        assert!(bytes <= 3 * (DIR_BYTES + 1), "{kill_at}: {bytes}");
        next.known
            .memory
            .take(bytes)
            .expect("as the next worker does at start");
        assert!(next.forget_lost());
        assert_eq!(next.known.heap.bytes_in_use(), 0);
        if finished {
            assert_eq!(bytes, 0);
            break;
        }
    }
}

#[test]
fn what_a_request_has_is_not_forgotten_as_lost() {
    let dirs = dirs(&arena());
    let dir = dirs
        .remember(in_dir(None, c"a"), identity(1), None)
        .expect("room");
    assert!(!dirs.forget_lost());
    assert!(dir.has_path(b"a"));
    drop(dir);
    assert!(dirs.forget_lost());
}

#[test]
fn threads_that_find_and_drop_a_directory_free_it_once() {
    let dirs = dirs(&arena());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..5000 {
                    let a = dirs.remember(in_dir(None, c"a"), identity(1), None);
                    let name = in_dir(a.as_ref().ok(), c"b");
                    let b = dirs.remember(name, identity(2 + round % 2), None);
                    let found = dirs.find(identity(2));
                    assert!(found.is_none_or(|found| found.has_path(b"a/b")));
                    assert!(b.expect("room").clone().has_path(b"a/b"));
                }
            });
        }
    });
    assert_eq!(dirs.known.heap.bytes_in_use(), 0);
    assert_eq!(dirs.known.memory.used(), 0);
}
