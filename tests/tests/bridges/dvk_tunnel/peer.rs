//! A program at the switch that speaks to the server as a tunnel does.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use gangplank_driver::InitOptions;
use gangplank_dvk::abi::{DcId, Endpoint, Message};
use gangplank_dvk::carrier::local::{Local, LocalConfig};
use gangplank_dvk::endpoint::{BoundEndpoint, Carrier, SharedBuffers};
use gangplank_dvk::tunnel::wire::{Answer, CONFIG_LEN, Call, Request};
use gangplank_fuse::{
    Dialect, InitFlags, InitIn, InitOut, NodeId, Operation, OutHeader, RequestHeader, Unique,
};
use gangplank_tests::dvk_tunnel::{Between, Tunnel};
use zerocopy::FromBytes;

/// Limit for an answer.
const LIMIT: Duration = Duration::from_secs(20);

/// The bytes of a request.
pub(crate) fn request(unique: u64, node: NodeId, operation: Operation<'_>) -> Result<Vec<u8>> {
    let header = RequestHeader {
        unique: Unique::new(unique),
        node,
        uid: 0,
        gid: 0,
        pid: 0,
    };
    let mut bytes = Vec::new();
    gangplank_fuse::Request::from(operation).encode(&header, Dialect::default(), &mut bytes)?;
    Ok(bytes)
}

/// The errno in a reply; 0 without one.
pub(crate) fn error_of(reply: &[u8]) -> Result<i32> {
    let header = OutHeader::read_from_prefix(reply).map_err(|_| anyhow!("no header"))?;
    Ok(-header.0.error)
}

/// An end of a tunnel that sends what the test wants.
pub(crate) struct Peer {
    endpoint: Arc<dyn BoundEndpoint>,
    /// Its session.
    pub(crate) session: u32,
    _carrier: Local,
}

impl Peer {
    /// A session, asked for by `endpoint`.
    pub(crate) fn new(tunnel: &Tunnel, endpoint: i32) -> Result<Self> {
        let Between::Switch(switch) = tunnel.between() else {
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

    /// Sends a message to the first endpoint for requests.
    pub(crate) fn send(&self, message: &Message) -> Result<Message> {
        let to = Endpoint::from_raw(5);
        let mut buffers = SharedBuffers::new();
        Ok(self.endpoint.sendrec(to, message, &mut buffers, LIMIT)?)
    }

    /// Sends a request until it has a reply.
    pub(crate) fn ask(&self, slot: u16, number: u32, request: &[u8], room: u32) -> Result<Vec<u8>> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(reply) = self.ask_once(slot, number, request, room)? {
                return Ok(reply);
            }
        }
        bail!("no reply in time")
    }

    /// Sends a request once. `None`: it is not finished.
    pub(crate) fn ask_once(
        &self,
        slot: u16,
        number: u32,
        request: &[u8],
        room: u32,
    ) -> Result<Option<Vec<u8>>> {
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
                let reply = bytes.get(request.len()..end).unwrap_or_default();
                Ok(Some(reply.to_vec()))
            }
            Some(Answer::Pending) => Ok(None),
            other => bail!("{other:?}"),
        }
    }

    /// INIT, with locks.
    pub(crate) fn init(&self) -> Result<InitOut> {
        let mut asked = InitIn {
            major: 7,
            minor: 38,
            ..InitIn::default()
        };
        asked.set_features(InitOptions::default().features | InitFlags::POSIX_LOCKS);
        let init = request(2, NodeId::default(), Operation::Init(asked))?;
        let reply = self.ask(1, 1, &init, 200)?;
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
