//! A disk that accepts more than it can store, and fails later.
//!
//! The kernel reports such an error once to each open file, and once to each process that syncs the
//! whole file system. Each guest, and each of its open files, must get it.

use anyhow::{Result, ensure};
use gangplank_fuse::{NodeId, Operation, SyncfsIn};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::disk::{Disk, Kind};
use gangplank_tests::driver::{Driver, Error, NodeAndFile, Setup};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Bytes of one WRITE.
const PIECE: usize = 1 << 20;

/// Writes of that size, twice what the disk can store.
const PIECES: u64 = 24;

/// The open modes of the file's descriptors. The first one writes.
const OPENINGS: [OFlags; 3] = [OFlags::RDWR, OFlags::RDONLY, OFlags::WRONLY];

/// Whether a call failed because the disk has lost something.
fn lost<T>(result: Result<T, Error>) -> Result<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(Error::Errno(Errno::IO | Errno::NOSPC)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn syncfs(guest: &mut Driver) -> Result<(), Error> {
    let operation = Operation::Syncfs(SyncfsIn::default());
    guest.call(NodeId::ROOT, operation, &[], 0).map(drop)
}

/// Makes a disk with a file that has its blocks, but not their content. Metadata of the file has
/// space, so that only content is lost.
fn disk() -> Result<Disk> {
    let disk = Disk::new(Kind::Thin)?;
    let file = std::fs::File::create(disk.path().join("file"))?;
    let length = PIECES * PIECE as u64;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)?;
    rustix::fs::syncfs(&file)?;
    Ok(disk)
}

/// Opens the file.
fn open(guest: &mut Driver, flags: OFlags) -> Result<NodeAndFile> {
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
    let file = guest.open(node, flags)?;
    Ok(NodeAndFile { node, file })
}

/// Writes more than the disk can store, without an error.
fn overfill(guest: &mut Driver, file: NodeAndFile) -> Result<()> {
    let content = vec![0x5a; PIECE];
    for index in 0..PIECES {
        let written = guest.write(file, index * PIECE as u64, &content)?;
        ensure!(written as usize == PIECE, "{written} bytes written");
    }
    Ok(())
}

/// Which of three FSYNCs of each open file report a loss.
type Reports = Vec<[bool; 3]>;

/// The reports that a program on the host gets for its open files.
fn heard_on_the_host() -> Result<Reports> {
    let disk = disk()?;
    let path = disk.path().join("file");
    let mut files = Vec::new();
    for flags in OPENINGS {
        files.push(rustix::fs::open(&path, flags, Mode::empty())?);
    }
    let content = vec![0x5a; PIECE];
    for index in 0..PIECES {
        let written = rustix::io::pwrite(&files[0], &content, index * PIECE as u64)?;
        ensure!(written == PIECE, "{written} bytes written");
    }
    files.push(rustix::fs::open(&path, OFlags::RDONLY, Mode::empty())?);
    let mut reports = Reports::new();
    for file in &files {
        reports.push([(); 3].map(|()| rustix::fs::fsync(file).is_err()));
    }
    Ok(reports)
}

/// FSYNC reports to each open file of a guest what it reports to each open file on the host: a
/// loss, to each that was open then, even if others got it already.
pub(crate) fn each_open_file_hears_what_it_would_on_the_host() -> Result<()> {
    let expected = heard_on_the_host()?;
    ensure!(
        expected.iter().all(|[first, _, last]| *first && !*last),
        "the host's file system reports {expected:?}"
    );
    let disk = disk()?;
    let daemon = Daemon::start(&daemon::Options::new(disk.path()))?;
    let mut guest = Driver::mount(daemon.socket(), &Setup::default())?;
    let mut files = Vec::new();
    for flags in OPENINGS {
        files.push(open(&mut guest, flags)?);
    }
    overfill(&mut guest, files[0])?;
    files.push(open(&mut guest, OFlags::RDONLY)?);
    let mut reports = Reports::new();
    for file in files {
        let mut report = [false; 3];
        for slot in &mut report {
            *slot = lost(guest.fsync(file))?;
        }
        reports.push(report);
    }
    ensure!(
        reports == expected,
        "a guest hears {reports:?}, a program of the host {expected:?}"
    );
    Ok(())
}

/// SYNCFS reports a loss once to each guest that wrote before, even if others got it already.
pub(crate) fn each_guest_hears_once() -> Result<()> {
    let disk = disk()?;
    let daemon = Daemon::start(&daemon::Options::new(disk.path()))?;
    let mut guests = Vec::new();
    let mut files = Vec::new();
    for _ in 0..3 {
        let mut guest = Driver::mount(daemon.socket(), &Setup::default())?;
        files.push(open(&mut guest, OFlags::RDWR)?);
        guests.push(guest);
    }
    overfill(&mut guests[0], files[0])?;
    for (number, guest) in guests.iter_mut().enumerate() {
        ensure!(
            lost(syncfs(guest))?,
            "SYNCFS of guest {number} reports nothing lost"
        );
        ensure!(!lost(syncfs(guest))?, "SYNCFS reports the same twice");
    }
    Ok(())
}
