//! Workers that are killed at any moment while a guest works: the guest gets no error, and nothing
//! is lost or done twice.
//!
//! The short form kills 100 times in about a minute, `scripts/test --long` 10,000 times.

mod debian;
mod programs;

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::driver::fixture::{acceptor_of, guest_processes};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process::User;
use gangplank_tests::runner::{self, Runner};
use gangplank_tests::tools;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use programs::{GROUPS, Group};

/// Kills in the short form.
const KILLS: usize = 100;

/// Kills with `GANGPLANK_KILLS`, the variable that `scripts/test --long` sets.
const KILLS_VARIABLE: &str = "GANGPLANK_KILLS";

/// Time between two kills, at least and at most.
const PAUSE_MS: (u64, u64) = (50, 900);

/// Limit for the guest's programs to end after the last kill.
const ENDING: Duration = Duration::from_secs(300);

/// Prints the number of programs that have ended, in whatever way.
const COUNT_ENDED: &str = "cat /tmp/*.log | grep -c '^\\(done\\|failed\\)$'; true";

/// What fsx does: all that it checks on one client.
const FSX: &str = r"
flen = 262144

[opsize]
max = 65536
";

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    runner.run("uml", || marathon(Machine::Uml));
    runner.run("qemu_x86_64", || marathon(Machine::QemuX86_64));
    runner.finish()
}

fn kills() -> Result<usize> {
    match std::env::var(KILLS_VARIABLE) {
        Ok(kills) => kills.parse().with_context(|| KILLS_VARIABLE.to_owned()),
        Err(_) => Ok(KILLS),
    }
}

fn marathon(machine: Machine) -> Result<()> {
    let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
    // pjdfstest runs as other users, who need to enter the directory.
    fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
    fs::write(share.path().join("counter"), "0\n")?;
    fs::write(share.path().join("fsx.toml"), FSX)?;
    let options = daemon::Options::new(share.path());
    let arguments = ["--locks=host", "--xattr", "--max-crashes=1000000"];
    let daemon = Daemon::start(&options.arguments(&arguments))?;
    work(machine, &daemon, &share).with_context(|| daemon.log())
}

fn work(machine: Machine, daemon: &Daemon, share: &TempDir) -> Result<()> {
    let mut options = Options::new(machine)
        .share(daemon.socket(), TAG)
        .program("fsx", &tools::fsx()?);
    options.memory_mib = 1024;
    let mut guest = Guest::boot(&options)?;
    // The tree's files belong to several users.
    let has_debian = User::is_root();
    if has_debian {
        debian::prepare(share.path(), &guest)?;
    }
    guest.mount(TAG, "/mnt")?;
    if has_debian {
        debian::enter(&mut guest)?;
    } else {
        runner::note("without root, only the first group of programs works");
    }
    let kills = kills()?;
    let groups = if has_debian {
        &GROUPS[..]
    } else {
        &GROUPS[..1]
    };
    for group in groups {
        let start = Instant::now();
        run(&mut guest, daemon, group, kills * group.tenths / 10).context(group.name)?;
        runner::note(&format!("{}: {:.0?}", group.name, start.elapsed()));
    }
    let told = guest.sh("dmesg | grep -i 'i/o error\\|fuse.*error'; true")?;
    ensure!(told.trim().is_empty(), "the guest's kernel says {told}");
    for (file, count) in [("log", "lines"), ("reopened", "reopened")] {
        let lines = debian::number(&mut guest, &format!("/dev/shm/{count}"))?;
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
    let taken = ["one", "two"].map(|name| debian::number(&mut guest, &format!("/dev/shm/{name}")));
    let taken = taken.into_iter().sum::<Result<u64>>()?;
    let counted = fs::read_to_string(share.path().join("counter"))?;
    ensure!(
        counted.trim() == taken.to_string(),
        "{taken} times a lock was held, and {counted} were counted"
    );
    let done = match has_debian {
        true => debian::check(&mut guest, share.path())?,
        false => "nothing else".to_owned(),
    };
    if has_debian {
        guest.sh("umount /mnt/debian/dev/shm /mnt/debian/dev /mnt/debian/proc")?;
    }
    guest.sh("umount /mnt")?;
    let mut pauses = pauses(&daemon.log());
    pauses.sort_unstable();
    ensure!(
        pauses.len() >= kills / 5,
        "the log tells {} pauses",
        pauses.len()
    );
    let at = |percent: usize| pauses[(pauses.len() - 1) * percent / 100];
    runner::note(&format!(
        "{kills} kills, {taken} locks, {done}; the pauses: median {} ms, longest {} ms",
        at(50),
        at(100)
    ));
    Ok(())
}

/// Has the programs work while workers are killed, and waits for their end.
fn run(guest: &mut Guest, daemon: &Daemon, group: &Group, kills: usize) -> Result<()> {
    guest.sh("rm -f /dev/shm/end")?;
    for (name, program) in group.programs {
        guest.sh(&format!(
            "{{ {{ ( {program} ) && echo done || echo failed; }} >/tmp/{name}.log 2>&1 & }}"
        ))?;
    }
    for _ in 0..kills {
        thread::sleep(Duration::from_millis(fastrand::u64(PAUSE_MS.0..PAUSE_MS.1)));
        kill_worker(daemon)?;
    }
    // Also from the last death, the guest recovers.
    guest.sh("touch /dev/shm/end")?;
    let deadline = Instant::now() + ENDING;
    let expected = group.programs.len();
    while guest.sh(COUNT_ENDED)?.trim().parse() != Ok(expected) {
        ensure!(
            Instant::now() < deadline,
            "the guest's programs said:\n{}",
            guest.sh("tail -n 20 /tmp/*.log; ps -o pid,stat,args; true")?
        );
        thread::sleep(Duration::from_secs(1));
    }
    let said = guest.sh("tail -n 20 /tmp/*.log; mv /tmp/*.log /dev/shm")?;
    ensure!(
        said.matches("done\n").count() == expected,
        "the guest's programs said:\n{said}"
    );
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

/// The pauses that the log tells, in milliseconds.
fn pauses(log: &str) -> Vec<u64> {
    let after = |line: &str| {
        let (_, rest) = line.split_once("is served again after ")?;
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
