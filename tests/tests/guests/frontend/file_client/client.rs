//! Runs the file client.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use gangplank_tests::tools;

use crate::fixture::Fixture;

/// Runs the file client on the fixture's share, with `input` as standard input.
pub(crate) fn run<S: AsRef<OsStr>>(
    fixture: &mut Fixture,
    arguments: &[S],
    input: &[u8],
) -> Result<Output> {
    let mut child = Command::new(tools::frontend()?)
        .args(["fs", "--limit=20", "--socket"])
        .arg(fixture.daemon.socket())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the file client")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // A command that reads nothing may have ended.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output()?;
    fixture.serve_again()?;
    Ok(output)
}

/// Runs a command that must succeed. Returns its output.
pub(crate) fn done<S: AsRef<OsStr> + Debug>(
    fixture: &mut Fixture,
    arguments: &[S],
) -> Result<String> {
    let output = run(fixture, arguments, b"")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command that must fail. Returns its exit status and its message.
pub(crate) fn failed<S: AsRef<OsStr> + Debug>(
    fixture: &mut Fixture,
    arguments: &[S],
) -> Result<(i32, String)> {
    let output = run(fixture, arguments, b"")?;
    let status = output.status.code().context("ended by a signal")?;
    ensure!(status != 0, "{arguments:?} should have failed");
    Ok((status, String::from_utf8(output.stderr)?))
}

/// Bytes of which each block is different.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}
