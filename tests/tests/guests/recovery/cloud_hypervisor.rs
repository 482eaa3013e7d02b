//! The messages of Cloud Hypervisor's virtio-fs device, sent by the crate that it uses, when it
//! starts and when it has lost its daemon.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use gangplank_tests::driver::memory::Memory;
use gangplank_tests::driver::ring::{CallKind, Layout, Ring};
use gangplank_tests::driver::{self, Driver, Error, NodeAndFile, Notifier, Ticket};
use rustix::fs::{FlockOperation, MemfdFlags, OFlags, fcntl_lock, ftruncate, memfd_create};
use rustix::io::Errno;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{MANY, kill_worker, wait_for_next};

/// `F_WRLCK`.
const WRITE_LOCK: u32 = 1;

/// Rings of the device, the high-priority one included.
const RINGS: usize = 2;

/// Descriptors of each ring.
const RING_SIZE: u16 = 64;

/// The device of a virtual machine.
struct Device {
    connection: Frontend,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    inflight: Option<(VhostUserInflight, File)>,
}

impl Device {
    /// Connects and negotiates.
    fn connect(socket: &Path) -> Result<Frontend> {
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let mut connection = Frontend::connect(socket, RINGS as u64)?;
        connection.set_owner()?;
        connection.get_features()?;
        let offered = connection.get_protocol_features()?;
        ensure!(offered.contains(wanted), "offered are {offered:?}");
        connection.set_protocol_features(wanted)?;
        connection.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        Ok(connection)
    }

    /// A new device, whose driver runs `rings` in `memory`.
    fn start(socket: &Path, memory: &Memory, rings: &[Ring]) -> Result<Self> {
        let connection = Self::connect(socket)?;
        let events = || {
            (0..RINGS)
                .map(|_| EventFd::new(EFD_NONBLOCK))
                .collect::<Result<Vec<_>, _>>()
        };
        let mut device = Self {
            connection,
            kicks: events()?,
            calls: events()?,
            inflight: None,
        };
        device.set_up(memory, rings)?;
        Ok(device)
    }

    /// Connects again, and sets the device up as it was.
    fn reconnect(&mut self, socket: &Path, memory: &Memory, rings: &[Ring]) -> Result<()> {
        self.connection = Self::connect(socket)?;
        self.set_up(memory, rings)
    }

    fn set_up(&mut self, memory: &Memory, rings: &[Ring]) -> Result<()> {
        let connection = &mut self.connection;
        let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32;
        connection.set_features(features)?;
        let [guest_phys_addr, memory_size, userspace_addr, mmap_offset] = memory.region();
        connection.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr,
            memory_size,
            userspace_addr,
            mmap_offset,
            mmap_handle: memory.file().as_raw_fd(),
        }])?;
        for index in 0..rings.len() {
            connection.set_vring_num(index, RING_SIZE)?;
        }
        if self.inflight.is_none() {
            let wanted = VhostUserInflight::new(0, 0, RINGS.try_into()?, RING_SIZE);
            self.inflight = Some(connection.get_inflight_fd(&wanted)?);
        }
        if let Some((inflight, file)) = &self.inflight {
            connection.set_inflight_fd(inflight, file.as_raw_fd())?;
        }
        for (index, ring) in rings.iter().enumerate() {
            let [desc_table_addr, used_ring_addr, avail_ring_addr] =
                [ring.descriptors, ring.used, ring.available].map(Memory::user_address);
            let config = VringConfigData {
                queue_max_size: RING_SIZE,
                queue_size: RING_SIZE,
                flags: 0,
                desc_table_addr,
                used_ring_addr,
                avail_ring_addr,
                log_addr: None,
            };
            connection.set_vring_addr(index, &config)?;
            // Wherever the daemon was, the index of the available ring.
            connection.set_vring_base(index, memory.load_or_zero(ring.available + 2))?;
            connection.set_vring_call(index, &self.calls[index])?;
            connection.set_vring_kick(index, &self.kicks[index])?;
        }
        for index in 0..rings.len() {
            connection.set_vring_enable(index, true)?;
        }
        Ok(())
    }
}

impl Notifier for Device {
    fn kick(&self, ring: &Ring) -> driver::Result<()> {
        let index = ring.layout().index as usize;
        self.kicks[index].write(1).map_err(|source| Error::System {
            what: "kicking a ring",
            source,
        })
    }

    fn wait(&self, ring: &Ring, memory: &Memory, limit: Duration) -> driver::Result<()> {
        let call = &self.calls[ring.layout().index as usize];
        let deadline = Instant::now() + limit;
        while !ring.ask_for_notice(memory) {
            // The driver looks at the ring again when it is called.
            while call.read().is_err() {
                if Instant::now() >= deadline {
                    let what = "a used chain was awaited";
                    return Err(Error::Late { what, limit });
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

/// A virtual machine with its driver.
fn boot(socket: &Path) -> Result<Driver<Device>> {
    let mut memory = Memory::new(16 << 20)?;
    let rings = (0..RINGS.try_into()?)
        .map(|index| {
            let layout = Layout {
                index,
                size: RING_SIZE,
                indirect: false,
                event_idx: false,
                call: CallKind::Event,
            };
            Ring::new(&mut memory, layout)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let device = Device::start(socket, &memory, &rings)?;
    let mut guest = Driver::over(device, memory, rings);
    guest.init()?;
    Ok(guest)
}

/// Submits requests for a lock that another program holds, which wait until their daemon ends.
fn wait_for_lock(guest: &mut Driver<Device>, file: NodeAndFile) -> Result<Vec<Ticket>> {
    let tickets = (1..=WAITING)
        .map(|owner| guest.submit_setlkw(1, file, owner, WRITE_LOCK))
        .collect::<Result<Vec<_>, _>>()?;
    // The ring has served all that came before.
    guest.getattr(NodeId::ROOT, None)?;
    for ticket in &tickets {
        ensure!(!guest.is_finished(ticket)?, "a request does not wait");
    }
    Ok(tickets)
}

/// Requests that wait at a time.
const WAITING: u64 = 5;

#[test]
fn the_guest_goes_on_when_its_worker_is_killed() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY, "--locks=host"])?;
    let mut guest = boot(fixture.socket())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    let held = File::options()
        .write(true)
        .open(fixture.share().join("file"))?;
    fcntl_lock(&held, FlockOperation::LockExclusive)?;
    let tickets = wait_for_lock(&mut guest, file)?;
    for round in 0..5 {
        let old = kill_worker(&fixture)?;
        guest
            .write(file, 0, b"content")
            .with_context(|| fixture.log())?;
        wait_for_next(&fixture, old)?;
        wait_for_log(&fixture.daemon, &format!("death {}", round + 1))?;
    }
    for ticket in &tickets {
        ensure!(!guest.is_finished(ticket)?, "a request is lost");
    }
    drop(held);
    // All owners are the guest's, and exclude each other.
    let granted = tickets.into_iter().next().context("a ticket")?;
    guest.finish(granted).with_context(|| fixture.log())?;
    let log = fixture.log();
    ensure!(!log.contains("was served before"), "{log}");
    Ok(())
}

#[test]
fn what_a_killed_daemon_left_is_answered_with_an_error_by_the_next() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let options = Options::new(dir.path()).arguments(&["--locks=host"]);
    let mut daemon = Daemon::start(&options)?;
    let socket = daemon.socket().to_owned();
    let mut guest = boot(&socket)?;
    fs::write(dir.path().join("file"), "content")?;
    let held = File::options().write(true).open(dir.path().join("file"))?;
    fcntl_lock(&held, FlockOperation::LockExclusive)?;
    for round in 0..3 {
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
        let file = NodeAndFile {
            node,
            file: guest.open(node, OFlags::RDWR)?,
        };
        let mut tickets = wait_for_lock(&mut guest, file)?;
        if round < 2 {
            daemon.replace(&options)?;
        } else {
            // Only the connection is lost.
            guest.peer.connection = Device::connect(&socket)?;
            wait_for_log(&daemon, "has gone")?;
        }
        // Nobody takes it until the device has reconnected.
        let getattr = Operation::Getattr(GetattrIn::default());
        tickets.push(guest.submit(1, node, getattr, &[], 256)?);
        let Driver {
            peer,
            memory,
            rings,
            ..
        } = &mut guest;
        peer.reconnect(&socket, memory, rings)
            .with_context(|| daemon.log())?;
        for ticket in tickets {
            let answer = guest.finish(ticket);
            let is_failed = match &answer {
                Err(Error::Errno(Errno::IO)) => true,
                // A daemon whose frontend hangs up ends what waits.
                Err(Error::Errno(Errno::INTR)) => round == 2,
                _ => false,
            };
            ensure!(is_failed, "round {round}: {answer:?}: {}", daemon.log());
        }
        wait_for_log(&daemon, "was served before it reconnected")?;
        // Mounting again.
        guest.init()?;
    }
    Ok(())
}

#[test]
fn memory_that_cannot_keep_requests_is_refused() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let inflight = |rings, ring_size| VhostUserInflight::new(1 << 20, 0, rings, ring_size);
    let unsealed = memfd_create("unsealed", MemfdFlags::CLOEXEC)?;
    ftruncate(&unsealed, 1 << 20)?;
    for (rings, ring_size) in [(10, 1), (1, 2048), (u16::MAX, u16::MAX)] {
        let mut connection = Device::connect(fixture.socket())?;
        let got = connection.get_inflight_fd(&inflight(rings, ring_size));
        ensure!(got.is_err(), "{rings} rings of {ring_size}");
        let mut connection = Device::connect(fixture.socket())?;
        let given = inflight(rings, ring_size);
        ensure!(
            connection
                .set_inflight_fd(&given, unsealed.as_raw_fd())
                .is_err()
        );
    }
    let mut connection = Device::connect(fixture.socket())?;
    let given = inflight(1, 64);
    ensure!(
        connection
            .set_inflight_fd(&given, unsealed.as_raw_fd())
            .is_err()
    );
    let mut connection = Device::connect(fixture.socket())?;
    let (given, file) = connection.get_inflight_fd(&inflight(2, 64))?;
    let beyond = VhostUserInflight {
        mmap_offset: given.mmap_size.next_multiple_of(4096),
        ..given
    };
    ensure!(
        connection
            .set_inflight_fd(&beyond, file.as_raw_fd())
            .is_err()
    );
    fixture.survive(&["sealed", "too short", "rings of 65535"])
}
