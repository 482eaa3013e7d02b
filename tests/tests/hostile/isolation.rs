//! What one guest's processes do or suffer is no other guest's concern.

use std::ffi::CString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use gangplank_tests::driver::{Driver, Setup};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// Limit for the kernel to end a process.
const ENDING: Duration = Duration::from_secs(60);

/// Limit of file sizes that the daemon runs under, in bytes.
const FILE_SIZE: u64 = 1 << 20;

/// Memory of a control group in which a worker runs out of it, in bytes.
const GROUP_MEMORY: u64 = 12 << 20;

fn process(pid: u32) -> Result<Pid> {
    Pid::from_raw(pid.try_into()?).context("a process id")
}

fn wait_until_gone(pid: u32) -> Result<()> {
    let deadline = Instant::now() + ENDING;
    // A process that only waits for its parent has no memory map any more.
    while fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.is_empty()) {
        ensure!(Instant::now() < deadline, "process {pid} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
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

#[test]
fn a_write_beyond_the_limit_of_file_sizes_is_the_guests_error() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let limit = Rlimit {
        current: Some(FILE_SIZE),
        maximum: Some(FILE_SIZE),
    };
    // Workers inherit it, as they would from ulimit -f or LimitFSIZE=.
    prlimit(Some(process(fixture.acceptor()?)?), Resource::Fsize, limit)?;
    let mut guest = fixture.guest(&Setup::default())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    for _ in 0..2 {
        let refused = guest.write(file, FILE_SIZE, b"beyond");
        let errno = refused.err().and_then(|error| error.errno());
        ensure!(errno == Some(Errno::FBIG), "{errno:?}");
        ensure!(guest.write(file, 0, b"within")? == 6);
    }
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn a_worker_that_runs_out_of_memory_takes_no_guest_along() -> Result<()> {
    let Some(group) = MemoryGroup::new(GROUP_MEMORY)? else {
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

/// A control group with a limit of memory, removed when dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None` if this host has no such groups, or this process may not create one.
    fn new(bytes: u64) -> Result<Option<Self>> {
        let name = format!("gangplank-test-{}", std::process::id());
        // Version 2, and version 1's file of the same meaning.
        for (root, limit, limit_with_swap) in [
            ("/sys/fs/cgroup", "memory.max", None),
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                Some("memory.memsw.limit_in_bytes"),
            ),
        ] {
            let dir = PathBuf::from(root).join(&name);
            if !PathBuf::from(root).join("cgroup.procs").exists() || fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self(dir);
            if !group.0.join(limit).exists() {
                continue;
            }
            fs::write(group.0.join(limit), bytes.to_string())?;
            if let Some(file) = limit_with_swap {
                // A kernel that does not account swap lacks the file.
                let _ = fs::write(group.0.join(file), bytes.to_string());
            } else {
                let _ = fs::write(group.0.join("memory.swap.max"), "0");
            }
            return Ok(Some(group));
        }
        Ok(None)
    }

    fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).context("joining the group")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
