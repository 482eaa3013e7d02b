//! Common work on files, checked in the guest and on the host.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use rustix::fs::OFlags;

use super::guest::Guest;
use crate::driver::NodeAndFile;

/// Bytes of a write: less than any daemon's largest message.
const BLOCK: usize = 64 << 10;

/// Bytes of a file: several blocks and a rest.
const LENGTH: usize = 3 * BLOCK + 1234;

/// Bytes that differ from file to file and from block to block.
fn content(seed: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at / 7 + at * 31 + seed * 13) % 251).unwrap_or_default();
    (0..LENGTH).map(byte).collect()
}

fn name(text: &str) -> Result<CString> {
    Ok(CString::new(text)?)
}

/// Makes a directory and a file in it, writes it, reads it back, renames it, lists the directory,
/// and removes both, in the share `host`. `seed` makes names and contents unique. Each step is
/// checked on the host.
///
/// # Errors
/// Anything is not as it was made.
pub fn with_files(guest: &mut Guest, host: &Path, seed: usize) -> Result<()> {
    let (directory, first, second) = (format!("directory-{seed}"), "file", "renamed");
    let node = NodeId::new(
        guest
            .mkdir(NodeId::ROOT, &name(&directory)?)
            .context("MKDIR")?
            .nodeid,
    );
    let fixture = host.join(&directory);
    ensure!(fixture.is_dir(), "{} is no directory", fixture.display());

    let data = content(seed);
    let file = guest.create(node, &name(first)?, 0o640).context("CREATE")?;
    write(guest, file, &data)?;
    ensure!(
        fs::read(fixture.join(first))? == data,
        "the host reads something else than was written"
    );
    ensure!(
        read(guest, file)? == data,
        "the guest reads something else than it has written"
    );
    guest.release(file).context("RELEASE")?;

    guest
        .rename((node, &name(first)?), (node, &name(second)?), 0)
        .context("RENAME2")?;
    let found = guest.lookup(node, &name(second)?).context("LOOKUP")?;
    ensure!(
        found.nodeid == file.node.get(),
        "the renamed file is another"
    );
    ensure!(
        found.attr.size == LENGTH as u64,
        "{} bytes",
        found.attr.size
    );
    ensure!(
        !fixture.join(first).exists() && fixture.join(second).exists(),
        "not renamed on the host"
    );

    fs::write(fixture.join("by the host"), b"from outside")?;
    let handle = guest.opendir(node).context("OPENDIR")?;
    let (mut names, _) = guest.readdir(node, handle, 0, 4096).context("READDIR")?;
    names.sort();
    let expected: [&[u8]; 4] = [b".", b"..", b"by the host", second.as_bytes()];
    ensure!(names == expected, "listed {names:?}");
    guest.releasedir(node, handle).context("RELEASEDIR")?;
    let theirs = guest.lookup(node, c"by the host").context("LOOKUP")?;
    let theirs = NodeId::new(theirs.nodeid);
    let opened = NodeAndFile {
        node: theirs,
        file: guest.open(theirs, OFlags::RDONLY).context("OPEN")?,
    };
    ensure!(
        guest.read(opened, 0, 100)? == b"from outside",
        "the host's file reads otherwise"
    );
    guest.release(opened).context("RELEASE")?;

    guest.unlink(node, c"by the host").context("UNLINK")?;
    guest.unlink(node, &name(second)?).context("UNLINK")?;
    guest
        .rmdir(NodeId::ROOT, &name(&directory)?)
        .context("RMDIR")?;
    ensure!(!fixture.exists(), "{} is still there", fixture.display());
    for (node, count) in [(file.node, 2), (theirs, 1), (node, 1)] {
        guest.forget(node, count).context("FORGET")?;
    }
    Ok(())
}

fn write(guest: &mut Guest, file: NodeAndFile, data: &[u8]) -> Result<()> {
    let mut offset = 0;
    for block in data.chunks(BLOCK) {
        let written = guest.write(file, offset, block).context("WRITE")?;
        ensure!(
            usize::try_from(written)? == block.len(),
            "{written} bytes written"
        );
        offset += u64::from(written);
    }
    Ok(())
}

fn read(guest: &mut Guest, file: NodeAndFile) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let block = guest
            .read(file, data.len() as u64, u32::try_from(BLOCK)?)
            .context("READ")?;
        if block.is_empty() {
            return Ok(data);
        }
        data.extend(block);
    }
}
