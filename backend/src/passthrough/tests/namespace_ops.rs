//! Tests of creating, finding, renaming and removing names.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use gangplank_fuse::{InitFlags, NodeId, OpenInFlags};

use std::time::Duration;

use super::*;
use crate::passthrough::options::CachePolicy;

const ROOT: NodeId = NodeId::ROOT;

#[test]
fn what_the_guest_makes_is_on_the_host_and_the_other_way_round() {
    let guest = Guest::new();
    let directory = guest.mkdir(ROOT, c"directory");
    let (entry, open) = guest
        .create(directory, c"file", libc::O_RDWR)
        .expect("made");
    let (node, handle) = (NodeId::new(entry.nodeid), Handle::new(open.fh));
    assert_eq!(guest.write(node, handle, 0, b"hello").expect("written"), 5);
    assert_eq!(
        std::fs::read(guest.path("directory/file")).expect("read"),
        b"hello"
    );

    std::fs::write(guest.path("directory/other"), b"from the host").expect("written");
    let other = guest.find(directory, c"other");
    let handle = guest.open(other, libc::O_RDONLY).expect("opened");
    let mut buffer = [0; 64];
    assert_eq!(guest.read(other, handle, 5, &mut buffer).expect("read"), 8);
    assert_eq!(&buffer[..8], b"the host");
}

#[test]
fn a_missing_name_is_enoent_or_a_negative_entry() {
    for cache in [CachePolicy::Auto, CachePolicy::Always] {
        let guest = Guest::with(Options {
            cache,
            ..Options::default()
        });
        assert_eq!(errno(guest.lookup(ROOT, c"missing")), Some(libc::ENOENT));
    }
    let guest = Guest::with(Options {
        negative_timeout: Duration::from_secs(5),
        ..Options::default()
    });
    let entry = guest.lookup(ROOT, c"missing").expect("a negative entry");
    assert_eq!((entry.nodeid, entry.entry_valid), (0, 5));
}

#[test]
fn links_symlinks_and_special_files_are_made_and_not_followed() {
    let guest = Guest::new();
    let creator = root_creator();
    let link = guest
        .fs
        .symlink(&creator, ROOT, checked(c"link"), c"/etc/passwd")
        .expect("made");
    let node = NodeId::new(link.nodeid);
    let mut target = [0; 4096];
    let length = guest.fs.readlink(node, &mut target).expect("read");
    assert_eq!(&target[..length], b"/etc/passwd");
    assert_eq!(errno(guest.open(node, libc::O_RDONLY)), Some(libc::ELOOP));
    assert_eq!(errno(guest.lookup(node, c"x")), Some(libc::ENOTDIR));

    let fifo = guest
        .fs
        .mknod(&creator, ROOT, checked(c"fifo"), libc::S_IFIFO | 0o600, 0)
        .expect("made");
    assert_eq!(
        errno(guest.open(NodeId::new(fifo.nodeid), libc::O_RDWR)),
        Some(libc::ENXIO)
    );
    let metadata = std::fs::symlink_metadata(guest.path("fifo")).expect("there");
    assert!(metadata.file_type().is_fifo());

    // A hard link to a symbolic link refers to the symbolic link itself.
    let again = guest
        .fs
        .link(node, ROOT, checked(c"again"))
        .expect("linked");
    assert_eq!((again.nodeid, again.attr.nlink), (link.nodeid, 2));
    assert!(guest.path("again").is_symlink());
}

#[test]
fn device_nodes_keep_their_numbers() {
    if skipped_without_root("device_nodes_keep_their_numbers") {
        return;
    }
    let guest = Guest::new();
    let (mode, device) = (libc::S_IFCHR | 0o600, 0x1234_5678);
    match guest
        .fs
        .mknod(&root_creator(), ROOT, checked(c"device"), mode, device)
    {
        Ok(made) => {
            assert_eq!(made.attr.rdev, device);
            assert_eq!(
                errno(guest.open(NodeId::new(made.nodeid), libc::O_RDONLY)),
                Some(libc::ENXIO)
            );
        }
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            eprintln!("SKIPPED: device nodes cannot be made here");
        }
        Err(error) => panic!("{error}"),
    }
}

/// The guest assumed that the name was free, so it has not checked whether its user may open an
/// existing file.
#[test]
fn create_opens_nothing_that_was_there_before() {
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"content").expect("written");
    std::os::unix::fs::symlink("file", guest.path("link")).expect("made");
    for name in [c"file", c"link"] {
        for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_TRUNC] {
            assert_eq!(errno(guest.create(ROOT, name, flags)), Some(libc::ESTALE));
        }
        assert_eq!(
            errno(guest.create(ROOT, name, libc::O_EXCL)),
            Some(libc::EEXIST)
        );
    }
    assert_eq!(
        std::fs::read(guest.path("file")).expect("there"),
        b"content"
    );
}

#[test]
fn renames_obey_their_flags() {
    let guest = Guest::new();
    std::fs::write(guest.path("a"), b"a").expect("written");
    std::fs::write(guest.path("b"), b"b").expect("written");
    let rename = |from, to, flags| {
        guest.fs.rename(
            &root_creator(),
            ROOT,
            checked(from),
            ROOT,
            checked(to),
            flags,
        )
    };
    assert_eq!(
        errno(rename(c"a", c"b", libc::RENAME_NOREPLACE)),
        Some(libc::EEXIST)
    );
    rename(c"a", c"b", libc::RENAME_EXCHANGE).expect("exchanged");
    assert_eq!(std::fs::read(guest.path("a")).expect("read"), b"b");
    rename(c"a", c"b", 0).expect("replaced");
    assert!(!guest.path("a").exists());
    assert_eq!(errno(rename(c"b", c"a", 8)), Some(libc::EINVAL));
    assert_eq!(errno(rename(c"missing", c"a", 0)), Some(libc::ENOENT));
    if is_root() {
        rename(c"b", c"a", libc::RENAME_WHITEOUT).expect("renamed");
        let whiteout = std::fs::symlink_metadata(guest.path("b")).expect("there");
        assert!(whiteout.file_type().is_char_device());
        assert_eq!(whiteout.rdev(), 0);
    }
}

#[test]
fn names_are_removed_as_what_they_are() {
    let guest = Guest::new();
    guest.mkdir(ROOT, c"directory");
    std::fs::write(guest.path("file"), b"").expect("written");
    assert_eq!(
        errno(guest.fs.unlink(ROOT, checked(c"directory"))),
        Some(libc::EISDIR)
    );
    assert_eq!(
        errno(guest.fs.rmdir(ROOT, checked(c"file"))),
        Some(libc::ENOTDIR)
    );
    guest.fs.unlink(ROOT, checked(c"file")).expect("removed");
    guest
        .fs
        .rmdir(ROOT, checked(c"directory"))
        .expect("removed");
    assert_eq!(
        std::fs::read_dir(guest.directory.path())
            .expect("listed")
            .count(),
        0
    );
}

#[test]
fn a_file_without_a_name_gets_one_by_a_link() {
    let guest = Guest::new();
    let args = CreateIn {
        flags: libc::O_RDWR.cast_unsigned() | LARGE_FILE,
        mode: libc::S_IFREG | 0o600,
        open_flags: OpenInFlags::empty().bits(),
        ..CreateIn::default()
    };
    let (entry, open) = guest
        .fs
        .tmpfile(&root_creator(), ROOT, &args)
        .expect("made");
    let node = NodeId::new(entry.nodeid);
    assert_eq!(entry.attr.nlink, 0);
    guest
        .write(node, Handle::new(open.fh), 0, b"unnamed")
        .expect("written");
    guest
        .fs
        .link(node, ROOT, checked(c"named"))
        .expect("linked");
    assert_eq!(
        std::fs::read(guest.path("named")).expect("read"),
        b"unnamed"
    );
}

#[test]
fn a_read_only_share_changes_in_no_way() {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    std::fs::write(directory.path().join("file"), b"content").expect("written");
    let guest = Guest::in_directory(
        directory,
        Options {
            readonly: true,
            xattr: true,
            ..Options::default()
        },
    );
    let creator = root_creator();
    let node = guest.find(ROOT, c"file");
    let handle = guest.open(node, libc::O_RDONLY).expect("opened");
    let attributes = gangplank_fuse::SetattrIn::default();
    let setxattr = gangplank_fuse::SetxattrIn::default();
    let fallocate = gangplank_fuse::FallocateIn {
        fh: handle.get(),
        length: 1,
        ..Default::default()
    };
    let copy = gangplank_fuse::CopyFileRangeIn::default();
    let name = checked(c"new");
    let file = checked(c"file");
    let refusals = [
        errno(guest.open(node, libc::O_WRONLY)),
        errno(guest.open(node, libc::O_RDONLY | libc::O_TRUNC)),
        errno(guest.create(ROOT, c"file", libc::O_RDONLY)),
        errno(guest.fs.mkdir(&creator, ROOT, name, 0o755)),
        errno(guest.fs.mknod(&creator, ROOT, name, libc::S_IFREG, 0)),
        errno(guest.fs.symlink(&creator, ROOT, name, c"x")),
        errno(guest.fs.link(node, ROOT, name)),
        errno(guest.fs.unlink(ROOT, file)),
        errno(guest.fs.rmdir(ROOT, file)),
        errno(guest.fs.rename(&creator, ROOT, file, ROOT, name, 0)),
        errno(guest.fs.setattr(ROOT_USER, node, &attributes)),
        errno(guest.fs.setxattr(node, &setxattr, c"user.x", b"")),
        errno(guest.fs.removexattr(node, c"user.x")),
        errno(guest.fs.fallocate(ROOT_USER, node, &fallocate)),
        errno(guest.fs.copy_file_range(ROOT_USER, node, &copy)),
        errno(guest.fs.tmpfile(&creator, ROOT, &CreateIn::default())),
        errno(guest.write(node, handle, 0, b"x")),
    ];
    assert!(
        refusals.iter().all(|refusal| *refusal == Some(libc::EROFS)),
        "{refusals:?}"
    );
    assert_eq!(std::fs::read(guest.path("file")).expect("read"), b"content");
}

#[test]
fn destroy_frees_everything_and_another_session_may_follow() {
    let guest = Guest::new();
    let node = guest.mkdir(ROOT, c"directory");
    guest.create(node, c"file", libc::O_RDWR).expect("made");
    assert!(guest.fs.share.held_descriptors() >= 3);
    guest.fs.destroy();
    assert_eq!((guest.fs.held_inodes(), guest.fs.open_files()), (0, 0));
    assert_eq!(guest.fs.share.held_descriptors(), 0);
    assert_eq!(errno(guest.fs.getattr(node, None)), Some(libc::ESTALE));
    guest.fs.init(InitFlags::all()).expect("agreed");
    assert_ne!(guest.find(ROOT, c"directory"), NodeId::ROOT);
}
