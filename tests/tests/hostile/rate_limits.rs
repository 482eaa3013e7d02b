//! Guests with limits of operations and bytes a second (`--limit-iops`, `--limit-bps`).

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{GetattrIn, NodeId, Operation, ReadIn};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};

/// Limits that no machine is too slow for. A burst is of an eighth of a second: a shorter pause of
/// the machine costs a guest nothing, and the bucket that it fills is below [`TOLERANCE`] of what
/// is measured.
const LIMITS: &[&str] = &[
    "--limit-iops=200",
    "--limit-iops-burst=25",
    "--limit-bps=4M",
    "--limit-bps-burst=512K",
];
const OPERATIONS: f64 = 200.0;
const BYTES: f64 = 4_194_304.0;

/// How long a guest is measured.
const MEASURED: Duration = Duration::from_secs(3);

/// By what part a guest may be slower or faster than the limit.
const TOLERANCE: f64 = 0.05;

/// Measurements before a guest counts as slower than its limit, or as one that takes a processor:
/// the machine may be busy.
const ATTEMPTS: u32 = 5;

/// How long requests take that are not delayed, at most, on a busy machine. If they were delayed,
/// they would take 20 seconds or more.
const AT_ONCE: Duration = Duration::from_secs(18);

/// How long the daemon may take to end: less than it waits for requests in flight.
const ENDING: Duration = Duration::from_secs(9);

const GETATTR: Operation<'static> = Operation::Getattr(GetattrIn {
    getattr_flags: 0,
    dummy: 0,
    fh: 0,
});

/// Bytes of one READ.
const READ: u32 = 65536;

fn read(file: NodeAndFile) -> Operation<'static> {
    Operation::Read(ReadIn {
        fh: file.file.get(),
        size: READ,
        ..ReadIn::default()
    })
}

/// Has requests in flight by fours until `end`. Returns how many were answered by then.
fn work(
    guest: &mut Driver,
    node: NodeId,
    operation: &Operation<'_>,
    capacity: usize,
    end: Instant,
) -> Result<u32> {
    let mut done = 0;
    loop {
        let tickets: Vec<_> = (0..4)
            .map(|_| guest.submit(1, node, *operation, &[], capacity))
            .collect::<Result<_, _>>()?;
        for ticket in tickets {
            guest.finish(ticket)?;
            done += u32::from(Instant::now() < end);
        }
        if Instant::now() >= end {
            return Ok(done);
        }
    }
}

/// Fails if `done` is over what the limit permits in the time, whatever was in the bucket before.
/// Returns whether it is not below.
fn compare(what: &str, done: f64, limit: f64, elapsed: f64) -> Result<bool> {
    let most = limit * elapsed * (1.0 + TOLERANCE);
    ensure!(
        done <= most,
        "{what}: {done} in {elapsed} s, at most {most}"
    );
    Ok(done >= limit * elapsed * (1.0 - TOLERANCE))
}

#[test]
fn two_guests_are_held_to_their_operations_and_bytes_within_five_percent() -> Result<()> {
    let fixture = Fixture::quiet(LIMITS)?;
    fs::write(fixture.share().join("file"), vec![7; READ as usize])?;
    let mut small = fixture.guest(&Setup::default())?;
    let mut large = fixture.guest(&Setup::default())?;
    let node = NodeId::new(large.lookup(NodeId::ROOT, c"file")?.nodeid);
    let file = large.open(node, OFlags::RDONLY)?;
    let read = read(NodeAndFile { node, file });
    for attempt in 1..=ATTEMPTS {
        let (operations, bytes) = thread::scope(|scope| {
            let small = scope.spawn(|| -> Result<_> {
                // Uses the burst up.
                let begin = Instant::now() + Duration::from_secs(1);
                work(&mut small, NodeId::ROOT, &GETATTR, 4096, begin)?;
                let begin = Instant::now();
                let done = work(&mut small, NodeId::ROOT, &GETATTR, 4096, begin + MEASURED)?;
                Ok((f64::from(done), begin.elapsed().min(MEASURED).as_secs_f64()))
            });
            let capacity = READ as usize;
            let begin = Instant::now() + Duration::from_secs(1);
            work(&mut large, node, &read, capacity, begin)?;
            let begin = Instant::now();
            let done = work(&mut large, node, &read, capacity, begin + MEASURED)?;
            let bytes = f64::from(done) * f64::from(READ);
            let large = (bytes, begin.elapsed().min(MEASURED).as_secs_f64());
            let small = small.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
            anyhow::Ok((small, large))
        })?;
        let reaches = compare("operations", operations.0, OPERATIONS, operations.1)?
            & compare("bytes", bytes.0, BYTES, bytes.1)?;
        if reaches {
            drop((small, large));
            return fixture.survive(&[]);
        }
        ensure!(attempt < ATTEMPTS, "a guest is slower than its limits");
    }
    Ok(())
}

/// A guest that has spent its budget for hours: one READ at a byte a second.
fn in_debt(fixture: &Fixture) -> Result<(Driver, NodeAndFile)> {
    fs::write(fixture.share().join("file"), vec![7; READ as usize])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
    let file = guest.open(node, OFlags::RDONLY)?;
    let file = NodeAndFile { node, file };
    // Larger than the bucket, and served at once all the same.
    ensure!(guest.read(file, 0, READ)?.len() == READ as usize);
    Ok((guest, file))
}

#[test]
fn a_guest_over_its_budget_delays_neither_control_requests_nor_others_nor_the_end() -> Result<()> {
    let mut fixture = Fixture::quiet(&["--limit-bps=1"])?;
    let (mut guest, file) = in_debt(&fixture)?;
    let begin = Instant::now();
    guest.forget(file.node, 1)?;
    guest.destroy()?;
    guest.init()?;
    // Requests that are delayed; what comes on the ring of FORGET is not.
    let delayed = guest.submit(1, NodeId::ROOT, GETATTR, &[], 4096)?;
    guest.forget(file.node, 0)?;
    let mut other = fixture.guest(&Setup::default())?;
    other.getattr(NodeId::ROOT, None)?;
    ensure!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    ensure!(!guest.is_finished(&delayed)?, "the guest is not limited");
    // A ring stops, and has taken nothing that it would have to finish.
    guest.stop_ring(1)?;
    guest.start_ring(1)?;
    ensure!(!guest.is_finished(&delayed)?);
    drop((guest, other));
    fixture.settle()?;
    let (mut guest, _) = in_debt(&fixture)?;
    let _delayed = guest.submit(1, NodeId::ROOT, GETATTR, &[], 4096)?;
    let begin = Instant::now();
    fixture.daemon.signal_all(Signal::TERM)?;
    ensure!(fixture.daemon.wait()?.success(), "{}", fixture.log());
    ensure!(begin.elapsed() < ENDING, "{:?}", begin.elapsed());
    Ok(())
}

/// Its thread sleeps, and does not poll the ring either.
#[test]
fn a_delayed_ring_takes_no_processor() -> Result<()> {
    let fixture = Fixture::quiet(&["--limit-bps=1", "--busy-poll=10000"])?;
    let (mut guest, _) = in_debt(&fixture)?;
    let _delayed = guest.submit(1, NodeId::ROOT, GETATTR, &[], 4096)?;
    let worker = fixture.last_worker()?;
    for attempt in 1..=ATTEMPTS {
        let before = processor_time(worker)?;
        thread::sleep(Duration::from_millis(500));
        let used = processor_time(worker)? - before;
        // On a busy machine its other threads may still be at their first work.
        if used < 5 {
            break;
        }
        ensure!(
            attempt < ATTEMPTS,
            "{used} hundredths of a second in half a second"
        );
    }
    Ok(())
}

/// In hundredths of a second (proc(5): `utime` and `stime`).
fn processor_time(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a process's name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

#[test]
fn the_death_of_a_worker_is_no_new_burst() -> Result<()> {
    let fixture = Fixture::quiet(&["--limit-iops=80", "--limit-iops-burst=100"])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let begin = Instant::now();
    for _ in 0..3 {
        for _ in 0..40 {
            guest.getattr(NodeId::ROOT, None)?;
        }
        let worker = Pid::from_raw(fixture.last_worker()?.try_into()?).context("a process id")?;
        kill_process(worker, Signal::KILL)?;
    }
    guest.getattr(NodeId::ROOT, None)?;
    // 40 of the first burst, and 80 at 80 a second. Three bursts would take no time.
    let least = Duration::from_secs_f64(80.0 / 80.0 * (1.0 - TOLERANCE));
    ensure!(begin.elapsed() >= least, "{:?}", begin.elapsed());
    Ok(())
}

#[test]
fn a_request_larger_than_its_bucket_delays_the_next_and_is_served() -> Result<()> {
    let fixture = Fixture::quiet(&["--limit-bps=64K", "--limit-bps-burst=1K"])?;
    let begin = Instant::now();
    let (mut guest, file) = in_debt(&fixture)?;
    // 64 KiB at 64 KiB a second are paid before the next.
    guest.read(file, 0, 1)?;
    ensure!(begin.elapsed() >= Duration::from_millis(950));
    // A READ that ends early pays for what it returned: this one, and not 64 KiB.
    let begin = Instant::now();
    for _ in 0..20 {
        guest.read(file, u64::from(READ) - 16, READ)?;
    }
    ensure!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    Ok(())
}
