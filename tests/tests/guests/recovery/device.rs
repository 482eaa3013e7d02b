//! The messages of Cloud Hypervisor's virtio-fs device, sent by the crate that it uses, when it
//! starts and when it has lost its connection.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::driver::memory::Memory;
use gangplank_tests::driver::ring::{CallKind, Layout, Ring};
use gangplank_tests::driver::{self, Driver, Error, Notifier};
use rustix::event::EventfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Rings of the device, the high-priority one included.
const RINGS: usize = 2;

/// Descriptors of each ring.
const RING_SIZE: u16 = 64;

/// The memory for requests in flight.
type Inflight = (VhostUserInflight, File);

/// The device of a virtual machine, and what its frontend keeps over connections.
pub(super) struct Device {
    connection: Option<Frontend>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    /// The memory for requests in flight.
    pub(super) inflight: Option<Inflight>,
}

impl Device {
    /// Connects and negotiates.
    pub(super) fn connect(socket: &Path) -> Result<Frontend> {
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
    fn start(
        socket: &Path,
        memory: &Memory,
        rings: &[Ring],
        inflight: Option<Inflight>,
    ) -> Result<Self> {
        let connection = Self::connect(socket)?;
        // Daemons that other tests start must not inherit them.
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let flags = flags.bits().cast_signed();
        let events = || {
            (0..RINGS)
                .map(|_| EventFd::new(flags))
                .collect::<Result<Vec<_>, _>>()
        };
        let mut device = Self {
            connection: Some(connection),
            kicks: events()?,
            calls: events()?,
            inflight,
        };
        device.set_up(memory, rings)?;
        Ok(device)
    }

    /// Connects again, and sets the device up as it was. The connection before ends meanwhile, if
    /// it has not ended.
    pub(super) fn reconnect(
        &mut self,
        socket: &Path,
        memory: &Memory,
        rings: &[Ring],
    ) -> Result<()> {
        let connection = Self::connect(socket)?;
        self.resume(connection, memory, rings)
    }

    /// The same on a connection that was made before.
    pub(super) fn resume(
        &mut self,
        connection: Frontend,
        memory: &Memory,
        rings: &[Ring],
    ) -> Result<()> {
        self.connection = Some(connection);
        self.set_up(memory, rings)
    }

    /// The connection, which goes on until it is dropped.
    pub(super) fn take_connection(&mut self) -> Option<Frontend> {
        self.connection.take()
    }

    /// Ends the connection.
    pub(super) fn hang_up(&mut self) {
        self.connection = None;
    }

    fn set_up(&mut self, memory: &Memory, rings: &[Ring]) -> Result<()> {
        let connection = self.connection.as_mut().context("a connection")?;
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
            let (inflight, file) = connection.get_inflight_fd(&wanted)?;
            fcntl_setfd(&file, FdFlags::CLOEXEC)?;
            self.inflight = Some((inflight, file));
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
pub(super) fn boot(socket: &Path) -> Result<Driver<Device>> {
    boot_with(socket, None)
}

/// The same with a memory for requests in flight that an earlier one has had.
pub(super) fn boot_with(socket: &Path, inflight: Option<Inflight>) -> Result<Driver<Device>> {
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
    let device = Device::start(socket, &memory, &rings, inflight)?;
    let mut guest = Driver::over(device, memory, rings);
    guest.init()?;
    Ok(guest)
}
