//! Tests of extended attributes under other names, of ACLs and of labels.

use std::os::unix::fs::PermissionsExt;

use gangplank_fuse::{
    CopyFileRangeIn, FallocateIn, SecurityContext, SetattrIn, SetattrValid, SetxattrFlags,
    SetxattrIn, WriteIn,
};
use rustix::fs::XattrFlags;

use super::*;
use crate::passthrough::options::NegotiationMode;

const ROOT: NodeId = NodeId::ROOT;

/// The empty file `file` on a share with a map of names; `None` if the temporary directory has no
/// attributes.
fn mapped(rules: &str) -> Option<(Guest, NodeId)> {
    let guest = Guest::with(Options {
        xattr: true,
        xattr_map: Some(rules.parse().expect("a map")),
        ..Options::default()
    });
    std::fs::write(guest.path("file"), b"").expect("written");
    let node = guest.find(ROOT, c"file");
    if rustix::fs::setxattr(guest.path("file"), c"user.own", b"1", XattrFlags::empty()).is_err() {
        eprintln!("SKIPPED: the temporary directory has no extended attributes");
        return None;
    }
    Some((guest, node))
}

fn set(guest: &Guest, node: NodeId, name: &CStr, value: &[u8]) -> io::Result<()> {
    guest.fs.setxattr(node, &SetxattrIn::default(), name, value)
}

fn list(guest: &Guest, node: NodeId) -> Vec<String> {
    let mut names = vec![0; 1000];
    let length = guest.fs.listxattr(node, &mut names).expect("names");
    assert_eq!(guest.fs.listxattr(node, &mut []).expect("length"), length);
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

/// The value on the host.
fn on_host(guest: &Guest, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 100];
    let length = rustix::fs::getxattr(guest.path("file"), name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn mapped_names_are_others_on_the_host() {
    let Some((guest, node)) = mapped(":map::user.vm.:") else {
        return;
    };
    set(&guest, node, c"trusted.a", b"value").expect("set");
    assert_eq!(
        on_host(&guest, "user.vm.trusted.a").as_deref(),
        Some(b"value".as_slice())
    );
    let mut value = [0; 8];
    let length = guest.fs.getxattr(node, c"trusted.a", &mut value);
    assert_eq!(length.expect("value"), 5);
    assert_eq!(list(&guest, node), ["trusted.a"]);
    let hidden = guest.fs.getxattr(node, c"user.own", &mut value);
    assert_eq!(errno(hidden), Some(libc::ENODATA));
    guest.fs.removexattr(node, c"trusted.a").expect("removed");
    assert_eq!(on_host(&guest, "user.vm.trusted.a"), None);
    assert!(on_host(&guest, "user.own").is_some());
}

#[test]
fn denied_names_cannot_be_changed_and_do_not_exist() {
    let rules = ":bad:all:user.o:user.o: :unsupported:all:user.u:user.u: :ok:all:::";
    let Some((guest, node)) = mapped(rules) else {
        return;
    };
    for (name, changed, read) in [
        (c"user.own", libc::EPERM, libc::ENODATA),
        (c"user.use", libc::EOPNOTSUPP, libc::EOPNOTSUPP),
    ] {
        assert_eq!(errno(set(&guest, node, name, b"")), Some(changed));
        assert_eq!(errno(guest.fs.removexattr(node, name)), Some(changed));
        assert_eq!(errno(guest.fs.getxattr(node, name, &mut [])), Some(read));
    }
    set(&guest, node, c"user.free", b"").expect("set");
    assert_eq!(list(&guest, node), ["user.free"]);
    // Also an ACL under another name is none.
    let acl = set(&guest, node, c"system.posix_acl_access", b"");
    assert_eq!(errno(acl), Some(libc::EOPNOTSUPP));
}

#[test]
fn file_capabilities_under_another_name_go_with_each_change() {
    let Some((guest, node)) = mapped(":map:security.:user.vm.:") else {
        return;
    };
    let handle = guest.open(node, libc::O_RDWR).expect("opened");
    guest.write(node, handle, 0, b"0123").expect("written");
    let setattr = |valid: SetattrValid| {
        let args = SetattrIn {
            valid: valid.bits(),
            fh: handle.get(),
            size: 2,
            uid: rustix::process::geteuid().as_raw(),
            mode: 0o755,
            ..SetattrIn::default()
        };
        guest.fs.setattr(ROOT_USER, node, &args).expect("changed");
    };
    let append = WriteIn {
        fh: handle.get(),
        flags: libc::O_APPEND.cast_unsigned(),
        ..WriteIn::default()
    };
    let allocate = FallocateIn {
        fh: handle.get(),
        length: 10,
        ..FallocateIn::default()
    };
    let unknown_mode = FallocateIn {
        mode: 0x80,
        ..allocate
    };
    let (other, opened) = guest.create(ROOT, c"other", libc::O_RDWR).expect("made");
    let copy_out = CopyFileRangeIn {
        fh_in: handle.get(),
        fh_out: opened.fh,
        nodeid_out: other.nodeid,
        len: 1,
        ..CopyFileRangeIn::default()
    };
    let copy_in = CopyFileRangeIn {
        fh_out: handle.get(),
        nodeid_out: node.get(),
        off_out: 4,
        ..copy_out
    };
    let changes: [(&str, bool, &dyn Fn()); 11] = [
        ("mode", true, &|| setattr(SetattrValid::MODE)),
        ("write", false, &|| {
            guest.write(node, handle, 0, b"x").expect("written");
        }),
        ("append", false, &|| {
            guest.write_with(node, &append, b"x").expect("written");
        }),
        ("owner", false, &|| setattr(SetattrValid::UID)),
        ("size", false, &|| setattr(SetattrValid::SIZE)),
        ("size by handle", false, &|| {
            setattr(SetattrValid::SIZE | SetattrValid::FH);
        }),
        ("truncating open", false, &|| {
            guest
                .open(node, libc::O_RDWR | libc::O_TRUNC)
                .expect("opened");
        }),
        ("allocation", false, &|| {
            let allocated = guest.fs.fallocate(ROOT_USER, node, &allocate);
            // Not every file system can allocate. The capability goes before it is asked.
            assert!(matches!(errno(allocated), None | Some(libc::EOPNOTSUPP)));
        }),
        ("refused allocation", true, &|| {
            let refused = guest.fs.fallocate(ROOT_USER, node, &unknown_mode);
            assert_eq!(errno(refused), Some(libc::EOPNOTSUPP));
        }),
        ("copy into it", false, &|| {
            guest.write(node, handle, 0, b"0123").expect("written");
            set(&guest, node, c"security.capability", b"any").expect("set");
            let copied = guest.fs.copy_file_range(ROOT_USER, node, &copy_in);
            assert_eq!(copied.expect("copied"), 1);
        }),
        ("copy out of it", true, &|| {
            let copied = guest.fs.copy_file_range(ROOT_USER, node, &copy_out);
            assert_eq!(copied.expect("copied"), 1);
        }),
    ];
    let is_left = || on_host(&guest, "user.vm.security.capability").is_some();
    for (what, stays, change) in changes {
        set(&guest, node, c"security.capability", b"any").expect("set");
        change();
        assert_eq!(is_left(), stays, "{what}");
    }
}

/// An ACL (`linux/posix_acl_xattr.h`): version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Owner 7, user 1000 6, group 5, mask 7, others 0.
fn some_acl() -> Vec<u8> {
    let none = u32::MAX;
    acl(&[
        (0x01, 7, none),
        (0x02, 6, 1000),
        (0x04, 5, none),
        (0x10, 7, none),
        (0x20, 0, none),
    ])
}

fn with_acls(mode: NegotiationMode) -> Guest {
    Guest::with(Options {
        xattr: true,
        posix_acl: mode,
        ..Options::default()
    })
}

#[test]
fn access_control_lists_are_the_hosts_if_the_guest_has_them() {
    let guest = with_acls(NegotiationMode::Always);
    let directory = guest.mkdir(ROOT, c"d");
    if errno(set(
        &guest,
        directory,
        c"system.posix_acl_default",
        &some_acl(),
    ))
    .is_some()
    {
        eprintln!("SKIPPED: the temporary directory has no access control lists");
        return;
    }
    assert_eq!(list(&guest, directory), ["system.posix_acl_default"]);
    let (entry, _) = guest
        .create(directory, c"file", libc::O_RDWR)
        .expect("made");
    let file = NodeId::new(entry.nodeid);
    let mut value = [0; 100];
    let inherited = guest
        .fs
        .getxattr(file, c"system.posix_acl_access", &mut value);
    assert_eq!(inherited.expect("inherited"), some_acl().len());
    assert_eq!(
        entry.attr.mode & 0o777,
        0o640,
        "the mask is the group's, and the mode's"
    );
}

#[test]
fn set_group_id_bit_goes_with_the_list_if_the_guest_says_so() {
    let guest = with_acls(NegotiationMode::Auto);
    let (entry, _) = guest.create(ROOT, c"file", libc::O_RDWR).expect("made");
    let node = NodeId::new(entry.nodeid);
    let path = guest.path("file");
    let mode = || {
        std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode()
            & 0o7777
    };
    for (setxattr_flags, expected) in [(0, 0o2770), (SetxattrFlags::ACL_KILL_SGID.bits(), 0o770)] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o2755)).expect("set");
        let args = SetxattrIn {
            setxattr_flags,
            ..SetxattrIn::default()
        };
        let name = c"system.posix_acl_access";
        if errno(guest.fs.setxattr(node, &args, name, &some_acl())).is_some() {
            eprintln!("SKIPPED: the temporary directory has no access control lists");
            return;
        }
        assert_eq!(mode(), expected);
    }
}

#[test]
fn guest_without_acls_or_labels_has_none_or_cannot_mount() {
    let needed = [
        InitFlags::POSIX_ACL,
        InitFlags::DONT_MASK,
        InitFlags::SETXATTR_EXT,
    ];
    for missing in needed {
        let guest = with_acls(NegotiationMode::Auto);
        let agreed = guest.fs.init(InitFlags::all() - missing).expect("agreed");
        assert!(!agreed.contains(InitFlags::POSIX_ACL), "{missing:?}");
        let hidden = set(&guest, ROOT, c"system.posix_acl_access", &some_acl());
        assert_eq!(errno(hidden), Some(libc::EOPNOTSUPP));
        let guest = with_acls(NegotiationMode::Always);
        let refused = guest.fs.init(InitFlags::all() - missing);
        assert_eq!(errno(refused), Some(libc::EPROTO), "{missing:?}");
    }
    let agreed = with_acls(NegotiationMode::Never)
        .fs
        .init(InitFlags::all())
        .expect("agreed");
    assert!(!agreed.intersects(InitFlags::POSIX_ACL | InitFlags::SECURITY_CTX));
    let (guest, _) = labelled(NegotiationMode::Always);
    let offered = InitFlags::all() - InitFlags::SECURITY_CTX;
    assert_eq!(errno(guest.fs.init(offered)), Some(libc::EPROTO));
    let (guest, _) = labelled(NegotiationMode::Auto);
    let agreed = guest.fs.init(offered).expect("agreed");
    assert!(!agreed.contains(InitFlags::SECURITY_CTX));
}

const LABEL: SecurityContext<'static> = SecurityContext {
    name: c"security.selinux",
    value: b"system_u:object_r:tmp_t:s0",
};

/// A guest that may label, and whose user wants [`LABEL`]. On the host it has a name that the
/// daemon may set. Labels of other names than this and `user.` are not supported.
fn labelled(mode: NegotiationMode) -> (Guest, Creator<'static>) {
    let rules = ":prefix:all:security.selinux:user.vm.: :ok:all:user.:user.: :unsupported:all:::";
    let guest = Guest::with(Options {
        xattr: true,
        security_label: mode,
        xattr_map: Some(rules.parse().expect("a map")),
        ..Options::default()
    });
    let creator = Creator {
        label: Some(LABEL),
        ..root_creator()
    };
    (guest, creator)
}

/// Makes a directory, a FIFO, a file and a symbolic link, in this order, and returns the results.
fn make_all(guest: &Guest, creator: &Creator<'_>) -> [(&'static str, io::Result<NodeId>); 4] {
    let id = |entry: EntryOut| NodeId::new(entry.nodeid);
    let made = guest.fs.mkdir(creator, ROOT, checked(c"d"), 0o755);
    let fifo = guest
        .fs
        .mknod(creator, ROOT, checked(c"p"), libc::S_IFIFO | 0o644, 0);
    let file = guest.create_as(creator, ROOT, c"f", libc::O_RDWR, 0o644);
    let link = guest.fs.symlink(creator, ROOT, checked(c"l"), c"f");
    [
        ("d", made.map(id)),
        ("p", fifo.map(id)),
        ("f", file.map(|(entry, _)| id(entry))),
        ("l", link.map(id)),
    ]
}

#[test]
fn new_objects_get_their_label() {
    let (guest, creator) = labelled(NegotiationMode::Always);
    std::fs::write(guest.path("file"), b"").expect("written");
    if rustix::fs::setxattr(guest.path("file"), c"user.a", b"1", XattrFlags::empty()).is_err() {
        eprintln!("SKIPPED: the temporary directory has no extended attributes");
        return;
    }
    let mut value = [0; 100];
    for (name, made) in make_all(&guest, &creator) {
        match (name, made) {
            // The host has no `user.` attributes of these types.
            ("p" | "l", made) => {
                assert_eq!(errno(made), Some(libc::EPERM), "{name}");
                assert!(!guest.path(name).exists() && guest.path(name).read_link().is_err());
            }
            (_, made) => {
                let node = made.expect(name);
                let length = guest.fs.getxattr(node, LABEL.name, &mut value).expect(name);
                assert_eq!(&value[..length], LABEL.value, "{name}");
            }
        }
    }
    let args = CreateIn {
        flags: libc::O_RDWR.cast_unsigned() | LARGE_FILE,
        mode: 0o644,
        ..CreateIn::default()
    };
    let (unnamed, _) = guest.fs.tmpfile(&creator, ROOT, &args).expect("made");
    let length = guest
        .fs
        .getxattr(NodeId::new(unnamed.nodeid), LABEL.name, &mut value);
    assert_eq!(length.expect("labelled"), LABEL.value.len());
}

#[test]
fn objects_whose_label_fails_are_not_left() {
    let (guest, creator) = labelled(NegotiationMode::Always);
    for (name, value, expected) in [
        (c"security.other", b"x".as_slice(), libc::EOPNOTSUPP),
        // The kernel's limit of a value is 64 KiB (`XATTR_SIZE_MAX`).
        (c"user.large", &[0; 70_000], libc::E2BIG),
    ] {
        let creator = Creator {
            label: Some(SecurityContext { name, value }),
            ..creator
        };
        for (what, made) in make_all(&guest, &creator) {
            assert_eq!(errno(made), Some(expected), "{what}");
        }
        let left = std::fs::read_dir(guest.directory.path()).expect("listed");
        assert_eq!(left.count(), 0);
    }
}

#[test]
fn object_left_by_a_death_gets_its_label() {
    let (guest, creator) = labelled(NegotiationMode::Always);
    let node = guest.mkdir(ROOT, c"d");
    match guest
        .fs
        .complete(ROOT, node, &creator, libc::S_IFDIR | 0o755)
    {
        Ok(changed) => assert!(changed),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
            eprintln!("SKIPPED: the temporary directory has no extended attributes");
            return;
        }
    }
    let length = guest.fs.getxattr(node, LABEL.name, &mut []);
    assert_eq!(length.expect("labelled"), LABEL.value.len());
    assert!(
        !guest
            .fs
            .complete(ROOT, node, &root_creator(), libc::S_IFDIR)
            .expect("nothing to do")
    );
}
