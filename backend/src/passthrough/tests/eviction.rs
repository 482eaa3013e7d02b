//! Tests with more inodes than descriptors.

use std::os::fd::{AsFd, AsRawFd};

use super::*;
use crate::passthrough::ShareError;
use crate::passthrough::options::InodeFileHandles;

const ROOT: NodeId = NodeId::ROOT;

/// How inodes without a descriptor are reopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReopenBy {
    Handle,
    Path,
}

/// A guest with 16 descriptors that has looked up 1,000 files of a directory; `None` if the
/// environment does not support this way of reopening.
fn crowded(test: &str, reopen_by: ReopenBy) -> Option<(Guest, Vec<NodeId>)> {
    if reopen_by == ReopenBy::Handle && skipped_without_root(test) {
        return None;
    }
    let options = Options {
        fd_budget: 16,
        ..Options::default()
    };
    let abilities = Abilities {
        can_open_by_handle: reopen_by == ReopenBy::Handle,
        ..abilities()
    };
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let guest = Guest::able(directory, options, abilities);
    for n in 0..1000 {
        std::fs::write(guest.path(&format!("file{n}")), n.to_string()).expect("written");
    }
    let mut nodes = Vec::new();
    for n in 0..1000 {
        match guest.lookup(ROOT, &c_string(format!("file{n}"))) {
            Ok(entry) => nodes.push(NodeId::new(entry.nodeid)),
            Err(error) if error.raw_os_error() == Some(libc::ENFILE) => {
                eprintln!(
                    "SKIPPED: {test} needs file handles, or birth times, in {}",
                    std::env::temp_dir().display()
                );
                return None;
            }
            Err(error) => panic!("{error}"),
        }
    }
    Some((guest, nodes))
}

#[test]
fn a_thousand_files_live_on_sixteen_descriptors() {
    for reopen_by in [ReopenBy::Handle, ReopenBy::Path] {
        check_a_thousand_files_live_on_sixteen_descriptors(reopen_by);
    }
}

fn check_a_thousand_files_live_on_sixteen_descriptors(reopen_by: ReopenBy) {
    let Some((guest, nodes)) = crowded("a_thousand_files_live_on_sixteen_descriptors", reopen_by)
    else {
        return;
    };
    assert!(guest.fs.share.held_descriptors() <= 16);
    assert_eq!(guest.fs.held_inodes(), 1000);
    for (n, node) in nodes.iter().enumerate() {
        let handle = guest.open(*node, libc::O_RDONLY).expect("opened");
        let mut buffer = [0; 8];
        let length = guest.read(*node, handle, 0, &mut buffer).expect("read");
        assert_eq!(buffer[..length], *n.to_string().as_bytes());
        guest.release(*node, handle);
        assert!(guest.fs.share.held_descriptors() <= 16);
    }
    // The lookups find the same inodes by their references.
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(guest.find(ROOT, &c_string(format!("file{n}"))), *node);
        guest.fs.forget(*node, 2);
    }
    assert_eq!(
        (guest.fs.held_inodes(), guest.fs.share.held_descriptors()),
        (0, 0)
    );
}

#[test]
fn what_is_gone_while_held_by_handle_is_stale_and_its_number_is_another_file() {
    for reopen_by in [ReopenBy::Handle, ReopenBy::Path] {
        check_what_is_gone_while_held_by_handle_is_stale_and_its_number_is_another_file(reopen_by);
    }
}

fn check_what_is_gone_while_held_by_handle_is_stale_and_its_number_is_another_file(
    reopen_by: ReopenBy,
) {
    let Some((guest, nodes)) = crowded("what_is_gone_while_held_by_handle_is_stale", reopen_by)
    else {
        return;
    };
    for n in 0..1000 {
        std::fs::remove_file(guest.path(&format!("file{n}"))).expect("removed");
    }
    for n in 0..1000 {
        std::fs::write(guest.path(&format!("file{n}")), b"new").expect("written");
    }
    for (n, node) in nodes.iter().enumerate() {
        assert_ne!(guest.find(ROOT, &c_string(format!("file{n}"))), *node);
    }
    let stale = nodes
        .iter()
        .filter(|node| errno(guest.fs.getattr(**node, None)) == Some(libc::ESTALE))
        .count();
    // The few inodes that a descriptor pinned at their removal still exist.
    assert!(stale >= 1000 - 16, "{stale} of 1000");
    for node in &nodes {
        guest.fs.forget(*node, 1);
    }
    assert_eq!(guest.fs.held_inodes(), 1000);
}

#[test]
fn an_open_file_without_a_name_is_not_given_up() {
    for reopen_by in [ReopenBy::Handle, ReopenBy::Path] {
        check_an_open_file_without_a_name_is_not_given_up(reopen_by);
    }
}

fn check_an_open_file_without_a_name_is_not_given_up(reopen_by: ReopenBy) {
    let Some((guest, nodes)) = crowded("an_open_file_without_a_name_is_not_given_up", reopen_by)
    else {
        return;
    };
    let (entry, _) = guest.create(ROOT, c"open", libc::O_RDWR).expect("made");
    guest.fs.unlink(ROOT, checked(c"open")).expect("removed");
    for node in nodes {
        guest.fs.getattr(node, None).expect("reopened");
    }
    let attributes = guest
        .fs
        .getattr(NodeId::new(entry.nodeid), None)
        .expect("alive");
    assert_eq!(attributes.attr.nlink, 0);
}

#[test]
fn open_files_alone_use_the_budget_up_and_give_it_back() {
    let guest = Guest::with(Options {
        fd_budget: 8,
        ..Options::default()
    });
    std::fs::write(guest.path("file"), b"").expect("written");
    let node = guest.find(ROOT, c"file");
    let handles: Vec<_> = (0..4)
        .map(|_| guest.open(node, libc::O_RDONLY).expect("opened"))
        .collect();
    assert_eq!(errno(guest.open(node, libc::O_RDONLY)), Some(libc::ENFILE));
    // Look-ups go on in the reserve.
    for n in 0..20 {
        std::fs::write(guest.path(&format!("file{n}")), b"").expect("written");
        guest.find(ROOT, &c_string(format!("file{n}")));
    }
    for handle in handles {
        guest.release(node, handle);
    }
    guest.open(node, libc::O_RDONLY).expect("opened");
}

#[test]
fn without_handles_the_budget_ends_in_enfile() {
    let guest = Guest::with(Options {
        fd_budget: 16,
        inode_file_handles: InodeFileHandles::Never,
        ..Options::default()
    });
    for n in 0..20 {
        std::fs::write(guest.path(&format!("file{n}")), b"").expect("written");
    }
    let found: Vec<_> = (0..20)
        .map(|n| guest.lookup(ROOT, &c_string(format!("file{n}"))))
        .collect();
    assert_eq!(found.iter().filter(|entry| entry.is_ok()).count(), 16);
    assert_eq!(errno(guest.lookup(ROOT, c"file19")), Some(libc::ENFILE));
    assert_eq!(errno(guest.lookup(ROOT, c"missing")), Some(libc::ENOENT));
}

#[test]
fn what_cannot_be_held_is_not_made() {
    let guest = Guest::with(Options {
        fd_budget: 16,
        inode_file_handles: InodeFileHandles::Never,
        ..Options::default()
    });
    for n in 0..20 {
        std::fs::write(guest.path(&format!("file{n}")), b"").expect("written");
        let _ = guest.lookup(ROOT, &c_string(format!("file{n}")));
    }
    let (creator, name) = (root_creator(), checked(c"new"));
    let made = [
        guest.fs.mkdir(&creator, ROOT, name, 0o755),
        guest
            .fs
            .mknod(&creator, ROOT, name, libc::S_IFREG | 0o644, 0),
        guest.fs.symlink(&creator, ROOT, name, c"target"),
    ];
    for made in made {
        assert_eq!(errno(made), Some(libc::ENFILE));
    }
    assert!(guest.path("new").symlink_metadata().is_err());
    // A hard link needs no descriptor.
    let node = guest.find(ROOT, c"file0");
    guest.fs.link(node, ROOT, name).expect("made");
}

#[test]
fn many_threads_on_few_descriptors_find_the_right_files() {
    for reopen_by in [ReopenBy::Handle, ReopenBy::Path] {
        check_many_threads_on_few_descriptors_find_the_right_files(reopen_by);
    }
}

fn check_many_threads_on_few_descriptors_find_the_right_files(reopen_by: ReopenBy) {
    let Some((guest, nodes)) = crowded("many_threads_on_few_descriptors", reopen_by) else {
        return;
    };
    let numbers: Vec<u64> = (0..1000)
        .map(|n| {
            let path = guest.path(&format!("file{n}"));
            std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("there"))
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (guest, nodes, numbers) = (&guest, &nodes, &numbers);
            scope.spawn(move || {
                for step in 0..2000 {
                    let n = (step * 37 + thread * 251) % 1000;
                    match guest.fs.getattr(nodes[n], None) {
                        Ok(attributes) => assert_eq!(attributes.attr.ino, numbers[n]),
                        // Each thread may still hold an evicted descriptor.
                        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENFILE)),
                    }
                }
            });
        }
    });
}

#[test]
fn an_inode_moved_on_the_host_keeps_its_node_id() {
    let Some((guest, nodes)) = crowded(
        "an_inode_moved_on_the_host_keeps_its_node_id",
        ReopenBy::Path,
    ) else {
        return;
    };
    std::fs::create_dir(guest.path("directory")).expect("made");
    for n in 0..1000 {
        let to = guest.path(&format!("directory/moved{n}"));
        std::fs::rename(guest.path(&format!("file{n}")), to).expect("renamed");
    }
    let directory = guest.find(ROOT, c"directory");
    let lost = nodes
        .iter()
        .filter(|node| errno(guest.fs.getattr(**node, None)) == Some(libc::ESTALE))
        .count();
    assert!(lost > 900, "{lost} of 1000 are not where they were");
    // The guest's kernel repeats the lookup.
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(guest.find(directory, &c_string(format!("moved{n}"))), *node);
        guest.fs.getattr(*node, None).expect("found again");
    }
}

#[test]
fn a_walk_back_never_follows_a_link() {
    let outside = tempfile::tempdir().expect("a directory");
    let Some((guest, _)) = crowded("a_walk_back_never_follows_a_link", ReopenBy::Path) else {
        return;
    };
    std::fs::create_dir(guest.path("directory")).expect("made");
    let directory = guest.find(ROOT, c"directory");
    let nodes: Vec<_> = (0..100)
        .map(|n| {
            std::fs::write(guest.path(&format!("directory/{n}")), b"").expect("written");
            guest.find(directory, &c_string(n.to_string()))
        })
        .collect();
    // A directory that the guest holds stays reachable, wherever it is moved.
    guest.fs.forget(directory, 1);
    let moved = outside.path().join("directory");
    if std::fs::rename(guest.path("directory"), &moved).is_err() {
        eprintln!(
            "SKIPPED: a_walk_back_never_follows_a_link needs all temporary files on one file system"
        );
        return;
    }
    std::os::unix::fs::symlink(&moved, guest.path("directory")).expect("made");
    let stale = nodes
        .iter()
        .filter(|node| errno(guest.fs.getattr(**node, None)) == Some(libc::ESTALE))
        .count();
    assert!(stale > 80, "{stale} of 100");
}

#[test]
fn demanded_handles_are_used_or_refused_at_the_start() {
    let options = Options {
        inode_file_handles: InodeFileHandles::Mandatory,
        fd_budget: 16,
        ..Options::default()
    };
    let open = |path: &Path| OwnedFd::from(File::open(path).expect("opened"));
    let directory = tempfile::tempdir().expect("a directory");
    let attempt = |can_open_by_handle| {
        let abilities = Abilities {
            can_open_by_handle,
            ..abilities()
        };
        let proc_self_fd = open("/proc/self/fd".as_ref());
        Share::new(
            open(directory.path()),
            proc_self_fd,
            options.clone(),
            abilities,
            arena(),
        )
    };
    assert!(matches!(attempt(false), Err(ShareError::NoHandles)));
    if skipped_without_root("demanded_handles_are_used_or_refused_at_the_start") {
        return;
    }
    match attempt(true) {
        Ok(share) => {
            let fs = PassthroughFs::new(share);
            std::fs::write(directory.path().join("file"), b"").expect("written");
            fs.lookup(ROOT, checked(c"file")).expect("found");
        }
        Err(error) => assert!(matches!(error, ShareError::NoHandles)),
    }
}

#[test]
fn inodes_that_cannot_be_found_again_stay_and_are_counted() {
    let abilities = Abilities {
        can_open_by_handle: false,
        ..abilities()
    };
    let options = Options {
        fd_budget: 256,
        ..Options::default()
    };
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let guest = Guest::able(directory, options, abilities);
    // Deeper than a remembered path may be.
    let mut node = ROOT;
    for _ in 0..70 {
        node = guest.mkdir(node, c"d");
    }
    let mut refused = 0;
    for n in 0..600 {
        match guest.create(node, &c_string(format!("file{n}")), libc::O_RDWR) {
            Ok((entry, open)) => guest.release(NodeId::new(entry.nodeid), Handle::new(open.fh)),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    let pinned = || guest.fs.share.budget.pinned_inodes();
    assert!(pinned() > 100, "{} are known to stay", pinned());
    guest.fs.destroy();
    assert_eq!(pinned(), 0);
    assert_eq!(guest.fs.share.held_descriptors(), 0);
    guest.find(ROOT, c"d");
}

#[test]
fn an_open_file_is_reached_by_its_handle_when_all_else_is_gone() {
    let Some((guest, nodes)) = crowded("an_open_file_is_reached_by_its_handle", ReopenBy::Path)
    else {
        return;
    };
    let opened: Vec<_> = (0..6)
        .map(|n| {
            let name = c_string(format!("open{n}"));
            let (entry, _) = guest.create(ROOT, &name, libc::O_RDWR).expect("made");
            guest.fs.unlink(ROOT, checked(&name)).expect("removed");
            NodeId::new(entry.nodeid)
        })
        .collect();
    for node in nodes {
        guest.fs.getattr(node, None).expect("found again");
    }
    for node in opened {
        let attributes = guest.fs.getattr(node, None).expect("alive");
        assert_eq!(attributes.attr.nlink, 0);
        guest
            .open(node, libc::O_RDONLY)
            .map(|handle| guest.release(node, handle))
            .expect("opened");
    }
}

/// A guest that never forgets what it has removed evicts its own inodes, those that it opened last.
#[test]
fn removed_files_that_are_not_forgotten_take_no_descriptors_for_ever() {
    for reopen_by in [ReopenBy::Handle, ReopenBy::Path] {
        let test = "removed_files_that_are_not_forgotten_take_no_descriptors_for_ever";
        let Some((guest, _)) = crowded(test, reopen_by) else {
            return;
        };
        for n in 0..100 {
            let name = c_string(format!("removed{n}"));
            let mode = libc::S_IFREG | 0o644;
            guest
                .fs
                .mknod(&root_creator(), ROOT, checked(&name), mode, 0)
                .expect("made");
            guest.fs.unlink(ROOT, checked(&name)).expect("removed");
        }
        assert!(guest.fs.share.held_descriptors() <= 16);
        assert_eq!(guest.fs.held_inodes(), 1100);
    }
}

/// The kernel knows the descriptor's name as removed, so no path leads to the inode, though it has
/// another name.
#[test]
fn an_inode_whose_first_name_is_gone_keeps_its_descriptor_and_is_counted() {
    for reopen_by in [ReopenBy::Handle, ReopenBy::Path] {
        let test = "an_inode_whose_first_name_is_gone_keeps_its_descriptor";
        let Some((guest, nodes)) = crowded(test, reopen_by) else {
            return;
        };
        std::fs::write(guest.path("first"), b"content").expect("written");
        let node = guest.find(ROOT, c"first");
        guest.fs.link(node, ROOT, checked(c"second")).expect("made");
        guest.fs.unlink(ROOT, checked(c"first")).expect("removed");
        for node in nodes {
            guest.fs.getattr(node, None).expect("reopened");
        }
        let pinned = u64::from(reopen_by == ReopenBy::Path);
        assert_eq!(guest.fs.share.budget.pinned_inodes(), pinned);
        assert_eq!(guest.find(ROOT, c"second"), node);
        let handle = guest.open(node, libc::O_RDONLY).expect("opened");
        let mut buffer = [0; 8];
        assert_eq!(guest.read(node, handle, 0, &mut buffer).expect("read"), 7);
        guest.release(node, handle);
        guest.fs.forget(node, u64::MAX);
        assert_eq!(guest.fs.share.budget.pinned_inodes(), 0);
    }
}

/// Evicting an inode that a request uses frees no descriptor.
#[test]
fn an_inode_in_use_is_not_evicted() {
    let guest = Guest::with(Options {
        fd_budget: 4,
        ..Options::default()
    });
    let directory = guest.mkdir(ROOT, c"directory");
    let in_use = guest.fs.node(directory).expect("known");
    for n in 0..20 {
        std::fs::write(guest.path(&format!("directory/{n}")), b"").expect("written");
        let name = c_string(n.to_string());
        guest.fs.look_up_in(&in_use, &name).expect("found");
    }
    assert!(guest.fs.share.held_descriptors() <= 4);
    let again = guest.fs.node(directory).expect("known");
    assert_eq!(again.as_fd().as_raw_fd(), in_use.as_fd().as_raw_fd());
}
