//! The command line of `mount`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use crate::abi::{DcId, Endpoint};
use crate::cli_types::{parse_dc, parse_endpoint, parse_seconds};
use crate::server_addr::{SERVER, ServerAddrArgs};

/// Help heading of the options about files.
const FILES: &str = "Files";

/// `mount`: mounts an rhostfs server's tree on a directory.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Runs until the directory is unmounted, or SIGTERM or SIGINT unmounts it. \
                  With --background it returns when the directory is mounted, and the log goes \
                  to syslog. Needs root and a kernel with FUSE, but no fusermount.\n\
                  Exit status: 0 unmounted (mounted, with --background), 1 not mounted, or the \
                  mount failed later, 2 wrong command line."
)]
pub struct MountArgs {
    /// How to reach the server.
    #[command(flatten)]
    pub server_addr: ServerAddrArgs,

    /// The server's endpoint
    #[arg(
        long,
        value_name = "EP",
        default_value = "1",
        value_parser = parse_endpoint,
        allow_negative_numbers = true,
        help_heading = SERVER
    )]
    pub endpoint: Endpoint,

    /// This mount's endpoint, which no other client of the server may use, on any machine; by
    /// default 70 plus the node's id, or 10 at a switch
    #[arg(
        long,
        value_name = "EP",
        value_parser = parse_endpoint,
        allow_negative_numbers = true,
        help_heading = SERVER
    )]
    pub client_endpoint: Option<Endpoint>,

    /// The container of both endpoints
    #[arg(
        long,
        value_name = "ID",
        default_value = "0",
        value_parser = parse_dc,
        help_heading = SERVER
    )]
    pub dc: DcId,

    /// The kind of server: gangplank's, or the original rhostfsd, whose faults the mount works
    /// around
    #[arg(
        long,
        value_name = "NAME",
        default_value = "ours",
        conflicts_with = "switch",
        help_heading = SERVER
    )]
    pub server: ServerName,

    /// How long to wait for an answer, in seconds with fractions; also how long to wait for the
    /// server to appear
    #[arg(
        long,
        value_name = "SECS",
        default_value = "30",
        value_parser = parse_seconds,
        help_heading = SERVER
    )]
    pub limit: Duration,

    /// How long to keep names and attributes before asking again, in seconds with fractions
    #[arg(
        long,
        value_name = "SECS",
        default_value = "1",
        value_parser = parse_seconds,
        help_heading = FILES
    )]
    pub timeout: Duration,

    /// The owner of new files: the user that creates them, or the user that the server runs as
    #[arg(long, value_name = "WHO", default_value = "caller", help_heading = FILES)]
    pub owner: OwnerName,

    /// Who checks permissions: this machine's kernel, by owners and modes, or the server, which
    /// sees all users as one
    #[arg(long, value_name = "WHO", default_value = "local", help_heading = FILES)]
    pub permissions: PermissionsName,

    /// Allow no changes
    #[arg(long, help_heading = FILES)]
    pub read_only: bool,

    /// Return when the directory is mounted, and serve it in the background
    #[arg(long)]
    pub background: bool,

    /// Write a line to standard output when the directory is mounted
    #[arg(long, hide = true)]
    pub tell: bool,

    /// The directory to mount on
    #[arg(value_name = "DIRECTORY")]
    pub mountpoint: PathBuf,
}

/// The endpoint of node 0's mount. Each node adds its id. The endpoints are above those that a DVS
/// uses itself, and a node's proxy announces endpoints from 65 on by itself.
const FIRST_NODE_ENDPOINT: i32 = 70;
/// The endpoint of a mount at a switch. The original client uses the same.
const SWITCH_ENDPOINT: i32 = 10;

impl MountArgs {
    /// This mount's endpoint: the option's, or the default of the node or switch.
    pub(super) fn client(&self) -> Endpoint {
        let by_node = self
            .server_addr
            .node
            .map(|node| FIRST_NODE_ENDPOINT + node.raw());
        let usual = Endpoint::from_raw(by_node.unwrap_or(SWITCH_ENDPOINT));
        self.client_endpoint.unwrap_or(usual)
    }
}

/// The kinds of server by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServerName {
    /// `gangplank-dvk serve`
    Ours,
    /// PID5162's rhostfsd
    Original,
}

/// The owners of new files by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OwnerName {
    /// The user that creates them
    Caller,
    /// The user that the server runs as
    Server,
}

/// Who checks permissions, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PermissionsName {
    /// This machine's kernel
    Local,
    /// The server
    Server,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::abi::DcLimits;
    use crate::cli_types::Ports;
    use crate::server_addr::ServerAddr;

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
        let Some(ServerAddr::Node(node, peer)) = args.server_addr.server_addr() else {
            panic!("{args:?}");
        };
        assert_eq!((peer.host.as_str(), peer.node.raw()), ("far.example", 3));
        assert_eq!((node.raw(), args.dc.raw()), (2, 0));
        assert_eq!((args.endpoint.raw(), args.client().raw()), (1, 72));
        let other = parse("--peer far.example:3 --node 31 /mnt").unwrap();
        assert_eq!(other.client().raw(), 101, "no two nodes have the same");
        assert!(DcLimits::USUAL.contains(other.client()));
        assert!(args.server_addr.address.is_loopback());
        assert_eq!(
            args.server_addr.ports,
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
            args.server_addr.ports,
            Ports {
                own: 4000,
                peer: 5000
            }
        );
        assert_eq!(args.client().raw(), -5);
    }

    #[test]
    fn a_switch_replaces_peer_and_node() {
        let args = parse("--switch /run/dvk.sock --client-endpoint 11 /mnt").unwrap();
        assert_eq!(
            args.server_addr.server_addr(),
            Some(ServerAddr::Switch(Path::new("/run/dvk.sock")))
        );
        assert_eq!((args.endpoint.raw(), args.client().raw()), (1, 11));
        let args = parse("--switch /run/dvk.sock --switch-uid 7 /mnt").unwrap();
        assert_eq!(
            (args.server_addr.switch_uid, args.client().raw()),
            (Some(7), 10)
        );
    }

    #[test]
    fn node_options_conflict_with_a_switch() {
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
    fn invalid_values_are_refused() {
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
