//! Workers that are killed, and daemons that reload, at any moment while a guest works: the guest
//! gets no error, and nothing is lost or done twice.
//!
//! The short form kills 100 times in about a minute, `scripts/test --long` 10,000 times. A tenth as
//! many reloads are made.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::driver::fixture::{acceptor_of, guest_processes};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::runner::{self, Runner};
use gangplank_tests::tools;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Kills in the short form.
const KILLS: usize = 100;

/// Kills with `GANGPLANK_KILLS`, the variable that `scripts/test --long` sets.
const KILLS_VARIABLE: &str = "GANGPLANK_KILLS";

/// Time between two kills, at least and at most.
const PAUSE_MS: (u64, u64) = (50, 900);

/// How the guest is disturbed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    /// Its worker is killed.
    Kill,
    /// The daemon reloads.
    Reload,
}

/// Limit for the guest's programs to end after the last kill.
const ENDING: Duration = Duration::from_secs(120);

/// What fsx does: all that it checks on one client.
const FSX: &str = r"
flen = 262144

[opsize]
max = 65536
";

/// Counts under a lock that another program takes as well: a directory, which one can make.
macro_rules! lock {
    ($name:literal) => {
        concat!(
            "n=0; while ! test -e /tmp/end; do \
               until mkdir /mnt/lock 2>/dev/null; do test -d /mnt || exit 1; done; \
               c=$(cat /mnt/counter) && echo $((c+1)) >/mnt/counter && rmdir /mnt/lock || exit 1; \
               n=$((n+1)); done; echo $n >/tmp/",
            $name
        )
    };
}

/// The programs that work in the guest, by name: each goes on until `/tmp/end` exists, and says
/// "done" at the end.
const PROGRAMS: [(&str, &str); 6] = [
    (
        "append",
        "exec 3>>/mnt/log; i=0; while ! test -e /tmp/end; do \
           echo line $i >&3 || exit 1; i=$((i+1)); done; echo $i >/tmp/lines",
    ),
    (
        "reopen",
        "i=0; while ! test -e /tmp/end; do \
           echo line $i >>/mnt/reopened || exit 1; i=$((i+1)); done; echo $i >/tmp/reopened",
    ),
    (
        "names",
        "mkdir /mnt/names && cd /mnt/names && while ! test -e /tmp/end; do \
           echo a >a && mv a b && ln b c && rm b && mkdir d && mv c d/e && ln -s d f && \
           cat f/e >/dev/null && rm f d/e && rmdir d && test -z \"$(ls)\" || exit 1; done",
    ),
    ("lock one", lock!("one")),
    ("lock two", lock!("two")),
    (
        "fsx",
        "mkdir /mnt/fsx && cd /mnt/fsx && cp /mnt/fsx.toml . && s=0; while ! test -e /tmp/end; do \
           fsx -f fsx.toml -N 2000 -S $s -P /tmp file || exit 1; rm file || exit 1; s=$((s+1)); \
         done",
    ),
];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    runner.run("uml", || marathon(Machine::Uml, Disturbance::Kill));
    runner.run("uml_reloads", || {
        marathon(Machine::Uml, Disturbance::Reload)
    });
    runner.run("qemu_x86_64", || {
        marathon(Machine::QemuX86_64, Disturbance::Kill)
    });
    runner.finish()
}

fn kills() -> Result<usize> {
    match std::env::var(KILLS_VARIABLE) {
        Ok(kills) => kills.parse().with_context(|| KILLS_VARIABLE.to_owned()),
        Err(_) => Ok(KILLS),
    }
}

fn marathon(machine: Machine, disturbance: Disturbance) -> Result<()> {
    let share = tempfile::tempdir()?;
    fs::write(share.path().join("counter"), "0\n")?;
    fs::write(share.path().join("fsx.toml"), FSX)?;
    let options = daemon::Options::new(share.path());
    let arguments = ["--locks=host", "--max-crashes=1000000"];
    let daemon = Daemon::start(&options.arguments(&arguments))?;
    work(machine, disturbance, &daemon, &share).with_context(|| daemon.log())
}

fn work(
    machine: Machine,
    disturbance: Disturbance,
    daemon: &Daemon,
    share: &TempDir,
) -> Result<()> {
    let options = Options::new(machine)
        .share(daemon.socket(), TAG)
        .program("fsx", &tools::fsx()?)
        .program("guest-check", &tools::guest_check(machine.arch())?);
    let mut guest = Guest::boot(&options)?;
    guest.mount(TAG, "/mnt")?;
    for (name, program) in PROGRAMS {
        let log = format!("/tmp/{}.log", name.replace(' ', "-"));
        guest.sh(&format!("{{ ( {program}; echo done ) >{log} 2>&1 & }}"))?;
    }
    // A file without a name, and a lock.
    guest.sh(
        "{ ( exec 8>/mnt/unlinked; echo kept >&8; exec 9</mnt/unlinked; rm /mnt/unlinked; \
             while ! test -e /tmp/end; do sleep 1; done; \
             cat <&9; echo more >&8 && cat <&9 && echo done ) >/tmp/unlinked.log 2>&1 & }",
    )?;
    guest.sh(
        "{ ( mkdir /mnt/locks && guest-check /mnt/locks --hold-locks /tmp/end && echo done ) \
             >/tmp/locks.log 2>&1 & }",
    )?;
    let locks = share.path().join("locks");
    let started = Instant::now();
    while !are_locked(&locks).unwrap_or(false) {
        ensure!(started.elapsed() < ENDING, "the guest locks no file");
        thread::sleep(Duration::from_millis(10));
    }
    let kills = match disturbance {
        Disturbance::Kill => kills()?,
        Disturbance::Reload => kills()?.div_ceil(10),
    };
    for _ in 0..kills {
        thread::sleep(Duration::from_millis(fastrand::u64(PAUSE_MS.0..PAUSE_MS.1)));
        match disturbance {
            Disturbance::Kill => kill_worker(daemon)?,
            Disturbance::Reload => reload(daemon)?,
        }
        ensure!(are_locked(&locks)?, "a lock of the guest is lost");
    }
    let programs = PROGRAMS.len() + 2;
    // Also from the last death, the guest recovers.
    let said = guest.sh_within(
        &format!(
            "touch /tmp/end; for i in $(seq {}); do \
               [ $(cat /tmp/*.log | grep -c '^done$') = {} ] && break; sleep 1; done; \
             tail -n 3 /tmp/*.log; dmesg | grep -i 'i/o error\\|fuse.*error' ; true",
            ENDING.as_secs(),
            programs,
        ),
        ENDING + Duration::from_secs(10),
    )?;
    ensure!(
        said.matches("\ndone\n").count() == programs,
        "the guest's programs said:\n{said}"
    );
    let unlinked = guest.sh("cat /tmp/unlinked.log")?;
    ensure!(unlinked == "kept\nmore\ndone\n", "{unlinked:?}");
    let number = |guest: &mut Guest, file: &str| -> Result<u64> {
        Ok(guest.sh(&format!("cat {file}"))?.trim().parse()?)
    };
    for (file, count) in [("log", "/tmp/lines"), ("reopened", "/tmp/reopened")] {
        let lines = number(&mut guest, count)?;
        let expected = (0..lines).fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "line {line}");
            text
        });
        let written = fs::read_to_string(share.path().join(file))?;
        ensure!(
            written == expected,
            "{file}: {}",
            first_difference(&written, &expected)
        );
    }
    let taken = number(&mut guest, "/tmp/one")? + number(&mut guest, "/tmp/two")?;
    let counted = fs::read_to_string(share.path().join("counter"))?;
    ensure!(
        counted.trim() == taken.to_string(),
        "{taken} times a lock was held, and {counted} were counted"
    );
    guest.sh("umount /mnt")?;
    let words = match disturbance {
        Disturbance::Kill => "is served again after ",
        Disturbance::Reload => "is served by the new program after ",
    };
    let mut pauses = pauses(&daemon.log(), words);
    pauses.sort_unstable();
    ensure!(
        pauses.len() >= kills / 2,
        "the log tells {} pauses",
        pauses.len()
    );
    let at = |percent: usize| pauses[(pauses.len() - 1) * percent / 100];
    runner::note(&format!(
        "{kills} times, {taken} locks; the pauses: median {} ms, longest {} ms",
        at(50),
        at(100)
    ));
    Ok(())
}

/// Kills the worker of the daemon's guest, once it has one.
fn kill_worker(daemon: &Daemon) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let guests = guest_processes(acceptor_of(daemon)?)?;
        let worker = guests.first().map(|(_, worker)| *worker);
        if let Some(pid) = worker.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
            && kill_process(pid, Signal::KILL).is_ok()
        {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the guest has no worker any more"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Has the daemon reload.
fn reload(daemon: &Daemon) -> Result<()> {
    let socket = format!("--socket-path={}", daemon.socket().display());
    let mut command = Command::new(tools::gangplankd()?);
    let output = command.args(["--reload", &socket]).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// Whether the guest holds its locks on the files in a directory.
fn are_locked(directory: &Path) -> Result<bool> {
    let open = |name: &str| {
        let mut options = fs::File::options();
        options.read(true).write(true).open(directory.join(name))
    };
    let (record, whole) = (open("record")?, open("whole")?);
    let is_held = |locked: Result<(), Errno>| match locked {
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        locked => locked.map(|()| false),
    };
    let operation = FlockOperation::NonBlockingLockExclusive;
    Ok(is_held(fcntl_lock(&record, operation))? && is_held(flock(&whole, operation))?)
}

/// The pauses that the log tells after `words`, in milliseconds.
fn pauses(log: &str, words: &str) -> Vec<u64> {
    let after = |line: &str| {
        let (_, rest) = line.split_once(words)?;
        let number = rest.split(|letter: char| !letter.is_ascii_digit()).next();
        number?.parse().ok()
    };
    log.lines().filter_map(after).collect()
}

fn first_difference(written: &str, expected: &str) -> String {
    let mut pairs = written.lines().zip(expected.lines());
    match pairs.position(|(written, expected)| written != expected) {
        Some(line) => {
            let from = line.saturating_sub(2);
            let shown: Vec<&str> = written.lines().skip(from).take(6).collect();
            format!("line {line} differs: {shown:?}")
        }
        None => format!(
            "{} lines were written, not {}",
            written.lines().count(),
            expected.lines().count()
        ),
    }
}
