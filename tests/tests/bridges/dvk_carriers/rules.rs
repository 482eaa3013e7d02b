//! A server of ours keeps the kernel's rules: one exchange at a time, batches, several nodes,
//! reported and unreported errors.

use std::thread;
use std::time::Duration;

use gangplank_dvk::abi::{Code, M1};
use gangplank_dvk::carrier::node::Node;
use gangplank_dvk::endpoint::{Delivery, Gone};
use gangplank_tests::dvk_peer::{Field, Layout, Outcome, Peer, PeerSetup, Reason};

use crate::fixture::{
    CLIENT, LIMIT, NAME_AT, Net, SERVER, access, bind, name, next_request, serve_access,
};

#[test]
fn no_command_is_lost_however_many_clients_are_served_at_once() {
    let net = Net(20);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    // While an acknowledgement is queued, every other command of the server would be lost.
    let peer = net.peer_of(0, Layout::Current, Duration::from_millis(2));
    peer.wait_connected();
    let clients = 30..46;
    let serving: Vec<_> = clients
        .clone()
        .map(|_| {
            let server = server.clone();
            thread::spawn(move || serve_access(&*server))
        })
        .collect();
    for client in clients.clone() {
        peer.ask(client, SERVER, &access(client, Layout::Current), name());
    }
    for client in clients {
        assert!(matches!(peer.outcome(client), Outcome::Reply(_)));
    }
    for serving in serving {
        serving.join().unwrap();
    }
    assert_eq!(peer.lost(), []);
}

#[test]
fn a_batch_is_served_whole() {
    let net = Net(21);
    let node = net.node(Layout::Legacy);
    let server = bind(&node);
    let peer = net.peer(Layout::Legacy);
    peer.wait_connected();
    let serving = thread::spawn(move || (0..3).for_each(|_| serve_access(&*server)));
    let [mut first, second, third] = [10, 11, 12]
        .map(|client| peer.asked(client, SERVER, &access(client, Layout::Legacy), name()));
    let batch_at = first.layout.batch_at();
    first.set_word(batch_at, 2);
    first.set_word(batch_at + 4, 1);
    let rest = [second.header, third.header].concat();
    peer.send(&first.with_payload(&rest));
    for client in [10, 11, 12] {
        assert!(matches!(peer.outcome(client), Outcome::Reply(_)));
    }
    serving.join().unwrap();
}

#[test]
fn a_bad_address_is_told_by_an_acknowledgement_with_a_stale_copy_block() {
    let net = Net(22);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    peer.ask(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    let (request, message) = next_request(&*server);
    let mut bytes = [0; 3];
    for address in [0, NAME_AT + 1, NAME_AT - 1, u32::MAX] {
        let error = server.copy_from(request, address, &mut bytes).unwrap_err();
        assert_eq!(error.code(), Code::EFAULT, "{address:#x}");
        let error = server.copy_to(request, address, &bytes).unwrap_err();
        assert_eq!(error.code(), Code::EFAULT, "{address:#x}");
    }
    server.copy_from(request, NAME_AT, &mut bytes).unwrap();
    server.reply(request, &message.answer(0)).unwrap();
    assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
}

#[test]
fn compressed_data_is_refused_and_the_exchange_with_it() {
    let net = Net(23);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    peer.ignore(6);
    peer.ask(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    let (request, message) = next_request(&*server);
    let arm: M1 = message.arm();
    let copying = server.clone();
    let copying = thread::spawn(move || copying.copy_from(request, arm.p1, &mut [0; 3]));
    let mut data = peer.wait_for(6, 1)[0].clone();
    for (field, value) in [
        (Field::Command, 0x2006),
        (Field::Source, CLIENT),
        (Field::Destination, SERVER),
        (Field::SourceNode, 0),
        (Field::DestinationNode, 1),
    ] {
        data = data.with(field, value);
    }
    data.set_word(data.layout.batch_at() + 4, 2);
    peer.send(&data.with_payload(b"\x04\x22\x4d\x18"));
    let error = copying.join().unwrap().unwrap_err();
    assert_eq!(error.code(), Code::ENOSYS);
}

#[test]
fn nodes_are_served_beside_each_other() {
    let net = Net(24);
    let node = Node::start(net.config(Layout::Current, &[0, 2])).unwrap();
    let server = bind(&node);
    let peers = [0, 2].map(|id| net.peer_of(id, Layout::Current, Duration::ZERO));
    for (peer, client) in peers.iter().zip([10, 12]) {
        peer.wait_connected();
        peer.ask(client, SERVER, &access(client, Layout::Current), name());
    }
    let first = next_request(&*server);
    let second = next_request(&*server);
    // One waits for the acknowledgement of the other's copy only if both are of the same node.
    for (request, message) in [second, first] {
        server.copy_from(request, NAME_AT, &mut [0; 3]).unwrap();
        server
            .reply(request, &message.answer(request.client().raw()))
            .unwrap();
    }
    for (peer, client) in peers.iter().zip([10, 12]) {
        let Outcome::Reply(reply) = peer.outcome(client) else {
            panic!("no reply");
        };
        assert_eq!(reply[4..8], client.to_le_bytes());
    }
}

#[test]
fn an_endpoint_is_one_nodes_as_long_as_that_is_connected() {
    let net = Net(28);
    let node = Node::start(net.config(Layout::Current, &[0, 2])).unwrap();
    let server = bind(&node);
    let [first, second] = [0, 2].map(|id| net.peer_of(id, Layout::Current, Duration::ZERO));
    for peer in [&first, &second] {
        peer.wait_connected();
    }
    let ask = |peer: &Peer| peer.ask(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    ask(&first);
    let (request, message) = next_request(&*server);
    ask(&second);
    let refused = Outcome::Failed(Code::EDVSNONODE.result());
    assert_eq!(second.outcome(CLIENT), refused);
    server.copy_from(request, NAME_AT, &mut [0; 3]).unwrap();
    server.reply(request, &message.answer(0)).unwrap();
    assert!(matches!(first.outcome(CLIENT), Outcome::Reply(_)));

    drop(first);
    let client = request.client();
    let reason = Gone::NodeLost;
    let gone = server.receive(LIMIT).unwrap();
    assert_eq!(gone, Delivery::Gone { client, reason });
    ask(&second);
    serve_access(&*server);
    assert!(matches!(second.outcome(CLIENT), Outcome::Reply(_)));
}

#[test]
fn what_nobody_implements_is_refused_in_its_own_way() {
    let net = Net(25);
    let node = net.node(Layout::Current);
    let _server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    let frame = peer.asked(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    for (command, ack, code) in [
        (7, 0x2007, -38),
        (8, 0x2008, -38),
        (6, 0x2006, -1),
        (5, 0x2005, -1),
    ] {
        let copy = [CLIENT, SERVER, CLIENT, 1, 2, 3];
        peer.send(&frame.clone().with(Field::Command, command).with_copy(copy));
        let answer = &peer.wait_for(ack, 1)[0];
        assert_eq!(
            (answer.get(Field::Result), answer.copy()),
            (code, copy),
            "{command}"
        );
    }
}

#[test]
fn a_client_that_was_interrupted_and_asks_again_gets_the_newer_answer() {
    let net = Net(26);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    peer.ask(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    let (request, message) = next_request(&*server);
    peer.interrupt(CLIENT);
    let mut again = access(CLIENT, Layout::Current);
    again[4] = 40;
    peer.ask(CLIENT, SERVER, &again, name());
    while server.copy_from(request, NAME_AT, &mut [0; 3]).is_ok() {
        // Until the second has arrived.
    }
    server.reply(request, &message.answer(-4)).unwrap();
    let (newer, message) = next_request(&*server);
    assert_eq!(message.kind, 40);
    let again = server.reply(request, &message.answer(-4)).unwrap_err();
    assert_eq!(again.code(), Code::EDVSPROCSTS, "that was answered");
    server.reply(newer, &message.answer(0)).unwrap();
    let Outcome::Reply(reply) = peer.outcome(CLIENT) else {
        panic!("no reply");
    };
    assert_eq!(reply[4..8], [0; 4], "and not that to the first");
}

#[test]
fn an_answer_to_one_that_moves_is_tried_again_until_it_has_settled() {
    for (net, layout) in (110..).map(Net).zip(Layout::ALL) {
        let node = net.node(layout);
        let server = bind(&node);
        let peer = net.peer(layout);
        peer.wait_connected();
        peer.ask(CLIENT, SERVER, &access(CLIENT, layout), name());
        peer.ask(11, SERVER, &access(11, layout), name());
        let (request, message) = next_request(&*server);
        peer.set_migrating(CLIENT, true);
        let here = server.clone();
        let replying = thread::spawn(move || {
            let copied = here.copy_from(request, NAME_AT, &mut [0; 3]);
            copied.and_then(|()| here.reply(request, &message.answer(0)))
        });
        peer.wait_for(6, 2);
        peer.set_migrating(CLIENT, false);
        replying.join().unwrap().unwrap();
        assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
        serve_access(&*server);
        assert!(matches!(peer.outcome(11), Outcome::Reply(_)));
        assert_eq!(peer.lost(), []);
    }
}

#[test]
fn what_the_server_may_not_do_is_told_or_lost_and_others_are_served() {
    let net = Net(113);
    let mut config = net.config(Layout::Current, &[0]);
    config.limits.exchange = Duration::from_millis(800);
    let node = Node::start(config).unwrap();
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    peer.ask(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    let (request, message) = next_request(&*server);
    // Nothing may go to that client: refused with a code, and the copy block of an earlier copy.
    peer.deny(SERVER, &[], &[CLIENT]);
    let error = server.copy_from(request, NAME_AT, &mut [0; 3]);
    assert_eq!(error.unwrap_err().code(), Code::EDVSTRAPDENIED);
    let error = server.copy_to(request, NAME_AT, &[0; 3]);
    assert_eq!(error.unwrap_err().code(), Code::EDVSTRAPDENIED);
    // That call is not permitted: lost.
    peer.deny(SERVER, &[6], &[]);
    let error = server.copy_from(request, NAME_AT, &mut [0; 3]);
    assert_eq!(error.unwrap_err().code(), Code::EDVSTIMEDOUT);
    peer.wait_lost(Reason::BadCall);
    peer.deny(SERVER, &[], &[]);
    server.reply(request, &message.answer(0)).unwrap();
    assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
    peer.ask(11, SERVER, &access(11, Layout::Current), name());
    serve_access(&*server);
    assert!(matches!(peer.outcome(11), Outcome::Reply(_)));
}

#[test]
fn a_descriptor_that_an_answer_is_stuck_on_is_used_again_when_its_process_receives() {
    for (net, layout) in (114..).map(Net).zip(Layout::ALL) {
        let mut config = net.config(layout, &[0]);
        config.limits.exchange = Duration::from_millis(800);
        let node = Node::start(config).unwrap();
        let server = bind(&node);
        let peer = net.peer(layout);
        peer.wait_connected();
        peer.ask(CLIENT, SERVER, &access(CLIENT, layout), name());
        peer.ask(11, SERVER, &access(11, layout), name());
        let (request, message) = next_request(&*server);
        let (other, other_message) = next_request(&*server);
        // It no longer waits: the reply stays queued on it, and the server's descriptor is busy.
        peer.interrupt(CLIENT);
        let error = server.reply(request, &message.answer(-4)).unwrap_err();
        assert_eq!(error.code(), Code::EDVSTIMEDOUT);
        let error = server.copy_from(other, NAME_AT, &mut [0; 3]).unwrap_err();
        assert_eq!(error.code(), Code::EDVSTIMEDOUT);
        peer.wait_lost(Reason::Enqueued);
        // Its next request gets the reply to the one before.
        peer.ask(CLIENT, SERVER, &access(CLIENT, layout), name());
        let Outcome::Reply(reply) = peer.outcome(CLIENT) else {
            panic!("no reply");
        };
        assert_eq!(reply[4..8], (-4i32).to_le_bytes());
        peer.wait_free(SERVER);
        server.copy_from(other, NAME_AT, &mut [0; 3]).unwrap();
        server.reply(other, &other_message.answer(0)).unwrap();
        assert!(matches!(peer.outcome(11), Outcome::Reply(_)));
    }
}

#[test]
fn a_client_that_has_ended_is_found_out_and_its_successor_is_another() {
    for (net, layout) in (117..).map(Net).zip(Layout::ALL) {
        let node = net.node(layout);
        let server = bind(&node);
        let peer = net.peer(layout);
        peer.wait_connected();
        peer.ask(CLIENT, SERVER, &access(CLIENT, layout), name());
        let (request, message) = next_request(&*server);
        peer.exit(CLIENT);
        let error = server.copy_from(request, NAME_AT, &mut [0; 3]).unwrap_err();
        assert_eq!(error.code(), Code::EDVSDSTDIED);
        let gone = Delivery::Gone {
            client: request.client(),
            reason: Gone::Unbound,
        };
        assert_eq!(server.receive(LIMIT).unwrap(), gone);
        peer.ask(CLIENT, SERVER, &access(CLIENT, layout), name());
        let (successors, _) = next_request(&*server);
        let late = [
            server.copy_to(request, NAME_AT, &[7; 3]),
            server.reply(request, &message.answer(-5)),
        ];
        for late in late {
            assert_eq!(late.unwrap_err().code(), Code::EDVSPROCSTS);
        }
        assert_eq!(peer.memory(CLIENT, NAME_AT), b"//\0");
        server.reply(successors, &message.answer(0)).unwrap();
        let Outcome::Reply(reply) = peer.outcome(CLIENT) else {
            panic!("no reply");
        };
        assert_eq!(reply[4..8], [0; 4]);
    }
}

/// A node whose proxy closes a connection that is silent for long.
fn impatient(net: Net) -> Peer {
    let setup = PeerSetup {
        servers: vec![SERVER],
        silence: Some(Duration::from_secs(2)),
        ..net.setup(0, Layout::Current)
    };
    Peer::start(setup).unwrap()
}

#[test]
fn signs_of_life_keep_a_connection_that_is_closed_without() {
    let net = Net(120);
    let mut config = net.config(Layout::Current, &[0]);
    config.limits.hello = Duration::from_millis(50);
    let _node = Node::start(config).unwrap();
    let peer = impatient(net);
    peer.wait_connected();
    // For 3 seconds.
    peer.wait_for(0, 60);
    assert_eq!(peer.connections(), 1);

    let net = Net(121);
    let _silent = net.node(Layout::Current);
    let peer = impatient(net);
    peer.wait_connections(2);
}

#[test]
fn signs_of_life_may_have_anything_left_in_them() {
    for (net, layout) in (122..).map(Net).zip(Layout::ALL) {
        let node = net.node(layout);
        let server = bind(&node);
        let peer = net.peer(layout);
        peer.wait_connected();
        let mut hello = peer
            .asked(CLIENT, SERVER, &access(CLIENT, layout), name())
            .with(Field::Command, 0)
            .with(Field::SourceNode, 29)
            .with(Field::DestinationNode, 30)
            .with(Field::Dc, 31);
        let batch_at = layout.batch_at();
        hello.set_word(batch_at, 5);
        hello.set_word(batch_at + 4, 3);
        peer.send(&hello);
        peer.ask(CLIENT, SERVER, &access(CLIENT, layout), name());
        serve_access(&*server);
        assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
    }
}

#[test]
fn commands_that_are_defined_and_that_nobody_sends_do_nothing() {
    let net = Net(125);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    let frame = peer.asked(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    for command in [10, 11, 12, 13, 14, 0x2002, 0x2004, 0x200c, 0x200d, 0x200e] {
        peer.send(&frame.clone().with(Field::Command, command));
    }
    // Acknowledgements of every kind that no process waits for.
    for command in [0x2001, 0x2003, 0x2005, 0x2006, 0x2007, 0x2008] {
        for code in [0, -38, i32::MIN] {
            let ack = frame.clone().with(Field::Command, command);
            peer.send(&ack.with(Field::Result, code));
        }
    }
    peer.send(&frame);
    serve_access(&*server);
    assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
}
