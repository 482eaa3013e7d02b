//! A daemon, servers by each carrier, their clients and their mounts, all running at once.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use gangplank_dvk::abi::{DcId, Endpoint, NodeId};
use gangplank_dvk::carrier::local::{Local, LocalConfig};
use gangplank_dvk::carrier::node::{Node, NodeConfig, PeerConfig};
use gangplank_dvk::endpoint::Carrier;
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk::{CLIENT_NODE, Mount, SERVER_NODE, Server, Switch, Topology};
use gangplank_tests::dvk_tunnel::{Between, Tunnel};
use gangplank_tests::process::User;
use tempfile::TempDir;

use super::Route;
use super::client::Client;
use super::driver::Driven;
use super::files::Files;
use super::nfs::Exported;
use crate::tree::{LARGE, LARGE_LEN};

/// The endpoints of the server and of the client.
const SERVER: Endpoint = Endpoint::from_raw(1);
const CLIENT: Endpoint = Endpoint::from_raw(11);

/// First port of the nodes. Runs at the same time use others.
const PORTS: u16 = 15_000;
/// Ports of a server's node and its client's.
const PORTS_EACH: u16 = 64;
/// The port of NFS, behind those of the nodes.
const NFS_PORT: u16 = 3 * PORTS_EACH;
/// Ports of all servers and clients of a run.
const PORTS_OF_A_RUN: u16 = 4 * PORTS_EACH;

/// The measured routes, and what they run on.
pub(crate) struct Fixture {
    /// The routes. They drop first, because they have files open in the mounts.
    routes: Vec<Route>,
    _mounts: Vec<Mount>,
    _tunnels: Vec<Tunnel>,
    _servers: Vec<Server>,
    _switch: Switch,
    _daemon: Daemon,
    _dir: TempDir,
}

impl Fixture {
    /// Starts everything on a share in `ram`. Calls `missing` for each omitted route.
    pub(crate) fn start(ram: &Path, mut missing: impl FnMut(&str)) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-bench-")
            .tempdir_in(ram)?;
        let share = dir.path().join("share");
        fs::create_dir(&share)?;
        let name = LARGE.to_str()?;
        let length = usize::try_from(LARGE_LEN)?;
        fs::write(share.join(name), vec![0x5a; length])?;
        let sandbox = if User::is_root() { "chroot" } else { "none" };
        let options = daemon::Options::new(&share).arguments(&[&format!("--sandbox={sandbox}")]);
        let daemon = Daemon::start(&options)?;

        let socket = dir.path().join("dvk.sock");
        let switch = Switch::start(&socket)?;
        let at_switch = Topology::switch(socket.clone());
        let ports = PORTS + u16::try_from(std::process::id() % 64)? * PORTS_OF_A_RUN;
        let nodes = [ports, ports + PORTS_EACH].map(Topology::loopback);
        let [for_client, for_mount] = &nodes;
        let server = |topology| Server::start(topology, daemon.socket());
        let local = server(&at_switch)?;
        let node = server(for_client)?;

        let daemons = vec![daemon.pid()];
        let with = |more: &[u32]| [daemons.as_slice(), more].concat();
        let path = format!("//{name}");
        let client = |carrier: Box<dyn Carrier>| Client::open(carrier, CLIENT, SERVER, &path);
        let by_switch = Box::new(Local::start(LocalConfig::new(socket.clone()))?);
        let by_node = Box::new(Node::start(node_config(ports)?)?);
        let mut routes = vec![
            Route {
                name: crate::score::DIRECT,
                access: Box::new(Files::on_host(&share.join(name))?),
                processes: Vec::new(),
            },
            Route {
                name: "virtio-fs",
                access: Box::new(Driven::open(daemon.socket(), LARGE)?),
                processes: with(&[]),
            },
            Route {
                name: "rhostfs-local",
                access: Box::new(client(by_switch).with_context(|| local.log())?),
                processes: with(&[switch.pid(), local.pid()]),
            },
            Route {
                name: "rhostfs-node",
                access: Box::new(client(by_node).with_context(|| node.log())?),
                processes: with(&[node.pid()]),
            },
        ];
        let mut tunnels = Vec::new();
        let tunnel_switch = Switch::start(&dir.path().join("tunnel.sock"))?;
        for (name, switch, between) in [
            (
                "tunnel-local",
                Some(tunnel_switch.pid()),
                Between::Switch(tunnel_switch),
            ),
            (
                "tunnel-node",
                None,
                Between::Loopback(ports + 2 * PORTS_EACH),
            ),
        ] {
            let tunnel = Tunnel::start(between, daemon.socket(), "", &[])?;
            let driven = Driven::open(&tunnel.socket(), LARGE);
            let others: Vec<u32> = tunnel.pids().into_iter().chain(switch).collect();
            routes.push(Route {
                name,
                access: Box::new(driven.with_context(|| tunnel.log())?),
                processes: with(&others),
            });
            tunnels.push(tunnel);
        }
        let exported = Exported::start(daemon.socket(), ports + NFS_PORT, name)?;
        routes.push(Route {
            name: "nfs",
            processes: with(&[exported.pid()]),
            access: Box::new(exported),
        });
        let mut servers = vec![local, node];
        let mut mounts = Vec::new();
        if User::is_root() && Path::new("/dev/fuse").exists() {
            let far = server(for_mount)?;
            let local = servers.first().context("a server at the switch")?;
            for (name, topology, server, switch) in [
                ("mount-local", &at_switch, local, Some(switch.pid())),
                ("mount-node", for_mount, &far, None),
            ] {
                let mount = Mount::start(topology, &["--timeout", "0"])?;
                let others: Vec<u32> = [server.pid(), mount.pid()]
                    .into_iter()
                    .chain(switch)
                    .collect();
                routes.push(Route {
                    name,
                    access: Box::new(Files::in_mount(&mount.point().join(LARGE.to_str()?))?),
                    processes: with(&others),
                });
                mounts.push(mount);
            }
            servers.push(far);
        } else {
            missing("rhostfs is not mounted, because that needs root and /dev/fuse");
        }
        Ok(Self {
            routes,
            _mounts: mounts,
            _tunnels: tunnels,
            _servers: servers,
            _switch: switch,
            _daemon: daemon,
            _dir: dir,
        })
    }

    /// The routes, to be used one at a time.
    pub(super) fn routes(&mut self) -> &mut [Route] {
        &mut self.routes
    }

    /// The name and description of each route.
    pub(crate) fn names(&self) -> impl Iterator<Item = (String, String)> {
        let names = self.routes.iter().map(|it| it.name);
        names.map(|name| (name.to_owned(), meaning(name).to_owned()))
    }
}

/// The configuration of this process as a node, in place of a mount, with the server's node at
/// `ports`.
fn node_config(ports: u16) -> Result<NodeConfig> {
    let id = |number: u8| NodeId::new(number.into()).context("a node's number");
    let mut peer = PeerConfig::new(id(SERVER_NODE)?, "127.0.0.1");
    peer.port_base = ports;
    peer.endpoints = vec![(DcId::new(0).context("container 0")?, SERVER)];
    let mut config = NodeConfig::new(id(CLIENT_NODE)?);
    config.port_base = ports + PORTS_EACH / 2;
    config.peers = vec![peer];
    Ok(config)
}

fn meaning(name: &str) -> &'static str {
    match name {
        "direct" => "system calls",
        "virtio-fs" => "gangplankd by the driver that the rhostfs server has",
        "rhostfs-local" => "gangplank-dvk serve by a switch, behind it gangplankd",
        "rhostfs-node" => "gangplank-dvk serve over TCP, behind it gangplankd",
        "tunnel-local" => "gangplank-dvk tunnel by a switch, before it the driver",
        "tunnel-node" => "gangplank-dvk tunnel over TCP, before it the driver",
        "nfs" => "NFSv3 over TCP to gangplank-nfs, behind it gangplankd",
        "mount-local" => "gangplank-dvk mount by a switch",
        "mount-node" => "gangplank-dvk mount over TCP",
        _ => "",
    }
}
