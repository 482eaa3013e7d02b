//! Two nodes that talk to each other over loopback addresses.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use gangplank_service::captured_log;

use super::*;
use crate::abi::{Code, Generation, M1, NodeId};
use crate::carrier::engine::PeerTransport;
use crate::endpoint::{Delivery, Gone, SharedBuffers};

const LIMIT: Duration = Duration::from_secs(20);
const SERVER: Endpoint = Endpoint::from_raw(1);
const CLIENT: Endpoint = Endpoint::from_raw(10);

fn dc() -> DcId {
    DcId::new(0).unwrap()
}

/// Node `id` at 127.0.`net`.`id + 1`, whose peer is node `peer`.
pub(super) fn node(net: u8, id: u8, peer: u8, generation: Generation) -> Node {
    node_that_retries(Duration::from_millis(20), net, id, peer, generation)
}

fn node_that_retries(retry: Duration, net: u8, id: u8, peer: u8, generation: Generation) -> Node {
    let number = |id: u8| NodeId::new(i32::from(id)).unwrap();
    let address = |id: u8| IpAddr::from([127, 0, net, id + 1]);
    let mut config = NodeConfig::new(number(id));
    config.address = address(id);
    config.limits.retry = retry;
    config.peers = vec![PeerConfig {
        generation,
        ..PeerConfig::new(number(peer), &address(peer).to_string())
    }];
    Node::start(config).unwrap()
}

/// Waits until `from` is connected to its peer.
fn connected(from: &Node) {
    let deadline = std::time::Instant::now() + LIMIT;
    assert!(from.shared.peers[0].outbox.wait(deadline));
}

/// Answers one request: reads three bytes of the client, writes them back doubled, and returns
/// their number.
fn serve_once(server: &dyn BoundEndpoint) {
    let Delivery::Request {
        request, message, ..
    } = server.receive(LIMIT).unwrap()
    else {
        panic!("no request");
    };
    let M1 { p1, p2, .. } = message.arm();
    let mut bytes = [0; 3];
    server.copy_from(request, p1, &mut bytes).unwrap();
    server
        .copy_to(request, p2, &[bytes, bytes].concat())
        .unwrap();
    server.reply(request, &message.answer(6)).unwrap();
}

#[test]
fn a_call_is_answered_with_copies_in_every_generation() {
    for (net, generation) in [
        (1, Generation::Current),
        (2, Generation::Legacy),
        (3, Generation::Early),
    ] {
        let (left, right) = (node(net, 0, 1, generation), node(net, 1, 0, generation));
        let server = right.bind(dc(), SERVER, "server").unwrap();
        let client = left.bind(dc(), CLIENT, "client").unwrap();
        connected(&left);
        let serving = thread::spawn(move || serve_once(&*server));

        let mut buffer = [0; 8];
        let mut buffers = SharedBuffers::new();
        let (p1, p2) = (buffers.read_only(b"abc"), buffers.writable(&mut buffer));
        let request = Message::new(
            33,
            &M1 {
                i1: 3,
                p1,
                p2,
                ..M1::default()
            },
        );
        let answer = client
            .sendrec(SERVER, &request, &mut buffers, LIMIT)
            .unwrap();

        assert_eq!((answer.source, answer.kind), (SERVER, 6));
        assert_eq!(answer.arm::<M1>(), request.arm());
        assert_eq!(&buffer, b"abcabc\0\0");
        serving.join().unwrap();
    }
}

#[test]
fn a_connection_from_a_peer_triggers_one_to_it() {
    let day = Duration::from_secs(86_400);
    let early = node_that_retries(day, 60, 0, 1, Generation::Current);
    // Long enough for the first attempt to fail. Nothing else shows that it has.
    thread::sleep(Duration::from_millis(200));
    let late = node_that_retries(day, 60, 1, 0, Generation::Current);
    connected(&late);
    connected(&early);
}

/// Waits until the log has a line with all of `texts`.
fn logged(texts: &[&str]) {
    let deadline = std::time::Instant::now() + LIMIT;
    while captured_log::count_all(texts) == 0 {
        assert!(std::time::Instant::now() < deadline, "{texts:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Two nodes of different generations: the log says which one would fit.
#[test]
fn another_generation_is_named_before_any_limit_has_passed() {
    captured_log::start();
    for (net, here, there) in [
        (63, Generation::Current, Generation::Legacy),
        (64, Generation::Legacy, Generation::Current),
    ] {
        let (left, right) = (node(net, 0, 1, here), node(net, 1, 0, there));
        let server = right.bind(dc(), SERVER, "server").unwrap();
        let client = left.bind(dc(), CLIENT, "client").unwrap();
        connected(&left);
        connected(&right);
        let asking = thread::spawn(move || {
            let message = Message::new(33, &M1::default());
            let _ = client.sendrec(SERVER, &message, &mut SharedBuffers::new(), LIMIT);
        });
        logged(&[
            &format!("node 0 (127.0.{net}.1) is configured as generation {there}"),
            &format!("fits generation {here}"),
        ]);
        drop((server, left, right));
        asking.join().unwrap();
    }
}

/// Two programs with one node id end each other's connection again and again: both are named.
#[test]
fn two_programs_with_one_id_are_named() {
    captured_log::start();
    let node = node(65, 0, 1, Generation::Current);
    let peer = SocketAddr::from(([127, 0, 65, 2], 0));
    let here = SocketAddr::from(([127, 0, 65, 1], PORT_BASE + 1));
    let connect = || {
        let socket = std::net::TcpListener::bind(peer).unwrap();
        let at = socket.local_addr().unwrap();
        drop(socket);
        let domain = rustix::net::AddressFamily::INET;
        let socket = rustix::net::socket(domain, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &at).unwrap();
        rustix::net::connect(&socket, &here).unwrap();
        let deadline = std::time::Instant::now() + LIMIT;
        while *node.shared.peers[0].incoming.lock() != Some(at) {
            assert!(std::time::Instant::now() < deadline);
            thread::sleep(Duration::from_millis(5));
        }
        (socket, at)
    };
    let kept: Vec<_> = (0..3).map(|_| connect()).collect();
    logged(&[
        "two programs connect as node 1",
        &kept[1].1.to_string(),
        &kept[2].1.to_string(),
    ]);
}

/// A node whose connections are closed one after another hears of the possible reasons.
#[test]
fn a_node_that_is_refused_again_and_again_says_why_that_may_be() {
    captured_log::start();
    let here = SocketAddr::from(([127, 0, 66, 2], PORT_BASE));
    let listener = std::net::TcpListener::bind(here).unwrap();
    let _node = node(66, 0, 1, Generation::Current);
    for _ in 0..3 {
        drop(listener.accept().unwrap());
    }
    logged(&[
        "node 1 (127.0.66.2) closes each connection soon",
        "may be node 0",
    ]);
}

#[test]
fn large_copies_are_split() {
    let (left, right) = (
        node(4, 0, 1, Generation::Current),
        node(4, 1, 0, Generation::Current),
    );
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    connected(&left);
    let data: Vec<u8> = (0..300_000u32).map(|index| (index % 251) as u8).collect();
    let length = data.len();
    let serving = thread::spawn(move || {
        let Delivery::Request {
            request, message, ..
        } = server.receive(LIMIT).unwrap()
        else {
            panic!("no request");
        };
        let M1 { p1, p2, .. } = message.arm();
        let mut bytes = vec![0; length];
        server.copy_from(request, p1, &mut bytes).unwrap();
        server.copy_to(request, p2, &bytes).unwrap();
        let mut beyond = vec![0; 2];
        let error = server
            .copy_from(request, p2 + 299_999, &mut beyond)
            .unwrap_err();
        server
            .reply(request, &message.answer(error.code().result()))
            .unwrap();
    });
    let mut buffer = vec![0; length];
    let mut buffers = SharedBuffers::new();
    let (p1, p2) = (buffers.read_only(&data), buffers.writable(&mut buffer));
    let request = Message::new(
        1,
        &M1 {
            p1,
            p2,
            ..M1::default()
        },
    );
    let answer = client
        .sendrec(SERVER, &request, &mut buffers, LIMIT)
        .unwrap();
    serving.join().unwrap();
    assert_eq!(answer.kind, Code::EFAULT.result());
    assert_eq!(buffer, data);
}

#[test]
fn a_missing_peer_is_an_error_at_once() {
    let (left, right) = (
        node(5, 0, 1, Generation::Current),
        node(5, 1, 0, Generation::Current),
    );
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    let request = Message::new(1, &M1::default());
    connected(&left);
    let error = client
        .sendrec(SERVER, &request, &mut SharedBuffers::new(), LIMIT)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot ask 1: destination has died (EDVSDSTDIED)"
    );

    drop(right);
    while client
        .sendrec(SERVER, &request, &mut SharedBuffers::new(), LIMIT)
        .unwrap_err()
        .code()
        != Code::EDVSNOTCONN
    {
        thread::yield_now();
    }
}

#[test]
fn clients_of_a_lost_node_are_reported_gone() {
    let (left, right) = (
        node(6, 0, 1, Generation::Current),
        node(6, 1, 0, Generation::Current),
    );
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    connected(&left);
    let asking = thread::spawn(move || {
        let request = Message::new(1, &M1::default());
        client.sendrec(SERVER, &request, &mut SharedBuffers::new(), LIMIT)
    });
    let Delivery::Request {
        request, message, ..
    } = server.receive(LIMIT).unwrap()
    else {
        panic!("no request");
    };
    drop(left);
    assert_eq!(
        asking.join().unwrap().unwrap_err().code(),
        Code::EDVSNOTCONN
    );
    assert_eq!(
        server.receive(LIMIT).unwrap(),
        Delivery::Gone {
            client: CLIENT,
            reason: Gone::NodeLost
        }
    );
    let error = server.reply(request, &message.answer(0)).unwrap_err();
    assert_eq!(error.code(), Code::EDVSPROCSTS);
}

#[test]
fn a_waiting_client_is_told_when_the_server_exits() {
    let (left, right) = (
        node(7, 0, 1, Generation::Current),
        node(7, 1, 0, Generation::Current),
    );
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    connected(&left);
    let asking = thread::spawn(move || {
        let request = Message::new(1, &M1::default());
        client.sendrec(SERVER, &request, &mut SharedBuffers::new(), LIMIT)
    });
    server.receive(LIMIT).unwrap();
    server.unbind();
    assert_eq!(
        asking.join().unwrap().unwrap_err().code(),
        Code::EDVSSRCDIED
    );
    let error = server.receive(LIMIT).unwrap_err();
    assert_eq!(error.code(), Code::EDVSNOTBIND);
}

#[test]
fn messages_and_notifications_come_to_system_processes() {
    let (left, right) = (
        node(8, 0, 1, Generation::Current),
        node(8, 1, 0, Generation::Current),
    );
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let other = left.bind(dc(), Endpoint::from_raw(2), "other").unwrap();
    let user = left.bind(dc(), Endpoint::from_raw(40), "user").unwrap();
    connected(&left);
    other.notify(SERVER).unwrap();
    let sending = thread::spawn(move || {
        let message = Message::new(77, &M1::default());
        other.send(SERVER, &message, LIMIT)
    });
    let source = Endpoint::from_raw(2);
    assert_eq!(
        server.receive(LIMIT).unwrap(),
        Delivery::Notification { source }
    );
    let Delivery::Message { client, message } = server.receive(LIMIT).unwrap() else {
        panic!("no message");
    };
    assert_eq!((client, message.kind), (source, 77));
    sending.join().unwrap().unwrap();

    assert_eq!(user.notify(SERVER).unwrap_err().code(), Code::EDVSBADCALL);
    assert_eq!(user.receive(LIMIT).unwrap_err().code(), Code::EDVSBADCALL);
}

/// A client that only calls, and may not receive, learns that the server has dropped its files.
#[test]
fn each_lost_connection_to_the_server_is_counted_in_either_direction() {
    let (left, right) = (
        node(9, 0, 1, Generation::Current),
        node(9, 1, 0, Generation::Current),
    );
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), Endpoint::from_raw(70), "client").unwrap();
    let ask = || {
        let request = Message::new(1, &M1::default());
        client.sendrec(SERVER, &request, &mut SharedBuffers::new(), LIMIT)
    };
    let answer = || {
        let Delivery::Request {
            request, message, ..
        } = server.receive(LIMIT).unwrap()
        else {
            panic!("no request");
        };
        server.reply(request, &message.answer(7)).unwrap();
    };
    let grows = |before: u64| {
        let deadline = std::time::Instant::now() + LIMIT;
        while client.losses(SERVER) == before {
            assert!(std::time::Instant::now() < deadline, "nothing was noticed");
            thread::yield_now();
        }
    };
    connected(&left);
    connected(&right);
    thread::scope(|scope| {
        scope.spawn(answer);
        assert_eq!(ask().unwrap().kind, 7);
    });
    let before = client.losses(SERVER);

    // The server's node loses the connection that we send by, and drops our files. Nothing else
    // happens.
    left.shared.peers[0].outbox.cut();
    grows(before);
    connected(&left);
    let before = client.losses(SERVER);
    right.shared.peers[0].outbox.cut();
    grows(before);

    let before = client.losses(SERVER);
    drop(server);
    drop(right);
    grows(before);
}

#[test]
fn a_peer_may_be_known_by_its_name() {
    let number = |id: i32| NodeId::new(id).unwrap();
    let named = |id, peer, own, theirs| {
        let mut config = NodeConfig::new(number(id));
        config.port_base = own;
        config.limits.retry = Duration::from_millis(20);
        config.peers = vec![PeerConfig {
            port_base: theirs,
            ..PeerConfig::new(number(peer), "localhost")
        }];
        Node::start(config).unwrap()
    };
    let (left, right) = (named(0, 1, 29_300, 29_340), named(1, 0, 29_340, 29_300));
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    connected(&left);
    let serving = thread::spawn(move || {
        let Delivery::Request {
            request, message, ..
        } = server.receive(LIMIT).unwrap()
        else {
            panic!("no request");
        };
        server.reply(request, &message.answer(5)).unwrap();
    });
    let request = Message::new(1, &M1::default());
    let answer = client.sendrec(SERVER, &request, &mut SharedBuffers::new(), LIMIT);
    assert_eq!(answer.unwrap().kind, 5);
    serving.join().unwrap();
}

#[test]
fn queueing_more_does_not_extend_the_transfer_limit() {
    let address = IpAddr::from([127, 0, 30, 2]);
    let deaf = std::net::TcpListener::bind((address, 3000)).unwrap();
    let mut config = NodeConfig::new(NodeId::new(0).unwrap());
    config.address = IpAddr::from([127, 0, 30, 1]);
    config.limits.transfer = Duration::from_millis(500);
    config.limits.retry = LIMIT;
    config.peers = vec![PeerConfig::new(
        NodeId::new(1).unwrap(),
        &address.to_string(),
    )];
    let node = Node::start(config).unwrap();
    let _connection = deaf.accept().unwrap();
    let outbox = &node.shared.peers[0].outbox;
    let deadline = std::time::Instant::now() + LIMIT;
    while !outbox.is_connected() {
        assert!(std::time::Instant::now() < deadline);
        thread::yield_now();
    }
    let data = crate::abi::Header::new(crate::abi::Command::COPYIN_DATA);
    // More than the sockets can buffer.
    while outbox.unsent() < 2 << 20 {
        outbox.post_unanswered(data, &[0; 65_536]).unwrap();
    }
    // The node may connect again before this thread looks.
    deaf.set_nonblocking(true).unwrap();
    while outbox.is_connected() && deaf.accept().is_err() {
        assert!(std::time::Instant::now() < deadline, "it is waited for");
        let _ = outbox.hello();
        thread::sleep(Duration::from_millis(5));
    }
}
