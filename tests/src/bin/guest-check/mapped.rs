//! Files mapped into memory.
#![allow(unsafe_code, reason = "mapping files is what is checked here")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::{pattern, same};

/// Not a multiple of any page size, so that the last page is partly beyond the end.
const LENGTH: usize = 300_123;

/// A mapping of a whole file, unmapped when dropped.
struct Mapping {
    start: *mut std::ffi::c_void,
    length: usize,
}

impl Mapping {
    fn of(file: &File, length: usize, flags: MapFlags) -> Result<Self> {
        // SAFETY: a null hint lets the kernel choose unused addresses, so no memory of this
        // program is replaced.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file,
                0,
            )
        }
        .context("mmap")?;
        Ok(Self { start, length })
    }

    fn load(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        // SAFETY: the mapping is `length` bytes long, the file is not truncated while it lives,
        // and the vector is separate memory of the same length.
        unsafe {
            ptr::copy_nonoverlapping(self.start.cast::<u8>(), bytes.as_mut_ptr(), self.length)
        };
        bytes
    }

    fn store(&self, bytes: &[u8]) {
        let length = bytes.len().min(self.length);
        // SAFETY: as for `load`, in the other direction, and no longer than either side.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.cast::<u8>(), length) };
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: the range is exactly the live mapping.
        unsafe { msync(self.start, self.length, MsyncFlags::SYNC) }.context("msync")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the live mapping, and nothing refers to it after this.
        let unmapped = unsafe { munmap(self.start, self.length) };
        // Only a wrong range could fail, and it is right by construction.
        debug_assert!(unmapped.is_ok());
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// What is stored into a shared mapping and synced is what `read` finds in the file.
pub(crate) fn writes_reach_the_file(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let file = open(&path)?;
    file.set_len(LENGTH as u64)?;
    let bytes = pattern(LENGTH, 7);
    {
        let mapping = Mapping::of(&file, LENGTH, MapFlags::SHARED)?;
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
    let mapping = Mapping::of(&file, LENGTH, MapFlags::SHARED)?;
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
    let mapping = Mapping::of(&open(&path)?, LENGTH, MapFlags::PRIVATE)?;
    let other = pattern(LENGTH, 19);
    mapping.store(&other);
    same("the private mapping itself", &mapping.load(), &other)?;
    same("the file behind it", &fs::read(&path)?, &bytes)
}
