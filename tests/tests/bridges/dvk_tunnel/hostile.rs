//! Guests and tunnels that do not keep to the rules, without a guest's kernel.

use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gangplank_driver::{Driver, InitOptions, Options};
use gangplank_dvk::abi::{DcId, Endpoint, M7, Message};
use gangplank_dvk::carrier::local::{Local, LocalConfig};
use gangplank_dvk::endpoint::{BoundEndpoint, Carrier, SharedBuffers};
use gangplank_dvk::tunnel::wire::{Answer, CONFIG_LEN, Call, MAX_BYTES, MAX_DATA, Request};
use gangplank_fuse::{
    Dialect, InHeader, InitIn, InitOut, MkdirIn, NodeId, Opcode, Operation, OutHeader,
    RequestHeader, Unique,
};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk_tunnel::{Between, Tunnel};
use gangplank_tests::runner::Runner;
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

const TESTS: &[(&str, Test)] = &[
    (
        "hostile::a_guests_impossible_lengths_end_its_tunnel_alone",
        a_guests_impossible_lengths_end_its_tunnel_alone,
    ),
    (
        "hostile::a_tunnels_impossible_lengths_end_its_session_alone",
        a_tunnels_impossible_lengths_end_its_session_alone,
    ),
    (
        "hostile::a_request_that_is_sent_again_is_carried_out_once",
        a_request_that_is_sent_again_is_carried_out_once,
    ),
    (
        "hostile::init_offers_no_more_than_a_copy_carries",
        init_offers_no_more_than_a_copy_carries,
    ),
];

type Test = fn(&Fixture) -> Result<()>;

const LIMIT: Duration = Duration::from_secs(20);

/// A tunnel at a switch without a guest, and its daemon.
struct Fixture {
    tunnel: Tunnel,
    _daemon: Daemon,
    share: TempDir,
}

pub(crate) fn run(runner: &mut Runner) {
    for (name, test) in TESTS {
        runner.run(name, || {
            let share = tempfile::Builder::new()
                .prefix("gangplank-share-")
                .tempdir()?;
            let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
            let fixture = Fixture {
                tunnel: Tunnel::at_switch(daemon.socket())?,
                _daemon: daemon,
                share,
            };
            test(&fixture).map_err(|error| error.context(fixture.tunnel.log()))
        });
    }
}

/// A guest's request with more room than INIT allows, or none at all: its device ends, and the next
/// guest is served.
fn a_guests_impossible_lengths_end_its_tunnel_alone(fixture: &Fixture) -> Result<()> {
    let socket = fixture.tunnel.socket();
    for (readable, writable) in [
        (44, MAX_BYTES + 1),
        (MAX_BYTES + 1, 16),
        (44, u32::MAX / 64),
    ] {
        let driver = Driver::connect(&socket, &Options::default())?;
        let request = driver.buffer(usize::try_from(readable)?)?;
        let header = InHeader {
            len: readable,
            opcode: Opcode::Statfs as u32,
            unique: 2,
            ..InHeader::default()
        };
        request.bytes().copy_from(header.as_bytes());
        let room = driver.buffer(usize::try_from(writable)?)?;
        let sent = driver.submit_raw(1, (request, readable), Some((room, writable)), LIMIT)?;
        let ended = sent.context("the ring is full")?.wait(LIMIT);
        ensure!(
            matches!(ended, Err(ref error) if error.is_fatal()),
            "{readable}, {writable}: {ended:?}"
        );
        let driver = Driver::connect(&socket, &Options::default())?;
        let session = driver.session(&InitOptions::default())?;
        session.statfs(NodeId::ROOT)?;
    }
    ensure!(
        fixture.tunnel.log().contains("it sends a request of"),
        "the log does not say why"
    );
    Ok(())
}

/// A tunnel's message with impossible lengths ends its session. Another one goes on.
fn a_tunnels_impossible_lengths_end_its_session_alone(fixture: &Fixture) -> Result<()> {
    let good = Peer::new(fixture, 140)?;
    let hostile = Peer::new(fixture, 150)?;
    let session = hostile.session.cast_signed();
    let most = MAX_BYTES.cast_signed();
    for (slot, readable, writable, address) in [
        (1, most + 1, 0, 0),
        (1, -1, 0, 0),
        (1, 0, 0, 0),
        (1, 40, MAX_BYTES + 1, 0),
        (1, 40, u32::MAX, 0),
        (1, 40, 16, u32::MAX - 20),
        (64, 40, 16, 0),
        (-1, 40, 16, 0),
    ] {
        let arm = M7 {
            i1: session,
            i2: slot,
            i3: 1,
            i4: readable,
            p1: writable,
            p2: address,
        };
        let answer = hostile.send(&Message::new(0x7102, &arm))?;
        ensure!(answer.kind < 0, "{arm:?}: {answer:?}");
    }
    let ping = Call::Ping {
        session: hostile.session,
    };
    ensure!(
        hostile.send(&ping.encode())?.kind < 0,
        "the hostile session goes on"
    );
    good.init()?;
    fixture
        .tunnel
        .wait_for_server("guest behind endpoint 140", true)?;
    fixture
        .tunnel
        .wait_for_server("guest behind endpoint 150", false)
}

/// The same slot and number are the same request: the second MKDIR gets the reply of the first, and
/// a new number is a new request.
fn a_request_that_is_sent_again_is_carried_out_once(fixture: &Fixture) -> Result<()> {
    let peer = Peer::new(fixture, 140)?;
    peer.init()?;
    let name = CString::new("made")?;
    let mut request = Vec::new();
    let operation = Operation::Mkdir {
        args: MkdirIn {
            mode: 0o755,
            umask: 0,
        },
        name: &name,
    };
    let header = RequestHeader {
        unique: Unique::new(4),
        node: NodeId::ROOT,
        uid: 0,
        gid: 0,
        pid: 0,
    };
    gangplank_fuse::Request::from(operation).encode(&header, Dialect::default(), &mut request)?;
    let first = peer.ask(2, 1, &request, 200)?;
    let again = peer.ask(2, 1, &request, 200)?;
    let anew = peer.ask(2, 2, &request, 200)?;
    let error = |reply: &[u8]| -> Result<i32> {
        let header = OutHeader::read_from_prefix(reply).map_err(|_| anyhow!("no header"))?;
        Ok(header.0.error)
    };
    ensure!(first == again, "another reply: {first:?} and {again:?}");
    ensure!(
        error(&first)? == 0 && error(&anew)? == -libc::EEXIST,
        "{first:?}, {anew:?}"
    );
    ensure!(
        fixture.share.path().join("made").is_dir(),
        "it is not there"
    );
    Ok(())
}

/// A guest is told no more than [`MAX_DATA`] bytes and as many pages.
fn init_offers_no_more_than_a_copy_carries(fixture: &Fixture) -> Result<()> {
    let peer = Peer::new(fixture, 140)?;
    let init = peer.init()?;
    ensure!(
        init.max_write <= MAX_DATA && u32::from(init.max_pages) * 4096 <= MAX_DATA,
        "{init:?}"
    );
    Ok(())
}

/// An end of a tunnel that sends what the test wants.
struct Peer {
    endpoint: Arc<dyn BoundEndpoint>,
    session: u32,
    _carrier: Local,
}

impl Peer {
    /// A session, asked for by `endpoint`.
    fn new(fixture: &Fixture, endpoint: i32) -> Result<Self> {
        let Between::Switch(switch) = fixture.tunnel.between() else {
            bail!("there is no switch");
        };
        let (carrier, endpoint) = bind(switch.socket(), endpoint)?;
        let mut config = [0; CONFIG_LEN as usize];
        let mut buffers = SharedBuffers::new();
        let call = Call::Open {
            generation: 7,
            slots: 8,
            config: buffers.writable(&mut config),
        };
        let server = Endpoint::from_raw(4);
        let answer = endpoint.sendrec(server, &call.encode(), &mut buffers, LIMIT)?;
        match Answer::decode(&answer, &call) {
            Some(Answer::Opened { session, .. }) => Ok(Self {
                endpoint,
                session,
                _carrier: carrier,
            }),
            other => bail!("no session: {other:?}"),
        }
    }

    fn send(&self, message: &Message) -> Result<Message> {
        let to = Endpoint::from_raw(5);
        let mut buffers = SharedBuffers::new();
        Ok(self.endpoint.sendrec(to, message, &mut buffers, LIMIT)?)
    }

    /// Sends a request until it has a reply.
    fn ask(&self, slot: u16, number: u32, request: &[u8], room: u32) -> Result<Vec<u8>> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let mut bytes = request.to_vec();
            bytes.resize(request.len() + usize::try_from(room)?, 0);
            let mut buffers = SharedBuffers::new();
            let call = Call::Request(Request {
                session: self.session,
                slot,
                number,
                readable: u32::try_from(request.len())?,
                writable: room,
                address: buffers.writable(&mut bytes),
            });
            let to = Endpoint::from_raw(5);
            let answer = self
                .endpoint
                .sendrec(to, &call.encode(), &mut buffers, LIMIT)?;
            drop(buffers);
            match Answer::decode(&answer, &call) {
                Some(Answer::Done { written }) => {
                    let end = request.len() + usize::try_from(written)?;
                    return Ok(bytes.get(request.len()..end).unwrap_or_default().to_vec());
                }
                Some(Answer::Pending) => {}
                other => bail!("{other:?}"),
            }
        }
        bail!("no reply in time")
    }

    fn init(&self) -> Result<InitOut> {
        let mut asked = InitIn {
            major: 7,
            minor: 38,
            ..InitIn::default()
        };
        asked.set_features(InitOptions::default().features);
        let header = RequestHeader {
            unique: Unique::new(2),
            node: NodeId::default(),
            uid: 0,
            gid: 0,
            pid: 0,
        };
        let mut request = Vec::new();
        let init = gangplank_fuse::Request::from(Operation::Init(asked));
        init.encode(&header, Dialect::default(), &mut request)?;
        let reply = self.ask(1, 1, &request, 200)?;
        let body = reply.get(size_of::<OutHeader>()..).unwrap_or_default();
        let init = InitOut::read_from_prefix(body);
        Ok(init.map_err(|_| anyhow!("the reply to INIT is short"))?.0)
    }
}

/// Binds an endpoint at the switch, which takes a moment to be connected.
fn bind(socket: &Path, endpoint: i32) -> Result<(Local, Arc<dyn BoundEndpoint>)> {
    let carrier = Local::start(LocalConfig::new(socket.to_owned()))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match carrier.bind(DcId::FIRST, Endpoint::from_raw(endpoint), "test") {
            Ok(bound) => return Ok((carrier, bound)),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
