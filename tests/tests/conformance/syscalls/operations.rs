//! The operations whose calls are counted, in sections of the trace.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{
    AccessIn, GetattrIn, GetxattrIn, LinkIn, LseekIn, NodeId, Operation, SetattrIn, SetattrValid,
    StatxIn,
};
use gangplank_tests::driver::{Driver, NodeAndFile};
use rustix::fs::OFlags;

use super::TIMES;

/// A guest and the sections that it has run.
pub(super) struct Counter {
    pub(super) guest: Driver,
    pub(super) share: PathBuf,
    pub(super) sections: Vec<(&'static str, usize)>,
}

impl Counter {
    /// Runs `each` as a section `name` of the trace. It makes `work` operations in total.
    fn section(
        &mut self,
        name: &'static str,
        work: usize,
        each: impl FnOnce(&mut Driver) -> Result<()>,
    ) -> Result<()> {
        let number = self.sections.len();
        self.mark("begin", number)?;
        each(&mut self.guest).with_context(|| name.to_owned())?;
        self.mark("end", number)?;
        self.sections.push((name, work));
        Ok(())
    }

    fn mark(&mut self, what: &str, number: usize) -> Result<()> {
        let name = CString::new(format!("section-{what}-{number}"))?;
        // The name does not exist, so the reply is an error.
        let _ = self.guest.lookup(NodeId::ROOT, &name);
        Ok(())
    }

    fn file(&mut self, name: &str) -> Result<NodeId> {
        fs::write(self.share.join(name), vec![1; 65_536])?;
        let name = CString::new(name)?;
        Ok(NodeId::new(self.guest.lookup(NodeId::ROOT, &name)?.nodeid))
    }
}

fn names(prefix: &str) -> Vec<CString> {
    (0..TIMES)
        .filter_map(|index| CString::new(format!("{prefix}{index:03}")).ok())
        .collect()
}

fn files_on_the_host(dir: &Path, prefix: &str) -> Result<()> {
    for name in names(prefix) {
        fs::write(dir.join(name.to_str()?), "x")?;
    }
    Ok(())
}

/// Repeats an operation and ignores the payloads of its replies.
fn repeat(guest: &mut Driver, node: NodeId, operation: Operation<'_>) -> Result<()> {
    for _ in 0..TIMES {
        guest.call(node, operation, &[], 4096)?;
    }
    Ok(())
}

/// Reads the whole directory, request by request.
fn list(guest: &mut Driver, dir: NodeId, plus: bool) -> Result<usize> {
    let file = guest.opendir(dir)?;
    let (mut offset, mut count) = (0, 0);
    loop {
        let (found, last) = if plus {
            let (names, last) = guest.readdirplus(dir, file, offset, 64 * 1024)?;
            (names.len(), last)
        } else {
            let (names, last) = guest.readdir(dir, file, offset, 64 * 1024)?;
            (names.len(), last)
        };
        if found == 0 {
            break;
        }
        (offset, count) = (last, count + found);
    }
    guest.releasedir(dir, file)?;
    Ok(count)
}

pub(super) fn nodes(counter: &mut Counter) -> Result<()> {
    files_on_the_host(&counter.share, "new")?;
    let known = counter.file("known")?;
    let file = counter.guest.open(known, OFlags::RDWR)?;
    counter.section("LOOKUP, known", TIMES, |guest| {
        repeat(guest, NodeId::ROOT, Operation::Lookup { name: c"known" })
    })?;
    counter.section("LOOKUP, missing", TIMES, |guest| {
        for name in names("missing") {
            let _ = guest.lookup(NodeId::ROOT, &name);
        }
        Ok(())
    })?;
    let mut found = Vec::new();
    counter.section("LOOKUP, new", TIMES, |guest| {
        for name in names("new") {
            found.push(NodeId::new(guest.lookup(NodeId::ROOT, &name)?.nodeid));
        }
        Ok(())
    })?;
    counter.section("FORGET", TIMES, |guest| {
        for node in &found {
            let forget = Operation::Forget(gangplank_fuse::ForgetIn { nlookup: 1 });
            let ticket = guest.submit(1, *node, forget, &[], 0)?;
            guest.finish(ticket)?;
        }
        Ok(())
    })?;
    counter.section("GETATTR", TIMES, |guest| {
        repeat(guest, known, Operation::Getattr(GetattrIn::default()))
    })?;
    counter.section("GETATTR, open", TIMES, |guest| {
        for _ in 0..TIMES {
            guest.getattr(known, Some(file))?;
        }
        Ok(())
    })?;
    counter.section("STATX", TIMES, |guest| {
        let args = StatxIn {
            sx_mask: 0xfff,
            ..StatxIn::default()
        };
        repeat(guest, known, Operation::Statx(args))
    })?;
    let mode = SetattrIn {
        valid: SetattrValid::MODE.bits(),
        mode: 0o100_640,
        ..SetattrIn::default()
    };
    counter.section("SETATTR, mode", TIMES, |guest| {
        repeat(guest, known, Operation::Setattr(mode))
    })?;
    let size = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        size: 65_536,
        ..SetattrIn::default()
    };
    counter.section("SETATTR, size", TIMES, |guest| {
        repeat(guest, known, Operation::Setattr(size))
    })?;
    let times = SetattrValid::ATIME | SetattrValid::MTIME;
    let times = SetattrIn {
        valid: times.bits(),
        mtime: 1,
        ..SetattrIn::default()
    };
    counter.section("SETATTR, times", TIMES, |guest| {
        repeat(guest, known, Operation::Setattr(times))
    })?;
    counter.section("STATFS", TIMES, |guest| {
        repeat(guest, NodeId::ROOT, Operation::Statfs)
    })?;
    counter.section("ACCESS", TIMES, |guest| {
        for _ in 0..TIMES {
            // ENOSYS is a reply too: the guest then stops sending it.
            let _ = guest.call(
                known,
                Operation::Access(AccessIn {
                    mask: 4,
                    padding: 0,
                }),
                &[],
                64,
            );
        }
        Ok(())
    })?;
    counter.section("GETXATTR, missing", TIMES, |guest| {
        for _ in 0..TIMES {
            let args = GetxattrIn {
                size: 256,
                padding: 0,
            };
            let _ = guest.call(
                known,
                Operation::Getxattr {
                    args,
                    name: c"user.none",
                },
                &[],
                256,
            );
        }
        Ok(())
    })?;
    counter.guest.release(NodeAndFile { node: known, file })?;
    Ok(())
}

pub(super) fn data(counter: &mut Counter) -> Result<()> {
    let node = counter.file("data")?;
    let mut open = Vec::new();
    counter.section("OPEN", TIMES, |guest| {
        for _ in 0..TIMES {
            open.push(NodeAndFile {
                node,
                file: guest.open(node, OFlags::RDWR)?,
            });
        }
        Ok(())
    })?;
    counter.section("OPEN and RELEASE, again and again", TIMES, |guest| {
        for _ in 0..TIMES {
            let file = guest.open(node, OFlags::RDONLY)?;
            guest.release(NodeAndFile { node, file })?;
        }
        Ok(())
    })?;
    let first = *open.first().context("a file is open")?;
    counter.section("READ, 4 KiB", TIMES, |guest| {
        for index in 0..TIMES {
            ensure!(guest.read(first, 4096 * (index as u64 % 16), 4096)?.len() == 4096);
        }
        Ok(())
    })?;
    // The guest knows the size, so a short read needs no second one.
    counter.section("READ, to the end", TIMES, |guest| {
        for _ in 0..TIMES {
            ensure!(guest.read(first, 65_436, 4096)?.len() == 100);
        }
        Ok(())
    })?;
    counter.section("READ, at the end", TIMES, |guest| {
        for _ in 0..TIMES {
            ensure!(guest.read(first, 65_536, 4096)?.is_empty());
        }
        Ok(())
    })?;
    counter.section("WRITE, 4 KiB", TIMES, |guest| {
        for index in 0..TIMES {
            ensure!(guest.write(first, 4096 * (index as u64 % 16), &[7; 4096])? == 4096);
        }
        Ok(())
    })?;
    counter.section("LSEEK", TIMES, |guest| {
        let args = LseekIn {
            fh: first.file.get(),
            whence: 4,
            ..LseekIn::default()
        };
        repeat(guest, node, Operation::Lseek(args))
    })?;
    counter.section("FSYNC", TIMES, |guest| {
        for _ in 0..TIMES {
            guest.fsync(first)?;
        }
        Ok(())
    })?;
    counter.section("FLUSH", TIMES, |guest| {
        for _ in 0..TIMES {
            // ENOSYS is an answer too: the guest stops sending it.
            let _ = guest.flush(first);
        }
        Ok(())
    })?;
    counter.section("RELEASE", TIMES, |guest| {
        for one in open {
            guest.release(one)?;
        }
        Ok(())
    })
}

pub(super) fn tree(counter: &mut Counter) -> Result<()> {
    let create = |guest: &mut Driver, prefix: &str| -> Result<Vec<NodeAndFile>> {
        names(prefix)
            .iter()
            .map(|name| Ok(guest.create(NodeId::ROOT, name, 0o644)?))
            .collect()
    };
    let mut made = Vec::new();
    counter.section("CREATE, same user", TIMES, |guest| {
        made = create(guest, "created")?;
        Ok(())
    })?;
    let node = made.first().context("a file was made")?.node;
    for one in made {
        counter.guest.release(one)?;
    }
    let mut others = Vec::new();
    counter.section("CREATE, other user", TIMES, |guest| {
        (guest.header.uid, guest.header.gid) = (1000, 1000);
        others = create(guest, "others")?;
        (guest.header.uid, guest.header.gid) = (0, 0);
        Ok(())
    })?;
    for one in others {
        counter.guest.release(one)?;
    }
    counter.section("MKDIR", TIMES, |guest| {
        names("dir")
            .iter()
            .try_for_each(|name| Ok(guest.mkdir(NodeId::ROOT, name).map(|_| ())?))
    })?;
    counter.section("SYMLINK", TIMES, |guest| {
        names("sym")
            .iter()
            .try_for_each(|name| Ok(guest.symlink(NodeId::ROOT, name, c"to").map(|_| ())?))
    })?;
    let link = NodeId::new(counter.guest.lookup(NodeId::ROOT, c"sym000")?.nodeid);
    counter.section("READLINK", TIMES, |guest| {
        repeat(guest, link, Operation::Readlink)
    })?;
    counter.section("LINK", TIMES, |guest| {
        names("link").iter().try_for_each(|name| {
            let args = LinkIn {
                oldnodeid: node.get(),
            };
            Ok(guest
                .call(NodeId::ROOT, Operation::Link { args, name }, &[], 512)
                .map(|_| ())?)
        })
    })?;
    let root = NodeId::ROOT;
    counter.section("RENAME", TIMES, |guest| {
        names("link")
            .iter()
            .zip(names("moved"))
            .try_for_each(|(old, new): (&CString, CString)| {
                Ok(guest.rename((root, old.as_c_str()), (root, new.as_c_str()), 0)?)
            })
    })?;
    counter.section("UNLINK", TIMES, |guest| {
        names("moved")
            .iter()
            .try_for_each(|name: &CString| Ok(guest.unlink(root, name as &CStr)?))
    })?;
    counter.section("RMDIR", TIMES, |guest| {
        names("dir")
            .iter()
            .try_for_each(|name| Ok(guest.rmdir(root, name)?))
    })
}

pub(super) fn directories(counter: &mut Counter) -> Result<()> {
    let path = counter.share.join("listed");
    fs::create_dir(&path)?;
    files_on_the_host(&path, "listed")?;
    let dir = NodeId::new(counter.guest.lookup(NodeId::ROOT, c"listed")?.nodeid);
    let mut open = Vec::new();
    counter.section("OPENDIR", TIMES, |guest| {
        for _ in 0..TIMES {
            open.push(guest.opendir(dir)?);
        }
        Ok(())
    })?;
    counter.section("RELEASEDIR", TIMES, |guest| {
        for file in open {
            guest.releasedir(dir, file)?;
        }
        Ok(())
    })?;
    // The worker's buffer grows at the first request, and stays.
    list(&mut counter.guest, dir, false)?;
    for (name, plus) in [
        ("READDIR, per name", false),
        ("READDIRPLUS, new, per name", true),
        ("READDIRPLUS, known, per name", true),
    ] {
        // With OPENDIR and RELEASEDIR, which are subtracted below.
        counter.section(name, TIMES, |guest| {
            let count = list(guest, dir, plus)?;
            ensure!(count == TIMES || count == TIMES + 2, "{count} names");
            Ok(())
        })?;
    }
    Ok(())
}
