//! Tests of mounts below the share.

use gangplank_fuse::AttrFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

const ROOT: NodeId = NodeId::ROOT;

/// A guest whose share has a file system mounted on `mount`. Dropping it unmounts the file system.
struct Mounted {
    guest: Guest,
    point: PathBuf,
}

impl Mounted {
    fn new(test: &str, announce_submounts: bool) -> Option<Self> {
        if skipped_without_root(test) {
            return None;
        }
        let guest = Guest::with(Options {
            announce_submounts,
            ..Options::default()
        });
        let point = guest.path("mount");
        std::fs::create_dir(&point).expect("made");
        if let Err(error) = mount("none", &point, "tmpfs", MountFlags::empty(), None) {
            eprintln!("SKIPPED: {test} cannot mount here: {error}");
            return None;
        }
        std::fs::write(point.join("inside"), b"").expect("written");
        Some(Self { guest, point })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}

#[test]
fn a_mount_is_announced() {
    let Some(mounted) = Mounted::new("a_mount_is_announced", true) else {
        return;
    };
    let guest = &mounted.guest;
    let entry = guest.lookup(ROOT, c"mount").expect("found");
    assert_eq!(entry.attr.flags, AttrFlags::SUBMOUNT.bits());
    let inside = guest
        .lookup(NodeId::new(entry.nodeid), c"inside")
        .expect("found");
    assert_eq!(inside.attr.flags, 0);
    // A kernel without SUBMOUNTS gets no announcement.
    guest
        .fs
        .init(InitFlags::all() - InitFlags::SUBMOUNTS)
        .expect("agreed");
    assert_eq!(guest.lookup(ROOT, c"mount").expect("found").attr.flags, 0);
}

#[test]
fn numbers_of_unannounced_mounts_are_distinct() {
    let Some(mounted) = Mounted::new("numbers_of_unannounced_mounts_are_distinct", false) else {
        return;
    };
    let guest = &mounted.guest;
    let entry = guest.lookup(ROOT, c"mount").expect("found");
    assert_eq!(entry.attr.flags, 0);
    let inside = guest
        .lookup(NodeId::new(entry.nodeid), c"inside")
        .expect("found");
    let own = std::os::unix::fs::MetadataExt::ino(
        &std::fs::metadata(mounted.point.join("inside")).expect("there"),
    );
    assert_ne!(inside.attr.ino, own);
    assert_eq!(inside.attr.ino & 0xffff_ffff_ffff, own);
    let again = guest
        .fs
        .getattr(NodeId::new(inside.nodeid), None)
        .expect("attributes");
    assert_eq!(again.attr.ino, inside.attr.ino);
}

/// The host can unmount what a guest has only looked at, and, if the guest knows of the mount, what
/// it has written to, once the guest has forgotten it.
#[test]
fn a_mount_is_let_go_with_the_guests_last_inode_of_it() {
    for writes in [false, true] {
        let Some(mounted) =
            Mounted::new("a_mount_is_let_go_with_the_guests_last_inode_of_it", true)
        else {
            return;
        };
        let guest = &mounted.guest;
        let mount = guest.find(ROOT, c"mount");
        let inside = guest.find(mount, c"inside");
        if writes {
            let handle = guest.open(inside, libc::O_WRONLY).expect("opened");
            guest.write(inside, handle, 0, b"x").expect("written");
            let args = ReleaseIn {
                fh: handle.get(),
                ..ReleaseIn::default()
            };
            guest.fs.release(inside, &args).expect("closed");
            guest.fs.syncfs(mount).expect("synced");
        }
        guest.fs.forget(inside, 1);
        let busy = unmount(&mounted.point, UnmountFlags::empty());
        assert!(busy.is_err(), "the guest still knows the mount");
        guest.fs.forget(mount, 1);
        unmount(&mounted.point, UnmountFlags::empty()).expect("nothing uses the mount");
    }
}

/// What a guest has written to a mount that it does not know of is synced with the share, also
/// after the guest has forgotten the mount.
#[test]
fn an_unannounced_mount_that_was_written_to_stays_for_syncfs() {
    let Some(mounted) = Mounted::new(
        "an_unannounced_mount_that_was_written_to_stays_for_syncfs",
        false,
    ) else {
        return;
    };
    let guest = &mounted.guest;
    let mount = guest.find(ROOT, c"mount");
    let inside = guest.find(mount, c"inside");
    guest.open(inside, libc::O_WRONLY).expect("opened");
    let synced = || {
        let directories = &guest.fs.state.syncfs_directories;
        directories
            .unannounced(guest.fs.share.root_identity.mount)
            .len()
    };
    assert_eq!(synced(), 1);
    guest.fs.syncfs(ROOT).expect("synced");
    guest.fs.forget(mount, 1);
    assert_eq!(synced(), 1);
    guest.fs.destroy();
    assert_eq!(synced(), 0);
}
