//! Driving a guest through its console: commands in, output and exit status back.
//!
//! The other end is `agent.sh`, which also defines the line format.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::{Condvar, Mutex};

/// Limit of an encoded piece of a command on one line, in bytes: well below the 4095 bytes that a
/// terminal accepts in a line.
const PIECE: usize = 1200;

/// How often a command is sent again that the console has mutilated.
const MAX_RESENDS: usize = 5;

/// Number of console lines in an error message.
const TAIL_LINES: usize = 40;

/// The result of a guest command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status as the guest's shell saw it (128 + signal when killed).
    pub status: i32,
    /// Standard output and standard error, interleaved.
    pub text: String,
}

/// Everything the console printed so far, filled by a reader thread.
#[derive(Default)]
struct Transcript {
    bytes: Vec<u8>,
    closed: bool,
}

type Shared = Arc<(Mutex<Transcript>, Condvar)>;

/// The host's end of a guest's console.
pub struct Console {
    input: Box<dyn Write + Send>,
    transcript: Shared,
    /// Offset in the transcript of the next reply.
    position: usize,
    commands: u64,
}

impl Console {
    /// A console that is written to by `input` and read from `output`.
    pub fn new(input: impl Write + Send + 'static, mut output: impl Read + Send + 'static) -> Self {
        let transcript = Shared::default();
        let filled = Arc::clone(&transcript);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let count = output.read(&mut chunk).unwrap_or(0);
                let mut transcript = filled.0.lock();
                transcript
                    .bytes
                    .extend_from_slice(chunk.get(..count).unwrap_or_default());
                transcript.closed = count == 0;
                filled.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Self {
            input: Box::new(input),
            transcript,
            position: 0,
            commands: 0,
        }
    }

    /// Waits until the guest's agent says that it serves commands.
    ///
    /// # Errors
    /// When it has not by `limit`, or the guest ended; with the end of its console.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self
            .frame(deadline)
            .context("waiting for the guest to boot")?
            != "ready"
        {}
        Ok(())
    }

    /// Runs the shell text `command` in the guest.
    ///
    /// # Errors
    /// When it has not ended by `limit` or the guest ended; with the end of its console. A command
    /// that fails is an [`Output`], not an error.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        self.commands += 1;
        let id = self.commands.to_string();
        self.send(command, &id)
            .with_context(|| format!("sending the guest the command: {command}"))?;
        let mut encoded = String::new();
        let mut lines = 0_usize;
        let mut resends = 0;
        loop {
            let frame = self
                .frame(deadline)
                .with_context(|| format!("running in the guest: {command}"))?;
            let mut words = frame.split(' ');
            match (words.next(), words.next()) {
                (Some("out"), Some(of)) if of == id => {
                    encoded.push_str(words.next().unwrap_or_default());
                    lines += 1;
                }
                (Some("end"), Some(of)) if of == id => {
                    let status = words.next().unwrap_or_default();
                    let expected = words.next().unwrap_or_default();
                    ensure!(
                        expected == lines.to_string(),
                        "the guest sent {expected} lines of output, {lines} arrived:\n{}",
                        self.tail()
                    );
                    let bytes = BASE64.decode(&encoded).with_context(|| {
                        format!("decoding the guest's output:\n{}", self.tail())
                    })?;
                    return Ok(Output {
                        status: status
                            .parse()
                            .with_context(|| format!("exit status '{status}' of: {command}"))?,
                        text: String::from_utf8_lossy(&bytes).into_owned(),
                    });
                }
                (Some("lost"), Some(of)) if of == id && resends < MAX_RESENDS => {
                    eprintln!("the guest's console mutilated a command; it is sent again");
                    resends += 1;
                    self.send(command, &id)?;
                }
                (Some("lost"), Some(of)) if of == id => bail!(
                    "the console has mutilated a command {resends} times: {command}\n{}",
                    self.tail()
                ),
                (Some("ready"), _) => bail!("the guest rebooted while running: {command}"),
                _ => {}
            }
        }
    }

    /// Sends `command` without waiting for a reply, for commands that end the guest.
    ///
    /// # Errors
    /// When the console is closed.
    pub fn send_only(&mut self, command: &str) -> Result<()> {
        self.send(command, "0")
    }

    /// The last lines the guest printed, for error messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let transcript = self.transcript.0.lock();
        let text = String::from_utf8_lossy(&transcript.bytes);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("@gp out"))
            .collect();
        let mut tail = String::from("--- end of the guest's console ---\n");
        for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
            let _ = writeln!(tail, "  {}", line.trim_end());
        }
        tail
    }

    fn send(&mut self, command: &str, id: &str) -> Result<()> {
        let encoded = BASE64.encode(command);
        // Cut on multiples of four, so that each piece decodes on its own.
        for piece in encoded.as_bytes().chunks(PIECE) {
            self.input.write_all(b"w ")?;
            self.input.write_all(piece)?;
            self.input.write_all(b"\n")?;
        }
        let len = command.len();
        self.input.write_all(format!("x {id} {len}\n").as_bytes())?;
        self.input.flush()?;
        Ok(())
    }

    /// The next `@gp` line without that mark.
    fn frame(&mut self, deadline: Instant) -> Result<String> {
        let shared = Arc::clone(&self.transcript);
        let mut transcript = shared.0.lock();
        loop {
            while let Some(line) = next_line(&transcript.bytes, &mut self.position) {
                if let Some((_, frame)) = line.split_once("@gp ") {
                    return Ok(frame.trim_end().to_owned());
                }
            }
            let now = Instant::now();
            let why = match (transcript.closed, deadline.checked_duration_since(now)) {
                (true, _) => "the guest ended",
                (false, None) => "the guest did not answer in time",
                (false, Some(rest)) => {
                    shared.1.wait_for(&mut transcript, rest);
                    continue;
                }
            };
            drop(transcript);
            bail!("{why}\n{}", self.tail());
        }
    }
}

/// The complete line at `position`, which moves past it.
fn next_line(bytes: &[u8], position: &mut usize) -> Option<String> {
    let rest = bytes.get(*position..)?;
    let length = rest.iter().position(|byte| *byte == b'\n')?;
    *position += length + 1;
    Some(String::from_utf8_lossy(rest.get(..length)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_collects_output_between_foreign_lines_and_reads_the_status() {
        let said: &[u8] =
            b"[ 0.1] noise\n@gp out 1 aGVs\n[ 0.2] noise\n@gp out 1 bG8K\r\n@gp end 1 3 2\n";
        let mut console = Console::new(Vec::new(), said);
        let output = console.run("whatever", Duration::from_secs(5)).unwrap();
        assert_eq!(output.status, 3);
        assert_eq!(output.text, "hello\n");
    }

    #[test]
    fn run_notices_a_lost_line() {
        let said: &[u8] = b"@gp out 1 aGVs\n@gp end 1 0 2\n";
        let mut console = Console::new(Vec::new(), said);
        let error = console.run("whatever", Duration::from_secs(5)).unwrap_err();
        assert!(format!("{error:#}").contains("2 lines"), "{error:#}");
    }

    #[test]
    fn run_reports_the_console_of_a_guest_that_ended() {
        let said: &[u8] = b"Kernel panic - not syncing: so it is\n";
        let mut console = Console::new(Vec::new(), said);
        let error = console.run("whatever", Duration::from_secs(5)).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("the guest ended") && text.contains("so it is"),
            "{text}"
        );
    }

    #[test]
    fn run_gives_up_at_its_deadline() {
        let (silent, _kept_open) = std::io::pipe().unwrap();
        let mut console = Console::new(Vec::new(), silent);
        let error = console
            .run("sleep 9", Duration::from_millis(20))
            .unwrap_err();
        assert!(format!("{error:#}").contains("did not answer in time"));
    }
}
