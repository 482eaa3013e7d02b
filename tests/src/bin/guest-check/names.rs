//! Names: the flags of `renameat2`, files without a name, files that lost it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, StatxFlags, linkat, open, renameat_with, statx,
};
use rustix::io::Errno;

use crate::{pattern, same};

/// `RENAME_NOREPLACE` refuses an existing target and renames onto a free name.
pub(crate) fn rename_noreplace_keeps_the_target(dir: &Path) -> Result<()> {
    let (one, other, free) = (dir.join("one"), dir.join("other"), dir.join("free"));
    fs::write(&one, "one")?;
    fs::write(&other, "other")?;
    let refused = renameat_with(CWD, &one, CWD, &other, RenameFlags::NOREPLACE);
    ensure!(refused == Err(Errno::EXIST), "onto a file: {refused:?}");
    same("the target", &fs::read(&other)?, b"other")?;
    renameat_with(CWD, &one, CWD, &free, RenameFlags::NOREPLACE).context("onto a free name")?;
    ensure!(!one.exists(), "the old name is still there");
    same("the renamed file", &fs::read(&free)?, b"one")
}

/// `RENAME_EXCHANGE` swaps a file and a directory.
pub(crate) fn rename_exchange_swaps(dir: &Path) -> Result<()> {
    let (file, directory) = (dir.join("file"), dir.join("directory"));
    fs::write(&file, "content")?;
    fs::create_dir(&directory)?;
    fs::write(directory.join("inner"), "inner")?;
    renameat_with(CWD, &file, CWD, &directory, RenameFlags::EXCHANGE).context("exchange")?;
    same("what was the directory", &fs::read(&directory)?, b"content")?;
    same(
        "inside what was the file",
        &fs::read(file.join("inner"))?,
        b"inner",
    )
}

/// `RENAME_WHITEOUT` leaves a character device 0:0 under the old name.
pub(crate) fn rename_whiteout_leaves_a_device(dir: &Path) -> Result<()> {
    let (old, new) = (dir.join("old"), dir.join("new"));
    fs::write(&old, "content")?;
    renameat_with(CWD, &old, CWD, &new, RenameFlags::WHITEOUT).context("rename")?;
    let left = fs::symlink_metadata(&old).context("the old name")?;
    ensure!(
        left.file_type().is_char_device() && left.rdev() == 0,
        "the old name is {:?}, device {}",
        left.file_type(),
        left.rdev()
    );
    same("the renamed file", &fs::read(&new)?, b"content")
}

/// A file made by `O_TMPFILE` holds data without a name and gets one from `linkat`.
pub(crate) fn tmpfile_appears_when_linked(dir: &Path) -> Result<()> {
    let bytes = pattern(70_001, 3);
    let file = open(dir, OFlags::TMPFILE | OFlags::RDWR, Mode::from(0o640)).context("O_TMPFILE")?;
    let mut file = File::from(file);
    file.write_all(&bytes)?;
    ensure!(fs::read_dir(dir)?.next().is_none(), "it has a name already");
    let name = dir.join("named");
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, source, CWD, &name, AtFlags::SYMLINK_FOLLOW).context("linkat")?;
    same("the linked file", &fs::read(&name)?, &bytes)
}

/// A file whose last name is gone is written, read and measured through its descriptor.
pub(crate) fn unlinked_file_stays_usable(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    file.write_all(b"before")?;
    fs::remove_file(&path)?;
    file.write_all(b" and after")?;
    file.set_len(12)?;
    let metadata = file.metadata().context("fstat")?;
    ensure!(
        (metadata.nlink(), metadata.len()) == (0, 12),
        "{} links, {} bytes",
        metadata.nlink(),
        metadata.len()
    );
    file.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    same("the nameless file", &text, b"before and a")
}

/// `statx` reports a birth time, no later than the first modification.
pub(crate) fn birth_time_is_told(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    fs::write(&path, "x")?;
    let told = statx(CWD, &path, AtFlags::empty(), StatxFlags::ALL)?;
    if told.stx_mask & StatxFlags::BTIME.bits() == 0 {
        bail!("no birth time in the mask {:#x}", told.stx_mask);
    }
    let birth = (told.stx_btime.tv_sec, told.stx_btime.tv_nsec);
    let change = (told.stx_ctime.tv_sec, told.stx_ctime.tv_nsec);
    ensure!(
        birth.0 > 0 && birth <= change,
        "born {birth:?}, changed {change:?}"
    );
    Ok(())
}
