//! Tests of files that are opened again soon after they were closed.

use std::os::fd::{AsFd, AsRawFd};

use super::*;
use crate::passthrough::options::{CachePolicy, Locks};

const ROOT: NodeId = NodeId::ROOT;

pub(super) fn file(guest: &Guest, name: &CStr) -> NodeId {
    let path = guest.path(name.to_str().expect("plain"));
    std::fs::write(path, b"content").expect("written");
    guest.find(ROOT, name)
}

fn open_and_close(guest: &Guest, node: NodeId, flags: i32, times: usize) {
    for _ in 0..times {
        let handle = guest.open(node, flags).expect("opened");
        guest.release(node, handle);
    }
}

fn descriptor(guest: &Guest, node: NodeId, handle: Handle) -> i32 {
    let file = guest.fs.state.files.get(handle, node).expect("open");
    file.as_fd().as_raw_fd()
}

#[test]
fn a_file_that_is_read_again_and_again_is_opened_once() {
    let guest = Guest::new();
    let node = file(&guest, c"file");
    open_and_close(&guest, node, libc::O_RDONLY, 2);
    let kept = guest.fs.share.held_descriptors();
    let first = guest.open(node, libc::O_RDONLY).expect("opened");
    assert_eq!(guest.fs.share.held_descriptors(), kept, "used again");
    let second = guest.open(node, libc::O_RDONLY).expect("opened");
    assert_ne!(
        descriptor(&guest, node, first),
        descriptor(&guest, node, second),
        "two that are open at once read at their own pace"
    );
    // The read returns the new content.
    std::fs::write(guest.path("file"), b"other").expect("written");
    let mut buffer = [0; 16];
    assert_eq!(guest.read(node, first, 0, &mut buffer).expect("read"), 5);
    assert_eq!(&buffer[..5], b"other");
    guest.release(node, first);
    let stale = errno(guest.read(node, first, 0, &mut buffer));
    assert_eq!(stale, Some(libc::EBADF), "a closed handle");
    guest.release(node, second);
}

#[test]
fn what_was_open_for_more_than_reading_is_closed_at_once() {
    let guest = Guest::new();
    let node = file(&guest, c"file");
    let before = guest.fs.share.held_descriptors();
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDONLY | libc::O_TRUNC,
        libc::O_RDONLY | libc::O_SYNC,
    ] {
        open_and_close(&guest, node, flags, 4);
        assert_eq!(guest.fs.share.held_descriptors(), before, "{flags:#x}");
    }
    // A descriptor cached for reading does not serve an open for writing.
    open_and_close(&guest, node, libc::O_RDONLY, 3);
    let handle = guest.open(node, libc::O_RDWR).expect("opened");
    assert_eq!(guest.write(node, handle, 0, b"x").expect("written"), 1);
    guest.release(node, handle);
}

#[test]
fn nothing_is_kept_where_locks_or_permissions_of_the_host_count_at_once() {
    let never = Options {
        cache: CachePolicy::Never,
        fd_budget: 1000,
        ..Options::default()
    };
    let host = Options {
        locks: Locks::Host,
        fd_budget: 1000,
        ..Options::default()
    };
    for options in [never, host] {
        let guest = Guest::with(options);
        let node = file(&guest, c"file");
        let before = guest.fs.share.held_descriptors();
        open_and_close(&guest, node, libc::O_RDONLY, 4);
        assert_eq!(guest.fs.share.held_descriptors(), before);
    }
}

#[test]
fn what_is_kept_goes_with_its_inode_and_with_the_session() {
    let guest = Guest::new();
    let before = guest.fs.share.held_descriptors();
    let (one, other) = (file(&guest, c"one"), file(&guest, c"other"));
    for node in [one, other] {
        open_and_close(&guest, node, libc::O_RDONLY, 2);
    }
    assert_eq!(guest.fs.share.held_descriptors(), before + 4);
    guest.fs.forget(one, 1);
    assert_eq!(guest.fs.share.held_descriptors(), before + 2);
    assert_eq!(
        errno(guest.open(one, libc::O_RDONLY)),
        Some(libc::ESTALE),
        "a forgotten node has no file"
    );
    guest.fs.destroy();
    assert_eq!(guest.fs.share.held_descriptors(), before);
}

#[test]
fn what_is_kept_is_the_first_to_go_when_descriptors_get_scarce() {
    let guest = Guest::with(Options {
        fd_budget: 20,
        ..Options::default()
    });
    let names: Vec<CString> = (0..5)
        .map(|index| c_string(format!("file{index}")))
        .collect();
    let nodes: Vec<NodeId> = names.iter().map(|name| file(&guest, name)).collect();
    for node in &nodes {
        open_and_close(&guest, *node, libc::O_RDONLY, 2);
    }
    assert_eq!(guest.fs.share.held_descriptors(), 10, "five are kept");
    // As many more inodes as without cached descriptors.
    let more: Vec<NodeId> = (5..20)
        .map(|index| file(&guest, &c_string(format!("file{index}"))))
        .collect();
    let mut descriptors = guest.fs.share.held_descriptors();
    assert!(descriptors <= 20, "{descriptors}");
    let open: Vec<_> = nodes
        .iter()
        .chain(&more)
        .map_while(|node| Some((*node, guest.open(*node, libc::O_RDONLY).ok()?)))
        .collect();
    assert_eq!(open.len(), 12, "all but the reserve");
    for (node, handle) in open {
        guest.release(node, handle);
    }
    descriptors = guest.fs.share.held_descriptors();
    assert!(descriptors <= 20, "{descriptors}");
}
