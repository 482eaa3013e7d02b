//! Daemons that are replaced while a guest works.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine};
use gangplank_tests::runner;
use rustix::process::Signal;

use crate::fixture::{Fixture, Kind, socket_of};

/// Lines that the guest writes to a file it keeps open.
const LINES: u32 = 30_000;

/// Limit for the guest's work.
const LONG: Duration = Duration::from_secs(300);

/// Starts work in a guest: one program appends to an open file, another makes, reads, renames and
/// removes files.
fn working(fixture: &Fixture, machine: Machine) -> Result<Guest> {
    let mut guest = fixture.boot(machine)?;
    guest
        .mount(TAG, "/mnt")
        .with_context(|| fixture.relay.log())?;
    guest.sh(&format!(
        "mkdir /mnt/dir /mnt/busy && touch /tmp/rounds && \
         {{ (cd /mnt/dir && \
             i=0; while [ $i -lt {LINES} ]; do echo line $i || exit 1; i=$((i+1)); done \
             >/mnt/long; echo $? >/tmp/long \
         ) 2>/tmp/long.log & }} && \
         {{ (cd /mnt/busy && \
             while ! test -e /tmp/end; do \
               echo a >a && cat a >b && mv b c && ls >/dev/null && rm a c || exit 1; echo \
               >>/tmp/rounds; \
             done; echo done >/tmp/busy \
         ) 2>/tmp/busy.log >/dev/null & }}"
    ))?;
    Ok(guest)
}

/// Waits until the second program has done some more rounds.
fn go_round(guest: &mut Guest) -> Result<()> {
    guest
        .sh_within(
            "n=$(wc -l </tmp/rounds); for i in $(seq 600); do \
               [ $(wc -l </tmp/rounds) -gt $((n+5)) ] && exit 0; sleep 0.1; done; cat \
               /tmp/busy.log; exit 1",
            LONG,
        )
        .map(drop)
}

/// Ends the work, and checks that nothing was lost, repeated or refused.
fn all_is_well(fixture: &Fixture, guest: &mut Guest) -> Result<()> {
    let said = guest.sh_within(
        "touch /tmp/end; while ! test -e /tmp/long || ! test -e /tmp/busy; do \
           sleep 0.2; test -s /tmp/long.log -o -s /tmp/busy.log && break; done; \
         cat /tmp/long.log /tmp/busy.log /tmp/long /tmp/busy; ls /mnt/busy",
        LONG,
    )?;
    ensure!(said == "0\ndone\n", "the guest's programs said: {said}");
    let written = fs::read_to_string(fixture.host("long"))?;
    let expected: String = (0..LINES).map(|line| format!("line {line}\n")).collect();
    ensure!(
        written == expected,
        "{} bytes were written, not {}",
        written.len(),
        expected.len()
    );
    Ok(())
}

fn log_of(fixture: &Fixture, daemon: &Daemon) -> String {
    format!("{}\ndaemon's log:\n{}", fixture.relay.log(), daemon.log())
}

/// Waits for the end of a virtiofsd that the relay has left.
///
/// virtiofsd 1.14 never ends if it still works on its ring when the ring is stopped: it looks for
/// further requests in a ring that it cannot read any more. The relay gives it time to leave the
/// ring, which a unit test of it checks, and which may not be enough on a busy machine. The guest
/// does not notice.
fn wait_for_virtiofsd(daemon: &mut Daemon) -> Result<()> {
    match daemon.wait() {
        Ok(status) => ensure!(status.success(), "{}", daemon.log()),
        Err(error) => {
            ensure!(format!("{error:#}").contains("IterateQueue"), error);
            runner::note("a virtiofsd looks for requests in a stopped ring and does not end");
        }
    }
    Ok(())
}

/// A daemon takes over from another, several times. The guest's programs notice nothing.
pub(crate) fn under_load(machine: Machine, kind: Kind, arguments: &[&str]) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut daemon = fixture.daemon(kind, arguments)?;
    fixture.put(&daemon)?;
    let mut guest = working(&fixture, machine)?;
    let mut longest = Duration::ZERO;
    for _ in 0..4 {
        go_round(&mut guest)?;
        let mut next = fixture.daemon(kind, arguments)?;
        let begun = Instant::now();
        let said = fixture
            .relay
            .tell(&["switch", socket_of(&next)?])
            .with_context(|| log_of(&fixture, &daemon))?;
        longest = longest.max(begun.elapsed());
        ensure!(said.contains("bytes of state"), "{said}");
        std::mem::swap(&mut daemon, &mut next);
        match kind {
            Kind::Virtiofsd => wait_for_virtiofsd(&mut next)?,
            Kind::Gangplankd => drop(next.stop()?),
        }
    }
    go_round(&mut guest).with_context(|| log_of(&fixture, &daemon))?;
    all_is_well(&fixture, &mut guest).with_context(|| log_of(&fixture, &daemon))?;
    guest.sh("umount /mnt")?;
    runner::note(&format!("the longest pause was {longest:?}"));
    ensure!(
        fixture
            .relay
            .tell(&["status"])?
            .contains("daemons 5, losses 0")
    );
    Ok(())
}

/// The daemon is killed while the guest is paused, and another is started in its place.
pub(crate) fn while_paused(machine: Machine, kind: Kind, arguments: &[&str]) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let daemon = fixture.daemon(kind, arguments)?;
    fixture.put(&daemon)?;
    let mut guest = working(&fixture, machine)?;
    go_round(&mut guest)?;
    let said = fixture.relay.tell(&["pause"])?;
    ensure!(said.contains("state is saved"), "{said}");
    // Requests meanwhile wait.
    guest.sh("n=$(wc -l </tmp/rounds); sleep 1; [ $(wc -l </tmp/rounds) = $n ]")?;
    daemon.signal_all(Signal::KILL)?;
    drop(daemon);
    fixture.relay.wait_for("bytes of state saved")?;
    ensure!(
        fixture.relay.tell(&["resume"]).is_err(),
        "there is no daemon"
    );
    let daemon = fixture.daemon(kind, arguments)?;
    fixture.put(&daemon)?;
    fixture
        .relay
        .tell(&["resume"])
        .with_context(|| log_of(&fixture, &daemon))?;
    go_round(&mut guest).with_context(|| log_of(&fixture, &daemon))?;
    // The same daemon serves them.
    fixture.relay.tell(&["pause"])?;
    ensure!(fixture.relay.tell(&["pause"]).is_err(), "it is paused");
    fixture.relay.tell(&["resume"])?;
    ensure!(fixture.relay.tell(&["resume"]).is_err(), "it is not paused");
    all_is_well(&fixture, &mut guest).with_context(|| log_of(&fixture, &daemon))
}

/// An impossible replacement is refused, and the guest continues with its daemon.
pub(crate) fn not_possible(machine: Machine) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let daemon = fixture.daemon(Kind::Virtiofsd, &[])?;
    fixture.put(&daemon)?;
    let mut guest = working(&fixture, machine)?;
    let elsewhere = Fixture::new(&[])?;
    let stranger = elsewhere.daemon(Kind::Virtiofsd, &[])?;
    let other = elsewhere.daemon(Kind::Gangplankd, &[])?;
    for (socket, expected) in [
        ("/nowhere/fs.sock", "cannot switch to /nowhere/fs.sock"),
        // They share another directory.
        (socket_of(&stranger)?, "refused CHECK_DEVICE_STATE"),
        (socket_of(&other)?, "refused CHECK_DEVICE_STATE"),
    ] {
        go_round(&mut guest)?;
        let error = fixture.relay.tell(&["switch", socket]);
        let text = error.err().context("it was replaced")?.to_string();
        ensure!(text.contains(expected), "{text}");
        go_round(&mut guest).with_context(|| log_of(&fixture, &daemon))?;
    }
    all_is_well(&fixture, &mut guest).with_context(|| log_of(&fixture, &daemon))
}
