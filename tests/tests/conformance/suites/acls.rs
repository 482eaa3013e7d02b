//! Access control lists: the same cases on the host's file system and in a guest, line by line.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use gangplank_tests::runner::note;
use gangplank_tests::{packages, tools};

use crate::Fixture;

/// Lines that differ with kernels before Linux 6.2, by a part of them: FUSE had no operation for
/// nameless files, and an empty list was refused, which removes a list now, so that the steps after
/// it find another list.
const NEWER: [&str; 4] = ["nameless", "no bytes", "another version", "half an entry"];

/// Minimum number of lines. Fewer mean that the host did not come to the end.
const AT_LEAST: usize = 300;

/// Differences that a failure shows.
const SHOWN: usize = 30;

/// Every case has the same outcome in the guest as on the host.
pub(crate) fn agree_with_the_host(fixture: &mut Fixture) -> Result<()> {
    let check = tools::guest_check(fixture.guest.machine().arch())?;
    for name in ["acls-of-host", "acls-of-guest"] {
        fs::create_dir(fixture.host_path(name))?;
    }
    let mut command = Command::new(check);
    let host = packages::output(command.arg(fixture.host_path("acls-of-host")).arg("--acls"))?;
    ensure!(
        host.starts_with("mask, set: ok\n"),
        "the file system of the temporary directory has no lists: {host}"
    );
    let guest = fixture.guest.sh_within(
        "guest-check /mnt/acls-of-guest --acls",
        Duration::from_secs(300),
    )?;
    let is_old = fixture.guest.sh("uname -r")?.starts_with("6.1.");
    let is_compared = |line: &str| !is_old || !NEWER.iter().any(|part| line.contains(part));
    let lines = |report: &str| -> Vec<String> {
        let lines = report.lines().filter(|line| is_compared(line));
        lines.map(str::to_owned).collect()
    };
    let (host, guest) = (lines(&host), lines(&guest));
    ensure!(host.len() >= AT_LEAST, "only {} lines", host.len());
    ensure!(
        host.len() == guest.len(),
        "{} lines on the host, {} in the guest, whose last is {:?}",
        host.len(),
        guest.len(),
        guest.last()
    );
    let differences: Vec<String> = host
        .iter()
        .zip(&guest)
        .filter(|(host, guest)| host != guest)
        .map(|(host, guest)| format!("host:  {host}\nguest: {guest}"))
        .collect();
    ensure!(
        differences.is_empty(),
        "{} of {} lines differ:\n{}",
        differences.len(),
        host.len(),
        differences[..differences.len().min(SHOWN)].join("\n")
    );
    note(&format!("{} lines agree", host.len()));
    Ok(())
}
