//! The command line of `tunnel` as typed.

use std::path::PathBuf;
use std::time::Duration;

use super::Options;
use crate::abi::{DcId, Endpoint};
use crate::cli_types::{parse_dc, parse_endpoint, parse_seconds};
use crate::server_addr::{ServerAddr, ServerAddrArgs};
use crate::server_carrier::ServerCarrier;

/// Endpoints for requests at most.
const MAX_QUEUES: u16 = 29;

/// The first endpoint of the tunnel of node 0, or at a switch.
const FIRST_CLIENT: i32 = 100;

/// Endpoints that the tunnel of each node has by default.
const CLIENTS_OF_A_NODE: i32 = 10;

/// `tunnel`: offers a guest a share that is elsewhere, as a virtio-fs device.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Serves one guest at a time, until SIGTERM or SIGINT ends it. The server's \
                  configuration has a block virtqueue with the endpoint."
)]
pub struct TunnelArgs {
    /// The vhost-user socket that a guest connects to
    #[arg(long, short, value_name = "PATH")]
    pub listen: PathBuf,

    /// The first endpoint of the server (vq_ep)
    #[arg(long, value_name = "EP", value_parser = parse_endpoint)]
    pub endpoint: Endpoint,

    /// How many endpoints behind it are used for requests, at most as many as the server has
    /// (vq_queues)
    #[arg(
        long,
        value_name = "N",
        default_value = "4",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES))
    )]
    pub queues: u16,

    /// The first of as many own endpoints, which no other client of the container has [default: 100
    /// plus ten times the node id]
    #[arg(long, value_name = "EP", value_parser = parse_endpoint)]
    pub client_endpoint: Option<Endpoint>,

    /// The container of the endpoints
    #[arg(long, value_name = "ID", default_value = "0", value_parser = parse_dc)]
    pub dc: DcId,

    /// The tag that the guest mounts [default: the daemon's]
    #[arg(long, value_name = "NAME")]
    pub tag: Option<String>,

    /// How long a request waits for a server that cannot be reached, in seconds with fractions;
    /// then it fails with ENOTCONN
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = parse_seconds)]
    pub limit: Duration,

    /// Show the state to each program that connects to this socket
    #[arg(long, value_name = "PATH")]
    pub status: Option<PathBuf>,

    /// The server's address.
    #[command(flatten)]
    pub server_addr: ServerAddrArgs,
}

impl TunnelArgs {
    /// The options of its guests.
    pub(super) fn options(&self) -> Options {
        let node = match self.server_addr.server_addr() {
            Some(ServerAddr::Node(node, _)) => node.raw(),
            Some(ServerAddr::Switch(_)) | None => 0,
        };
        let client = Endpoint::from_raw(FIRST_CLIENT + CLIENTS_OF_A_NODE * node);
        Options {
            dc: self.dc,
            server: self.endpoint,
            server_name: format!(
                "endpoint {} of {}",
                self.endpoint,
                ServerCarrier::name(&self.server_addr)
            ),
            client: self.client_endpoint.unwrap_or(client),
            queues: self.queues,
            tag: self.tag.clone(),
            limit: self.limit,
        }
    }
}
