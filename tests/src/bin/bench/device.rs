//! A virtio-fs device in use: queues, chains laid out for a workload's requests, and a FUSE session on them.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gangplank_fuse::reply::{Reply, decode_entry, decode_init, decode_open};
use gangplank_fuse::{
    Dialect, ForgetIn, InitFlags, InitIn, KERNEL_VERSION, NodeId, OpenIn, Operation, OutHeader,
    Request, RequestHeader, Unique,
};
use gangplank_vhost_user::client::{Backend, Deadlines, Socket};
use gangplank_vhost_user::feature;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::FromBytes;

use crate::lane::{DESCRIPTOR_LEN, Lane, Segment};
use crate::memory::{Memory, PAGE};

/// Descriptors in each ring: what libvirt gives QEMU.
const QUEUE_SIZE: u16 = 1024;

/// Memory shared with a daemon, in bytes.
const SHARED: usize = 64 << 20;

/// The queue for what is not answered.
const HIPRIO: usize = 0;

/// Chains for FORGET.
const FORGETS: u16 = 512;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Most bytes of an answer beside file data.
pub(crate) const ANSWER: usize = 256;

/// Room for a request that is made while nothing is timed, in bytes.
const SIDE_REQUEST: usize = 4096;

/// How many looks at the rings go between two at the clock and the connection, when waiting busily.
const LOOKS: u32 = 1024;

/// What an event is of.
const NOTIFIED: u64 = 0;
const GONE: u64 = 1;

/// How the driver waits for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Asleep, until the daemon notifies.
    Asleep,
    /// Looking all the time.
    Busy,
}

/// What a request of one kind looks like in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Station<'a> {
    /// A request of that kind. All of the kind are of the same length.
    pub(crate) sample: Operation<'a>,
    /// File data behind the request, in bytes.
    pub(crate) sent: usize,
    /// Structures behind the answer's header, in bytes.
    pub(crate) answer: usize,
    /// Room for file data behind them, in bytes.
    pub(crate) received: usize,
}

/// Where one chain of a station has its parts.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    request: usize,
    request_len: usize,
    answer: usize,
    answer_len: usize,
    data: usize,
    received: usize,
}

/// What a request was answered with.
pub(crate) struct Answer<'a> {
    /// Zero, or the errno.
    pub(crate) errno: i32,
    /// The structures behind the header.
    pub(crate) payload: &'a [u8],
    /// Bytes of file data.
    pub(crate) received: usize,
}

/// A connected device with a FUSE session.
pub(crate) struct Device {
    _connection: Backend<Socket>,
    memory: Memory,
    lanes: Vec<Lane>,
    epoll: Epoll,
    /// Open as long as it is waited on.
    _hang_up: OwnedFd,
    waiting: Waiting,
    dialect: Dialect,
    unique: u64,
    forgets: Vec<Chain>,
    free_forgets: Vec<u16>,
    side: Chain,
    /// Where a workload's chains begin.
    mark: usize,
    /// The chains of each request queue, by head.
    chains: Vec<Vec<Chain>>,
    /// A request's bytes while they are put together.
    scratch: Vec<u8>,
    answer: [u8; ANSWER],
}

impl Device {
    /// Connects to the daemon at `socket`, with as many request queues, and opens a session.
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
        let lanes = (0..=queues)
            .map(|index| Lane::new(&mut memory, index, QUEUE_SIZE))
            .collect::<Result<Vec<_>>>()?;
        let setups: Vec<_> = lanes.iter().map(Lane::setup).collect();
        connection.start(features, &[memory.region()], &setups)?;

        let epoll = Epoll::new().context("making what a driver waits on")?;
        for lane in &lanes {
            // By edges, so that what was notified needs no reading.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let event = EpollEvent::new(events, NOTIFIED);
            epoll.ctl(ControlOperation::Add, lane.call().as_raw_fd(), event)?;
        }
        let event = EpollEvent::new(EventSet::READ_HANG_UP, GONE);
        epoll.ctl(ControlOperation::Add, hang_up.as_raw_fd(), event)?;
        let mut device = Self {
            _connection: connection,
            chains: lanes.iter().map(|_| Vec::new()).collect(),
            memory,
            lanes,
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

    fn lay_out_forgets(&mut self) -> Result<()> {
        let len = self.encode(NodeId::ROOT, Operation::Forget(ForgetIn { nlookup: 1 }))?;
        for head in 0..FORGETS {
            let request = self.memory.take(len, 64)?;
            let table = self.memory.take(DESCRIPTOR_LEN, DESCRIPTOR_LEN)?;
            let segment = Segment {
                place: request,
                len,
                writable: false,
            };
            let lane = self.lanes.get(HIPRIO).context("no high-priority queue")?;
            lane.put_chain(&self.memory, head, table, &[segment]);
            self.forgets.push(Chain {
                request,
                request_len: len,
                ..Chain::default()
            });
            self.free_forgets.push(head);
        }
        Ok(())
    }

    fn lay_out_side(&mut self) -> Result<()> {
        self.side = Chain {
            request: self.memory.take(SIDE_REQUEST, 64)?,
            request_len: SIDE_REQUEST,
            answer: self.memory.take(PAGE, 64)?,
            answer_len: PAGE,
            data: self.memory.take(PAGE, 64)?,
            received: 0,
        };
        Ok(())
    }

    /// What a guest with Linux 6.12 offers, without what would have it ask less.
    fn init(&mut self) -> Result<()> {
        let mut asked = InitIn {
            major: KERNEL_VERSION,
            minor: 41,
            max_readahead: 128 << 10,
            ..InitIn::default()
        };
        asked.set_features(
            InitFlags::ASYNC_READ
                | InitFlags::POSIX_LOCKS
                | InitFlags::ATOMIC_O_TRUNC
                | InitFlags::EXPORT_SUPPORT
                | InitFlags::BIG_WRITES
                | InitFlags::DONT_MASK
                | InitFlags::FLOCK_LOCKS
                | InitFlags::HAS_IOCTL_DIR
                | InitFlags::AUTO_INVAL_DATA
                | InitFlags::DO_READDIRPLUS
                | InitFlags::READDIRPLUS_AUTO
                | InitFlags::ASYNC_DIO
                | InitFlags::PARALLEL_DIROPS
                | InitFlags::HANDLE_KILLPRIV
                | InitFlags::ABORT_ERROR
                | InitFlags::MAX_PAGES
                | InitFlags::CACHE_SYMLINKS
                | InitFlags::EXPLICIT_INVAL_DATA
                | InitFlags::SUBMOUNTS
                | InitFlags::HANDLE_KILLPRIV_V2
                | InitFlags::SETXATTR_EXT
                | InitFlags::INIT_EXT
                | InitFlags::CREATE_SUPP_GROUP,
        );
        let answer = self.call(NodeId::default(), Operation::Init(asked))?;
        let init = decode_init(&answer)?;
        self.dialect = init.dialect(&asked);
        Ok(())
    }

    /// Encodes a request into `scratch`; its length.
    fn encode(&mut self, node: NodeId, operation: Operation<'_>) -> Result<usize> {
        self.unique += 2;
        let header = RequestHeader {
            unique: Unique::new(self.unique),
            node,
            pid: 1,
            ..RequestHeader::default()
        };
        self.scratch.clear();
        Request::from(operation).encode(&header, self.dialect, &mut self.scratch)?;
        Ok(self.scratch.len())
    }

    /// How many request queues there are.
    pub(crate) fn queues(&self) -> usize {
        self.lanes.len() - 1
    }

    /// Lays out chains for a workload: `flows` of each station on each request queue. A station's chain of a flow has the head
    /// `station * flows + flow`. Nothing may be in flight.
    pub(crate) fn lay_out(&mut self, stations: &[Station<'_>], flows: usize) -> Result<()> {
        self.memory.give_back_to(self.mark);
        for chains in &mut self.chains {
            chains.clear();
        }
        for lane in 1..self.lanes.len() {
            let mut head = 0;
            for station in stations {
                for _ in 0..flows {
                    let chain = self.lay_out_chain(lane, head, station)?;
                    if let Some(chains) = self.chains.get_mut(lane) {
                        chains.push(chain);
                    }
                    head += 1;
                }
            }
        }
        Ok(())
    }

    /// As Linux does it: header, arguments and pages each in a descriptor of their own, on both sides.
    fn lay_out_chain(&mut self, lane: usize, head: u16, station: &Station<'_>) -> Result<Chain> {
        let request_len = self.encode(NodeId::ROOT, station.sample)?;
        let answer_len = size_of::<OutHeader>() + station.answer;
        ensure!(answer_len <= ANSWER, "an answer of {answer_len} bytes");
        let chain = Chain {
            request: self.memory.take(request_len, 64)?,
            request_len,
            answer: self.memory.take(answer_len, 64)?,
            answer_len,
            data: self.memory.take(station.sent + station.received, PAGE)?,
            received: station.received,
        };
        let mut segments = Vec::new();
        let mut push = |place, len, writable| {
            if len != 0 {
                segments.push(Segment {
                    place,
                    len,
                    writable,
                });
            }
        };
        let header = size_of::<gangplank_fuse::InHeader>();
        push(chain.request, header, false);
        push(chain.request + header, request_len - header, false);
        for (place, len) in scattered(chain.data, station.sent) {
            // Pages that are there, as a guest's are.
            self.memory.write(place, &vec![0x5a; len]);
            push(place, len, false);
        }
        push(chain.answer, size_of::<OutHeader>(), true);
        push(chain.answer + size_of::<OutHeader>(), station.answer, true);
        for (place, len) in scattered(chain.data, station.received) {
            self.memory.write(place, &vec![0; len]);
            push(place, len, true);
        }
        let table = self
            .memory
            .take(segments.len() * DESCRIPTOR_LEN, DESCRIPTOR_LEN)?;
        let lane = self.lanes.get(lane).context("no such queue")?;
        lane.put_chain(&self.memory, head, table, &segments);
        Ok(chain)
    }

    /// Makes a request available on request queue `lane`, without telling the daemon yet.
    pub(crate) fn ask(
        &mut self,
        lane: usize,
        head: u16,
        node: NodeId,
        operation: Operation<'_>,
    ) -> Result<()> {
        let len = self.encode(node, operation)?;
        let chains = self.chains.get(lane).context("no such queue")?;
        let chain = chains.get(usize::from(head)).context("no such chain")?;
        ensure!(
            len == chain.request_len,
            "a request of {len} bytes where {} were expected",
            chain.request_len
        );
        self.memory.write(chain.request, &self.scratch);
        let lane = self.lanes.get_mut(lane).context("no such queue")?;
        lane.publish(&self.memory, head);
        Ok(())
    }

    /// Gives back references to a node, without telling the daemon yet.
    pub(crate) fn forget(&mut self, node: NodeId, nlookup: u64) -> Result<()> {
        self.reap_forgets()?;
        let deadline = Instant::now() + LIMIT;
        while self.free_forgets.is_empty() {
            self.kick()?;
            let lane = self.lanes.get(HIPRIO).context("no high-priority queue")?;
            if !lane.ask_for_notice(&self.memory) {
                self.sleep(deadline)?;
            }
            self.reap_forgets()?;
        }
        self.encode(node, Operation::Forget(ForgetIn { nlookup }))?;
        let head = self.free_forgets.pop().context("no free chain")?;
        let chain = self.forgets.get(usize::from(head));
        let chain = chain.context("a chain for FORGET that there is not")?;
        self.memory.write(chain.request, &self.scratch);
        let lane = self.lanes.get_mut(HIPRIO).context("no such queue")?;
        lane.publish(&self.memory, head);
        Ok(())
    }

    fn reap_forgets(&mut self) -> Result<()> {
        let lane = self.lanes.get_mut(HIPRIO).context("no such queue")?;
        while let Some((head, _)) = lane.take(&self.memory)? {
            self.free_forgets.push(head);
        }
        Ok(())
    }

    /// Waits until the daemon has taken every FORGET.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.kick()?;
        let deadline = Instant::now() + LIMIT;
        loop {
            self.reap_forgets()?;
            let lane = self.lanes.get(HIPRIO).context("no such queue")?;
            if lane.in_flight() == 0 {
                return Ok(());
            }
            if !lane.ask_for_notice(&self.memory) {
                self.sleep(deadline)?;
            }
        }
    }

    /// Tells the daemon of everything made available, queue by queue, where it wants to be told.
    pub(crate) fn kick(&mut self) -> Result<()> {
        for lane in &mut self.lanes {
            lane.kick(&self.memory)?;
        }
        Ok(())
    }

    /// The next request that came back on queue `lane`: its head.
    pub(crate) fn take(&mut self, lane: usize) -> Result<Option<(u16, u32)>> {
        let lane = self.lanes.get_mut(lane).context("no such queue")?;
        lane.take(&self.memory)
    }

    /// The answer in a chain that came back, of which `written` bytes were written.
    pub(crate) fn answer(&mut self, lane: usize, head: u16, written: u32) -> Result<Answer<'_>> {
        let chains = self.chains.get(lane).context("no such queue")?;
        let chain = chains.get(usize::from(head)).context("no such chain")?;
        let written = written as usize;
        ensure!(
            written <= chain.answer_len + chain.received,
            "{written} bytes are said to be written where there is no room for them"
        );
        let len = written.min(chain.answer_len);
        let bytes = self.answer.get_mut(..len).context("a long answer")?;
        self.memory.read(chain.answer, bytes);
        let (header, payload) = OutHeader::ref_from_prefix(bytes)
            .map_err(|_| anyhow!("an answer of {written} bytes has no header"))?;
        ensure!(
            header.len as usize == written,
            "an answer says it has {} bytes, and {written} were written",
            header.len
        );
        Ok(Answer {
            errno: header.error.saturating_neg(),
            payload,
            received: written - len,
        })
    }

    /// Copies the file data of a chain that came back.
    pub(crate) fn data(&self, lane: usize, head: u16, received: usize, into: &mut Vec<u8>) {
        into.clear();
        let chain = self
            .chains
            .get(lane)
            .and_then(|chains| chains.get(usize::from(head)));
        let Some(chain) = chain else { return };
        for (place, len) in scattered(chain.data, chain.received) {
            let wanted = len.min(received.saturating_sub(into.len()));
            let start = into.len();
            into.resize(start + wanted, 0);
            if let Some(rest) = into.get_mut(start..) {
                self.memory.read(place, rest);
            }
        }
    }

    /// Waits until something may have come back on a request queue.
    pub(crate) fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        if self.waiting == Waiting::Busy {
            loop {
                for _ in 0..LOOKS {
                    if self.requests().any(|lane| lane.has_come(&self.memory)) {
                        return Ok(());
                    }
                    std::hint::spin_loop();
                }
                self.look(Duration::ZERO)?;
                ensure!(Instant::now() < deadline, "no answer within {LIMIT:?}");
            }
        }
        let mut come = false;
        for lane in self.requests() {
            come |= lane.ask_for_notice(&self.memory);
        }
        if come {
            return Ok(());
        }
        self.sleep(deadline)
    }

    fn requests(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().skip(1)
    }

    fn sleep(&self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let woken = self.look(left)?;
        ensure!(woken, "no answer within {LIMIT:?}");
        Ok(())
    }

    /// Whether something was notified within `limit`.
    fn look(&self, limit: Duration) -> Result<bool> {
        let mut events = [EpollEvent::default(); 4];
        let milliseconds = i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let count = match self.epoll.wait(milliseconds, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error).context("waiting for a daemon"),
        };
        let gone = events.iter().take(count).any(|event| event.data() == GONE);
        ensure!(!gone, "the daemon has gone");
        Ok(count != 0)
    }

    /// Makes a request while nothing is timed or in flight, and returns the answer's structures.
    pub(crate) fn call(&mut self, node: NodeId, operation: Operation<'_>) -> Result<Vec<u8>> {
        const HEAD: u16 = QUEUE_SIZE - 1;
        let opcode = operation.opcode();
        let len = self.encode(node, operation)?;
        ensure!(len <= SIDE_REQUEST, "a request of {len} bytes");
        let chain = self.side;
        self.memory.write(chain.request, &self.scratch);
        let segments = [(chain.request, len, false), (chain.answer, PAGE, true)];
        let segments = segments.map(|(place, len, writable)| Segment {
            place,
            len,
            writable,
        });
        let lane = self.lanes.get_mut(1).context("no request queue")?;
        lane.put_chain(&self.memory, HEAD, chain.data, &segments);
        lane.publish(&self.memory, HEAD);
        lane.kick(&self.memory)?;
        let written = loop {
            if let Some((HEAD, written)) = self.take(1)? {
                break written as usize;
            }
            self.wait()?;
        };
        let mut bytes = vec![0; written.min(PAGE)];
        self.memory.read(chain.answer, &mut bytes);
        match Reply::decode(&bytes)?.result {
            Ok(payload) => Ok(payload.to_vec()),
            Err(errno) => bail!("{opcode:?} is answered with errno {errno}"),
        }
    }

    /// Looks a name up.
    pub(crate) fn lookup(&mut self, parent: NodeId, name: &std::ffi::CStr) -> Result<NodeId> {
        let answer = self
            .call(parent, Operation::Lookup { name })
            .with_context(|| format!("looking {name:?} up"))?;
        Ok(NodeId::new(decode_entry(&answer)?.nodeid))
    }

    /// Opens a file, or a directory with `O_DIRECTORY`; its handle.
    pub(crate) fn open_file(&mut self, node: NodeId, flags: u32) -> Result<u64> {
        let directory = rustix::fs::OFlags::DIRECTORY.bits();
        let args = OpenIn {
            flags,
            ..OpenIn::default()
        };
        let operation = if flags & directory != 0 {
            Operation::Opendir(args)
        } else {
            Operation::Open(args)
        };
        Ok(decode_open(&self.call(node, operation)?)?.fh)
    }
}

/// Connects; a socket may be there a moment before anybody listens on it.
fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                ensure!(Instant::now() < deadline, "nobody listens within {LIMIT:?}");
                std::thread::sleep(Duration::from_micros(200));
            }
            connected => return connected.context("connecting to a daemon"),
        }
    }
}

/// The pages of `len` bytes at `place`, in an order in which none lies behind its neighbour, as in a guest that has run for a
/// while.
fn scattered(place: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let pages = len.div_ceil(PAGE);
    let stride = (pages / 2) | 1;
    (0..pages).map(move |page| {
        let at = page * stride % pages;
        (place + at * PAGE, PAGE.min(len - page * PAGE))
    })
}
