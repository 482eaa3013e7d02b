//! A virtio-fs device in use: its connection, its rings, and the sessions on it.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gangplank_vhost_user::client as vhost_user;
use gangplank_vhost_user::client::{FsConfig, RingSetup, Socket};
use gangplank_vhost_user::feature;
use parking_lot::Mutex;

use super::core::{Core, Queue};
use super::error::{Error, Fault, Result};
use super::fuse_session::{FuseSession, InitOptions};
use super::memory::Memory;
use super::options::Options;
use super::ring::Ring;
use super::slots::Slots;
use super::wakeup::Wakeup;

/// Entries of the largest ring (virtio 1.2, 2.7).
const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// Most request queues: a ring's number has 8 bits (vhost-user, SET_VRING_KICK).
const MAX_REQUEST_QUEUES: usize = 255;

/// Bytes of shared memory for each descriptor, besides the buffers: its slot, and its part of the
/// ring.
const PER_DESCRIPTOR: u64 = 8192 + 64;

/// A virtio-fs device in use. Cheap to clone. The connection is closed when the last clone and the
/// last session are dropped.
#[derive(Debug, Clone)]
pub struct Driver {
    pub(super) core: Arc<Core>,
    limit: Duration,
}

impl Driver {
    /// Connects to the daemon at `socket` and starts its rings.
    ///
    /// # Errors
    /// [`Error::Connection`] if the daemon does not do its part, [`Error::NoQueue`] if it has fewer
    /// queues than wanted.
    pub fn connect(socket: &Path, options: &Options) -> Result<Self> {
        Self::start(Socket::connect(socket, options.deadlines)?, options)
    }

    /// As [`Driver::connect`], on a connection that exists already. `daemon` names the daemon in
    /// messages.
    ///
    /// # Errors
    /// As [`Driver::connect`].
    pub fn on_stream(stream: UnixStream, daemon: &Path, options: &Options) -> Result<Self> {
        let limit = options.deadlines.answer;
        Self::start(Socket::from_stream(stream, daemon, limit), options)
    }

    fn start(socket: Socket, options: &Options) -> Result<Self> {
        let size = options.queue_size;
        if !size.is_power_of_two() || !(4..=MAX_QUEUE_SIZE).contains(&size) {
            let what = "a ring has a power of two of descriptors, 4 to 32768";
            return Err(vhost_user::Error::Misuse(what).into());
        }
        let hang_up = Arc::new(socket.hang_up()?);
        let daemon = vhost_user::Messages::daemon(&socket).to_owned();
        let mut connection = vhost_user::Backend::negotiate(socket)?;
        let count = request_queues(&connection, options)? + 1;
        let mut wanted = feature::VERSION_1;
        if options.indirect {
            wanted |= feature::INDIRECT_DESC;
        }
        if options.event_idx {
            wanted |= feature::EVENT_IDX;
        }
        let features = wanted & connection.offered();
        let indirect = features & feature::INDIRECT_DESC != 0;
        let event_idx = features & feature::EVENT_IDX != 0;

        let rings = count as u64 * u64::from(size) * PER_DESCRIPTOR;
        let memory = Arc::new(Memory::new(options.buffers.saturating_add(rings))?);
        let queues = (0..count)
            .map(|index| {
                let ring = Ring::new(&memory, index, size, event_idx)?;
                let slots = Slots::new(&memory, index, ring, indirect)?;
                Queue::new(slots, Wakeup::new(&hang_up)?, options.waiting)
            })
            .collect::<Result<Vec<_>>>()?;
        let setups: Vec<_> = queues.iter().enumerate().map(ring_setup).collect();
        connection.start(features, &[memory.region()], &setups)?;
        let core = Core {
            connection: Mutex::new(connection),
            daemon,
            memory,
            queues,
            waiting: options.waiting,
            broken: OnceLock::new(),
            last_unique: AtomicU64::new(0),
        };
        Ok(Self {
            core: Arc::new(core),
            limit: options.limit,
        })
    }

    /// Opens a FUSE session. A device has one session at a time: the daemon ends the previous one.
    ///
    /// # Errors
    /// The daemon's errno, or the reason why there is no reply.
    pub fn session(&self, init: &InitOptions) -> Result<FuseSession> {
        FuseSession::begin(Arc::clone(&self.core), init, self.limit)
    }

    /// The device's configuration; `None` if the daemon has none.
    #[must_use]
    pub fn config(&self) -> Option<FsConfig> {
        self.core.connection.lock().config().copied()
    }

    /// Request queues in use.
    #[must_use]
    pub fn request_queues(&self) -> usize {
        self.core.queues.len().saturating_sub(1)
    }

    /// Stops the rings in order: the daemon finishes the requests it has taken before it answers.
    /// Calls fail from now on.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn stop(&self) -> Result<()> {
        let stopped = self.core.connection.lock().stop();
        self.core.declare_broken(Fault::Stopped);
        stopped?;
        Ok(())
    }
}

fn ring_setup((index, queue): (usize, &Queue)) -> RingSetup<'_> {
    let (addresses, size) = queue.layout();
    RingSetup {
        index,
        size,
        addresses,
        base: 0,
        call: queue.call(),
        kick: queue.kick(),
        error: None,
    }
}

/// The number of request queues to use. A device without the MQ feature and configuration has one.
fn request_queues(connection: &vhost_user::Backend<Socket>, options: &Options) -> Result<usize> {
    let by_config = connection.config().map(FsConfig::num_request_queues);
    let by_config = by_config.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    let by_rings = connection.max_rings();
    let by_rings = by_rings.map(|count| usize::try_from(count.saturating_sub(1)).unwrap_or(1));
    let available = match (by_config, by_rings) {
        (Some(config), Some(rings)) => config.min(rings),
        (Some(count), None) | (None, Some(count)) => count,
        (None, None) => 1,
    }
    .min(MAX_REQUEST_QUEUES);
    let wanted = options.request_queues.unwrap_or(available).max(1);
    if wanted > available {
        return Err(Error::NoQueue { wanted, available });
    }
    Ok(wanted)
}
