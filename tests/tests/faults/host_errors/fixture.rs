//! A faulty file system, a daemon that shares it, and a driver that is the daemon's guest.

use std::ffi::CString;

use anyhow::{Context, Result};
use gangplank_fuse::{NodeId, Operation, ReadFlags, ReadIn, WriteFlags, WriteIn, reply};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture;
use gangplank_tests::driver::{Driver, Error, NodeAndFile, Setup, Ticket};
use gangplank_tests::faulty_fs::rules::{Call, Fault, Lasting, Rule};
use gangplank_tests::faulty_fs::{Control, FaultyFs, HostCache, HostWrites};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Memory of a guest that has many large requests in flight.
const MEMORY: u64 = 64 << 20;

/// The rule by which a call of the file system about `file` fails.
pub(crate) fn failing(call: Call, errno: Errno, lasting: Lasting) -> Rule {
    let fault = Fault::Call {
        after: 0,
        errno,
        lasting,
    };
    Rule::new(call, fault).of("file")
}

/// The errno of a request, or `None` if it succeeded.
pub(crate) fn errno_of<T>(result: gangplank_tests::driver::Result<T>) -> Result<Option<Errno>> {
    match result {
        Ok(_) => Ok(None),
        Err(Error::Errno(errno)) => Ok(Some(errno)),
        Err(error) => Err(error.into()),
    }
}

/// How a guest's kernel requests a transfer, which decides the permitted replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// READ for a process, bypassing the guest's page cache: the process sees a short count.
    DirectRead,
    /// READ for the guest's page cache: a short count is the end of the file.
    CachedRead,
    /// WRITE of a process, bypassing the guest's page cache.
    DirectWrite,
    /// WRITE of a process through the guest's page cache, at once.
    ThroughWrite,
    /// WRITE from the guest's page cache: the count is not used.
    CachedWrite,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::DirectRead,
        Self::CachedRead,
        Self::DirectWrite,
        Self::ThroughWrite,
        Self::CachedWrite,
    ];

    /// Its name in test names.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::DirectRead => "direct_read",
            Self::CachedRead => "cached_read",
            Self::DirectWrite => "direct_write",
            Self::ThroughWrite => "write_through",
            Self::CachedWrite => "cached_write",
        }
    }

    pub(crate) const fn is_read(self) -> bool {
        matches!(self, Self::DirectRead | Self::CachedRead)
    }

    /// Whether the requester handles a short count.
    pub(crate) const fn may_be_short(self) -> bool {
        !matches!(self, Self::CachedRead | Self::CachedWrite)
    }
}

/// Part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) size: u32,
}

/// The reply to a transfer: the bytes read or the count written, or an errno.
pub(crate) enum Reply {
    Read(Vec<u8>),
    Written(usize),
    Failed(Errno),
}

/// A faulty file system with a daemon and a driver. Dropping it kills the daemon and unmounts.
pub(crate) struct Fixture {
    pub(crate) driver: Driver,
    pub(crate) daemon: Daemon,
    pub(crate) fs: FaultyFs,
}

/// One more guest of a daemon.
pub(crate) fn guest(daemon: &Daemon, queues: u32) -> Result<Driver> {
    let setup = Setup {
        request_queues: queues,
        memory: MEMORY,
        ..Setup::default()
    };
    Driver::mount(daemon.socket(), &setup).with_context(|| daemon.log())
}

/// Opens a file of the root directory for reading and writing.
pub(crate) fn open(driver: &mut Driver, name: &str) -> Result<NodeAndFile> {
    let name = CString::new(name)?;
    let node = NodeId::new(driver.lookup(NodeId::ROOT, &name)?.nodeid);
    let file = driver.open(node, OFlags::RDWR)?;
    Ok(NodeAndFile { node, file })
}

impl Fixture {
    /// Starts a daemon with further `arguments` on a file system with these host caches.
    pub(crate) fn new(
        cache: HostCache,
        writes: HostWrites,
        queues: u32,
        arguments: &[&str],
    ) -> Result<Self> {
        let fs = FaultyFs::mount(cache, writes)?;
        let daemon = Daemon::start(&Options::new(fs.path()).arguments(arguments))?;
        fixture::wait_for_log(&daemon, "waiting for guests")?;
        let driver = guest(&daemon, queues)?;
        Ok(Self { driver, daemon, fs })
    }

    /// The handle for setting faults.
    pub(crate) fn control(&self) -> &Control {
        self.fs.control()
    }

    /// Opens a file of the root directory for reading and writing.
    pub(crate) fn open(&mut self, name: &str) -> Result<NodeAndFile> {
        open(&mut self.driver, name)
    }

    /// Sends a transfer; `data` is what a write writes.
    pub(crate) fn submit(
        &mut self,
        queue: usize,
        file: NodeAndFile,
        kind: Kind,
        range: Range,
        data: &[u8],
    ) -> Result<Ticket> {
        let room = usize::try_from(range.size)?;
        if kind.is_read() {
            let flags = match kind {
                Kind::DirectRead => ReadFlags::LOCKOWNER,
                _ => ReadFlags::empty(),
            };
            let operation = Operation::Read(ReadIn {
                fh: file.file.get(),
                offset: range.offset,
                size: range.size,
                read_flags: flags.bits(),
                ..ReadIn::default()
            });
            return Ok(self.driver.submit(queue, file.node, operation, &[], room)?);
        }
        let flags = match kind {
            Kind::CachedWrite => WriteFlags::CACHE,
            Kind::DirectWrite => WriteFlags::LOCKOWNER,
            _ => WriteFlags::empty(),
        };
        let operation = Operation::Write(WriteIn {
            fh: file.file.get(),
            offset: range.offset,
            size: range.size,
            write_flags: flags.bits(),
            ..WriteIn::default()
        });
        Ok(self.driver.submit(queue, file.node, operation, data, 64)?)
    }

    /// Waits for the reply to a transfer.
    pub(crate) fn finish(&mut self, kind: Kind, ticket: Ticket) -> Result<Reply> {
        match self.driver.finish(ticket) {
            Ok(payload) if kind.is_read() => Ok(Reply::Read(payload)),
            Ok(payload) => {
                let written = reply::decode_write(&payload)?.size;
                Ok(Reply::Written(usize::try_from(written)?))
            }
            Err(Error::Errno(errno)) => Ok(Reply::Failed(errno)),
            Err(error) => Err(error).with_context(|| self.daemon.log()),
        }
    }

    /// A transfer and its reply.
    pub(crate) fn transfer(
        &mut self,
        file: NodeAndFile,
        kind: Kind,
        range: Range,
        data: &[u8],
    ) -> Result<Reply> {
        let ticket = self.submit(1, file, kind, range, data)?;
        self.finish(kind, ticket)
    }
}
