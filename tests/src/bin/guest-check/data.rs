//! File content: copies, appends, vectors, lengths; and extended attributes.

use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, copy_file_range, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::{pattern, same};

/// `copy_file_range` copies from the middle of one file to the middle of another.
pub(crate) fn copy_range_copies(dir: &Path) -> Result<()> {
    let bytes = pattern(500_000, 37);
    fs::write(dir.join("from"), &bytes)?;
    fs::write(dir.join("to"), vec![b'.'; 1000])?;
    let from = File::open(dir.join("from"))?;
    let to = File::options().write(true).open(dir.join("to"))?;
    let (mut read_at, mut write_at) = (100_u64, 1000_u64);
    let mut left = 400_000;
    while left > 0 {
        let copied = copy_file_range(&from, Some(&mut read_at), &to, Some(&mut write_at), left)?;
        ensure!(copied > 0, "nothing copied with {left} bytes left");
        left -= copied;
    }
    drop(to);
    let mut expected = vec![b'.'; 1000];
    expected.extend_from_slice(bytes.get(100..400_100).unwrap_or_default());
    same("the copy", &fs::read(dir.join("to"))?, &expected)
}

/// Two descriptors that append take turns without losing a line.
pub(crate) fn appends_never_overwrite(dir: &Path) -> Result<()> {
    let path = dir.join("log");
    let open = || File::options().append(true).create(true).open(&path);
    let (mut one, mut other) = (open()?, open()?);
    let mut expected = Vec::new();
    for round in 0..200 {
        let line = format!("line {round} of the log\n");
        let file = if round % 2 == 0 { &mut one } else { &mut other };
        file.write_all(line.as_bytes())?;
        expected.extend_from_slice(line.as_bytes());
    }
    same("the log", &fs::read(&path)?, &expected)
}

/// A vectored write puts its pieces one after the other.
pub(crate) fn vectored_transfers_keep_order(dir: &Path) -> Result<()> {
    let pieces: Vec<Vec<u8>> = (1..60).map(|n| pattern(n * 97, 41)).collect();
    let mut file = File::create(dir.join("file"))?;
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let total: usize = pieces.iter().map(Vec::len).sum();
    let written = file.write_vectored(&slices)?;
    ensure!(written == total, "wrote {written} of {total} bytes at once");
    same("the file", &fs::read(dir.join("file"))?, &pieces.concat())
}

/// Truncating a file and extending it again leaves zeros.
pub(crate) fn truncate_cuts_and_zero_fills(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let mut bytes = pattern(100_000, 43);
    fs::write(&path, &bytes)?;
    let mut file = File::options().read(true).write(true).open(&path)?;
    file.set_len(5_001)?;
    file.set_len(90_000)?;
    bytes.truncate(5_001);
    bytes.resize(90_000, 0);
    let mut found = Vec::new();
    file.read_to_end(&mut found)?;
    same("the file", &found, &bytes)
}

/// An extended attribute is stored, listed, refused a second creation, and removed.
pub(crate) fn xattrs_come_back(dir: &Path) -> Result<()> {
    const NAME: &str = "user.gangplank";
    let path = dir.join("file");
    fs::write(&path, "x")?;
    let value = pattern(600, 47);
    setxattr(&path, NAME, &value, XattrFlags::CREATE).context("setxattr")?;
    let again = setxattr(&path, NAME, &value, XattrFlags::CREATE);
    ensure!(again == Err(Errno::EXIST), "created twice: {again:?}");
    let mut buffer = vec![0_u8; 4096];
    let length = getxattr(&path, NAME, &mut buffer).context("getxattr")?;
    same(
        "the value",
        buffer.get(..length).unwrap_or_default(),
        &value,
    )?;
    let mut list = vec![0_u8; 4096];
    let length = listxattr(&path, &mut list).context("listxattr")?;
    let listed = list
        .get(..length)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .any(|name| name == NAME.as_bytes());
    ensure!(listed, "the list lacks it");
    removexattr(&path, NAME).context("removexattr")?;
    let gone = getxattr(&path, NAME, &mut buffer);
    ensure!(gone == Err(Errno::NODATA), "after removal: {gone:?}");
    Ok(())
}
