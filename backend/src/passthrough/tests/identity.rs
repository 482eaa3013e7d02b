//! Tests of node ids and of their lifetime.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::passthrough::file_type::FileType;
use crate::passthrough::inode_ref::{InodeRef, birth_time};
use crate::passthrough::mounts::Identity;
use crate::passthrough::remembered_names::RememberedName;
use crate::sys::file;

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

/// A file system may give an inode number to another file at once, and with a coarse clock the
/// birth time is the same too.
#[test]
fn a_fifo_with_the_number_and_birth_time_of_a_file_is_not_that_file() {
    let guest = Guest::new();
    let fifo = guest.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .expect("made");
    let share = &guest.fs.share;
    let opened = file::open_path(share.root.as_fd(), c"fifo").expect("opened");
    let stat = file::stat(opened.as_fd()).expect("attributes");
    let Some(birth_time) = birth_time(&stat) else {
        eprintln!("SKIPPED: no birth times in {}", fifo.display());
        return;
    };
    let fifo = Identity::new(share.root_identity.mount, &stat);
    let file = Identity {
        file_type: FileType::Regular,
        ..fifo
    };
    let name = RememberedName {
        dir: None,
        name: c"fifo".into(),
    };
    let inode_ref = InodeRef::Name { name, birth_time };
    let open = |identity| guest.fs.open_inode_ref(identity, &inode_ref);
    open(fifo).expect("the FIFO");
    let found = open(file);
    assert_eq!(errno(found), Some(libc::ESTALE));
}

/// The same through the guest's requests.
///
/// It depends on the file system and the kernel whether the FIFO gets the number and the birth time
/// of the file: where it does not, this test shows little, and it prints how often the number was
/// the same. [`a_fifo_with_the_number_and_birth_time_of_a_file_is_not_that_file`] pins the case.
#[test]
fn a_removed_file_does_not_come_back_as_a_fifo() {
    let options = Options {
        fd_budget: 4,
        ..Options::default()
    };
    for can_open_by_handle in [false, is_root()] {
        let abilities = Abilities {
            can_open_by_handle,
            ..abilities()
        };
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        let guest = Guest::able(directory, options.clone(), abilities);
        let mut reused = 0;
        for n in 0..50 {
            let (name, path) = (format!("file{n}"), guest.path(&format!("file{n}")));
            std::fs::write(&path, b"").expect("written");
            let node = guest.find(ROOT, &c_string(name));
            for other in 0..8 {
                let other = format!("other{n}-{other}");
                std::fs::write(guest.path(&other), b"").expect("written");
                guest.find(ROOT, &c_string(other));
            }
            let number = std::fs::metadata(&path).expect("there").ino();
            std::fs::remove_file(&path).expect("removed");
            let made = rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o644),
                0,
            );
            made.expect("made");
            reused += usize::from(std::fs::metadata(&path).expect("there").ino() == number);
            assert_ne!(guest.find(ROOT, &c_string(format!("file{n}"))), node);
            let opened = errno(guest.open(node, libc::O_RDWR));
            assert!(
                opened.is_none() || opened == Some(libc::ESTALE),
                "{opened:?}"
            );
        }
        eprintln!("{reused} of 50 numbers were reused");
    }
}

/// A host program that holds a lease gives it up when the guest opens the file; the guest waits for
/// that, and does not see EAGAIN.
#[test]
fn an_open_waits_for_a_lease_on_the_host() {
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"content").expect("written");
    let node = guest.find(ROOT, c"file");
    let holder = File::options()
        .read(true)
        .open(guest.path("file"))
        .expect("opened");
    #[allow(unsafe_code)]
    let lease = |command: i32, argument: i32| {
        // SAFETY: these commands take a number and access no memory of the process.
        unsafe { libc::fcntl(holder.as_raw_fd(), command, argument) }
    };
    for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_NONBLOCK] {
        // `F_SETSIG` (`asm-generic/fcntl.h`), to a signal that is ignored unless somebody handles
        // it. Giving up the lease resets it.
        assert_eq!(lease(10, libc::SIGURG), 0);
        if lease(libc::F_SETLEASE, libc::F_RDLCK) != 0 {
            eprintln!("SKIPPED: no leases in {}", guest.path("file").display());
            return;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while lease(libc::F_GETLEASE, 0) == libc::F_RDLCK {
                    std::thread::yield_now();
                }
                assert_eq!(lease(libc::F_SETLEASE, libc::F_UNLCK), 0);
            });
            let handle = guest.open(node, flags).expect("opened");
            guest.release(node, handle);
        });
    }
}
