//! pjdfstest: POSIX, test by test, compared with the host's file system.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::runner::note;
use gangplank_tests::tools;

use crate::Fixture;

/// Tests that pass on the host and may fail through virtio-fs, each with the reason.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Minimum number of tests. The suite has 398; far fewer mean that its report was not parsed.
const AT_LEAST: usize = 390;

/// Number of tests that may fail on the host. `link::link_count_max` uses the C library's limit of
/// links, and musl's differs from the file system's; a few more depend on the host's file system.
const HOST_MAY_FAIL: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Skipped,
    Failed,
}

/// Every test that passes on the host's file system passes in the guest on the share.
pub(crate) fn passes_what_the_host_passes(fixture: &mut Fixture) -> Result<()> {
    // In the guest the suite runs in the Debian tree: it copies the `sleep` program to make it
    // busy, and a renamed copy of busybox does not sleep.
    fixture.debian()?;
    let work = fixture.host_path("debian/work");
    fs::write(work.join("pjdfstest.toml"), tools::PJDFSTEST_CONFIGURATION)?;
    fs::copy(tools::pjdfstest()?, work.join("pjdfstest"))?;
    fs::create_dir_all(work.join("pjd-guest"))?;
    // Short, because the suite binds sockets below it and socket addresses are short.
    let on_host = fixture.host_path("pjd");
    fs::create_dir_all(&on_host)?;
    let done = Command::new(tools::pjdfstest()?)
        .arg("-c")
        .arg(work.join("pjdfstest.toml"))
        .arg("-p")
        .arg(&on_host)
        .args(["-s", "/dev/shm"])
        .output()
        .context("running pjdfstest on the host")?;
    let host = verdicts(&String::from_utf8_lossy(&done.stdout));
    ensure!(
        host.len() >= AT_LEAST,
        "only {} tests on the host: {}",
        host.len(),
        String::from_utf8_lossy(&done.stderr)
    );
    // A host on which many tests fail would prove nothing.
    let failed = host
        .values()
        .filter(|verdict| **verdict == Verdict::Failed)
        .count();
    ensure!(
        failed <= HOST_MAY_FAIL,
        "{failed} tests fail on the host itself:\n{}",
        details(&String::from_utf8_lossy(&done.stdout))
    );
    // The exit status adds nothing to the report; 1 means that some test failed.
    let output = fixture.guest.run(
        "chroot /mnt/debian /work/pjdfstest -c /work/pjdfstest.toml -p /work/pjd-guest -s /dev/shm",
        Duration::from_secs(900),
    )?;
    let guest = verdicts(&output.text);
    note(&format!(
        "on the host {}; through virtio-fs {}",
        counts(&host),
        counts(&guest)
    ));
    let mut worse = Vec::new();
    for (name, verdict) in &host {
        let excepted = EXCEPTIONS.iter().any(|(exception, _)| exception == name);
        if *verdict == Verdict::Passed && guest.get(name) != Some(&Verdict::Passed) && !excepted {
            worse.push(format!("{name}: {:?}", guest.get(name)));
        }
    }
    ensure!(
        worse.is_empty(),
        "passed on the host and not in the guest: {worse:#?}\n{}",
        details(&output.text)
    );
    Ok(())
}

/// Parses lines of a test's name, blanks, and `ok`, `skipped` or `FAILED`.
fn verdicts(report: &str) -> BTreeMap<String, Verdict> {
    report
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().filter(|name| name.contains("::"))?;
            let verdict = match words.next()? {
                "ok" => Verdict::Passed,
                "skipped" => Verdict::Skipped,
                "FAILED" => Verdict::Failed,
                _ => return None,
            };
            Some((name.to_owned(), verdict))
        })
        .collect()
}

fn counts(verdicts: &BTreeMap<String, Verdict>) -> String {
    let count = |wanted| {
        verdicts
            .values()
            .filter(|verdict| **verdict == wanted)
            .count()
    };
    format!(
        "{} passed, {} skipped, {} failed",
        count(Verdict::Passed),
        count(Verdict::Skipped),
        count(Verdict::Failed)
    )
}

/// The report's text for each failed test.
fn details(report: &str) -> String {
    let mut shown = String::new();
    let mut left = 0;
    for line in report.lines() {
        if line.ends_with("FAILED") {
            left = 5;
        }
        if left > 0 {
            shown.push_str(line);
            shown.push('\n');
            left -= 1;
        }
    }
    shown
}
