//! Several containers on one node: the same endpoints with different processes.

use std::collections::HashMap;
use std::thread;

use gangplank_dvk::abi::{Code, DcId, DcLimits, Endpoint, Message};
use gangplank_dvk::carrier::node::Node;
use gangplank_dvk::endpoint::{BoundEndpoint, Carrier, SharedBuffers};
use gangplank_tests::dvk_peer::{Field, Layout, Outcome, Peer, Reason};

use crate::fixture::{CLIENT, LIMIT, NAME_AT, Net, SERVER, access, connect, name, next_request};

fn dc(id: i32) -> DcId {
    DcId::new(id).unwrap()
}

/// Our node in containers `ours`, beside a node that has bound the server of containers `theirs`.
fn nodes(net: Net, layout: Layout, ours: &[i32], theirs: &[i32]) -> (Node, Peer) {
    let mut config = net.config(layout, &[0]);
    config.dcs = ours
        .iter()
        .map(|&id| (dc(id), DcLimits::USUAL))
        .collect::<HashMap<_, _>>();
    let node = Node::start(config).unwrap();
    let peer = Peer::start(net.setup(0, layout)).unwrap();
    for &id in theirs {
        peer.add_container(id, &[0, 1]);
        assert_eq!(peer.bind_remote((id, SERVER), 1), SERVER);
    }
    connect(&node, &peer);
    (node, peer)
}

/// Replies to the next request with the container's number, after copying it into its name.
fn serve(server: &dyn BoundEndpoint) {
    let (request, message) = next_request(server);
    let number = server.dc().raw();
    server
        .copy_to(request, NAME_AT, &[u8::try_from(number).unwrap(); 3])
        .unwrap();
    server.reply(request, &message.answer(number)).unwrap();
}

#[test]
fn each_containers_server_gets_the_requests_of_its_own() {
    for (net, layout) in (70..).map(Net).zip(Layout::ALL) {
        let ids = [0, 1, 31];
        let (node, peer) = nodes(net, layout, &ids, &ids);
        let servers = ids.map(|id| {
            let server = node.bind(dc(id), Endpoint::from_raw(SERVER), "server");
            server.unwrap()
        });
        for id in ids {
            peer.ask((id, CLIENT), SERVER, &access(CLIENT, layout), name());
        }
        let serving = servers.map(|server| thread::spawn(move || serve(&*server)));
        for id in ids {
            let Outcome::Reply(reply) = peer.outcome((id, CLIENT)) else {
                panic!("no reply in container {id}");
            };
            assert_eq!(reply[4..8], id.to_le_bytes());
            let copied = [u8::try_from(id).unwrap(); 3];
            assert_eq!(peer.memory((id, CLIENT), NAME_AT), copied);
        }
        for serving in serving {
            serving.join().unwrap();
        }
        assert_eq!(peer.lost(), []);
    }
}

#[test]
fn a_client_that_goes_in_one_container_stays_in_the_other() {
    let (node, peer) = nodes(Net(73), Layout::Current, &[0, 1], &[0, 1]);
    let servers = [0, 1].map(|id| {
        let server = node.bind(dc(id), Endpoint::from_raw(SERVER), "server");
        server.unwrap()
    });
    let request = access(CLIENT, Layout::Current);
    let [first, second] = [0, 1].map(|id| {
        peer.ask((id, CLIENT), SERVER, &request, name());
        next_request(&*servers[usize::try_from(id).unwrap()])
    });
    peer.exit((0, CLIENT));
    let error = servers[0].reply(first.0, &first.1).unwrap_err();
    assert_eq!(error.code(), Code::EDVSDSTDIED);
    servers[1].reply(second.0, &second.1.answer(5)).unwrap();
    assert!(matches!(peer.outcome((1, CLIENT)), Outcome::Reply(_)));
}

#[test]
fn who_asks_in_a_container_that_we_are_not_in_is_told() {
    for (net, layout) in (74..).map(Net).zip(Layout::ALL) {
        let (node, peer) = nodes(net, layout, &[0], &[0, 5]);
        let server = node.bind(dc(0), Endpoint::from_raw(SERVER), "server");
        let server = server.unwrap();
        peer.ask((5, CLIENT), SERVER, &access(CLIENT, layout), name());
        let code = Code::EDVSBADDCID.result();
        assert_eq!(peer.outcome((5, CLIENT)), Outcome::Failed(code));
        assert_eq!(peer.wait_for(0x2003, 1)[0].get(Field::Dc), 5);
        // The same process in a container that we are in.
        peer.ask(CLIENT, SERVER, &access(CLIENT, layout), name());
        serve(&*server);
        assert!(matches!(peer.outcome(CLIENT), Outcome::Reply(_)));
    }
}

#[test]
fn what_we_send_in_a_container_that_the_other_is_not_in_is_lost_and_ends_at_the_limit() {
    let net = Net(77);
    let mut config = net.config(Layout::Current, &[0]);
    config.dcs.insert(dc(9), DcLimits::USUAL);
    config.limits.exchange = LIMIT / 100;
    let node = Node::start(config).unwrap();
    let peer = net.peer(Layout::Current);
    connect(&node, &peer);
    let client = node
        .bind(dc(9), Endpoint::from_raw(SERVER), "client")
        .unwrap();
    let error = client
        .send(Endpoint::from_raw(2), &Message::default(), LIMIT / 100)
        .unwrap_err();
    assert_eq!(error.code(), Code::EDVSTIMEDOUT);
    peer.wait_lost(Reason::NoContainer);
    // It knows the container now, but not that we are in it.
    peer.add_container(9, &[0]);
    let asked = client.sendrec(
        Endpoint::from_raw(2),
        &Message::default(),
        &mut SharedBuffers::new(),
        LIMIT / 100,
    );
    assert_eq!(asked.unwrap_err().code(), Code::EDVSTIMEDOUT);
    peer.wait_lost(Reason::NoNodeOfContainer);
}

#[test]
fn a_thousand_clients_of_a_node_are_served() {
    let ids: Vec<i32> = (0..6).collect();
    let (node, peer) = nodes(Net(78), Layout::Current, &ids, &ids);
    let serving: Vec<_> = ids
        .iter()
        .map(|&id| {
            let server = node.bind(dc(id), Endpoint::from_raw(SERVER), "server");
            let server = server.unwrap();
            thread::spawn(move || {
                // All send a request before one gets a reply.
                let asked: Vec<_> = (30..220).map(|_| next_request(&*server)).collect();
                for (request, message) in asked {
                    server.copy_from(request, NAME_AT, &mut [0; 3]).unwrap();
                    let answer = message.answer(request.client().raw());
                    server.reply(request, &answer).unwrap();
                }
            })
        })
        .collect();
    let clients = || ids.iter().flat_map(|&id| (30..220).map(move |it| (id, it)));
    for (id, client) in clients() {
        let request = access(client, Layout::Current);
        peer.ask((id, client), SERVER, &request, name());
    }
    for (id, client) in clients() {
        let Outcome::Reply(reply) = peer.outcome((id, client)) else {
            panic!("no reply for {client} of container {id}");
        };
        assert_eq!(reply[4..8], client.to_le_bytes());
    }
    for serving in serving {
        serving.join().unwrap();
    }
    assert_eq!(peer.lost(), []);
}
