//! The QEMUs of Debian 12 and of its backports: neither complains of the daemon, and both reconnect.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::driver::fixture::{guest_processes, wait_for_log};
use gangplank_tests::guest::{Guest, Machine, Options, Qemu};
use rustix::process::{Pid, Signal, kill_process};

fn boot(daemon: &Daemon, qemu: Qemu, reconnects: bool) -> Result<Guest> {
    let options = Options {
        qemu,
        reconnects,
        ..Options::new(Machine::QemuX86_64).share(daemon.socket(), TAG)
    };
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
    Ok(guest)
}

/// Writes a file in the guest and finds it on the host.
fn write(guest: &mut Guest, share: &Path, name: &str) -> Result<()> {
    guest.sh(&format!("echo {name} >/mnt/{name} && sync"))?;
    ensure!(fs::read_to_string(share.join(name))? == format!("{name}\n"));
    Ok(())
}

/// QEMU prints no warning, and its guest does not notice that its worker is killed.
pub(crate) fn works_without_a_complaint(qemu: Qemu) -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let mut guest = boot(&daemon, qemu, false)?;
    write(&mut guest, share.path(), "first")?;
    guest.sh("exec 9<>/mnt/first && echo more >&9")?;
    let (_, worker) = guest_processes(&daemon)?.pop().context("a guest")?;
    let worker = Pid::from_raw(worker.try_into()?).context("a process id")?;
    kill_process(worker, Signal::KILL)?;
    write(&mut guest, share.path(), "second")?;
    wait_for_log(&daemon, "is served again")?;
    let said = guest.complaints();
    ensure!(said.is_empty(), "QEMU says: {said}");
    Ok(())
}

/// With `reconnect=`, a guest whose daemon was killed works again after it has rebooted.
pub(crate) fn reboots_after_the_daemon_was_restarted(qemu: Qemu) -> Result<()> {
    let share = tempfile::tempdir()?;
    let options = daemon::Options::new(share.path());
    let mut daemon = Daemon::start(&options)?;
    let mut guest = boot(&daemon, qemu, true)?;
    for round in ["first", "second"] {
        write(&mut guest, share.path(), round)?;
        daemon.replace(&options)?;
        wait_for_log(&daemon, "guest 1 has connected")?;
        guest
            .reset()
            .with_context(|| format!("{}\n{}", guest.complaints(), daemon.log()))?;
        guest
            .mount(TAG, "/mnt")
            .with_context(|| format!("{}\n{}", guest.complaints(), daemon.log()))?;
        ensure!(guest.sh(&format!("cat /mnt/{round}"))? == format!("{round}\n"));
        ensure!(daemon.log().contains("has reconnected"), "{}", daemon.log());
    }
    write(&mut guest, share.path(), "third")
}
