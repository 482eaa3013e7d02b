//! `gangplankd status --watch` in a terminal.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::NodeId;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::fixture::Fixture;

/// Limit for a screen to show something.
const LIMIT: Duration = Duration::from_secs(30);

/// Leaves the alternate screen.
const LEAVE: &str = "\x1b[?1049l";

/// Both ends of a terminal.
fn terminal() -> Result<(File, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&slave, size)?;
    Ok((File::from(master), slave))
}

fn modes(terminal: &OwnedFd) -> Result<String> {
    let Termios {
        input_modes,
        output_modes,
        local_modes,
        ..
    } = tcgetattr(terminal)?;
    Ok(format!("{input_modes:?} {output_modes:?} {local_modes:?}"))
}

#[test]
fn the_screen_is_renewed_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let mut driver = fixture.driver()?;
    let (mut master, slave) = terminal()?;
    let before = modes(&slave)?;
    let mut child = fixture
        .command(&["--watch"])
        .env("TERM", "xterm")
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave.try_clone()?)
        .spawn()?;
    let (sender, receiver) = mpsc::channel();
    let mut reading = master.try_clone()?;
    let reader = thread::spawn(move || {
        let mut part = [0; 4096];
        loop {
            match reading.read(&mut part) {
                Ok(0) => return,
                Ok(count) => {
                    let _ = sender.send(part[..count].to_vec());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // All other ends are closed.
                Err(_) => return,
            }
        }
    });
    let mut shown = String::new();
    let mut wait_for = |words: &str| -> Result<()> {
        let end = Instant::now() + LIMIT;
        while !shown.contains(words) {
            let left = end.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(part) => shown.push_str(&String::from_utf8_lossy(&part)),
                Err(_) => bail!("no {words:?} in {shown:?}"),
            }
        }
        Ok(())
    };
    wait_for("1/")?;
    wait_for("INIT")?;
    ensure!(modes(&slave)? != before, "the terminal is not raw");
    // What happens meanwhile appears.
    driver.getattr(NodeId::ROOT, None)?;
    wait_for("GETATTR")?;
    master.write_all(b"q")?;
    wait_for(LEAVE)?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    ensure!(modes(&slave)? == before, "the terminal is not what it was");
    drop(slave);
    reader.join().ok().context("the reader panicked")?;
    Ok(())
}

#[test]
fn without_a_terminal_there_is_an_error_in_words() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let output = fixture.command(&["--watch"]).output()?;
    let errors = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(1) && errors.contains("--json"),
        "{errors}"
    );
    Ok(())
}
