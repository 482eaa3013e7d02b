//! What a guest sees of an operation: everything but numbers and times that differ from run to run.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use gangplank_fuse::dir::{Direntplusses, Dirents};
use gangplank_fuse::{Attr, EntryOut, Handle, NodeId, Opcode, OpenOut, reply};
use gangplank_tests::driver::{Error, NodeAndFile};

use super::world::World;

/// Describes the reply to an operation, and remembers what the guest got by it.
pub(super) fn describe(
    world: &mut World,
    (opcode, node): (Opcode, NodeId),
    answer: std::result::Result<Vec<u8>, Error>,
) -> Result<String> {
    let payload = match answer {
        Ok(payload) => payload,
        Err(Error::Errno(errno)) => return Ok(format!("{errno:?}")),
        Err(error) => bail!(error),
    };
    Ok(match opcode {
        Opcode::Lookup | Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Link => {
            entry(world, &reply::decode_entry(&payload)?)?
        }
        Opcode::Create | Opcode::Tmpfile => {
            let (made, opened) = reply::decode_create(&payload)?;
            let entry = entry(world, &made)?;
            let node = NodeId::new(made.nodeid);
            format!("{entry}, {}", open_file(world, node, &opened)?)
        }
        Opcode::Open => open_file(world, node, &reply::decode_open(&payload)?)?,
        Opcode::Opendir => {
            let opened = reply::decode_open(&payload)?;
            let file = Handle::new(opened.fh);
            world.directories.push(NodeAndFile { node, file });
            let (names, _) = world.guest.readdir(node, file, 0, 4096)?;
            format!("{:x}, {}", opened.open_flags, sorted(names))
        }
        Opcode::Getattr | Opcode::Setattr => attributes(&reply::decode_attr(&payload)?.attr),
        Opcode::Statx => {
            let stat = reply::decode_statx(&payload)?.stat;
            format!("{:o}, {} bytes, {} links", stat.mode, stat.size, stat.nlink)
        }
        Opcode::Statfs => format!("{}", reply::decode_statfs(&payload)?.st.bsize),
        Opcode::Readdir => {
            let names = Dirents::new(&payload);
            let names: Result<Vec<_>, _> = names
                .map(|entry| entry.map(|entry| entry.name.to_vec()))
                .collect();
            sorted(names?)
        }
        Opcode::Readdirplus => {
            let mut names = Vec::new();
            for found in Direntplusses::new(&payload) {
                let found = found?;
                names.push(found.name.to_vec());
                if found.entry_out.nodeid != 0 {
                    entry(world, &found.entry_out)?;
                }
            }
            sorted(names)
        }
        Opcode::Init => {
            // The session has begun anew.
            world.known.clear();
            world.files.clear();
            world.directories.clear();
            format!("{:?}", reply::decode_init(&payload)?)
        }
        _ => format!("{:?}", String::from_utf8_lossy(&payload)),
    })
}

/// The node works.
fn entry(world: &mut World, entry: &EntryOut) -> Result<String> {
    let node = world.learn(entry.nodeid);
    if node == NodeId::default() {
        return Ok("nothing".to_owned());
    }
    let now = world.guest.getattr(node, None)?;
    Ok(format!(
        "{}, now {}",
        attributes(&entry.attr),
        attributes(&now.attr)
    ))
}

/// The open file works.
fn open_file(world: &mut World, node: NodeId, opened: &OpenOut) -> Result<String> {
    let file = Handle::new(opened.fh);
    let opened_file = NodeAndFile { node, file };
    world.files.push(opened_file);
    let mut text = format!("{:x}", opened.open_flags);
    for result in [
        world
            .guest
            .write(opened_file, 0, b"written")
            .map(|len| len.to_string()),
        world
            .guest
            .read(opened_file, 0, 100)
            .map(|read| format!("{read:?}")),
    ] {
        match result {
            Ok(told) => write!(text, ", {told}")?,
            Err(Error::Errno(errno)) => write!(text, ", {errno:?}")?,
            Err(error) => bail!(error),
        }
    }
    Ok(text)
}

fn attributes(attr: &Attr) -> String {
    let Attr {
        mode,
        nlink,
        size,
        uid,
        gid,
        ..
    } = *attr;
    format!("{mode:o}, {nlink} links, {size} bytes, {uid}:{gid}")
}

fn sorted(mut names: Vec<Vec<u8>>) -> String {
    names.sort();
    let names = names.iter().map(|name| String::from_utf8_lossy(name));
    names.collect::<Vec<_>>().join(" ")
}
