//! The workloads by name, as requests and as system calls.

mod create;
mod direct;
mod getattr;
mod listing;
mod lookup;
mod open;
mod small_file;
mod transfer;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

pub(crate) use direct::Timed;
pub(crate) use lookup::Sort;
pub(crate) use transfer::{Direction, Offsets, Order};

use crate::workload::Workload;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// GETATTR of one file.
    Getattr,
    /// LOOKUP of names.
    Lookup(Sort),
    /// OPEN and RELEASE of one file.
    Open,
    /// LOOKUP, OPEN, READ of 4 KiB, RELEASE and FORGET.
    SmallFile,
    /// CREATE, WRITE of 4 KiB, RELEASE, UNLINK and FORGET.
    Create,
    /// OPENDIR, READDIRPLUS of everything, RELEASEDIR.
    Listing {
        /// Whether the files are unknown to the daemon. They are forgotten again.
        new: bool,
    },
    /// READ or WRITE of one file.
    Transfer {
        /// The direction.
        direction: Direction,
        /// Bytes of each.
        size: usize,
        /// The order of the offsets.
        order: Order,
    },
}

/// The unit of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Operations.
    Operations,
    /// Directory entries.
    Entries,
    /// Operations of this many bytes.
    Bytes(usize),
}

impl Unit {
    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Operations => "operations",
            Self::Entries => "entries",
            Self::Bytes(_) => "bytes",
        }
    }
}

/// The file system of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A file system on a disk.
    Disk,
    /// tmpfs, so that no disk delays new files and writes.
    Ram,
}

/// A workload of the catalogue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) work: Work,
    /// Operations in flight.
    pub(crate) depth: usize,
}

const fn entry(name: &'static str, depth: usize, work: Work) -> Entry {
    Entry { name, work, depth }
}

const fn transfer(
    name: &'static str,
    depth: usize,
    direction: Direction,
    size: usize,
    order: Order,
) -> Entry {
    let work = Work::Transfer {
        direction,
        size,
        order,
    };
    entry(name, depth, work)
}

/// All workloads.
pub(crate) const CATALOGUE: &[Entry] = &[
    entry("getattr", 1, Work::Getattr),
    entry("getattr-32", 32, Work::Getattr),
    entry("lookup-known", 1, Work::Lookup(Sort::Known)),
    entry("lookup-known-32", 32, Work::Lookup(Sort::Known)),
    entry("lookup-forget", 1, Work::Lookup(Sort::New)),
    entry("lookup-forget-32", 32, Work::Lookup(Sort::New)),
    entry("lookup-missing", 1, Work::Lookup(Sort::Missing)),
    entry("lookup-missing-32", 32, Work::Lookup(Sort::Missing)),
    entry("open-release", 1, Work::Open),
    entry("open-release-32", 32, Work::Open),
    entry("small-file", 1, Work::SmallFile),
    entry("small-file-32", 32, Work::SmallFile),
    entry("create-unlink", 1, Work::Create),
    entry("create-unlink-32", 32, Work::Create),
    entry("readdirplus", 1, Work::Listing { new: false }),
    entry("readdirplus-new", 1, Work::Listing { new: true }),
    transfer("read-128k", 1, Direction::Read, 128 << 10, Order::Forward),
    transfer("read-1m", 1, Direction::Read, 1 << 20, Order::Forward),
    transfer("read-1m-8", 8, Direction::Read, 1 << 20, Order::Forward),
    transfer("read-1m-cold", 1, Direction::Read, 1 << 20, Order::Cold),
    transfer("write-128k", 1, Direction::Write, 128 << 10, Order::Forward),
    transfer("write-1m", 1, Direction::Write, 1 << 20, Order::Forward),
    transfer("random-read-4k", 1, Direction::Read, 4096, Order::Random),
    transfer(
        "random-read-4k-32",
        32,
        Direction::Read,
        4096,
        Order::Random,
    ),
    transfer(
        "random-read-4k-cold-32",
        32,
        Direction::Read,
        4096,
        Order::ColdRandom,
    ),
    transfer("random-write-4k", 1, Direction::Write, 4096, Order::Random),
    transfer(
        "random-write-4k-32",
        32,
        Direction::Write,
        4096,
        Order::Random,
    ),
];

impl Entry {
    /// The unit of its rate.
    pub(crate) const fn unit(&self) -> Unit {
        match self.work {
            Work::Listing { .. } => Unit::Entries,
            Work::Transfer { size, .. } if size > 4096 => Unit::Bytes(size),
            _ => Unit::Operations,
        }
    }

    /// The file system that it runs on.
    pub(crate) const fn medium(&self) -> Medium {
        match self.work {
            Work::Create
            | Work::Transfer {
                direction: Direction::Write,
                ..
            } => Medium::Ram,
            _ => Medium::Disk,
        }
    }

    /// The workload as requests, in a share whose host directory is `share`.
    pub(crate) fn workload(&self, share: &Path) -> Box<dyn Workload> {
        match self.work {
            Work::Getattr => Box::new(getattr::Getattr::default()),
            Work::Lookup(sort) => Box::new(lookup::Lookup::new(sort)),
            Work::Open => Box::new(open::Open::default()),
            Work::SmallFile => Box::new(small_file::SmallFile::default()),
            Work::Create => Box::new(create::Create::default()),
            Work::Listing { new } => Box::new(listing::Listing::new(new)),
            Work::Transfer {
                direction,
                size,
                order,
            } => Box::new(transfer::Transfer::new(direction, size, order, share)),
        }
    }

    /// Does the work by system calls for `time`.
    pub(crate) fn directly(
        &self,
        share: &Path,
        time: Duration,
        at: &mut dyn FnMut() -> Result<()>,
    ) -> Result<crate::workload::Run> {
        direct::run(self.work, share, time, at)
    }
}
