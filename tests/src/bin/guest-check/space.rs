//! Space: preallocation, holes, and finding them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::{pattern, same};

const MIB: u64 = 1 << 20;

fn file_of(dir: &Path, bytes: &[u8]) -> Result<File> {
    let path = dir.join("file");
    fs::write(&path, bytes)?;
    let file = File::options().read(true).write(true).open(path)?;
    file.sync_all()?;
    Ok(file)
}

/// `fallocate` extends a file, or with `KEEP_SIZE` only reserves space.
pub(crate) fn allocate_reserves_and_extends(dir: &Path) -> Result<()> {
    let file = file_of(dir, b"start")?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, MIB).context("keeping the size")?;
    let kept = file.metadata()?;
    ensure!(kept.len() == 5, "size {} after KEEP_SIZE", kept.len());
    ensure!(
        kept.blocks() * 512 >= MIB,
        "{} blocks of 512 after reserving 1 MiB",
        kept.blocks()
    );
    fallocate(&file, FallocateFlags::empty(), 0, 2 * MIB).context("extending")?;
    ensure!(file.metadata()?.len() == 2 * MIB, "not extended");
    let bytes = fs::read(dir.join("file"))?;
    same("the start", bytes.get(..5).unwrap_or_default(), b"start")?;
    ensure!(bytes.iter().skip(5).all(|byte| *byte == 0), "not zeros");
    Ok(())
}

/// A punched hole reads as zeros, keeps the size and frees space.
pub(crate) fn punched_hole_reads_as_zeros(dir: &Path) -> Result<()> {
    let mut bytes = pattern(4 << 20, 23);
    let file = file_of(dir, &bytes)?;
    let before = file.metadata()?.blocks();
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        MIB,
        2 * MIB,
    )
    .context("punching")?;
    bytes
        .iter_mut()
        .skip(1 << 20)
        .take(2 << 20)
        .for_each(|byte| *byte = 0);
    same("the punched file", &fs::read(dir.join("file"))?, &bytes)?;
    let after = file.metadata()?.blocks();
    ensure!(
        after < before,
        "{before} blocks before the punch, {after} after it"
    );
    Ok(())
}

/// `SEEK_HOLE` and `SEEK_DATA` find the parts of a sparse file.
pub(crate) fn seek_finds_data_and_holes(dir: &Path) -> Result<()> {
    let file = file_of(dir, &pattern(1 << 20, 29))?;
    file.set_len(8 * MIB)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &pattern(1 << 20, 31), 4 * MIB)?;
    file.sync_all()?;
    for (what, from, expected) in [
        ("first hole", SeekFrom::Hole(0), Ok(MIB)),
        ("next data", SeekFrom::Data(MIB), Ok(4 * MIB)),
        ("last hole", SeekFrom::Hole(4 * MIB), Ok(5 * MIB)),
        (
            "data after the last",
            SeekFrom::Data(5 * MIB),
            Err(Errno::NXIO),
        ),
    ] {
        let found = seek(&file, from);
        ensure!(found == expected, "{what}: {found:?}, not {expected:?}");
    }
    Ok(())
}
