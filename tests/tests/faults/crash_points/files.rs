//! Steps of a random sequence on files that are open: see `mix.rs`.

use std::ffi::CStr;

use anyhow::{Result, bail};
use gangplank_fuse::{CopyFileRangeIn, CreateIn, FallocateIn, Handle, NodeId, Operation, reply};
use gangplank_tests::driver::{Error, NodeAndFile};
use rustix::fs::OFlags;

use super::mix::find;
use super::world::World;

/// Opens the regular file of this name, if the name is that of one.
fn open(world: &mut World, name: &CStr) -> Result<Option<NodeAndFile>> {
    let Some((node, libc::S_IFREG)) = find(world, name)? else {
        return Ok(None);
    };
    let file = world.guest.open(node, OFlags::RDWR)?;
    Ok(Some(NodeAndFile { node, file }))
}

/// Writes to an open file, and reads all of it.
fn write_and_read(world: &mut World, file: NodeAndFile, data: &[u8]) -> Result<String> {
    world.guest.write(file, 2, data)?;
    let read = world.guest.read(file, 0, 4096)?;
    world.guest.release(file)?;
    Ok(format!("{:?}", String::from_utf8_lossy(&read)))
}

/// Makes a file without a name, writes to it and reads it.
pub(super) fn without_a_name(world: &mut World, data: &[u8]) -> Result<String> {
    let args = CreateIn {
        flags: (OFlags::RDWR | OFlags::LARGEFILE).bits(),
        mode: libc::S_IFREG | 0o600,
        ..CreateIn::default()
    };
    let operation = Operation::Tmpfile { args, name: c"/" };
    let made = world.guest.call(world.root, operation, &[], 512)?;
    let (made, opened) = reply::decode_create(&made)?;
    world.learn(made.nodeid);
    let file = NodeAndFile {
        node: NodeId::new(made.nodeid),
        file: Handle::new(opened.fh),
    };
    write_and_read(world, file, data)
}

/// Removes a file that is open, writes to it and reads it.
pub(super) fn remove_open(world: &mut World, name: &CStr, data: &[u8]) -> Result<String> {
    let Some(file) = open(world, name)? else {
        return Ok(String::new());
    };
    world.guest.unlink(world.root, name)?;
    write_and_read(world, file, data)
}

/// Makes a file longer.
pub(super) fn fallocate(world: &mut World, name: &CStr) -> Result<()> {
    let Some(file) = open(world, name)? else {
        return Ok(());
    };
    let args = FallocateIn {
        fh: file.file.get(),
        offset: 20,
        length: 100,
        ..FallocateIn::default()
    };
    let operation = Operation::Fallocate(args);
    world.guest.call(file.node, operation, &[], 512)?;
    Ok(world.guest.release(file)?)
}

/// What a program sees of a request without a result.
fn outcome<T>(result: gangplank_tests::driver::Result<T>) -> Result<String> {
    match result {
        Ok(_) => Ok("done".to_owned()),
        Err(Error::Errno(errno)) => Ok(format!("{errno:?}")),
        Err(error) => bail!(error),
    }
}

/// Copies a part of a file into another one, or into itself if both names are its own.
pub(super) fn copy(world: &mut World, from: &CStr, to: &CStr) -> Result<String> {
    let mut seen = String::new();
    let Some(from) = open(world, from)? else {
        return Ok(seen);
    };
    if let Some(to) = open(world, to)? {
        let args = CopyFileRangeIn {
            fh_in: from.file.get(),
            nodeid_out: to.node.get(),
            fh_out: to.file.get(),
            off_out: 3,
            len: 5,
            ..CopyFileRangeIn::default()
        };
        let operation = Operation::CopyFileRange(args);
        seen = outcome(world.guest.call(from.node, operation, &[], 512))?;
        world.guest.release(to)?;
    }
    world.guest.release(from)?;
    Ok(seen)
}

/// Two owners want the same lock. The second one gets it when the first has given it back.
pub(super) fn lock(world: &mut World, name: &CStr) -> Result<String> {
    let Some(file) = open(world, name)? else {
        return Ok(String::new());
    };
    let steps = [
        (1, libc::F_WRLCK),
        (2, libc::F_WRLCK),
        (1, libc::F_UNLCK),
        (2, libc::F_WRLCK),
        (2, libc::F_UNLCK),
    ];
    let mut seen = Vec::new();
    for (owner, kind) in steps {
        let locked = world.guest.setlk(file, owner, kind.cast_unsigned());
        seen.push(outcome(locked)?);
    }
    world.guest.release(file)?;
    Ok(seen.join(", "))
}
