//! The steps of the demonstration, each shown as a command with its output.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, TAG};
use gangplank_tests::guest::kernel::Release;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::packages;

use crate::progress::during;

/// MiB that the guest writes and reads to show the speed.
const BULK_MIB: u32 = 64;

/// Shows every step. Fails at the first unexpected result.
pub(crate) fn tell(machine: Machine, share: &Path, daemon: &Daemon) -> Result<()> {
    let what = match machine {
        Machine::Uml => "User Mode Linux",
        Machine::QemuX86_64 => "QEMU x86_64, emulated",
        Machine::QemuAarch64 => "QEMU aarch64, emulated",
    };
    heading("gangplankd shares a directory of this machine");
    host(&format!(
        "gangplankd --socket-path={} --shared-dir={} --tag={TAG}",
        daemon.socket().display(),
        share.display()
    ));

    let kernel = during("looking for Debian's kernel", || {
        machine.kernel(Release::Stable)
    })?
    .release();
    heading(&format!(
        "Debian's kernel {kernel}, unmodified, boots ({what})"
    ));
    let started = Instant::now();
    let options = Options::new(machine).share(daemon.socket(), TAG);
    let mut guest = during("the guest boots", || Guest::boot(&options))?;
    said(&format!("up after {}", seconds(started.elapsed())));
    typed(&mut guest, "uname -srm")?;

    heading("The guest mounts the share");
    typed(&mut guest, &format!("mount -t virtiofs {TAG} /mnt"))?;
    typed(&mut guest, "grep virtiofs /proc/mounts")?;

    heading("The host writes, the guest reads");
    fs::write(share.join("from-host.txt"), "Ahoy from the host!\n")?;
    host(&format!(
        "echo 'Ahoy from the host!' >{}/from-host.txt",
        share.display()
    ));
    let read = typed(&mut guest, "cat /mnt/from-host.txt")?;
    ensure!(read == "Ahoy from the host!\n", "the guest read: {read}");

    heading("The guest writes, the host reads");
    typed(
        &mut guest,
        "mkdir /mnt/cabin && echo \"Ahoy from $(uname -r)!\" >/mnt/cabin/from-guest.txt",
    )?;
    let read = fs::read_to_string(share.join("cabin/from-guest.txt"))
        .context("reading on the host what the guest wrote")?;
    host(&format!("cat {}/cabin/from-guest.txt", share.display()));
    said(read.trim_end());
    ensure!(
        read == format!("Ahoy from {kernel}!\n"),
        "the host read: {read}"
    );

    heading("Renames and removals cross as well");
    typed(
        &mut guest,
        "mv /mnt/cabin/from-guest.txt /mnt/renamed.txt && rmdir /mnt/cabin && rm \
         /mnt/from-host.txt",
    )?;
    host(&format!("ls {}", share.display()));
    let left = packages::output(Command::new("ls").arg(share))?;
    said(left.trim_end());
    ensure!(left == "renamed.txt\n", "left on the host: {left}");

    heading(&format!("{BULK_MIB} MiB to the host's disk and back"));
    let started = Instant::now();
    typed(
        &mut guest,
        &format!("dd if=/dev/zero of=/mnt/bulk bs=1M count={BULK_MIB} conv=fsync 2>/dev/null"),
    )?;
    said(&speed("written and synced", started.elapsed()));
    guest.sh("echo 3 >/proc/sys/vm/drop_caches")?;
    let started = Instant::now();
    typed(&mut guest, "dd if=/mnt/bulk of=/dev/null bs=1M 2>/dev/null")?;
    said(&speed("read", started.elapsed()));

    heading("The guest unmounts and powers off");
    typed(&mut guest, "umount /mnt")?;
    during("the guest powers off", || guest.power_off())?;
    println!();
    Ok(())
}

pub(crate) fn heading(title: &str) {
    println!("\n== {title}");
}

pub(crate) fn host(command: &str) {
    println!("   host$  {command}");
}

pub(crate) fn said(text: &str) {
    for line in text.lines() {
        println!("          {line}");
    }
}

/// Runs `command` in the guest and shows it with what it printed.
pub(crate) fn typed(guest: &mut Guest, command: &str) -> Result<String> {
    println!("   guest# {command}");
    let output = during("the guest works", || guest.sh(command))?;
    said(&output);
    Ok(output)
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn speed(what: &str, took: Duration) -> String {
    let rate = f64::from(BULK_MIB) / took.as_secs_f64();
    format!("{what} in {}, {rate:.0} MiB/s", seconds(took))
}
