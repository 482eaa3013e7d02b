//! The command line as typed: virtiofsd's options by the same names, and options of our own.
// The comments are the help text, and its brackets are not links.
#![allow(rustdoc::broken_intra_doc_links)]

mod early_exit;
mod migration;
mod quota;
mod shares;
mod size;
mod status;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};
use log::LevelFilter;

pub use self::early_exit::EarlyExit;
pub use self::migration::MigrationArgs;
pub use self::quota::QuotaArgs;
pub use self::shares::{ShareArgs, ShareCommand, SharesOptions};
use self::size::parse_size;
pub use self::status::{StatusArgs, StatusOptions};
pub(crate) use self::values::parse_seconds;
pub use self::values::{GuestArchArg, InodeFileHandlesArg, LocksArg};
use self::values::{
    parse_guest_arch, parse_inode_file_handles, parse_locks, parse_log_level, parse_queue_size,
    parse_tag,
};
use crate::device;
use crate::manual::MANUAL;
use crate::passthrough::id_map::IdRule;
use crate::passthrough::options::{CachePolicy, NegotiationMode, Ownership};
use crate::passthrough::xattr_map::XattrMap;
use crate::sandbox::options::{IdMapping, ModCaps, Mode, Seccomp};

/// The options as typed; the module `config` checks what they mean together.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplankd",
    about = "Shares one host directory with every guest: a vhost-user virtio-fs daemon.",
    long_about = MANUAL.long_about(),
    after_long_help = MANUAL.after_help(),
    version,
    args_override_self = true,
    arg_required_else_help = true,
    override_usage = "gangplankd --shared-dir <DIR> --socket-path <PATH> [OPTIONS]\n       \
                      gangplankd --share <TAG=DIR[,OPTION...]>... --socket-dir <DIR> [OPTIONS]\n       \
                      gangplankd share add|remove|list --control <PATH> [...]\n       \
                      gangplankd status --control <PATH> [--json | --watch]"
)]
pub struct Args {
    /// Directory to share
    #[arg(long, value_name = "DIR", help_heading = SHARE)]
    pub shared_dir: Option<PathBuf>,

    /// Name the guest mounts by, at most 36 bytes
    #[arg(long, value_parser = parse_tag, default_value = "myfs", help_heading = SHARE)]
    pub tag: String,

    /// Share the directory read-only
    #[arg(long, help_heading = SHARE)]
    pub readonly: bool,

    /// Tell the guest which directories are mount points [default]
    #[arg(long, overrides_with = "no_announce_submounts", help_heading = SHARE)]
    pub announce_submounts: bool,

    /// Do not tell the guest which directories are mount points
    #[arg(long, overrides_with = "announce_submounts", help_heading = SHARE)]
    pub no_announce_submounts: bool,

    /// Socket to listen on; guests connect to it
    #[arg(long, value_name = "PATH", help_heading = SOCKET)]
    pub socket_path: Option<PathBuf>,

    /// Older spelling of --socket-path [deprecated]
    #[arg(long, value_name = "PATH", help_heading = SOCKET)]
    pub socket: Option<PathBuf>,

    /// Group that may connect to the socket
    #[arg(long, value_name = "GROUP", help_heading = SOCKET)]
    pub socket_group: Option<String>,

    /// Descriptor of a socket that is already listening, instead of --socket-path; implies
    /// --exit-on-disconnect [default: the one of a socket unit of systemd]
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(0..),
          help_heading = SOCKET)]
    pub fd: Option<i32>,

    /// Exit when the last guest leaves, instead of waiting for the next
    #[arg(long, help_heading = SOCKET)]
    pub exit_on_disconnect: bool,

    /// Have the daemon that listens on --socket-path start the program that is at its path now and
    /// hand all guests over to that, wait for it, and exit; the daemon keeps its own options
    #[arg(long, help_heading = SOCKET)]
    pub reload: bool,

    /// Socket of a relay (gangplank-frontend relay --holder), which holds what the guests have
    /// while no process of the daemon runs, so that the next daemon goes on with them
    #[arg(long, value_name = "PATH", help_heading = SOCKET)]
    pub holder: Option<PathBuf>,

    /// Request queues each guest is offered, 1 to 63
    #[arg(long, value_name = "N", default_value = "1", help_heading = DEVICE,
          value_parser = clap::value_parser!(u16).range(1..=MAX_REQUEST_QUEUES))]
    pub num_request_queues: u16,

    /// Largest ring a queue may have: a power of two, 2 to 32768
    #[arg(long, value_name = "N", value_parser = parse_queue_size, default_value = "1024",
          help_heading = DEVICE)]
    pub queue_size: u16,

    /// Threads that serve a guest's requests in place of its queues' threads; 0 for none
    /// [default: 0, or up to 32 as requests need them where the storage has a server]
    #[arg(long, value_name = "N", help_heading = DEVICE)]
    pub thread_pool_size: Option<usize>,

    /// How long to poll for a guest's next request before sleeping, if it is likely to come; 0
    /// never polls
    #[arg(long, value_name = "MICROSECONDS", default_value = "200", help_heading = DEVICE,
          value_parser = clap::value_parser!(u16).range(0..=10_000))]
    pub busy_poll: u16,

    /// Architecture of the guests, whose open flags differ: auto, x86_64, aarch64
    #[arg(long, value_name = "ARCH", value_parser = parse_guest_arch, default_value = "auto",
          help_heading = DEVICE)]
    pub guest_arch: GuestArchArg,

    /// What guests may cache: never, metadata, auto, always
    #[arg(long, value_name = "POLICY", value_parser = CachePolicy::from_str,
          default_value = "auto", help_heading = CACHE)]
    pub cache: CachePolicy,

    /// How long names and attributes stay valid in a guest, in seconds with fractions
    /// [default: as --cache says]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds, help_heading = CACHE)]
    pub timeout: Option<Duration>,

    /// How long a guest remembers that a name does not exist, in seconds with fractions
    #[arg(long, value_name = "SECS", value_parser = parse_seconds, default_value = "0",
          help_heading = CACHE)]
    pub negative_timeout: Duration,

    /// Let guests collect writes in their page cache; only if nobody else changes the files
    #[arg(long, help_heading = CACHE)]
    pub writeback: bool,

    /// Allow shared mappings with --cache=never or metadata; only if nobody else changes the files
    #[arg(long, help_heading = CACHE)]
    pub allow_mmap: bool,

    /// Pass a guest's O_DIRECT on to the host's files
    #[arg(long, help_heading = CACHE)]
    pub allow_direct_io: bool,

    /// Let guests hear of changes that the host and other guests make, through the file
    /// .gangplank/events
    #[arg(long, help_heading = CACHE)]
    pub events: bool,

    /// Do not offer READDIRPLUS
    #[arg(long, help_heading = CACHE)]
    pub no_readdirplus: bool,

    /// Offer extended attributes
    #[arg(long, help_heading = FILES)]
    pub xattr: bool,

    /// Access control lists of guests: never, auto (where the guest's kernel has them), always
    /// (guests without them cannot mount); implies --xattr
    #[arg(long, value_name = "WHEN", value_parser = NegotiationMode::from_str, num_args = 0..=1,
          require_equals = true, default_value = "never", default_missing_value = "always",
          help_heading = FILES)]
    pub posix_acl: NegotiationMode,

    /// Labels of guests' new files: never, auto, always, as with --posix-acl; implies --xattr
    #[arg(long, value_name = "WHEN", value_parser = NegotiationMode::from_str, num_args = 0..=1,
          require_equals = true, default_value = "never", default_missing_value = "always",
          help_heading = FILES)]
    pub security_label: NegotiationMode,

    /// Give extended attributes other names on the host, by rules such as :map::user.virtiofs.:
    /// (see virtiofsd); implies --xattr
    #[arg(long, value_name = "RULES", value_parser = XattrMap::from_str, help_heading = FILES)]
    pub xattrmap: Option<XattrMap>,

    /// Where advisory locks are kept: host (all guests and host programs see them), guest, auto
    /// (host where the storage is shared between hosts, guest elsewhere)
    #[arg(long, value_name = "WHO", value_parser = parse_locks, default_value = "auto",
          help_heading = FILES)]
    pub locks: LocksArg,

    /// When to remember inodes by file handle instead of an open descriptor: never, prefer,
    /// mandatory
    #[arg(long, value_name = "WHEN", value_parser = parse_inode_file_handles,
          default_value = "prefer", help_heading = FILES)]
    pub inode_file_handles: InodeFileHandlesArg,

    /// Where owners, modes and types of guests' files are kept: host, mapped (in attributes of the
    /// host's files, so that an ordinary user's guest can have any)
    #[arg(long, value_name = "WHERE", value_parser = Ownership::from_str, default_value = "host",
          help_heading = FILES)]
    pub ownership: Ownership,

    /// Translate users between guests and the host, such as map:0:100000:65536 (guest, host,
    /// count), guest:G:H:N, host:H:G:N, squash-guest:G:H:N, squash-host:H:G:N, forbid-guest:G:N;
    /// repeatable
    #[arg(long, value_name = "RULE", value_parser = IdRule::from_str, help_heading = FILES)]
    pub translate_uid: Vec<IdRule>,

    /// Translate groups in the same way
    #[arg(long, value_name = "RULE", value_parser = IdRule::from_str, help_heading = FILES)]
    pub translate_gid: Vec<IdRule>,

    /// Pass a guest's O_NOATIME on to the host's files
    #[arg(long, help_heading = FILES)]
    pub preserve_noatime: bool,

    /// Clear set-user-ID, set-group-ID and capabilities on writes in the daemon
    #[arg(long, overrides_with = "no_killpriv_v2", help_heading = FILES)]
    pub killpriv_v2: bool,

    /// Leave clearing them to the guest [default]
    #[arg(long, overrides_with = "killpriv_v2", help_heading = FILES)]
    pub no_killpriv_v2: bool,

    /// How the daemon is isolated: namespace, chroot, none
    #[arg(long, value_name = "HOW", value_parser = Mode::from_str, default_value = "namespace",
          help_heading = CONFINEMENT)]
    pub sandbox: Mode,

    /// Users of the host in the user namespace of --sandbox=namespace, for an ordinary user, such
    /// as :0:100000:65536: (namespace, host, count); repeatable
    #[arg(long, value_name = "RANGE", value_parser = IdMapping::from_str,
          help_heading = CONFINEMENT)]
    pub uid_map: Vec<IdMapping>,

    /// Groups in the same way
    #[arg(long, value_name = "RANGE", value_parser = IdMapping::from_str,
          help_heading = CONFINEMENT)]
    pub gid_map: Vec<IdMapping>,

    /// Action on a system call outside the permitted list: kill, log, trap, none
    #[arg(long, value_name = "ACTION", value_parser = Seccomp::from_str, default_value = "kill",
          help_heading = CONFINEMENT)]
    pub seccomp: Seccomp,

    /// Changes to the set of kept capabilities, such as +sys_admin:-chown
    #[arg(long, value_name = "CHANGES", value_parser = ModCaps::from_str,
          allow_hyphen_values = true, help_heading = CONFINEMENT)]
    pub modcaps: Option<ModCaps>,

    /// Most guests at a time
    /// [default: as many as memory and process ids permit; the log says how many]
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub max_guests: Option<NonZeroUsize>,

    /// How long the files and locks of a guest are kept whose connection was lost, if its frontend
    /// keeps the requests in flight (Cloud Hypervisor) and so may go on where it was; 0 for not at
    /// all [default: 10; 0 with --exit-on-disconnect or --fd]
    #[arg(long, value_name = "SECONDS", help_heading = LIMITS,
          value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub keep_session: Option<u32>,

    /// Deaths of a guest's process within a minute after which its connection is closed; before
    /// that, another process goes on where the last one ended. The same for the process that
    /// accepts guests, and all connections
    #[arg(long, value_name = "N", help_heading = LIMITS, default_value_t = 10)]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_crashes: usize,

    /// Limit of a guest's open descriptors, 0 to leave it alone
    /// [default: the least of 1000000 and /proc/sys/fs/nr_open]
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub rlimit_nofile: Option<u64>,

    /// Most threads for a guest besides those of its queues: --thread-pool-size, requests that wait
    /// for a disk, and requests that wait for a lock; those beyond it take turns
    /// [default: 64, or --thread-pool-size and 32 more]
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub max_threads: Option<usize>,

    /// Most memory that a guest may have, in bytes or with one of the suffixes K, M, G, T
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "8T",
          help_heading = LIMITS)]
    pub max_guest_memory: u64,

    /// Most regions that a guest's memory may have, 1 to 509; with more than 8, a guest of QEMU
    /// cannot be rebooted after a restart of the daemon
    /// [default: 509, or 8 for QEMU]
    #[arg(long, value_name = "N", help_heading = LIMITS,
          value_parser = clap::value_parser!(u16).range(1..=MAX_MEMORY_REGIONS))]
    pub max_memory_regions: Option<u16>,

    /// Most memory that the files a guest knows of may take, such as 512M; the guest gets ENOMEM
    /// beyond that
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "2G",
          help_heading = LIMITS)]
    pub max_inode_memory: u64,

    /// Most operations of a guest a second: requests other than INIT, DESTROY, FORGET and INTERRUPT
    /// [default: no limit]
    #[arg(long, value_name = "N", help_heading = LIMITS,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub limit_iops: Option<u64>,

    /// Operations that a guest may start at once after a pause
    /// [default: those of a tenth of a second]
    #[arg(long, value_name = "N", help_heading = LIMITS, requires = "limit_iops",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub limit_iops_burst: Option<u64>,

    /// Most bytes of files that a guest may read, write and copy a second, such as 50M
    /// [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = LIMITS)]
    pub limit_bps: Option<u64>,

    /// Bytes that a guest may move at once after a pause
    /// [default: those of a tenth of a second]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = LIMITS,
          requires = "limit_bps")]
    pub limit_bps_burst: Option<u64>,

    /// The options `--quota-*`.
    #[command(flatten)]
    pub quota: QuotaArgs,

    /// Least severe messages to log: off, error, warn, info, debug, trace
    /// [default: as RUST_LOG says, or info]
    #[arg(long, value_name = "LEVEL", value_parser = parse_log_level, help_heading = LOGGING)]
    pub log_level: Option<LevelFilter>,

    /// Record each request of every guest in this file or FIFO, for gangplank-frontend trace; it
    /// has names of files, and no contents
    #[arg(long, value_name = "PATH", help_heading = LOGGING)]
    pub trace: Option<PathBuf>,

    /// Log to syslog instead of standard error
    #[arg(long, help_heading = LOGGING)]
    pub syslog: bool,

    /// Print the program's capabilities in the format of vhost-user.json and exit
    #[arg(long, help_heading = LOGGING)]
    pub print_capabilities: bool,

    /// The options `--migration-*`.
    #[command(flatten)]
    pub migration: MigrationArgs,

    /// The options `--control` and `--metrics`.
    #[command(flatten)]
    pub status: StatusOptions,

    /// The options of a daemon with several shares.
    #[command(flatten)]
    pub shares: SharesOptions,

    /// Options in the form of the older C daemon, such as source=/srv,cache=auto [deprecated]
    #[arg(short = 'o', value_name = "OPTIONS", help_heading = DEPRECATED)]
    pub compat_options: Vec<String>,

    /// The same as --log-level=debug [deprecated]
    #[arg(short = 'd', help_heading = DEPRECATED)]
    pub compat_debug: bool,

    /// Stay in the foreground, as the daemon always does [deprecated]
    #[arg(short = 'f', help_heading = DEPRECATED)]
    pub compat_foreground: bool,
}

const SHARE: &str = "The share";
const SOCKET: &str = "Where guests connect";
const DEVICE: &str = "The device";
const CACHE: &str = "Caching";
const FILES: &str = "Files";
const CONFINEMENT: &str = "Confinement";
const LIMITS: &str = "Limits";
const LOGGING: &str = "Information";
const DEPRECATED: &str = "Kept for older command lines";

/// An option that a command line has: its long name, if it has one, and its value as typed.
pub type TypedOption = (Option<String>, Option<OsString>);

impl Args {
    /// Parses a command line that begins with the program's name.
    ///
    /// # Errors
    /// [`EarlyExit`] for `--help`, `--version` and errors in the command line.
    pub fn from_command_line<I, T>(arguments: I) -> Result<Self, EarlyExit>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let mut command = Args::command();
        let matches = command
            .try_get_matches_from_mut(arguments)
            .map_err(EarlyExit)?;
        Self::from_arg_matches(&matches).map_err(|error| EarlyExit(error.format(&mut command)))
    }

    /// The options that a command line has, by their long names, with their values as typed. An
    /// option that was overridden is not among them. One without a long name has none.
    ///
    /// # Errors
    /// As [`Args::from_command_line`].
    pub fn given<I, T>(arguments: I) -> Result<Vec<TypedOption>, EarlyExit>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let command = Args::command();
        let matches = command.clone().try_get_matches_from(arguments);
        let matches = matches.map_err(EarlyExit)?;
        let mut given = Vec::new();
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let is_typed = matches.try_contains_id(id).unwrap_or(false)
                && matches.value_source(id) == Some(ValueSource::CommandLine);
            if !is_typed {
                continue;
            }
            let name = argument.get_long().map(str::to_owned);
            match argument.get_action() {
                ArgAction::SetTrue => given.push((name, None)),
                _ => {
                    let values = matches.get_raw(id).into_iter().flatten();
                    given.extend(values.map(|value| (name.clone(), Some(value.to_owned()))));
                }
            }
        }
        Ok(given)
    }

    /// The command line with its command, for manuals. The parser itself does not know of that, so
    /// that a word among virtiofsd's options is never taken for one.
    #[must_use]
    pub fn documented() -> clap::Command {
        let status = StatusArgs::command().name("status");
        let share = ShareArgs::command().name("share");
        Args::command()
            .subcommand(share.bin_name("gangplankd share"))
            .subcommand(status.bin_name("gangplankd status"))
    }

    /// Makes an error in the combination of options print like an error in one option.
    #[must_use]
    pub fn refuse(error: impl fmt::Display) -> EarlyExit {
        EarlyExit(Args::command().error(ErrorKind::ValueValidation, error))
    }
}

const MAX_REQUEST_QUEUES: i64 = device::Options::MAX_REQUEST_QUEUES as i64;
const MAX_MEMORY_REGIONS: i64 = device::Options::MAX_MEMORY_REGIONS as i64;

#[cfg(test)]
mod tests;
