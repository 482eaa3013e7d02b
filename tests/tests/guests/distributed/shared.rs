//! What the guests of two hosts see of each other's work.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::packages;
use gangplank_tests::runner;
use gangplank_tests::tools;

use crate::fixture::{Fixture, LIMIT, POLICIES, SQLITE};
use crate::short_or_long;

/// Limit for a change to be seen, which none should need: the engine's caches are off, and the
/// guests' are valid for at most a second.
const SEEN: Duration = Duration::from_secs(30);

/// Changes by one guest, and by a program on its host, are seen by the other host's guest.
pub(crate) fn changes_are_seen(fixture: &mut Fixture) -> Result<()> {
    for policy in POLICIES {
        let mut slowest = Duration::ZERO;
        for turn in 0..3 {
            let [first, second] = &mut fixture.hosts[..] else {
                continue;
            };
            let file = format!("/{policy}/seen-{policy}");
            first.guest.sh(&format!("echo begun-{turn} >{file}"))?;
            // Now it is in the other guest's caches.
            second.guest.sh(&format!(
                "until grep -qs begun-{turn} {file}; do sleep 0.02; done"
            ))?;
            match turn {
                0 => fs::write(first.path.join(format!("seen-{policy}")), "changed-0\n")?,
                _ => drop(first.guest.sh(&format!("echo changed-{turn} >{file}"))?),
            }
            let changed = Instant::now();
            let look = format!("until grep -q changed-{turn} {file}; do sleep 0.02; done");
            second.guest.sh_within(&look, SEEN)?;
            slowest = slowest.max(changed.elapsed());
        }
        let [first, second] = &mut fixture.hosts[..] else {
            continue;
        };
        let made = format!("/{policy}/made-{policy}");
        second.guest.sh(&format!("! test -e {made}"))?;
        first.guest.sh(&format!("mkdir {made}"))?;
        second
            .guest
            .sh_within(&format!("until test -d {made}; do sleep 0.02; done"), SEEN)?;
        runner::note(&format!("--cache={policy}: seen after {slowest:?} at most"));
    }
    Ok(())
}

/// A file that one guest has open is renamed, replaced and removed by the other.
pub(crate) fn open_files_stay(fixture: &mut Fixture) -> Result<()> {
    for policy in POLICIES {
        let dir = format!("/{policy}/open-{policy}");
        let [first, second] = &mut fixture.hosts[..] else {
            continue;
        };
        first.guest.sh(&format!(
            "mkdir {dir} && cd {dir} && echo one >file && echo two >other"
        ))?;
        // Each command has a shell of its own, so another process keeps the files open.
        second.guest.sh(&format!(
            "rm -f /tmp/opened /tmp/go; until test -e {dir}/other; do sleep 0.02; done; \
             {{ ( exec 5<>{dir}/file 6<>{dir}/other && touch /tmp/opened; \
               until test -e /tmp/go; do sleep 0.02; done; \
               cat <&5; cat <&6; echo more >&5 && echo more >&6 && exec 5>&- 6>&- && echo closed; \
               touch /tmp/ended ) >/tmp/said 2>&1 & }}; \
             until test -e /tmp/opened; do sleep 0.02; done"
        ))?;
        first
            .guest
            .sh(&format!("cd {dir} && mv file renamed && rm other && sync"))?;
        fixture.drop_caches()?;
        let [first, second] = &mut fixture.hosts[..] else {
            continue;
        };
        let said = second.guest.sh(
            "rm -f /tmp/ended; touch /tmp/go; until test -e /tmp/ended; do sleep 0.02; done; \
             cat /tmp/said",
        )?;
        ensure!(said == "one\ntwo\nclosed\n", "{policy}: {said}");
        second.guest.sh_within(
            &format!(
                "until test -e {dir}/renamed && ! test -e {dir}/file && ! test -e {dir}/other; do \
                 sleep 0.02; done"
            ),
            SEEN,
        )?;
        let look = format!("until grep -q more {dir}/renamed; do sleep 0.02; done; rm -r {dir}");
        first.guest.sh_within(&look, SEEN)?;
    }
    Ok(())
}

/// Two guests add to one number under a lock: no addition is lost.
pub(crate) fn locks_are_handed_over(fixture: &mut Fixture) -> Result<()> {
    let times = short_or_long(60, 5_000);
    for policy in POLICIES {
        for kind in ["flock", "record"] {
            fs::create_dir_all(fixture.hosts[0].path.join("locks"))?;
            let name = format!("{policy}-{kind}");
            let dir = format!("/{policy}/locks/{name}");
            fixture.hosts[0].guest.sh(&format!("mkdir {dir}"))?;
            let look = format!("until test -d {dir}; do sleep 0.02; done");
            fixture.hosts[1].guest.sh(&look)?;
            fixture.both(|_| format!("guest-check {dir} --count {kind} {times}"))?;
            let number = fixture.hosts[0]
                .path
                .join(format!("locks/{name}/{kind}.number"));
            let counted: u32 = fs::read_to_string(&number)?.parse()?;
            ensure!(counted == 2 * times, "{name}: {counted}, not {}", 2 * times);
        }
    }
    Ok(())
}

/// A program on one host and a guest on the other add to one number.
pub(crate) fn a_host_counts_too(fixture: &mut Fixture) -> Result<()> {
    let times = short_or_long(60, 5_000);
    let [first, second] = &mut fixture.hosts[..] else {
        return Ok(());
    };
    let own = second.path.join("locks-with-host");
    fs::create_dir(&own)?;
    let check = tools::guest_check(tools::host_arch())?;
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let mut program = std::process::Command::new(check);
            packages::run(
                program
                    .arg(&own)
                    .args(["--count", "record", &times.to_string()]),
            )
        });
        let dir = "/auto/locks-with-host";
        let counted = first.guest.sh_within(
            &format!(
                "until test -d {dir}; do sleep 0.02; done; guest-check {dir} --count record {times}"
            ),
            LIMIT,
        );
        let other = counting.join().ok().context("counting panicked")?;
        counted.and(other.map(|()| String::new()))
    })?;
    let mut text = [0; 20];
    File::open(own.join("record.number"))?.read_exact_at(&mut text, 0)?;
    let counted: u32 = std::str::from_utf8(&text)?.parse()?;
    ensure!(counted == 2 * times, "{counted}, not {}", 2 * times);
    Ok(())
}

/// Both guests insert into one database, which is whole afterwards.
pub(crate) fn one_database(fixture: &mut Fixture) -> Result<()> {
    if !fixture.has_sqlite {
        runner::note("SKIPPED: the host has no sqlite3");
        return Ok(());
    }
    let rows = short_or_long(15, 1_000);
    let sqlite = format!("{SQLITE} -cmd '.timeout 100000' /never/database");
    fixture.hosts[0].guest.sh(&format!(
        "{sqlite} 'PRAGMA journal_mode=DELETE; CREATE TABLE t (host INT, number INT)'"
    ))?;
    fixture.both(|host| {
        format!(
            "for i in $(seq {rows}); do {sqlite} \"INSERT INTO t VALUES ({host}, $i)\" || exit 1; \
             done"
        )
    })?;
    let told = fixture.hosts[1].guest.sh(&format!(
        "{sqlite} 'PRAGMA integrity_check; SELECT host, COUNT(*), SUM(number) FROM t GROUP BY host'"
    ))?;
    let sum = rows * (rows + 1) / 2;
    let expected = format!("ok\n0|{rows}|{sum}\n1|{rows}|{sum}\n");
    ensure!(told == expected, "{told}");
    Ok(())
}

/// fsx on one file by both guests in turn, under a lock.
pub(crate) fn fsx_takes_turns(fixture: &mut Fixture) -> Result<()> {
    let rounds = short_or_long(2, 30);
    fixture.both(|host| {
        format!(
            "cd /auto && for i in $(seq {rounds}); do \
               guest-check fsx.lock --run-locked \
                 \"fsx -f fsx.toml -N 200 -S $((i * 2 + {host})) -P /tmp fsx.file\" || exit 1; done"
        )
    })?;
    Ok(())
}
