//! A node of a DVS as the kernel and its proxies make one, emulated in memory: the order of its
//! checks, what it acknowledges and what it loses without a word.
//!
//! Written from the protocol's description, and sharing nothing with the library that is tried
//! against it. Client processes of the node are driven as the original file system drives its one:
//! a request in a message, memory that the server copies to and from while the process waits, a
//! reply.

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

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// Who the node is, and whom it has beside it.
#[derive(Clone, Debug)]
pub struct PeerSetup {
    /// Its id.
    pub id: i32,
    /// Its address.
    pub address: Ipv4Addr,
    /// The other node's id.
    pub other: i32,
    /// The other node's address.
    pub other_address: Ipv4Addr,
    /// The layout that it speaks.
    pub layout: Layout,
    /// Remote endpoints of container 0 that it has bound to the other node.
    pub servers: Vec<i32>,
    /// How long its sender proxy leaves an acknowledgement queued. Meanwhile the descriptor it is
    /// queued on is busy, and other commands of the same endpoint are lost.
    pub queued: Duration,
    /// Which unknown sources its proxy binds by itself.
    pub autobind: Autobind,
    /// Its proxy binds what the other node asks it to (MT_RMTBIND), as multi_proxy does.
    pub binds_when_told: bool,
    /// How long its proxy waits for something to come before it closes the connection: 30 s in
    /// multi_proxy, for ever in others.
    pub silence: Option<Duration>,
    /// How long its processes wait for an acknowledgement: 30 s in the kernel.
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

/// What the node's threads share.
pub(crate) struct Shared {
    setup: PeerSetup,
    kernel: Mutex<Kernel>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Kernel> {
        // A test that fails while it holds this is to be heard, and not the threads that it leaves
        // behind.
        self.kernel.lock()
    }

    /// Waits for a change, or fails for `what` did not happen until `deadline`.
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

/// What a process's SENDREC came to.
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
    /// Starts the node: it listens when this returns, and goes on to connect.
    pub fn start(setup: PeerSetup) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            kernel: Mutex::new(Kernel::new(&setup)),
            changed: Condvar::new(),
            setup,
        });
        let proxies = Proxies::start(shared.clone())?;
        Ok(Self { shared, proxies })
    }

    /// Waits until both connections are there.
    pub fn wait_connected(&self) {
        drop(self.wait_until("be connected both ways", |kernel| {
            kernel.connected == (true, true)
        }));
    }

    /// Waits until the other node has closed the connection that this one writes to.
    pub fn wait_dropped(&self) {
        drop(self.wait_until("be dropped", |kernel| kernel.dropped));
    }

    /// Waits until `count` frames of command `command` have come: they.
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

    /// Waits until the other node has connected to here `count` times in all.
    pub fn wait_connections(&self, count: usize) {
        let what = format!("be connected to {count} times");
        drop(self.wait_until(&what, |kernel| kernel.connections >= count));
    }

    /// How often the other node has connected to here.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// Adds a container that nodes `nodes` are in.
    pub fn add_container(&self, dc: i32, nodes: &[i32]) {
        self.shared.lock().add_container(dc, nodes);
    }

    /// RMT_BIND of an endpoint of node `node`: the endpoint, or the code.
    pub fn bind_remote(&self, process_address: impl Into<ProcessAddress>, node: i32) -> i32 {
        self.shared.lock().bind_remote(process_address.into(), node)
    }

    /// SETPRIV of a remote process: what it may not call, by the command that it comes as, and whom
    /// it may not address.
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

    /// Waits until the descriptor of a remote process has no command in it.
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

    /// Waits for what process `client`'s SENDREC comes to.
    pub fn outcome(&self, client: impl Into<ProcessAddress>) -> Outcome {
        let client = client.into();
        let what = format!("have an answer for process {client:?}");
        let kernel = self.wait_until(&what, |kernel| kernel.outcome(client) != Outcome::Blocked);
        kernel.outcome(client)
    }

    /// What process `client`'s SENDREC has come to so far.
    pub fn outcome_now(&self, client: impl Into<ProcessAddress>) -> Outcome {
        self.shared.lock().outcome(client.into())
    }

    /// Bytes of process `client`'s memory.
    pub fn memory(&self, client: impl Into<ProcessAddress>, address: u32) -> Vec<u8> {
        self.shared.lock().memory(client.into(), address)
    }

    /// A signal ends process `client`'s wait: it does not wait for its server any more.
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

    /// Commands that were lost without a word.
    pub fn lost(&self) -> Vec<Lost> {
        self.shared.lock().lost.clone()
    }

    /// From now on commands of this kind are neither obeyed nor acknowledged.
    pub fn ignore(&self, command: i32) {
        self.shared.lock().ignored.push(command);
    }

    /// Sends `frame`, whatever it is.
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
