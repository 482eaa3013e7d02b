//! Requests that are ready to be sent.

use std::ffi::CStr;

use anyhow::Result;
use gangplank_fuse::{
    CopyFileRangeIn, CreateIn, FallocateIn, FileLock, Handle, IoctlIn, LkIn, MkdirIn, MknodIn,
    NodeId, Opcode, OpenIn, Operation, ReadIn, ReleaseIn, Rename2In, SetxattrIn, WriteIn,
};
use rustix::fs::{IFlags, OFlags};

use super::world::World;

/// The data of a WRITE.
const DATA: &[u8] = b"one line\n";

/// A request that is ready to be sent.
pub(super) struct Prepared {
    pub(super) node: NodeId,
    pub(super) operation: Operation<'static>,
    pub(super) data: &'static [u8],
    /// A request that follows before this one is answered, with its node.
    pub(super) next: Option<(NodeId, Operation<'static>)>,
}

/// The queue that a kernel uses for an operation: the high-priority one, or the first other.
pub(super) fn queue_of(opcode: Opcode) -> usize {
    match opcode {
        Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt => 0,
        _ => 1,
    }
}

pub(super) fn at(node: NodeId, operation: Operation<'static>) -> Result<Prepared> {
    let data: &[u8] = match operation {
        Operation::Write(_) => DATA,
        _ => &[],
    };
    Ok(Prepared {
        node,
        operation,
        data,
        next: None,
    })
}

pub(super) fn at_root(world: &mut World, operation: Operation<'static>) -> Result<Prepared> {
    at(world.root, operation)
}

pub(super) fn at_old(world: &mut World, operation: Operation<'static>) -> Result<Prepared> {
    at(world.find(c"old")?, operation)
}

pub(super) fn mknod(kind: u32) -> Operation<'static> {
    let args = MknodIn {
        mode: kind | 0o600,
        ..MknodIn::default()
    };
    Operation::Mknod { args, name: c"new" }
}

pub(super) fn mkdir(name: &'static CStr) -> Operation<'static> {
    Operation::Mkdir {
        args: MkdirIn {
            mode: 0o700,
            umask: 0,
        },
        name,
    }
}

pub(super) fn create(name: &'static CStr, flags: OFlags) -> Operation<'static> {
    let args = CreateIn {
        flags: (flags | OFlags::CREATE | OFlags::LARGEFILE).bits(),
        mode: libc::S_IFREG | 0o640,
        ..CreateIn::default()
    };
    Operation::Create { args, name }
}

pub(super) fn rename(world: &mut World, flags: u32, new_name: &'static CStr) -> Result<Prepared> {
    let args = Rename2In {
        newdir: world.root.get(),
        flags,
        padding: 0,
    };
    at_root(
        world,
        Operation::Rename2 {
            args,
            name: c"old",
            new_name,
        },
    )
}

pub(super) fn open_in(flags: OFlags) -> OpenIn {
    OpenIn {
        flags: (flags | OFlags::LARGEFILE).bits(),
        open_flags: 0,
    }
}

pub(super) fn read_in(file: Handle) -> ReadIn {
    ReadIn {
        fh: file.get(),
        size: 4096,
        ..ReadIn::default()
    }
}

pub(super) fn release_in(file: Handle) -> ReleaseIn {
    ReleaseIn {
        fh: file.get(),
        ..ReleaseIn::default()
    }
}

pub(super) fn write(world: &mut World, flags: OFlags, offset: u64) -> Result<Prepared> {
    let opened = world.open(c"old", flags)?;
    let args = WriteIn {
        fh: opened.file.get(),
        offset,
        size: u32::try_from(DATA.len())?,
        flags: flags.bits(),
        ..WriteIn::default()
    };
    at(opened.node, Operation::Write(args))
}

pub(super) fn set_xattr(world: &mut World, flags: i32, name: &'static CStr) -> Result<Prepared> {
    let args = SetxattrIn {
        size: 7,
        flags: flags.cast_unsigned(),
        ..SetxattrIn::default()
    };
    at_old(
        world,
        Operation::Setxattr {
            args,
            name,
            value: b"another",
        },
    )
}

pub(super) fn lock(file: Handle, owner: u64) -> LkIn {
    lock_of_type(libc::F_WRLCK, file, owner)
}

pub(super) fn unlock(file: Handle, owner: u64) -> LkIn {
    lock_of_type(libc::F_UNLCK, file, owner)
}

fn lock_of_type(kind: i32, file: Handle, owner: u64) -> LkIn {
    let lk = FileLock {
        start: 0,
        end: 9,
        r#type: kind.cast_unsigned(),
        pid: 1,
    };
    LkIn {
        fh: file.get(),
        owner,
        lk,
        ..LkIn::default()
    }
}

/// `FS_IOC_SETFLAGS` (`include/uapi/linux/fs.h`), with one flag more than the file has.
pub(super) fn set_flags(world: &mut World) -> Result<Prepared> {
    const SET_FLAGS: u32 = 0x4008_6602;
    let file = std::fs::File::open(world.path("old"))?;
    let flags = rustix::fs::ioctl_getflags(&file)? | IFlags::NODUMP;
    let opened = world.open(c"old", OFlags::RDWR)?;
    let args = IoctlIn {
        fh: opened.file.get(),
        cmd: SET_FLAGS,
        in_size: 4,
        ..IoctlIn::default()
    };
    Ok(Prepared {
        node: opened.node,
        operation: Operation::Ioctl(args),
        data: flags.bits().to_ne_bytes().to_vec().leak(),
        next: None,
    })
}

pub(super) fn copy(world: &mut World) -> Result<(NodeId, CopyFileRangeIn)> {
    let (from, to) = (
        world.open(c"old", OFlags::RDWR)?,
        world.open(c"other", OFlags::RDWR)?,
    );
    let args = CopyFileRangeIn {
        fh_in: from.file.get(),
        nodeid_out: to.node.get(),
        fh_out: to.file.get(),
        off_out: 5,
        len: 3,
        ..CopyFileRangeIn::default()
    };
    Ok((from.node, args))
}

pub(super) fn fallocate(world: &mut World, mode: i32) -> Result<Prepared> {
    std::fs::write(world.path("old"), [1; 1 << 14])?;
    let opened = world.open(c"old", OFlags::RDWR)?;
    let args = FallocateIn {
        fh: opened.file.get(),
        offset: if mode == 0 { 1 << 14 } else { 0 },
        length: 1 << 12,
        mode: mode.cast_unsigned(),
        ..FallocateIn::default()
    };
    at(opened.node, Operation::Fallocate(args))
}
