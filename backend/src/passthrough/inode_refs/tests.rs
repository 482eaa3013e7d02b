//! Tests of references in the heap.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;

use super::super::file_type::FileType;
use super::super::mounts::Identity;
use super::super::tests::memory::allocations;
use super::*;
use crate::state::arena::{Arena, Limits};
use crate::state::change::killing;
use crate::state::mounts::descriptors;
use crate::sys::file;

/// One worker of a guest: its references, and what they depend on.
struct Worker {
    refs: InodeRefs,
    memory: Arc<InodeMemory>,
}

fn arena() -> Arc<Arena> {
    let limits = Limits {
        inode_bytes: 4 << 20,
        ..Limits::SMALL
    };
    Arena::new(limits).expect("an arena")
}

impl Worker {
    fn new(arena: &Arc<Arena>) -> Self {
        let heap = Heap::new(arena);
        let bytes = heap.record().directory_bytes.load(Ordering::Relaxed);
        let memory = InodeMemory::with_used(bytes, u64::MAX);
        let mounts = Arc::new(Mounts::restore(arena));
        let refs = InodeRefs::new(heap, mounts, Arc::clone(&memory));
        Self { refs, memory }
    }

    /// A reference to a file with a handle; `None` if handles do not work here.
    fn by_handle(&self, file: &File) -> Option<InodeRef> {
        let file = file.as_fd();
        let proc_self_fd = File::open("/proc/self/fd").expect("opened");
        let stat = file::stat(file).expect("attributes");
        let mount = self.refs.mounts.find_or_add(&stat, file).expect("a mount");
        let handle = mount
            .handles()
            .openable_handle(proc_self_fd.as_fd(), file, Some(file));
        let handle = handle.expect("no error").map(InodeRef::Handle);
        if handle.is_none() {
            eprintln!("SKIPPED: handles do not work here");
        }
        handle
    }

    /// A reference by name, in a directory.
    fn by_name(&self, dir: &CStr, name: &CStr) -> InodeRef {
        let identity = Identity {
            mount: MountIndex::ROOT,
            ino: dir.count_bytes() as u64,
            file_type: FileType::Directory,
        };
        let dir = RememberedName {
            dir: None,
            name: dir.into(),
        };
        let dir = self.refs.dirs.remember(dir, identity, None).expect("room");
        in_dir(Some(dir), name, 5)
    }
}

fn in_dir(dir: Option<RememberedDir>, name: &CStr, seconds: i64) -> InodeRef {
    InodeRef::Name {
        name: RememberedName {
            dir,
            name: name.into(),
        },
        birth_time: BirthTime::from_parts(seconds, 999_999_999),
    }
}

/// What tells references apart.
fn content(inode_ref: &InodeRef) -> String {
    match inode_ref {
        InodeRef::Handle(handle) => format!("{:?} {}", handle.handle(), handle.mount_index()),
        InodeRef::Name { name, birth_time } => {
            let above = name.dir.iter().flat_map(RememberedDir::and_above);
            let above: Vec<CString> = above.map(|dir| dir.name().to_owned()).collect();
            format!("{:?} {above:?} {birth_time:?}", name.name)
        }
        InodeRef::Unlinked => "unlinked".to_owned(),
    }
}

fn fingerprint(inode_ref: &InodeRef) -> InodeFingerprint {
    match inode_ref {
        InodeRef::Handle(handle) => InodeFingerprint {
            handle: Some(handle.handle().clone()),
            birth_time: None,
        },
        InodeRef::Name { birth_time, .. } => InodeFingerprint {
            handle: None,
            birth_time: Some(*birth_time),
        },
        InodeRef::Unlinked => InodeFingerprint {
            handle: None,
            birth_time: None,
        },
    }
}

#[test]
fn a_stored_reference_is_what_it_was() {
    let worker = Worker::new(&arena());
    let refs = &worker.refs;
    let mut all = vec![InodeRef::Unlinked];
    for len in [1, 15, 16, 24, 25, 255] {
        let name = CString::new(vec![b'\xff'; len]).expect("no NUL");
        all.push(in_dir(None, &name, i64::MIN));
        all.push(worker.by_name(c"dir", &name));
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    all.extend(worker.by_handle(file.as_file()));
    let stored: Vec<Block> = (all.iter())
        .map(|inode_ref| refs.store(inode_ref).expect("room"))
        .collect();
    for (inode_ref, block) in all.iter().zip(&stored) {
        assert_eq!(content(&refs.load(*block)), content(inode_ref));
        let survives = matches!(inode_ref, InodeRef::Handle(_));
        assert_eq!(refs.survives_rename(*block), survives);
        assert_eq!(refs.extra_bytes(*block), inode_ref.extra_bytes());
        for other in &all {
            let other = fingerprint(other);
            let matches = refs.matches(*block, &other);
            let expected = match inode_ref {
                InodeRef::Handle(handle) => other.handle.as_ref() == Some(handle.handle()),
                InodeRef::Name { birth_time, .. } => other.birth_time == Some(*birth_time),
                InodeRef::Unlinked => false,
            };
            assert_eq!(matches, expected);
        }
    }
    // A loaded reference lives on when the inode has another.
    let loaded: Vec<InodeRef> = stored.iter().map(|block| refs.load(*block)).collect();
    stored.iter().for_each(|block| refs.free(*block));
    for (inode_ref, loaded) in all.iter().zip(&loaded) {
        assert_eq!(content(loaded), content(inode_ref));
        if let InodeRef::Handle(handle) = loaded {
            handle.open().expect("the mount's descriptor is open");
        }
    }
    drop((all, loaded));
    assert_eq!((refs.heap.bytes_in_use(), worker.memory.used()), (0, 0));
}

/// Kills the worker before each change of storing and freeing references of all kinds. The next
/// worker has each of those that a record has, and what a request of the dead worker had does not
/// outlast the session.
#[test]
fn the_next_worker_has_the_references_of_all_records() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    for kill_at in 0.. {
        let arena = arena();
        let first = Worker::new(&arena);
        let handle = first.by_handle(file.as_file());
        let all = [
            handle.unwrap_or(InodeRef::Unlinked),
            first.by_name(c"some directory", c"file"),
            first.by_name(c"other", c"file"),
            in_dir(None, c"file", -1),
        ];
        // The inodes' records.
        let records: RefCell<Vec<(Block, String)>> = RefCell::default();
        let finished = killing::until(kill_at, || {
            for inode_ref in &all {
                let block = first.refs.store(inode_ref).expect("room");
                records.borrow_mut().push((block, content(inode_ref)));
            }
            for _ in &all {
                let (block, _) = records.borrow_mut().remove(0);
                first.refs.free(block);
            }
        })
        .is_some();
        // The dead worker's descriptors stay open in the table that the next one shares.
        std::mem::forget((first, all));
        let next = Worker::new(&arena);
        let fresh = next.refs.store(&next.by_name(c"fresh", c"file"));
        let fresh = fresh.expect("room");
        for (block, expected) in records.take() {
            let loaded = next.refs.load(block);
            assert_eq!(content(&loaded), expected, "{kill_at}");
            if let InodeRef::Handle(handle) = &loaded {
                assert_eq!(descriptors(&arena).len(), 1);
                handle.open().expect("opened by the next worker");
            }
            next.refs.free(block);
        }
        next.refs.free(fresh);
        next.refs.forget_lost();
        assert!(descriptors(&arena).is_empty());
        let left = (next.refs.heap.bytes_in_use(), next.memory.used());
        assert_eq!(left, (0, 0), "{kill_at}");
        if finished {
            break;
        }
    }
}

#[test]
fn a_full_heap_is_enomem_and_leaves_nothing_counted() {
    let arena = arena();
    let worker = Worker::new(&arena);
    let refs = &worker.refs;
    let file = tempfile::tempfile().expect("a file");
    let all = [
        worker.by_handle(&file).unwrap_or(InodeRef::Unlinked),
        worker.by_name(c"dir", c"file"),
    ];
    let blocks: Vec<Block> = [16, 32, 48, 64]
        .into_iter()
        .flat_map(|len| std::iter::from_fn(move || refs.heap.allocate(len)))
        .collect();
    for inode_ref in &all {
        let error = refs.store(inode_ref).expect_err("the heap is full");
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    }
    assert!(descriptors(&arena).is_empty());
    drop(all);
    blocks.into_iter().for_each(|block| refs.heap.free(block));
    assert_eq!((refs.heap.bytes_in_use(), worker.memory.used()), (0, 0));
}

/// A guest may know millions of inodes.
#[test]
fn a_reference_takes_few_bytes_and_storing_it_none_of_the_workers_heap() {
    const COUNT: usize = 8192;
    let arena = arena();
    let worker = Worker::new(&arena);
    let refs = &worker.refs;
    let bytes_each = |inode_ref: &InodeRef| {
        let fingerprint = fingerprint(inode_ref);
        let before = allocations();
        let stored: [u32; COUNT] =
            std::array::from_fn(|_| refs.store(inode_ref).expect("room").raw());
        let bytes = refs.heap.bytes_in_use();
        for block in stored.into_iter().filter_map(Block::from_raw) {
            assert!(refs.matches(block, &fingerprint));
            refs.free(block);
        }
        assert_eq!(allocations(), before);
        bytes.div_ceil(COUNT)
    };
    let name = bytes_each(&in_dir(None, c"file000000.txt", 0));
    let long = bytes_each(&in_dir(
        None,
        &CString::new([b'n'; 255]).expect("no NUL"),
        0,
    ));
    let file = tempfile::tempfile().expect("a file");
    let handle = worker
        .by_handle(&file)
        .map_or(0, |handle| bytes_each(&handle));
    eprintln!("{name} bytes by a name of 14 bytes, {long} of 255, {handle} by handle");
    assert!(name <= 33 && long <= 300 && handle <= 48);
}
