//! Guest memory that is too large, in too many pieces, gone, or never there.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::stalling_memory::StallingMemory;
use gangplank_tests::driver::vhost_user::{message, words};
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::process::User;
use rustix::fs::{MemfdFlags, OFlags, ftruncate, memfd_create};

use super::{Target, node};

/// Size of a sparse file, in bytes. 32 of them fill the address space of a process, and two are
/// more than `--max-guest-memory` permits by default beside the guest's own memory.
const SPARSE: u64 = 4 << 40;
const MOST_SPARSE: u64 = 1;

/// Files to map.
const FILES: u64 = 40;

/// Regions to add, one page each, and how many of them a guest may have beside its own.
const REGIONS: u64 = 520;
const MOST_REGIONS: u64 = MAX_REGIONS - 1;

const PAGE: u64 = 4096;

/// How long a page does not come.
const STALLING: Duration = Duration::from_millis(500);

/// `--max-memory-regions` of the daemon.
pub(crate) const MAX_REGIONS: u64 = 128;

/// Guest and user addresses of added regions, far from the driver's own.
const FIRST_ADDRESS: u64 = 1 << 50;

fn sparse(len: u64) -> Result<OwnedFd> {
    let file = memfd_create("sparse", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    Ok(file)
}

/// Adds `count` regions of `len` bytes each until the daemon refuses one. Returns how many it took.
fn add_regions(guest: &Driver, file: &OwnedFd, count: u64, len: u64) -> u64 {
    let add = |index: &u64| {
        let address = FIRST_ADDRESS + index * len;
        let region = words(&[0, address, len, address, 0]);
        let added = guest
            .peer
            .tell(message::ADD_MEM_REG, &region, &[file.as_fd()]);
        added.is_ok()
    };
    (0..count).take_while(add).count() as u64
}

pub(super) fn map_sparse_files(target: &Target<'_>, _: u64) -> Result<()> {
    let guest = target.guest(&Setup::default())?;
    let taken = add_regions(&guest, &sparse(SPARSE)?, FILES, SPARSE);
    ensure!(taken == MOST_SPARSE, "{taken} files of {SPARSE} bytes");
    Ok(())
}

pub(super) fn add_many_regions(target: &Target<'_>, _: u64) -> Result<()> {
    let guest = target.guest(&Setup::default())?;
    let taken = add_regions(&guest, &sparse(PAGE)?, REGIONS, PAGE);
    ensure!(taken == MOST_REGIONS, "{taken} regions");
    Ok(())
}

pub(super) fn cut_off(target: &Target<'_>, _: u64) -> Result<()> {
    let mut guest = target.guest(&Setup::default())?;
    // Nothing below reads or writes guest memory, which would end this process.
    guest.rings[1].publish(&guest.memory, 0);
    guest.memory.truncate(0)?;
    guest.rings[1].kick_anyway()?;
    // The daemon may as well end the connection.
    let _ = guest.rings[1].wait_for_error(super::rings::BRIEFLY);
    Ok(())
}

/// Writes from memory whose server does not answer, to a file that others open meanwhile. Only root
/// can mount such a server here.
pub(super) fn unanswered(target: &Target<'_>, _: u64) -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: only root can mount a server of memory that never comes");
        return Ok(());
    }
    let memory = StallingMemory::new()?;
    let mut guest = target.guest(&Setup::default())?;
    memory.add_to(&guest)?;
    let node = node(&mut guest, c"open")?;
    let file = guest.open(node, OFlags::RDWR)?;
    memory.write_from(&mut guest, NodeAndFile { node, file })?;
    let mut other = target.guest(&Setup::default())?;
    let node = self::node(&mut other, c"open")?;
    let file = other.open(node, OFlags::RDWR)?;
    other.write(NodeAndFile { node, file }, 0, b"beside a write that waits")?;
    thread::sleep(STALLING);
    memory.release();
    guest.getattr(NodeId::ROOT, None)?;
    Ok(())
}
