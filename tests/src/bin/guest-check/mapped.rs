//! Files mapped into memory.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use gangplank_tests::mapping::Mapping;

use crate::{pattern, same};

/// Not a multiple of any page size, so that the last page is partly beyond the end.
const LENGTH: usize = 300_123;

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Data stored into a shared mapping and synced is what `read` returns.
pub(crate) fn writes_reach_the_file(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let file = open(&path)?;
    file.set_len(LENGTH as u64)?;
    let bytes = pattern(LENGTH, 7);
    {
        let mapping = Mapping::shared(&file, LENGTH)?;
        mapping.store(&bytes);
        mapping.sync()?;
    }
    drop(file);
    same("file after msync", &fs::read(&path)?, &bytes)
}

/// A mapping made before and after a write shows the file's content both times.
pub(crate) fn reads_see_the_file(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let first = pattern(LENGTH, 11);
    fs::write(&path, &first)?;
    let file = open(&path)?;
    let mapping = Mapping::shared(&file, LENGTH)?;
    same("mapping of a written file", &mapping.load(), &first)?;
    let second = pattern(LENGTH, 13);
    file.write_all_at(&second, 0)?;
    same("mapping after another write", &mapping.load(), &second)
}

/// Stores into a private mapping never reach the file.
pub(crate) fn private_writes_stay_private(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let bytes = pattern(LENGTH, 17);
    fs::write(&path, &bytes)?;
    let mapping = Mapping::private(&open(&path)?, LENGTH)?;
    let other = pattern(LENGTH, 19);
    mapping.store(&other);
    same("the private mapping itself", &mapping.load(), &other)?;
    same("the file behind it", &fs::read(&path)?, &bytes)
}
