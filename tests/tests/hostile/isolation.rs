//! What one guest's processes do or suffer is no other guest's concern.

use std::ffi::CString;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{NodeId, Operation};
use gangplank_tests::cgroup::Cgroup;
use gangplank_tests::driver::fixture::{Fixture, SUBMOUNT, wait_for_log};
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::faulty_fs::rules::{Call, Fault, Rule};
use gangplank_tests::process::{User, tied};
use gangplank_tests::wait;
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};

/// Limit for the kernel to end a process.
const ENDING: Duration = Duration::from_secs(60);

/// Limit for the daemon to end a guest without a request in flight: less than it has for one with.
const STOPPING: Duration = Duration::from_secs(9);

/// Limit of file sizes that the daemon runs under, in bytes.
const FILE_SIZE: u64 = 1 << 20;

/// Files of a guest, more than it may have descriptors.
const MANY_FILES: usize = 600;

/// Requests that wait for a submount. Its server can still answer others.
const HUNG: usize = 3;

/// Memory of a control group in which a worker runs out of it, in bytes.
const GROUP_MEMORY: u64 = 12 << 20;

fn process(pid: u32) -> Result<Pid> {
    Pid::from_raw(pid.try_into()?).context("a process id")
}

fn wait_until_gone(pid: u32) -> Result<()> {
    wait::until(&format!("process {pid} ends"), ENDING, || {
        // A process that only waits for its parent has no memory map any more.
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"));
        Ok(maps.map_or(true, |maps| maps.is_empty()))
    })
}

#[test]
fn a_killed_keeper_takes_its_own_guest_along_and_a_killed_worker_none() -> Result<()> {
    let mut fixture = Fixture::new(&[])?;
    for kills_worker in [true, false] {
        let mut guest = fixture.guest(&Setup::default())?;
        guest.lookup(NodeId::ROOT, c"neighbour")?;
        let (keeper, worker) = fixture.guest_processes()?.pop().context("a guest")?;
        let victim = if kills_worker { worker } else { keeper };
        kill_process(process(victim)?, Signal::KILL)?;
        wait_until_gone(worker)?;
        let served = guest.lookup(NodeId::ROOT, c"neighbour");
        if kills_worker {
            served.context("the next worker does not go on")?;
        } else {
            ensure!(served.is_err(), "a guest is served without its keeper");
        }
        fixture.neighbour_goes_on()?;
        // The next guest is served.
        let mut next = fixture.guest(&Setup::default())?;
        next.lookup(NodeId::ROOT, c"neighbour")?;
    }
    fixture.survive(&[
        "the worker of guest 2 was ended by signal 9",
        "the keeper of guest 4 was ended by signal 9",
    ])
}

/// A guest of an ordinary user's daemon, and its keeper, which may start no process since the last
/// worker was killed.
fn without_a_next_worker() -> Result<(Fixture, Driver, u32)> {
    // Root may start any number of processes.
    let fixture = Fixture::quiet_as(&[], ordinary_user())?;
    let guest = fixture.guest(&Setup::default())?;
    let (keeper, worker) = fixture.guest_processes()?.pop().context("a guest")?;
    permit_processes(keeper, "0")?;
    kill_process(process(worker)?, Signal::KILL)?;
    wait_for_log(
        &fixture.daemon,
        "cannot start the worker of guest 1, attempt 2",
    )?;
    Ok((fixture, guest, keeper))
}

fn ordinary_user() -> Option<User> {
    User::is_root().then_some(User::NOBODY)
}

/// Sets how many processes the user of `keeper` may have when that starts one. The user does it:
/// root may lack the capability for others.
fn permit_processes(keeper: u32, count: &str) -> Result<()> {
    let mut command = tied("prlimit", ordinary_user());
    command.args(["--pid", &keeper.to_string(), &format!("--nproc={count}:")]);
    let done = command.output().context("running prlimit (util-linux)")?;
    ensure!(done.status.success(), "{done:?}");
    Ok(())
}

#[test]
fn a_worker_that_cannot_be_started_for_a_while_costs_the_guest_nothing() -> Result<()> {
    let (fixture, mut guest, keeper) = without_a_next_worker()?;
    let most = getrlimit(Resource::Nproc).maximum;
    let most = most.map_or("unlimited".to_owned(), |most| most.to_string());
    permit_processes(keeper, &most)?;
    guest.getattr(NodeId::ROOT, None)?;
    drop(guest);
    fixture.survive(&["the worker of guest 1 was started at attempt"])
}

#[test]
fn a_keeper_that_cannot_start_a_worker_ends_when_it_is_told_to() -> Result<()> {
    let (fixture, _guest, _) = without_a_next_worker()?;
    let begun = Instant::now();
    let (status, log) = fixture.daemon.stop()?;
    ensure!(status.success(), "{log}");
    ensure!(begun.elapsed() < STOPPING, "{:?}: {log}", begun.elapsed());
    Ok(())
}

#[test]
fn a_write_beyond_the_limit_of_file_sizes_is_the_guests_error() -> Result<()> {
    let mut fixture = Fixture::quiet(&[])?;
    fixture.limit_file_size(FILE_SIZE)?;
    fixture.start_neighbour()?;
    let mut guest = fixture.guest(&Setup::default())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    for _ in 0..2 {
        let refused = guest.write(file, FILE_SIZE, b"beyond");
        let errno = refused.err().and_then(|error| error.errno());
        ensure!(errno == Some(Errno::FBIG), "{errno:?}");
        ensure!(guest.write(file, 0, b"within")? == 6);
        fixture.neighbour_goes_on()?;
    }
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn a_guest_that_hangs_on_a_submount_delays_no_other_guest() -> Result<()> {
    // So few descriptors that the other guest's files are given up and found again.
    let mut fixture = Fixture::quiet_with_submount(&["--rlimit-nofile=512"])?;
    let Some(control) = fixture.submount.as_ref().map(|fs| fs.control().clone()) else {
        eprintln!("SKIPPED: only root can mount a file system that does not answer");
        return Ok(());
    };
    for n in 0..MANY_FILES {
        fs::write(fixture.share().join(format!("file{n}")), vec![0; n])?;
    }
    fixture.start_neighbour()?;
    let mut guest = fixture.guest(&Setup::default())?;
    let mut other = fixture.guest(&Setup::default())?;
    let submount = CString::new(SUBMOUNT)?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, &submount)?.nodeid);
    other.lookup(NodeId::ROOT, &submount)?;
    for call in [Call::Lookup, Call::Getattr] {
        control.set(Rule::new(call, Fault::Unanswered));
    }
    control.reset_calls();
    let operation = Operation::Lookup { name: c"hung" };
    let hung = (0..HUNG).map(|_| guest.submit(1, node, operation, &[], 4096));
    let hung = hung.collect::<Result<Vec<_>, _>>()?;
    wait::until("the daemon asks the submount for something", ENDING, || {
        Ok(control.calls(Call::Lookup) + control.calls(Call::Getattr) > 0)
    })?;
    let mut nodes = Vec::new();
    for n in 0..MANY_FILES {
        let name = CString::new(format!("file{n}"))?;
        nodes.push(NodeId::new(other.lookup(NodeId::ROOT, &name)?.nodeid));
    }
    for (n, node) in nodes.into_iter().enumerate() {
        let size = other.getattr(node, None)?.attr.size;
        ensure!(usize::try_from(size)? == n, "file{n} has {size} bytes");
    }
    fixture.neighbour_goes_on()?;
    fixture
        .guest(&Setup::default())?
        .getattr(NodeId::ROOT, None)?;
    for ticket in &hung {
        ensure!(!guest.is_finished(ticket)?, "the submount has answered");
    }
    control.clear();
    for ticket in hung {
        let errno = guest.finish(ticket).err().and_then(|error| error.errno());
        ensure!(errno == Some(Errno::NOENT), "{errno:?}");
    }
    drop((guest, other));
    fixture.survive(&[])
}

#[test]
fn a_worker_that_runs_out_of_memory_takes_no_guest_along() -> Result<()> {
    let Some(group) = Cgroup::of_memory(GROUP_MEMORY) else {
        eprintln!("SKIPPED: this host has no memory control groups that tests can create");
        return Ok(());
    };
    let mut fixture = Fixture::new(&[])?;
    for index in 0..2000 {
        fs::write(fixture.share().join(format!("file{index}")), "")?;
    }
    let mut guest = fixture.guest(&Setup::default())?;
    let worker = fixture.last_worker()?;
    group.add(worker)?;
    // Each file that a guest creates is remembered until the guest forgets it.
    let deadline = Instant::now() + ENDING;
    let mut number = 0_u64;
    while !fixture.daemon.log().contains("was ended by signal 9") {
        // The next worker does not know the directories of the one before.
        let _ = create_many(&mut guest, &mut number);
        ensure!(
            Instant::now() < deadline,
            "the worker does not run out of memory"
        );
    }
    wait_for_log(&fixture.daemon, "is served again")?;
    guest.lookup(NodeId::ROOT, c"file1")?;
    drop(guest);
    fixture.neighbour_goes_on()?;
    let mut next = fixture.guest(&Setup::default())?;
    next.lookup(NodeId::ROOT, c"file0")?;
    drop(next);
    fixture.survive(&["the worker of guest 2 was ended by signal 9", "memory"])
}

fn create_many(guest: &mut Driver, number: &mut u64) -> Result<()> {
    for _ in 0..1000 {
        *number += 1;
        let name = CString::new(format!("{number:0200}"))?;
        let dir = guest.mkdir(NodeId::ROOT, &name)?;
        guest.opendir(NodeId::new(dir.nodeid))?;
        guest.rmdir(NodeId::ROOT, &name)?;
    }
    Ok(())
}
