//! The kernel kills the worker for lack of memory.

use std::ffi::CString;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::cgroup::Cgroup;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, Setup};

use super::{MANY, REPLACING};

/// Kills for lack of memory.
const KILLS: u64 = 6;

/// What a worker may take: less than its next work needs.
const MEMORY: u64 = 64 << 10;

/// Makes a file, writes to it and reads it.
fn work(guest: &mut Driver, number: usize) -> Result<()> {
    let name = CString::new(format!("file-{number}"))?;
    let made = guest.create(NodeId::ROOT, &name, 0o644)?;
    let data = number.to_string().repeat(1000);
    guest.write(made, 0, data.as_bytes())?;
    let read = guest.read(made, 0, u32::try_from(data.len())?)?;
    ensure!(read == data.as_bytes(), "{name:?} has other data");
    Ok(guest.release(made)?)
}

#[test]
fn a_worker_that_the_kernel_kills_for_lack_of_memory_is_replaced() -> Result<()> {
    let Some(group) = Cgroup::of_memory(MEMORY) else {
        eprintln!("skipped: no control group of memory can be made here");
        return Ok(());
    };
    let fixture = Fixture::quiet(&[MANY])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let mut files = 0;
    while group.kills()? < KILLS {
        let known = group.kills()?;
        let deadline = Instant::now() + REPLACING;
        if let Ok(worker) = fixture.last_worker() {
            // It may have died meanwhile.
            let _ = group.add(worker);
        }
        // Workers that live briefly are replaced with a delay.
        thread::sleep(Duration::from_millis(110));
        while group.kills()? == known {
            work(&mut guest, files).with_context(|| fixture.log())?;
            files += 1;
            ensure!(Instant::now() < deadline, "the worker needs no memory");
        }
    }
    work(&mut guest, files)?;
    for number in 0..=files {
        let data = std::fs::read_to_string(fixture.share().join(format!("file-{number}")))?;
        ensure!(data == number.to_string().repeat(1000), "file {number}");
    }
    eprintln!("{KILLS} kills, {files} files");
    drop(guest);
    fixture.wait_until_idle()
}
