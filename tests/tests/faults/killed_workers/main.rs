//! Workers, acceptors and whole daemons that are killed, and daemons that reload, at any moment
//! while a guest works: the guest gets no error, and nothing is lost or done twice.
//!
//! The short form kills 100 workers, `scripts/test --long` 10,000. In QEMU, three tenths of them
//! are killed. A tenth as many acceptors and daemons are killed, and workers run out of memory. A
//! tenth as many reloads are made, and at least 50. There are 160 ms between two kills on average:
//! 16 s for 100 kills, half an hour for 10,000. The guest's boot, and the begin and end of each
//! group of programs, take longer than 100 kills: a minute or two.
//!
//! A program that fails in the guest ends the test within about a second. The last line of each
//! test has the number of kills and the lengths of the guest's pauses.

mod debian;
mod pauses;
mod programs;

use std::cell::RefCell;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::cgroup::Cgroup;
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::driver::fixture::{acceptor_of, guest_processes};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::guest_work;
use gangplank_tests::process::User;
use gangplank_tests::relay::Relay;
use gangplank_tests::runner::{self, Runner};
use gangplank_tests::service_manager::ServiceManager;
use gangplank_tests::tools;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use pauses::Pauses;
use programs::{GROUPS, Group};

/// Kills in the short form.
const KILLS: usize = 100;

/// Reloads at least.
const RELOADS: usize = 50;

/// Kills with `GANGPLANK_KILLS`, the variable that `scripts/test --long` sets.
const KILLS_VARIABLE: &str = "GANGPLANK_KILLS";

/// Time between two kills, at least and at most.
const PAUSE_MS: (u64, u64) = (20, 300);

/// In the long form, the median and the longest pause of a guest whose workers are killed, in ms,
/// at most. The daemon's own share of them is a few ms; the rest is for a machine with other work.
/// Also workers that live briefly, as here a third of them, are replaced with a delay of up to a
/// second (`backend/src/keeper/deaths.rs`).
const LONG_FORM_PAUSES_MS: (f64, f64) = (100.0, 3000.0);

/// Bytes that a worker may take on top of what it has before the kernel kills it.
const MEMORY: u64 = 64 << 10;

/// How often the test looks whether all programs of the guest still run.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How the guest is disturbed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    /// Its worker is killed.
    Kill,
    /// Its worker runs out of memory, and the kernel kills it.
    OutOfMemory,
    /// The daemon's acceptor is killed, which it does not notice.
    KillAcceptor,
    /// The daemon reloads.
    Reload,
    /// All processes of the daemon are killed, and a service manager starts it again.
    KillAll,
    /// The same without a service manager: the guest's relay holds what it has.
    KillAllRelayed,
}

impl Disturbance {
    /// The words of the daemon's log before the length of each pause.
    const fn words(self) -> &'static str {
        match self {
            Self::Kill | Self::OutOfMemory | Self::KillAcceptor => "is served again after ",
            Self::Reload | Self::KillAll | Self::KillAllRelayed => {
                "is served by the new program after "
            }
        }
    }
}

/// Programs that hold what only descriptors lead to: a file without a name, and locks.
const HOLDERS: [(&str, &str); 2] = [
    (
        "unlinked",
        "exec 8>/mnt/unlinked; echo kept >&8; exec 9</mnt/unlinked; rm /mnt/unlinked; \
         while ! test -e /dev/shm/all-ended; do sleep 1; done; cat <&9; echo more >&8 && cat <&9",
    ),
    (
        "locks",
        "mkdir /mnt/locks && guest-check /mnt/locks --hold-locks /dev/shm/all-ended",
    ),
];

/// Limit for the guest's programs to end after the last kill.
const ENDING: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    runner.run("uml_workers", || marathon(Machine::Uml, Disturbance::Kill));
    runner.run("uml_out_of_memory", || {
        marathon(Machine::Uml, Disturbance::OutOfMemory)
    });
    runner.run("uml_acceptors", || {
        marathon(Machine::Uml, Disturbance::KillAcceptor)
    });
    runner.run("uml_reloads", || {
        marathon(Machine::Uml, Disturbance::Reload)
    });
    runner.run("uml_killed_daemons", || {
        marathon(Machine::Uml, Disturbance::KillAll)
    });
    runner.run("uml_relayed_killed_daemons", || {
        marathon(Machine::Uml, Disturbance::KillAllRelayed)
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
    let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
    // pjdfstest runs as other users, who need to enter the directory.
    fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
    fs::write(share.path().join("counter"), "0\n")?;
    fs::write(share.path().join("fsx.toml"), tools::FSX_CONFIGURATION)?;
    let manager = match disturbance {
        Disturbance::KillAll => Some(ServiceManager::new(CAPACITY)?),
        _ => None,
    };
    let options = match &manager {
        Some(manager) => manager.options(share.path()),
        None => daemon::Options::new(share.path()),
    };
    let mut options = options.arguments(&["--locks=host", "--xattr", "--max-crashes=1000000"]);
    let directory = tempfile::tempdir()?;
    let backend = directory.path().join("fs.sock");
    let mut relay = None;
    if disturbance == Disturbance::KillAllRelayed {
        let holder = directory.path().join("holder.sock");
        let holder = holder.to_str().context("a path that is no text")?;
        relay = Some(Relay::start(&backend, &["--holder", holder])?);
        options = options.arguments(&["--holder", holder]);
    }
    let mut memory = None;
    if disturbance == Disturbance::OutOfMemory {
        memory = Cgroup::of_memory(MEMORY);
        if memory.is_none() {
            runner::note("skipped: no control group of memory can be made here");
            return Ok(());
        }
    }
    let daemon = Daemon::start(&options)?;
    std::os::unix::fs::symlink(daemon.socket(), &backend)?;
    let host = Host {
        daemon: RefCell::new(daemon),
        options,
        manager,
        relay,
        memory,
        earlier: RefCell::default(),
    };
    work(machine, disturbance, &host, &share).with_context(|| host.log())
}

/// Descriptors that the service manager holds.
const CAPACITY: usize = 4096;

/// The daemon, and who starts it again.
struct Host {
    daemon: RefCell<Daemon>,
    options: daemon::Options,
    manager: Option<ServiceManager>,
    relay: Option<Relay>,
    memory: Option<Cgroup>,
    /// The logs of the daemons before.
    earlier: RefCell<String>,
}

impl Host {
    fn log(&self) -> String {
        let relay = self.relay.as_ref().map(Relay::log).unwrap_or_default();
        self.earlier.borrow().clone() + &self.daemon.borrow().log() + &relay
    }

    fn disturb(&self, disturbance: Disturbance) -> Result<()> {
        match disturbance {
            Disturbance::Kill => kill_worker(&self.daemon.borrow()),
            Disturbance::OutOfMemory => {
                let memory = self.memory.as_ref().context("a control group")?;
                starve_worker(&self.daemon.borrow(), memory)
            }
            Disturbance::KillAcceptor => kill_acceptor(&self.daemon.borrow()),
            Disturbance::Reload => self.daemon.borrow().reload(),
            Disturbance::KillAll => {
                let manager = self.manager.as_ref().context("a service manager")?;
                let mut daemon = self.daemon.borrow_mut();
                *self.earlier.borrow_mut() += &daemon.log();
                manager.restart(&mut daemon, &self.options)
            }
            Disturbance::KillAllRelayed => {
                let mut daemon = self.daemon.borrow_mut();
                *self.earlier.borrow_mut() += &daemon.log();
                daemon.replace(&self.options)
            }
        }
    }
}

fn work(machine: Machine, disturbance: Disturbance, host: &Host, share: &TempDir) -> Result<()> {
    let socket = match &host.relay {
        Some(relay) => relay.socket(),
        None => host.daemon.borrow().socket().to_owned(),
    };
    let mut options = Options::new(machine)
        .share(&socket, TAG)
        .program("fsx", &tools::fsx()?)
        .program("guest-check", &tools::guest_check(machine.arch())?);
    options.memory_mib = 1024;
    let mut guest = Guest::boot(&options)?;
    // The tree's files belong to several users. A reload takes longer than a kill.
    let has_debian = User::is_root() && disturbance == Disturbance::Kill;
    if has_debian {
        debian::prepare(share.path(), &guest)?;
    }
    guest.mount(TAG, "/mnt")?;
    if has_debian {
        debian::enter(&mut guest)?;
    } else {
        runner::note("only the first group of programs works");
    }
    for (name, program) in HOLDERS {
        guest.sh(&format!(
            "{{ ( {program}; echo ended with $? ) >/dev/shm/{name}.held 2>&1 & }}"
        ))?;
    }
    let locks = share.path().join("locks");
    let started = Instant::now();
    while !are_locked(&locks).unwrap_or(false) {
        ensure!(started.elapsed() < ENDING, "the guest locks no file");
        thread::sleep(Duration::from_millis(10));
    }
    let kills = match disturbance {
        // The guest's machine makes no difference to the worker. Each group gets some.
        Disturbance::Kill if machine == Machine::QemuX86_64 => (kills()? * 3).div_ceil(10),
        Disturbance::Kill => kills()?,
        Disturbance::Reload => kills()?.div_ceil(10).max(RELOADS),
        Disturbance::OutOfMemory
        | Disturbance::KillAcceptor
        | Disturbance::KillAll
        | Disturbance::KillAllRelayed => kills()?.div_ceil(10),
    };
    let groups = if has_debian {
        &GROUPS[..]
    } else {
        &GROUPS[..1]
    };
    let mut disturbances = 0;
    for group in groups {
        let start = Instant::now();
        let times = match has_debian {
            true => kills * group.tenths / 10,
            false => kills,
        };
        let disturb = || {
            host.disturb(disturbance)?;
            ensure!(are_locked(&locks)?, "a lock of the guest is lost");
            Ok(())
        };
        run(&mut guest, disturb, group, times).context(group.name)?;
        disturbances += times;
        runner::note(&format!("{}: {:.0?}", group.name, start.elapsed()));
    }
    check_holders(&mut guest)?;
    guest_work::check_kernel_log(&mut guest)?;
    for (file, count) in [("log", "lines"), ("reopened", "reopened")] {
        let counted = format!("/dev/shm/{count}");
        guest_work::check_appended(&mut guest, &share.path().join(file), &counted)?;
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
    let log = host.log();
    let pauses = Pauses::told(&log, disturbance.words());
    runner::note(&format!("{taken} locks, {done}"));
    if disturbance == Disturbance::KillAcceptor {
        let replaced = log
            .matches("another acceptor goes on with 1 guests")
            .count();
        ensure!(
            replaced == disturbances,
            "{replaced} acceptors were replaced"
        );
        ensure!(pauses.count() == 0, "the guest has paused");
        runner::note(&format!("{disturbances} times, no pause"));
        return Ok(());
    }
    runner::note(&pauses.summary(disturbances));
    ensure!(
        pauses.count() >= disturbances / 5,
        "the log tells {} pauses",
        pauses.count()
    );
    let (median, longest) = LONG_FORM_PAUSES_MS;
    ensure!(
        disturbance != Disturbance::Kill
            || kills <= KILLS
            || (pauses.percentile(50) <= median && pauses.percentile(100) <= longest),
        "the median is to be at most {median} ms, and no pause longer than {longest} ms"
    );
    Ok(())
}

/// What was held by descriptors alone is still there.
fn check_holders(guest: &mut Guest) -> Result<()> {
    guest.sh("touch /dev/shm/all-ended")?;
    for (name, expected) in [
        ("unlinked", "kept\nmore\nended with 0\n"),
        ("locks", "locked\nended with 0\n"),
    ] {
        let ended = format!(
            "for i in $(seq 60); do grep -q ^ended /dev/shm/{name}.held && break; sleep 1; done; \
             cat /dev/shm/{name}.held"
        );
        let said = guest.sh_within(&ended, ENDING)?;
        ensure!(said == expected, "{name}: {said:?}");
    }
    Ok(())
}

/// Has the programs work while `disturb` is called again and again, and waits for their end.
fn run(
    guest: &mut Guest,
    disturb: impl Fn() -> Result<()>,
    group: &Group,
    times: usize,
) -> Result<()> {
    guest_work::start(guest, group.programs)?;
    let mut looked = Instant::now();
    for time in 1..=times {
        thread::sleep(Duration::from_millis(fastrand::u64(PAUSE_MS.0..PAUSE_MS.1)));
        disturb()?;
        if looked.elapsed() >= LOOK_INTERVAL {
            guest_work::check_running(guest)
                .with_context(|| format!("after {time} of {times} times"))?;
            looked = Instant::now();
        }
    }
    // Also from the last death, the guest recovers.
    guest_work::end(guest, group.programs.len(), ENDING)
}

/// Kills the worker of the daemon's guest, once it has one.
fn kill_worker(daemon: &Daemon) -> Result<()> {
    with_worker(daemon, |worker| {
        let pid = Pid::from_raw(worker.try_into()?).context("a process id")?;
        Ok(kill_process(pid, Signal::KILL)?)
    })
}

/// Moves the worker of the daemon's guest, once it has one, to where it gets no memory, and waits
/// until the kernel has killed it.
fn starve_worker(daemon: &Daemon, memory: &Cgroup) -> Result<()> {
    let known = memory.kills()?;
    with_worker(daemon, |worker| memory.add(worker))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while memory.kills()? == known {
        ensure!(Instant::now() < deadline, "the worker needs no memory");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Does something to the worker of the daemon's guest, once it has one to which that can be done.
fn with_worker(daemon: &Daemon, act: impl Fn(u32) -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let guests = guest_processes(daemon)?;
        if let Some((_, worker)) = guests.first()
            && act(*worker).is_ok()
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

/// Kills the daemon's acceptor, and waits for the next one.
fn kill_acceptor(daemon: &Daemon) -> Result<()> {
    let acceptor = acceptor_of(daemon)?;
    let pid = Pid::from_raw(acceptor.try_into()?).context("a process id")?;
    kill_process(pid, Signal::KILL)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while acceptor_of(daemon)? == acceptor {
        ensure!(Instant::now() < deadline, "the acceptor lives on");
        thread::sleep(Duration::from_millis(1));
    }
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
