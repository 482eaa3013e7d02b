//! `mount`'s command line as typed.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use crate::abi::{DcId, DcLimits, Endpoint, Generation, NodeId};

/// Heading of the options that say how the server is reached.
const SERVER: &str = "Server";
/// Heading of the options that say what the mount is like.
const FILES: &str = "Files";

/// `mount`: a far rhostfs as a directory.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Stays until the directory is unmounted, or SIGTERM, SIGINT or SIGHUP tells it to unmount it; with --background it returns \
                  when the directory is mounted. Needs root, and a kernel with FUSE; no fusermount.\n\
                  Exit status: 0 unmounted (mounted, with --background), 1 not mounted, or not to the end, 2 wrong command line."
)]
pub struct MountArgs {
    /// The server's node: its host, and its id in the DVS
    #[arg(long, value_name = "HOST:ID", required_unless_present = "switch", requires = "node", help_heading = SERVER)]
    pub peer: Option<PeerName>,

    /// This machine's id in the DVS
    #[arg(long, value_name = "ID", requires = "peer", value_parser = parse_node, help_heading = SERVER)]
    pub node: Option<NodeId>,

    /// The socket of a switch on this host, at which the server is (rhs_carrier local), instead of a node
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["peer", "node", "address", "ports", "generation", "server"], help_heading = SERVER)]
    pub switch: Option<PathBuf>,

    /// Number of a user that the switch may run as, beside root and this program's own
    #[arg(long, value_name = "UID", requires = "switch", conflicts_with = "peer", help_heading = SERVER)]
    pub switch_uid: Option<u32>,

    /// The server's endpoint
    #[arg(long, value_name = "EP", default_value = "1", value_parser = parse_endpoint, allow_negative_numbers = true, help_heading = SERVER)]
    pub endpoint: Endpoint,

    /// This mount's endpoint, which no other client of the server may have, wherever it is; by default 70 and the node's id, or 10 at
    /// a switch
    #[arg(long, value_name = "EP", value_parser = parse_endpoint, allow_negative_numbers = true, help_heading = SERVER)]
    pub client_endpoint: Option<Endpoint>,

    /// The container that both are in
    #[arg(long, value_name = "ID", default_value = "0", value_parser = parse_dc, help_heading = SERVER)]
    pub dc: DcId,

    /// The address to listen on, and to connect from. Whoever sends from the server's address is believed to be it
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), help_heading = SERVER)]
    pub address: IpAddr,

    /// The first of the ports that this node listens on, and then the server's; every real DVS has 3000
    #[arg(long, value_name = "PORT[:PORT]", default_value = "3000", help_heading = SERVER)]
    pub ports: Ports,

    /// The layout of the server's messages
    #[arg(long, value_name = "NAME", default_value = "current", help_heading = SERVER)]
    pub generation: GenerationName,

    /// Which server it is: gangplank's, or the original rhostfsd, whose faults are worked around
    #[arg(long, value_name = "NAME", default_value = "ours", help_heading = SERVER)]
    pub server: ServerName,

    /// How long an answer may take, in seconds with fractions; also how long the server may take to appear
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = parse_seconds, help_heading = SERVER)]
    pub limit: Duration,

    /// How long names and attributes are believed without asking again, in seconds with fractions
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = parse_seconds, help_heading = FILES)]
    pub timeout: Duration,

    /// To whom new files belong: to who makes them, or to whom the server makes them for
    #[arg(long, value_name = "WHO", default_value = "caller", help_heading = FILES)]
    pub owner: OwnerName,

    /// Who decides what is allowed: this machine's kernel, by owners and modes, or the server, to which all users are one
    #[arg(long, value_name = "WHO", default_value = "local", help_heading = FILES)]
    pub permissions: PermissionsName,

    /// Let nothing be changed
    #[arg(long, help_heading = FILES)]
    pub read_only: bool,

    /// Return when the directory is mounted, and serve it in the background
    #[arg(long)]
    pub background: bool,

    /// Tell it on standard output when the directory is mounted
    #[arg(long, hide = true)]
    pub tell: bool,

    /// Where to mount it
    #[arg(value_name = "DIRECTORY")]
    pub mountpoint: PathBuf,
}

/// How the server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way<'a> {
    /// From this machine as a node to the server's.
    Node(NodeId, &'a PeerName),
    /// By the switch at this socket.
    Switch(&'a Path),
}

/// The first of the endpoints that mounts have, by their nodes: above those that a DVS has for its own, and those from 65 on are made
/// known by a node's proxy itself.
const FIRST_OF_NODES: i32 = 70;
/// What a mount at a switch has, as the original client.
const AT_A_SWITCH: i32 = 10;

impl MountArgs {
    /// This mount's endpoint: what was typed, or one that no other node's mount has if nothing was typed there either.
    pub(super) fn client(&self) -> Endpoint {
        let by_node = self.node.map(|node| FIRST_OF_NODES + node.raw());
        let usual = Endpoint::from_raw(by_node.unwrap_or(AT_A_SWITCH));
        self.client_endpoint.unwrap_or(usual)
    }

    /// How the server is reached; none where the command line was not clap's.
    pub(super) fn way(&self) -> Option<Way<'_>> {
        match (&self.switch, self.node, &self.peer) {
            (Some(socket), _, _) => Some(Way::Switch(socket)),
            (None, Some(node), Some(peer)) => Some(Way::Node(node, peer)),
            _ => None,
        }
    }
}

/// A node, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerName {
    /// Its host, by name or address.
    pub host: String,
    /// Its id.
    pub node: NodeId,
}

impl FromStr for PeerName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, id) = text
            .rsplit_once(':')
            .ok_or("a host and a node's id with a colon between them")?;
        if host.is_empty() {
            return Err("no host before the colon");
        }
        Ok(Self {
            host: host.to_owned(),
            node: parse_node(id)?,
        })
    }
}

/// First ports of both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Ours.
    pub own: u16,
    /// The server's.
    pub peer: u16,
}

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| text.parse().map_err(|_| "not a port");
        let (own, peer) = text.split_once(':').unwrap_or((text, text));
        Ok(Self {
            own: port(own)?,
            peer: port(peer)?,
        })
    }
}

/// Layouts by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerationName {
    /// Of 2022: messages of 36 bytes, headers of 120
    Current,
    /// Of 2019 to 2022: messages of 76 bytes, headers of 132
    Legacy,
    /// Of early 2019: messages of 36 bytes, headers of 92
    Early,
}

impl From<GenerationName> for Generation {
    fn from(name: GenerationName) -> Self {
        match name {
            GenerationName::Current => Self::Current,
            GenerationName::Legacy => Self::Legacy,
            GenerationName::Early => Self::Early,
        }
    }
}

/// Servers by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServerName {
    /// `gangplank-dvk serve`
    Ours,
    /// PID5162's rhostfsd
    Original,
}

/// Owners of new files by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OwnerName {
    /// Who makes them
    Caller,
    /// Whom the server makes them for
    Server,
}

/// Who decides, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PermissionsName {
    /// This machine's kernel
    Local,
    /// The server
    Server,
}

pub(crate) fn parse_node(text: &str) -> Result<NodeId, &'static str> {
    text.parse()
        .ok()
        .and_then(NodeId::new)
        .ok_or("a node's id is a number from 0 to 31")
}

pub(crate) fn parse_dc(text: &str) -> Result<DcId, &'static str> {
    text.parse()
        .ok()
        .and_then(DcId::new)
        .ok_or("a container's id is a number from 0 to 31")
}

pub(crate) fn parse_endpoint(text: &str) -> Result<Endpoint, &'static str> {
    text.parse()
        .ok()
        .map(Endpoint::from_raw)
        .filter(|endpoint| DcLimits::USUAL.contains(*endpoint))
        .ok_or("no container has such an endpoint")
}

pub(crate) fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| *duration <= Duration::from_secs(1_000_000))
        .ok_or("a number of seconds, up to a million")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: MountArgs,
    }

    fn parse(line: &str) -> Result<MountArgs, clap::Error> {
        let words = std::iter::once("mount").chain(line.split_whitespace());
        Program::try_parse_from(words).map(|program| program.args)
    }

    #[test]
    fn the_shortest_line_names_a_peer_a_node_and_a_directory() {
        let args = parse("--peer far.example:3 --node 2 /mnt").unwrap();
        let Some(Way::Node(node, peer)) = args.way() else {
            panic!("{args:?}");
        };
        assert_eq!((peer.host.as_str(), peer.node.raw()), ("far.example", 3));
        assert_eq!((node.raw(), args.dc.raw()), (2, 0));
        assert_eq!((args.endpoint.raw(), args.client().raw()), (1, 72));
        let other = parse("--peer far.example:3 --node 31 /mnt").unwrap();
        assert_eq!(other.client().raw(), 101, "no two nodes have the same");
        assert!(DcLimits::USUAL.contains(other.client()));
        assert!(args.address.is_loopback());
        assert_eq!(
            args.ports,
            Ports {
                own: 3000,
                peer: 3000
            }
        );
        assert_eq!(args.server, ServerName::Ours);
    }

    #[test]
    fn ports_of_two_nodes_on_one_machine_differ() {
        let args = parse("--peer localhost:0 --node 1 --ports 4000:5000 --client-endpoint -5 /mnt")
            .unwrap();
        assert_eq!(
            args.ports,
            Ports {
                own: 4000,
                peer: 5000
            }
        );
        assert_eq!(args.client().raw(), -5);
    }

    #[test]
    fn a_switch_takes_the_place_of_a_peer_and_a_node() {
        let args = parse("--switch /run/dvk.sock --client-endpoint 11 /mnt").unwrap();
        assert_eq!(args.way(), Some(Way::Switch(Path::new("/run/dvk.sock"))));
        assert_eq!((args.endpoint.raw(), args.client().raw()), (1, 11));
        let args = parse("--switch /run/dvk.sock --switch-uid 7 /mnt").unwrap();
        assert_eq!((args.switch_uid, args.client().raw()), (Some(7), 10));
    }

    #[test]
    fn what_is_of_nodes_does_not_go_with_a_switch() {
        for line in [
            "--peer far:3 --node 2",
            "--node 2",
            "--address 127.0.0.1",
            "--ports 3000",
            "--generation current",
            "--server ours",
        ] {
            let error = parse(&format!("--switch /run/dvk.sock {line} /mnt")).unwrap_err();
            let option = line.split(' ').next().unwrap_or_default();
            let text = error.to_string();
            assert!(text.contains("--switch") && text.contains(option), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for line in [
            "/mnt",
            "--node 2 /mnt",
            "--peer far:3 /mnt",
            "--peer far:3 --node 2 --switch-uid 7 /mnt",
            "--peer far:3 --node 2",
            "--peer far --node 2 /mnt",
            "--peer :3 --node 2 /mnt",
            "--peer far:32 --node 2 /mnt",
            "--peer far:3 --node -1 /mnt",
            "--peer far:3 --node 2 --endpoint 221 /mnt",
            "--peer far:3 --node 2 --limit -1 /mnt",
            "--peer far:3 --node 2 --limit 1e99 /mnt",
            "--peer far:3 --node 2 --server theirs /mnt",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
