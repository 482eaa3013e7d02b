//! Tests of set-user-ID and set-group-ID bits, which a write by an ordinary user clears.

use std::os::fd::AsFd;

use gangplank_fuse::{CopyFileRangeIn, FallocateIn, OpenIn, OpenInFlags, WriteFlags};

use super::read_write::file;
use super::*;

const ROOT: NodeId = NodeId::ROOT;

#[test]
fn writing_as_an_ordinary_user_takes_set_id_bits() {
    if skipped_without_root("writing_as_an_ordinary_user_takes_set_id_bits") {
        return;
    }
    let guest = Guest::new();
    let (node, handle) = file(&guest, b"0123", libc::O_RDWR);
    let mode = || {
        std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(guest.path("file")).expect("there"))
            & 0o7777
    };
    let set = || {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o6755);
        std::fs::set_permissions(guest.path("file"), permissions).expect("set");
    };
    set();
    guest.write(node, handle, 0, b"x").expect("written");
    assert_eq!(mode(), 0o6755, "the guest's root keeps them");
    let args = WriteIn {
        fh: handle.get(),
        write_flags: WriteFlags::KILL_SUIDGID.bits(),
        ..WriteIn::default()
    };
    guest.write_with(node, &args, b"x").expect("written");
    assert_eq!(mode(), 0o755);
    set();
    let open = OpenIn {
        flags: (libc::O_WRONLY | libc::O_TRUNC).cast_unsigned(),
        open_flags: OpenInFlags::KILL_SUIDGID.bits(),
    };
    guest.fs.open(node, &open).expect("opened");
    assert_eq!(mode(), 0o755);
    set();
    guest.write(node, handle, 0, b"x").expect("written");
    assert_eq!(mode(), 0o6755, "the thread has its capability back");
}

#[test]
fn allocating_and_copying_as_an_ordinary_user_takes_set_id_bits() {
    if skipped_without_root("allocating_and_copying_as_an_ordinary_user_takes_set_id_bits") {
        return;
    }
    let guest = Guest::with(Options {
        killpriv_v2: true,
        ..Options::default()
    });
    assert!(guest.fs.state.negotiated.has(InitFlags::HANDLE_KILLPRIV_V2));
    let (node, handle) = file(&guest, b"0123", libc::O_RDWR);
    std::fs::write(guest.path("source"), b"source").expect("written");
    let source = guest.find(ROOT, c"source");
    let from = guest.open(source, libc::O_RDONLY).expect("opened");
    let path = guest.path("file");
    let set = || {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o6755);
        std::fs::set_permissions(&path, permissions).expect("set");
    };
    let mode =
        || std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).expect("there")) & 0o7777;
    let allocate = FallocateIn {
        fh: handle.get(),
        length: 4096,
        ..FallocateIn::default()
    };
    let copy = CopyFileRangeIn {
        fh_in: from.get(),
        nodeid_out: node.get(),
        fh_out: handle.get(),
        len: 6,
        ..CopyFileRangeIn::default()
    };
    // Not each file system clears the bits at an allocation; a call without the capability shows
    // whether this one does.
    set();
    let local = File::options().write(true).open(&path).expect("opened");
    crate::passthrough::credentials::without_set_id(|| {
        crate::sys::file_content::allocate(local.as_fd(), 0, 0, 4096)
    })
    .expect("allocated");
    let allocated = mode();
    let user = Caller {
        uid: GuestUid::new(1000),
        gid: GuestGid::new(1000),
        pid: 1,
    };
    // Nobody knows of this one that it may not keep the bits.
    let unknown = Caller {
        uid: GuestUid::UNKNOWN,
        gid: GuestGid::new(u32::MAX),
        pid: 1,
    };
    for (caller, allocated, copied) in [
        (user, allocated, 0o755),
        (ROOT_USER, 0o6755, 0o6755),
        (unknown, 0o6755, 0o6755),
    ] {
        set();
        guest
            .fs
            .fallocate(caller, node, &allocate)
            .expect("allocated");
        assert_eq!(mode(), allocated, "{caller:?} allocates");
        set();
        let count = guest.fs.copy_file_range(caller, source, &copy);
        assert_eq!(count.expect("copied"), 6);
        assert_eq!(mode(), copied, "{caller:?} copies");
    }
}
