//! Files, names, owners and locks by one request after another.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Result, ensure};
use gangplank_driver::{Caller, Error, call};
use gangplank_fuse::{
    CopyFileRangeIn, FallocateIn, FileLock, FlushIn, FsyncIn, Handle, LkIn, LseekIn, MkdirIn,
    MknodIn, NodeId, SetattrIn, SetattrValid, SetxattrIn, StatxIn,
};
use gangplank_tests::process;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{create_in, errno, node, open_in, read_in, release_in};
use crate::fixture::{Fixture, LIMIT};

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

/// Accepts ENOSYS, since a daemon need not implement the operation.
fn unless_unknown(result: gangplank_driver::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

#[test]
fn files_are_made_written_and_read() -> Result<()> {
    for fixture in Fixture::each(&["--xattr"])? {
        let fs = fixture.session()?;
        let (entry, opened) = fs.create(NodeId::ROOT, c"file", create_in(0o640))?;
        let (file, fh) = (node(&entry), Handle::new(opened.fh));
        ensure!(fs.write(file, fh, 0, b"hello, share")? == 12);
        ensure!(fs::read(fixture.share.path().join("file"))? == b"hello, share");
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
        ensure!(fs::read(fixture.share.path().join("copy"))? == b"hello");
        fs.release(node(&other), release_in(other_fh.fh))?;

        let value = SetxattrIn::default();
        fs.setxattr(file, c"user.colour", b"blue", value)?;
        ensure!(fs.getxattr_size(file, c"user.colour")? == 4);
        ensure!(fs.getxattr(file, c"user.colour", 64)? == b"blue");
        ensure!(fs.listxattr(file, 256)?.starts_with(b"user.colour\0"));
        ensure!(fs.listxattr_size(file)? >= 12);
        fs.removexattr(file, c"user.colour")?;
        ensure!(errno(fs.getxattr(file, c"user.colour", 64)) == Some(Errno::NODATA));

        if fixture.ours {
            let args = StatxIn {
                sx_mask: 0xfff,
                ..StatxIn::default()
            };
            ensure!(fs.statx(file, args)?.stat.btime.tv_sec > 0);
            let (nameless, fh) = fs.tmpfile(NodeId::ROOT, create_in(0o600))?;
            fs.write(node(&nameless), Handle::new(fh.fh), 0, b"named later")?;
            fs.link(node(&nameless), NodeId::ROOT, c"linked")?;
            ensure!(fs::read(fixture.share.path().join("linked"))? == b"named later");
        }
        fs.release(file, release_in(fh.get()))?;
        ensure!(errno(fs.read(file, fh, 0, 10)) == Some(Errno::BADF));
        fs.destroy()?;
    }
    Ok(())
}

#[test]
fn the_tree_of_names_is_changed_and_listed() -> Result<()> {
    for fixture in Fixture::each(&[])? {
        let host = fixture.share.path();
        let fs = fixture.session()?;
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
    for fixture in Fixture::each(&[])? {
        fs::set_permissions(fixture.share.path(), fs::Permissions::from_mode(0o777))?;
        let caller = Caller {
            uid: 1234,
            gid: 4321,
            pid: 1,
        };
        let fs = fixture.session()?.as_caller(caller);
        fs.create(NodeId::ROOT, c"theirs", create_in(0o600))?;
        let made = fs::metadata(fixture.share.path().join("theirs"))?;
        ensure!((made.uid(), made.gid()) == (1234, 4321));
    }
    Ok(())
}

#[test]
fn a_lock_that_is_waited_for_is_interrupted() -> Result<()> {
    let fixture = Fixture::ours(&["--locks=host"])?;
    let fs = fixture.session()?;
    let (entry, opened) = fs.create(NodeId::ROOT, c"locked", create_in(0o600))?;
    let file = node(&entry);
    fs.setlk(file, lock_in(opened.fh, 1, WRITE_LOCK))?;
    let in_the_way = fs.getlk(file, lock_in(opened.fh, 2, WRITE_LOCK))?;
    ensure!(in_the_way.r#type == WRITE_LOCK);
    ensure!(errno(fs.setlk(file, lock_in(opened.fh, 2, WRITE_LOCK))) == Some(Errno::AGAIN));

    let waiting = fs.submit(call::setlkw(file, lock_in(opened.fh, 2, WRITE_LOCK)))?;
    // Other requests pass meanwhile on the same queue.
    fs.getattr(file, None)?;
    ensure!(!waiting.is_answered()?);
    // The daemon may not wait yet when the first INTERRUPT comes.
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
