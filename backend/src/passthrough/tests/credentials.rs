//! Tests of the owner of created objects.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use gangplank_fuse::{SetattrIn, SetattrValid, SupplementaryGroups};

use super::*;
use crate::passthrough::id_map::IdMap;

const ROOT: NodeId = NodeId::ROOT;

fn owner(guest: &Guest, name: &str) -> (u32, u32, u32) {
    let metadata = std::fs::symlink_metadata(guest.path(name)).expect("there");
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

/// Creates a directory with mode `mode`, owned by `uid` and `gid`.
fn directory(guest: &Guest, name: &CStr, uid: u32, gid: u32, mode: u32) -> NodeId {
    let path = guest.path(name.to_str().expect("UTF-8"));
    std::fs::create_dir(&path).expect("made");
    std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("owned");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
    guest.find(ROOT, name)
}

#[test]
fn every_kind_of_object_belongs_to_its_creator() {
    if skipped_without_root("every_kind_of_object_belongs_to_its_creator") {
        return;
    }
    let guest = Guest::new();
    let home = directory(&guest, c"home", 1000, 1001, 0o700);
    let user = creator(1000, 1001);
    guest
        .create_as(&user, home, c"file", libc::O_RDWR, 0o666)
        .expect("made");
    guest
        .fs
        .mkdir(&user, home, checked(c"directory"), 0o777)
        .expect("made");
    guest
        .fs
        .symlink(&user, home, checked(c"link"), c"x")
        .expect("made");
    guest
        .fs
        .mknod(&user, home, checked(c"fifo"), libc::S_IFIFO | 0o666, 0)
        .expect("made");
    assert_eq!(owner(&guest, "home/file"), (1000, 1001, 0o644));
    assert_eq!(owner(&guest, "home/directory"), (1000, 1001, 0o755));
    assert_eq!(owner(&guest, "home/fifo"), (1000, 1001, 0o644));
    assert_eq!(owner(&guest, "home/link"), (1000, 1001, 0o777));
    let args = CreateIn {
        flags: libc::O_RDWR.cast_unsigned(),
        mode: 0o666,
        ..CreateIn::default()
    };
    let (unnamed, _) = guest.fs.tmpfile(&user, home, &args).expect("made");
    assert_eq!((unnamed.attr.uid, unnamed.attr.gid), (1000, 1001));
    // The thread has its own credentials again.
    let (entry, _) = guest.create(ROOT, c"roots", libc::O_RDWR).expect("made");
    assert_eq!((entry.attr.uid, entry.attr.gid), (0, 0));
}

#[test]
fn the_umask_is_the_callers_or_the_guests_business() {
    let guest = Guest::new();
    let strict = Creator {
        umask: 0o077,
        ..root_creator()
    };
    guest
        .create_as(&strict, ROOT, c"strict", libc::O_RDWR, 0o666)
        .expect("made");
    assert_eq!(owner(&guest, "strict").2, 0o600);
    // A guest that does not negotiate DONT_MASK has applied the umask already.
    guest
        .fs
        .init(InitFlags::all() - InitFlags::DONT_MASK)
        .expect("agreed");
    guest
        .create_as(&strict, ROOT, c"loose", libc::O_RDWR, 0o666)
        .expect("made");
    assert_eq!(owner(&guest, "loose").2, 0o666);
}

#[test]
fn a_setgid_directory_gives_its_group() {
    if skipped_without_root("a_setgid_directory_gives_its_group") {
        return;
    }
    let guest = Guest::new();
    let shared = directory(&guest, c"shared", 0, 2000, 0o2777);
    let user = creator(1000, 1001);
    guest
        .create_as(&user, shared, c"file", libc::O_RDWR, 0o2775)
        .expect("made");
    // An ordinary user may not set the set-group-ID bit for a group it is not in.
    assert_eq!(owner(&guest, "shared/file"), (1000, 2000, 0o755));
    guest
        .fs
        .mkdir(&user, shared, checked(c"directory"), 0o777)
        .expect("made");
    assert_eq!(owner(&guest, "shared/directory"), (1000, 2000, 0o2755));
    let groups = [2000];
    let member = Creator {
        groups: Some(SupplementaryGroups::new(&groups)),
        ..user
    };
    guest
        .create_as(&member, shared, c"members", libc::O_RDWR, 0o2775)
        .expect("made");
    assert_eq!(owner(&guest, "shared/members"), (1000, 2000, 0o2755));
    guest
        .create_as(&user, shared, c"again", libc::O_RDWR, 0o2775)
        .expect("made");
    assert_eq!(
        owner(&guest, "shared/again").2,
        0o755,
        "the group is given back"
    );
}

#[test]
fn a_directory_open_to_a_group_that_the_host_does_not_know_of_is_open() {
    if skipped_without_root("a_directory_open_to_a_group") {
        return;
    }
    let guest = Guest::new();
    let shared = directory(&guest, c"shared", 0, 2000, 0o770);
    // The guest's kernel has found the caller in group 2000; the request does not carry this group.
    guest
        .create_as(&creator(1000, 1001), shared, c"file", libc::O_RDWR, 0o644)
        .expect("made");
    assert_eq!(owner(&guest, "shared/file"), (1000, 1001, 0o644));
}

#[test]
fn ids_that_do_not_exist_are_refused() {
    if skipped_without_root("ids_that_do_not_exist_are_refused") {
        return;
    }
    let guest = Guest::new();
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
        // In the system call this id means "unchanged", which must not silently leave the object to
        // root.
        let made = guest.create_as(&creator(uid, gid), ROOT, c"file", libc::O_RDWR, 0o644);
        assert_eq!(errno(made), Some(libc::EINVAL), "{uid}, {gid}");
    }
    assert!(!guest.path("file").exists());
}

#[test]
fn an_ordinary_user_creates_as_itself() {
    let abilities = Abilities {
        can_change_credentials: false,
        can_open_by_handle: false,
    };
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let guest = Guest::able(directory, Options::default(), abilities);
    let agreed = guest.fs.init(InitFlags::all()).expect("agreed");
    assert!(!agreed.contains(InitFlags::CREATE_SUPP_GROUP));
    let (entry, _) = guest
        .create_as(&creator(12_345, 12_345), ROOT, c"file", libc::O_RDWR, 0o644)
        .expect("made");
    assert_eq!(entry.attr.uid, rustix::process::geteuid().as_raw());
}

#[test]
fn a_default_acl_of_the_host_comes_before_the_umask() {
    let guest = Guest::new();
    // Version 2, then tag, permissions and id of owner, group and others
    // (`linux/posix_acl_xattr.h`).
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(0x01u16, 7u16), (0x04, 7), (0x20, 5)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    let set = rustix::fs::setxattr(
        guest.directory.path(),
        c"system.posix_acl_default",
        &acl,
        rustix::fs::XattrFlags::empty(),
    );
    if set.is_err() {
        eprintln!("SKIPPED: the temporary directory has no access control lists");
        return;
    }
    let strict = Creator {
        umask: 0o077,
        ..root_creator()
    };
    guest
        .create_as(&strict, ROOT, c"file", libc::O_RDWR, 0o666)
        .expect("made");
    assert_eq!(owner(&guest, "file").2, 0o664);
}

fn translated(users: &str, groups: &str) -> Options {
    let rules = |text: &str| {
        let rules = text.split_whitespace().map(str::parse);
        rules.collect::<Result<Vec<_>, _>>().expect("rules")
    };
    Options {
        id_map: IdMap::new(&rules(users), &rules(groups)).expect("a map"),
        ..Options::default()
    }
}

#[test]
fn translated_ids_are_the_hosts_on_the_host_and_the_guests_in_the_guest() {
    if skipped_without_root("translated_ids") {
        return;
    }
    let guest = Guest::with(translated(
        "map:0:3000:100 squash-guest:1000:7:10",
        "map:0:4000:100 guest:1001:8:1",
    ));
    let home = directory(&guest, c"home", 3000, 4000, 0o777);
    let seen = guest.lookup(ROOT, c"home").expect("found").attr;
    assert_eq!((seen.uid, seen.gid), (0, 0));
    for (name, made_by, on_host, seen) in [
        (c"root's", (0, 0), (3000, 4000), (0, 0)),
        (c"squashed", (1005, 1001), (7, 8), (7, 8)),
        (c"same", (500, 501), (500, 501), (500, 501)),
    ] {
        let (entry, _) = guest
            .create_as(
                &creator(made_by.0, made_by.1),
                home,
                name,
                libc::O_RDWR,
                0o644,
            )
            .expect("made");
        let (uid, gid, _) = owner(&guest, &format!("home/{}", name.to_string_lossy()));
        assert_eq!((uid, gid), on_host, "{name:?}");
        assert_eq!((entry.attr.uid, entry.attr.gid), seen, "{name:?}");
    }
    let args = SetattrIn {
        valid: (SetattrValid::UID | SetattrValid::GID).bits(),
        uid: 99,
        gid: 1001,
        ..SetattrIn::default()
    };
    let node = guest.find(home, c"same");
    let changed = guest.fs.setattr(ROOT_USER, node, &args).expect("changed");
    assert_eq!(owner(&guest, "home/same"), (3099, 8, 0o644));
    assert_eq!((changed.attr.uid, changed.attr.gid), (99, 8));
}

#[test]
fn forbidden_ids_make_nothing_and_are_given_nothing() {
    let guest = Guest::with(translated("forbid-guest:1000:1", "forbid-guest:2000:1"));
    for caller in [creator(1000, 0), creator(0, 2000)] {
        let made = guest.create_as(&caller, ROOT, c"file", libc::O_RDWR, 0o644);
        assert_eq!(errno(made), Some(libc::EPERM));
    }
    assert!(!guest.path("file").exists());
    guest.create(ROOT, c"file", libc::O_RDWR).expect("made");
    let node = guest.find(ROOT, c"file");
    for (valid, uid, gid) in [(SetattrValid::UID, 1000, 0), (SetattrValid::GID, 0, 2000)] {
        let args = SetattrIn {
            valid: valid.bits(),
            uid,
            gid,
            ..SetattrIn::default()
        };
        let changed = guest.fs.setattr(ROOT_USER, node, &args);
        assert_eq!(errno(changed), Some(libc::EPERM));
    }
}

#[test]
fn owners_after_a_death_are_those_that_the_guest_sees() {
    let guest = Guest::with(translated("map:0:3000:10 squash-guest:10:3005:10", ""));
    let owners = |uid| {
        guest
            .fs
            .possible_owners(GuestUid::new(uid))
            .map(GuestUid::get)
    };
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(owners(4), [4, own]);
    assert_eq!(owners(12), [5, own]);
}
