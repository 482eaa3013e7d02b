//! What is wrong with shares on the command line or in files, and is said before anything starts.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::process;
use gangplank_tests::tools;

use super::fixture::{Fixture, LIMIT};

/// Runs gangplankd with `line`, in which `{}` is `place`; returns its status and what it says.
fn run(line: &str, place: &str) -> Result<(Option<i32>, String)> {
    let words = line
        .split_whitespace()
        .map(|word| word.replace("{}", place));
    let output = Command::new(tools::gangplankd()?).args(words).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), text))
}

#[test]
fn options_that_cannot_be_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = dir.path().display().to_string();
    for name in ["a", "b", "empty", "bad", "twice"] {
        fs::create_dir(dir.path().join(name))?;
    }
    fs::write(
        dir.path().join("bad/home.toml"),
        "# home\nshared-dir = \"/srv\"\ncache = \"often\"\n",
    )?;
    for name in ["one", "two"] {
        let text =
            format!("shared-dir = \"{place}/a\"\ntag = \"same\"\nsocket = \"{place}/{name}\"\n");
        fs::write(dir.path().join("twice").join(format!("{name}.toml")), text)?;
    }
    let socket_dir = "--socket-dir={}";
    for (line, status, hint) in [
        (
            "--share a={}/a --shared-dir={}/a",
            2,
            "--shared-dir cannot be used together",
        ),
        (
            "--share a={}/a --socket-path={}/s",
            2,
            "--socket-path cannot be used together",
        ),
        (
            "--share a={}/a --exit-on-disconnect",
            2,
            "--exit-on-disconnect cannot be used",
        ),
        (
            "--share a={}/a --trace={}/t",
            2,
            "--trace cannot be used together",
        ),
        ("--share a={}/a -o xattr", 2, "-o, -d or -f cannot be used"),
        (
            "--share a={}/a,control={}/c",
            2,
            "one socket is for all shares",
        ),
        (
            "--share a={}/a,nothing",
            2,
            "there is no option \"nothing\"",
        ),
        ("--share a", 2, "expected TAG=DIR"),
        ("--shares-dir {}/empty", 2, "no shares"),
        ("--shares-dir {}/none", 2, "none"),
        (
            "--shares-dir {}/bad",
            2,
            "bad/home.toml:3: invalid value 'often' for '--cache",
        ),
        ("--share a={}/a", 1, "share \"a\" has no socket"),
        (
            "--share a={}/a,cache=often,socket={}/s",
            1,
            "never, metadata, auto or always",
        ),
        (
            "--share a={}/a,socket={}/s --share b={}/b,socket={}/s",
            1,
            "have one socket",
        ),
        (
            "--share a={}/a,socket={}/s --share a={}/b,socket={}/t",
            1,
            "two shares \"a\"",
        ),
        ("--shares-dir {}/twice", 1, "two shares \"same\": of"),
        (
            "--share a={}/a,socket={}/s --share b={}/none,socket={}/t",
            1,
            "share \"b\": cannot share",
        ),
        (
            "--share a={}/a,socket={}/s --share b={}/b,socket={}/none/t",
            1,
            "cannot serve share \"b\": ",
        ),
    ] {
        let (found, text) = run(line, &place)?;
        ensure!(found == Some(status), "{line}: {found:?}\n{text}");
        ensure!(text.contains(hint), "{line}: {text}");
    }
    let (found, text) = run(&format!("--share a={{}}/none {socket_dir}"), &place)?;
    ensure!(found == Some(1) && text.contains("No such file"), "{text}");
    // The shares that could begin have ended.
    ensure!(!dir.path().join("s").exists());
    Ok(())
}

#[test]
fn a_service_managers_store_of_descriptors_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let notify = dir.path().join("notify").display().to_string();
    let mut fixture = Fixture::spawn(
        &["home"],
        &["--share=home={}/home"],
        &[("FDSTORE", "100".to_owned()), ("NOTIFY_SOCKET", notify)],
    )?;
    let status = process::wait_within(&mut fixture.child, LIMIT).context("it does not end")?;
    let log = fixture.log();
    ensure!(
        status.code() == Some(1) && log.contains("FileDescriptorStoreMax="),
        "{log}"
    );
    Ok(())
}
