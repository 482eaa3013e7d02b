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
    guest.fs.init(InitFlags::all() - InitFlags::SUBMOUNTS);
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
