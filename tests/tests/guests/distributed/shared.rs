//! What the guests of two hosts see of each other's work.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gangplank_tests::packages;
use gangplank_tests::runner;
use gangplank_tests::tools;

use crate::fixture::{Fixture, POLICIES, SQLITE};
use crate::short_or_long;

/// Limit for a change to be seen, which none should need: the engine's caches are off, and the
/// guests' are valid for at most a second.
const SEEN: Duration = Duration::from_secs(30);

/// Options of `sqlite3` that have it wait for its locks, for up to 100 s.
const PATIENT: &str = "-cmd '.timeout 100000'";

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

/// A file that one guest has open is renamed and removed by the other, or by the other's host.
pub(crate) fn open_files_stay(fixture: &mut Fixture) -> Result<()> {
    for policy in POLICIES {
        for is_host in [false, true] {
            open_files_stay_in(fixture, policy, is_host)?;
        }
    }
    Ok(())
}

fn open_files_stay_in(fixture: &mut Fixture, policy: &str, is_host: bool) -> Result<()> {
    let name = format!("open-{policy}");
    let dir = format!("/{policy}/{name}");
    let [first, second] = &mut fixture.hosts[..] else {
        return Ok(());
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
    if is_host {
        let own = first.path.join(&name);
        fs::rename(own.join("file"), own.join("renamed"))?;
        fs::remove_file(own.join("other"))?;
    } else {
        let change = format!("cd {dir} && mv file renamed && rm other && sync");
        first.guest.sh(&change)?;
    }
    fixture.drop_caches()?;
    let [first, second] = &mut fixture.hosts[..] else {
        return Ok(());
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
    let gone = format!("while test -e {dir}; do sleep 0.02; done");
    second.guest.sh_within(&gone, SEEN).map(drop)
}

/// A file that a program of one host has open is renamed and removed by the other host's guest.
pub(crate) fn open_files_of_a_host_stay(fixture: &mut Fixture) -> Result<()> {
    for policy in POLICIES {
        let [first, second] = &mut fixture.hosts[..] else {
            return Ok(());
        };
        let own = second.path.join(format!("host-{policy}"));
        fs::create_dir(&own)?;
        let open = |name: &str, content: &str| -> Result<File> {
            fs::write(own.join(name), content)?;
            let options = File::options().read(true).write(true).clone();
            Ok(options.open(own.join(name))?)
        };
        let files = [open("file", "one\n")?, open("other", "two\n")?];
        let dir = format!("/{policy}/host-{policy}");
        first.guest.sh(&format!(
            "until test -e {dir}/other; do sleep 0.02; done; \
             cd {dir} && grep -q one file && mv file renamed && rm other && sync"
        ))?;
        for (file, content) in files.iter().zip([b"one\n", b"two\n"]) {
            let mut read = [0; 4];
            file.read_exact_at(&mut read, 0)?;
            ensure!(&read == content, "{policy}: {read:?}");
            file.write_all_at(b"more", 0)?;
            file.sync_all()?;
        }
        drop(files);
        ensure!(!own.join("file").exists() && !own.join("other").exists());
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

/// Two guests, and a program on one of the hosts, past the daemon, add to one number.
pub(crate) fn a_host_counts_too(fixture: &mut Fixture) -> Result<()> {
    let times = short_or_long(40, 5_000);
    let check = tools::guest_check(tools::host_arch())?;
    for kind in ["flock", "record"] {
        let name = format!("{kind}-with-host");
        let own = fixture.hosts[1].path.join(&name);
        fs::create_dir(&own)?;
        let dir = format!("/auto/{name}");
        fixture.both_and_a_host(
            |_| {
                format!(
                    "until test -d {dir}; do sleep 0.02; done; \
                     guest-check {dir} --count {kind} {times}"
                )
            },
            |path| {
                let mut program = Command::new(&check);
                program.arg(path.join(&name));
                packages::run(program.args(["--count", kind, &times.to_string()]))
            },
        )?;
        let mut text = [0; 20];
        let number = File::open(own.join(format!("{kind}.number")))?;
        number.read_exact_at(&mut text, 0)?;
        let counted: u32 = std::str::from_utf8(&text)?.parse()?;
        ensure!(counted == 3 * times, "{kind}: {counted}, not {}", 3 * times);
    }
    Ok(())
}

/// Both guests, and a program on one of the hosts, past the daemon, insert into one database, which
/// is whole afterwards.
pub(crate) fn one_database(fixture: &mut Fixture) -> Result<()> {
    if !fixture.has_sqlite {
        runner::note("SKIPPED: the host has no sqlite3");
        return Ok(());
    }
    let rows = short_or_long(10, 1_000);
    let sqlite = format!("{SQLITE} {PATIENT} /never/database");
    fixture.hosts[0].guest.sh(&format!(
        "{sqlite} 'PRAGMA journal_mode=DELETE; CREATE TABLE t (host INT, number INT)'"
    ))?;
    let insert = |sqlite: &str, host: usize| {
        format!(
            "for i in $(seq {rows}); do {sqlite} \"INSERT INTO t VALUES ({host}, $i)\" || exit 1; \
             done"
        )
    };
    fixture.both_and_a_host(
        |host| insert(&sqlite, host),
        |path| {
            let sqlite = format!("sqlite3 {PATIENT} database");
            let mut shell = Command::new("sh");
            packages::run(shell.current_dir(path).args(["-c", &insert(&sqlite, 2)]))
        },
    )?;
    let told = fixture.hosts[1].guest.sh(&format!(
        "{sqlite} 'PRAGMA integrity_check; SELECT host, COUNT(*), SUM(number) FROM t GROUP BY host'"
    ))?;
    let sum = rows * (rows + 1) / 2;
    let expected = format!("ok\n0|{rows}|{sum}\n1|{rows}|{sum}\n2|{rows}|{sum}\n");
    ensure!(told == expected, "{told}");
    Ok(())
}

/// fsx on one file by both guests and, past the daemon, a host in turn, under a lock.
pub(crate) fn fsx_takes_turns(fixture: &mut Fixture) -> Result<()> {
    let rounds = short_or_long(2, 30);
    let work = |check: &str, fsx: &str, own: &str, number: usize| {
        format!(
            "for i in $(seq {rounds}); do \
               {check} fsx.lock --run-locked \
                 \"{fsx} -f fsx.toml -N 200 -S $((i * 3 + {number})) -P {own} fsx.file\" \
                 || exit 1; done"
        )
    };
    let check = tools::guest_check(tools::host_arch())?;
    let (check, fsx) = (check.display().to_string(), tools::fsx()?);
    let own = tempfile::tempdir()?;
    fixture.both_and_a_host(
        |host| format!("cd /auto && {}", work("guest-check", "fsx", "/tmp", host)),
        |path| {
            let own = own.path().display().to_string();
            let work = work(&check, &fsx.display().to_string(), &own, 2);
            packages::run(Command::new("sh").current_dir(path).args(["-c", &work]))
        },
    )
}
