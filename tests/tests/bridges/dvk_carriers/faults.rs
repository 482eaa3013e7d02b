//! Peers that disconnect, fall silent, or break the protocol.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_dvk::abi::{Code, Endpoint, Message};
use gangplank_dvk::carrier::node::Node;
use gangplank_dvk::endpoint::{
    BoundEndpoint, Delivery, EndpointError, Gone, RequestId, SharedBuffers,
};
use gangplank_tests::dvk_peer::{Field, Frame, Layout, Outcome, Peer, Reason};

use crate::fixture::{
    CLIENT, LIMIT, NAME_AT, Net, SERVER, access, bind, connect, name, next_request, serve_access,
};

fn ask(peer: &Peer) {
    peer.wait_connected();
    peer.ask(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
}

/// Asserts that the client is reported gone, and that another life of its node is served.
fn assert_gone_and_served_again(net: Net, server: &dyn BoundEndpoint) {
    let client = Endpoint::from_raw(CLIENT);
    let reason = Gone::NodeLost;
    assert_eq!(
        server.receive(LIMIT).unwrap(),
        Delivery::Gone { client, reason }
    );
    let peer = net.peer(Layout::Current);
    ask(&peer);
    serve_access(server);
    assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
}

#[test]
fn a_peer_may_go_while_its_request_is_served() {
    let net = Net(40);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    ask(&peer);
    let (request, message) = next_request(&*server);
    drop(peer);
    let client_gone = server.receive(LIMIT).unwrap();
    assert_eq!(
        client_gone,
        Delivery::Gone {
            client: request.client(),
            reason: Gone::NodeLost
        }
    );
    assert_eq!(
        server
            .reply(request, &message.answer(0))
            .unwrap_err()
            .code(),
        Code::EDVSPROCSTS
    );
    let peer = net.peer(Layout::Current);
    ask(&peer);
    serve_access(&*server);
    assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
}

/// Makes the peer disconnect before the acknowledgement of `command`, for which `operation` waits.
fn goes_in_the_middle<F>(net: Net, command: i32, operation: F)
where
    F: FnOnce(&dyn BoundEndpoint, RequestId) -> Result<(), EndpointError> + Send + 'static,
{
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    peer.ignore(command);
    ask(&peer);
    let (request, _) = next_request(&*server);
    let here = server.clone();
    let waiting = thread::spawn(move || operation(&*here, request));
    peer.wait_for(command, 1);
    let since = Instant::now();
    drop(peer);
    assert_eq!(
        waiting.join().unwrap().unwrap_err().code(),
        Code::EDVSNOTCONN
    );
    assert!(since.elapsed() < LIMIT / 2, "long before the limit");
    assert_gone_and_served_again(net, &*server);
}

#[test]
fn a_peer_may_go_before_it_sends_data() {
    goes_in_the_middle(Net(41), 6, |server, request| {
        server.copy_from(request, NAME_AT, &mut [0; 3])
    });
}

#[test]
fn a_peer_may_go_before_it_acknowledges_data() {
    goes_in_the_middle(Net(42), 5, |server, request| {
        server.copy_to(request, NAME_AT, &[0; 3])
    });
}

#[test]
fn a_peer_may_go_before_it_acknowledges_a_reply() {
    goes_in_the_middle(Net(43), 4, |server, request| {
        server.reply(request, &Message::default())
    });
}

/// Makes the peer disconnect while a process of ours waits for a reply of one of its own, which has
/// received the request if `received`.
fn goes_while_it_is_asked(net: Net, received: bool) {
    let node = net.node(Layout::Current);
    let client = bind(&node);
    let peer = net.peer(Layout::Current);
    connect(&node, &peer);
    peer.bind(2);
    let ask = || {
        let client = client.clone();
        thread::spawn(move || {
            let to = Endpoint::from_raw(2);
            client.sendrec(to, &Message::default(), &mut SharedBuffers::new(), LIMIT)
        })
    };
    let asking = ask();
    peer.wait_for(3, 1);
    if received {
        peer.receive(2);
    }
    let since = Instant::now();
    drop(peer);
    assert_eq!(
        asking.join().unwrap().unwrap_err().code(),
        Code::EDVSNOTCONN
    );
    assert!(since.elapsed() < LIMIT / 2, "long before the limit");
    let peer = net.peer(Layout::Current);
    peer.bind(2);
    connect(&node, &peer);
    let asking = ask();
    peer.receive(2);
    assert_eq!(peer.reply(2, SERVER, &[0; 36]), 0);
    assert_eq!(asking.join().unwrap().unwrap().kind, 0);
}

#[test]
fn a_peer_may_go_before_it_receives_a_question() {
    goes_while_it_is_asked(Net(45), false);
}

#[test]
fn a_peer_may_go_before_it_answers_a_question() {
    goes_while_it_is_asked(Net(46), true);
}

#[test]
fn a_command_that_comes_byte_by_byte_is_served() {
    let net = Net(47);
    let mut config = net.config(Layout::Current, &[0]);
    config.limits.transfer = LIMIT;
    let node = Node::start(config).unwrap();
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    let request = peer.asked(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    for byte in request.header {
        peer.send_bytes(&[byte]);
    }
    serve_access(&*server);
    assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
}

#[test]
fn silence_ends_at_the_limit_and_others_are_served() {
    let net = Net(44);
    let mut config = net.config(Layout::Current, &[0]);
    config.limits.exchange = Duration::from_millis(800);
    let node = Node::start(config).unwrap();
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    ask(&peer);
    let (request, _) = next_request(&*server);
    // The process is running: the kernel's handler reports nothing.
    peer.interrupt(CLIENT);
    let error = server.copy_from(request, NAME_AT, &mut [0; 3]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot copy 3 bytes from 0x47d11000 of 10: no answer within 800ms"
    );
    assert!(peer.lost().iter().all(|lost| lost.reason == Reason::Copy));
    peer.ask(11, SERVER, &access(11, Layout::Current), name());
    serve_access(&*server);
    assert!(matches!(peer.outcome(11), Outcome::Reply(_)));
}

/// A request that announces this many others, in this many bytes.
fn batch(peer: &Peer, headers: i32, bytes: usize) -> Frame {
    let mut frame = peer.asked(CLIENT, SERVER, &[0; 36], name());
    let at = frame.layout.batch_at();
    frame.set_word(at, headers);
    frame.set_word(at + 4, 1);
    frame.with_payload(&vec![0; bytes])
}

/// An invalid input from a peer.
type Nonsense = fn(&Peer);

#[test]
fn a_peer_that_breaks_the_rules_is_dropped_and_another_is_served() {
    let nonsense: [(u8, Nonsense); 11] = [
        (50, |peer| peer.send_bytes(&[0x55; 300])),
        (51, |peer| {
            let frame = peer.asked(CLIENT, SERVER, &[0; 36], name());
            peer.send(&frame.with(Field::Command, 0x77));
        }),
        (52, |peer| {
            let frame = peer.asked(CLIENT, SERVER, &[0; 36], name());
            peer.send(&frame.with(Field::Length, i32::MAX));
        }),
        (53, |peer| {
            let frame = peer.asked(CLIENT, SERVER, &[0; 36], name());
            peer.send(&frame.with(Field::SourceNode, 2));
        }),
        // And no more than that.
        (54, |peer| {
            peer.send_bytes(&[3, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0])
        }),
        // Half of the announced data.
        (55, |peer| {
            let frame = peer.asked(CLIENT, SERVER, &[0; 36], name());
            peer.send(&frame.with_payload(&[0; 10]).with(Field::Length, 20));
        }),
        (56, |peer| {
            let frame = peer.asked(CLIENT, SERVER, &[0; 36], name());
            peer.send(&frame.with(Field::Length, -1));
        }),
        (57, |peer| {
            let frame = peer.asked(CLIENT, SERVER, &[0; 36], name());
            peer.send(&frame.with(Field::Dc, 32));
        }),
        // A batch of two thousand million headers, one that does not add up, and one with data in
        // it.
        (58, |peer| peer.send(&batch(peer, i32::MAX, 120))),
        (59, |peer| peer.send(&batch(peer, 2, 120))),
        (64, |peer| {
            let inner = peer.asked(CLIENT, SERVER, &[0; 36], name());
            let inner = inner.with(Field::Command, 5).with(Field::Length, 3);
            let mut batch = batch(peer, 1, 120);
            batch.payload = inner.header;
            peer.send(&batch);
        }),
    ];
    for (net, send) in nonsense {
        let net = Net(net);
        let node = Node::start(net.config(Layout::Current, &[0, 2])).unwrap();
        let server = bind(&node);
        let bad = net.peer(Layout::Current);
        let good = net.peer_of(2, Layout::Current, Duration::ZERO);
        bad.wait_connected();
        good.wait_connected();
        send(&bad);
        bad.wait_dropped();
        good.ask(12, SERVER, &access(12, Layout::Current), name());
        serve_access(&*server);
        assert!(matches!(good.outcome(12), Outcome::Reply(_)));
    }
}

#[test]
fn a_peer_of_another_generation_is_dropped() {
    for (net, ours, theirs) in [
        (60, Layout::Current, Layout::Legacy),
        (61, Layout::Legacy, Layout::Current),
        (62, Layout::Current, Layout::Early),
    ] {
        let net = Net(net);
        let node = net.node(ours);
        let _server = bind(&node);
        let peer = net.peer(theirs);
        peer.wait_connected();
        for client in 10..14 {
            peer.ask(client, SERVER, &access(client, theirs), name());
        }
        peer.wait_dropped();
    }
}

#[test]
fn strangers_are_not_let_in() {
    let net = Net(63);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let port = SocketAddr::from((net.of(1), 3000));
    // From the machine's loopback address, which is no peer's.
    let mut stranger = TcpStream::connect(port).unwrap();
    stranger.set_read_timeout(Some(LIMIT)).unwrap();
    let ended = std::io::Read::read(&mut stranger, &mut [0; 1]);
    assert!(
        matches!(ended, Ok(0) | Err(_))
            && stranger.local_addr().unwrap().ip() == Ipv4Addr::LOCALHOST
    );
    let peer = net.peer(Layout::Current);
    ask(&peer);
    serve_access(&*server);
    assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
}
