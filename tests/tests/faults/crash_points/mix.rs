//! Deaths at random points of random operations, one after another.

use std::cell::Cell;
use std::ffi::CStr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use gangplank_backend::crash_hook::{Death, Point};
use gangplank_fuse::{
    Handle, LinkIn, MknodIn, NodeId, OpenIn, Operation, SetattrIn, SetattrValid, SetxattrIn,
    WriteIn, reply,
};
use gangplank_tests::driver::{Error, NodeAndFile};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::crash::Crashing;
use super::files;
use super::world::{Tree, World, XATTR};

/// Sequences of operations that are tried, and with `GANGPLANK_LONG`.
const SEQUENCES: (u32, u32) = (24, 2000);

/// The names that the operations use.
const NAMES: [&CStr; 4] = [c"old", c"other", c"one", c"two"];

/// What a program in the guest does, with names by their indices.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(usize),
    Append(usize),
    Truncate(usize),
    Mkdir(usize),
    Symlink(usize),
    Link(usize, usize),
    Rename(usize, usize),
    Remove(usize),
    SetXattr(usize),
    /// Two names are exchanged.
    Exchange(usize, usize),
    /// A file gets a name that nothing has.
    RenameNew(usize, usize),
    Mknod(usize),
    /// A file without a name is written and read.
    Tmpfile,
    Fallocate(usize),
    Copy(usize, usize),
    /// Two owners want a lock, and the first one gives it back.
    Lock(usize),
    /// An open file is removed, written and read.
    RemoveOpen(usize),
    List,
}

/// Where a worker dies: the point, and how often it is passed before.
type Fate = Option<(Point, u32)>;

/// What the program saw, what is in the directory at the end, and the files that are left open.
type Outcome = (Vec<String>, Tree, usize);

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..NAMES.len();
    prop_oneof![
        name().prop_map(Step::Write),
        name().prop_map(Step::Append),
        name().prop_map(Step::Truncate),
        name().prop_map(Step::Mkdir),
        name().prop_map(Step::Symlink),
        (name(), name()).prop_map(|(from, to)| Step::Link(from, to)),
        (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        name().prop_map(Step::Remove),
        name().prop_map(Step::SetXattr),
        (name(), name()).prop_map(|(one, other)| Step::Exchange(one, other)),
        (name(), name()).prop_map(|(from, to)| Step::RenameNew(from, to)),
        name().prop_map(Step::Mknod),
        Just(Step::Tmpfile),
        name().prop_map(Step::Fallocate),
        (name(), name()).prop_map(|(from, to)| Step::Copy(from, to)),
        name().prop_map(Step::Lock),
        name().prop_map(Step::RemoveOpen),
        Just(Step::List),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    let point = prop::sample::select(Point::ALL.to_vec());
    prop::option::weighted(0.3, (point, 0..5_u32))
}

/// What a LOOKUP finds: the node, and the type bits of its mode.
pub(super) fn find(world: &mut World, name: &CStr) -> Result<Option<(NodeId, u32)>> {
    match world.guest.lookup(world.root, name) {
        Ok(entry) if entry.nodeid != 0 => {
            let node = world.learn(entry.nodeid);
            Ok(Some((node, entry.attr.mode & libc::S_IFMT)))
        }
        Ok(_) | Err(Error::Errno(Errno::NOENT)) => Ok(None),
        Err(error) => bail!(error),
    }
}

/// Opens a file, writes to it, closes it.
fn write(world: &mut World, node: NodeId, flags: OFlags, data: &[u8]) -> Result<()> {
    let size = world.guest.getattr(node, None)?.attr.size;
    let args = OpenIn {
        flags: (OFlags::RDWR | OFlags::LARGEFILE | flags).bits(),
        open_flags: 0,
    };
    let opened = world.guest.call(node, Operation::Open(args), &[], 512)?;
    let fh = reply::decode_open(&opened)?.fh;
    let offset = match flags.contains(OFlags::APPEND) {
        true => size,
        false => 1,
    };
    let args = WriteIn {
        fh,
        offset,
        size: u32::try_from(data.len())?,
        flags: args.flags,
        ..WriteIn::default()
    };
    world.guest.call(node, Operation::Write(args), data, 512)?;
    let file = Handle::new(fh);
    Ok(world.guest.release(NodeAndFile { node, file })?)
}

fn write_or_create(world: &mut World, name: &CStr, flags: OFlags, data: &[u8]) -> Result<()> {
    match find(world, name)? {
        None => {
            let made = world.guest.create(world.root, name, 0o644)?;
            world.learn(made.node.get());
            Ok(world.guest.release(made)?)
        }
        Some((node, libc::S_IFREG)) => write(world, node, flags, data),
        Some(_) => Ok(()),
    }
}

fn link(world: &mut World, from: &CStr, name: &CStr) -> Result<()> {
    let Some((node, kind)) = find(world, from)? else {
        return Ok(());
    };
    if kind == libc::S_IFDIR || find(world, name)?.is_some() {
        return Ok(());
    }
    let args = LinkIn {
        oldnodeid: node.get(),
    };
    let operation = Operation::Link { args, name };
    let made = world.guest.call(world.root, operation, &[], 512)?;
    world.learn(reply::decode_entry(&made)?.nodeid);
    Ok(())
}

fn rename(world: &mut World, from: &CStr, to: &CStr) -> Result<()> {
    let Some((node, kind)) = find(world, from)? else {
        return Ok(());
    };
    // A kernel does nothing if both names are the same file's.
    let is_possible = find(world, to)?.is_none_or(|(other, other_kind)| {
        other != node && (kind == libc::S_IFDIR) == (other_kind == libc::S_IFDIR)
    });
    if is_possible {
        let root = world.root;
        world.guest.rename((root, from), (root, to), 0)?;
    }
    Ok(())
}

fn set_xattr(world: &mut World, name: &CStr, value: &[u8]) -> Result<()> {
    if let Some((node, libc::S_IFREG)) = find(world, name)? {
        let args = SetxattrIn {
            size: u32::try_from(value.len())?,
            ..SetxattrIn::default()
        };
        let name = XATTR;
        let operation = Operation::Setxattr { args, name, value };
        world.guest.call(node, operation, &[], 512)?;
    }
    Ok(())
}

/// Takes a step as a kernel does: it looks names up first, and does not ask for what it knows to be
/// impossible. Returns what the program sees.
fn take(world: &mut World, number: usize, step: Step) -> Result<String> {
    let root = world.root;
    let data = format!("line {number}\n");
    let data = data.as_bytes();
    match step {
        Step::Write(name) => write_or_create(world, NAMES[name], OFlags::empty(), data)?,
        Step::Append(name) => write_or_create(world, NAMES[name], OFlags::APPEND, data)?,
        Step::Truncate(name) => {
            if let Some((node, libc::S_IFREG)) = find(world, NAMES[name])? {
                let args = SetattrIn {
                    valid: SetattrValid::SIZE.bits(),
                    size: 5,
                    ..SetattrIn::default()
                };
                world.guest.setattr(node, args)?;
            }
        }
        Step::Mkdir(name) => {
            if find(world, NAMES[name])?.is_none() {
                let made = world.guest.mkdir(root, NAMES[name])?;
                world.learn(made.nodeid);
            }
        }
        Step::Symlink(name) => {
            if find(world, NAMES[name])?.is_none() {
                let made = world.guest.symlink(root, NAMES[name], c"target")?;
                world.learn(made.nodeid);
            }
        }
        Step::Link(from, to) => link(world, NAMES[from], NAMES[to])?,
        Step::Rename(from, to) => rename(world, NAMES[from], NAMES[to])?,
        Step::Remove(name) => match find(world, NAMES[name])? {
            Some((_, libc::S_IFDIR)) => world.guest.rmdir(root, NAMES[name])?,
            Some(_) => world.guest.unlink(root, NAMES[name])?,
            None => {}
        },
        Step::SetXattr(name) => set_xattr(world, NAMES[name], data)?,
        Step::Exchange(one, other) => {
            let names = (NAMES[one], NAMES[other]);
            if one != other && find(world, names.0)?.is_some() && find(world, names.1)?.is_some() {
                let flags = libc::RENAME_EXCHANGE;
                world
                    .guest
                    .rename((root, names.0), (root, names.1), flags)?;
            }
        }
        Step::RenameNew(from, to) => {
            let names = (NAMES[from], NAMES[to]);
            if find(world, names.0)?.is_some() && find(world, names.1)?.is_none() {
                let flags = libc::RENAME_NOREPLACE;
                world
                    .guest
                    .rename((root, names.0), (root, names.1), flags)?;
            }
        }
        Step::Mknod(name) => {
            if find(world, NAMES[name])?.is_none() {
                let args = MknodIn {
                    mode: libc::S_IFIFO | 0o600,
                    ..MknodIn::default()
                };
                let name = NAMES[name];
                let operation = Operation::Mknod { args, name };
                let made = world.guest.call(root, operation, &[], 512)?;
                world.learn(reply::decode_entry(&made)?.nodeid);
            }
        }
        Step::Tmpfile => return files::without_a_name(world, data),
        Step::Fallocate(name) => files::fallocate(world, NAMES[name])?,
        Step::Copy(from, to) => return files::copy(world, NAMES[from], NAMES[to]),
        Step::Lock(name) => return files::lock(world, NAMES[name]),
        Step::RemoveOpen(name) => return files::remove_open(world, NAMES[name], data),
        Step::List => {
            let file = world.guest.opendir(root)?;
            let (mut names, _) = world.guest.readdir(root, file, 0, 4096)?;
            world.guest.releasedir(root, file)?;
            names.sort();
            return Ok(format!("{names:?}"));
        }
    }
    Ok(String::new())
}

fn run(crashing: &Crashing, steps: &[(Step, Fate)]) -> Result<(Outcome, u32)> {
    let mut world = World::new(&crashing.fixture)?;
    let (mut seen, mut deaths) = (Vec::new(), 0);
    for (number, (step, fate)) in steps.iter().enumerate() {
        if let Some((point, passes)) = fate {
            // What is there was not made in the tick of the clock in which the step begins.
            thread::sleep(Duration::from_millis(12));
            crashing.order((None, *point), Death::Fault, *passes, 1)?;
        }
        seen.push(take(&mut world, number, *step)?);
        if fate.is_some() {
            crashing.clear()?;
            deaths += crashing.died()?;
        }
    }
    let tree = world.tree()?;
    let (open, _) = world.leave(&crashing.fixture)?;
    Ok(((seen, tree, open), deaths))
}

#[test]
fn deaths_at_random_points_of_random_operations_are_not_noticed() -> Result<()> {
    let crashing = Crashing::new(&["--xattr", "--locks=host", "--max-crashes=100000"])?;
    let sequences = match std::env::var_os("GANGPLANK_LONG") {
        Some(_) => SEQUENCES.1,
        None => SEQUENCES.0,
    };
    let config = Config {
        cases: sequences,
        max_shrink_iters: 100,
        failure_persistence: None,
        ..Config::default()
    };
    let steps = prop::collection::vec((step(), fate()), 5..25);
    let deaths = Cell::new(0);
    let failed = |error: anyhow::Error| TestCaseError::fail(format!("{error:#}"));
    let result = TestRunner::new(config).run(&steps, |steps| {
        let calm: Vec<(Step, Fate)> = steps.iter().map(|(step, _)| (*step, None)).collect();
        let (expected, _) = run(&crashing, &calm).map_err(failed)?;
        let found = run(&crashing, &steps);
        crashing.clear().map_err(failed)?;
        let (found, died) = found.map_err(failed)?;
        deaths.set(deaths.get() + died);
        prop_assert_eq!(found, expected);
        Ok(())
    });
    eprintln!("{} deaths in {sequences} sequences", deaths.get());
    result.map_err(|error| anyhow::anyhow!("{error}\n{}", crashing.fixture.log()))
}
