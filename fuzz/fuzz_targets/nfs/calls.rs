//! The stream of a client: records of any division, and calls of every program in them. No input
//! causes a panic or an allocation beyond what was sent, and every call gets a reply.
//!
//! The daemon is absent, and no handle that the fuzzer makes is valid. So procedures are decoded
//! to the end and refused.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use gangplank_nfs::exports::Exports;
use gangplank_nfs::mount3::Mount3;
use gangplank_nfs::nfs3::Nfs3;
use gangplank_nfs::nlm::Nlm4;
use gangplank_nfs::nlm::locks::Locks;
use gangplank_nfs::nsm::{Monitor, Nsm1};
use gangplank_nfs::portmap::Portmap;
use gangplank_nfs::rpc::client::{RpcClient, SendDatagram};
use gangplank_nfs::rpc::message::{BadCall, Call};
use gangplank_nfs::rpc::program::Endpoints;
use gangplank_nfs::rpc::record::Assembler;
use gangplank_nfs::rpc::reply::Reply;
use gangplank_nfs::rpc::server::Server;
use gangplank_nfs::share::Share;
use gangplank_nfs::share::connector::Connector;
use gangplank_nfs::share::store::Store;
use libfuzzer_sys::fuzz_target;

/// Nobody is called.
struct Nowhere;

impl SendDatagram for Nowhere {
    fn send(&self, _: IpAddr, _: SocketAddr, _: Vec<u8>) {}
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let connector = Connector::start(
        PathBuf::from("/nonexistent"),
        Duration::from_secs(1),
        Duration::ZERO,
        1,
    );
    let connector = connector.expect("a thread");
    // Nobody may mount, so that no call waits for the daemon.
    let exports = Exports::parse("/ 192.0.2.1").expect("rules");
    let share = Share::new(connector, Store::default(), exports).expect("random numbers");
    let share = Arc::new(share);
    let locks = Locks::start(Arc::clone(&share), None).expect("a thread");
    let monitor = Arc::new(Monitor::open(None).expect("no file"));
    let client = RpcClient::start(Box::new(Nowhere)).expect("a thread");
    Server::new(vec![
        Arc::new(Nfs3::new(Arc::clone(&share))),
        Arc::new(Nlm4::new(
            Arc::clone(&share),
            Arc::clone(&locks),
            Arc::clone(&monitor),
            client,
        )),
        Arc::new(Nsm1::new(monitor, locks)),
        Arc::new(Mount3::new(share)),
        Arc::new(Portmap::new(Vec::new())),
    ])
});

const ENDPOINTS: Endpoints = Endpoints {
    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
    client_port: 1023,
    server: IpAddr::V4(Ipv4Addr::LOCALHOST),
};

fn execute(record: &[u8]) {
    let is_call = !matches!(Call::parse(record), Err(BadCall::NoCall));
    let replied = Arc::new(AtomicBool::new(false));
    let place = Arc::clone(&replied);
    let respond = move |reply: Option<Arc<Reply>>| place.store(reply.is_some(), Ordering::Relaxed);
    SERVER.execute(ENDPOINTS, record, Box::new(respond));
    assert_eq!(replied.load(Ordering::Relaxed), is_call);
}

fuzz_target!(|bytes: &[u8]| {
    execute(bytes);
    let mut assembler = Assembler::new(1 << 16);
    let mut rest = bytes;
    while let Ok(Some(record)) = assembler.take(&mut rest) {
        execute(&record);
    }
});
