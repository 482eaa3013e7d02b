//! Descriptor chains and indirect tables that break the rules, and requests that do.

use std::time::Duration;

use anyhow::{Result, ensure};
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::driver::changing_request::change_while_served;
use gangplank_tests::driver::memory::GUEST_BASE;
use gangplank_tests::driver::ring::{Descriptor, INDIRECT, NEXT, WRITE};
use gangplank_tests::driver::{Driver, Setup};
use rustix::io::Errno;

use super::Target;

/// How long the daemon's complaint is waited for. It may as well serve the chain.
pub(super) const BRIEFLY: Duration = Duration::from_millis(100);

/// How often a request changes while it is served.
const CHANGES: u32 = 100;

/// An operation that no FUSE has, and how often a guest asks for it.
const UNKNOWN: u32 = 77_777;
const FLOOD: u64 = 2000;

/// Most log lines about one guest's flood: 5 in 10 seconds, on a machine that is slow.
const MOST_LINES: usize = 20;

/// Entries of the longest indirect table.
const LONGEST: u16 = u16::MAX;

/// Descriptor tables, the chain at the first entry. `table` and `request` are addresses of guest
/// memory.
fn tables(request: u64, table: u64) -> Vec<Vec<Descriptor>> {
    let entry = |address, len, flags, next| Descriptor {
        address,
        len,
        flags,
        next,
    };
    vec![
        // A loop.
        vec![entry(request, 8, NEXT, 0)],
        vec![entry(request, 8, NEXT, 1), entry(request, 8, NEXT, 0)],
        // Beyond the table.
        vec![entry(request, 56, NEXT, u16::MAX)],
        // Outside memory, or of a length that wraps around.
        vec![entry(0, 56, NEXT, 1), entry(request, 128, WRITE, 0)],
        vec![
            entry(request, u32::MAX, NEXT, 1),
            entry(request, u32::MAX, WRITE, 0),
        ],
        vec![entry(u64::MAX - 10, 56, 0, 0)],
        // The reply before the request.
        vec![
            entry(request, 128, WRITE | NEXT, 1),
            entry(request, 56, 0, 0),
        ],
        // Indirect tables: of odd lengths, outside memory, and the longest.
        vec![entry(table, 17, INDIRECT, 0)],
        vec![entry(table, u32::MAX - 15, INDIRECT, 0)],
        vec![entry(GUEST_BASE - 16, 32, INDIRECT, 0)],
        vec![entry(table, 16 * u32::from(LONGEST), INDIRECT, 0)],
        vec![entry(table, 16 * u32::from(LONGEST), INDIRECT | NEXT, 0)],
    ]
}

/// A guest for each table. The entries of the indirect table are of one byte each.
pub(super) fn broken_chains(target: &Target<'_>, _: u64) -> Result<()> {
    let mut offered = 0;
    loop {
        let mut guest = target.guest(&Setup::default())?;
        let (request, table) = lay_out(&mut guest)?;
        let Some(descriptors) = tables(request, table).into_iter().nth(offered) else {
            return Ok(());
        };
        guest.offer_table(1, &descriptors)?;
        let _ = guest.rings[1].wait_for_error(BRIEFLY);
        offered += 1;
    }
}

pub(super) fn changing_requests(target: &Target<'_>, _: u64) -> Result<()> {
    let mut guest = target.guest(&Setup::default())?;
    Ok(change_while_served(&mut guest, CHANGES)?)
}

/// Requests that the daemon has to complain about, each with a line of the log if nothing limited
/// that.
pub(super) fn log_flood(target: &Target<'_>, _: u64) -> Result<()> {
    let lines = || {
        let log = target.fixture.daemon.log();
        log.matches(&UNKNOWN.to_string()).count()
    };
    let mut guest = target.guest(&Setup::default())?;
    let before = lines();
    for _ in 0..FLOOD {
        let operation = Operation::Getattr(GetattrIn::default());
        let (unique, mut bytes) = guest.encode(NodeId::ROOT, operation)?;
        bytes[4..8].copy_from_slice(&UNKNOWN.to_le_bytes());
        let ticket = guest.submit_bytes(1, unique, &bytes, 128)?;
        let errno = guest.finish(ticket).err().and_then(|error| error.errno());
        ensure!(errno == Some(Errno::NOSYS), "{errno:?}");
    }
    // None if the guest is one of a storm of connections.
    let told = lines() - before;
    ensure!(told <= MOST_LINES, "{told} lines about {FLOOD} requests");
    Ok(())
}

/// A request and an indirect table of [`LONGEST`] entries in the guest's memory.
fn lay_out(guest: &mut Driver) -> Result<(u64, u64)> {
    let operation = Operation::Getattr(GetattrIn::default());
    let (_, bytes) = guest.encode(NodeId::ROOT, operation)?;
    let request = guest.memory.allocate(4096)?;
    guest.memory.write(request, &bytes);
    let table = guest.memory.allocate(16 * usize::from(LONGEST))?;
    let entries: Vec<u8> = (0..LONGEST)
        .flat_map(|index| {
            let entry = Descriptor {
                address: request + u64::from(index % 4096),
                len: 1,
                flags: if index == LONGEST - 1 { WRITE } else { NEXT },
                next: index.saturating_add(1),
            };
            entry.to_bytes()
        })
        .collect();
    guest.memory.write(table, &entries);
    Ok((request, table))
}
