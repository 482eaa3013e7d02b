//! Tests of extended attributes under other names, of ACLs and of labels.

use gangplank_fuse::{FallocateIn, SetattrIn, SetattrValid, SetxattrIn, WriteIn};
use rustix::fs::XattrFlags;

use super::*;

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
    let changes: [(&str, bool, &dyn Fn()); 7] = [
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
    ];
    let is_left = || on_host(&guest, "user.vm.security.capability").is_some();
    for (what, stays, change) in changes {
        set(&guest, node, c"security.capability", b"any").expect("set");
        change();
        assert_eq!(is_left(), stays, "{what}");
    }
    set(&guest, node, c"security.capability", b"any").expect("set");
    let allocated = guest.fs.fallocate(ROOT_USER, node, &allocate);
    assert!(allocated.is_err() || !is_left());
}
