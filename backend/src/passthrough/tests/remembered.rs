//! Tests of inodes that are found again by name and directory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::passthrough::inode_table::Access;

const ROOT: NodeId = NodeId::ROOT;

/// A guest that may open nothing by handle and has few descriptors.
fn guest() -> Guest {
    let options = Options {
        fd_budget: 16,
        ..Options::default()
    };
    let abilities = Abilities {
        can_open_by_handle: false,
        ..abilities()
    };
    Guest::able(
        Arc::new(tempfile::tempdir().expect("a directory")),
        options,
        abilities,
    )
}

/// Makes a directory with a file in it and looks up both.
fn directory_with_file(guest: &Guest) -> (NodeId, NodeId) {
    std::fs::create_dir(guest.path("directory")).expect("made");
    std::fs::write(guest.path("directory/file"), b"content").expect("written");
    let directory = guest.find(ROOT, c"directory");
    (directory, guest.find(directory, c"file"))
}

/// Has the guest look up other files until its descriptors of `nodes` are evicted. False if the
/// file system has no birth times, so that nothing is.
fn evict(guest: &Guest, nodes: &[NodeId]) -> bool {
    for n in 0..200 {
        let name = format!("other{n}");
        std::fs::write(guest.path(&name), b"").expect("written");
        if guest.lookup(ROOT, &c_string(name)).is_err() {
            eprintln!("SKIPPED: no birth times in {}", guest.path("").display());
            return false;
        }
    }
    for node in nodes {
        let known = guest.fs.state.inodes.get(*node).expect("known");
        assert!(matches!(known.access, Access::Ref(_)));
    }
    true
}

fn content(guest: &Guest, file: NodeId) -> io::Result<Vec<u8>> {
    let handle = guest.open(file, libc::O_RDONLY)?;
    let mut buffer = [0; 16];
    let length = guest.read(file, handle, 0, &mut buffer)?;
    guest.release(file, handle);
    Ok(buffer[..length].to_vec())
}

#[test]
fn what_is_in_a_renamed_directory_is_found_while_the_directory_is_open() {
    let guest = guest();
    let (directory, file) = directory_with_file(&guest);
    if !evict(&guest, &[directory, file]) {
        return;
    }
    std::fs::rename(guest.path("directory"), guest.path("renamed")).expect("renamed");
    let lost = guest.fs.getattr(file, None);
    assert_eq!(errno(lost), Some(libc::ESTALE));
    // The guest's kernel repeats the lookups, from the top.
    assert_eq!(guest.find(ROOT, c"renamed"), directory);
    assert_eq!(content(&guest, file).expect("found"), b"content");
    // After the next eviction they are found by their new names.
    assert_eq!(guest.find(directory, c"file"), file);
    assert!(evict(&guest, &[directory, file]));
    assert_eq!(content(&guest, file).expect("found"), b"content");
}

#[test]
fn what_is_in_a_forgotten_directory_is_found() {
    let guest = guest();
    let (directory, file) = directory_with_file(&guest);
    guest.fs.forget(directory, 1);
    if !evict(&guest, &[file]) {
        return;
    }
    assert_eq!(content(&guest, file).expect("found"), b"content");
    assert_eq!(errno(guest.fs.getattr(directory, None)), Some(libc::ESTALE));
    guest.fs.destroy();
    assert_eq!(guest.fs.state.inodes.memory().used(), 0);
}

#[test]
fn a_directory_in_place_of_another_is_not_taken_for_it() {
    let guest = guest();
    let (directory, file) = directory_with_file(&guest);
    if !evict(&guest, &[directory, file]) {
        return;
    }
    // The file itself is the same, but the way to it is not.
    std::fs::rename(guest.path("directory"), guest.path("aside")).expect("renamed");
    std::fs::create_dir(guest.path("directory")).expect("made");
    std::fs::rename(guest.path("aside/file"), guest.path("directory/file")).expect("renamed");
    assert_eq!(errno(guest.fs.getattr(file, None)), Some(libc::ESTALE));
    let other = guest.find(ROOT, c"directory");
    assert_ne!(other, directory);
    assert_eq!(guest.find(other, c"file"), file);
    assert_eq!(content(&guest, file).expect("found"), b"content");
}

#[test]
fn names_need_not_be_text() {
    let guest = guest();
    let path = |bytes: &[u8]| guest.directory.path().join(OsStr::from_bytes(bytes));
    std::fs::create_dir_all(path(b"\xff\n/ (deleted)")).expect("made");
    std::fs::write(path(b"\xff\n/ (deleted)/\x80 (deleted)"), b"content").expect("written");
    let outer = guest.find(ROOT, &c_string(*b"\xff\n"));
    let inner = guest.find(outer, c" (deleted)");
    let file = guest.find(inner, &c_string(*b"\x80 (deleted)"));
    if !evict(&guest, &[outer, inner, file]) {
        return;
    }
    assert_eq!(content(&guest, file).expect("found"), b"content");
    assert!(evict(&guest, &[]));
    assert_eq!(guest.find(outer, c" (deleted)"), inner);
}

/// Files at many places of a tree that changes all the time are found, or are stale.
#[test]
fn no_file_is_taken_for_another_while_directories_move() {
    let guest = guest();
    let mut files = Vec::new();
    for n in 0..20 {
        let dir = format!("directory{n}");
        std::fs::create_dir(guest.path(&dir)).expect("made");
        std::fs::write(guest.path(&format!("{dir}/file")), n.to_string()).expect("written");
        let dir = guest.find(ROOT, &c_string(dir));
        files.push(guest.find(dir, c"file"));
    }
    if !evict(&guest, &[files[0]]) {
        return;
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let path = |n: usize| guest.path(&format!("directory{}", n % 20));
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    path(at),
                    rustix::fs::CWD,
                    path(at * 7 + 1),
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .ok();
                at += 1;
            }
        });
        for _ in 0..20 {
            for (n, file) in files.iter().enumerate() {
                match content(&guest, *file) {
                    Ok(found) => assert_eq!(found, n.to_string().into_bytes()),
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE)),
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
