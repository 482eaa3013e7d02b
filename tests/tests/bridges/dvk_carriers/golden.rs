//! Compares the bytes on the wire with vectors that a compiler made from DVK's own declarations.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use gangplank_dvk::carrier::node::Node;
use gangplank_tests::dvk_peer::{Frame, Layout, Outcome};
use serde_json::Value;

use crate::fixture::{CLIENT, Net, SERVER, access, bind, name, next_request, serve_access};

/// The bytes of vector `name`.
fn vector(name: &str) -> Vec<u8> {
    let document: Value =
        serde_json::from_str(include_str!("../../../../dvk-bridge/tests/vectors.json")).unwrap();
    let vectors = document["vectors"].as_array().unwrap();
    let vector = vectors
        .iter()
        .find(|vector| vector["name"] == name)
        .unwrap();
    let hex = vector["hex"].as_str().unwrap().as_bytes();
    let digits = hex.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// Asserts that `frame`'s header is vector `name`, but for what may be anything.
fn assert_is(frame: &Frame, name: &str) {
    let golden = Frame {
        header: vector(name),
        ..Frame::new(frame.layout)
    };
    assert_eq!(frame.essential(), golden.essential(), "{name}");
}

#[test]
fn a_whole_call_is_as_the_golden_vectors_have_it() {
    let net = Net(1);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    let serving = thread::spawn(move || serve_access(&*server));
    let request = peer.asked(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    assert_is(&request, "wire_1_sndrec_request");
    // The vector itself, with the process and time that it has.
    peer.send_bytes(&vector("wire_1_sndrec_request"));
    let Outcome::Reply(reply) = peer.outcome(CLIENT) else {
        panic!("no reply");
    };
    serving.join().unwrap();
    assert_eq!(reply, vector("access_dslash_x_reply_ok"));
    assert_is(&peer.wait_for(6, 1)[0], "wire_2_copyout_rqst");
    assert_is(&peer.wait_for(4, 1)[0], "wire_4_reply");
    assert_eq!(peer.lost(), []);
}

#[test]
fn data_for_a_client_is_as_the_golden_vector_has_it() {
    let net = Net(2);
    let node = net.node(Layout::Current);
    let server = bind(&node);
    let peer = net.peer(Layout::Current);
    peer.wait_connected();
    let stat = vector("lstat64_root_payload");
    let written = stat.clone();
    let serving = thread::spawn(move || {
        let (request, message) = next_request(&*server);
        server.copy_to(request, 0x4849_bc90, &written).unwrap();
        server.reply(request, &message.answer(0)).unwrap();
    });
    let memory = BTreeMap::from([(0x4849_bc90, vec![0xa5; 68])]);
    peer.ask(CLIENT, SERVER, &vector("lstat64_root_request"), memory);
    assert_eq!(
        peer.outcome(CLIENT),
        Outcome::Reply(vector("lstat64_root_reply_ok"))
    );
    serving.join().unwrap();
    let copy = &peer.wait_for(5, 1)[0];
    assert_is(copy, "wire_copyin_data");
    assert_eq!(copy.payload, stat);
    assert_eq!(peer.memory(CLIENT, 0x4849_bc90), stat);
}

#[test]
fn the_older_layouts_are_as_their_vectors_have_them() {
    for (net, layout) in [(Net(3), Layout::Legacy), (Net(4), Layout::Early)] {
        let node = net.node(layout);
        let server = bind(&node);
        let peer = net.peer(layout);
        peer.wait_connected();
        let serving = thread::spawn(move || serve_access(&*server));
        let request = peer.asked(CLIENT, SERVER, &access(CLIENT, layout), name());
        if layout == Layout::Legacy {
            assert_is(&request, "legacy132_sndrec");
        }
        peer.send(&request);
        assert!(
            matches!(peer.outcome(CLIENT), Outcome::Reply(_)),
            "{layout:?}"
        );
        serving.join().unwrap();
        let copy = &peer.wait_for(6, 1)[0];
        if layout == Layout::Legacy {
            assert_is(copy, "legacy132_copyout_rqst");
        }
        assert_eq!(copy.copy(), [CLIENT, SERVER, SERVER, 0x47d1_1000, 0, 3]);
        assert_eq!(peer.lost(), []);
    }
}

#[test]
fn nobody_there_is_told_as_the_golden_vector_has_it() {
    let net = Net(5);
    let node = net.node(Layout::Current);
    let peer = net.peer(Layout::Current);
    // Bound and given up again: the kernel over there has heard of it.
    drop(bind(&node));
    peer.wait_connected();
    peer.ask(CLIENT, SERVER, &access(CLIENT, Layout::Current), name());
    assert_eq!(peer.outcome(CLIENT), Outcome::Failed(-109));
    assert_is(&peer.wait_for(0x2003, 1)[0], "wire_sndrec_error");
}

#[test]
fn signs_of_life_and_announcements_are_as_the_golden_vectors_have_them() {
    let net = Net(6);
    let mut config = net.config(Layout::Current, &[0]);
    config.limits.hello = Duration::from_millis(30);
    config.peers[0].announce = true;
    let node = Node::start(config).unwrap();
    let _server = bind(&node);
    let peer = net.peer(Layout::Current);
    let frames = peer.wait_for(0, 3);
    assert_is(&frames[0], "wire_rmtbind");
    assert_is(&frames[2], "wire_hello");
}
