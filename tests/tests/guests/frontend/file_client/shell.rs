//! `shell`: from a script, and at a terminal; and progress at a terminal.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::tools;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::client::run;
use crate::fixture::Fixture;

/// Limit for an answer of the shell.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_script_runs_to_its_end_and_reports_what_failed() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let share = fixture.share.path().to_owned();
        let script = b"# A comment, and an empty line.\n\n\
            mkdir -p 'with space/deep'\n\
            cd 'with space'\n\
            touch \"a b\" c.txt '*'\n\
            pwd\n\
            cd deep/..\n\
            find . -type f\n\
            rm '*'\n\
            mv *.txt deep\n\
            cd\n\
            chmod 600 with\\ space/deep/c.txt\n";
        let output = run(&mut fixture, &["shell"], script)?;
        ensure!(output.status.success(), "{output:?}");
        let told = String::from_utf8(output.stdout)?;
        ensure!(told == "/with space\n./*\n./a b\n./c.txt\n", "{told}");
        ensure!(share.join("with space/deep/c.txt").exists());
        ensure!(share.join("with space/a b").exists() && !share.join("with space/*").exists());

        // The shell expands names of the host as well, unless they are quoted.
        let elsewhere = tempfile::tempdir()?;
        for name in ["one.md", "two.md", "*.md"] {
            fs::write(elsewhere.path().join(name), name)?;
        }
        let script = format!(
            "lcd {}\ncp '*.md' :\nlpwd\ncp [a-z]*.md :'with space'\n",
            elsewhere.path().display()
        );
        let output = run(&mut fixture, &["shell"], script.as_bytes())?;
        ensure!(output.status.success(), "{output:?}");
        ensure!(share.join("*.md").exists() && !share.join("one.md").exists());
        ensure!(share.join("with space/one.md").exists());
        ensure!(!share.join("with space/*.md").exists());
        let output = run(&mut fixture, &["shell"], b"write file\n")?;
        ensure!(output.status.code() == Some(1), "{output:?}");

        let script = b"cat missing\nfrobnicate\nrm 'open\ntouch after\nexit\ntouch never\n";
        let output = run(&mut fixture, &["shell"], script)?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        let told = String::from_utf8(output.stderr)?;
        for part in [
            "error: no such file: missing",
            "unrecognized subcommand 'frobnicate'",
            "a quote is not closed",
            "3 commands failed",
        ] {
            ensure!(told.contains(part), "{part} is missing:\n{told}");
        }
        ensure!(share.join("after").exists() && !share.join("never").exists());

        let script = b"cat missing\ntouch never\n";
        let output = run(&mut fixture, &["shell", "--exit-on-error"], script)?;
        ensure!(output.status.code() == Some(1) && !share.join("never").exists());
    }
    Ok(())
}

/// A program at a terminal.
struct Terminal {
    controller: File,
    child: Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(fixture: &Fixture, arguments: &[&str], state: &Path) -> Result<Self> {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        let size = Winsize {
            ws_row: 24,
            ws_col: 200,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&controller, size)?;
        let name = ptsname(&controller, Vec::new())?;
        let name = name.to_str()?.to_owned();
        let end = || {
            File::options()
                .read(true)
                .write(true)
                .open(&name)
                .context("opening the terminal")
        };
        let child = Command::new(tools::frontend()?)
            .args(["fs", "--limit=20", "--socket"])
            .arg(fixture.daemon.socket())
            .args(arguments)
            .env("XDG_STATE_HOME", state)
            .env("TERM", "xterm")
            .stdin(end()?)
            .stdout(end()?)
            .stderr(end()?)
            .spawn()?;
        let controller: File = controller.into();
        let mut reader = controller.try_clone()?;
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Fails when the last program at the terminal has ended.
            while let Ok(len @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            controller,
            child,
            output,
            seen: String::new(),
        })
    }

    fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.controller.write_all(text.as_bytes())?)
    }

    /// Waits for a text behind what was seen before.
    fn expect(&mut self, text: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            let left = LIMIT.saturating_sub(begun.elapsed());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => bail!("no {text:?} in {:?}", self.seen),
            }
        }
    }

    /// Waits for the end, and returns what was shown since.
    fn end(mut self) -> Result<String> {
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}: {}", self.seen);
        // The terminal hangs up with the last process that has it.
        while let Ok(bytes) = self.output.recv_timeout(LIMIT) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok(self.seen)
    }
}

#[test]
fn a_terminal_completes_names_and_keeps_its_history() -> Result<()> {
    let fixture = Fixture::ours(&[])?;
    let state = tempfile::tempdir()?;
    let share = fixture.share.path().to_owned();
    fs::create_dir_all(share.join("reports/two words"))?;
    fs::write(
        share.join("reports/two words/unique-name.txt"),
        b"found it\n",
    )?;
    fs::write(share.join("other"), b"")?;
    let mut terminal = Terminal::start(&fixture, &["shell"], state.path())?;
    terminal.expect("fs> ")?;
    terminal.send("ca\t")?;
    terminal.expect("cat ")?;
    terminal.send("rep\t")?;
    terminal.expect("reports/")?;
    terminal.send("tw\t")?;
    terminal.expect("'reports/two words/'")?;
    terminal.send("un\t")?;
    terminal.expect("unique-name.txt'")?;
    terminal.send("\r")?;
    terminal.expect("found it")?;
    terminal.expect("fs> ")?;
    // An error ends no terminal's shell.
    terminal.send("cat nothing\r")?;
    terminal.expect("no such file: nothing")?;
    terminal.expect("fs> ")?;
    terminal.send("cp :oth\t")?;
    terminal.expect(":other ")?;
    terminal.send("\x03")?;
    terminal.expect("fs> ")?;
    terminal.send("rm --rec\t")?;
    terminal.expect("--recursive ")?;
    terminal.send("\x03")?;
    terminal.expect("fs> ")?;
    terminal.send("exit\r")?;
    terminal.end()?;
    let history = fs::read_to_string(state.path().join("gangplank/fs-history"))?;
    ensure!(history.contains("unique-name.txt"), "{history}");

    let mut terminal = Terminal::start(&fixture, &["shell"], state.path())?;
    terminal.expect("fs> ")?;
    // The line before "exit" and "cat nothing", from the first shell.
    terminal.send("\x1b[A\x1b[A\x1b[A\r")?;
    terminal.expect("found it")?;
    terminal.expect("fs> ")?;
    terminal.send("\x04")?;
    terminal.end()?;
    Ok(())
}

/// Progress is for terminals: the other tests see none.
#[test]
fn a_copy_shows_its_progress_at_a_terminal() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let state = tempfile::tempdir()?;
    fs::create_dir(fixture.share.path().join("tree"))?;
    for name in ["one", "two", "three"] {
        fs::write(
            fixture.share.path().join("tree").join(name),
            vec![b'x'; 24 << 20],
        )?;
    }
    for (arguments, expected) in [
        (&["cp", ":tree/one", ":copy"][..], "/24.00 MiB"),
        (&["cp", "-r", ":tree", ":tree-copy"], " B/s"),
    ] {
        let shown = Terminal::start(&fixture, arguments, state.path())?.end()?;
        ensure!(shown.contains(expected), "{arguments:?}: {shown:?}");
        ensure!(shown.ends_with("\u{1b}[2K"), "a line is left: {shown:?}");
    }
    let output = run(&mut fixture, &["cp", "-r", ":tree", ":again"], b"")?;
    ensure!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
    Ok(())
}
