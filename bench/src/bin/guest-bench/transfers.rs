//! Workloads on one file's data.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

use anyhow::{Result, ensure};

use crate::work_dir::WorkDir;
use crate::workload::{Measured, timed};

/// Size of the large file, in MiB.
const FILE_MIB: u32 = 64;

/// The name of the large file, for fio as well.
pub(crate) const FILE: &str = "data";

/// Makes the large file.
pub(crate) fn make_file(dir: &WorkDir) -> Result<()> {
    write(dir)?;
    Ok(())
}

/// The large file's size in MiB.
pub(crate) fn file_mib(dir: &WorkDir) -> u32 {
    dir.scaled(FILE_MIB)
}

fn write(dir: &WorkDir) -> Result<u64> {
    let block = vec![0x5a_u8; 1 << 20];
    let mut file = File::create(dir.path(FILE))?;
    for _ in 0..file_mib(dir) {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(u64::from(file_mib(dir)) << 20)
}

/// Writes the file in pieces of 1 MiB, and syncs it.
pub(crate) fn sequential_write(dir: &WorkDir) -> Result<Measured> {
    timed(|| write(dir))
}

/// Reads the file in pieces of 128 KiB.
pub(crate) fn sequential_read(dir: &WorkDir) -> Result<Measured> {
    let mut block = vec![0; 128 << 10];
    timed(|| {
        let mut file = File::open(dir.path(FILE))?;
        let mut bytes = 0;
        loop {
            match file.read(&mut block)? {
                0 => break,
                read => bytes += u64::try_from(read)?,
            }
        }
        ensure!(bytes == u64::from(file_mib(dir)) << 20, "{bytes} bytes");
        Ok(bytes)
    })
}

/// Appends 4 KiB at a time, as a program that writes a log.
pub(crate) fn append(dir: &WorkDir) -> Result<Measured> {
    let writes = dir.scaled(4096);
    timed(|| {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(dir.path("log"))?;
        for _ in 0..writes {
            file.write_all(&[b'l'; 4096])?;
        }
        Ok(writes.into())
    })
}

/// Writes a little and calls fsync, as a database does.
pub(crate) fn fsync(dir: &WorkDir) -> Result<Measured> {
    let calls = dir.scaled(200);
    timed(|| {
        let mut file = File::create(dir.path("journal"))?;
        for _ in 0..calls {
            file.write_all(&[b'j'; 512])?;
            file.sync_data()?;
        }
        Ok(calls.into())
    })
}
