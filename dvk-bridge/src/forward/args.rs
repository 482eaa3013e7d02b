//! `forward`'s command line as typed.

use std::path::PathBuf;
use std::time::Duration;

use crate::abi::{DcId, Endpoint};
use crate::carrier::device;
use crate::cli_types::{EndpointRange, parse_dc, parse_endpoint, parse_seconds};
use crate::server_addr::ServerAddrArgs;

/// `forward`: lets a server elsewhere serve the processes of this machine's DVK.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Needs root and the 32-bit program, because DVK's kernels have 32 bits. Runs \
                  until SIGTERM or SIGINT ends it. The endpoints are bound at once, even if the \
                  server is not available, so that clients of rhostfs find it when they boot."
)]
pub struct ForwardArgs {
    /// DVK's device
    #[arg(long, value_name = "PATH", default_value = device::PATH)]
    pub device: PathBuf,

    /// The endpoint, here and at the server
    #[arg(
        long,
        value_name = "EP",
        default_value = "1",
        value_parser = parse_endpoint,
        allow_negative_numbers = true
    )]
    pub endpoint: Endpoint,

    /// Several endpoints instead: the first, and how many follow one another, such as 4:5 for a
    /// block virtqueue with vq_ep 4 and vq_queues 4
    #[arg(long, value_name = "FIRST:COUNT", conflicts_with = "endpoint")]
    pub endpoints: Option<EndpointRange>,

    /// Their container
    #[arg(long, value_name = "ID", default_value = "0", value_parser = parse_dc)]
    pub dc: DcId,

    /// Time limit of the server for a request, in seconds with fractions
    #[arg(long, value_name = "SECS", default_value = "60", value_parser = parse_seconds)]
    pub limit: Duration,

    /// Show the state to each program that connects to this socket
    #[arg(long, value_name = "PATH")]
    pub status: Option<PathBuf>,

    /// The server's address.
    #[command(flatten)]
    pub server_addr: ServerAddrArgs,
}

impl ForwardArgs {
    /// The endpoints, here and at the server.
    pub(super) fn endpoints(&self) -> EndpointRange {
        self.endpoints.unwrap_or(EndpointRange::of(self.endpoint))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct TestCommand {
        #[command(flatten)]
        args: ForwardArgs,
    }

    fn parse(line: &str) -> Result<ForwardArgs, String> {
        let words = std::iter::once("forward").chain(line.split_whitespace());
        let parsed = TestCommand::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(parsed.args)
    }

    #[test]
    fn a_server_is_at_a_node_or_at_a_switch() {
        let args = parse("--peer far:1 --node 5 --address 10.0.0.5").unwrap();
        assert_eq!(args.server_addr.peer.map(|peer| peer.node.raw()), Some(1));
        assert_eq!((args.endpoint.raw(), args.dc), (1, DcId::FIRST));
        assert!(parse("--switch /run/dvk.sock --switch-uid 5").is_ok());
        let args = parse("--switch s --endpoints 4:3").unwrap();
        let endpoints: Vec<i32> = args.endpoints().iter().map(Endpoint::raw).collect();
        assert_eq!(endpoints, [4, 5, 6]);
        for (line, what) in [
            ("--endpoint 1", "--peer"),
            (
                "--switch s --endpoint 1 --endpoints 4:5",
                "cannot be used with",
            ),
            ("--switch s --endpoints 4", "a colon"),
            ("--switch s --endpoints 4:0", "at least one"),
            ("--switch s --endpoints 215:20", "not all in a container"),
            ("--peer far:1", "--node"),
            ("--switch s --peer far:1 --node 2", "cannot be used with"),
            ("--switch s --ports 4000", "cannot be used with"),
            (
                "--peer far:1 --node 2 --switch-uid 3",
                "cannot be used with",
            ),
        ] {
            let text = parse(line).unwrap_err();
            assert!(text.contains(what), "{line}: {text}");
        }
    }
}
