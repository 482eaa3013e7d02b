//! SIGKILL of the process that accepts guests: all guests go on, and so does everything else.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::process::{copy_program, with_descendants};
use gangplank_tests::wait;
use rustix::process::{Pid, Signal, kill_process};

use super::fixture::{Connection, Fixture, Running};
use super::process::Process;
use super::sandbox::{gone, kill, setups};

/// Limit for the daemon to notice something.
const NOTICING: Duration = Duration::from_secs(60);

/// The log's words when an acceptor is in the place of another.
const GOES_ON: &str = "another acceptor goes on";

/// Kills the acceptor, and waits for the next one. A new guest can connect then.
fn replace_acceptor(daemon: &Running) -> Result<u32> {
    let acceptor = daemon.acceptor_pid()?;
    let replaced = daemon.log().matches(GOES_ON).count();
    kill(acceptor)?;
    wait_for_log(daemon, GOES_ON, replaced + 1)?;
    let next = daemon.acceptor_pid()?;
    ensure!(next != acceptor, "the acceptor lives on");
    Ok(next)
}

/// Waits until the log has `words` this often.
fn wait_for_log(daemon: &Running, words: &str, times: usize) -> Result<()> {
    let waited = wait::until(&format!("the log has {words:?}"), NOTICING, || {
        Ok(daemon.log().matches(words).count() >= times)
    });
    waited.with_context(|| daemon.log())
}

/// Waits until the daemon has so many processes, as it has once those that were killed are waited
/// for. Returns them.
fn wait_for_processes(daemon: &Running, count: usize) -> Result<Vec<u32>> {
    let what = format!("there are {count} processes");
    wait::until_found(&what, NOTICING, || {
        let processes = with_descendants(daemon.pid());
        Ok((processes.len() == count).then_some(processes))
    })
}

fn served(guests: &mut [Connection]) -> Result<()> {
    for guest in guests {
        guest.get_features()?;
        ensure!(Process(guest.keeper).is_alive() && Process(guest.worker).is_alive());
    }
    Ok(())
}

#[test]
fn all_guests_go_on_by_the_same_processes_and_all_is_in_order_afterwards() -> Result<()> {
    for (fixture, sandbox) in setups()? {
        let daemon = fixture.serve(&[sandbox, "--max-guests=4"])?;
        let mut guests = vec![daemon.connect()?, daemon.connect()?];
        for round in 1..=2 {
            replace_acceptor(&daemon)?;
            served(&mut guests)?;
            guests.push(daemon.connect().with_context(|| daemon.log())?);
            let has_connected = format!("guest {} has connected", guests.len());
            wait_for_log(&daemon, &has_connected, 1)?;
            wait_for_log(&daemon, "the acceptor was ended by signal 9", round)?;
        }
        // Adopted guests are counted, by one acceptor after another.
        ensure!(daemon.connect().is_err(), "a guest too many is served");
        wait_for_log(&daemon, "guest 5 is refused: 4 guests", 1)?;
        // A killed keeper takes its own guest along, and its place is free.
        let lost = guests.remove(0);
        kill(lost.keeper)?;
        gone(lost.worker)?;
        wait_for_log(&daemon, "the keeper of guest 1 was ended by signal 9", 1)?;
        served(&mut guests)?;
        // A killed worker takes none.
        kill(guests[0].worker)?;
        gone(guests[0].worker)?;
        guests[0].get_features()?;
        let deadline = Instant::now() + NOTICING;
        let last = loop {
            match daemon.connect() {
                Ok(guest) => break guest,
                Err(_) => ensure!(Instant::now() < deadline, "{}", daemon.log()),
            }
        };
        let processes = wait_for_processes(&daemon, 10)?;
        let ended = daemon.signal(Signal::TERM)?;
        ensure!(ended.status.success(), "{ended:?}");
        for guest in guests.iter_mut().chain([&mut { last }]) {
            ensure!(guest.stream.read(&mut [0; 8])? == 0, "the connection ends");
        }
        for process in processes {
            ensure!(!Process(process).is_alive(), "process {process} lives on");
        }
        ensure!(!fixture.file("fs.sock").exists());
        ensure!(!fixture.file("fs.sock.pid").exists());
    }
    Ok(())
}

#[test]
fn a_reload_hands_adopted_guests_over_and_the_next_acceptor_adopts_those() -> Result<()> {
    for (fixture, sandbox) in setups()? {
        let daemon = fixture.serve(&[sandbox])?;
        let mut guests = vec![daemon.connect()?, daemon.connect()?];
        replace_acceptor(&daemon)?;
        guests.push(daemon.connect()?);
        for reload in 1..=2 {
            let socket = format!("--socket-path={}", fixture.file("fs.sock").display());
            let asked = fixture.run(&["--reload", &socket])?;
            ensure!(asked.status.success(), "{asked:?}\n{}", daemon.log());
            wait_for_log(&daemon, &format!("reload {reload} is done"), 1)?;
            for guest in &mut guests {
                guest.get_features().with_context(|| daemon.log())?;
            }
            replace_acceptor(&daemon)?;
            for guest in &mut guests {
                guest.get_features().with_context(|| daemon.log())?;
            }
        }
        daemon.connect()?.get_features()?;
        wait_for_log(&daemon, "guest 4 has connected", 1)?;
        let ended = daemon.signal(Signal::TERM)?;
        ensure!(ended.status.success(), "{ended:?}");
    }
    Ok(())
}

#[test]
fn a_daemon_for_one_guest_ends_when_an_adopted_guest_leaves() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut daemon = fixture.serve(&["--exit-on-disconnect"])?;
    let mut guest = daemon.connect()?;
    replace_acceptor(&daemon)?;
    guest.get_features()?;
    drop(guest);
    let ended = daemon.end()?;
    ensure!(ended.status.success(), "{ended:?}");
    ensure!(!fixture.file("fs.sock").exists());
    Ok(())
}

#[test]
fn connections_that_come_while_there_is_no_acceptor_are_served() -> Result<()> {
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--max-crashes=1000"])?;
    let mut first = daemon.connect()?;
    for _ in 0..20 {
        kill(daemon.acceptor_pid()?)?;
        // The connection waits in the socket, or is served by a keeper that outlives its acceptor.
        daemon.connect().with_context(|| daemon.log())?;
        first.get_features()?;
    }
    let ended = daemon.signal(Signal::TERM)?;
    ensure!(ended.status.success(), "{ended:?}");
    Ok(())
}

#[test]
fn guests_end_in_order_when_acceptors_die_too_often() -> Result<()> {
    for (fixture, sandbox) in setups()? {
        let mut daemon = fixture.serve(&[sandbox, "--max-crashes=2"])?;
        let mut guest = daemon.connect()?;
        replace_acceptor(&daemon)?;
        guest.get_features()?;
        kill(daemon.acceptor_pid()?)?;
        let ended = daemon.end()?;
        ensure!(ended.status.code() == Some(128 + 9), "{ended:?}");
        for text in ["--max-crashes", "ended by signal 9", "guest 1 has gone"] {
            ensure!(ended.errors.contains(text), "{text}: {ended:?}");
        }
        ensure!(!fixture.file("fs.sock").exists());
        ensure!(!fixture.file("fs.sock.pid").exists());
        gone(guest.keeper)?;
        gone(guest.worker)?;
    }
    Ok(())
}

#[test]
fn guests_go_on_while_no_acceptor_can_be_started() -> Result<()> {
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--sandbox=none"])?;
    let mut guest = daemon.connect()?;
    std::fs::rename(fixture.file("share"), fixture.file("elsewhere"))?;
    kill(daemon.acceptor_pid()?)?;
    wait_for_log(&daemon, "no acceptor can be started", 1)?;
    guest.get_features()?;
    std::fs::rename(fixture.file("elsewhere"), fixture.file("share"))?;
    wait_for_log(&daemon, "another acceptor goes on with 1 guests", 1)?;
    guest.get_features()?;
    daemon.connect()?.get_features()?;
    std::fs::rename(fixture.file("share"), fixture.file("elsewhere"))?;
    kill(daemon.acceptor_pid()?)?;
    wait_for_log(&daemon, "the acceptor was ended by signal 9", 2)?;
    // There is nobody but the supervisor to end the guest.
    let ended = daemon.signal(Signal::TERM)?;
    ensure!(ended.status.success(), "{ended:?}");
    ensure!(ended.errors.contains("guest 1 has gone"), "{ended:?}");
    Ok(())
}

#[test]
fn the_end_of_the_supervisor_ends_adopted_guests_as_well() -> Result<()> {
    for (fixture, sandbox) in setups()? {
        let mut daemon = fixture.serve(&[sandbox])?;
        let _first = daemon.connect()?;
        let next = replace_acceptor(&daemon)?;
        let _second = daemon.connect()?;
        let processes = wait_for_processes(&daemon, 6)?;
        ensure!(processes.contains(&next), "{processes:?}");
        kill(daemon.pid())?;
        daemon.end()?;
        for process in processes {
            gone(process)?;
        }
    }
    Ok(())
}

#[test]
fn guests_go_on_with_the_running_program_when_its_file_is_another() -> Result<()> {
    let fixture = Fixture::new()?;
    let program = fixture.file("program");
    copy_program(fixture.program(), &program)?;
    let mut command = std::process::Command::new(&program);
    command
        .args(["--socket-path=fs.sock", "--shared-dir=share"])
        .current_dir(fixture.path());
    let daemon = fixture.start_command(command)?;
    let mut guest = daemon.connect()?;
    std::fs::remove_file(&program)?;
    std::fs::write(&program, "no program")?;
    replace_acceptor(&daemon)?;
    guest.get_features()?;
    daemon.connect()?.get_features()?;
    // SIGHUP starts the file at the path, which fails.
    let pid = Pid::from_raw(daemon.pid().try_into()?).context("a process id")?;
    kill_process(pid, Signal::HUP)?;
    wait_for_log(&daemon, "not reloaded", 1)?;
    guest.get_features()?;
    let ended = daemon.signal(Signal::TERM)?;
    ensure!(ended.status.success(), "{ended:?}");
    Ok(())
}

#[test]
fn a_daemon_that_is_told_to_end_does_so_in_order_without_its_acceptor() -> Result<()> {
    for (fixture, sandbox) in setups()? {
        let daemon = fixture.serve(&[sandbox])?;
        let _guest = daemon.connect()?;
        let acceptor = daemon.acceptor_pid()?;
        kill(acceptor)?;
        let ended = daemon.signal(Signal::TERM)?;
        ensure!(ended.status.success(), "{ended:?}");
        ensure!(ended.errors.contains("guest 1 has gone"), "{ended:?}");
        ensure!(!ended.errors.contains("in flight"), "{ended:?}");
        ensure!(!fixture.file("fs.sock").exists());
    }
    Ok(())
}
