//! Mounts that are made and removed, and guests that boot and end, while the daemon stays.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::daemon::TAG;
use crate::guest::{Machine, USUAL};
use crate::guest_fixture::Fixture;

/// Limit for a daemon to free what a killed guest held.
const FREEING: Duration = Duration::from_secs(60);

/// The share mounts by its tag and by no other, and reports the size of the host's file system.
pub(super) fn mounts_by_tag(fixture: &mut Fixture) -> Result<()> {
    let expected = rustix::fs::statvfs(fixture.host())?;
    let guest = fixture.guest()?;
    let mounts = guest.sh("grep ' /mnt ' /proc/mounts")?;
    ensure!(
        mounts.starts_with(&format!("{TAG} /mnt virtiofs rw")),
        "{mounts}"
    );
    let wrong = guest.run("mkdir -p /wrong; mount -t virtiofs wrong /wrong", USUAL)?;
    ensure!(wrong.status != 0, "an unknown tag was mounted");
    let told = guest.sh("stat -f -c '%S %b %c' /mnt")?;
    let wanted = format!(
        "{} {} {}",
        expected.f_frsize, expected.f_blocks, expected.f_files
    );
    ensure!(
        told.trim() == wanted,
        "statfs told {told}, the host {wanted}"
    );
    Ok(())
}

/// The files and their attributes survive several unmounts and mounts.
pub(super) fn remounts(fixture: &mut Fixture) -> Result<()> {
    let guest = fixture.guest()?;
    guest.sh("mkdir -p /mnt/remount && echo kept >/mnt/remount/file")?;
    for round in 1..=5 {
        guest.sh(&format!(
            "cat /mnt/remount/file && echo {round} >>/mnt/remount/file && umount /mnt && mount -t \
             virtiofs {TAG} /mnt"
        ))?;
    }
    ensure!(
        fs::read_to_string(fixture.host_path("remount/file"))? == "kept\n1\n2\n3\n4\n5\n",
        "not all rounds wrote"
    );
    Ok(())
}

/// A guest that reboots without unmounting is served again and finds its synced files.
pub(super) fn reboots(fixture: &mut Fixture) -> Result<()> {
    let guest = fixture.guest()?;
    guest.sh("mkdir -p /mnt/reboot && echo before >/mnt/reboot/file && sync")?;
    if guest.machine() == Machine::Uml {
        // A rebooted User Mode Linux machine is a new process.
        fixture.kill_guest();
    } else {
        guest.reboot().context("rebooting from inside")?;
        let seen = fixture.guest()?.sh("cat /mnt/reboot/file")?;
        ensure!(seen == "before\n", "after the reboot: {seen}");
        fixture.guest()?.reset().context("pressing reset")?;
    }
    let seen = fixture
        .guest()?
        .sh("cat /mnt/reboot/file; echo after >/mnt/reboot/file")?;
    ensure!(seen == "before\n", "after the restart: {seen}");
    ensure!(fs::read_to_string(fixture.host_path("reboot/file"))? == "after\n");
    Ok(())
}

/// The daemon frees what a killed guest held, and serves the next guest.
pub(super) fn killed_guest_is_replaced(fixture: &mut Fixture) -> Result<()> {
    fixture.kill_guest();
    let idle = settled_descriptors(fixture)?;
    fixture.guest()?.sh(
        "mkdir -p /mnt/held && cd /mnt/held && for i in $(seq 200); do echo $i >file-$i; done && \
         ls -lR . >/dev/null && sync && { sleep 1000 3<file-1 4<file-2 >/dev/null 2>&1 & }",
    )?;
    let held = fixture.daemon().descriptors()?;
    ensure!(
        held > idle,
        "{idle} descriptors without a guest, {held} with one that holds files"
    );
    fixture.kill_guest();
    let deadline = Instant::now() + FREEING;
    loop {
        let after = fixture.daemon().descriptors()?;
        if after <= idle {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "{idle} descriptors before the guest came, {after} after it was killed ({held} \
             meanwhile)"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let seen = fixture
        .guest()?
        .sh("cat /mnt/held/file-200; rm -r /mnt/held")?;
    ensure!(seen == "200\n", "the next guest saw: {seen}");
    Ok(())
}

/// The number of the daemon's descriptors, once it has stayed the same for a while.
fn settled_descriptors(fixture: &mut Fixture) -> Result<usize> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut count, mut since) = (fixture.daemon().descriptors()?, Instant::now());
    while since.elapsed() < Duration::from_millis(600) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        let now = fixture.daemon().descriptors()?;
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    Ok(count)
}
