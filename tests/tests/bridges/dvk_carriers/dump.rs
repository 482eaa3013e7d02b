//! `gangplank-dvk dump` between two nodes that talk.

use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_dvk::abi::{DcId, Endpoint, Message};
use gangplank_dvk::carrier::node::{Node, NodeConfig, PeerConfig};
use gangplank_dvk::endpoint::{Carrier, SharedBuffers};
use gangplank_tests::{process, tools};
use tempfile::TempDir;

use crate::fixture::{LIMIT, SERVER, node, serve_access};

/// The program, which is killed when this is dropped.
struct Dump {
    child: Child,
    place: TempDir,
}

impl Dump {
    fn start(arguments: &[String]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let file = |name| File::create(place.path().join(name)).unwrap();
        let mut command = process::tied(tools::dvk().unwrap(), None);
        command
            .arg("dump")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("log"));
        let child = process::spawn(command).unwrap();
        Self { child, place }
    }

    /// Waits until its lines are as `wanted`. Returns them.
    fn wait(&self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = |name| fs::read_to_string(self.place.path().join(name)).unwrap();
            if wanted(&text("out")) {
                return text("out");
            }
            assert!(Instant::now() < deadline, "{}{}", text("out"), text("log"));
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// The first ports of both nodes, and of the program between them. The kernel gives none of them to
/// a connection (`ip_local_port_range`).
const PORTS: [u16; 3] = [28_000, 28_064, 28_128];

/// Node `id` of two, with its own ports and those by which it reaches the other.
fn start(id: i32, own: u16, other: u16) -> Node {
    let mut config = NodeConfig::new(node(id));
    config.port_base = own;
    config.limits.retry = Duration::from_millis(20);
    config.peers = vec![PeerConfig {
        port_base: other,
        ..PeerConfig::new(node(1 - id), "127.0.0.1")
    }];
    Node::start(config).unwrap()
}

#[test]
fn what_nodes_say_is_shown_while_it_is_passed_on() {
    let [clients, servers, between] = PORTS;
    let dump = Dump::start(&[
        "--generation=current".to_owned(),
        format!("--listen=127.0.0.1:{between}"),
        format!("--connect=127.0.0.1:{servers}"),
    ]);
    let server_node = start(1, servers, clients);
    // The other node's ports in its configuration are the program's.
    let client_node = start(0, clients, between);
    let server = server_node.bind(DcId::FIRST, Endpoint::from_raw(SERVER), "server");
    let server = server.unwrap();
    let client = client_node.bind(DcId::FIRST, Endpoint::from_raw(10), "client");
    let client = client.unwrap();
    let serving = thread::spawn(move || serve_access(&*server));
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut lent = SharedBuffers::new();
        let p1 = lent.read_only(b"//\0");
        let arm = gangplank_dvk::abi::M1 {
            p1,
            ..gangplank_dvk::abi::M1::default()
        };
        let to = Endpoint::from_raw(SERVER);
        // Until both connections exist.
        match client.sendrec(to, &Message::new(33, &arm), &mut lent, LIMIT) {
            Ok(answer) => break assert_eq!(answer.kind, 0),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::yield_now();
    }
    serving.join().unwrap();
    let text = dump.wait(|text| text.contains("SEND_ACK 10@0 -> 1@1 result 0"));
    let of = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!(of("SNDREC_MSG 10@0 -> 1@1 type 33"), 1, "{text}");
    assert_eq!(
        of("COPYOUT_DATA 10@0 -> 1@1 result 0 copy 3 bytes"),
        1,
        "{text}"
    );
}
