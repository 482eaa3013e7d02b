//! A server's endpoint on the library's node, and an emulated node beside it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gangplank_dvk::abi::{DcId, Endpoint, Generation, M1, Message, NodeId};
use gangplank_dvk::carrier::node::{Node, NodeConfig, PeerConfig};
use gangplank_dvk::endpoint::{BoundEndpoint, Carrier, Delivery, RequestId};
use gangplank_dvk::status::Report;
use gangplank_tests::dvk_peer::{Layout, Peer, PeerSetup};

/// Limit for events that must come.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// The server.
pub(crate) const SERVER: i32 = 1;
/// The original client's endpoint.
pub(crate) const CLIENT: i32 = 10;
/// `access`, as the original numbers it.
pub(crate) const ACCESS: i32 = 33;
/// Where the requests of [`access`] have their name.
pub(crate) const NAME_AT: u32 = 0x47d1_1000;

/// Addresses of one test, on the loopback network of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Net(pub(crate) u8);

impl Net {
    /// Address of node `id`.
    pub(crate) fn of(self, id: i32) -> Ipv4Addr {
        Ipv4Addr::new(127, 77, self.0, u8::try_from(id).unwrap() + 1)
    }

    /// Node 0, as a kernel and its proxies.
    pub(crate) fn peer(self, layout: Layout) -> Peer {
        self.peer_of(0, layout, Duration::ZERO)
    }

    /// Node `id`, whose acknowledgements stay in its proxy's queue for a while.
    pub(crate) fn peer_of(self, id: i32, layout: Layout, queued: Duration) -> Peer {
        Peer::start(PeerSetup {
            servers: vec![SERVER],
            queued,
            ..self.setup(id, layout)
        })
        .unwrap()
    }

    /// Node `id` beside ours, with nothing bound.
    pub(crate) fn setup(self, id: i32, layout: Layout) -> PeerSetup {
        PeerSetup::new(layout, (id, self.of(id)), (1, self.of(1)))
    }

    /// Node 1 beside nodes `peers`, ours, with limits for tests.
    pub(crate) fn config(self, layout: Layout, peers: &[i32]) -> NodeConfig {
        let mut config = NodeConfig::new(node(1));
        config.address = IpAddr::V4(self.of(1));
        config.limits.retry = Duration::from_millis(20);
        config.limits.transfer = Duration::from_millis(300);
        let peers = peers.iter().map(|&id| PeerConfig {
            generation: generation(layout),
            ..PeerConfig::new(node(id), &self.of(id).to_string())
        });
        config.peers = peers.collect();
        config
    }

    /// The same, running.
    pub(crate) fn node(self, layout: Layout) -> Node {
        Node::start(self.config(layout, &[0])).unwrap()
    }
}

/// Waits until `node` can talk to `peer`, both ways.
pub(crate) fn connect(node: &Node, peer: &Peer) {
    peer.wait_connected();
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut text = String::new();
        node.report(&mut text);
        if !text.contains("not connected") {
            return;
        }
        assert!(Instant::now() < deadline, "{text}");
        thread::yield_now();
    }
}

/// A node's id.
pub(crate) fn node(id: i32) -> NodeId {
    NodeId::new(id).unwrap()
}

fn generation(layout: Layout) -> Generation {
    match layout {
        Layout::Early => Generation::Early,
        Layout::Legacy => Generation::Legacy,
        Layout::Current => Generation::Current,
    }
}

/// The server's endpoint on `node`.
pub(crate) fn bind(node: &Node) -> Arc<dyn BoundEndpoint> {
    node.bind(DcId::FIRST, Endpoint::from_raw(SERVER), "rhostfsd")
        .unwrap()
}

/// The bytes of a request of `client` whose name has three bytes.
pub(crate) fn access(client: i32, layout: Layout) -> Vec<u8> {
    let mut bytes = vec![0; layout.message()];
    for (index, word) in [client, ACCESS, 3, 1, 0, NAME_AT.cast_signed()]
        .into_iter()
        .enumerate()
    {
        bytes[4 * index..4 * index + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The memory of a client with this request.
pub(crate) fn name() -> BTreeMap<u32, Vec<u8>> {
    BTreeMap::from([(NAME_AT, b"//\0".to_vec())])
}

/// Waits for the next request.
pub(crate) fn next_request(server: &dyn BoundEndpoint) -> (RequestId, Message) {
    match server.receive(LIMIT).unwrap() {
        Delivery::Request {
            request, message, ..
        } => (request, message),
        other => panic!("no request but {other:?}"),
    }
}

/// Answers the next request after a look at its name.
pub(crate) fn serve_access(server: &dyn BoundEndpoint) {
    let (request, message) = next_request(server);
    let arm: M1 = message.arm();
    let mut name = [0; 3];
    server.copy_from(request, arm.p1, &mut name).unwrap();
    assert_eq!((message.kind, &name), (ACCESS, b"//\0"));
    server.reply(request, &message.answer(0)).unwrap();
}
