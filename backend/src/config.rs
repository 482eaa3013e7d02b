//! The daemon's configuration: plain data, checked once, with options of its own for each layer.

mod checks;
mod left_open;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use gangplank_service::logging;
use log::LevelFilter;
use thiserror::Error;

pub use self::left_open::LeftOpen;
use crate::args::Args;
use crate::passthrough::id_map::IdMapError;
use crate::passthrough::options::{CachePolicy, NegotiationMode};
use crate::storage::Storage;
use crate::{compat, device, passthrough, quota, sandbox, socket, status};

/// The configuration of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The directory to share, as typed.
    pub shared_dir: PathBuf,
    /// The socket on which guests connect.
    pub socket: socket::Source,
    /// The socket of the relay that holds what guests have, in place of the service manager.
    pub holder: Option<PathBuf>,
    /// Whether the daemon ends when its last guest leaves.
    pub exit_on_disconnect: bool,
    /// Most guests at a time; the daemon refuses further connections. `None`: as many as the host's
    /// memory and process ids permit.
    pub max_guests: Option<usize>,
    /// The limit of a guest's open descriptors in force, once it is known.
    pub open_files: Option<u64>,
    /// How long the session of a guest is kept whose connection was lost, if the daemon does not
    /// end with its guests: see [`Self::keep_session`].
    pub keep_session: Duration,
    /// Deaths of a guest's workers within a minute at which it is given up.
    pub max_crashes: usize,
    /// The options of each guest's device.
    pub device: device::Options,
    /// The options of the file system.
    pub passthrough: passthrough::Options,
    /// The quota of the share.
    pub quota: quota::Options,
    /// The options of the sandbox.
    pub sandbox: sandbox::Options,
    /// Where the status is told.
    pub status: status::options::Options,
    /// Where each request is recorded, if anywhere.
    pub trace: Option<PathBuf>,
    /// The options of the log.
    pub logging: logging::Options,
    /// Whether the command line says what to log, in any of its ways. Then `RUST_LOG` does not
    /// count.
    pub is_log_level_given: bool,
    /// Warnings about deprecated options, to be logged once logging has started.
    pub deprecations: Vec<&'static str>,
    /// What the operator leaves to the daemon.
    pub left_open: LeftOpen,
    /// What the directory is stored on, once it is known.
    pub storage: Option<Storage>,
}

/// An invalid combination of options.
#[derive(Debug, Error)]
pub enum Error {
    /// No directory to share.
    #[error("no directory to share: pass --shared-dir <DIR>")]
    NoSharedDir,
    /// No socket to listen on.
    #[error(
        "no socket to listen on: pass --socket-path <PATH> or --fd <FD>, or have a socket unit of \
         systemd start the daemon"
    )]
    NoSocket,
    /// Two options that exclude each other.
    #[error("{0} cannot be used together with {1}")]
    Conflict(&'static str, &'static str),
    /// `--socket` and `--socket-path` with different paths.
    #[error("--socket and --socket-path name different sockets: pass --socket-path alone")]
    TwoSockets,
    /// File handles without the capability that opens them.
    #[error(
        "--modcaps removes dac_read_search, which --inode-file-handles={0} needs: pass \
         --inode-file-handles=never or keep the capability"
    )]
    HandlesWithoutCapability(&'static str),
    /// File handles are mandatory where the host forgets them.
    #[error(
        "--inode-file-handles=mandatory: {0} is a file system of FUSE, whose file handles end when \
         the host drops the inode from memory; pass prefer or never"
    )]
    HandlesDoNotLast(String),
    /// `--max-threads` without room for those that each guest needs.
    #[error(
        "--max-threads={given} is too small: with --thread-pool-size={pool}, a guest needs {least}"
    )]
    TooFewThreads {
        /// As typed.
        given: usize,
        /// `--thread-pool-size`.
        pool: usize,
        /// The smallest value.
        least: usize,
    },
    /// Rules of `--translate-uid` or `--translate-gid` that exclude each other or an id.
    #[error("{option}: {source}")]
    IdMap {
        /// The option.
        option: &'static str,
        /// The reason.
        source: IdMapError,
    },
    /// A quota, and a capability that overrides it.
    #[error("--modcaps adds sys_resource, which overrides {0}: pass one of the two")]
    QuotaOverridden(&'static str),
    /// Metrics for other hosts.
    #[error(
        "--metrics={0} is an address that other hosts reach: pass one of this host, such as \
         127.0.0.1:9100, or a path; --metrics-allow-remote permits it, without encryption or a \
         password"
    )]
    RemoteMetrics(std::net::SocketAddr),
    /// An invalid `-o` option.
    #[error(transparent)]
    Compat(#[from] compat::Error),
}

impl Config {
    /// How long the session of a guest is kept whose connection was lost; zero for not at all.
    #[must_use]
    pub const fn keep_session(&self) -> Duration {
        match self.exit_on_disconnect {
            true => Duration::ZERO,
            false => self.keep_session,
        }
    }

    /// Checks all combinations of options. Reads neither files nor the environment.
    ///
    /// # Errors
    /// The first contradiction or omission, worded for the operator.
    pub fn from_args(mut args: Args) -> Result<Self, Error> {
        let deprecations = checks::deprecations(&args);
        compat::apply(&mut args)?;
        let args = args;

        let socket = checks::socket_source(&args)?;
        checks::check_handles(&args)?;
        let max_threads = checks::max_threads(&args)?;
        let migration = checks::migration(&args.migration)?;
        let id_map = checks::id_map(&args)?;
        checks::check_ownership(&args)?;
        let quota = checks::quota_options(&args)?;
        checks::check_events(&args)?;
        let sandbox = sandbox::Options {
            mode: args.sandbox,
            seccomp: args.seccomp,
            events: args.events,
            modcaps: args.modcaps.unwrap_or_default(),
            rlimit_nofile: args.rlimit_nofile,
            uid_map: args.uid_map,
            gid_map: args.gid_map,
        };
        checks::check_mapped_ids(&sandbox)?;
        let status = checks::status_options(args.status, &socket)?;
        let exit_on_disconnect = args.exit_on_disconnect || matches!(socket, socket::Source::Fd(_));
        let keep_session = checks::keep_session(args.keep_session, exit_on_disconnect)?;
        let Some(shared_dir) = args.shared_dir else {
            return Err(Error::NoSharedDir);
        };
        checks::check_holder(args.holder.as_deref(), &socket)?;

        Ok(Self {
            shared_dir,
            socket,
            holder: args.holder,
            exit_on_disconnect,
            open_files: None,
            keep_session: Duration::from_secs(keep_session.into()),
            max_crashes: args.max_crashes,
            max_guests: args.max_guests.map(NonZeroUsize::get),
            device: device::Options {
                tag: args.tag,
                num_request_queues: args.num_request_queues,
                max_queue_size: args.queue_size,
                thread_pool_size: args.thread_pool_size.unwrap_or(0),
                thread_pool_grows: false,
                max_threads,
                busy_poll: Duration::from_micros(args.busy_poll.into()),
                limits: device::Limits {
                    operations: args
                        .limit_iops
                        .map(|rate| device::Rate::new(rate, args.limit_iops_burst)),
                    bytes: args
                        .limit_bps
                        .map(|rate| device::Rate::new(rate, args.limit_bps_burst)),
                },
                max_guest_memory: args.max_guest_memory,
                max_memory_regions: args
                    .max_memory_regions
                    .unwrap_or(device::Options::MAX_MEMORY_REGIONS),
                has_slots_for_qemu: args
                    .max_memory_regions
                    .is_some_and(|regions| regions > device::Options::BASELINE_REGIONS),
            },
            passthrough: passthrough::Options {
                cache: args.cache,
                timeout: args.timeout,
                negative_timeout: args.negative_timeout,
                xattr: args.xattr
                    || args.xattrmap.is_some()
                    || args.posix_acl != NegotiationMode::Never
                    || args.security_label != NegotiationMode::Never,
                posix_acl: args.posix_acl,
                security_label: args.security_label,
                xattr_map: args.xattrmap,
                readonly: args.readonly,
                announce_submounts: !args.no_announce_submounts,
                inode_file_handles: args.inode_file_handles.mode,
                allow_mmap: args.allow_mmap,
                // READDIRPLUS does not pay if the guest may not cache the attributes.
                readdirplus: !args.no_readdirplus && args.cache != CachePolicy::Never,
                writeback: args.writeback,
                allow_direct_io: args.allow_direct_io,
                killpriv_v2: args.killpriv_v2,
                locks: args.locks.0.unwrap_or_default(),
                ownership: args.ownership,
                id_map,
                preserve_noatime: args.preserve_noatime,
                guest_arch: args.guest_arch.0,
                events: args.events,
                migration,
                max_inode_memory: args.max_inode_memory,
                ..passthrough::Options::default()
            },
            quota,
            sandbox,
            status,
            trace: args.trace,
            is_log_level_given: args.compat_debug || args.log_level.is_some(),
            logging: logging::Options {
                syslog: args.syslog,
                ..logging::Options::new(
                    "gangplankd",
                    match args.compat_debug {
                        true => LevelFilter::Debug,
                        false => args.log_level.unwrap_or(LevelFilter::Info),
                    },
                )
            },
            deprecations,
            left_open: LeftOpen {
                locks: args.locks.0.is_none(),
                threads: args.thread_pool_size.is_none(),
            },
            storage: None,
        })
    }
}

#[cfg(test)]
mod tests;
