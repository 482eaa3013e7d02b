//! Several request queues: Debian's 6.12 kernel uses as many as the device has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::kernel::Release;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::guest_suite::programs;
use gangplank_tests::tools;

const QUEUES: u16 = 2;

fn options(daemon: &Daemon) -> Options {
    let mut options = Options::new(Machine::QemuX86_64).share(daemon.socket(), TAG);
    options.release = Release::Linux6_12;
    options.request_queues = QUEUES;
    options.processors = 2;
    options
}

/// QEMU's `num-request-queues=2`: the guest maps both queues to processors and uses both, also
/// after a reset of the machine.
pub(crate) fn several_request_queues_serve() -> Result<()> {
    let share = tempfile::tempdir()?;
    let mut daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let mut guest = Guest::boot(&options(&daemon)).with_context(|| daemon.log())?;
    for round in 0..2 {
        guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
        let before = interrupts(&mut guest)?;
        ensure!(before.len() == usize::from(QUEUES), "queues: {before:?}");
        let counted = guest.sh_within(
            "echo 'mkdir /mnt/d$1; for i in $(seq 100); do echo $i >/mnt/d$1/$i; done; cat \
             /mnt/d$1/*' >/tmp/work; \
             for cpu in 0 1; do taskset -c $cpu sh /tmp/work $cpu >/tmp/by-$cpu 2>&1 & done; wait; \
             cat /tmp/by-0 /tmp/by-1 | wc -l",
            Duration::from_secs(120),
        )?;
        ensure!(counted == "200\n", "both processors read {counted} lines");
        let after = interrupts(&mut guest)?;
        ensure!(
            before.iter().zip(&after).all(|(one, other)| other > one),
            "interrupts per queue in round {round}: {before:?}, then {after:?}"
        );
        guest.sh("rm -r /mnt/*")?;
        if round == 0 {
            guest.reset().with_context(|| daemon.log())?;
        }
    }
    ensure!(daemon.is_running()?, "the daemon ended\n{}", daemon.log());
    Ok(())
}

/// The checks that need newer kernels pass: files without a name, birth times.
pub(crate) fn newer_kernel_passes_the_checks() -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()).arguments(&["--xattr"]))?;
    let check = tools::guest_check(Machine::QemuX86_64.arch())?;
    let mut guest = Guest::boot(&options(&daemon).program("guest-check", &check))?;
    guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
    programs::run_checks(&mut guest, "/mnt/checks").with_context(|| daemon.log())
}

/// Interrupts so far of each request queue of the file system device.
fn interrupts(guest: &mut Guest) -> Result<Vec<u64>> {
    let table = guest.sh("grep requests /proc/interrupts || cat /proc/interrupts")?;
    let counts: Vec<u64> = table
        .lines()
        .filter(|line| line.contains("-requests"))
        .map(|line| {
            line.split_whitespace()
                .skip(1)
                .map_while(|word| word.parse::<u64>().ok())
                .sum()
        })
        .collect();
    ensure!(!counts.is_empty(), "no request queue in:\n{table}");
    Ok(counts)
}
