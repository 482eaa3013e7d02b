//! User Mode Linux's messages in order (`arch/um/drivers/virtio_uml.c`), without User Mode Linux.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::reply::Reply;
use gangplank_fuse::{GetattrIn, InitIn, NodeId, Operation, Request, RequestHeader, Unique, reply};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::memory::{GUEST_BASE, Memory};
use gangplank_tests::driver::ring::{CallKind, Layout, Ring, Segment};
use gangplank_tests::driver::vhost_user::{Peer, message, ring_addresses, ring_state, words};

/// The protocol features that the driver supports: REPLY_ACK, BACKEND_REQ, CONFIG,
/// INBAND_NOTIFICATIONS.
const KNOWN: u64 = 1 << 3 | 1 << 5 | 1 << 9 | 1 << 14;

/// VERSION_1, INDIRECT_DESC, EVENT_IDX and the protocol features' bit.
const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 29 | 1 << 30;

const RINGS: u32 = 2;

/// Offset of the region in the file of User Mode Linux's memory, behind the kernel image.
const BEHIND_KERNEL: u64 = 1 << 20;

/// The kernel's driver.
struct Uml {
    peer: Peer,
    memory: Memory,
    rings: Vec<Ring>,
    unique: u64,
    /// The driver's end of the channel for the daemon's requests. It closes when the daemon ends.
    requests: UnixStream,
}

impl Uml {
    /// `vhost_user_init`: up to SET_BACKEND_REQ_FD.
    fn probe(fixture: &Fixture) -> Result<Self> {
        let mut peer = Peer::connect(fixture.socket())?;
        peer.tell(message::SET_OWNER, &[], &[])?;
        let features = peer.ask_u64(message::GET_FEATURES)?;
        ensure!(features & FEATURES == FEATURES, "features {features:#x}");
        let protocol = peer.ask_u64(message::GET_PROTOCOL_FEATURES)? & KNOWN;
        ensure!(protocol & 1 << 14 == 0, "in-band notifications are offered");
        peer.tell(message::SET_PROTOCOL_FEATURES, &words(&[protocol]), &[])?;
        peer.set_need_reply();
        // `os_pipe`, which is a pair of sockets.
        let (requests, far) = UnixStream::pair()?;
        peer.tell(message::SET_BACKEND_REQ_FD, &[], &[far.as_fd()])?;
        Ok(Self {
            peer,
            requests,
            memory: Memory::new(16 << 20)?,
            rings: Vec::new(),
            unique: 0,
        })
    }

    /// `vu_get`: from the start each time, one byte more for the tag, then up to the number of
    /// queues.
    fn read_config(&self) -> Result<(String, u32)> {
        let mut tag = Vec::new();
        for len in 1..=36 {
            let config = self.config(len)?;
            tag.push(*config.last().context("a byte")?);
        }
        let queues = self.config(40)?;
        let count = queues.last_chunk().context("four bytes")?;
        let tag = tag.into_iter().take_while(|byte| *byte != 0).collect();
        Ok((String::from_utf8(tag)?, u32::from_le_bytes(*count)))
    }

    fn config(&self, len: u32) -> Result<Vec<u8>> {
        let mut payload = [0, len, 0].map(u32::to_le_bytes).concat();
        payload.resize(12 + usize::try_from(len)?, 0);
        let answer = self.peer.ask(message::GET_CONFIG, &payload)?;
        ensure!(
            answer.len() == payload.len(),
            "{len} bytes asked for, {} come",
            answer.len()
        );
        Ok(answer.get(12..).unwrap_or_default().to_vec())
    }

    /// `vu_find_vqs`: the memory table with its second slot zero, then ring by ring, then the
    /// kicks.
    fn set_up(&mut self, size: u16) -> Result<()> {
        self.peer
            .tell(message::SET_FEATURES, &words(&[FEATURES]), &[])?;
        self.memory = Memory::new(16 << 20)?;
        let len = self.memory.len() - BEHIND_KERNEL;
        let start = GUEST_BASE + BEHIND_KERNEL;
        // One region counted, two slots sent; the frontend's addresses are the guest's.
        let table = words(&[1, start, len, start, BEHIND_KERNEL, 0, 0, 0, 0]);
        ensure!(table.len() == 72);
        // The bytes before the region belong to the kernel's image.
        self.memory.allocate(usize::try_from(BEHIND_KERNEL)?)?;
        self.peer
            .tell(message::SET_MEM_TABLE, &table, &[self.memory.file()])?;
        self.rings = (0..RINGS)
            .map(|index| {
                let layout = Layout {
                    index,
                    size,
                    indirect: true,
                    event_idx: true,
                    call: CallKind::Socket,
                };
                Ok(Ring::new(&mut self.memory, layout)?)
            })
            .collect::<Result<_>>()?;
        for ring in &self.rings {
            let index = ring.layout().index;
            let number = words(&[u64::from(index)]);
            self.peer
                .tell(message::SET_VRING_CALL, &number, &[ring.call_descriptor()])?;
            self.peer
                .tell(message::SET_VRING_NUM, &ring_state(index, size.into()), &[])?;
            self.peer
                .tell(message::SET_VRING_BASE, &ring_state(index, 0), &[])?;
            let addresses =
                ring_addresses(index, ring.descriptors, ring.used, ring.available, u64::MAX);
            self.peer.tell(message::SET_VRING_ADDR, &addresses, &[])?;
        }
        for ring in &self.rings {
            let index = ring.layout().index;
            let number = words(&[u64::from(index)]);
            self.peer
                .tell(message::SET_VRING_KICK, &number, &[ring.kick_descriptor()])?;
            self.peer
                .tell(message::SET_VRING_ENABLE, &ring_state(index, 1), &[])?;
        }
        Ok(())
    }

    /// `vu_del_vqs`, without a reset.
    fn remove(&mut self) -> Result<()> {
        for index in (0..RINGS).rev() {
            self.peer
                .tell(message::SET_VRING_ENABLE, &ring_state(index, 0), &[])?;
        }
        self.peer.ask_u64(message::GET_FEATURES)?;
        self.rings.clear();
        Ok(())
    }

    fn call(&mut self, node: NodeId, operation: Operation<'_>) -> Result<Vec<u8>> {
        let (unique, room) = self.send(node, operation)?;
        let ring = self.rings.get_mut(1).context("a request ring")?;
        ring.wait(&self.memory, gangplank_tests::driver::REPLY_LIMIT)?;
        let (_, len) = ring.take_used(&mut self.memory)?.context("a used chain")?;
        let bytes = self.memory.read(room, usize::try_from(len)?);
        let reply = Reply::decode(&bytes)?;
        ensure!(reply.unique == unique);
        reply
            .result
            .map(<[u8]>::to_vec)
            .map_err(|errno| anyhow::anyhow!("errno {errno}"))
    }

    /// Sends a request. Returns its number, and where its reply will be.
    fn send(&mut self, node: NodeId, operation: Operation<'_>) -> Result<(Unique, u64)> {
        self.unique += 2;
        let header = RequestHeader {
            unique: Unique::new(self.unique),
            node,
            ..RequestHeader::default()
        };
        let mut request = Vec::new();
        Request::from(operation).encode(&header, Default::default(), &mut request)?;
        let at = self.memory.allocate(request.len())?;
        self.memory.write(at, &request);
        let room = self.memory.allocate(512)?;
        let chain = [
            Segment {
                address: at,
                len: u32::try_from(request.len())?,
                writable: false,
            },
            Segment {
                address: room,
                len: 512,
                writable: true,
            },
        ];
        let ring = self.rings.get_mut(1).context("a request ring")?;
        ring.publish_chain(&mut self.memory, &chain)?;
        ring.kick(&self.memory)?;
        Ok((header.unique, room))
    }

    /// Sends a request and does not take its reply, as if the kernel's idle loop had lost the
    /// signal, until the daemon has signalled again, and for `pause`. Returns how often the daemon
    /// has signalled.
    fn signals_for_untaken_reply(&mut self, pause: Duration) -> Result<usize> {
        let ring = self.rings.get(1).context("a request ring")?;
        ring.drain_call();
        ensure!(!ring.ask_for_notice(&self.memory), "a reply too many");
        let before = ring.used_index(&self.memory);
        self.send(NodeId::ROOT, Operation::Getattr(GetattrIn::default()))?;
        let ring = self.rings.get_mut(1).context("a request ring")?;
        let start = Instant::now();
        while ring.used_index(&self.memory) == before {
            ensure!(
                start.elapsed() < gangplank_tests::driver::REPLY_LIMIT,
                "no reply"
            );
            std::thread::yield_now();
        }
        let mut signalled = 0;
        while signalled <= size_of::<u64>() {
            ensure!(
                start.elapsed() < gangplank_tests::driver::REPLY_LIMIT,
                "{signalled} bytes of signals"
            );
            std::thread::sleep(Duration::from_millis(1));
            signalled += ring.drain_call();
        }
        std::thread::sleep(pause);
        signalled += ring.drain_call();
        ring.take_used(&mut self.memory)?.context("a used chain")?;
        Ok(signalled / size_of::<u64>())
    }

    /// Mounts and reads the root's attributes.
    fn mount(&mut self) -> Result<()> {
        // Debian's kernel 6.1: FUSE 7.38.
        let init = InitIn {
            major: 7,
            minor: 38,
            max_readahead: 131_072,
            flags: 0x73ff_fffb,
            ..InitIn::default()
        };
        let answer = reply::decode_init(&self.call(NodeId::default(), Operation::Init(init))?)?;
        ensure!((answer.major, answer.minor) == (7, 38), "{answer:?}");
        for _ in 0..100 {
            let attr = self.call(NodeId::ROOT, Operation::Getattr(GetattrIn::default()))?;
            reply::decode_attr(&attr)?;
        }
        Ok(())
    }
}

#[test]
fn the_whole_dialogue_and_a_probe_again_without_a_reset() -> Result<()> {
    let fixture = Fixture::new(&["--num-request-queues=1"])?;
    let mut uml = Uml::probe(&fixture)?;
    let (tag, queues) = uml.read_config()?;
    ensure!((tag.as_str(), queues) == ("myfs", 1), "{tag:?}, {queues}");
    uml.set_up(128)?;
    uml.mount().with_context(|| fixture.log())?;
    // The module is unloaded and loaded again, with and without an unmount before.
    for round in 0..3 {
        if round == 1 {
            uml.call(NodeId::default(), Operation::Destroy)?;
        }
        uml.remove()?;
        uml.read_config()?;
        uml.set_up(256).with_context(|| format!("round {round}"))?;
        uml.mount()
            .with_context(|| format!("round {round}\n{}", fixture.log()))?;
    }
    uml.requests.set_nonblocking(true)?;
    let silent = uml.requests.read(&mut [0; 1]);
    ensure!(
        silent.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
        "the daemon has closed the channel for its requests"
    );
    drop(uml);
    fixture.survive(&[])
}

#[test]
fn a_guest_that_sleeps_through_a_reply_is_signalled_a_few_times_more() -> Result<()> {
    // The worker polls for the next request, or sleeps at once.
    for busy_poll in ["--busy-poll=200", "--busy-poll=0"] {
        let fixture = Fixture::new(&["--num-request-queues=1", busy_poll])?;
        let mut uml = Uml::probe(&fixture)?;
        uml.set_up(128)?;
        uml.mount().with_context(|| fixture.log())?;
        for _ in 0..10 {
            let signals = uml.signals_for_untaken_reply(Duration::from_millis(100))?;
            ensure!(
                (2..=5).contains(&signals),
                "{signals} signals with {busy_poll}"
            );
        }
        drop(uml);
        fixture.survive(&[])?;
    }
    Ok(())
}
