//! Daemons that are replaced while a guest works.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine};
use gangplank_tests::trials;
use rustix::process::Signal;

use crate::place::{Kind, Place, socket_of};

/// Lines that the guest writes to a file it keeps open.
const LINES: u32 = 30_000;

/// How long the guest's work may take.
const LONG: Duration = Duration::from_secs(300);

/// A guest that works: one program appends to a file it keeps open, another makes, reads, renames and removes files.
fn working(place: &Place, machine: Machine) -> Result<Guest> {
    let mut guest = place.boot(machine)?;
    guest
        .mount(TAG, "/mnt")
        .with_context(|| place.relay.log())?;
    guest.sh(&format!(
        "mkdir /mnt/dir /mnt/busy && touch /tmp/rounds && \
         {{ (cd /mnt/dir && \
             i=0; while [ $i -lt {LINES} ]; do echo line $i || exit 1; i=$((i+1)); done >/mnt/long; echo $? >/tmp/long \
         ) 2>/tmp/long.log & }} && \
         {{ (cd /mnt/busy && \
             while ! test -e /tmp/end; do \
               echo a >a && cat a >b && mv b c && ls >/dev/null && rm a c || exit 1; echo >>/tmp/rounds; \
             done; echo done >/tmp/busy \
         ) 2>/tmp/busy.log >/dev/null & }}"
    ))?;
    Ok(guest)
}

/// Waits until the other program has gone around some more.
fn go_round(guest: &mut Guest) -> Result<()> {
    guest
        .sh("n=$(wc -l </tmp/rounds); for i in $(seq 200); do \
               [ $(wc -l </tmp/rounds) -gt $((n+5)) ] && exit 0; sleep 0.1; done; cat /tmp/busy.log; exit 1")
        .map(drop)
}

/// Ends the work, and finds that nothing was lost, doubled or refused.
fn all_is_well(place: &Place, guest: &mut Guest) -> Result<()> {
    let said = guest.sh_within(
        "touch /tmp/end; while ! test -e /tmp/long || ! test -e /tmp/busy; do \
           sleep 0.2; test -s /tmp/long.log -o -s /tmp/busy.log && break; done; \
         cat /tmp/long.log /tmp/busy.log /tmp/long /tmp/busy; ls /mnt/busy",
        LONG,
    )?;
    ensure!(said == "0\ndone\n", "the guest's programs said: {said}");
    let written = fs::read_to_string(place.host("long"))?;
    let expected: String = (0..LINES).map(|line| format!("line {line}\n")).collect();
    ensure!(
        written == expected,
        "{} bytes were written, not {}",
        written.len(),
        expected.len()
    );
    Ok(())
}

fn log_of(place: &Place, daemon: &Daemon) -> String {
    format!("{}\ndaemon's log:\n{}", place.relay.log(), daemon.log())
}

/// A daemon takes over from another, several times: the guest's programs notice nothing.
pub(crate) fn under_load(machine: Machine, kind: Kind, arguments: &[&str]) -> Result<()> {
    let place = Place::new(&[])?;
    let mut daemon = place.daemon(kind, arguments)?;
    place.put(&daemon)?;
    let mut guest = working(&place, machine)?;
    let mut longest = Duration::ZERO;
    for _ in 0..4 {
        go_round(&mut guest)?;
        let mut next = place.daemon(kind, arguments)?;
        let begun = Instant::now();
        let said = place
            .relay
            .tell(&["switch", socket_of(&next)?])
            .with_context(|| log_of(&place, &daemon))?;
        longest = longest.max(begun.elapsed());
        ensure!(said.contains("bytes of state"), "{said}");
        std::mem::swap(&mut daemon, &mut next);
        match kind {
            Kind::Virtiofsd => ensure!(next.wait()?.success(), "{}", next.log()),
            Kind::Gangplankd => drop(next.stop()?),
        }
    }
    go_round(&mut guest).with_context(|| log_of(&place, &daemon))?;
    all_is_well(&place, &mut guest).with_context(|| log_of(&place, &daemon))?;
    guest.sh("umount /mnt")?;
    trials::note(&format!("the longest pause was {longest:?}"));
    ensure!(
        place
            .relay
            .tell(&["status"])?
            .contains("daemons 5, losses 0")
    );
    Ok(())
}

/// The daemon is killed while the guest is paused, and another is started in its place.
pub(crate) fn while_paused(machine: Machine, kind: Kind, arguments: &[&str]) -> Result<()> {
    let place = Place::new(&[])?;
    let daemon = place.daemon(kind, arguments)?;
    place.put(&daemon)?;
    let mut guest = working(&place, machine)?;
    go_round(&mut guest)?;
    let said = place.relay.tell(&["pause"])?;
    ensure!(said.contains("state is saved"), "{said}");
    // What is asked meanwhile waits.
    guest.sh("n=$(wc -l </tmp/rounds); sleep 1; [ $(wc -l </tmp/rounds) = $n ]")?;
    daemon.signal_all(Signal::KILL)?;
    drop(daemon);
    place.relay.wait_for("bytes of state saved")?;
    ensure!(place.relay.tell(&["resume"]).is_err(), "there is no daemon");
    let daemon = place.daemon(kind, arguments)?;
    place.put(&daemon)?;
    place
        .relay
        .tell(&["resume"])
        .with_context(|| log_of(&place, &daemon))?;
    go_round(&mut guest).with_context(|| log_of(&place, &daemon))?;
    // And with the same daemon.
    place.relay.tell(&["pause"])?;
    ensure!(place.relay.tell(&["pause"]).is_err(), "it is paused");
    place.relay.tell(&["resume"])?;
    ensure!(place.relay.tell(&["resume"]).is_err(), "it is not paused");
    all_is_well(&place, &mut guest).with_context(|| log_of(&place, &daemon))
}

/// A replacement that cannot be is refused, and the guest goes on with the daemon it has.
pub(crate) fn not_possible(machine: Machine) -> Result<()> {
    let place = Place::new(&[])?;
    let daemon = place.daemon(Kind::Virtiofsd, &[])?;
    place.put(&daemon)?;
    let mut guest = working(&place, machine)?;
    let elsewhere = Place::new(&[])?;
    let stranger = elsewhere.daemon(Kind::Virtiofsd, &[])?;
    let other = place.daemon(Kind::Gangplankd, &[])?;
    for (socket, expected) in [
        ("/nowhere/fs.sock", "cannot connect"),
        // Its state would be another's.
        (socket_of(&other)?, "cannot hand on"),
        // It has none of the guest's files.
        (socket_of(&stranger)?, "refused CHECK_DEVICE_STATE"),
    ] {
        go_round(&mut guest)?;
        let error = place.relay.tell(&["switch", socket]);
        let text = error.err().context("it was replaced")?.to_string();
        ensure!(text.contains(expected), "{text}");
        go_round(&mut guest).with_context(|| log_of(&place, &daemon))?;
    }
    all_is_well(&place, &mut guest).with_context(|| log_of(&place, &daemon))
}
