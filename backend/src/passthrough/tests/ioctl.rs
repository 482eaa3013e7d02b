//! Tests of IOCTL.

use gangplank_fuse::IoctlIn;

use super::*;
use crate::session::file_system::Ioctls;
use crate::sys::file_ioctl;

const ROOT: NodeId = NodeId::ROOT;

/// `FS_NODUMP_FL` and `FS_IMMUTABLE_FL`.
const NODUMP: u32 = 0x40;
const IMMUTABLE: u32 = 0x10;

struct Open {
    guest: Guest,
    node: NodeId,
    handle: Handle,
}

impl Open {
    /// A file; `None` if its file system has no flags.
    fn file() -> Option<Self> {
        let guest = Guest::new();
        let (entry, open) = guest.create(ROOT, c"file", libc::O_RDWR).expect("made");
        let file = Self {
            guest,
            node: NodeId::new(entry.nodeid),
            handle: Handle::new(open.fh),
        };
        match file.call(ROOT_USER, file_ioctl::GET_FLAGS, &[], 4) {
            Ok(_) => Some(file),
            Err(error) => {
                assert!(matches!(
                    error.raw_os_error(),
                    Some(libc::ENOTTY | libc::EOPNOTSUPP)
                ));
                eprintln!("SKIPPED: the temporary directory has no flags");
                None
            }
        }
    }

    fn call(&self, caller: Caller, cmd: u32, input: &[u8], room: usize) -> io::Result<Vec<u8>> {
        let args = IoctlIn {
            fh: self.handle.get(),
            cmd,
            in_size: u32::try_from(input.len()).expect("small"),
            out_size: u32::try_from(room).expect("small"),
            ..IoctlIn::default()
        };
        let mut output = vec![0xa5; room];
        let len = self
            .guest
            .fs
            .ioctl(caller, self.node, &args, input, &mut output)?;
        output.truncate(len);
        Ok(output)
    }
}

fn user(uid: u32) -> Caller {
    Caller {
        uid: GuestUid::new(uid),
        gid: GuestGid::new(uid),
        pid: 1,
    }
}

#[test]
fn flags_are_those_of_the_host() {
    let Some(file) = Open::file() else { return };
    let get = || {
        let flags = file
            .call(ROOT_USER, file_ioctl::GET_FLAGS, &[], 4)
            .expect("flags");
        u32::from_ne_bytes(flags.try_into().expect("four bytes"))
    };
    let before = get();
    let wanted = (before | NODUMP).to_ne_bytes();
    file.call(ROOT_USER, file_ioctl::SET_FLAGS, &wanted, 0)
        .expect("set");
    assert_eq!(get(), before | NODUMP);
    // What a program of an old guest has room for, a `long`.
    let long = file
        .call(ROOT_USER, file_ioctl::GET_FLAGS, &[], 8)
        .expect("flags");
    assert_eq!(long.get(4..), Some([0; 4].as_slice()));
    if let Ok(attributes) = file.call(ROOT_USER, file_ioctl::GET_ATTRIBUTES, &[], 28) {
        file.call(ROOT_USER, file_ioctl::SET_ATTRIBUTES, &attributes, 0)
            .expect("set to what they are");
    }
}

#[test]
fn only_root_and_the_owner_change_flags() {
    let Some(file) = Open::file() else { return };
    let flags = NODUMP.to_ne_bytes();
    let own = rustix::process::geteuid().as_raw();
    let stranger = file.call(user(own + 1), file_ioctl::SET_FLAGS, &flags, 0);
    assert_eq!(errno(stranger), Some(libc::EPERM));
    if skipped_without_root("only_root_and_the_owner_change_flags") {
        return;
    }
    std::os::unix::fs::chown(file.guest.path("file"), Some(1000), None).expect("given");
    let now = file
        .call(ROOT_USER, file_ioctl::GET_FLAGS, &[], 4)
        .expect("flags");
    let now = u32::from_ne_bytes(now.try_into().expect("four bytes"));
    file.call(
        user(1000),
        file_ioctl::SET_FLAGS,
        &(now | NODUMP).to_ne_bytes(),
        0,
    )
    .expect("the owner may");
    let immutable = (now | NODUMP | IMMUTABLE).to_ne_bytes();
    let refused = file.call(user(1000), file_ioctl::SET_FLAGS, &immutable, 0);
    assert_eq!(errno(refused), Some(libc::EPERM));
}

#[test]
fn other_commands_and_sizes_are_refused() {
    let Some(file) = Open::file() else { return };
    // TCGETS, FICLONE.
    for cmd in [0x5401, 0x4004_9409, 0] {
        assert_eq!(
            errno(file.call(ROOT_USER, cmd, &[], 64)),
            Some(libc::ENOTTY)
        );
    }
    for (cmd, input, room) in [
        (file_ioctl::GET_FLAGS, 0, 3),
        (file_ioctl::GET_ATTRIBUTES, 0, 27),
        (file_ioctl::SET_FLAGS, 3, 0),
        (file_ioctl::SET_ATTRIBUTES, 27, 0),
        (file_ioctl::SET_ATTRIBUTES, 29, 0),
    ] {
        let refused = file.call(ROOT_USER, cmd, &vec![0; input], room);
        assert_eq!(errno(refused), Some(libc::EINVAL), "{cmd:#x}");
    }
    for (cmd, room) in [
        (file_ioctl::GET_ENCRYPTION_POLICY, 9),
        (file_ioctl::MEASURE_VERITY, 36),
        (file_ioctl::MEASURE_VERITY, 0),
    ] {
        assert!(
            file.call(ROOT_USER, cmd, &[], room).is_err(),
            "neither encrypted nor sealed"
        );
    }
}

#[test]
fn read_only_shares_keep_their_flags() {
    let guest = Guest::with(Options {
        readonly: true,
        ..Options::default()
    });
    std::fs::write(guest.path("file"), b"").expect("written");
    let node = guest.find(ROOT, c"file");
    let handle = guest.open(node, libc::O_RDONLY).expect("opened");
    let args = IoctlIn {
        fh: handle.get(),
        cmd: file_ioctl::SET_FLAGS,
        in_size: 4,
        ..IoctlIn::default()
    };
    let set = guest.fs.ioctl(ROOT_USER, node, &args, &[0; 4], &mut []);
    assert_eq!(errno(set), Some(libc::EROFS));
}
