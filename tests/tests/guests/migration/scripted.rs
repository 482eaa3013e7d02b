//! What frontends send around a migration, in the orders of QEMU and of Cloud Hypervisor.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture::{guest_processes, wait_for_log};
use gangplank_tests::driver::memory::GUEST_BASE;
use gangplank_tests::driver::vhost_user::{F_PROTOCOL_FEATURES, message, words};
use gangplank_tests::driver::{Driver, NodeAndFile};
use gangplank_vhost_user::feature::LOG_ALL;
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::fixture::{ROOT, connect, share};

const PAGE: u64 = 4096;

/// Bytes of the bitmap up to the end of the driver's 16 MiB.
const BITMAP_LEN: u64 = (GUEST_BASE + (16 << 20)) / PAGE / 8;

/// VIRTIO_F_VERSION_1 and what vhost-user needs.
const FEATURES: u64 = 1 << 32 | F_PROTOCOL_FEATURES;

/// The frontend's bitmap.
struct Bitmap(File);

impl Bitmap {
    fn new() -> Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(BITMAP_LEN)?;
        Ok(Self(file))
    }

    /// SET_LOG_BASE, which the daemon answers with the same words.
    fn set(&self, guest: &Driver) -> Result<()> {
        let area = words(&[BITMAP_LEN, 0]);
        let request = message::SET_LOG_BASE;
        guest.peer.send(request, 1, &area, &[self.0.as_fd()])?;
        ensure!(guest.peer.receive()?.payload == area);
        Ok(())
    }

    /// The dirty pages, which are clean again.
    fn take(&mut self) -> Result<Vec<u64>> {
        let mut bytes = Vec::new();
        self.0.seek(SeekFrom::Start(0))?;
        self.0.read_to_end(&mut bytes)?;
        self.0.seek(SeekFrom::Start(0))?;
        self.0.write_all(&vec![0; bytes.len()])?;
        let is_set = |page: &u64| {
            let byte = bytes.get(usize::try_from(page / 8).unwrap_or(usize::MAX));
            byte.is_some_and(|byte| byte & (1 << (page % 8)) != 0)
        };
        Ok((0..BITMAP_LEN * 8).filter(is_set).collect())
    }
}

fn set_features(guest: &Driver, features: u64) -> Result<()> {
    Ok(guest
        .peer
        .tell(message::SET_FEATURES, &words(&[features]), &[])?)
}

/// The pages of guest memory all of whose bytes are `pattern`.
fn pages_with(guest: &Driver, pattern: u8) -> Vec<u64> {
    let is_filled = |page: &u64| {
        let bytes = guest.memory.read(page * PAGE, 4096);
        bytes.iter().all(|byte| *byte == pattern)
    };
    let first = GUEST_BASE / PAGE;
    let pages = first..first + guest.memory.len() / PAGE;
    pages.filter(is_filled).collect()
}

/// A guest with an open file of 64 KiB.
fn started() -> Result<(tempfile::TempDir, Daemon, Driver, NodeAndFile)> {
    let share = share()?;
    for (name, pattern) in [("plain", b'x'), ("early", b'y')] {
        std::fs::write(share.path().join(name), vec![pattern; 64 << 10])?;
    }
    let daemon = Daemon::start(&Options::new(share.path()))?;
    let mut guest = connect(&daemon)?;
    guest.init()?;
    let node = gangplank_fuse::NodeId::new(guest.lookup(ROOT, c"plain")?.nodeid);
    let file = guest.open(node, OFlags::RDONLY)?;
    Ok((share, daemon, guest, NodeAndFile { node, file }))
}

fn used_page(guest: &Driver) -> u64 {
    guest.rings[1].used / PAGE
}

/// Reads 64 KiB and checks that each page with them, and the used ring, is marked.
fn read_is_marked(guest: &mut Driver, file: NodeAndFile, bitmap: &mut Bitmap) -> Result<()> {
    bitmap.take()?;
    for page in pages_with(guest, b'x') {
        guest.memory.write(page * PAGE, &[0; 4096]);
    }
    ensure!(guest.read(file, 0, 64 << 10)?.len() == 64 << 10);
    let filled = pages_with(guest, b'x');
    ensure!(filled.len() >= 15, "{filled:?}");
    let dirty = bitmap.take()?;
    for page in filled.iter().chain([&used_page(guest)]) {
        ensure!(dirty.contains(page), "page {page} is not among {dirty:?}");
    }
    ensure!(dirty.len() <= filled.len() + 8, "too many: {dirty:?}");
    Ok(())
}

/// QEMU sends the bitmap first, then the features, and once more for each new bitmap and for each
/// migration that is given up.
pub(crate) fn pages_are_marked_while_log_all_is_set() -> Result<()> {
    let (_share, daemon, mut guest, file) = started()?;
    let mut bitmap = Bitmap::new()?;
    bitmap.set(&guest)?;
    guest.read(file, 0, 64 << 10)?;
    ensure!(bitmap.take()?.is_empty(), "nobody has asked yet");
    for _ in 0..3 {
        set_features(&guest, FEATURES | LOG_ALL)?;
        read_is_marked(&mut guest, file, &mut bitmap).with_context(|| daemon.log())?;
        let mut other = Bitmap::new()?;
        other.set(&guest)?;
        read_is_marked(&mut guest, file, &mut other)?;
        ensure!(bitmap.take()?.is_empty(), "it was replaced");
        // The order of Cloud Hypervisor: features first.
        set_features(&guest, FEATURES)?;
        guest.read(file, 0, 64 << 10)?;
        ensure!(other.take()?.is_empty(), "the migration was given up");
        set_features(&guest, FEATURES | LOG_ALL)?;
        bitmap.set(&guest)?;
        read_is_marked(&mut guest, file, &mut bitmap)?;
        set_features(&guest, FEATURES)?;
    }
    Ok(())
}

/// The worker that follows one that died marks pages as well.
pub(crate) fn pages_are_marked_after_a_death() -> Result<()> {
    let (_share, daemon, mut guest, file) = started()?;
    let mut bitmap = Bitmap::new()?;
    bitmap.set(&guest)?;
    set_features(&guest, FEATURES | LOG_ALL)?;
    for _ in 0..3 {
        let (_, worker) = guest_processes(&daemon)?[0];
        let pid = Pid::from_raw(i32::try_from(worker)?).context("no process")?;
        kill_process(pid, Signal::KILL)?;
        guest.lookup(ROOT, c"plain")?;
        read_is_marked(&mut guest, file, &mut bitmap).with_context(|| daemon.log())?;
    }
    Ok(())
}

/// A bitmap that is too short for its file ends the connection, and is named.
pub(crate) fn bitmap_beyond_its_file_is_refused() -> Result<()> {
    let (_share, daemon, guest, _) = started()?;
    let file = tempfile::tempfile()?;
    let area = words(&[BITMAP_LEN, 0]);
    guest
        .peer
        .send(message::SET_LOG_BASE, 1, &area, &[file.as_fd()])?;
    ensure!(guest.peer.receive().is_err());
    wait_for_log(&daemon, "past the end of its file")?;
    Ok(())
}

/// CHECK_DEVICE_STATE without a transfer, features without a question, a state before all else.
pub(crate) fn state_is_asked_for_in_any_order() -> Result<()> {
    let (share, daemon, mut guest, file) = started()?;
    // Without a transfer.
    ensure!(guest.peer.ask(message::CHECK_DEVICE_STATE, &[])? == words(&[1]));
    // SET_PROTOCOL_FEATURES without asking, in the middle.
    let protocol: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 19;
    guest
        .peer
        .tell(message::SET_PROTOCOL_FEATURES, &words(&[protocol]), &[])?;
    let stream = guest.save_state()?;
    ensure!(guest.save_state()? == stream, "nothing has changed");
    for index in 0..guest.rings.len() {
        guest.start_ring(index)?;
    }
    ensure!(guest.read(file, 0, 16)? == [b'x'; 16]);

    // A frontend that loads the state before it has set up anything else.
    let other = Daemon::start(&Options::new(share.path()))?;
    let peer = gangplank_tests::driver::vhost_user::Peer::connect(other.socket())?;
    peer.tell(message::SET_PROTOCOL_FEATURES, &words(&[protocol]), &[])?;
    let (reader, mut writer) = std::io::pipe()?;
    // Direction: LOAD; phase: STOPPED.
    let load = [1_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
    peer.send(message::SET_DEVICE_STATE_FD, 1, &load, &[reader.as_fd()])?;
    ensure!(
        peer.receive()?.payload == words(&[0x100]),
        "{}",
        other.log()
    );
    writer.write_all(&stream)?;
    drop(writer);
    ensure!(
        peer.ask(message::CHECK_DEVICE_STATE, &[])? == words(&[0]),
        "{}",
        other.log()
    );
    peer.tell(message::SET_OWNER, &[], &[])?;
    ensure!(peer.ask_u64(message::GET_FEATURES)? & LOG_ALL != 0);
    drop(daemon);
    Ok(())
}

/// A worker that dies takes the transfer with it: the frontend is told, and the guest stays.
pub(crate) fn dead_worker_gives_the_migration_up() -> Result<()> {
    let (_share, daemon, mut guest, file) = started()?;
    for index in 0..guest.rings.len() {
        guest.stop_ring(index)?;
    }
    let (reader, writer) = std::io::pipe()?;
    let save = [0_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
    guest
        .peer
        .send(message::SET_DEVICE_STATE_FD, 1, &save, &[writer.as_fd()])?;
    guest.peer.receive()?;
    drop(writer);
    let (_, worker) = guest_processes(&daemon)?[0];
    let pid = Pid::from_raw(i32::try_from(worker)?).context("no process")?;
    kill_process(pid, Signal::KILL)?;
    let mut rest = Vec::new();
    let mut reader = File::from(std::os::fd::OwnedFd::from(reader));
    reader.read_to_end(&mut rest)?;
    ensure!(guest.peer.ask(message::CHECK_DEVICE_STATE, &[])? == words(&[1]));
    for index in 0..guest.rings.len() {
        guest.start_ring(index)?;
    }
    ensure!(guest.read(file, 0, 16)? == [b'x'; 16], "{}", daemon.log());
    guest.save_state().map(drop).with_context(|| daemon.log())
}
