//! Tests of node ids and of their lifetime.

use std::collections::HashSet;

use super::*;

const ROOT: NodeId = NodeId::ROOT;

#[test]
fn one_inode_has_one_node_id_whatever_its_name() {
    let guest = Guest::new();
    std::fs::write(guest.path("a"), b"").expect("written");
    std::fs::hard_link(guest.path("a"), guest.path("b")).expect("linked");
    let a = guest.find(ROOT, c"a");
    assert_eq!(guest.find(ROOT, c"b"), a);
    std::fs::rename(guest.path("a"), guest.path("c")).expect("renamed");
    assert_eq!(guest.find(ROOT, c"c"), a);
    assert_eq!(guest.fs.held_inodes(), 1);
}

#[test]
fn an_inode_number_used_again_is_another_node() {
    // File systems that allocate the lowest free number reuse it at once.
    let guest = Guest::new();
    let mut seen = HashSet::new();
    for round in 0..200 {
        std::fs::write(guest.path("file"), [round; 3]).expect("written");
        let node = guest.find(ROOT, c"file");
        assert!(seen.insert(node), "round {round}");
        std::fs::remove_file(guest.path("file")).expect("removed");
        let attributes = guest
            .fs
            .getattr(node, None)
            .expect("held by its descriptor");
        assert_eq!(attributes.attr.nlink, 0);
        if round % 2 == 0 {
            guest.fs.forget(node, 1);
            assert_eq!(errno(guest.fs.getattr(node, None)), Some(libc::ESTALE));
        }
    }
    assert_eq!(guest.fs.held_inodes(), 100);
}

#[test]
fn forgetting_frees_descriptors_and_is_never_below_zero() {
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"").expect("written");
    let node = guest.find(ROOT, c"file");
    assert_eq!(guest.find(ROOT, c"file"), node);
    guest.fs.forget(node, 1);
    assert_eq!(guest.fs.held_inodes(), 1);
    guest.fs.forget(node, u64::MAX);
    assert_eq!(
        (guest.fs.held_inodes(), guest.fs.share.held_descriptors()),
        (0, 0)
    );
    guest.fs.forget(node, 1);
    guest.fs.forget(NodeId::new(0), 1);
    guest.fs.forget(NodeId::new(u64::MAX), 1);
    guest.fs.forget(ROOT, u64::MAX);
    assert!(guest.fs.getattr(ROOT, None).is_ok());
    assert_ne!(guest.find(ROOT, c"file"), node);
}

#[test]
fn what_vanished_under_a_known_directory_is_absent_and_the_directory_stays() {
    let guest = Guest::new();
    let directory = guest.mkdir(ROOT, c"directory");
    std::fs::remove_dir(guest.path("directory")).expect("removed");
    assert_eq!(errno(guest.lookup(directory, c"x")), Some(libc::ENOENT));
    assert_eq!(
        guest.fs.getattr(directory, None).expect("held").attr.nlink,
        0
    );
    assert_eq!(errno(guest.lookup(ROOT, c"directory")), Some(libc::ENOENT));
}

#[test]
fn many_threads_agree_on_node_ids_and_counts() {
    const FILES: usize = 50;
    const THREADS: usize = 4;
    const ROUNDS: usize = 40;
    let guest = Guest::new();
    let names: Vec<_> = (0..FILES).map(|n| c_string(format!("file{n}"))).collect();
    for n in 0..FILES {
        std::fs::write(guest.path(&format!("file{n}")), b"").expect("written");
    }
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    for name in &names {
                        let node = guest.find(ROOT, name);
                        assert!(guest.fs.getattr(node, None).is_ok());
                        guest.fs.forget(node, 1);
                    }
                }
            });
        }
    });
    assert_eq!(
        (guest.fs.held_inodes(), guest.fs.share.held_descriptors()),
        (0, 0)
    );
}
