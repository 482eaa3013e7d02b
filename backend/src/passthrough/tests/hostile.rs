//! Tests of invalid requests and of host changes at the wrong moment.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gangplank_fuse::{
    CopyFileRangeIn, FallocateIn, LkIn, LseekIn, SetattrIn, SetattrValid, SetxattrIn, StatxIn,
};
use proptest::prelude::*;

use super::*;
use crate::passthrough::options::Locks;
use crate::session::LockWait;

const ROOT: NodeId = NodeId::ROOT;

#[test]
fn foreign_nodes_and_handles_are_errors() {
    let guest = Guest::new();
    std::fs::write(guest.path("a"), b"a").expect("written");
    std::fs::write(guest.path("b"), b"b").expect("written");
    let (a, b) = (guest.find(ROOT, c"a"), guest.find(ROOT, c"b"));
    let handle = guest.open(a, libc::O_RDONLY).expect("opened");
    let mut buffer = [0; 4];
    assert_eq!(
        errno(guest.read(b, handle, 0, &mut buffer)),
        Some(libc::EBADF)
    );
    for raw in [0, 1, 2, handle.get() + 1, u64::MAX] {
        assert_eq!(
            errno(guest.read(a, Handle::new(raw), 0, &mut buffer)),
            Some(libc::EBADF)
        );
    }
    // A neighbouring number may be the node id of the other file.
    let known = [a.get(), b.get()];
    let unknown = |raw: &u64| !known.contains(raw);
    let near = (a.get()..).find(unknown).expect("a number");
    let numbers = [0, 2, near, a.get() ^ (1 << 40), u64::MAX];
    for raw in numbers.into_iter().filter(unknown) {
        assert_eq!(
            errno(guest.open(NodeId::new(raw), libc::O_RDONLY)),
            Some(libc::ESTALE)
        );
        assert_eq!(
            errno(guest.lookup(NodeId::new(raw), c"a")),
            Some(libc::ESTALE)
        );
    }
    assert_eq!(
        errno(guest.read(a, handle, u64::MAX, &mut buffer)),
        Some(libc::EINVAL)
    );
    assert_eq!(errno(guest.open(a, 3)), Some(libc::EINVAL));
}

#[test]
fn a_device_in_the_share_is_never_opened() {
    if skipped_without_root("a_device_in_the_share_is_never_opened") {
        return;
    }
    let guest = Guest::new();
    let path = c_string(guest.path("null").to_str().expect("UTF-8"));
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        path.as_c_str(),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    );
    if made.is_err() {
        eprintln!("SKIPPED: device nodes cannot be made here");
        return;
    }
    let node = guest.find(ROOT, c"null");
    let attributes = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        ..SetattrIn::default()
    };
    assert_eq!(errno(guest.open(node, libc::O_RDWR)), Some(libc::ENXIO));
    assert_eq!(
        errno(guest.create(ROOT, c"null", libc::O_RDWR)),
        Some(libc::ESTALE)
    );
    assert_eq!(
        errno(guest.fs.setattr(ROOT_USER, node, &attributes)),
        Some(libc::ENXIO)
    );
}

/// Another thread swaps a name between a directory, a link out of the share and a link inside it.
/// Lookups must never find an inode outside the share.
#[test]
fn swapped_names_never_lead_out_of_the_share() {
    let outside = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(outside.path().join("inner")).expect("made");
    std::fs::write(outside.path().join("inner/secret"), b"secret").expect("written");
    std::fs::write(outside.path().join("secret"), b"secret").expect("written");
    let guest = Guest::new();
    std::fs::create_dir(guest.path("real")).expect("made");
    std::fs::create_dir(guest.path("real/inner")).expect("made");
    symlink(outside.path(), guest.path("link")).expect("made");
    std::fs::create_dir(guest.path("aside")).expect("made");
    let stop = AtomicBool::new(false);
    let lookups = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let exchange = |a: &str, b: &str| {
                    rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        guest.path(a),
                        rustix::fs::CWD,
                        guest.path(b),
                        rustix::fs::RenameFlags::EXCHANGE,
                    )
                    .expect("exchanged");
                };
                exchange("real", "link");
                exchange("real", "aside");
                exchange("real", "aside");
                exchange("real", "link");
            }
        });
        let mut lookups = 0;
        let start = Instant::now();
        // On a busy machine it may take a while until a lookup meets the directory.
        while start.elapsed() < Duration::from_millis(500)
            || (lookups == 0 && start.elapsed() < Duration::from_secs(60))
        {
            let Ok(entry) = guest.lookup(ROOT, c"real") else {
                continue;
            };
            let node = NodeId::new(entry.nodeid);
            assert!(guest.lookup(node, c"secret").is_err());
            if let Ok(inner) = guest.lookup(node, c"inner") {
                let inner = NodeId::new(inner.nodeid);
                assert_eq!(errno(guest.lookup(inner, c"secret")), Some(libc::ENOENT));
                lookups += 1;
            }
            assert!(
                guest.create(node, c"escaped", libc::O_WRONLY).is_err() || {
                    guest.fs.unlink(node, checked(c"escaped")).expect("removed");
                    true
                }
            );
        }
        stop.store(true, Ordering::Relaxed);
        lookups
    });
    assert!(lookups > 0);
    let left: Vec<_> = std::fs::read_dir(outside.path()).expect("listed").collect();
    assert_eq!(left.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any numbers give a reply or an errno, and no descriptor stays held.
    #[test]
    fn any_numbers_are_answered(
        numbers in prop::array::uniform8(any::<u64>()),
        small in any::<u8>(),
        flags in any::<u32>(),
    ) {
        let guest = Guest::with(Options {
            xattr: true,
            locks: Locks::Host,
            fd_budget: 64,
            ..Options::default()
        });
        std::fs::write(guest.path("file"), b"0123456789").expect("written");
        let node = guest.find(ROOT, c"file");
        let handle = guest.open(node, libc::O_RDWR).expect("opened").get();
        let pick = |n: u64| if small & 1 == 0 { node } else { NodeId::new(n) };
        let fh = if small & 2 == 0 { handle } else { numbers[0] };
        let half = |n: u64| u32::try_from(n >> 32).expect("32 bits");
        let _ = guest.fs.setattr(ROOT_USER, pick(numbers[0]), &SetattrIn {
            // Sizes up to a few MiB are set; larger ones are sent only if they must be rejected.
            valid: flags & 0x7ff & if numbers[1] >> 63 == 1 { u32::MAX } else { !8 },
            fh, size: numbers[1], atime: numbers[2], mtime: numbers[3], atimensec: half(numbers[4]),
            mtimensec: half(numbers[5]), mode: half(numbers[6]), uid: half(numbers[7]), gid: flags,
            ..SetattrIn::default()
        });
        let _ = guest.fs.fallocate(ROOT_USER, pick(numbers[1]), &FallocateIn {
            fh, offset: numbers[1], length: numbers[2] | 1 << 63, mode: flags, padding: 0,
        });
        let _ = guest.fs.lseek(pick(numbers[2]), &LseekIn {
            fh, offset: numbers[3], whence: flags % 8, padding: 0,
        });
        let _ = guest.fs.copy_file_range(ROOT_USER, pick(numbers[3]), &CopyFileRangeIn {
            fh_in: fh, off_in: numbers[1], nodeid_out: node.get(), fh_out: handle,
            off_out: numbers[2], len: numbers[3], flags: numbers[4] & 1,
        });
        let _ = guest.fs.statx(pick(numbers[4]), &StatxIn {
            getattr_flags: flags, fh, sx_flags: half(numbers[5]), sx_mask: half(numbers[6]),
            ..StatxIn::default()
        });
        let lock = LkIn {
            fh, owner: numbers[4],
            lk: gangplank_fuse::FileLock {
                start: numbers[5], end: numbers[6], r#type: flags % 5, pid: half(numbers[7]),
            },
            lk_flags: flags >> 31, padding: 0,
        };
        let _ = guest.fs.setlk(pick(numbers[5]), &lock, LockWait::No);
        let _ = guest.fs.getlk(pick(numbers[5]), &lock);
        let xattr = SetxattrIn { flags, ..SetxattrIn::default() };
        let _ = guest.fs.setxattr(pick(numbers[6]), &xattr, c"user.x", &[0; 9]);
        let user = creator(half(numbers[0]), half(numbers[1]));
        let _ = guest.fs.mknod(&user, ROOT, checked(c"node"), flags, half(numbers[2]));
        let _ = guest.create(ROOT, c"made", flags.cast_signed());
        guest.fs.destroy();
        prop_assert_eq!(guest.fs.share.held_descriptors(), 0);
    }
}
