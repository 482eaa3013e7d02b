//! What the programs say where their standard error is systemd's journal, which a socket plays.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::process;
use rustix::process::Signal;

use crate::fixture::{Fixture, root_or_skip};

/// Limit for a message.
const LIMIT: Duration = Duration::from_secs(60);

/// The daemon with its standard error in `errors`, which it takes for the journal's stream. If
/// `journal` is given, that socket is where the journal takes messages, in a mount namespace of the
/// daemon's own.
fn command(fixture: &Fixture, errors: &Path, journal: Option<&Path>) -> Result<Command> {
    let file = File::create(errors)?;
    let stat = file.metadata()?;
    let place = match journal {
        Some(journal) => format!(
            "mkdir /run/systemd /run/systemd/journal && ln -s {} /run/systemd/journal/socket && ",
            journal.display()
        ),
        None => String::new(),
    };
    let script = format!(
        "mount -t tmpfs tmpfs /run && {place}exec {} --socket-path=fs.sock --shared-dir=share",
        fixture.program().display()
    );
    let mut command = process::tied("unshare", None);
    command
        .args(["--mount", "sh", "-c", &script])
        .env("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino()))
        .env_remove("RUST_LOG")
        .current_dir(fixture.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file);
    Ok(command)
}

/// Waits for a message that has `text`. Returns its fields.
fn message(journal: &UnixDatagram, text: &str) -> Result<String> {
    let mut buffer = [0; 65536];
    loop {
        let len = journal.recv(&mut buffer).context(text.to_owned())?;
        let message = String::from_utf8_lossy(&buffer[..len]).into_owned();
        if message.contains(text) {
            return Ok(message);
        }
    }
}

#[test]
fn the_journal_gets_priorities_and_fields_also_from_the_confined_processes() -> Result<()> {
    if !root_or_skip("the_journal_gets_priorities_and_fields_also_from_the_confined_processes") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let (socket, errors) = (fixture.file("journal"), fixture.file("stderr"));
    let journal = UnixDatagram::bind(&socket)?;
    journal.set_read_timeout(Some(LIMIT))?;
    let mut child = process::spawn(command(&fixture, &errors, Some(&socket))?)?;
    let ready = message(&journal, "waiting for guests")?;
    let has = |message: &str, line: &str| message.lines().any(|other| other == line);
    ensure!(has(&ready, "PRIORITY=6"), "{ready}");
    ensure!(has(&ready, "SYSLOG_IDENTIFIER=gangplankd"), "{ready}");
    ensure!(ready.contains("\nCODE_FILE=") && ready.contains("\nCODE_LINE="));
    ensure!(!ready.contains("GANGPLANK_GUEST"), "{ready}");
    // A frontend that breaks the protocol is an error of its guest alone.
    let frontend = std::os::unix::net::UnixStream::connect(fixture.file("fs.sock"))?;
    std::io::Write::write_all(&mut &frontend, &[0xff; 64])?;
    let dropped = message(&journal, "guest 1 is dropped")?;
    ensure!(has(&dropped, "PRIORITY=3"), "{dropped}");
    ensure!(has(&dropped, "GANGPLANK_GUEST=1"), "{dropped}");
    process::signal(&child, Signal::TERM)?;
    message(&journal, "the daemon has ended")?;
    let status = process::wait_within(&mut child, LIMIT)?;
    ensure!(status.success(), "{status}");
    let lines = fs::read_to_string(errors)?;
    ensure!(lines.is_empty(), "{lines}");
    Ok(())
}

#[test]
fn without_the_journals_socket_lines_begin_with_their_priority() -> Result<()> {
    if !root_or_skip("without_the_journals_socket_lines_begin_with_their_priority") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let errors = fixture.file("stderr");
    let mut child = process::spawn(command(&fixture, &errors, None)?)?;
    let deadline = Instant::now() + LIMIT;
    while !fs::read_to_string(&errors)?.contains("waiting for guests") {
        ensure!(Instant::now() < deadline, "it does not serve");
        thread::sleep(Duration::from_millis(5));
    }
    process::signal(&child, Signal::TERM)?;
    let status = process::wait_within(&mut child, LIMIT)?;
    let lines = fs::read_to_string(&errors)?;
    ensure!(status.success(), "{status}: {lines}");
    ensure!(lines.lines().count() > 0);
    ensure!(lines.lines().all(|line| line.starts_with("<6>")), "{lines}");
    ensure!(lines.contains("<6>sharing "), "{lines}");
    Ok(())
}
