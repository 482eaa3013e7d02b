//! Options of the share's quota, as typed.

use clap::Args;

use super::size::parse_size;

/// The options `--quota-*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct QuotaArgs {
    /// Most bytes that the share may take on the host, such as 10G: the limit of the directory's
    /// project, which all guests and the host's own programs share. It takes root and a file system
    /// with project quotas, and stays when the daemon has ended
    /// [default: the project's limit, if it has one]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = super::LIMITS)]
    pub quota_bytes: Option<u64>,

    /// Most files, directories and other inodes that the share may have, in the same way
    /// [default: the project's limit, if it has one]
    #[arg(long, value_name = "N", help_heading = super::LIMITS,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub quota_inodes: Option<u64>,
}
