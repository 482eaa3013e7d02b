//! Guests that reset their device at any moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{NodeId, Operation, WriteIn};

use super::Test;
use crate::bao::guest::{Cpu, Guest, register};
use crate::bao::work;
use crate::driver::memory::{GUEST_BASE, Memory};

/// Requests in flight at the reset.
const IN_FLIGHT: usize = 24;

/// Time for which the memory is watched for late writes after a reset.
const WATCH: Duration = Duration::from_millis(20);

/// The byte that fills the memory meanwhile.
const FILL: u8 = 0x5c;

/// The guest's driver unbinds with requests in flight and binds again, repeatedly, while other CPUs
/// read registers. After a reset no process writes to the guest's memory or interrupts it for older
/// requests.
pub(super) fn guest_resets_under_load_and_works_again(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?;
        let (mut guest, mut probed) = cpu.probe()?;
        let (over, looks) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| -> Result<()> {
            let others: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| look(&cpu, &over, &looks)))
                .collect();
            let worked = (0..12).try_for_each(|round| -> Result<()> {
                guest.init().context("INIT")?;
                work::with_files(&mut guest, &fixture.share(0), round)?;
                load(&mut guest, round)?;
                if round % 2 == 0 {
                    cpu.unbind(probed.queues)?;
                } else {
                    // As after a kernel that started without unbinding.
                    cpu.find()?;
                }
                untouched(&cpu)?;
                (guest, probed) = cpu.bind()?;
                Ok(())
            });
            over.store(true, Ordering::Relaxed);
            for other in others {
                other
                    .join()
                    .map_err(|_| anyhow::anyhow!("a CPU panicked"))??;
            }
            worked
        })?;
        ensure!(
            looks.load(Ordering::Relaxed) > 100,
            "the other CPUs hardly ran"
        );
        fixture.finish(frontend)
    })
}

/// Another CPU of the guest, which reads constant registers.
fn look(cpu: &Cpu, over: &AtomicBool, looks: &AtomicU64) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        let magic = cpu.get(register::MAGIC_VALUE)?;
        ensure!(magic == 0x7472_6976, "magic value {magic:#x}");
        let count = cpu.load(register::NUM_REQUEST_QUEUES, 4)?;
        ensure!(count == 1, "{count} request queues");
        looks.fetch_add(2, Ordering::Relaxed);
    }
    Ok(())
}

/// Sends slow requests, and waits for the first only.
fn load(guest: &mut Guest, round: usize) -> Result<()> {
    let name = std::ffi::CString::new(format!("load-{round}"))?;
    let file = guest.create(NodeId::ROOT, &name, 0o600).context("CREATE")?;
    let data = vec![1; 128 << 10];
    let mut first = None;
    for at in 0..IN_FLIGHT {
        let operation = Operation::Write(WriteIn {
            fh: file.file.get(),
            offset: (at * data.len()) as u64,
            size: u32::try_from(data.len())?,
            ..WriteIn::default()
        });
        let ticket = guest.submit(1, file.node, operation, &data, 512)?;
        first.get_or_insert(ticket);
    }
    guest
        .finish(first.context("nothing sent")?)
        .context("WRITE")?;
    Ok(())
}

/// Fails if the memory changes although the device has been reset.
fn untouched(cpu: &Cpu) -> Result<()> {
    let file = cpu.device().memory().try_clone()?;
    let len = file.metadata()?.len();
    let memory = Memory::of(file, len)?;
    let fill = vec![FILL; usize::try_from(len)?];
    memory.write(GUEST_BASE, &fill);
    thread::sleep(WATCH);
    let found = memory.read(GUEST_BASE, fill.len());
    ensure!(found == fill, "memory was written to after the reset");
    ensure!(
        !cpu.device().eventfds.interrupted(Duration::ZERO)?,
        "the guest was interrupted after the reset"
    );
    Ok(())
}
