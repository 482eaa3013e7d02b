//! A driver and a guest that behave unexpectedly.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use super::Test;
use crate::bao::abi::{READ, WRITE};
use crate::bao::guest::{LIMIT, WINDOW, register};
use crate::bao::work;

/// The device model repeats a wait that a signal interrupts in the real driver, which returns an
/// odd errno then.
pub(super) fn wait_that_ends_without_an_access_is_begun_again(test: &Test) -> Result<()> {
    let errno = test.setup.abi.interrupted();
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let (cpu, device) = (fixture.cpu(0)?, fixture.device(0)?);
        // First without an access, then during one.
        for errno in [errno, Errno::INTR, errno] {
            device.until_attached(LIMIT)?;
            device.fail_attach(errno);
        }
        let (mut guest, _) = cpu.probe()?;
        guest.init().context("INIT")?;
        for round in 0..5 {
            device.fail_attach(errno);
            cpu.get(register::STATUS)?;
            work::with_files(&mut guest, &fixture.share(0), round)?;
        }
        fixture.finish(frontend)
    })
}

/// The device model does not repeat a completion that the hypervisor refuses, and takes the next
/// access.
pub(super) fn refused_completion_is_not_repeated_and_ends_nothing(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let (cpu, device) = (fixture.cpu(0)?, fixture.device(0)?);
        let (mut guest, _) = cpu.probe()?;
        guest.init().context("INIT")?;
        for (round, errno) in [Errno::PERM, Errno::SRCH, Errno::NOENT]
            .into_iter()
            .enumerate()
        {
            for _ in 0..3 {
                device.fail_complete(errno);
                let magic = cpu.get(register::MAGIC_VALUE)?;
                ensure!(magic == 0x7472_6976, "magic value {magic:#x}");
            }
            work::with_files(&mut guest, &fixture.share(0), round)?;
        }
        fixture.finish(frontend)
    })
}

/// Whatever a guest does in its window, and whatever the hypervisor makes of it, the access is
/// completed and the guest continues.
pub(super) fn access_that_makes_no_sense_is_completed(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let (cpu, device) = (fixture.cpu(0)?, fixture.device(0)?);
        let (mut guest, _) = cpu.probe()?;
        let before = cpu.get(register::STATUS)?;
        for width in [0, 1, 2, 3, 8, 16, u64::MAX] {
            for offset in [0x000, 0x002, 0x070, 0x0fc, 0x1fc] {
                let answer = device.access(WINDOW + offset, width, READ, 0, LIMIT)?;
                ensure!(answer == 0, "{width} bytes at {offset:#x} read {answer:#x}");
                device.access(WINDOW + offset, width, WRITE, 0, LIMIT)?;
            }
        }
        for address in [0, WINDOW - 4, WINDOW + 0x200, u64::MAX - 3, u64::MAX] {
            let answer = device.access(address, 4, READ, 0, LIMIT)?;
            ensure!(answer == 0, "{address:#x}, outside, read {answer:#x}");
            device.access(address, 4, WRITE, u64::MAX, LIMIT)?;
        }
        for op in [2, 4, 77, u64::MAX] {
            device.access(WINDOW + register::STATUS, 4, op, 0, LIMIT)?;
        }
        // An unaligned access, a read of a write-only register, a write to a register that does not
        // exist.
        for offset in [0x071, 0x014, 0x0c0, 0x200 - 4] {
            let answer = device.access(WINDOW + offset, 4, READ, 0, LIMIT)?;
            ensure!(answer == 0, "{offset:#x} read {answer:#x}");
        }
        // Wider than the kernel's kicks, so the device model gets the access.
        device.access(WINDOW + register::QUEUE_NOTIFY, 8, WRITE, 1, LIMIT)?;
        ensure!(
            cpu.get(register::STATUS)? == before,
            "the status has changed"
        );
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 0)?;
        fixture.finish(frontend)
    })
}

/// Kicks of queues that do not exist, or with another width, have no effect.
pub(super) fn stray_kick_is_nobodys(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?;
        let kick = |width, queue| cpu.store(register::QUEUE_NOTIFY, width, queue);
        fixture.device(0)?.until_attached(LIMIT)?;
        for queue in [0, 1, 2, 1000, u64::MAX] {
            kick(4, queue)?; // before there is a driver
        }
        let (mut guest, _) = cpu.probe()?;
        guest.init().context("INIT")?;
        thread::scope(|scope| {
            let kicking = scope.spawn(|| -> Result<()> {
                for round in 0..200 {
                    kick([1, 2, 4][round % 3], [0, 1, 7, 1 << 32][round % 4])?;
                    thread::sleep(Duration::from_micros(200));
                }
                Ok(())
            });
            for round in 0..5 {
                work::with_files(&mut guest, &fixture.share(0), round)?;
            }
            kicking
                .join()
                .map_err(|_| anyhow::anyhow!("a CPU panicked"))?
        })?;
        fixture.finish(frontend)
    })
}
