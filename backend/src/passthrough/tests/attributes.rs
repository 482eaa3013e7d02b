//! Tests of attributes and extended attributes.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use gangplank_fuse::{SetattrIn, SetattrValid, SetxattrIn, StatxIn};

use super::*;

const ROOT: NodeId = NodeId::ROOT;

fn set(
    guest: &Guest,
    node: NodeId,
    valid: SetattrValid,
    args: SetattrIn,
) -> io::Result<gangplank_fuse::Attr> {
    let args = SetattrIn {
        valid: valid.bits(),
        ..args
    };
    guest.fs.setattr(ROOT_USER, node, &args).map(|out| out.attr)
}

#[test]
fn attributes_are_the_hosts() {
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"12345").expect("written");
    let node = guest.find(ROOT, c"file");
    let out = guest.fs.getattr(node, None).expect("attributes");
    let metadata = std::fs::metadata(guest.path("file")).expect("there");
    let attr = out.attr;
    assert_eq!(
        (attr.ino, attr.size, attr.mode),
        (metadata.ino(), 5, metadata.mode())
    );
    assert_eq!(
        (attr.mtime, attr.mtimensec),
        (
            metadata.mtime().cast_unsigned(),
            u32::try_from(metadata.mtime_nsec()).expect("below a second"),
        )
    );
    assert_eq!((out.attr_valid, out.attr_valid_nsec), (1, 0));
}

#[test]
fn statx_tells_the_birth_time() {
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"12345").expect("written");
    let node = guest.find(ROOT, c"file");
    let args = StatxIn {
        sx_mask: libc::STATX_BASIC_STATS | libc::STATX_BTIME,
        ..StatxIn::default()
    };
    let stat = guest.fs.statx(node, &args).expect("attributes").stat;
    assert_eq!((stat.size, stat.nlink), (5, 1));
    if let Ok(born) = std::fs::metadata(guest.path("file"))
        .expect("there")
        .created()
    {
        let born = born
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        assert_ne!(stat.mask & libc::STATX_BTIME, 0);
        assert_eq!(stat.btime.tv_sec.cast_unsigned(), born.as_secs());
    }
}

#[test]
fn mode_size_and_times_are_set() {
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"12345").expect("written");
    let node = guest.find(ROOT, c"file");
    let mode = SetattrIn {
        mode: libc::S_IFREG | 0o4711,
        ..SetattrIn::default()
    };
    assert_eq!(
        set(&guest, node, SetattrValid::MODE, mode)
            .expect("set")
            .mode
            & 0o7777,
        0o4711
    );
    let size = SetattrIn {
        size: 3,
        ..SetattrIn::default()
    };
    assert_eq!(
        set(&guest, node, SetattrValid::SIZE, size)
            .expect("set")
            .size,
        3
    );
    let huge = SetattrIn {
        size: 1 << 63,
        ..SetattrIn::default()
    };
    assert_eq!(
        errno(set(&guest, node, SetattrValid::SIZE, huge)),
        Some(libc::EFBIG)
    );
    let times = SetattrIn {
        atime: 11,
        atimensec: 12,
        mtime: (-5i64).cast_unsigned(),
        mtimensec: 14,
        ..SetattrIn::default()
    };
    let attr = set(
        &guest,
        node,
        SetattrValid::ATIME | SetattrValid::MTIME,
        times,
    )
    .expect("set");
    assert_eq!(
        (
            attr.atime,
            attr.atimensec,
            attr.mtime.cast_signed(),
            attr.mtimensec
        ),
        (11, 12, -5, 14)
    );
    let attr = set(
        &guest,
        node,
        SetattrValid::MTIME | SetattrValid::MTIME_NOW,
        times,
    )
    .expect("set");
    assert!(attr.mtime > 1_000_000_000 && attr.mtime < 1 << 40);
    assert_eq!(attr.atime, 11);
    let wrong = SetattrIn {
        atimensec: 1 << 30,
        ..SetattrIn::default()
    };
    assert_eq!(
        errno(set(&guest, node, SetattrValid::ATIME, wrong)),
        Some(libc::EINVAL)
    );
}

#[test]
fn a_links_own_times_change_and_its_mode_cannot() {
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"").expect("written");
    std::os::unix::fs::symlink("file", guest.path("link")).expect("made");
    let node = guest.find(ROOT, c"link");
    let times = SetattrIn {
        mtime: 77,
        ..SetattrIn::default()
    };
    assert_eq!(
        set(&guest, node, SetattrValid::MTIME, times)
            .expect("set")
            .mtime,
        77
    );
    assert_ne!(
        std::fs::metadata(guest.path("file"))
            .expect("there")
            .mtime(),
        77
    );
    let mode = SetattrIn {
        mode: 0o600,
        ..SetattrIn::default()
    };
    assert_eq!(
        errno(set(&guest, node, SetattrValid::MODE, mode)),
        Some(libc::EOPNOTSUPP)
    );
    assert_eq!(
        errno(set(&guest, node, SetattrValid::SIZE, mode)),
        Some(libc::ELOOP)
    );
    assert_eq!(
        errno(set(&guest, ROOT, SetattrValid::SIZE, mode)),
        Some(libc::EISDIR)
    );
}

#[test]
fn a_new_owner_takes_set_id_bits_unless_the_mode_sets_them_again() {
    if skipped_without_root("a_new_owner_takes_set_id_bits") {
        return;
    }
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"").expect("written");
    let permissions = || PermissionsExt::from_mode(0o6755);
    std::fs::set_permissions(guest.path("file"), permissions()).expect("set");
    let node = guest.find(ROOT, c"file");
    let owner = SetattrIn {
        uid: 1000,
        gid: 1001,
        mode: 0o4711,
        ..SetattrIn::default()
    };
    let attr = set(&guest, node, SetattrValid::UID | SetattrValid::GID, owner).expect("set");
    assert_eq!(
        (attr.uid, attr.gid, attr.mode & 0o7777),
        (1000, 1001, 0o755)
    );
    let attr = set(&guest, node, SetattrValid::UID | SetattrValid::MODE, owner).expect("set");
    assert_eq!(attr.mode & 0o7777, 0o4711);
    let wrong = SetattrIn {
        uid: u32::MAX,
        ..SetattrIn::default()
    };
    assert_eq!(
        errno(set(&guest, node, SetattrValid::UID, wrong)),
        Some(libc::EINVAL)
    );
}

#[test]
fn extended_attributes_live_on_the_host_if_wanted() {
    let guest = Guest::with(Options {
        xattr: true,
        ..Options::default()
    });
    std::fs::write(guest.path("file"), b"").expect("written");
    let node = guest.find(ROOT, c"file");
    let args = SetxattrIn::default();
    if errno(guest.fs.setxattr(node, &args, c"user.name", b"value")) == Some(libc::EOPNOTSUPP) {
        eprintln!("SKIPPED: the temporary directory has no extended attributes");
        return;
    }
    let create = SetxattrIn {
        flags: libc::XATTR_CREATE.cast_unsigned(),
        ..args
    };
    assert_eq!(
        errno(guest.fs.setxattr(node, &create, c"user.name", b"x")),
        Some(libc::EEXIST)
    );
    assert_eq!(
        guest
            .fs
            .getxattr(node, c"user.name", &mut [])
            .expect("length"),
        5
    );
    let mut value = [0; 8];
    assert_eq!(
        guest
            .fs
            .getxattr(node, c"user.name", &mut value)
            .expect("value"),
        5
    );
    assert_eq!(&value[..5], b"value");
    assert_eq!(
        errno(guest.fs.getxattr(node, c"user.name", &mut [0; 2])),
        Some(libc::ERANGE)
    );
    assert_eq!(
        errno(guest.fs.getxattr(node, c"user.other", &mut value)),
        Some(libc::ENODATA)
    );
    let length = guest.fs.listxattr(node, &mut []).expect("length");
    let mut names = vec![0; length];
    assert_eq!(guest.fs.listxattr(node, &mut names).expect("names"), length);
    assert!(
        names
            .split(|byte| *byte == 0)
            .any(|name| name == b"user.name")
    );
    assert_eq!(
        errno(guest.fs.listxattr(node, &mut [0; 3])),
        Some(libc::ERANGE)
    );
    guest.fs.removexattr(node, c"user.name").expect("removed");
    assert_eq!(
        errno(guest.fs.removexattr(node, c"user.name")),
        Some(libc::ENODATA)
    );
    for name in [c"system.posix_acl_access", c"system.posix_acl_default"] {
        assert_eq!(
            errno(guest.fs.setxattr(node, &args, name, b"x")),
            Some(libc::EOPNOTSUPP)
        );
        assert_eq!(
            errno(guest.fs.getxattr(node, name, &mut [])),
            Some(libc::EOPNOTSUPP)
        );
    }
}

#[test]
fn extended_attributes_are_not_there_if_not_wanted() {
    let guest = Guest::new();
    let args = SetxattrIn::default();
    assert_eq!(
        errno(guest.fs.setxattr(ROOT, &args, c"user.x", b"")),
        Some(libc::ENOSYS)
    );
    assert_eq!(
        errno(guest.fs.getxattr(ROOT, c"user.x", &mut [])),
        Some(libc::ENOSYS)
    );
    assert_eq!(errno(guest.fs.listxattr(ROOT, &mut [])), Some(libc::ENOSYS));
    assert_eq!(
        errno(guest.fs.removexattr(ROOT, c"user.x")),
        Some(libc::ENOSYS)
    );
}

#[test]
fn figures_of_the_file_system_are_the_hosts() {
    let guest = Guest::new();
    let figures = guest.fs.statfs(ROOT).expect("figures");
    assert!(figures.blocks > 0 && figures.bsize >= 512 && figures.namelen >= 255);
    assert_eq!(errno(guest.fs.statfs(NodeId::new(12))), Some(libc::ESTALE));
}
