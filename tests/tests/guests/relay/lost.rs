//! Killed daemons: their guests are told, and continue after a new mount.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::TAG;
use gangplank_tests::guest::Machine;
use rustix::process::Signal;

use crate::fixture::{Fixture, Kind, socket_of};

/// Limit for a guest to notice that its daemon is lost.
const SOON: Duration = Duration::from_secs(60);

/// `kill -9` of the daemon of a working guest: every operation fails at once, unmounting works, and
/// a new mount has the files.
pub(crate) fn guest_is_told(machine: Machine, kind: Kind, arguments: &[&str]) -> Result<()> {
    let fixture = Fixture::new(&["--tag", TAG])?;
    let mut guest = fixture.boot(machine)?;
    for round in 0..3 {
        let daemon = fixture.daemon(kind, arguments)?;
        fixture.put(&daemon)?;
        guest
            .mount(TAG, "/mnt")
            .with_context(|| fixture.relay.log())?;
        guest.sh(&format!(
            "echo kept {round} >/mnt/file-{round} && cat /mnt/file-* >/dev/null && rm -f \
             /tmp/*-failed && sync && \
             mkdir -p /mnt/busy && \
             for n in 1 2 3 4; do (cd /tmp; while echo $n >/mnt/busy/$n && cat /mnt/busy/$n && rm \
             /mnt/busy/$n; do :; done; \
               touch /tmp/$n-failed) >/dev/null 2>&1 & done; \
             sleep 1; ! ls /tmp/*-failed"
        ))?;
        daemon.signal_all(Signal::KILL)?;
        drop(daemon);
        let said = guest
            .sh_within(
                "for i in $(seq 300); do [ $(ls /tmp/*-failed 2>/dev/null | wc -l) = 4 ] && \
                 break; sleep 0.1; done; \
                 ls /tmp/*-failed | wc -l; cat /mnt/none; echo x >/mnt/new; ls /mnt/busy; umount \
                 /mnt; echo status $?",
                SOON,
            )
            .with_context(|| fixture.relay.log())?;
        ensure!(
            said.starts_with("4\n") && said.ends_with("status 0\n"),
            "the guest said: {said}\n{}",
            fixture.relay.log()
        );
        ensure!(
            said.matches("not connected").count() >= 2,
            "the guest said: {said}"
        );
        let status = fixture.relay.tell(&["status"])?;
        ensure!(
            status.contains(&format!("losses {}", round + 1)),
            "{status}"
        );
        let written = fs::read_to_string(fixture.host(&format!("file-{round}")))?;
        ensure!(written == format!("kept {round}\n"));
    }
    // A guest that mounts before there is a daemon waits for it.
    guest.sh("(mount -t virtiofs myfs /mnt && cat /mnt/file-0; echo $?) >/tmp/mounted 2>&1 &")?;
    fixture.relay.wait_for("waits for a daemon")?;
    let daemon = fixture.daemon(kind, arguments)?;
    fixture.put(&daemon)?;
    let seen = guest.sh(
        "for i in $(seq 600); do grep -qx '[0-9]*' /tmp/mounted && break; sleep 0.1; done; \
         cat /tmp/mounted",
    )?;
    ensure!(seen == "kept 0\n0\n", "{seen}\n{}", fixture.relay.log());
    Ok(())
}

/// A replacement that gets no state counts as a loss.
pub(crate) fn replaced_without_state(machine: Machine) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    fixture.put(&daemon)?;
    let mut guest = fixture.boot(machine)?;
    guest.mount(TAG, "/mnt")?;
    guest.sh("echo kept >/mnt/file")?;
    let next = fixture.daemon(Kind::Virtiofsd, &[])?;
    let said = fixture
        .relay
        .tell(&["switch", "--without-state", socket_of(&next)?])?;
    ensure!(said.contains("mount anew"), "{said}");
    let said =
        guest.sh("cat /mnt/none; umount /mnt && mount -t virtiofs myfs /mnt && cat /mnt/file")?;
    ensure!(said.ends_with("not connected\nkept\n"), "{said}");
    ensure!(fixture.relay.tell(&["status"])?.contains("served by"));
    Ok(())
}

/// Two guests on one relay: both are told of their daemon's end, and both continue with the next
/// one.
pub(crate) fn several_guests() -> Result<()> {
    let fixture = Fixture::new(&["--tag", TAG])?;
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    fixture.put(&daemon)?;
    let mut guests = Vec::new();
    for machine in [Machine::Uml, Machine::QemuX86_64] {
        let mut guest = fixture.boot(machine)?;
        guest
            .mount(TAG, "/mnt")
            .with_context(|| fixture.relay.log())?;
        guest.sh(&format!("echo {machine:?} >/mnt/{machine:?}"))?;
        guests.push(guest);
    }
    let status = fixture.relay.tell(&["status"])?;
    ensure!(status.matches("served by").count() == 2, "{status}");
    ensure!(fixture.relay.tell(&["pause"])?.matches("paused").count() == 2);
    ensure!(fixture.relay.tell(&["resume"])?.matches("resumed").count() == 2);
    daemon.signal_all(Signal::KILL)?;
    drop(daemon);
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    fixture.put(&daemon)?;
    for guest in &mut guests {
        let said = guest.sh("ls /mnt; umount /mnt && mount -t virtiofs myfs /mnt && cat /mnt/*")?;
        ensure!(
            said.contains("not connected") && said.ends_with("QemuX86_64\nUml\n"),
            "{said}\n{}",
            fixture.relay.log()
        );
    }
    Ok(())
}

/// A guest that has lost its daemon works again after a reset or a kill.
pub(crate) fn guest_starts_anew() -> Result<()> {
    let fixture = Fixture::new(&["--tag", TAG])?;
    let mut guest = fixture.boot(Machine::QemuX86_64)?;
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    fixture.put(&daemon)?;
    guest.mount(TAG, "/mnt")?;
    guest.sh("echo kept >/mnt/file && sync")?;
    daemon.signal_all(Signal::KILL)?;
    drop(daemon);
    guest.sh("! cat /mnt/none")?;
    guest.reset()?;
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    fixture.put(&daemon)?;
    guest
        .mount(TAG, "/mnt")
        .with_context(|| fixture.relay.log())?;
    ensure!(guest.sh("cat /mnt/file")? == "kept\n");
    Ok(())
}
