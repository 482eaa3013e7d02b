//! pjdfstest: POSIX, test by test, compared with the host's file system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::tools;
use gangplank_tests::trials::note;

use crate::Bench;

/// What Linux has and rhostfs has calls for; two accounts that every Debian has; a nap longer than the granularity of times in
/// rhostfs, which are whole seconds.
const CONFIGURATION: &str = r#"
[features]
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 1.05
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"]]
"#;

/// Tests that pass on the host and cannot pass through rhostfs, each with the reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("utimensat::subsecond", "times are told in whole seconds"),
    ("utimensat::y2038", "times are set in 32 bits of seconds"),
];

/// The suite has 398 tests; a handful less would mean that it was not read properly.
const AT_LEAST: usize = 390;

/// Every test that passes on the host's file system passes in the mount.
pub(crate) fn passes_what_the_host_passes(bench: &mut Bench) -> Result<()> {
    let configuration = bench.there("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION)?;
    // Short, because the suite binds sockets below it and their addresses are short.
    fs::create_dir(bench.there("h"))?;
    fs::create_dir(bench.there("m"))?;
    let (host, _) = run(&configuration, &bench.there("h"))?;
    let (mount, details) = run(&configuration, &bench.here("m"))?;
    ensure!(
        host.len() >= AT_LEAST,
        "only {} tests on the host",
        host.len()
    );
    let passed = |verdicts: &BTreeMap<String, String>| {
        verdicts.values().filter(|verdict| *verdict == "ok").count()
    };
    note(&format!(
        "on the host {} of {} pass; through rhostfs {}",
        passed(&host),
        host.len(),
        passed(&mount)
    ));
    let mut wrong = Vec::new();
    for (name, verdict) in &host {
        let excepted = EXCEPTIONS.iter().any(|(exception, _)| exception == name);
        let passes = mount.get(name).is_some_and(|verdict| verdict == "ok");
        if verdict == "ok" && passes == excepted {
            wrong.push(format!("{name}: {:?}", mount.get(name)));
        }
    }
    ensure!(
        wrong.is_empty(),
        "pass on the host and not in the mount, or are excepted and pass: {wrong:#?}\n{details}"
    );
    Ok(())
}

/// Runs the suite in `directory`; each test's verdict, and the report.
fn run(configuration: &Path, directory: &Path) -> Result<(BTreeMap<String, String>, String)> {
    let done = Command::new(tools::pjdfstest()?)
        .arg("-c")
        .arg(configuration)
        .arg("-p")
        .arg(directory)
        .args(["-s", "/dev/shm"])
        .output()
        .context("running pjdfstest")?;
    let report = String::from_utf8_lossy(&done.stdout).into_owned();
    let verdicts = report
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().filter(|name| name.contains("::"))?;
            Some((name.to_owned(), words.next()?.to_owned()))
        })
        .collect();
    Ok((verdicts, report))
}
