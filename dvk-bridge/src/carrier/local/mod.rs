//! Endpoints of programs on one host that meet at a switch: DVK without its kernel module, and
//! without nodes.
//!
//! Each program has one connection to the switch's Unix socket. Commands travel both ways on it in
//! the layout of the current generation. Nodes define three commands that they never use, and the
//! switch uses them: a program sends PROCBIND and PROCUNBIND for its endpoints, and the switch
//! sends PROCUNBIND for those of others. The switch fills in the sender, and each side checks the
//! user id of the other.

mod connection;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde_json::{Value, json};

use super::engine::{
    EndpointTable, EngineConfig, EngineEndpoint, NotConnected, PeerId, PeerKind, PeerTransport,
};
use super::stream::Outbox;
use crate::abi::{Code, Command, DcId, DcLimits, Endpoint, Generation, Header, NodeId};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError, Operation};
use crate::status::Report;

/// The switch as a peer.
const SWITCH: PeerId = PeerId(-1);

/// The generation of the commands on the socket.
pub(crate) const GENERATION: Generation = Generation::Current;

/// The node id in headers on the socket, where there are no nodes.
pub(crate) fn no_node() -> NodeId {
    NodeId::FIRST
}

/// How a program reaches the switch.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The socket of the switch.
    pub socket: PathBuf,
    /// The containers and their dimensions.
    pub dcs: HashMap<DcId, DcLimits>,
    /// A user that the switch may run as, besides root and the program's own user.
    pub switch_uid: Option<u32>,
    /// Time limit for an acknowledgement.
    pub exchange: Duration,
    /// Time limit for the switch to bind an endpoint or to read what is sent.
    pub answer: Duration,
    /// Wait before the next attempt to connect.
    pub retry: Duration,
}

impl LocalConfig {
    /// The switch at `socket`, with container 0 of the usual dimensions.
    pub fn new(socket: PathBuf) -> Self {
        let dcs = DcId::new(0).map(|dc| (dc, DcLimits::USUAL));
        Self {
            socket,
            dcs: dcs.into_iter().collect(),
            switch_uid: None,
            exchange: Duration::from_secs(30),
            answer: Duration::from_secs(5),
            retry: Duration::from_millis(500),
        }
    }
}

/// Why a program cannot use a switch.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The system has no thread or descriptor left.
    #[error("cannot start the thread of the switch's connection")]
    Start(#[source] std::io::Error),
}

/// A program's connection to the switch, which is restored whenever it is lost. Dropping it ends
/// it.
pub struct Local {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the program's threads share.
struct Shared {
    config: LocalConfig,
    table: Arc<EndpointTable>,
    outbox: Arc<Outbox>,
    stopping: AtomicBool,
    /// Readable from the moment the connection is to end.
    stop: OwnedFd,
    /// The switch's answers to the binds that threads wait for.
    bind_results: Mutex<HashMap<(DcId, i32), BindResult>>,
    bind_done: Condvar,
}

impl Local {
    /// Starts to connect to the switch. The switch may start later.
    pub fn start(config: LocalConfig) -> Result<Self, LocalError> {
        let failed = |error: Errno| LocalError::Start(error.into());
        let table = Arc::new(EndpointTable::new(EngineConfig {
            kind: PeerKind::Switch,
            exchange_limit: config.exchange,
            dcs: config.dcs.clone(),
        }));
        let outbox = Outbox::new(no_node(), no_node(), GENERATION).map_err(failed)?;
        let outbox = Arc::new(outbox);
        table.add_peer(SWITCH, outbox.clone());
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            config,
            table,
            outbox,
            stopping: AtomicBool::new(false),
            stop: stop.map_err(failed)?,
            bind_results: Mutex::default(),
            bind_done: Condvar::new(),
        });
        let running = shared.clone();
        let thread = thread::Builder::new().name("local_switch".to_owned());
        let thread = thread.spawn(move || connection::run(&running));
        Ok(Self {
            shared,
            thread: Some(thread.map_err(LocalError::Start)?),
        })
    }

    /// Sends a bind of `endpoint` to the switch and waits for the answer.
    fn request_bind(&self, dc: DcId, endpoint: Endpoint, name: &str) -> Result<(), BindError> {
        let shared = &self.shared;
        let deadline = Instant::now() + shared.config.answer;
        if !shared.outbox.wait(deadline) {
            return Err(BindError::NotConnected);
        }
        let key = (dc, endpoint.slot());
        let mut bind_results = shared.bind_results.lock();
        bind_results.insert(key, None);
        shared
            .outbox
            .post(binding(dc, endpoint), name_bytes(name))?;
        let mut late = false;
        loop {
            match bind_results.get(&key) {
                Some(None) if !late => {
                    late = shared
                        .bind_done
                        .wait_until(&mut bind_results, deadline)
                        .timed_out();
                }
                Some(Some(_)) => {
                    let bind_result = bind_results.remove(&key).flatten();
                    return bind_result.unwrap_or(Ok(())).map_err(BindError::Code);
                }
                // The connection was lost, or the switch did not answer.
                _ => {
                    bind_results.remove(&key);
                    return Err(BindError::NotConnected);
                }
            }
        }
    }
}

/// The switch's answer to a bind, once it has arrived.
type BindResult = Option<Result<(), Code>>;

/// Why the switch did not bind an endpoint.
enum BindError {
    Code(Code),
    NotConnected,
}

impl From<NotConnected> for BindError {
    fn from(_: NotConnected) -> Self {
        Self::NotConnected
    }
}

fn binding(dc: DcId, endpoint: Endpoint) -> Header {
    Header {
        dc: dc.raw(),
        src: endpoint,
        dst: Endpoint::NONE,
        ..Header::new(Command::PROCBIND)
    }
}

/// The part of a name that other programs may see.
fn name_bytes(name: &str) -> &[u8] {
    let bytes = name.as_bytes();
    bytes.get(..15).unwrap_or(bytes)
}

impl Carrier for Local {
    fn bind(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        // The state must exist before the switch can deliver commands to the endpoint.
        let bound = EngineEndpoint::new(self.shared.table.clone(), dc, endpoint, name)?;
        let operation = Operation::Bind { dc, endpoint };
        match self.request_bind(dc, endpoint, name) {
            Ok(()) => Ok(Arc::new(bound)),
            Err(BindError::Code(code)) => Err(EndpointError::Refused { operation, code }),
            Err(BindError::NotConnected) => Err(EndpointError::NotConnected { operation }),
        }
    }
}

impl Report for Local {
    fn report(&self, to: &mut String) {
        let connected = if self.shared.outbox.is_connected() {
            "connected"
        } else {
            "not connected"
        };
        let socket = self.shared.config.socket.display();
        let sent = self.shared.outbox.counters();
        to.push_str(&format!("switch {socket}: {connected}, sent {sent}\n"));
        self.shared.table.report(to);
    }

    fn json(&self) -> Value {
        json!({
            "kind": "switch_connection",
            "socket": self.shared.config.socket.to_string_lossy(),
            "connected": self.shared.outbox.is_connected(),
            "sent": self.shared.outbox.counters().json(),
            "endpoints": self.shared.table.json(),
        })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // An eventfd whose counter is full wakes the thread as well.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // The thread has logged why it ended.
            let _ = thread.join();
        }
    }
}
