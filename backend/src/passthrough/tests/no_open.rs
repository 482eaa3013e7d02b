//! Tests of files and directories that the guest uses without OPEN.

use std::collections::BTreeSet;

use gangplank_fuse::LseekIn;

use super::readdir::list_all;
use super::*;
use crate::passthrough::options::{CachePolicy, Locks};

const ROOT: NodeId = NodeId::ROOT;
const NO_OPEN_HANDLE: Handle = Handle::new(0);

/// Options that allow a guest to work without OPEN.
fn fixed() -> Options {
    Options {
        readonly: true,
        cache: CachePolicy::Always,
        ..Options::default()
    }
}

#[test]
fn only_what_never_changes_and_is_believed_needs_no_opening() {
    let needed = [
        Options {
            readonly: false,
            ..fixed()
        },
        Options {
            cache: CachePolicy::Auto,
            ..fixed()
        },
        Options {
            locks: Locks::Host,
            ..fixed()
        },
    ];
    for options in needed {
        let guest = Guest::with(options);
        std::fs::write(guest.path("file"), b"content").expect("written");
        let node = guest.find(ROOT, c"file");
        let handle = guest.open(node, libc::O_RDONLY).expect("opened");
        assert_eq!(
            errno(guest.read(node, NO_OPEN_HANDLE, 0, &mut [0; 8])),
            Some(libc::EBADF)
        );
        guest.release(node, handle);
        guest
            .fs
            .opendir(ROOT, &OpenIn::default())
            .expect("opened, too");
    }
}

#[test]
fn a_kernel_that_does_not_know_that_opens() {
    let guest = Guest::with(fixed());
    let agreed = guest
        .fs
        .init(InitFlags::all() - InitFlags::NO_OPEN_SUPPORT)
        .expect("agreed");
    assert!(agreed.contains(InitFlags::ATOMIC_O_TRUNC));
    std::fs::write(guest.path("file"), b"content").expect("written");
    let node = guest.find(ROOT, c"file");
    assert!(guest.open(node, libc::O_RDONLY).is_ok());
}

#[test]
fn what_is_not_opened_is_read_again_and_again_and_listed() {
    let guest = Guest::with(fixed());
    assert!(
        !guest
            .fs
            .init(InitFlags::all())
            .expect("agreed")
            .contains(InitFlags::ATOMIC_O_TRUNC),
        "emptying has to be asked for by itself, to be refused"
    );
    std::fs::write(guest.path("file"), b"0123456789").expect("written");
    for number in 0..300 {
        std::fs::write(guest.path(&format!("name-{number}")), b"").expect("written");
    }
    let node = guest.find(ROOT, c"file");
    assert_eq!(errno(guest.open(node, libc::O_RDONLY)), Some(libc::ENOSYS));
    assert_eq!(
        errno(guest.fs.opendir(ROOT, &OpenIn::default())),
        Some(libc::ENOSYS)
    );
    assert_eq!(
        errno(guest.fs.flush(node, NO_OPEN_HANDLE, 0)),
        Some(libc::ENOSYS),
        "the guest sends no more FLUSH"
    );
    let mut buffer = [0; 16];
    for _ in 0..5 {
        assert_eq!(
            guest
                .read(node, NO_OPEN_HANDLE, 4, &mut buffer)
                .expect("read"),
            6
        );
        assert_eq!(&buffer[..6], b"456789");
    }
    let hole = LseekIn {
        whence: libc::SEEK_HOLE.cast_unsigned(),
        ..LseekIn::default()
    };
    assert_eq!(guest.fs.lseek(node, &hole).expect("found"), 10);
    guest
        .fs
        .fsync(node, NO_OPEN_HANDLE, true)
        .expect("synchronised");
    let mut names: BTreeSet<String> = (0..300).map(|number| format!("name-{number}")).collect();
    names.extend([".", "..", "file"].map(str::to_owned));
    let listed = list_all(&guest, ROOT, NO_OPEN_HANDLE, 700);
    assert_eq!(listed.len(), names.len(), "each once");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
    // A directory cannot be read as a file, nor a file as a directory.
    assert!(guest.read(ROOT, NO_OPEN_HANDLE, 0, &mut buffer).is_err());
    assert_eq!(
        errno(guest.open(node, libc::O_WRONLY)),
        Some(libc::EROFS),
        "OPEN for writing returns EROFS"
    );
    assert_eq!(
        errno(guest.write(node, NO_OPEN_HANDLE, 0, b"x")),
        Some(libc::EROFS)
    );
}

#[test]
fn nothing_stays_open_for_what_is_forgotten() {
    let guest = Guest::with(fixed());
    let before = guest.fs.share.held_descriptors();
    std::fs::write(guest.path("file"), b"content").expect("written");
    let node = guest.find(ROOT, c"file");
    for _ in 0..3 {
        guest
            .read(node, NO_OPEN_HANDLE, 0, &mut [0; 8])
            .expect("read");
    }
    assert!(guest.fs.share.held_descriptors() > before);
    guest.fs.forget(node, 1);
    assert_eq!(guest.fs.share.held_descriptors(), before);
    assert!(guest.read(node, NO_OPEN_HANDLE, 0, &mut [0; 8]).is_err());
}
