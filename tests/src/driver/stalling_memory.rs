//! Guest memory that a malicious frontend takes from a file server of its own, which may not answer.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_fuse::{Operation, OutHeader, WriteIn};

use rustix::io::Errno;

use super::ring::Segment;
use super::vhost_user::{message, words};
use super::{Driver, NodeAndFile};
use crate::faulty_fs::rules::{Call, Fault, Lasting, Rule};
use crate::faulty_fs::{FaultyFs, HostCache, HostWrites};
use crate::wait;

/// Bytes of the memory.
const LEN: u64 = 64 << 10;

/// Its guest and frontend address, far from the driver's other memory.
const ADDRESS: u64 = 1 << 50;

/// Limit for the daemon to reach for the memory.
const REACHING: Duration = Duration::from_secs(60);

/// The memory. The server answers nothing until [`StallingMemory::release`]. Needs root.
pub struct StallingMemory {
    server: FaultyFs,
    file: File,
}

impl StallingMemory {
    /// Starts the server.
    ///
    /// # Errors
    /// Without root or `/dev/fuse`.
    pub fn new() -> Result<Self> {
        let server = FaultyFs::mount(HostCache::Pages, HostWrites::Through)?;
        let content = vec![b'm'; usize::try_from(LEN)?];
        server.control().put("memory", &content)?;
        let path = server.path().join("memory");
        let file = File::options().read(true).write(true).open(path)?;
        server
            .control()
            .set(Rule::new(Call::Read, Fault::Unanswered));
        Ok(Self { server, file })
    }

    /// Adds the memory to a guest's.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn add_to(&self, guest: &Driver) -> Result<()> {
        let region = words(&[0, ADDRESS, LEN, ADDRESS, 0]);
        let file = [self.file.as_fd()];
        Ok(guest.peer.tell(message::ADD_MEM_REG, &region, &file)?)
    }

    /// Sends a WRITE of a page of the memory, and waits until the daemon reaches for it.
    ///
    /// # Errors
    /// The daemon does not.
    pub fn write_from(&self, guest: &mut Driver, to: NodeAndFile) -> Result<()> {
        const SIZE: u32 = 4096;
        let reads = self.server.control().calls(Call::Read);
        let operation = Operation::Write(WriteIn {
            fh: to.file.get(),
            size: SIZE,
            ..WriteIn::default()
        });
        let (_, request) = guest.encode(to.node, operation)?;
        let place = guest.memory.allocate(request.len())?;
        guest.memory.write(place, &request);
        let reply = guest.memory.allocate(size_of::<OutHeader>() + 8)?;
        let segments = [
            (place, u32::try_from(request.len())?, false),
            (ADDRESS, SIZE, false),
            (reply, 24, true),
        ];
        let segments = segments.map(|(address, len, writable)| Segment {
            address,
            len,
            writable,
        });
        let ring = guest.rings.get_mut(1).context("a request queue")?;
        ring.publish_chain(&mut guest.memory, &segments)?;
        ring.kick_anyway()?;
        wait::until("the daemon reads the memory", REACHING, || {
            Ok(self.server.control().calls(Call::Read) != reads)
        })
    }

    /// Makes the server answer with errors.
    pub fn fail(&self) {
        let fault = Fault::Call {
            after: 0,
            errno: Errno::IO,
            lasting: Lasting::Always,
        };
        self.server.control().replace(Rule::new(Call::Read, fault));
    }

    /// Lets the server answer.
    pub fn release(&self) {
        self.server.control().clear();
    }
}
