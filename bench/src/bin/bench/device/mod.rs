//! A virtio-fs device in use: its connection and queues, and how the driver waits for them.

mod chains;
mod session;

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::Dialect;
use gangplank_vhost_user::client::{Backend, Deadlines, Socket};
use gangplank_vhost_user::feature;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::bench_queue::BenchQueue;
use crate::memory::Memory;

use chains::Chain;
pub(crate) use chains::{ANSWER, Answer, RequestKind};

/// Descriptors in each ring. libvirt gives QEMU this number.
const QUEUE_SIZE: u16 = 1024;

/// Memory shared with a daemon, in bytes.
const SHARED: usize = 64 << 20;

/// The high-priority queue. It carries FORGET, which has no reply.
const HIPRIO: usize = 0;

/// Chains for FORGET, and so the limit of those in flight.
const FORGETS: u16 = 512;

/// Limit for a reply.
const LIMIT: Duration = Duration::from_secs(30);

/// Limit of an untimed request, in bytes.
const SIDE_REQUEST: usize = 4096;

/// While polling: checks of the rings between two checks of the clock and the connection.
const LOOKS: u32 = 1024;

/// Values of epoll's user data: a notification, and the end of the connection.
const NOTIFIED: u64 = 0;

const GONE: u64 = 1;

/// How the driver waits for replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// It sleeps until the daemon notifies.
    Asleep,
    /// It polls the rings.
    Busy,
}

/// A connected device with a FUSE session.
pub(crate) struct Device {
    _connection: Backend<Socket>,
    memory: Memory,
    queues: Vec<BenchQueue>,
    epoll: Epoll,
    /// epoll watches this descriptor, so it stays open.
    _hang_up: OwnedFd,
    waiting: Waiting,
    dialect: Dialect,
    unique: u64,
    forgets: Vec<Chain>,
    free_forgets: Vec<u16>,
    side: Chain,
    /// Offset in the memory where a workload's chains begin.
    mark: usize,
    /// The chains of each request queue, by head.
    chains: Vec<Vec<Chain>>,
    /// The bytes of the request that is being encoded.
    scratch: Vec<u8>,
    answer: [u8; ANSWER],
}

impl Device {
    /// Connects to the daemon at `socket`, sets up `queues` request queues, and opens a session.
    pub(crate) fn open(socket: &Path, queues: usize, waiting: Waiting) -> Result<Self> {
        let stream = connect(socket)?;
        let messages = Socket::from_stream(stream, socket, Deadlines::default().answer);
        let hang_up = messages.hang_up()?;
        let mut connection = Backend::negotiate(messages)?;
        let features = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;
        ensure!(
            connection.offered() & features == features,
            "the daemon lacks indirect descriptors or notification by index"
        );
        if let Some(config) = connection.config() {
            ensure!(
                config.num_request_queues() as usize >= queues,
                "the daemon has {} request queues",
                config.num_request_queues()
            );
        }
        let mut memory = Memory::new(SHARED)?;
        let queues = (0..=queues)
            .map(|index| BenchQueue::new(&mut memory, index, QUEUE_SIZE))
            .collect::<Result<Vec<_>>>()?;
        let setups: Vec<_> = queues.iter().map(BenchQueue::setup).collect();
        connection.start(features, &[memory.region()], &setups)?;

        let epoll = Epoll::new().context("making an epoll instance")?;
        for queue in &queues {
            // Edge-triggered, so that no one has to read the eventfd.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let event = EpollEvent::new(events, NOTIFIED);
            epoll.ctl(ControlOperation::Add, queue.call().as_raw_fd(), event)?;
        }
        let event = EpollEvent::new(EventSet::READ_HANG_UP, GONE);
        epoll.ctl(ControlOperation::Add, hang_up.as_raw_fd(), event)?;
        let mut device = Self {
            _connection: connection,
            chains: queues.iter().map(|_| Vec::new()).collect(),
            memory,
            queues,
            epoll,
            _hang_up: hang_up,
            waiting,
            dialect: Dialect::default(),
            unique: 0,
            forgets: Vec::new(),
            free_forgets: Vec::with_capacity(FORGETS.into()),
            side: Chain::default(),
            mark: 0,
            scratch: Vec::with_capacity(SIDE_REQUEST),
            answer: [0; ANSWER],
        };
        device.lay_out_forgets()?;
        device.lay_out_side()?;
        device.mark = device.memory.mark();
        device.init()?;
        Ok(device)
    }

    /// The number of request queues.
    pub(crate) fn queues(&self) -> usize {
        self.queues.len() - 1
    }

    /// Kicks each queue with new chains, unless the daemon needs no kick.
    pub(crate) fn kick(&mut self) -> Result<()> {
        for queue in &mut self.queues {
            queue.kick()?;
        }
        Ok(())
    }

    /// Waits until the daemon may have returned a chain on a request queue.
    pub(crate) fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        if self.waiting == Waiting::Busy {
            loop {
                for _ in 0..LOOKS {
                    if self.requests().any(|queue| queue.has_come()) {
                        return Ok(());
                    }
                    std::hint::spin_loop();
                }
                self.look(Duration::ZERO)?;
                ensure!(Instant::now() < deadline, "no reply within {LIMIT:?}");
            }
        }
        let mut come = false;
        for queue in self.requests() {
            come |= queue.ask_for_notice();
        }
        if come {
            return Ok(());
        }
        self.sleep(deadline)
    }

    fn requests(&self) -> impl Iterator<Item = &BenchQueue> {
        self.queues.iter().skip(1)
    }

    fn sleep(&self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let woken = self.look(left)?;
        ensure!(woken, "no reply within {LIMIT:?}");
        Ok(())
    }

    /// Whether a notification came within `limit`.
    fn look(&self, limit: Duration) -> Result<bool> {
        let mut events = [EpollEvent::default(); 4];
        let milliseconds = i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let count = match self.epoll.wait(milliseconds, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error).context("waiting for a daemon"),
        };
        let gone = events.iter().take(count).any(|event| event.data() == GONE);
        ensure!(!gone, "the daemon closed the connection");
        Ok(count != 0)
    }
}

/// Connects. The socket's file can exist a moment before the daemon listens on it.
pub(crate) fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                ensure!(
                    Instant::now() < deadline,
                    "no daemon listens on the socket within {LIMIT:?}"
                );
                std::thread::sleep(Duration::from_micros(200));
            }
            connected => return connected.context("connecting to a daemon"),
        }
    }
}
