//! The process that accepts guests is killed again and again while guests work.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::fixture::{acceptor_of, guest_processes, wait_for_log};
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::process::User;
use rustix::process::{Pid, Signal, kill_process};

use crate::{Session, Upgradable, as_users, burst};

/// Kills in each sandbox.
const KILLS: usize = 20;

/// Kills during as many reloads.
const KILLS_OF_RELOADS: usize = 30;

/// Guests that work meanwhile.
const GUESTS: usize = 3;

/// Has the guests' threads end, also where something else fails: the scope waits for them.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes and reads files until `is_ending`, and compares them. Returns how many.
fn verify(guest: &mut Driver, name: usize, is_ending: &AtomicBool) -> Result<usize> {
    let mut files = 0;
    while !is_ending.load(Ordering::Relaxed) {
        let name = CString::new(format!("{name}-{files}"))?;
        let file = guest.create(NodeId::ROOT, &name, 0o644)?;
        let content: Vec<u8> = (0..16384).map(|_| fastrand::u8(..)).collect();
        guest.write(file, 0, &content)?;
        let read = guest.read(file, 0, 16384)?;
        ensure!(read == content, "{name:?} has changed");
        guest.release(file)?;
        guest.unlink(NodeId::ROOT, &name)?;
        files += 1;
    }
    Ok(files)
}

fn kill_acceptor(upgradable: &Upgradable) -> Result<()> {
    let acceptor = acceptor_of(&upgradable.daemon)?;
    let acceptor = Pid::from_raw(acceptor.try_into()?).context("a process id")?;
    // It may have been killed before, and not yet be waited for.
    let _ = kill_process(acceptor, Signal::KILL);
    Ok(())
}

#[test]
fn guests_do_not_notice_that_acceptors_are_killed() -> Result<()> {
    for user in as_users() {
        for sandbox in ["namespace", "chroot", "none"] {
            if sandbox == "chroot" && (user.is_some() || !User::is_root()) {
                continue;
            }
            let sandbox = format!("--sandbox={sandbox}");
            let arguments = [&*sandbox, "--locks=host", "--max-crashes=1000"];
            let upgradable = Upgradable::start(&arguments, user)?;
            let outcome = go_on(&upgradable);
            outcome.with_context(|| format!("{sandbox} {user:?}\n{}", upgradable.daemon.log()))?;
            let (status, log) = upgradable.daemon.stop()?;
            ensure!(status.success(), "{status}: {log}");
            // In order, and none by the death of an acceptor.
            let gone = log.matches(" has gone").count();
            ensure!(gone == log.matches(" has connected").count(), "{log}");
            ensure!(!log.contains("in flight"), "{log}");
        }
    }
    Ok(())
}

#[test]
fn acceptors_that_die_during_reloads_take_no_guest_along() -> Result<()> {
    let upgradable = Upgradable::start(&["--locks=host", "--max-crashes=1000"], None)?;
    let share = upgradable.share();
    let mut first = Session::begin(&upgradable.daemon, "first")?;
    let mut second = Session::begin(&upgradable.daemon, "second")?;
    let mut reloads = 0;
    for round in 0..KILLS_OF_RELOADS {
        let asked = thread::scope(|scope| {
            let asked = scope.spawn(|| upgradable.ask_to_reload());
            thread::sleep(Duration::from_micros(fastrand::u64(0..30_000)));
            // The old one, or the new one.
            kill_acceptor(&upgradable)?;
            asked.join().expect("no panic")
        })?;
        reloads += usize::from(asked.status.success());
        for session in [&mut first, &mut second] {
            let checked = session.check(&share);
            checked.with_context(|| format!("round {round}\n{}", upgradable.daemon.log()))?;
        }
    }
    eprintln!("{reloads} of {KILLS_OF_RELOADS} reloads were made");
    upgradable.reload()?;
    first.check(&share)?;
    second.check(&share)?;
    Session::begin(&upgradable.daemon, "third")?.check(&share)?;
    let (status, log) = upgradable.daemon.stop()?;
    ensure!(status.success(), "{status}: {log}");
    Ok(())
}

fn go_on(upgradable: &Upgradable) -> Result<()> {
    let share = upgradable.share();
    let mut session = Session::begin(&upgradable.daemon, "session")?;
    let is_ending = AtomicBool::new(false);
    let processes = thread::scope(|scope| -> Result<Vec<(u32, u32)>> {
        let ending = Ending(&is_ending);
        let guests = (0..GUESTS).map(|number| {
            let guest = Driver::mount(upgradable.daemon.socket(), &Setup::default());
            let mut guest = guest?;
            let is_ending = &is_ending;
            Ok(scope.spawn(move || {
                let files = verify(&mut guest, number, is_ending)?;
                Ok::<_, anyhow::Error>((guest, files))
            }))
        });
        let guests = guests.collect::<Result<Vec<_>>>()?;
        let before = guest_processes(&upgradable.daemon)?;
        for _ in 0..KILLS {
            kill_acceptor(upgradable)?;
            session.check(&share)?;
            // Sooner or later than the next acceptor serves.
            thread::sleep(Duration::from_millis(fastrand::u64(0..60)));
        }
        // A new guest is served, and has what its connection needs.
        let mut next = Driver::mount(upgradable.daemon.socket(), &Setup::default())?;
        burst(&mut next)?;
        let after = guest_processes(&upgradable.daemon)?;
        ensure!(after.starts_with(&before), "{after:?}, not {before:?}");
        upgradable.reload()?;
        session.check(&share)?;
        kill_acceptor(upgradable)?;
        session.check(&share)?;
        burst(&mut next)?;
        drop(ending);
        for guest in guests {
            let (mut guest, files) = guest.join().expect("no panic")?;
            ensure!(files > 0, "a guest did nothing");
            burst(&mut guest)?;
        }
        guest_processes(&upgradable.daemon)
    })?;
    ensure!(processes.len() > 1, "{processes:?}");
    wait_for_log(&upgradable.daemon, "another acceptor goes on")
}
