//! Every operation, many requests in flight, and what happens when a daemon does not do its part.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_driver::{
    Caller, Data, Error, Fault, FuseSession, InitOptions, Options, Pending, WaitMode, call,
};
use gangplank_fuse::{
    CopyFileRangeIn, CreateIn, FallocateIn, FileLock, FlushIn, FsyncIn, Handle, LkIn, LseekIn,
    MkdirIn, MknodIn, NodeId, OpenIn, ReadIn, ReleaseIn, SetattrIn, SetattrValid, SetxattrIn,
    StatxIn, WriteIn,
};
use gangplank_tests::process;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::place::{LIMIT, Place};

fn create_in(mode: u32) -> CreateIn {
    CreateIn {
        flags: (OFlags::CREATE | OFlags::RDWR | OFlags::LARGEFILE).bits(),
        mode: 0o100_000 | mode,
        umask: 0,
        open_flags: 0,
    }
}

fn open_in(flags: OFlags) -> OpenIn {
    OpenIn {
        flags: (flags | OFlags::LARGEFILE).bits(),
        open_flags: 0,
    }
}

fn release_in(fh: u64) -> ReleaseIn {
    ReleaseIn {
        fh,
        ..ReleaseIn::default()
    }
}

fn read_in(fh: u64, offset: u64, size: u32) -> ReadIn {
    ReadIn {
        fh,
        offset,
        size,
        ..ReadIn::default()
    }
}

fn node(entry: &gangplank_fuse::EntryOut) -> NodeId {
    NodeId::new(entry.nodeid)
}

fn lock_in(fh: u64, owner: u64, kind: u32) -> LkIn {
    LkIn {
        fh,
        owner,
        lk: FileLock {
            start: 0,
            end: i64::MAX.unsigned_abs(),
            r#type: kind,
            pid: 1,
        },
        ..LkIn::default()
    }
}

/// `F_RDLCK`, `F_WRLCK`, `F_UNLCK` (asm-generic/fcntl.h).
const WRITE_LOCK: u32 = 1;
const NO_LOCK: u32 = 2;

fn errno<T: std::fmt::Debug>(result: gangplank_driver::Result<T>) -> Option<Errno> {
    result.expect_err("it should have failed").errno()
}

/// A daemon may answer that it does not know an operation, once and for all.
fn unless_unknown(result: gangplank_driver::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

#[test]
fn files_are_made_written_and_read() -> Result<()> {
    for place in Place::each(&["--xattr"])? {
        let fs = place.session()?;
        let (entry, opened) = fs.create(NodeId::ROOT, c"file", create_in(0o640))?;
        let (file, fh) = (node(&entry), Handle::new(opened.fh));
        ensure!(fs.write(file, fh, 0, b"hello, share")? == 12);
        ensure!(fs::read(place.share.path().join("file"))? == b"hello, share");
        ensure!(fs.read(file, fh, 7, 100)?.to_vec() == b"share");
        ensure!(fs.read(file, fh, 12, 100)?.is_empty());

        fs.fsync(
            file,
            FsyncIn {
                fh: fh.get(),
                ..FsyncIn::default()
            },
        )?;
        let flush = FlushIn {
            fh: fh.get(),
            ..FlushIn::default()
        };
        unless_unknown(fs.flush(file, flush))?;
        let attr = fs.getattr(file, Some(fh))?.attr;
        ensure!((attr.size, attr.mode) == (12, 0o100_640));

        let args = SetattrIn {
            valid: (SetattrValid::SIZE | SetattrValid::MODE).bits(),
            size: 5,
            mode: 0o100_600,
            ..SetattrIn::default()
        };
        ensure!(fs.setattr(file, args)?.attr.size == 5);
        unless_unknown(fs.access(file, 4))?;
        fs.fallocate(
            file,
            FallocateIn {
                fh: fh.get(),
                offset: 8192,
                length: 4096,
                ..FallocateIn::default()
            },
        )?;
        let seek = LseekIn {
            fh: fh.get(),
            offset: 0,
            whence: 3,
            padding: 0,
        };
        ensure!(fs.lseek(file, seek)? == 0, "the file begins with data");

        let (other, other_fh) = fs.create(NodeId::ROOT, c"copy", create_in(0o644))?;
        let copy = CopyFileRangeIn {
            fh_in: fh.get(),
            nodeid_out: other.nodeid,
            fh_out: other_fh.fh,
            len: 5,
            ..CopyFileRangeIn::default()
        };
        ensure!(fs.copy_file_range(file, copy)? == 5);
        ensure!(fs::read(place.share.path().join("copy"))? == b"hello");
        fs.release(node(&other), release_in(other_fh.fh))?;

        let value = SetxattrIn::default();
        fs.setxattr(file, c"user.colour", b"blue", value)?;
        ensure!(fs.getxattr_size(file, c"user.colour")? == 4);
        ensure!(fs.getxattr(file, c"user.colour", 64)? == b"blue");
        ensure!(fs.listxattr(file, 256)?.starts_with(b"user.colour\0"));
        ensure!(fs.listxattr_size(file)? >= 12);
        fs.removexattr(file, c"user.colour")?;
        ensure!(errno(fs.getxattr(file, c"user.colour", 64)) == Some(Errno::NODATA));

        if place.ours {
            let args = StatxIn {
                sx_mask: 0xfff,
                ..StatxIn::default()
            };
            ensure!(fs.statx(file, args)?.stat.btime.tv_sec > 0);
            let (nameless, fh) = fs.tmpfile(NodeId::ROOT, create_in(0o600))?;
            fs.write(node(&nameless), Handle::new(fh.fh), 0, b"named later")?;
            fs.link(node(&nameless), NodeId::ROOT, c"linked")?;
            ensure!(fs::read(place.share.path().join("linked"))? == b"named later");
        }
        fs.release(file, release_in(fh.get()))?;
        ensure!(errno(fs.read(file, fh, 0, 10)) == Some(Errno::BADF));
        fs.destroy()?;
    }
    Ok(())
}

#[test]
fn the_tree_of_names_is_changed_and_listed() -> Result<()> {
    for place in Place::each(&[])? {
        let host = place.share.path();
        let fs = place.session()?;
        let mode = MkdirIn {
            mode: 0o755,
            umask: 0,
        };
        let dir = node(&fs.mkdir(NodeId::ROOT, c"dir", mode)?);
        fs.symlink(dir, c"link", c"../elsewhere")?;
        let link = node(&fs.lookup(dir, c"link")?);
        ensure!(fs.readlink(link)? == b"../elsewhere");
        let fifo = MknodIn {
            mode: 0o010_600,
            ..MknodIn::default()
        };
        fs.mknod(dir, c"fifo", fifo)?;
        ensure!(fs::metadata(host.join("dir/fifo"))?.file_type().is_fifo());

        for number in 0..300 {
            fs::write(host.join(format!("dir/file-{number:03}")), [])?;
        }
        let opened = fs.opendir(dir, open_in(OFlags::RDONLY | OFlags::DIRECTORY))?;
        let (mut plain, mut looked_up) = (Vec::new(), Vec::new());
        for (plus, names) in [(false, &mut plain), (true, &mut looked_up)] {
            let mut offset = 0;
            loop {
                let args = read_in(opened.fh, offset, 4096);
                let entries = if plus {
                    fs.readdirplus(dir, args)?
                } else {
                    fs.readdir(dir, args)?
                };
                let Some(last) = entries.last() else { break };
                offset = last.offset;
                for entry in entries {
                    if let Some(found) = entry.node {
                        fs.forget(node(&found), 1)?;
                    }
                    names.push(entry.name);
                }
            }
        }
        plain.sort();
        looked_up.sort();
        ensure!(
            plain.len() == 304 && plain == looked_up,
            "{} {}",
            plain.len(),
            looked_up.len()
        );
        fs.fsyncdir(
            dir,
            FsyncIn {
                fh: opened.fh,
                ..FsyncIn::default()
            },
        )?;
        fs.releasedir(dir, release_in(opened.fh))?;

        fs.rename(dir, c"file-000", NodeId::ROOT, c"moved")?;
        ensure!(host.join("moved").exists() && !host.join("dir/file-000").exists());
        let no_replace = 1;
        let refused = fs.rename2(dir, c"file-001", NodeId::ROOT, c"moved", no_replace);
        ensure!(errno(refused) == Some(Errno::EXIST));
        let file = node(&fs.lookup(dir, c"file-001")?);
        fs.link(file, NodeId::ROOT, c"second")?;
        ensure!(fs::metadata(host.join("second"))?.nlink() == 2);
        fs.unlink(NodeId::ROOT, c"second")?;
        ensure!(errno(fs.rmdir(NodeId::ROOT, c"dir")) == Some(Errno::NOTEMPTY));
        fs.mkdir(NodeId::ROOT, c"empty", mode)?;
        fs.rmdir(NodeId::ROOT, c"empty")?;
        ensure!(fs.statfs(NodeId::ROOT)?.bsize != 0);
        fs.syncfs(NodeId::ROOT)?;
        match fs.lookup(NodeId::ROOT, c"missing") {
            Ok(entry) => ensure!(entry.nodeid == 0, "a name that does not exist was found"),
            Err(error) => ensure!(error.errno() == Some(Errno::NOENT)),
        }
        fs.flush_forgets()?;
        fs.destroy()?;
    }
    Ok(())
}

#[test]
fn callers_own_what_they_make() -> Result<()> {
    if !process::User::is_root() {
        eprintln!("SKIPPED callers_own_what_they_make: it needs root");
        return Ok(());
    }
    for place in Place::each(&[])? {
        fs::set_permissions(place.share.path(), fs::Permissions::from_mode(0o777))?;
        let caller = Caller {
            uid: 1234,
            gid: 4321,
            pid: 1,
        };
        let fs = place.session()?.as_caller(caller);
        fs.create(NodeId::ROOT, c"theirs", create_in(0o600))?;
        let made = fs::metadata(place.share.path().join("theirs"))?;
        ensure!((made.uid(), made.gid()) == (1234, 4321));
    }
    Ok(())
}

#[test]
fn a_session_ends_and_another_begins_on_the_same_device() -> Result<()> {
    for place in Place::each(&[])? {
        let driver = place.driver(&Options::default())?;
        fs::write(place.share.path().join("file"), b"x")?;
        let first = driver.session(&InitOptions::default())?;
        let stale = node(&first.lookup(NodeId::ROOT, c"file")?);
        first.destroy()?;
        let second = driver.session(&InitOptions::default())?;
        ensure!(
            second.getattr(stale, None).is_err(),
            "the node went with its session"
        );
        second.lookup(NodeId::ROOT, c"file")?;
        driver.stop()?;
        let error = second
            .lookup(NodeId::ROOT, c"file")
            .expect_err("the driver was stopped");
        ensure!(
            matches!(
                error,
                Error::Broken {
                    source: Fault::Stopped,
                    ..
                }
            ),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn every_kind_of_ring_carries_requests() -> Result<()> {
    let place = Place::ours(&[])?;
    for (indirect, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
        for waiting in [WaitMode::Sleep, WaitMode::BusyPoll] {
            for queue_size in [4, 128] {
                let options = Options {
                    indirect,
                    event_idx,
                    waiting,
                    queue_size,
                    ..Options::default()
                };
                let fs = place.driver(&options)?.session(&InitOptions::default())?;
                let (entry, opened) = fs.create(NodeId::ROOT, c"file", create_in(0o600))?;
                for round in 0..300_u64 {
                    let data = round.to_le_bytes();
                    fs.write(node(&entry), Handle::new(opened.fh), round * 8, &data)?;
                }
                let all = fs
                    .read(node(&entry), Handle::new(opened.fh), 0, 4096)?
                    .to_vec();
                let expected: Vec<u8> = (0..300_u64).flat_map(u64::to_le_bytes).collect();
                ensure!(all == expected, "{options:?}");
                fs.unlink(NodeId::ROOT, c"file")?;
            }
        }
    }
    Ok(())
}

/// Bytes of a block that is written or read at a time.
const BLOCK: u32 = 65536;

/// What block `number` holds: each 256 bytes alike.
fn block(number: u64) -> Vec<u8> {
    let pages = (number..).take(256);
    pages
        .flat_map(|page| [page.to_le_bytes()[0]; 256])
        .collect()
}

/// Writes `count` blocks with `depth` of them in flight, and reads them back likewise.
fn pipeline(fs: &FuseSession, name: &CStr, depth: usize, count: u64) -> Result<()> {
    let (entry, opened) = fs.create(NodeId::ROOT, name, create_in(0o600))?;
    let (file, fh) = (node(&entry), opened.fh);
    let room = usize::try_from(BLOCK)?;
    let mut writing: VecDeque<Pending<u32>> = VecDeque::new();
    for number in 0..count {
        if writing.len() == depth {
            let oldest = writing.pop_front().context("nothing in flight")?;
            ensure!(oldest.wait()? == BLOCK);
        }
        let buffer = fs.buffer(room)?;
        buffer.bytes().copy_from(&block(number));
        let args = WriteIn {
            fh,
            offset: number * u64::from(BLOCK),
            size: BLOCK,
            ..WriteIn::default()
        };
        writing.push_back(fs.submit(call::write(file, args, buffer))?);
    }
    for pending in writing {
        ensure!(pending.wait()? == BLOCK);
    }
    let mut reading: VecDeque<(u64, Pending<Data>)> = VecDeque::new();
    let mut next = 0;
    while next < count || !reading.is_empty() {
        if next < count && reading.len() < depth {
            let args = read_in(fh, next * u64::from(BLOCK), 0);
            let call = call::read(file, args, fs.buffer(room)?);
            reading.push_back((next, fs.submit(call)?));
            next += 1;
        } else if let Some((number, pending)) = reading.pop_front() {
            ensure!(pending.wait()?.to_vec() == block(number), "block {number}");
        }
    }
    fs.release(file, release_in(fh))?;
    Ok(())
}

#[test]
fn thirty_two_requests_are_in_flight_on_each_of_two_queues() -> Result<()> {
    let place = Place::ours(&["--num-request-queues=2"])?;
    let driver = place.driver(&Options::default())?;
    ensure!(driver.request_queues() == 2);
    let fs = driver.session(&InitOptions::default())?;
    let (first, second) = (fs.on_queue(1)?, fs.on_queue(2)?);
    ensure!(fs.on_queue(3).is_err() && fs.on_queue(0).is_err());
    thread::scope(|scope| {
        let one = scope.spawn(|| pipeline(&first, c"one", 32, 200));
        let two = scope.spawn(|| pipeline(&second, c"two", 32, 200));
        one.join().expect("no panic")?;
        two.join().expect("no panic")
    })
}

#[test]
fn many_threads_share_one_queue() -> Result<()> {
    for place in Place::each(&[])? {
        let fs = place.session()?;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..12)
                .map(|number| {
                    let fs = fs.clone();
                    scope.spawn(move || -> Result<()> {
                        let name = CString::new(format!("file-{number}"))?;
                        let (entry, opened) = fs.create(NodeId::ROOT, &name, create_in(0o600))?;
                        let (file, fh) = (node(&entry), Handle::new(opened.fh));
                        for round in 0..100_u64 {
                            let value = (round << 8 | number).to_le_bytes();
                            fs.write(file, fh, 0, &value)?;
                            ensure!(fs.read(file, fh, 0, 8)?.to_vec() == value);
                        }
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })?;
    }
    Ok(())
}

#[test]
fn a_daemon_that_hangs_is_late_and_one_that_is_killed_is_gone() -> Result<()> {
    for place in Place::each(&[])? {
        let fs = place.session()?;
        place.daemon.signal_all(Signal::STOP)?;
        // A busy machine takes its time to stop all threads.
        let begun = Instant::now();
        let impatient = fs.within(Duration::from_millis(300));
        while let answered = impatient.getattr(NodeId::ROOT, None)
            && !matches!(answered, Err(Error::Late { .. }))
        {
            ensure!(begun.elapsed() < LIMIT, "it answers: {answered:?}");
        }

        let started = Instant::now();
        let waiting = fs.clone();
        let waiter = thread::spawn(move || waiting.getattr(NodeId::ROOT, None));
        thread::sleep(Duration::from_millis(100));
        place.daemon.signal_all(Signal::KILL)?;
        let gone = waiter.join().expect("no panic");
        ensure!(
            matches!(
                &gone,
                Err(Error::Broken {
                    source: Fault::HungUp,
                    ..
                })
            ),
            "{gone:?}"
        );
        ensure!(
            started.elapsed() < LIMIT / 2,
            "it took {:?}",
            started.elapsed()
        );
        let again = fs.getattr(NodeId::ROOT, None);
        ensure!(matches!(again, Err(Error::Broken { .. })), "{again:?}");
    }
    Ok(())
}

#[test]
fn a_lock_that_is_waited_for_is_interrupted() -> Result<()> {
    let place = Place::ours(&["--locks=host"])?;
    let fs = place.session()?;
    let (entry, opened) = fs.create(NodeId::ROOT, c"locked", create_in(0o600))?;
    let file = node(&entry);
    fs.setlk(file, lock_in(opened.fh, 1, WRITE_LOCK))?;
    let in_the_way = fs.getlk(file, lock_in(opened.fh, 2, WRITE_LOCK))?;
    ensure!(in_the_way.r#type == WRITE_LOCK);
    ensure!(errno(fs.setlk(file, lock_in(opened.fh, 2, WRITE_LOCK))) == Some(Errno::AGAIN));

    let waiting = fs.submit(call::setlkw(file, lock_in(opened.fh, 2, WRITE_LOCK)))?;
    // Other requests pass meanwhile, over the same queue.
    fs.getattr(file, None)?;
    ensure!(!waiting.is_answered()?);
    // The daemon may not have begun to wait when it is first told.
    let deadline = Instant::now() + LIMIT;
    while !waiting.is_answered()? {
        ensure!(Instant::now() < deadline, "the lock is still waited for");
        match waiting.interrupt() {
            Ok(())
            | Err(Error::Errno {
                errno: Errno::AGAIN,
                ..
            }) => {}
            Err(error) => return Err(error.into()),
        }
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(errno(waiting.wait()) == Some(Errno::INTR));

    let waiting = fs.submit(call::setlkw(file, lock_in(opened.fh, 2, WRITE_LOCK)))?;
    fs.setlk(file, lock_in(opened.fh, 1, NO_LOCK))?;
    waiting.wait()?;
    Ok(())
}
