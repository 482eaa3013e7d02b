//! Tests of owners, modes and types that are recorded (`--ownership=mapped`).

use std::os::unix::fs::MetadataExt;

use gangplank_fuse::{Attr, SetattrIn, SetattrValid};
use rustix::fs::XattrFlags;

use super::*;
use crate::passthrough::attr_reply::encode_dev;
use crate::passthrough::options::Ownership;

const ROOT: NodeId = NodeId::ROOT;

/// A guest whose files' owners are recorded; `None` if the temporary directory has no attributes.
fn mapped() -> Option<Guest> {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let probe = rustix::fs::setxattr(directory.path(), c"user.a", b"", XattrFlags::empty());
    if probe.is_err() {
        eprintln!("SKIPPED: the temporary directory has no extended attributes");
        return None;
    }
    let options = Options {
        ownership: Ownership::Mapped,
        xattr: true,
        ..Options::default()
    };
    let abilities = Abilities {
        can_change_credentials: false,
        can_open_by_handle: false,
    };
    Some(Guest::able(directory, options, abilities))
}

fn seen(attr: &Attr) -> (u32, u32, u32) {
    (attr.uid, attr.gid, attr.mode)
}

fn look(guest: &Guest, parent: NodeId, name: &CStr) -> Attr {
    guest.lookup(parent, name).expect("found").attr
}

#[test]
fn every_type_has_any_owner_and_survives_a_new_session() {
    let Some(guest) = mapped() else { return };
    let user = Creator {
        umask: 0o027,
        ..creator(1000, 1001)
    };
    guest
        .create_as(&user, ROOT, c"file", libc::O_RDWR, 0o4666)
        .expect("made");
    guest
        .fs
        .mkdir(&user, ROOT, checked(c"directory"), 0o1777)
        .expect("made");
    guest
        .fs
        .symlink(&user, ROOT, checked(c"link"), c"to/there")
        .expect("made");
    let node = |name, mode, rdev| {
        guest
            .fs
            .mknod(&user, ROOT, checked(name), mode, rdev)
            .expect("made");
    };
    node(c"fifo", libc::S_IFIFO | 0o666, 0);
    node(c"socket", libc::S_IFSOCK | 0o777, 0);
    node(c"null", libc::S_IFCHR | 0o666, encode_dev(1, 3));
    node(c"disk", libc::S_IFBLK | 0o660, encode_dev(259, 300));
    let expected = [
        (c"file", libc::S_IFREG | 0o4640, 0),
        (c"directory", libc::S_IFDIR | 0o1750, 0),
        (c"link", libc::S_IFLNK | 0o777, 0),
        (c"fifo", libc::S_IFIFO | 0o640, 0),
        (c"socket", libc::S_IFSOCK | 0o750, 0),
        (c"null", libc::S_IFCHR | 0o640, encode_dev(1, 3)),
        (c"disk", libc::S_IFBLK | 0o640, encode_dev(259, 300)),
    ];
    for new_session in [false, true] {
        if new_session {
            guest.fs.init(InitFlags::all()).expect("agreed");
        }
        for (name, mode, rdev) in expected {
            let attr = look(&guest, ROOT, name);
            assert_eq!(seen(&attr), (1000, 1001, mode), "{name:?}");
            assert_eq!(attr.rdev, rdev, "{name:?}");
        }
    }
    let mut target = [0; 20];
    let link = guest.find(ROOT, c"link");
    let length = guest.fs.readlink(link, &mut target).expect("read");
    assert_eq!(&target[..length], b"to/there");
    let file = guest.find(ROOT, c"file");
    assert_eq!(
        errno(guest.fs.readlink(file, &mut target)),
        Some(libc::EINVAL)
    );
    // On the host, only the daemon's user may touch them, and none is a device or has a set-id bit.
    for (name, ..) in expected {
        let path = guest.path(name.to_str().expect("ASCII"));
        let on_host = std::fs::symlink_metadata(path).expect("there");
        assert!(on_host.is_file() || on_host.is_dir(), "{name:?}");
        assert_eq!(on_host.mode() & 0o7077, 0, "{name:?}");
    }
}

#[test]
fn changes_of_owner_and_mode_are_recorded() {
    let Some(guest) = mapped() else { return };
    guest.create(ROOT, c"file", libc::O_RDWR).expect("made");
    let node = guest.find(ROOT, c"file");
    let set = |valid: SetattrValid| {
        let args = SetattrIn {
            valid: valid.bits(),
            uid: 33,
            gid: 34,
            mode: 0o6755,
            ..SetattrIn::default()
        };
        guest.fs.setattr(ROOT_USER, node, &args).expect("set").attr
    };
    assert_eq!(
        seen(&set(SetattrValid::UID)),
        (33, 0, libc::S_IFREG | 0o644)
    );
    assert_eq!(
        seen(&set(SetattrValid::GID)),
        (33, 34, libc::S_IFREG | 0o644)
    );
    assert_eq!(
        seen(&set(SetattrValid::MODE)),
        (33, 34, libc::S_IFREG | 0o6755)
    );
    let attr = guest.fs.getattr(node, None).expect("attributes").attr;
    assert_eq!(seen(&attr), (33, 34, libc::S_IFREG | 0o6755));
    let none = SetattrIn {
        valid: SetattrValid::UID.bits(),
        uid: u32::MAX,
        ..SetattrIn::default()
    };
    let refused = guest.fs.setattr(ROOT_USER, node, &none);
    assert_eq!(errno(refused), Some(libc::EINVAL));
}

#[test]
fn set_group_id_directories_give_their_group() {
    let Some(guest) = mapped() else { return };
    let shared = guest
        .fs
        .mkdir(&creator(0, 50), ROOT, checked(c"shared"), 0o2777)
        .expect("made");
    let shared = NodeId::new(shared.nodeid);
    let user = creator(1000, 1001);
    guest
        .create_as(&user, shared, c"file", libc::O_RDWR, 0o2775)
        .expect("made");
    guest
        .fs
        .mkdir(&user, shared, checked(c"directory"), 0o777)
        .expect("made");
    let file = look(&guest, shared, c"file");
    assert_eq!(seen(&file), (1000, 50, libc::S_IFREG | 0o755));
    let directory = look(&guest, shared, c"directory");
    assert_eq!(seen(&directory), (1000, 50, libc::S_IFDIR | 0o2755));
}

#[test]
fn records_of_others_are_read_and_the_daemons_user_is_root() {
    let Some(guest) = mapped() else { return };
    let set = |name: &str, attribute: &str, value: &[u8]| {
        std::fs::write(guest.path(name), b"x").expect("written");
        rustix::fs::setxattr(guest.path(name), attribute, value, XattrFlags::empty()).expect("set");
    };
    set("plain", "user.other", b"");
    set(
        "overlay",
        "user.containers.override_stat",
        b"5:60:4755:file",
    );
    set(
        "device",
        "user.containers.override_stat",
        b"0:0:0666:char-1-3",
    );
    set("qemu", "user.virtfs.uid", &7u32.to_le_bytes());
    set("broken", "user.virtfs.mode", b"four?");
    std::os::unix::fs::symlink("plain", guest.path("link")).expect("made");
    assert_eq!(look(&guest, ROOT, c"plain").uid, 0);
    assert_eq!(look(&guest, ROOT, c"broken").uid, 0);
    assert_eq!(
        look(&guest, ROOT, c"link").mode & libc::S_IFMT,
        libc::S_IFLNK
    );
    assert_eq!(look(&guest, ROOT, c"qemu").uid, 7);
    let overlay = look(&guest, ROOT, c"overlay");
    assert_eq!(seen(&overlay), (5, 60, libc::S_IFREG | 0o4755));
    let device = look(&guest, ROOT, c"device");
    assert_eq!(
        (device.mode, device.rdev),
        (libc::S_IFCHR | 0o666, encode_dev(1, 3))
    );
    // A guest must not write records itself.
    let node = guest.find(ROOT, c"qemu");
    for name in [c"user.virtfs.uid", c"user.containers.override_stat"] {
        let forged = guest.fs.setxattr(node, &Default::default(), name, &[0; 4]);
        assert_eq!(errno(forged), Some(libc::EPERM));
        assert_eq!(errno(guest.fs.removexattr(node, name)), Some(libc::EPERM));
        assert_eq!(
            errno(guest.fs.getxattr(node, name, &mut [])),
            Some(libc::ENODATA)
        );
    }
    assert_eq!(guest.fs.listxattr(node, &mut []).expect("names"), 0);
}

#[test]
fn object_left_by_a_death_gets_its_record() {
    let Some(guest) = mapped() else { return };
    std::fs::create_dir(guest.path("d")).expect("made");
    let node = guest.find(ROOT, c"d");
    let user = creator(1000, 1001);
    let mode = libc::S_IFDIR | 0o777;
    assert!(
        guest
            .fs
            .complete(ROOT, node, &user, mode)
            .expect("completed")
    );
    let attr = look(&guest, ROOT, c"d");
    assert_eq!(seen(&attr), (1000, 1001, libc::S_IFDIR | 0o755));
    let owners = guest.fs.possible_owners(GuestUid::new(1000));
    assert_eq!(owners, [GuestUid::new(1000), GuestUid::ROOT]);
}
