//! Checks the lines of a configuration and converts them, or reports everything that is wrong.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::entries::{Choice, Entries, YES_NO, first_word};
use super::fault::{Fault, Location};
use super::parser::Line;
use super::{Block, CarrierKind, Config, VirtqueueBlock, virtqueue};
use crate::abi::{DcId, DcLimits, Endpoint, Generation, NodeId};
use crate::carrier::local::LocalConfig;
use crate::carrier::node::{NodeConfig, PeerConfig};
use crate::rhostfs::server::{self, SymlinkPolicy};

const SERVER_KEYS: &[&str] = &[
    "rhs_dcid",
    "rhs_ep",
    "rhs_dir",
    "rhs_socket",
    "rhs_carrier",
    "rhs_links",
    "rhs_uid",
    "rhs_gid",
    "rhs_readonly",
    "rhs_clients",
    "rhs_files",
    "rhs_open",
    "rhs_threads",
    "rhs_cache_ms",
    "rhs_limit_s",
];
/// The key `rhs_dcid` was called `dcid` in 2019.
const SERVER_ALIASES: &[(&str, &str)] = &[("dcid", "rhs_dcid")];
const NODE_KEYS: &[&str] = &["node_id", "node_address", "node_port_base"];
const PEER_KEYS: &[&str] = &[
    "peer_id",
    "peer_host",
    "peer_port_base",
    "peer_generation",
    "peer_announce",
];
const LOCAL_KEYS: &[&str] = &["local_socket", "local_switch_uid"];
const DC_KEYS: &[&str] = &["dc_id", "dc_procs", "dc_tasks", "dc_sysprocs"];

pub(super) const CARRIER_KINDS: Choice<'static, CarrierKind> = &[
    ("node", CarrierKind::Node),
    ("local", CarrierKind::Local),
    ("device", CarrierKind::Device),
];
const SYMLINK_POLICIES: Choice<'static, SymlinkPolicy> = &[
    ("refuse", SymlinkPolicy::Refuse),
    ("follow", SymlinkPolicy::Follow),
    ("patched", SymlinkPolicy::Patched),
];
const GENERATIONS: Choice<'static, Generation> = &[
    ("current", Generation::Current),
    ("legacy", Generation::Legacy),
    ("early", Generation::Early),
];

/// Limit of a container's processes, tasks and system processes, which no DVK exceeds.
const MAX_PROCS: u32 = 4096;
/// The highest first port that leaves room for the ports of 32 nodes.
const LAST_PORT_BASE: u32 = 65_535 - 31;

/// The blocks of a file by kind.
#[derive(Default)]
struct Blocks {
    servers: Vec<Entries<'static>>,
    virtqueues: Vec<Entries<'static>>,
    peers: Vec<Entries<'static>>,
    dcs: Vec<Entries<'static>>,
    node: Option<Entries<'static>>,
    local: Option<Entries<'static>>,
}

/// Converts the lines of `file`. Servers without a daemon's socket take `socket`.
pub(super) fn check(
    file: &Path,
    lines: &[Line],
    socket: Option<&Path>,
    faults: &mut Vec<Fault>,
) -> Config {
    let blocks = sort(lines, faults);
    let dcs = containers(&blocks.dcs, faults);
    let mut servers = Vec::new();
    for entries in &blocks.servers {
        servers.extend(server(entries, &dcs, socket, faults));
    }
    let mut virtqueues = Vec::new();
    for entries in &blocks.virtqueues {
        virtqueues.extend(virtqueue::check(entries, &dcs, socket, faults));
    }
    let used = used_endpoints(&servers, &virtqueues);
    for (index, server) in used.iter().enumerate() {
        let mut others = used.iter().take(index);
        let common = others.find_map(|other| Some((other, server.common_with(other)?)));
        if let Some((other, endpoint)) = common {
            let (name, dc) = (other.name, other.dc);
            let what = format!("{name} has endpoint {endpoint} of container {dc} as well");
            faults.push(Fault::new(server.at, server.name, what));
        }
    }
    let mut node = node(&blocks, faults);
    let mut local = blocks
        .local
        .as_ref()
        .and_then(|entries| local(entries, faults));
    for server in &used {
        let lacks = match server.carrier_kind {
            CarrierKind::Node if blocks.node.is_none() => "a block `node` that defines this node",
            CarrierKind::Local if blocks.local.is_none() => "a block `local` that names the switch",
            _ => continue,
        };
        faults.push(Fault::new(
            server.at,
            server.name,
            format!("its carrier needs {lacks}"),
        ));
    }
    if blocks.servers.is_empty() && blocks.virtqueues.is_empty() && faults.is_empty() {
        let at = Location {
            file: file.into(),
            line: 1,
        };
        faults.push(Fault::new(
            &at,
            "rhs",
            "no block `rhs` or `virtqueue` defines a share to serve",
        ));
    }
    let dcs = dimensions(&used, &dcs);
    if let Some(node) = &mut node {
        node.dcs.clone_from(&dcs);
    }
    if let Some(local) = &mut local {
        local.dcs.clone_from(&dcs);
    }
    Config {
        dcs,
        virtqueues: virtqueues.into_iter().map(|(block, _)| block).collect(),
        servers: servers.into_iter().map(|(block, _)| block).collect(),
        node,
        local,
        warnings: Vec::new(),
    }
}

fn sort(lines: &[Line], faults: &mut Vec<Fault>) -> Blocks {
    let mut blocks = Blocks::default();
    for line in lines {
        let word = first_word(line);
        let once = |known: &Option<Entries<'static>>, faults: &mut Vec<Fault>| {
            if let Some(known) = known {
                let what = format!("line {} already has one", known.at.line);
                faults.push(Fault::new(&line.at, word.clone(), what));
            }
        };
        match word.as_str() {
            "rhs" => {
                let read = Entries::read(line, SERVER_KEYS, SERVER_ALIASES, faults);
                blocks.servers.extend(read);
            }
            "virtqueue" => {
                let read = Entries::read(line, virtqueue::KEYS, &[], faults);
                blocks.virtqueues.extend(read);
            }
            "peer" => blocks
                .peers
                .extend(Entries::read(line, PEER_KEYS, &[], faults)),
            "dc" => blocks.dcs.extend(Entries::read(line, DC_KEYS, &[], faults)),
            "node" => {
                once(&blocks.node, faults);
                blocks.node = Entries::read(line, NODE_KEYS, &[], faults);
            }
            "local" => {
                once(&blocks.local, faults);
                blocks.local = Entries::read(line, LOCAL_KEYS, &[], faults);
            }
            _ => {
                let what = "unknown block: use rhs, virtqueue, node, peer, local, dc or include";
                faults.push(Fault::new(&line.at, word, what));
            }
        }
    }
    blocks
}

fn containers(blocks: &[Entries<'_>], faults: &mut Vec<Fault>) -> HashMap<DcId, DcLimits> {
    let mut dcs = HashMap::new();
    for entries in blocks {
        let usual = DcLimits::USUAL;
        let mut number = |key, otherwise| {
            let number = entries.number(key, 1, MAX_PROCS, faults);
            number
                .and_then(|number| i32::try_from(number).ok())
                .unwrap_or(otherwise)
        };
        let limits = DcLimits {
            procs: number("dc_procs", usual.procs),
            tasks: number("dc_tasks", usual.tasks),
            sysprocs: number("dc_sysprocs", usual.sysprocs),
        };
        if limits.sysprocs <= limits.tasks {
            entries.wrong("dc_sysprocs", "must be more than dc_tasks", faults);
        }
        let Some(dc) = dc_id(entries, "dc_id", faults) else {
            continue;
        };
        if dcs.insert(dc, limits).is_some() {
            entries.wrong("dc_id", "another block has the same container", faults);
        }
    }
    dcs
}

/// The endpoints of a server of either kind.
struct UsedEndpoints<'a> {
    name: &'a str,
    at: &'a Location,
    dc: DcId,
    carrier_kind: CarrierKind,
    endpoints: &'a [Endpoint],
}

impl UsedEndpoints<'_> {
    /// The first endpoint that both have.
    fn common_with(&self, other: &Self) -> Option<Endpoint> {
        let mut own = self.endpoints.iter().filter(|_| self.dc == other.dc);
        own.find(|endpoint| other.endpoints.contains(endpoint))
            .copied()
    }
}

fn used_endpoints<'a>(
    servers: &'a [(Block, Location)],
    virtqueues: &'a [(VirtqueueBlock, Location)],
) -> Vec<UsedEndpoints<'a>> {
    let servers = servers.iter().map(|(block, at)| UsedEndpoints {
        name: &block.name,
        at,
        dc: block.dc,
        carrier_kind: block.carrier_kind,
        endpoints: std::slice::from_ref(&block.endpoint),
    });
    let virtqueues = virtqueues.iter().map(|(block, at)| UsedEndpoints {
        name: &block.name,
        at,
        dc: block.dc,
        carrier_kind: block.carrier_kind,
        endpoints: &block.endpoints,
    });
    servers.chain(virtqueues).collect()
}

/// The dimensions of the servers' containers, [`DcLimits::USUAL`] unless configured.
fn dimensions(
    servers: &[UsedEndpoints<'_>],
    dcs: &HashMap<DcId, DcLimits>,
) -> HashMap<DcId, DcLimits> {
    let dcs_of = servers.iter().map(|server| server.dc);
    dcs_of.map(|dc| (dc, limits_of(Some(dc), dcs))).collect()
}

/// The dimensions of a container.
pub(super) fn limits_of(dc: Option<DcId>, dcs: &HashMap<DcId, DcLimits>) -> DcLimits {
    let known = dc.and_then(|dc| dcs.get(&dc)).copied();
    known.unwrap_or(DcLimits::USUAL)
}

/// The last endpoint that a server can have: a user process may not copy from and to its clients.
pub(super) fn last_server_endpoint(limits: DcLimits) -> u32 {
    let last = limits
        .sysprocs
        .saturating_sub(limits.tasks)
        .saturating_sub(1);
    u32::try_from(last).unwrap_or_default()
}

/// The daemon's socket: that of the block, or else `socket`.
pub(super) fn daemon_socket(
    entries: &Entries<'_>,
    key: &str,
    socket: Option<&Path>,
    faults: &mut Vec<Fault>,
) -> Option<PathBuf> {
    if entries.has(key) {
        return entries.quoted(key, faults).map(PathBuf::from);
    }
    if socket.is_none() {
        entries.missing(key, faults);
    }
    socket.map(Path::to_owned)
}

pub(super) fn dc_id(entries: &Entries<'_>, key: &str, faults: &mut Vec<Fault>) -> Option<DcId> {
    if !entries.has(key) {
        entries.missing(key, faults);
        return None;
    }
    let most = u32::from(DcId::COUNT) - 1;
    let number = entries.number(key, 0, most, faults)?;
    DcId::new(i32::try_from(number).ok()?)
}

fn node_id(entries: &Entries<'_>, key: &str, faults: &mut Vec<Fault>) -> Option<NodeId> {
    if !entries.has(key) {
        entries.missing(key, faults);
        return None;
    }
    let most = u32::from(NodeId::COUNT) - 1;
    let number = entries.number(key, 0, most, faults)?;
    NodeId::new(i32::try_from(number).ok()?)
}

fn server(
    entries: &Entries<'_>,
    dcs: &HashMap<DcId, DcLimits>,
    socket: Option<&Path>,
    faults: &mut Vec<Fault>,
) -> Option<(Block, Location)> {
    let dc = dc_id(entries, "rhs_dcid", faults);
    let limits = limits_of(dc, dcs);
    for key in ["rhs_ep", "rhs_dir"] {
        if !entries.has(key) {
            entries.missing(key, faults);
        }
    }
    let slot = entries.number("rhs_ep", 0, last_server_endpoint(limits), faults);
    let endpoint = slot
        .and_then(|slot| i32::try_from(slot).ok())
        .map(Endpoint::from_raw);
    let root = entries.quoted("rhs_dir", faults);
    if let Some(Err(why)) = root.map(server::check_root) {
        entries.wrong("rhs_dir", why, faults);
    }
    let socket = daemon_socket(entries, "rhs_socket", socket, faults);
    let carrier_kind = entries.choice("rhs_carrier", CARRIER_KINDS, faults);
    let mut options = server::Options::new(socket.clone().unwrap_or_default());
    options.root = root.unwrap_or("/").to_owned();
    if let Some(symlinks) = entries.choice("rhs_links", SYMLINK_POLICIES, faults) {
        options.symlinks = symlinks;
    }
    if let Some(read_only) = entries.choice("rhs_readonly", YES_NO, faults) {
        options.read_only = read_only;
    }
    // The last number stands for no user.
    if let Some(uid) = entries.number("rhs_uid", 0, u32::MAX - 1, faults) {
        options.credentials.uid = uid;
    }
    if let Some(gid) = entries.number("rhs_gid", 0, u32::MAX - 1, faults) {
        options.credentials.gid = gid;
    }
    if entries.has("rhs_uid") != entries.has("rhs_gid") {
        let (there, lacking) = match entries.has("rhs_uid") {
            true => ("rhs_uid", "rhs_gid"),
            false => ("rhs_gid", "rhs_uid"),
        };
        entries.wrong(there, format!("it requires {lacking}"), faults);
    }
    let mut amount = |key, most, to: &mut usize| {
        let number = entries.number(key, 1, most, faults);
        if let Some(number) = number.and_then(|number| usize::try_from(number).ok()) {
            *to = number;
        }
    };
    amount("rhs_clients", 1 << 20, &mut options.clients);
    amount("rhs_files", 1 << 20, &mut options.handles);
    amount("rhs_open", 1 << 20, &mut options.open);
    amount("rhs_threads", 256, &mut options.workers);
    if let Some(ms) = entries.number("rhs_cache_ms", 0, 3_600_000, faults) {
        options.cache_timeout = Duration::from_millis(ms.into());
    }
    if let Some(seconds) = entries.number("rhs_limit_s", 1, 3600, faults) {
        options.limit = Duration::from_secs(seconds.into());
    }
    let block = Block {
        name: entries.name.clone(),
        dc: dc?,
        endpoint: endpoint?,
        // The original's carrier.
        carrier_kind: carrier_kind.unwrap_or(CarrierKind::Device),
        options,
    };
    socket.and(root).map(|_| (block, entries.at.clone()))
}

fn node(blocks: &Blocks, faults: &mut Vec<Fault>) -> Option<NodeConfig> {
    let mut peers = Vec::new();
    for entries in &blocks.peers {
        let Some(peer) = peer(entries, faults) else {
            continue;
        };
        if peers.iter().any(|known: &PeerConfig| known.id == peer.id) {
            entries.wrong("peer_id", "another block has the same node", faults);
        }
        peers.push(peer);
    }
    let Some(entries) = &blocks.node else {
        if let Some(peer) = blocks.peers.first() {
            let what = "no block `node` defines the node that it is a peer of";
            faults.push(Fault::new(&peer.at, peer.name.clone(), what));
        }
        return None;
    };
    let id = node_id(entries, "node_id", faults)?;
    let mut config = NodeConfig::new(id);
    if let Some(address) = entries.word("node_address") {
        match address.parse::<IpAddr>() {
            Ok(address) => config.address = address,
            Err(_) => entries.wrong("node_address", "must be an address of this host", faults),
        }
    }
    if let Some(base) = port_base(entries, "node_port_base", faults) {
        config.port_base = base;
    }
    if peers.is_empty() {
        let what = "no block `peer` defines a node to serve";
        faults.push(Fault::new(&entries.at, entries.name.clone(), what));
    }
    config.peers = peers;
    if let Err(error) = config.check() {
        entries.wrong("node_id", error.to_string(), faults);
    }
    Some(config)
}

fn peer(entries: &Entries<'_>, faults: &mut Vec<Fault>) -> Option<PeerConfig> {
    let id = node_id(entries, "peer_id", faults);
    let host = entries.word("peer_host");
    match host {
        None => entries.missing("peer_host", faults),
        Some("") => entries.wrong("peer_host", "must be a host's name or address", faults),
        Some(_) => {}
    }
    let generation = entries.choice("peer_generation", GENERATIONS, faults);
    let announce = entries.choice("peer_announce", YES_NO, faults);
    let base = port_base(entries, "peer_port_base", faults);
    let mut peer = PeerConfig::new(id?, host?);
    peer.generation = generation.unwrap_or_default();
    peer.announce = announce.unwrap_or_default();
    peer.port_base = base.unwrap_or(peer.port_base);
    Some(peer)
}

fn port_base(entries: &Entries<'_>, key: &str, faults: &mut Vec<Fault>) -> Option<u16> {
    let base = entries.number(key, 1, LAST_PORT_BASE, faults)?;
    u16::try_from(base).ok()
}

fn local(entries: &Entries<'_>, faults: &mut Vec<Fault>) -> Option<LocalConfig> {
    if !entries.has("local_socket") {
        entries.missing("local_socket", faults);
    }
    let switch_uid = entries.number("local_switch_uid", 0, u32::MAX - 1, faults);
    let socket = PathBuf::from(entries.quoted("local_socket", faults)?);
    Some(LocalConfig {
        switch_uid,
        ..LocalConfig::new(socket)
    })
}
