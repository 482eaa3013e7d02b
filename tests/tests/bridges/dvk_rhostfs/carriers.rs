//! The server over real carriers: nodes and a switch.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gangplank_driver::{Driver, InitOptions, Options};
use gangplank_dvk::abi::{Endpoint, Generation, Message, NodeId};
use gangplank_dvk::carrier::local::{Local, LocalConfig};
use gangplank_dvk::carrier::node::{Node, NodeConfig, PeerConfig};
use gangplank_dvk::endpoint::{BoundEndpoint, Carrier, SharedBuffers};
use gangplank_dvk::switch::{Stop, Switch, SwitchConfig};
use gangplank_fuse::{Handle, NodeId as FuseNode, OpenIn};
use gangplank_tests::daemon::{self, Daemon};
use tempfile::TempDir;

use rustix::io::Errno;

use crate::client::{Client, LIMIT, STACK_1};
use crate::fixture::{CLIENT, SERVER, Serving, dc, options, ports, wait_until};
use crate::loopback_carrier::LoopbackCarrier;

const EBADF: i32 = Errno::BADF.raw_os_error();

/// Two nodes that know each other: the server's and the clients'.
struct Nodes {
    server: NodeConfig,
    client: NodeConfig,
}

impl Nodes {
    fn new(generation: Generation) -> Result<Self> {
        let id = |raw| NodeId::new(raw).expect("there are 32");
        let (mut server, mut client) = (NodeConfig::new(id(1)), NodeConfig::new(id(0)));
        // Each listens at its first port and the other's id.
        let first = ports();
        server.port_base = first;
        client.port_base = first + 1;
        let peer = |of: &NodeConfig| PeerConfig {
            port_base: of.port_base,
            generation,
            ..PeerConfig::new(of.id, "127.0.0.1")
        };
        let (to_server, to_client) = (peer(&server), peer(&client));
        server.peers = vec![to_client];
        client.peers = vec![PeerConfig {
            endpoints: vec![(dc(), SERVER)],
            ..to_server
        }];
        for config in [&mut server, &mut client] {
            config.limits.retry = Duration::from_millis(50);
        }
        Ok(Self { server, client })
    }

    fn clients(&self) -> Result<Node> {
        Ok(Node::start(self.client.clone())?)
    }
}

/// A daemon and a server on a node of its own.
struct Fixture {
    share: TempDir,
    daemon: Daemon,
    nodes: Nodes,
    /// `None` between two servers.
    serving: Option<(Serving, Node)>,
}

impl Fixture {
    fn new(generation: Generation) -> Result<Self> {
        let share = tempfile::tempdir()?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
        let nodes = Nodes::new(generation)?;
        let mut fixture = Self {
            share,
            daemon,
            nodes,
            serving: None,
        };
        fixture.restart()?;
        Ok(fixture)
    }

    /// Replaces the server by another one on another node.
    fn restart(&mut self) -> Result<()> {
        self.serving = None;
        let server = Node::start(self.nodes.server.clone())?;
        let serving = Serving::start(&server, &options(self.daemon.socket()))?;
        serving.wait()?;
        self.serving = Some((serving, server));
        Ok(())
    }
}

/// A client on a carrier, once the server is reached.
pub(crate) fn client_on(carrier: &dyn Carrier, endpoint: Endpoint) -> Result<Client> {
    client_of(carrier, endpoint, SERVER)
}

/// The same of another server.
pub(crate) fn client_of(
    carrier: &dyn Carrier,
    endpoint: Endpoint,
    server: Endpoint,
) -> Result<Client> {
    let bound = carrier.bind(dc(), endpoint, "client")?;
    reached(&*bound, server)?;
    Ok(Client::new(bound, server))
}

/// Waits until `server` answers.
fn reached(client: &dyn BoundEndpoint, server: Endpoint) -> Result<()> {
    let nonsense = Message::new(19, &STACK_1);
    wait_until("the server is reached", || {
        client
            .sendrec(server, &nonsense, &mut SharedBuffers::new(), LIMIT)
            .is_ok()
    })
}

/// Work of every kind in a directory of its own.
pub(crate) fn work(client: &Client, directory: &str) {
    client.mkdir(directory, 0o700).unwrap();
    let name = |name: &str| format!("{directory}/{name}");
    let file = client.create(&name("file"), 0o644).unwrap();
    let data: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    for (piece, at) in data.chunks(4096).zip((0..).step_by(4096)) {
        assert_eq!(client.pwrite(file, piece, at), Ok(piece.len()));
    }
    assert_eq!(client.fstat_by(197, file).unwrap().size, 200_000);
    assert_eq!(
        client.pread(file, 200_001, 0).as_deref(),
        Ok(&data[..]),
        "in one call"
    );
    assert_eq!(client.pwrite(file, &data, 200_000), Ok(200_000));
    client.close(file).unwrap();
    client.rename(&name("file"), &name("moved")).unwrap();
    client.link(&name("moved"), &name("second")).unwrap();
    assert_eq!(client.names(directory).unwrap(), ["moved", "second"]);
    assert_eq!(client.lstat64(&name("moved")).unwrap().size, 400_000);
    client.unlink(&name("moved")).unwrap();
    client.unlink(&name("second")).unwrap();
    client.rmdir(directory).unwrap();
}

#[test]
fn a_node_serves_another_in_each_generation() -> Result<()> {
    for generation in Generation::ALL {
        let fixture = Fixture::new(generation)?;
        let clients = fixture.nodes.clients()?;
        work(&client_on(&clients, CLIENT)?, "//work");
        ensure!(
            fs::read_dir(fixture.share.path())?.next().is_none(),
            "{generation:?}"
        );
    }
    Ok(())
}

#[test]
fn clients_of_a_node_work_at_once() -> Result<()> {
    let fixture = Fixture::new(Generation::Current)?;
    let clients = fixture.nodes.clients()?;
    thread::scope(|scope| {
        for raw in 10..16 {
            let client = client_on(&clients, Endpoint::from_raw(raw)).unwrap();
            scope.spawn(move || work(&client, &format!("//work-{raw}")));
        }
    });
    Ok(())
}

#[test]
fn what_clients_held_goes_with_their_node() -> Result<()> {
    let fixture = Fixture::new(Generation::Current)?;
    fs::write(fixture.share.path().join("file"), b"contents")?;
    let idle = fixture.daemon.descriptors()?;
    for _ in 0..2 {
        let clients = fixture.nodes.clients()?;
        let client = client_on(&clients, CLIENT)?;
        let first = client.open("//file", 0).unwrap();
        for number in 1..20 {
            let file = client.open("//file", 0);
            ensure!(file == Ok(first + number), "nothing was open");
        }
        ensure!(fixture.daemon.descriptors()? >= idle + 20);
        // The client does not say that it ends.
        std::mem::forget(client);
        drop(clients);
        wait_until("its files are closed", || {
            fixture
                .daemon
                .descriptors()
                .is_ok_and(|now| now <= idle + 1)
        })?;
    }
    Ok(())
}

/// A kernel keeps its numbers when the server restarts.
#[test]
fn numbers_of_an_earlier_server_mean_nothing_to_the_next() -> Result<()> {
    let mut fixture = Fixture::new(Generation::Current)?;
    for name in ["first", "second"] {
        fs::write(fixture.share.path().join(name), name)?;
    }
    let clients = fixture.nodes.clients()?;
    let bound = clients.bind(dc(), CLIENT, "client")?;
    reached(&*bound, SERVER)?;
    let client = Client::new(Arc::clone(&bound), SERVER);
    let (first, listed) = (client.open("//first", 2), client.opendir("//"));
    fixture.restart()?;
    reached(&*bound, SERVER)?;
    let (second, listing) = (client.open("//second", 2), client.opendir("//"));
    ensure!(second.is_ok() && second != first && listing.is_ok() && listing != listed);
    ensure!(client.pwrite(first.unwrap(), b"FIRST", 0) == Err(EBADF));
    ensure!(client.readdir(listed.unwrap()) == Err(EBADF));
    ensure!(client.close(first.unwrap()) == Err(EBADF));
    ensure!(fs::read(fixture.share.path().join("second"))? == b"second");
    Ok(())
}

/// A switch, until it is dropped.
pub(crate) struct Switching {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

impl Switching {
    /// A switch that listens at `socket`.
    pub(crate) fn start_at(socket: &Path) -> Result<Self> {
        let switch = Switch::new(SwitchConfig::new(socket.to_owned()))?;
        let stop = switch.stopper();
        let thread = thread::spawn(move || switch.run().expect("the switch serves to its end"));
        Ok(Self {
            stop,
            thread: Some(thread),
            socket: socket.to_owned(),
        })
    }

    /// A program's connection.
    pub(crate) fn join(&self) -> Result<Local> {
        Ok(Local::start(LocalConfig::new(self.socket.clone()))?)
    }
}

impl Drop for Switching {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the switch has not panicked");
        }
    }
}

#[test]
fn programs_of_one_host_are_served_by_a_switch() -> Result<()> {
    let place_of_switch = tempfile::tempdir()?;
    let switch = Switching::start_at(&place_of_switch.path().join("dvk.sock"))?;
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let server = switch.join()?;
    let serving = Serving::start(&server, &options(daemon.socket()))?;
    serving.wait()?;
    let idle = daemon.descriptors()?;
    thread::scope(|scope| {
        for raw in 10..14 {
            let clients = switch.join().unwrap();
            let client = client_on(&clients, Endpoint::from_raw(raw)).unwrap();
            scope.spawn(move || {
                work(&client, &format!("//work-{raw}"));
                client.create(&format!("//left-{raw}"), 0o600).unwrap();
                // Its program ends without unbinding.
                drop(clients);
            });
        }
    });
    wait_until("what clients left open is closed", || {
        daemon.descriptors().is_ok_and(|now| now <= idle + 5)
    })?;
    ensure!(fs::read_dir(share.path())?.count() == 4);
    Ok(())
}

/// The median duration of `count` runs of `go`.
fn median(count: usize, mut go: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let started = Instant::now();
            go();
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[count / 2]
}

/// Prints the duration of a stat and of a read of a page: by the driver alone, by the server
/// without a carrier, and by the server over a node.
#[test]
#[ignore = "for people, who look at the figures"]
fn latency() -> Result<()> {
    const ROUNDS: usize = 2000;
    let fixture = Fixture::new(Generation::Current)?;
    fs::write(fixture.share.path().join("file"), vec![7; 4096])?;

    let driver = Driver::connect(fixture.daemon.socket(), &Options::default())?;
    let session = driver.session(&InitOptions::default())?;
    let entry = session.lookup(FuseNode::ROOT, c"file")?;
    let node = FuseNode::new(entry.nodeid);
    let open = session.open(node, OpenIn::default())?;
    let stat = median(ROUNDS, || drop(session.lookup(FuseNode::ROOT, c"file")));
    let read = median(ROUNDS, || {
        drop(session.read(node, Handle::new(open.fh), 0, 4096))
    });
    eprintln!("driver alone        stat {stat:>10?}   read of 4 KiB {read:>10?}");

    let carrier = LoopbackCarrier::default();
    let serving = Serving::start(&carrier, &options(fixture.daemon.socket()))?;
    serving.wait()?;
    let clients = fixture.nodes.clients()?;
    let place_of_switch = tempfile::tempdir()?;
    let switch = Switching::start_at(&place_of_switch.path().join("dvk.sock"))?;
    let local = (switch.join()?, switch.join()?);
    let locally = Serving::start(&local.0, &options(fixture.daemon.socket()))?;
    locally.wait()?;
    for (what, client) in [
        ("without a carrier", client_on(&carrier, CLIENT)?),
        ("by a switch", client_on(&local.1, CLIENT)?),
        ("over a node", client_on(&clients, CLIENT)?),
    ] {
        let file = client.open("//file", 0).unwrap();
        let stat = median(ROUNDS, || assert!(client.lstat64("//file").is_ok()));
        let read = median(ROUNDS, || assert!(client.pread(file, 4096, 0).is_ok()));
        eprintln!("{what:<19} stat {stat:>10?}   read of 4 KiB {read:>10?}");
        ensure!(stat < Duration::from_millis(100) && read < Duration::from_millis(100));
    }
    Ok(())
}
