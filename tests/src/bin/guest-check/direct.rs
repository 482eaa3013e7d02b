//! Unbuffered transfers: `O_DIRECT` has to work or to be quietly buffered, never to fail.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;

use crate::{pattern, same};

/// Aligned for `O_DIRECT` on every block device and file system.
#[repr(C, align(4096))]
struct Block([u8; 65_536]);

/// Buffered reads see unbuffered writes and the other way round, for new and for existing files.
pub(crate) fn unbuffered_transfers_agree_with_buffered(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let flag = OFlags::DIRECT.bits().cast_signed();
    let mut block = Box::new(Block([0; 65_536]));
    let bytes = pattern(block.0.len(), 53);
    block.0.copy_from_slice(&bytes);

    let created = File::options()
        .write(true)
        .create_new(true)
        .custom_flags(flag)
        .open(&path)
        .context("creating with O_DIRECT")?;
    created.write_all_at(&block.0, 0).context("writing")?;
    drop(created);
    same("written directly", &fs::read(&path)?, &bytes)?;

    let other = pattern(block.0.len(), 59);
    fs::write(&path, &other)?;
    let opened = File::options()
        .read(true)
        .custom_flags(flag)
        .open(&path)
        .context("opening with O_DIRECT")?;
    block.0.fill(0);
    let length = opened.read_at(&mut block.0, 0).context("reading")?;
    ensure!(length == block.0.len(), "read {length} bytes");
    same("read directly", &block.0, &other)
}
