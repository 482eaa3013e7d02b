//! Connections that are cut with requests in flight.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{MkdirIn, NodeId, Operation, WriteIn};
use gangplank_tests::driver::fixture::{Fixture, wait_for_logs};
use gangplank_tests::driver::{NodeAndFile, Ticket};
use rustix::fs::OFlags;

use super::super::device::boot;
use super::super::{MANY, kill, kill_worker};
use super::{Guest, reconnect};

/// Files to which one record each is appended at a time.
const LOGS: usize = 6;

/// Connections that are cut under load.
const CUTS: usize = 30;

/// A request in flight, and what it must have done once.
struct Request {
    ticket: Ticket,
    record: String,
}

/// The guest's work while its connection is cut: appends, and new directories.
struct Load {
    logs: Vec<NodeAndFile>,
    /// What was appended to each log, in order.
    appended: Vec<Vec<String>>,
    made: usize,
}

impl Load {
    fn begin(guest: &mut Guest) -> Result<Self> {
        let mut logs = Vec::new();
        for number in 0..LOGS {
            let name = CString::new(format!("log-{number}"))?;
            let created = guest.create(NodeId::ROOT, &name, 0o644)?;
            guest.release(created)?;
            let file = guest.open(created.node, OFlags::WRONLY | OFlags::APPEND)?;
            logs.push(NodeAndFile { file, ..created });
        }
        Ok(Self {
            logs,
            appended: vec![Vec::new(); LOGS],
            made: 0,
        })
    }

    /// Sends one append for each log, and two MKDIR, which fail if they are carried out twice.
    fn submit(&mut self, guest: &mut Guest) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        for (number, log) in self.logs.iter().enumerate() {
            let appended = &mut self.appended[number];
            let record = format!("{number}:{}\n", appended.len());
            let offset: usize = appended.iter().map(String::len).sum();
            let write = Operation::Write(WriteIn {
                fh: log.file.get(),
                offset: offset as u64,
                size: u32::try_from(record.len())?,
                flags: OFlags::APPEND.bits(),
                ..WriteIn::default()
            });
            let ticket = guest.submit(1, log.node, write, record.as_bytes(), 64)?;
            appended.push(record.clone());
            requests.push(Request { ticket, record });
        }
        for _ in 0..2 {
            let record = format!("made-{}", self.made);
            self.made += 1;
            let name = CString::new(record.clone())?;
            let name: &CStr = &name;
            let args = MkdirIn {
                mode: 0o755,
                umask: 0o022,
            };
            let mkdir = Operation::Mkdir { args, name };
            let ticket = guest.submit(1, NodeId::ROOT, mkdir, &[], 256)?;
            requests.push(Request { ticket, record });
        }
        Ok(requests)
    }

    /// Checks what the host has of it.
    fn check(&self, share: &Path) -> Result<()> {
        for (number, appended) in self.appended.iter().enumerate() {
            let content = fs::read_to_string(share.join(format!("log-{number}")))?;
            ensure!(content == appended.concat(), "log {number}:\n{content}");
        }
        for number in 0..self.made {
            ensure!(share.join(format!("made-{number}")).is_dir(), "{number}");
        }
        Ok(())
    }
}

/// Cuts the connection again and again with requests in flight, and calls `meanwhile` after each.
fn cut_under_load(
    fixture: &Fixture,
    mut meanwhile: impl FnMut(usize, &mut Guest) -> Result<()>,
) -> Result<()> {
    let mut guest = boot(fixture.socket())?;
    let mut load = Load::begin(&mut guest)?;
    for cut in 0..CUTS {
        let requests = load.submit(&mut guest)?;
        thread::sleep(Duration::from_micros(fastrand::u64(0..2000)));
        // In every third round, the next connection is made before the last one ends.
        if cut % 3 != 0 {
            guest.peer.hang_up();
        }
        meanwhile(cut, &mut guest)?;
        reconnect(&mut guest, fixture.socket())
            .with_context(|| format!("cut {cut}: {}", fixture.log()))?;
        for Request { ticket, record } in requests {
            // The driver fails if one comes back twice.
            guest
                .finish(ticket)
                .with_context(|| format!("cut {cut}, {record}: {}", fixture.log()))?;
        }
    }
    load.check(&fixture.share())?;
    // The last of them is told a moment after the guest is served.
    let returns = "guest 1 has reconnected";
    wait_for_logs(&fixture.daemon, returns, CUTS)?;
    let log = fixture.daemon.log();
    let found = log.matches(returns).count();
    ensure!(found == CUTS, "{found} times:\n{log}");
    Ok(())
}

#[test]
fn each_request_in_flight_is_carried_out_and_answered_once() -> Result<()> {
    for arguments in [&[MANY][..], &[MANY, "--thread-pool-size=4"]] {
        cut_under_load(&Fixture::quiet(arguments)?, |_, _| Ok(()))?;
    }
    Ok(())
}

#[test]
fn workers_may_be_killed_before_and_after_the_guest_is_back() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY])?;
    cut_under_load(&fixture, |cut, _| {
        // Just before it notices the end of its connection, or gone already.
        if cut % 2 == 0
            && let Ok(worker) = fixture.last_worker()
        {
            let _ = kill(worker);
        }
        Ok(())
    })?;
    // While the new guest looks for the session, gives its connection away, and afterwards.
    let mut guest = boot(fixture.socket())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    let log = fixture.daemon.log();
    let count = |log: &str, words: &str| log.matches(words).count();
    let [kills, returns] = ["was ended by signal 9", "has reconnected after"];
    let before = [kills, returns].map(|words| count(&log, words));
    for round in 0..CUTS {
        guest.peer.hang_up();
        let back = thread::scope(|scope| {
            let killer = scope.spawn(|| {
                thread::sleep(Duration::from_micros(round as u64 * 400));
                kill_worker(&fixture)
            });
            let back = reconnect(&mut guest, fixture.socket());
            killer.join().expect("no panic").map(|_| back)
        })?;
        if let Err(error) = back {
            // The reply to one of its messages is lost (`backend/src/device/recorder.rs`).
            eprintln!("round {round}: {error:#}");
            reconnect(&mut guest, fixture.socket()).with_context(|| fixture.log())?;
        }
        guest
            .write(file, round as u64, b"x")
            .with_context(|| format!("round {round}: {}", fixture.log()))?;
    }
    // The open file was the same all the time, and no write was lost.
    guest.unlink(NodeId::ROOT, c"file")?;
    ensure!(guest.read(file, 0, 4096)? == "x".repeat(CUTS).as_bytes());
    wait_for_logs(&fixture.daemon, returns, before[1] + CUTS)?;
    let log = fixture.daemon.log();
    let [killed, returned] = [kills, returns].map(|words| count(&log, words));
    // One that was about to end is not killed.
    ensure!(killed - before[0] >= CUTS / 3, "{killed} deaths: {log}");
    ensure!(returned - before[1] >= CUTS, "{returned} times: {log}");
    ensure!(!log.contains("was served before it reconnected"), "{log}");
    Ok(())
}
