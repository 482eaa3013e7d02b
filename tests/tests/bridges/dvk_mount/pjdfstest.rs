//! pjdfstest: POSIX, test by test, compared with the host's file system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::{array, thread};

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_tests::runner::note;
use gangplank_tests::tools;

use crate::Fixture;

/// The features that Linux has and rhostfs has calls for, and two accounts that every Debian has.
const CONFIGURATION: &str = r#"
[features]
rename_ctime = {}
utime_now = {}
utimensat = {}

[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"]]

[settings]
allow_remount = false
"#;

/// Seconds between two changes of a time stamp on the host: several ticks.
const NAP_ON_HOST: f64 = 0.05;
/// The same in the mount, where rhostfs has whole seconds.
const NAP_IN_MOUNT: f64 = 1.05;

/// Number of parts of the suite that run in parallel in the mount. A part mostly sleeps.
const PARTS: usize = 8;

/// Tests that pass on the host and cannot pass through rhostfs, each with the reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("utimensat::subsecond", "times are told in whole seconds"),
    ("utimensat::y2038", "times are set in 32 bits of seconds"),
];

/// Minimum number of tests. The suite has 398; far fewer mean that its report was not parsed.
const AT_LEAST: usize = 390;

/// Every test that passes on the host's file system passes in the mount.
pub(crate) fn passes_what_the_host_passes(fixture: &mut Fixture) -> Result<()> {
    let configured = |name: &str, nap: f64| {
        let path = fixture.there(name);
        fs::write(&path, format!("{CONFIGURATION}naptime = {nap}\n")).map(|()| path)
    };
    // Short, because the suite binds sockets below it and their addresses are short.
    fs::create_dir(fixture.there("h"))?;
    let (host, _) = run(
        &configured("host.toml", NAP_ON_HOST)?,
        &fixture.there("h"),
        &[],
    )?;
    let names: Vec<&str> = host.keys().map(String::as_str).collect();
    let configuration = configured("mount.toml", NAP_IN_MOUNT)?;
    let (mount, details) = run_in_parts(fixture, &configuration, &names)?;
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

/// Each test's verdict, and the reports.
type Verdicts = (BTreeMap<String, String>, String);

/// Runs the tests `names` in the mount, a part of them in a directory of its own each.
fn run_in_parts(fixture: &Fixture, configuration: &Path, names: &[&str]) -> Result<Verdicts> {
    let run_part = |part: usize| -> Result<Verdicts> {
        let name = format!("m{part}");
        fs::create_dir(fixture.there(&name))?;
        // Neighbouring tests take equally long, so they are dealt out in turn.
        let names: Vec<_> = names.iter().skip(part).step_by(PARTS).copied().collect();
        run(configuration, &fixture.here(&name), &names)
    };
    let mut all = Verdicts::default();
    for verdicts in thread::scope(|scope| {
        let parts: [_; PARTS] = array::from_fn(|part| scope.spawn(move || run_part(part)));
        parts.map(|part| {
            part.join()
                .map_err(|_| anyhow!("a part panicked"))
                .flatten()
        })
    }) {
        let (verdicts, report) = verdicts?;
        all.0.extend(verdicts);
        all.1.push_str(&report);
    }
    Ok(all)
}

/// Runs the suite in `directory`, or the tests of it that are named.
fn run(configuration: &Path, directory: &Path, names: &[&str]) -> Result<Verdicts> {
    let done = Command::new(tools::pjdfstest()?)
        .arg("-c")
        .arg(configuration)
        .arg("-p")
        .arg(directory)
        .args(["-s", "/dev/shm", "-e"])
        // As it names them itself, and leaves off where it reports them.
        .args(names.iter().map(|name| format!("pjdfstest::tests::{name}")))
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
