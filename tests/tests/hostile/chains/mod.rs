//! Descriptor chains and rings that break the rules of virtio. The ring stops or the request fails,
//! and no other guest is affected.

mod broken_chains;
mod layouts;
mod odd_chains;

use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_fuse::reply::Reply;
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::memory::{GUEST_BASE, Memory};
use gangplank_tests::driver::ring::{CallKind, Descriptor, Segment};
use gangplank_tests::driver::{Driver, Setup};

/// Limit for the daemon to report a broken ring.
const LIMIT: Duration = Duration::from_secs(60);

const GETATTR: Operation<'static> = Operation::Getattr(GetattrIn {
    getattr_flags: 0,
    dummy: 0,
    fh: 0,
});

const SETUP: Setup = Setup {
    request_queues: 2,
    ring_size: 256,
    indirect: true,
    event_idx: false,
    call: CallKind::Event,
    memory: 16 << 20,
};

/// Addresses that the malformed chains refer to.
struct GuestAddresses {
    /// 4 KiB of memory with a GETATTR of the root in it.
    request: u64,
    /// 4 KiB of memory.
    reply: u64,
    /// 4 KiB of memory for an indirect table.
    table: u64,
    /// The first address behind guest memory.
    end: u64,
}

impl GuestAddresses {
    fn new(guest: &mut Driver) -> Result<Self> {
        let (_, bytes) = guest.encode(NodeId::ROOT, GETATTR)?;
        let [request, reply, table] = [(); 3].map(|()| guest.memory.allocate(4096));
        let request = request?;
        guest.memory.write(request, &bytes);
        Ok(Self {
            request,
            reply: reply?,
            table: table?,
            end: GUEST_BASE + guest.memory.len(),
        })
    }
}

const fn entry(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}

fn readable(address: u64, len: u32) -> Segment {
    Segment {
        address,
        len,
        writable: false,
    }
}

fn writable(address: u64, len: u32) -> Segment {
    Segment {
        address,
        len,
        writable: true,
    }
}

/// One guest whose requests have odd segments and get replies all the same.
fn with_guest(test: impl FnOnce(&mut Driver, &GuestAddresses) -> Result<()>) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    let places = GuestAddresses::new(&mut guest)?;
    test(&mut guest, &places).with_context(|| fixture.log())?;
    guest.getattr(NodeId::ROOT, None).context("afterwards")?;
    drop(guest);
    fixture.survive(&[])
}

/// The reply in `len` bytes at `address`.
fn reply_at(memory: &Memory, address: u64, len: u32) -> Result<std::result::Result<Vec<u8>, i32>> {
    let bytes = memory.read(address, usize::try_from(len)?);
    Ok(Reply::decode(&bytes)?.result.map(<[u8]>::to_vec))
}
