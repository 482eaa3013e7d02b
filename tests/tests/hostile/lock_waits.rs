//! Any number of requests may wait for locks (`--locks=host`): the guest's threads are limited, its
//! patience is not.

use std::collections::VecDeque;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::TAG;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::ring::CallKind;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup, Ticket};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process::with_descendants;
use gangplank_tests::tools;
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;

/// `F_WRLCK` and `F_UNLCK` as the wire has them.
const WRITE_LOCK: u32 = 1;
const UNLOCK: u32 = 2;

/// How long one step may take.
const SOON: Duration = Duration::from_secs(30);

/// How long it may take until each of a thousand has had the lock.
const ALL: Duration = Duration::from_secs(120);

/// Processes of a Linux guest that wait, and how long a busy machine may take to start them and to
/// end them.
const PROCESSES: usize = 1000;
const STARTING: Duration = Duration::from_secs(240);

/// `--max-threads`, by default.
const MAX_THREADS: usize = 64;

/// Threads of each worker beside those: nine rings, and a few that manage the device.
const OTHER_THREADS: usize = 9 + 4;

const MANY: Setup = Setup {
    request_queues: 2,
    ring_size: 1024,
    indirect: true,
    event_idx: false,
    call: CallKind::Event,
    memory: 16 << 20,
};

/// The file, open in a guest.
fn open(guest: &mut Driver, name: &std::ffi::CStr) -> Result<NodeAndFile> {
    let node = NodeId::new(guest.lookup(NodeId::ROOT, name)?.nodeid);
    let file = guest.open(node, OFlags::RDWR)?;
    Ok(NodeAndFile { node, file })
}

/// A guest that holds a lock, and another of which `count` requests wait for it.
struct Crowd {
    fixture: Fixture,
    holder: Driver,
    held: NodeAndFile,
    guest: Driver,
    wanted: NodeAndFile,
    /// Lock owners and their requests.
    waiting: VecDeque<(u64, Ticket)>,
}

impl Crowd {
    fn new(count: u64) -> Result<Self> {
        let fixture = Fixture::new(&["--locks=host"])?;
        let mut holder = fixture.guest(&Setup::default())?;
        let held = holder.create(NodeId::ROOT, c"locked", 0o644)?;
        holder.setlk(held, 1, WRITE_LOCK)?;
        let mut guest = fixture.guest(&MANY)?;
        let wanted = open(&mut guest, c"locked")?;
        let mut waiting = VecDeque::new();
        for owner in 1..=count {
            let queue = if owner % 2 == 0 { 1 } else { 2 };
            let ticket = guest.submit_setlkw(queue, wanted, owner, WRITE_LOCK)?;
            waiting.push_back((owner, ticket));
        }
        // Both rings have served all that came before.
        for queue in [1, 2] {
            guest.queue = queue;
            guest.getattr(wanted.node, None)?;
        }
        for (owner, ticket) in &waiting {
            ensure!(!guest.is_finished(ticket)?, "owner {owner} does not wait");
        }
        Ok(Self {
            fixture,
            holder,
            held,
            guest,
            wanted,
            waiting,
        })
    }

    fn is_finished_within(&mut self, ticket: &Ticket, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        while !self.guest.is_finished(ticket)? {
            if start.elapsed() > limit {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    fn leave(self) -> Result<()> {
        drop((self.holder, self.guest));
        self.fixture.survive(&[])
    }
}

/// The most threads of `pid` and of any process below it.
fn most_threads(pid: u32) -> Result<usize> {
    let mut most = 0;
    for process in with_descendants(pid) {
        most = most.max(fs::read_dir(format!("/proc/{process}/task"))?.count());
    }
    Ok(most)
}

#[test]
fn each_of_a_thousand_requests_gets_its_lock() -> Result<()> {
    let mut crowd = Crowd::new(1000)?;
    let threads = most_threads(crowd.fixture.daemon.pid())?;
    ensure!(
        threads <= MAX_THREADS + OTHER_THREADS,
        "a worker has {threads} threads"
    );
    crowd.fixture.neighbour_goes_on()?;

    let start = Instant::now();
    crowd.holder.setlk(crowd.held, 1, UNLOCK)?;
    while let Some((owner, ticket)) = crowd.waiting.pop_front() {
        ensure!(
            start.elapsed() < ALL,
            "{} requests wait on, of owner {owner} and others",
            crowd.waiting.len() + 1
        );
        if crowd.guest.is_finished(&ticket)? {
            crowd
                .guest
                .finish(ticket)
                .with_context(|| format!("owner {owner}"))?;
            crowd.guest.setlk(crowd.wanted, owner, UNLOCK)?;
        } else {
            crowd.waiting.push_back((owner, ticket));
        }
    }
    crowd.holder.setlk(crowd.held, 1, WRITE_LOCK)?;
    crowd.leave()
}

#[test]
fn interrupt_ends_any_of_a_thousand_waits() -> Result<()> {
    let mut crowd = Crowd::new(1000)?;
    for at in [0, 999, 500] {
        let (owner, ticket) = crowd.waiting[at];
        crowd.guest.interrupt(ticket.unique)?;
        ensure!(
            crowd.is_finished_within(&ticket, SOON)?,
            "INTERRUPT does not end the wait of owner {owner}"
        );
        let outcome = crowd.guest.finish(ticket).err();
        let errno = outcome.and_then(|error| error.errno());
        ensure!(errno == Some(Errno::INTR), "owner {owner}: {errno:?}");
    }
    crowd.leave()
}

#[test]
fn stopping_the_ring_ends_five_hundred_waits() -> Result<()> {
    let mut crowd = Crowd::new(1000)?;
    let start = Instant::now();
    crowd.guest.stop_ring(1)?;
    ensure!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
    for (owner, ticket) in std::mem::take(&mut crowd.waiting) {
        let is_finished = crowd.guest.is_finished(&ticket)?;
        ensure!(
            is_finished == (owner % 2 == 0),
            "owner {owner} has finished: {is_finished}"
        );
    }
    crowd.leave()
}

#[test]
fn a_guest_with_a_thousand_waits_may_go_and_takes_no_lock() -> Result<()> {
    let crowd = Crowd::new(1000)?;
    let Crowd {
        fixture,
        mut holder,
        held,
        guest,
        ..
    } = crowd;
    drop(guest);
    holder.setlk(held, 1, UNLOCK)?;
    let mut third = fixture.guest(&Setup::default())?;
    let wanted = open(&mut third, c"locked")?;
    let ticket = third.submit_setlkw(1, wanted, 1, WRITE_LOCK)?;
    third.finish_within(ticket, SOON)?;
    drop((holder, third));
    fixture.survive(&[])
}

/// More processes wait in the guest than its ring has room for, and far more than the worker may
/// have threads.
#[test]
fn a_thousand_processes_of_a_linux_guest_wait_and_get_their_locks() -> Result<()> {
    let mut fixture = Fixture::new(&["--locks=host"])?;
    let machine = Machine::Uml;
    let mut options = Options::new(machine)
        .share(fixture.socket(), TAG)
        .program("guest-check", &tools::guest_check(machine.arch())?);
    options.memory_mib = 1024;
    let mut guest = Guest::boot(&options)?;
    guest.mount(TAG, "/mnt").with_context(|| fixture.log())?;
    let held = fs::File::create(fixture.share().join("crowd"))?;
    fcntl_lock(&held, FlockOperation::LockExclusive)?;
    guest.sh(&format!(
        "mkdir /tmp/crowd && {{ guest-check /mnt/crowd --crowd {PROCESSES} /tmp/crowd \
         >/tmp/said 2>&1; echo $? >/tmp/ended; }} &"
    ))?;
    let start = Instant::now();
    loop {
        let waiting = counted(&mut guest, "waiting")?;
        if waiting == PROCESSES {
            break;
        }
        ensure!(
            start.elapsed() < STARTING,
            "only {waiting} processes wait: {}",
            guest.sh("cat /tmp/said")?
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // The last one's request is on its way.
    std::thread::sleep(Duration::from_secs(1));
    let threads = most_threads(fixture.daemon.pid())?;
    ensure!(
        (MAX_THREADS / 2..=MAX_THREADS + OTHER_THREADS).contains(&threads),
        "a worker has {threads} threads"
    );
    ensure!(
        counted(&mut guest, "locked")? == 0,
        "a lock was given to two"
    );
    fixture.neighbour_goes_on()?;

    fcntl_lock(&held, FlockOperation::Unlock)?;
    let ended = guest.sh_within(
        "until test -s /tmp/ended; do sleep 0.1; done; cat /tmp/said /tmp/ended",
        STARTING,
    )?;
    ensure!(ended == "0\n", "the processes said: {ended}");
    ensure!(counted(&mut guest, "locked")? == PROCESSES);
    // All have given it back.
    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive).context("a lock is left")?;
    guest.power_off()?;
    fixture.survive(&[])
}

/// How many processes of the guest have reached a state.
fn counted(guest: &mut Guest, state: &str) -> Result<usize> {
    let text = guest.sh(&format!("cat /tmp/crowd/{state} 2>/dev/null | wc -c"))?;
    Ok(text.trim().parse()?)
}

/// All threads wait for one lock, and a request beyond them for another: it must not wait for
/// theirs.
#[test]
fn a_request_without_a_thread_gets_its_lock() -> Result<()> {
    // One thread that waits, and one for the requests beyond it.
    let fixture = Fixture::new(&["--locks=host", "--max-threads=3"])?;
    let mut holder = fixture.guest(&Setup::default())?;
    let first = holder.create(NodeId::ROOT, c"first", 0o644)?;
    let second = holder.create(NodeId::ROOT, c"second", 0o644)?;
    for held in [first, second] {
        holder.setlk(held, 1, WRITE_LOCK)?;
    }
    let mut guest = fixture.guest(&MANY)?;
    let (wanted, other) = (open(&mut guest, c"first")?, open(&mut guest, c"second")?);
    let mut tickets = Vec::new();
    for owner in 1..=20 {
        tickets.push(guest.submit_setlkw(1, wanted, owner, WRITE_LOCK)?);
    }
    let ticket = guest.submit_setlkw(1, other, 100, WRITE_LOCK)?;
    guest.getattr(wanted.node, None)?;
    ensure!(!guest.is_finished(&ticket)?, "the lock was given to two");
    holder.setlk(second, 1, UNLOCK)?;
    guest
        .finish_within(ticket, SOON)
        .context("behind twenty that wait for another lock")?;
    for ticket in &tickets {
        ensure!(!guest.is_finished(ticket)?, "the lock was given to two");
    }
    drop((holder, guest));
    fixture.survive(&[])
}
