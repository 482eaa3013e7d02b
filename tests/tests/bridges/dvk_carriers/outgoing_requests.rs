//! Requests of our processes to those of a kernel: binding, refusals, losses, and processes that
//! end or migrate.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gangplank_dvk::abi::{Code, DcId, Endpoint, M1, Message};
use gangplank_dvk::carrier::node::Node;
use gangplank_dvk::endpoint::{BoundEndpoint, Carrier, Delivery, EndpointError, SharedBuffers};
use gangplank_tests::dvk_peer::{Autobind, Field, Frame, Layout, Peer, PeerSetup, Reason};

use crate::fixture::{LIMIT, Net, SERVER, connect};

/// Our endpoint, which the kernel's proxies bind by themselves.
const USER: i32 = 70;

/// Limit for replies that must not come.
const SHORT: Duration = Duration::from_millis(300);

/// Our node, and a kernel whose process [`SERVER`] serves.
fn nodes(net: Net, layout: Layout, change: impl FnOnce(&mut PeerSetup)) -> (Node, Peer) {
    let node = net.node(layout);
    let mut setup = net.setup(0, layout);
    setup.autobind = Autobind::Tcp;
    change(&mut setup);
    let peer = Peer::start(setup).unwrap();
    peer.bind(SERVER);
    connect(&node, &peer);
    (node, peer)
}

fn bind(node: &Node, endpoint: i32) -> Arc<dyn BoundEndpoint> {
    node.bind(DcId::FIRST, Endpoint::from_raw(endpoint), "client")
        .unwrap()
}

/// The answer to a request, and the writable bytes that went with it.
type CallResult = (Result<Message, EndpointError>, [u8; 4]);

/// Sends a request to the server in a thread, with four readable and four writable bytes.
fn ask(client: &Arc<dyn BoundEndpoint>, limit: Duration) -> JoinHandle<CallResult> {
    let client = client.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4];
        let mut lent = SharedBuffers::new();
        let (p1, p2) = (lent.read_only(b"name"), lent.writable(&mut buffer));
        let arm = M1 {
            p1,
            p2,
            ..M1::default()
        };
        let to = Endpoint::from_raw(SERVER);
        let answer = client.sendrec(to, &Message::new(33, &arm), &mut lent, limit);
        (answer, buffer)
    })
}

/// The addresses that a request has.
fn addresses(request: &Frame) -> (u32, u32) {
    let word = |index: usize| request.word(request.layout.message_at() + 4 * index);
    (word(5).cast_unsigned(), word(6).cast_unsigned())
}

/// A message of `kind`.
fn message(layout: Layout, kind: i32) -> Vec<u8> {
    let mut bytes = vec![0; layout.message()];
    bytes[4..8].copy_from_slice(&kind.to_le_bytes());
    bytes
}

#[test]
fn a_question_is_answered_with_copies() {
    for (net, layout) in (80..).map(Net).zip(Layout::ALL) {
        let (node, peer) = nodes(net, layout, |_| ());
        let client = bind(&node, USER);
        let asking = ask(&client, LIMIT);
        let request = peer.receive(SERVER);
        assert_eq!(request.get(Field::Source), USER);
        let (name, buffer) = addresses(&request);
        assert_eq!(peer.copy_from(SERVER, USER, name, 4), Ok(b"name".to_vec()));
        assert_eq!(peer.copy_to(SERVER, USER, buffer, b"data"), Ok(4));
        // Outside the buffers, in the wrong direction, and without a buffer.
        assert_eq!(peer.copy_from(SERVER, USER, name + 1, 4), Err(-14));
        assert_eq!(peer.copy_to(SERVER, USER, name, b"data"), Err(-14));
        assert_eq!(peer.copy_from(SERVER, USER, name, 0), Err(-338));
        assert_eq!(peer.reply(SERVER, USER, &message(layout, 6)), 0);
        let (answer, buffer) = asking.join().unwrap();
        assert_eq!((answer.unwrap().kind, &buffer), (6, b"data"));
        // It no longer waits.
        assert_eq!(peer.copy_from(SERVER, USER, name, 4), Err(-1));
        assert_eq!(peer.reply(SERVER, USER, &message(layout, 6)), -324);
        assert_eq!(peer.lost(), []);
    }
}

#[test]
fn a_message_is_an_answer_as_well() {
    for (net, layout) in (83..).map(Net).zip(Layout::ALL) {
        let (node, peer) = nodes(net, layout, |_| ());
        let client = bind(&node, USER);
        let asking = ask(&client, LIMIT);
        peer.receive(SERVER);
        assert_eq!(peer.send_message(SERVER, USER, &message(layout, 7)), 0);
        assert_eq!(asking.join().unwrap().0.unwrap().kind, 7);
    }
}

#[test]
fn nobody_there_and_somebody_who_goes_are_told_as_of_a_message() {
    for (net, layout) in (86..).map(Net).zip(Layout::ALL) {
        let (node, peer) = nodes(net, layout, |_| ());
        let client = bind(&node, USER);
        let asking = ask(&client, LIMIT);
        peer.receive(SERVER);
        peer.exit(SERVER);
        let (answer, _) = asking.join().unwrap();
        assert_eq!(answer.unwrap_err().code(), Code::EDVSSRCDIED);
        let (answer, _) = ask(&client, LIMIT).join().unwrap();
        assert_eq!(answer.unwrap_err().code(), Code::EDVSDSTDIED);
        // A later process with its endpoint gets requests as usual.
        peer.bind(SERVER);
        let asking = ask(&client, LIMIT);
        peer.receive(SERVER);
        assert_eq!(peer.reply(SERVER, USER, &message(layout, 0)), 0);
        assert_eq!(asking.join().unwrap().0.unwrap().kind, 0);
    }
}

#[test]
fn a_message_is_sent_when_it_is_received() {
    for (net, layout) in (89..).map(Net).zip(Layout::ALL) {
        let (node, peer) = nodes(net, layout, |_| ());
        assert_eq!(peer.bind_remote(2, 1), 2);
        let sender = bind(&node, 2);
        let to = Endpoint::from_raw(SERVER);
        let here = sender.clone();
        let sending = thread::spawn(move || here.send(to, &Message::default(), LIMIT));
        peer.receive(SERVER);
        sending.join().unwrap().unwrap();
        sender.notify(to).unwrap();
        let notification = &peer.wait_for(2, 1)[0];
        assert_eq!(notification.get(Field::Result), -1);
        peer.notify(SERVER, 2);
        let source = to;
        assert_eq!(
            sender.receive(LIMIT).unwrap(),
            Delivery::Notification { source }
        );
    }
}

#[test]
fn proxies_bind_clients_of_ours_above_the_numbers_that_they_leave_alone() {
    for (net, autobind, bound, not) in [
        (Net(92), Autobind::Tcp, 65, 64),
        (Net(93), Autobind::Multi, 31, 30),
    ] {
        let (node, peer) = nodes(net, Layout::Current, |setup| setup.autobind = autobind);
        let lost = ask(&bind(&node, not), SHORT).join().unwrap().0;
        assert_eq!(lost.unwrap_err().code(), Code::EDVSTIMEDOUT);
        peer.wait_lost(Reason::NotBound);
        let asking = ask(&bind(&node, bound), LIMIT);
        assert_eq!(peer.receive(SERVER).get(Field::Source), bound);
        peer.reply(SERVER, bound, &message(Layout::Current, 0));
        asking.join().unwrap().0.unwrap();
    }
}

#[test]
fn a_proxy_that_binds_when_it_is_told_to_knows_us_from_then_on() {
    for (net, layout) in (94..).map(Net).zip(Layout::ALL) {
        let mut config = net.config(layout, &[0]);
        config.peers[0].announce = true;
        let node = Node::start(config).unwrap();
        // Without a connection, and with one.
        let early = bind(&node, 10);
        let peer = Peer::start(PeerSetup {
            binds_when_told: true,
            ..net.setup(0, layout)
        });
        let peer = peer.unwrap();
        peer.bind(SERVER);
        connect(&node, &peer);
        let late = bind(&node, 11);
        peer.wait_for(0, 2);
        for (client, endpoint) in [(early, 10), (late, 11)] {
            let asking = ask(&client, LIMIT);
            assert_eq!(peer.receive(SERVER).get(Field::Source), endpoint);
            peer.reply(SERVER, endpoint, &message(layout, 0));
            asking.join().unwrap().0.unwrap();
        }
        assert_eq!(peer.lost(), []);
    }
}

#[test]
fn what_we_may_not_do_is_told_or_lost() {
    let (node, peer) = nodes(Net(97), Layout::Current, |_| ());
    assert_eq!(peer.bind_remote(2, 1), 2);
    let client = bind(&node, 2);
    let to = Endpoint::from_raw(SERVER);
    // Any request to it is refused with a code.
    peer.deny(2, &[], &[SERVER]);
    let error = ask(&client, LIMIT).join().unwrap().0.unwrap_err();
    assert_eq!(error.code(), Code::EDVSTRAPDENIED);
    let error = client.send(to, &Message::default(), LIMIT).unwrap_err();
    assert_eq!(error.code(), Code::EDVSTRAPDENIED);
    // This request is lost silently, and ends at the limit.
    peer.deny(2, &[1], &[]);
    let error = client.send(to, &Message::default(), SHORT).unwrap_err();
    assert_eq!(error.code(), Code::EDVSTIMEDOUT);
    peer.wait_lost(Reason::BadCall);
    // The rest is as before.
    let asking = ask(&client, LIMIT);
    peer.receive(SERVER);
    peer.reply(SERVER, 2, &message(Layout::Current, 0));
    asking.join().unwrap().0.unwrap();
}

#[test]
fn one_that_moves_to_another_node_is_asked_again_until_it_has_settled() {
    for (net, layout) in (98..).map(Net).zip(Layout::ALL) {
        let (node, peer) = nodes(net, layout, |_| ());
        assert_eq!(peer.bind_remote(2, 1), 2);
        peer.set_migrating(SERVER, true);
        let client = bind(&node, 2);
        let asking = ask(&client, LIMIT);
        // Refused, and repeated.
        peer.wait_for(3, 2);
        assert!(!asking.is_finished());
        peer.set_migrating(SERVER, false);
        peer.receive(SERVER);
        peer.reply(SERVER, 2, &message(layout, 0));
        asking.join().unwrap().0.unwrap();
        // The process is on another node now; a request to that node reaches it.
        peer.exit(SERVER);
        assert_eq!(peer.bind_remote(SERVER, 0), SERVER);
        let error = ask(&client, LIMIT).join().unwrap().0.unwrap_err();
        assert_eq!(error.code(), Code::EDVSRMTPROC);
    }
}

#[test]
fn one_that_never_settles_is_given_up_at_the_limit() {
    let (node, peer) = nodes(Net(101), Layout::Current, |_| ());
    assert_eq!(peer.bind_remote(2, 1), 2);
    peer.set_migrating(SERVER, true);
    let client = bind(&node, 2);
    let to = Endpoint::from_raw(SERVER);
    // The last repetition may be in flight when the limit comes.
    let at_the_limit = |error: EndpointError| {
        let code = error.code();
        assert!(
            matches!(code, Code::EDVSMIGRATE | Code::EDVSTIMEDOUT),
            "{error}"
        );
    };
    at_the_limit(ask(&client, SHORT).join().unwrap().0.unwrap_err());
    at_the_limit(client.send(to, &Message::default(), SHORT).unwrap_err());
    peer.wait_for(1, 2);
}
