//! A node of a DVS, emulated in memory as the kernel and its proxies make one: the order of its
//! checks, its acknowledgements, and what it loses silently.
//!
//! It is written from the protocol's description and shares no code with the library under test. A
//! test drives client processes of the node as the original file system drives its own: a request
//! in a message, memory that the server copies to and from while the process waits, a reply.

mod kernel;
mod layout;
mod process_address;
mod proxies;
mod servers;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::Kernel;
pub use kernel::{Autobind, Lost, Reason};
pub use layout::{Field, Frame, Layout};
use parking_lot::{Condvar, Mutex, MutexGuard};
pub use process_address::ProcessAddress;
use proxies::Proxies;

/// Limit of each wait.
const LIMIT: Duration = Duration::from_secs(30);

/// The node's identity, its peer, and its behaviour.
#[derive(Clone, Debug)]
pub struct PeerSetup {
    /// Its ID.
    pub id: i32,
    /// Its address.
    pub address: Ipv4Addr,
    /// The other node's ID.
    pub other: i32,
    /// The other node's address.
    pub other_address: Ipv4Addr,
    /// The layout of its headers.
    pub layout: Layout,
    /// Remote endpoints of container 0 that are bound to the other node.
    pub servers: Vec<i32>,
    /// Time that its sender proxy leaves an acknowledgement queued. Meanwhile the descriptor with
    /// it is busy, and other commands of the same endpoint are lost.
    pub queued: Duration,
    /// The unknown sources that its proxy binds by itself.
    pub autobind: Autobind,
    /// Whether its proxy binds what the other node asks it to (MT_RMTBIND), as multi_proxy does.
    pub binds_when_told: bool,
    /// Time without input after which its proxy closes the connection: 30 s in multi_proxy, never
    /// in others.
    pub silence: Option<Duration>,
    /// Limit of its processes' wait for an acknowledgement: 30 s in the kernel.
    pub exchange: Duration,
}

impl PeerSetup {
    /// Node `id` at `address`, with node `other` beside it: container 0, a proxy that does nothing
    /// by itself, the kernel's limits.
    pub fn new(
        layout: Layout,
        (id, address): (i32, Ipv4Addr),
        (other, other_address): (i32, Ipv4Addr),
    ) -> Self {
        Self {
            id,
            address,
            other,
            other_address,
            layout,
            servers: Vec::new(),
            queued: Duration::ZERO,
            autobind: Autobind::Never,
            binds_when_told: false,
            silence: None,
            exchange: Duration::from_secs(30),
        }
    }
}

/// The node.
pub struct Peer {
    shared: Arc<Shared>,
    proxies: Proxies,
}

/// The state that the node's threads share.
pub(crate) struct Shared {
    setup: PeerSetup,
    kernel: Mutex<Kernel>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock()
    }

    /// Waits for a change, or panics because `what` did not happen before `deadline`.
    fn wait<'a>(
        &'a self,
        mut kernel: MutexGuard<'a, Kernel>,
        deadline: Instant,
        what: &str,
    ) -> MutexGuard<'a, Kernel> {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(
            !left.is_zero(),
            "the node did not {what}; lost: {:?}",
            kernel.lost
        );
        self.changed.wait_for(&mut kernel, left);
        kernel
    }
}

/// The result of a process's SENDREC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The reply's bytes.
    Reply(Vec<u8>),
    /// This code, negative.
    Failed(i32),
    /// It still waits.
    Blocked,
}

impl Peer {
    /// Starts the node. It listens when this returns, and keeps trying to connect.
    pub fn start(setup: PeerSetup) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            kernel: Mutex::new(Kernel::new(&setup)),
            changed: Condvar::new(),
            setup,
        });
        let proxies = Proxies::start(shared.clone())?;
        Ok(Self { shared, proxies })
    }

    /// Waits until both connections exist.
    pub fn wait_connected(&self) {
        drop(self.wait_until("be connected both ways", |kernel| {
            kernel.connected == (true, true)
        }));
    }

    /// Waits until the other node has closed the connection that this one writes to.
    pub fn wait_dropped(&self) {
        drop(self.wait_until("be dropped", |kernel| kernel.dropped));
    }

    /// Waits for `count` frames of command `command`. Returns them.
    pub fn wait_for(&self, command: i32, count: usize) -> Vec<Frame> {
        let of_command = |kernel: &Kernel| -> Vec<Frame> {
            let frames = kernel.received.iter();
            frames
                .filter(|it| it.get(Field::Command) == command)
                .cloned()
                .collect()
        };
        let what = format!("get {count} frames of command {command:#x}");
        let kernel = self.wait_until(&what, |kernel| of_command(kernel).len() >= count);
        of_command(&kernel)
    }

    /// Waits until the other node has connected `count` times in total.
    pub fn wait_connections(&self, count: usize) {
        let what = format!("be connected to {count} times");
        drop(self.wait_until(&what, |kernel| kernel.connections >= count));
    }

    /// The number of connections that the other node has made.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// Adds a container with the nodes `nodes`.
    pub fn add_container(&self, dc: i32, nodes: &[i32]) {
        self.shared.lock().add_container(dc, nodes);
    }

    /// RMT_BIND of an endpoint of node `node`. Returns the endpoint, or the code.
    pub fn bind_remote(&self, process_address: impl Into<ProcessAddress>, node: i32) -> i32 {
        self.shared.lock().bind_remote(process_address.into(), node)
    }

    /// SETPRIV of a remote process: the commands that it may not send, and the processes that it
    /// may not address.
    pub fn deny(
        &self,
        process_address: impl Into<ProcessAddress>,
        calls: &[i32],
        destinations: &[i32],
    ) {
        self.shared
            .lock()
            .deny(process_address.into(), calls, destinations);
    }

    /// Waits until the descriptor of a remote process is free.
    pub fn wait_free(&self, process_address: impl Into<ProcessAddress>) {
        let process_address = process_address.into();
        drop(self.wait_until("be done with a command", |kernel| {
            !kernel.is_busy(process_address)
        }));
    }

    /// Starts SENDREC: process `client` asks `server`, with `memory` by address.
    pub fn ask(
        &self,
        client: impl Into<ProcessAddress>,
        server: i32,
        message: &[u8],
        memory: BTreeMap<u32, Vec<u8>>,
    ) {
        let frame = self.asked(client, server, message, memory);
        self.send(&frame);
    }

    /// The request of [`Self::ask`] without sending it.
    pub fn asked(
        &self,
        client: impl Into<ProcessAddress>,
        server: i32,
        message: &[u8],
        memory: BTreeMap<u32, Vec<u8>>,
    ) -> Frame {
        let (frame, late) = self
            .shared
            .lock()
            .ask(client.into(), server, message, memory);
        self.proxies.put(late);
        frame
    }

    /// Waits for the result of process `client`'s SENDREC.
    pub fn outcome(&self, client: impl Into<ProcessAddress>) -> Outcome {
        let client = client.into();
        let what = format!("have an answer for process {client:?}");
        let kernel = self.wait_until(&what, |kernel| kernel.outcome(client) != Outcome::Blocked);
        kernel.outcome(client)
    }

    /// The result of process `client`'s SENDREC so far.
    pub fn outcome_now(&self, client: impl Into<ProcessAddress>) -> Outcome {
        self.shared.lock().outcome(client.into())
    }

    /// Bytes of process `client`'s memory.
    pub fn memory(&self, client: impl Into<ProcessAddress>, address: u32) -> Vec<u8> {
        self.shared.lock().memory(client.into(), address)
    }

    /// Ends process `client`'s wait by a signal. It no longer waits for its server.
    pub fn interrupt(&self, client: impl Into<ProcessAddress>) {
        self.shared.lock().interrupt(client.into());
    }

    /// Waits until a command was lost for `reason`.
    pub fn wait_lost(&self, reason: Reason) {
        let what = format!("lose a command: {reason:?}");
        drop(self.wait_until(&what, |kernel| {
            kernel.lost.iter().any(|lost| lost.reason == reason)
        }));
    }

    /// Commands that were lost silently.
    pub fn lost(&self) -> Vec<Lost> {
        self.shared.lock().lost.clone()
    }

    /// Ignores commands of this kind from now on, without an acknowledgement.
    pub fn ignore(&self, command: i32) {
        self.shared.lock().ignored.push(command);
    }

    /// Sends any `frame`.
    pub fn send(&self, frame: &Frame) {
        self.send_bytes(&[frame.header.as_slice(), &frame.payload].concat());
    }

    /// Sends bytes.
    pub fn send_bytes(&self, bytes: &[u8]) {
        self.proxies.send(bytes);
    }

    fn wait_until(&self, what: &str, done: impl Fn(&Kernel) -> bool) -> MutexGuard<'_, Kernel> {
        let deadline = Instant::now() + LIMIT;
        let mut kernel = self.shared.lock();
        while !done(&kernel) {
            kernel = self.shared.wait(kernel, deadline, what);
        }
        kernel
    }
}
