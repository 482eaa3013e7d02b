//! Guests that make the daemon hold as much as it can: nodes, files, directories, locks.

use std::ffi::CString;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::{LinkIn, MknodIn, NodeId, Operation, SetattrIn, SetattrValid};
use gangplank_tests::driver::fixture::SUBMOUNT;
use gangplank_tests::driver::{Driver, Error, NodeAndFile, Setup};
use gangplank_tests::faulty_fs::rules::{Call, Fault, Rule};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{FILES, LEVELS, SIZED, Target, node};

/// Attempts of a guest to use its descriptors up, several times its limit.
const ATTEMPTS: u64 = 2000;

/// How long they may take on a busy machine.
const ATTEMPTING: Duration = Duration::from_secs(5);

/// Requests for locks that wait at a time.
const WAITERS: u64 = 1000;

/// Limit of file sizes that the daemon runs under, in bytes.
pub(crate) const FILE_SIZE: u64 = 1 << 30;

/// Writes beyond it by one guest.
const WRITES: usize = 100;

/// Requests that wait for a submount. Its server can still answer others.
const HUNG: usize = 3;

/// How long locks and the submount are waited for, at least.
const WAITING: Duration = Duration::from_millis(500);

/// Limit for the daemon to ask the submount for something.
const ASKING: Duration = Duration::from_secs(60);

/// `F_WRLCK` as the wire has it.
const WRITE_LOCK: u32 = 1;

/// How attempts to use descriptors up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Refused,
    /// All attempts were served.
    Served,
    /// Time was up first.
    Late,
}

/// Repeats `take` until the daemon answers that no descriptor is left.
fn until_refused(
    mut take: impl FnMut(u64) -> gangplank_tests::driver::Result<()>,
) -> Result<Ending> {
    let end = Instant::now() + ATTEMPTING;
    for attempt in 0..ATTEMPTS {
        match take(attempt) {
            Ok(()) if Instant::now() < end => {}
            Ok(()) => return Ok(Ending::Late),
            Err(Error::Errno(Errno::NFILE | Errno::MFILE)) => return Ok(Ending::Refused),
            Err(error) => return Err(error).with_context(|| format!("attempt {attempt}")),
        }
    }
    Ok(Ending::Served)
}

/// MKNOD and UNLINK without FORGET. The daemon may give nodes up instead of refusing more.
pub(super) fn nameless_nodes(target: &Target<'_>, round: u64) -> Result<()> {
    let mut guest = target.guest(&Setup::default())?;
    let args = MknodIn {
        mode: 0o100_644,
        ..MknodIn::default()
    };
    until_refused(|attempt| {
        let name = CString::new(format!("node-{round}-{attempt}")).unwrap_or_default();
        let operation = Operation::Mknod { args, name: &name };
        guest.call(NodeId::ROOT, operation, &[], 512)?;
        guest.unlink(NodeId::ROOT, &name)
    })?;
    // A guest without descriptors is still a guest.
    guest.getattr(NodeId::ROOT, None)?;
    Ok(())
}

/// MKNOD, LINK and UNLINK of the first name without FORGET. Such a node is found by neither its
/// path nor the name that the daemon has noted first.
pub(super) fn other_names(target: &Target<'_>, round: u64) -> Result<()> {
    let mut guest = target.guest(&Setup::default())?;
    let args = MknodIn {
        mode: 0o100_644,
        ..MknodIn::default()
    };
    let mut made = Vec::new();
    until_refused(|attempt| {
        let text = |kind| CString::new(format!("{kind}-{round}-{attempt}")).unwrap_or_default();
        let (first, second) = (text("first"), text("second"));
        let operation = Operation::Mknod { args, name: &first };
        guest.call(NodeId::ROOT, operation, &[], 512)?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, &first)?.nodeid);
        let operation = Operation::Link {
            args: LinkIn {
                oldnodeid: node.get(),
            },
            name: &second,
        };
        guest.call(NodeId::ROOT, operation, &[], 512)?;
        guest.unlink(NodeId::ROOT, &first)?;
        made.push((second, node));
        Ok(())
    })?;
    for (name, node) in made {
        guest
            .getattr(node, None)
            .with_context(|| format!("{name:?}"))?;
        guest.unlink(NodeId::ROOT, &name)?;
    }
    Ok(())
}

/// Puts a device, or a FIFO in every second round, in the place of a file that the guest still
/// knows, after the daemon had to close it.
///
/// Whether the number of the file's inode and its birth time are then used again depends on the
/// file system and the kernel. The unit test
/// `a_fifo_with_the_number_and_birth_time_of_a_file_is_not_that_file` of the daemon
/// (`backend/src/passthrough/tests/identity.rs`) pins that case.
pub(super) fn devices_in_place_of_files(target: &Target<'_>, round: u64) -> Result<()> {
    let mut guest = target.guest(&Setup::default())?;
    let name = CString::new(format!("swapped-{round}"))?;
    let mknod = |guest: &mut Driver, mode, rdev| {
        let args = MknodIn {
            mode,
            rdev,
            ..MknodIn::default()
        };
        let operation = Operation::Mknod { args, name: &name };
        guest.call(NodeId::ROOT, operation, &[], 512).map(drop)
    };
    mknod(&mut guest, 0o100_644, 0)?;
    let file = node(&mut guest, &name)?;
    deep_look_ups(&mut guest)?;
    guest.unlink(NodeId::ROOT, &name)?;
    match round % 2 {
        // /dev/zero. A daemon of an ordinary user may not make it.
        0 => match mknod(&mut guest, 0o020_666, 1 << 8 | 5) {
            Ok(()) | Err(Error::Errno(Errno::PERM)) => {}
            Err(error) => return Err(error.into()),
        },
        _ => mknod(&mut guest, 0o010_666, 0)?,
    }
    if let Ok(opened) = guest.open(file, OFlags::RDWR) {
        let file = NodeAndFile {
            node: file,
            file: opened,
        };
        let read = guest.read(file, 0, 16)?;
        ensure!(read.is_empty(), "a device was opened: it reads {read:?}");
    }
    let _ = guest.unlink(NodeId::ROOT, &name);
    Ok(())
}

pub(super) fn open_files(target: &Target<'_>, _: u64) -> Result<()> {
    let mut guest = target.guest(&Setup::default())?;
    let node = node(&mut guest, c"open")?;
    // Each by other means, so that the daemon cannot share one descriptor between them.
    let flags = [
        OFlags::RDONLY,
        OFlags::RDWR,
        OFlags::WRONLY | OFlags::APPEND,
    ];
    let mut flags = flags.into_iter().cycle();
    let ending = until_refused(|_| {
        let flags = flags.next().unwrap_or(OFlags::RDWR);
        guest.open(node, flags).map(drop)
    })?;
    ensure!(
        ending != Ending::Served,
        "the daemon has opened {ATTEMPTS} files for a guest"
    );
    guest.getattr(node, None)?;
    Ok(())
}

/// Looks more files up than the guest may have descriptors, uses all up, and asks for each file.
/// Each is found by its handle, or the guest is told that no descriptor is left.
pub(super) fn files_without_descriptors(target: &Target<'_>, _: u64) -> Result<()> {
    let mut guest = target.guest(&Setup::default())?;
    let dir = node(&mut guest, c"sized")?;
    let mut files = Vec::new();
    for size in 0..SIZED {
        let name = CString::new(format!("f{size}"))?;
        files.push(NodeId::new(guest.lookup(dir, &name)?.nodeid));
    }
    let file = files.first().copied().context("a file")?;
    until_refused(|_| guest.open(file, OFlags::RDONLY).map(drop))?;
    for (size, file) in files.into_iter().enumerate() {
        match guest.getattr(file, None) {
            Ok(found) if usize::try_from(found.attr.size)? == size => {}
            Err(Error::Errno(Errno::NFILE)) => {}
            other => bail!("the file of {size} bytes: {other:?}"),
        }
    }
    Ok(())
}

/// Writes and extends beyond the limit of file sizes that the daemon runs under.
pub(super) fn beyond_the_file_size(target: &Target<'_>, round: u64) -> Result<()> {
    let mut guest = target.guest(&Setup::default())?;
    let name = CString::new(format!("large-{round}"))?;
    let file = guest.create(NodeId::ROOT, &name, 0o644)?;
    let size = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        size: FILE_SIZE + 1,
        ..SetattrIn::default()
    };
    for _ in 0..WRITES {
        let written = guest.write(file, FILE_SIZE, b"beyond").map(drop);
        let extended = guest.setattr(file.node, size).map(drop);
        for outcome in [written, extended] {
            let errno = outcome.err().and_then(|error| error.errno());
            ensure!(errno == Some(Errno::FBIG), "{errno:?}");
        }
    }
    ensure!(guest.write(file, 0, b"within")? == 6);
    guest.unlink(NodeId::ROOT, &name)?;
    Ok(())
}

/// Requests for a mount below the share whose server does not answer. Only root can mount one here.
pub(super) fn hung_submount(target: &Target<'_>, _: u64) -> Result<()> {
    let Some(submount) = &target.fixture.submount else {
        return Ok(());
    };
    let control = submount.control();
    let mut guest = target.guest(&Setup::default())?;
    let dir = node(&mut guest, &CString::new(SUBMOUNT)?)?;
    control.reset_calls();
    control.set(Rule::new(Call::Lookup, Fault::Unanswered));
    let operation = Operation::Lookup { name: c"hung" };
    let mut hung = Vec::new();
    for _ in 0..HUNG {
        hung.push(guest.submit(1, dir, operation, &[], 4096)?);
    }
    let begun = Instant::now();
    let is_asked = || control.calls(Call::Lookup) > 0;
    while begun.elapsed() < WAITING || (!is_asked() && begun.elapsed() < ASKING) {
        let mut other = target.guest(&Setup::default())?;
        other.getattr(NodeId::ROOT, None).context("beside it")?;
    }
    let was_asked = is_asked();
    control.clear();
    ensure!(was_asked, "the submount was asked for nothing");
    for ticket in hung {
        let errno = guest.finish(ticket).err().and_then(|error| error.errno());
        ensure!(errno == Some(Errno::NOENT), "{errno:?}");
    }
    Ok(())
}

pub(super) fn deep_directories(target: &Target<'_>, _: u64) -> Result<()> {
    deep_look_ups(&mut target.guest(&Setup::default())?)
}

/// Looks several times as many files up as the guest may have descriptors.
fn deep_look_ups(guest: &mut Driver) -> Result<()> {
    let mut dir = node(guest, c"deep")?;
    for level in 1..LEVELS {
        for file in 0..FILES {
            let name = CString::new(format!("f{file}"))?;
            let entry = guest.lookup(dir, &name)?;
            ensure!(entry.nodeid != 0, "a file of level {level} is missing");
        }
        dir = NodeId::new(guest.lookup(dir, c"directory")?.nodeid);
    }
    Ok(())
}

pub(super) fn waiting_locks(target: &Target<'_>, _: u64) -> Result<()> {
    let mut holder = target.guest(&Setup::default())?;
    let held = locked_file(&mut holder)?;
    holder.setlk(held, 1, WRITE_LOCK)?;
    let setup = Setup {
        ring_size: 4096,
        ..Setup::default()
    };
    let mut waiter = target.guest(&setup)?;
    let wanted = locked_file(&mut waiter)?;
    let mut tickets = Vec::new();
    for owner in 0..WAITERS {
        tickets.push(waiter.submit_setlkw(1, wanted, owner, WRITE_LOCK)?);
    }
    // Requests that do not wait are served meanwhile.
    let end = Instant::now() + WAITING;
    while Instant::now() < end {
        waiter
            .getattr(wanted.node, None)
            .context("beside waiters")?;
    }
    // Both leave with the lock held and waited for.
    Ok(())
}

fn locked_file(guest: &mut Driver) -> Result<NodeAndFile> {
    let node = node(guest, c"locked")?;
    let file = guest.open(node, OFlags::RDWR)?;
    Ok(NodeAndFile { node, file })
}
