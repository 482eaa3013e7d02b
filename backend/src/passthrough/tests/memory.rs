//! Tests of the memory that a guest's inodes take.
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::*;

const ROOT: NodeId = NodeId::ROOT;

/// Counts the bytes that each thread has allocated and not freed.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Number of allocations that the thread has made.
pub(in crate::passthrough) fn allocations() -> usize {
    ALLOCATIONS.get()
}

/// Adds bytes as malloc(3) takes them: with a word of its own, in steps of 16.
fn count(bytes: usize, sign: isize) {
    let taken = (bytes + 8).next_multiple_of(16).max(32);
    ALLOCATED.with(|sum| sum.set(sum.get() + sign * taken.cast_signed()));
}

// SAFETY: all calls go to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Bytes for each of many files of one directory that is `depth` directories deep, once evicted.
fn bytes_per_file(depth: usize, can_open_by_handle: bool) -> usize {
    const FILES: usize = 3000;
    let options = Options {
        fd_budget: 64,
        ..Options::default()
    };
    let abilities = Abilities {
        can_open_by_handle,
        ..abilities()
    };
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let guest = Guest::able(directory, options, abilities);
    let dir_name = "d".repeat(60);
    let mut path = guest.directory.path().to_owned();
    path.extend(std::iter::repeat_n(&dir_name, depth));
    std::fs::create_dir_all(&path).expect("made");
    let mut dir = ROOT;
    for _ in 0..depth {
        dir = guest.find(dir, &c_string(dir_name.as_str()));
    }
    let names: Vec<String> = (0..FILES).map(|n| format!("file{n:06}.txt")).collect();
    for name in &names {
        File::create(path.join(name)).expect("made");
    }
    let before = ALLOCATED.get();
    for name in &names {
        match guest.lookup(dir, &c_string(name.as_str())) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
                eprintln!("SKIPPED: no file handles and no birth times here");
                return 0;
            }
        }
    }
    let taken = ALLOCATED.get() - before;
    usize::try_from(taken).expect("positive") / FILES
}

#[test]
fn a_remembered_file_takes_little_memory_however_deep_it_is() {
    for can_open_by_handle in [false, is_root()] {
        let flat = bytes_per_file(0, can_open_by_handle);
        let deep = bytes_per_file(60, can_open_by_handle);
        eprintln!("handles {can_open_by_handle}: {flat} bytes flat, {deep} bytes 60 deep");
        assert!(flat <= 160, "{flat} bytes");
        assert!(deep <= 400, "{deep} bytes");
    }
}

/// A guest that looks up files without end is refused new ones, keeps what it has, and goes on
/// after it has forgotten some.
#[test]
fn a_guest_that_uses_up_its_memory_gets_enomem() {
    for can_open_by_handle in [false, is_root()] {
        let options = Options {
            fd_budget: 64,
            max_inode_memory: 64 << 10,
            ..Options::default()
        };
        let abilities = Abilities {
            can_open_by_handle,
            ..abilities()
        };
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        let guest = Guest::able(directory, options, abilities);
        let name = |n: usize| c_string(format!("file{n}"));
        for n in 0..1000 {
            File::create(guest.path(&format!("file{n}"))).expect("made");
        }
        let found: Vec<NodeId> = (0..1000)
            .map_while(|n| Some(NodeId::new(guest.lookup(ROOT, &name(n)).ok()?.nodeid)))
            .collect();
        assert_eq!(found.len(), (64 << 10) * 7 / 8 / 160);
        let refused = guest.lookup(ROOT, &name(found.len()));
        assert_eq!(errno(refused), Some(libc::ENOMEM));
        let (creator, new) = (root_creator(), checked(c"new"));
        let made = guest.fs.mkdir(&creator, ROOT, new, 0o755);
        assert_eq!(errno(made), Some(libc::ENOMEM));
        let made = guest.create(ROOT, c"new", libc::O_RDWR);
        assert_eq!(errno(made), Some(libc::ENOMEM));
        assert!(guest.path("new").symlink_metadata().is_err());
        for (n, node) in found.iter().enumerate() {
            assert_eq!(guest.find(ROOT, &name(n)), *node);
            guest.fs.getattr(*node, None).expect("reopened");
        }
        for node in &found {
            guest.fs.forget(*node, 2);
        }
        assert_eq!(guest.fs.state.inodes.memory().used(), 0);
        guest.find(ROOT, &name(999));
        guest.fs.destroy();
        assert_eq!(guest.fs.state.inodes.memory().used(), 0);
    }
}
