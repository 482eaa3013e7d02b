//! How long the guest is without a worker does not depend on the number of inodes that it knows:
//! the next worker looks at as much memory, whatever it is.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use gangplank_tests::driver::{Driver, Setup};

use super::{MANY, kill_worker, pauses, wait_for_next};

/// Inodes in the short form, and with `GANGPLANK_LONG`.
const INODES: (usize, usize) = (100_000, 1_000_000);

/// Inodes with which the others are compared.
const FEW: usize = 1000;

/// Files of each directory.
const FILES: usize = 1000;

/// Kills of an idle guest's worker, and of one that changes what it knows.
const KILLS: usize = 10;

/// Bytes of a reply to READDIRPLUS.
const LISTING: u32 = 128 * 1024;

/// A pause with many inodes may take so many times as long as one with few, and so many ms more. To
/// look at each of 100,000 inodes takes longer. The shortest of several are compared: the others
/// have the machine's other work in them.
const PAUSE_GROWTH: (f64, f64) = (4.0, 15.0);

/// Inodes for each of which a worker that has replaced one may have one page fault more than a
/// worker whose guest knows few. The kernel maps 16 pages at a fault, so to look at each record
/// takes two in as many inodes.
const INODES_PER_FAULT: usize = 1000;

/// The longest middle pause of a guest that knows the inodes of the long form, in ms.
const LONG_PAUSE_MS: f64 = 100.0;

/// Some of the inodes that a guest knows: one of each directory.
type Sample = Vec<(NodeId, NodeId, CString)>;

/// Makes directories of 1,000 empty files each, and returns how many.
fn make_files(share: &Path, inodes: usize) -> Result<usize> {
    let directories = inodes / FILES;
    for number in 0..directories {
        let directory = share.join(number.to_string());
        fs::create_dir(&directory)?;
        let directory = File::open(directory)?;
        for file in 0..FILES {
            let (kind, mode) = (rustix::fs::FileType::RegularFile, 0o644.into());
            rustix::fs::mknodat(&directory, file.to_string(), kind, mode, 0)?;
        }
    }
    Ok(directories)
}

/// Makes the guest know all files.
fn read_all(guest: &mut Driver, directories: usize) -> Result<Sample> {
    let mut sample = Vec::new();
    let mut known = 0;
    for number in 0..directories {
        let directory = CString::new(number.to_string())?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, &directory)?.nodeid);
        let handle = guest.opendir(node)?;
        let (mut offset, mut last) = (0, None);
        loop {
            let (names, next) = guest.readdirplus(node, handle, offset, LISTING)?;
            if names.is_empty() {
                break;
            }
            offset = next;
            let files = names.into_iter().filter(|(_, file)| file.get() != 0);
            for (name, file) in files {
                known += 1;
                last = Some((node, file, CString::new(name)?));
            }
        }
        guest.releasedir(node, handle)?;
        sample.extend(last);
    }
    ensure!(known == directories * FILES, "{known} files are known");
    Ok(sample)
}

/// Page faults of a process so far that took no disk (`minflt`, proc_pid_stat(5)).
fn page_faults(process: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is a name, and the third follows it.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let faults = fields.split_whitespace().nth(10 - 3);
    Ok(faults.context("no count")?.parse()?)
}

/// What it takes to replace the worker of an idle guest, several times.
#[derive(Clone, Copy, Debug)]
struct Replacing {
    /// The shortest of the pauses that the log tells.
    shortest_ms: f64,
    /// The middle one.
    middle_ms: f64,
    /// The next worker's page faults until it serves: the middle of several numbers.
    page_faults: u64,
}

/// Measures that for a guest that knows this many inodes.
fn measure(arguments: &[&str], inodes: usize) -> Result<Replacing> {
    let fixture = Fixture::quiet(&[arguments, &[MANY]].concat())?;
    let directories = make_files(&fixture.share(), inodes)?;
    let mut guest = fixture.guest(&Setup::default())?;
    let sample = read_all(&mut guest, directories).with_context(|| fixture.log())?;
    let is_known = |guest: &mut Driver| -> Result<()> {
        for (directory, file, name) in &sample {
            let found = guest.lookup(*directory, name)?;
            ensure!(found.nodeid == file.get(), "{name:?} is another node now");
            guest.forget(*file, 1)?;
            guest.getattr(*file, None)?;
        }
        Ok(())
    };
    is_known(&mut guest)?;

    let mut idle: Vec<Duration> = Vec::new();
    let mut faults = Vec::new();
    for death in 1..=KILLS {
        let old = kill_worker(&fixture)?;
        let start = Instant::now();
        guest.getattr(NodeId::ROOT, None)?;
        idle.push(start.elapsed());
        wait_for_next(&fixture, old)?;
        wait_for_log(&fixture.daemon, &format!("death {death}"))?;
        faults.push(page_faults(fixture.last_worker()?)?);
        // Workers that live briefly are replaced with a delay.
        thread::sleep(Duration::from_millis(110));
    }
    idle.sort();
    faults.sort_unstable();
    let while_idle = pauses(&fixture.daemon.log());
    // Most of these deaths leave a part of the table half changed, which the next worker mends.
    for death in 1..=KILLS {
        let killed = thread::scope(|scope| {
            let killer = scope.spawn(|| {
                thread::sleep(Duration::from_millis(110 + fastrand::u64(0..20)));
                kill_worker(&fixture)
            });
            while !killer.is_finished() {
                is_known(&mut guest)?;
            }
            killer.join().expect("no panic")
        })?;
        wait_for_next(&fixture, killed)?;
        // A worker that is killed before it serves tells no pause.
        wait_for_log(&fixture.daemon, &format!("death {}\n", KILLS + death))?;
    }
    is_known(&mut guest).with_context(|| fixture.log())?;
    let all = pauses(&fixture.daemon.log());
    ensure!(
        all.len() == 2 * KILLS,
        "{} pauses: {}",
        all.len(),
        fixture.log()
    );
    let middle = while_idle[while_idle.len() / 2];
    let page_faults = faults[faults.len() / 2];
    eprintln!(
        "{arguments:?}, {inodes} inodes: {page_faults} page faults, idle {middle} ms, at most {:?} \
         ms, with a GETATTR {:?}; also under load at most {:?} ms",
        while_idle.last(),
        idle[idle.len() / 2],
        all.last()
    );
    Ok(Replacing {
        shortest_ms: while_idle[0],
        middle_ms: middle,
        page_faults,
    })
}

#[test]
fn the_pause_does_not_grow_with_the_number_of_inodes() -> Result<()> {
    let is_long = std::env::var_os("GANGPLANK_LONG").is_some();
    let count = if is_long { INODES.1 } else { INODES.0 };
    // With as many descriptors as the system permits, and with few. The other inodes have file
    // handles, or names where handles do not work.
    for arguments in [&[][..], &["--rlimit-nofile=1024"]] {
        let few = measure(arguments, FEW)?;
        let many = measure(arguments, count)?;
        eprintln!("{arguments:?}: {few:?} with {FEW} inodes, {many:?} with {count}");
        ensure!(
            many.page_faults <= few.page_faults + u64::try_from(count / INODES_PER_FAULT)?,
            "{arguments:?}: the next worker looks at more memory: {few:?}, {many:?}"
        );
        let (factor, more) = PAUSE_GROWTH;
        ensure!(
            many.shortest_ms <= few.shortest_ms * factor + more,
            "{arguments:?}: the pause is longer: {few:?}, {many:?}"
        );
        ensure!(
            !is_long || many.middle_ms < LONG_PAUSE_MS,
            "{arguments:?}: {many:?} with {count} inodes"
        );
    }
    Ok(())
}
