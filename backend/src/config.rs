//! The daemon's configuration: plain data, checked once, with options of its own for each layer.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use gangplank_service::logging;
use log::LevelFilter;
use thiserror::Error;

use crate::args::{Args, MigrationArgs, StatusOptions};
use crate::passthrough::id_map::{IdMap, IdMapError};
use crate::passthrough::options::{
    CachePolicy, InodeFileHandles, Locks, NegotiationMode, Ownership,
};
use crate::sandbox::options::Mode;
use crate::state::migration::{MigrationMode, MigrationOptions};
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

/// Options that the daemon chooses when it knows what the directory is stored on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOpen {
    /// Where locks are kept (`--locks=auto`).
    pub locks: bool,
    /// How many threads serve requests (no `--thread-pool-size`).
    pub threads: bool,
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
    /// Checks all combinations of options. Reads neither files nor the environment.
    ///
    /// # Errors
    /// The first contradiction or omission, worded for the operator.
    pub fn from_args(mut args: Args) -> Result<Self, Error> {
        let deprecations = deprecations(&args);
        compat::apply(&mut args)?;
        let args = args;

        let socket = socket_source(&args)?;
        check_handles(&args)?;
        let max_threads = max_threads(&args)?;
        let migration = migration(&args.migration)?;
        let id_map = id_map(&args)?;
        check_ownership(&args)?;
        let quota = quota_options(&args)?;
        check_events(&args)?;
        let sandbox = sandbox::Options {
            mode: args.sandbox,
            seccomp: args.seccomp,
            events: args.events,
            modcaps: args.modcaps.unwrap_or_default(),
            rlimit_nofile: args.rlimit_nofile,
            uid_map: args.uid_map,
            gid_map: args.gid_map,
        };
        check_mapped_ids(&sandbox)?;
        let status = status_options(args.status, &socket)?;
        let exit_on_disconnect = args.exit_on_disconnect || matches!(socket, socket::Source::Fd(_));
        let Some(shared_dir) = args.shared_dir else {
            return Err(Error::NoSharedDir);
        };
        if args.holder.is_some()
            && matches!(&socket, socket::Source::Path { path, .. } if Some(path) == args.holder.as_ref())
        {
            return Err(Error::Conflict(
                "--holder",
                "a --socket-path of the same name",
            ));
        }

        Ok(Self {
            shared_dir,
            socket,
            holder: args.holder,
            exit_on_disconnect,
            open_files: None,
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

    /// Chooses what the operator has left open, now that it is known what the directory is stored
    /// on, and adds the decisions to that.
    ///
    /// # Errors
    /// File handles are mandatory, and end with the host's cached inode.
    pub fn settle(&mut self, mut storage: Storage) -> Result<(), Error> {
        let handles_last = storage.abilities.lasting_handles != Some(false);
        let mode = self.passthrough.inode_file_handles;
        if mode == InodeFileHandles::Mandatory && !handles_last {
            return Err(Error::HandlesDoNotLast(storage.file_system));
        }
        if self.left_open.locks && storage.wants_host_locks() {
            self.passthrough.locks = Locks::Host;
        }
        if self.left_open.threads && storage.may_hang() {
            let room = device::Options::pool_room(self.device.max_threads);
            self.device.thread_pool_size = SERVER_THREADS.min(room);
            self.device.thread_pool_grows = true;
        }
        let mut decisions = vec![match (self.left_open.locks, self.passthrough.locks) {
            (true, Locks::Host) => "locks are kept on the host".to_owned(),
            (true, Locks::Guest) => "locks are kept in each guest".to_owned(),
            (false, Locks::Host) => "locks are kept on the host, as --locks says".to_owned(),
            (false, Locks::Guest) => "locks are kept in each guest, as --locks says".to_owned(),
        }];
        if mode == InodeFileHandles::Prefer && !handles_last {
            let decision = match storage.abilities.birth_times {
                Some(false) => "a descriptor is kept for each file that a guest knows",
                _ => "files are found again by name, not by handle",
            };
            decisions.push(decision.to_owned());
        }
        if self.device.thread_pool_grows {
            let threads = self.device.thread_pool_size;
            decisions.push(format!(
                "up to {threads} threads serve a guest, so that those wait alone whose server does \
                 not answer"
            ));
        }
        storage.decisions = decisions;
        self.storage = Some(storage);
        Ok(())
    }
}

/// Most threads that serve the requests of a guest whose files have a server.
const SERVER_THREADS: usize = 32;

/// Refuses a quota that the file system would not keep a guest to.
fn quota_options(args: &Args) -> Result<quota::Options, Error> {
    let options = quota::Options {
        bytes: args.quota.quota_bytes,
        inodes: args.quota.quota_inodes,
    };
    let option = match options {
        quota::Options { bytes: Some(_), .. } => "--quota-bytes",
        quota::Options {
            inodes: Some(_), ..
        } => "--quota-inodes",
        _ => return Ok(options),
    };
    let added = args.modcaps.as_ref().map(|changes| &changes.added);
    match added.is_some_and(|added| added.contains(&caps::Capability::CAP_SYS_RESOURCE)) {
        true => Err(Error::QuotaOverridden(option)),
        false => Ok(options),
    }
}

fn status_options(
    args: StatusOptions,
    socket: &socket::Source,
) -> Result<status::options::Options, Error> {
    use status::options::MetricsAddress;

    let is_guests = |path: &std::path::Path| matches!(socket, socket::Source::Path { path: guests, .. } if guests == path);
    if args.control.as_deref().is_some_and(is_guests) {
        return Err(Error::Conflict(
            "--control",
            "a --socket-path of the same name",
        ));
    }
    match &args.metrics {
        Some(MetricsAddress::Tcp(address))
            if !address.ip().is_loopback() && !args.metrics_allow_remote =>
        {
            return Err(Error::RemoteMetrics(*address));
        }
        Some(MetricsAddress::Path(path)) if is_guests(path) => {
            return Err(Error::Conflict(
                "--metrics",
                "a --socket-path of the same name",
            ));
        }
        Some(MetricsAddress::Path(path)) if args.control.as_ref() == Some(path) => {
            return Err(Error::Conflict("--metrics", "a --control of the same name"));
        }
        _ => {}
    }
    Ok(status::options::Options {
        control: args.control,
        metrics: args.metrics,
    })
}

/// Without OPEN, the guest's kernel would read the file of changes through its page cache.
fn check_events(args: &Args) -> Result<(), Error> {
    let may_need_no_open =
        args.readonly && args.cache == CachePolicy::Always && args.locks.0 != Some(Locks::Host);
    match args.events && may_need_no_open {
        true => Err(Error::Conflict("--events", "--readonly and --cache=always")),
        false => Ok(()),
    }
}

fn max_threads(args: &Args) -> Result<usize, Error> {
    let pool = args.thread_pool_size.unwrap_or(0);
    let least = device::Options::min_threads(pool);
    match args.max_threads {
        Some(given) if given < least => Err(Error::TooFewThreads { given, pool, least }),
        Some(given) => Ok(given),
        None => Ok(device::Options::default_threads(pool)),
    }
}

fn socket_source(args: &Args) -> Result<socket::Source, Error> {
    let path = match (&args.socket_path, &args.socket) {
        (Some(path), Some(older)) if path != older => return Err(Error::TwoSockets),
        (Some(path), _) | (None, Some(path)) => Some(path),
        (None, None) => None,
    };
    match (path, args.fd) {
        (Some(_), Some(_)) => Err(Error::Conflict("--fd", "--socket-path")),
        (None, None) => Err(Error::NoSocket),
        (None, Some(_)) if args.socket_group.is_some() => {
            Err(Error::Conflict("--socket-group", "--fd"))
        }
        (None, Some(fd)) => Ok(socket::Source::Fd(fd)),
        (Some(path), None) => Ok(socket::Source::Path {
            path: path.clone(),
            group: args.socket_group.clone(),
        }),
    }
}

/// Refuses file handles, the default included, without the capability that opens them, as virtiofsd
/// does.
fn check_handles(args: &Args) -> Result<(), Error> {
    use crate::passthrough::options::InodeFileHandles::{Mandatory, Never, Prefer};
    let removed = args.modcaps.as_ref().is_some_and(|changes| {
        changes
            .removed
            .contains(&caps::Capability::CAP_DAC_READ_SEARCH)
    });
    match args.inode_file_handles.mode {
        Prefer if removed => Err(Error::HandlesWithoutCapability("prefer")),
        Mandatory if removed => Err(Error::HandlesWithoutCapability("mandatory")),
        Never | Prefer | Mandatory => Ok(()),
    }
}

/// Refuses what only makes sense for paths with file handles, as virtiofsd does.
fn migration(args: &MigrationArgs) -> Result<MigrationOptions, Error> {
    const HANDLES: &str = "--migration-mode=file-handles";
    if args.migration_mode == MigrationMode::FileHandles {
        if args.migration_confirm_paths {
            return Err(Error::Conflict("--migration-confirm-paths", HANDLES));
        }
        if args.migration_verify_handles {
            return Err(Error::Conflict("--migration-verify-handles", HANDLES));
        }
    }
    Ok(MigrationOptions {
        mode: args.migration_mode,
        on_error: args.migration_on_error,
        verify_handles: args.migration_verify_handles,
        confirm_paths: args.migration_confirm_paths,
    })
}

/// Refuses ids of a user namespace without a namespace.
fn check_mapped_ids(options: &sandbox::Options) -> Result<(), Error> {
    let Some(option) = options.mapped_ids() else {
        return Ok(());
    };
    match options.mode {
        Mode::Namespace => Ok(()),
        Mode::Chroot => Err(Error::Conflict(option, "--sandbox=chroot")),
        Mode::None => Err(Error::Conflict(option, "--sandbox=none")),
    }
}

/// Refuses what the host would have to know the owners for.
fn check_ownership(args: &Args) -> Result<(), Error> {
    const MAPPED: &str = "--ownership=mapped";
    if args.ownership == Ownership::Host {
        return Ok(());
    }
    for (is_given, option) in [
        (args.posix_acl != NegotiationMode::Never, "--posix-acl"),
        (!args.translate_uid.is_empty(), "--translate-uid"),
        (!args.translate_gid.is_empty(), "--translate-gid"),
        (args.killpriv_v2, "--killpriv-v2"),
    ] {
        if is_given {
            return Err(Error::Conflict(option, MAPPED));
        }
    }
    Ok(())
}

/// Checks the rules that translate ids. The ids in ACLs are not translated, so neither may be used
/// with the other, as with virtiofsd.
fn id_map(args: &Args) -> Result<IdMap, Error> {
    if args.posix_acl != NegotiationMode::Never {
        if !args.translate_uid.is_empty() {
            return Err(Error::Conflict("--translate-uid", "--posix-acl"));
        }
        if !args.translate_gid.is_empty() {
            return Err(Error::Conflict("--translate-gid", "--posix-acl"));
        }
    }
    IdMap::new(&args.translate_uid, &args.translate_gid).map_err(|(is_of_users, source)| {
        let option = match is_of_users {
            true => "--translate-uid",
            false => "--translate-gid",
        };
        Error::IdMap { option, source }
    })
}

fn deprecations(args: &Args) -> Vec<&'static str> {
    [
        (
            args.compat_foreground,
            "-f is deprecated and has no effect: leave it out",
        ),
        (
            args.compat_debug,
            "-d is deprecated: pass --log-level=debug instead",
        ),
        (
            !args.compat_options.is_empty(),
            "-o is deprecated: pass its options by themselves, such as --cache=auto",
        ),
        (
            args.socket.is_some(),
            "--socket is deprecated: pass --socket-path instead",
        ),
        (
            args.inode_file_handles.deprecated,
            "--inode-file-handles=fallback is deprecated: pass prefer instead",
        ),
    ]
    .into_iter()
    .filter_map(|(given, text)| given.then_some(text))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::options::GuestArch;
    use crate::sandbox::options::Seccomp;
    use crate::storage::Abilities;
    use crate::storage::kind::Reach;

    fn config(line: &str) -> Result<Config, Error> {
        let words = std::iter::once("gangplankd").chain(line.split_whitespace());
        let args = Args::from_command_line(words).expect("the command line is well formed");
        Config::from_args(args)
    }

    /// The configuration of `line`, added to the shortest valid command line.
    fn with(line: &str) -> Config {
        config(&format!("--shared-dir /srv --socket-path /run/s {line}")).expect(line)
    }

    #[test]
    fn least_command_line_gives_the_documented_defaults() {
        let config = with("");
        assert_eq!(config.shared_dir, PathBuf::from("/srv"));
        assert_eq!(
            config.socket,
            socket::Source::Path {
                path: "/run/s".into(),
                group: None
            }
        );
        assert!(!config.exit_on_disconnect);
        assert_eq!(config.device, device::Options::default());
        assert_eq!(config.passthrough, passthrough::Options::default());
        assert_eq!(config.quota, quota::Options::default());
        assert_eq!(config.sandbox, sandbox::Options::default());
        assert_eq!(config.logging.level, LevelFilter::Info);
        assert!(!config.logging.syslog);
        assert!(config.deprecations.is_empty());
    }

    #[test]
    fn command_line_of_the_bao_demo_is_understood() {
        let config = config(
            "--socket-path=/root/Fs.sock --shared-dir /mnt --tag=myfs --announce-submounts \
             --sandbox chroot",
        )
        .unwrap();
        assert_eq!(config.shared_dir, PathBuf::from("/mnt"));
        assert_eq!(config.device.tag, "myfs");
        assert!(config.passthrough.announce_submounts);
        assert_eq!(config.sandbox.mode, Mode::Chroot);
    }

    fn storage(reach: Reach, lasting_handles: bool) -> Storage {
        Storage {
            file_system: "fuse.some".to_owned(),
            reach,
            locks_reach_other_hosts: true,
            abilities: Abilities {
                lasting_handles: Some(lasting_handles),
                ..Abilities::default()
            },
            ..Storage::default()
        }
    }

    #[test]
    fn what_is_left_open_follows_from_the_storage() {
        for (line, reach, locks, threads, grows) in [
            ("", Reach::ThisHost, Locks::Guest, 0, false),
            ("", Reach::Hosts, Locks::Host, 32, true),
            ("", Reach::Unknown, Locks::Host, 32, true),
            ("--locks=guest", Reach::Hosts, Locks::Guest, 32, true),
            ("--locks=host", Reach::ThisHost, Locks::Host, 0, false),
            ("--thread-pool-size=0", Reach::Hosts, Locks::Host, 0, false),
            ("--thread-pool-size=4", Reach::Hosts, Locks::Host, 4, false),
            ("--max-threads=20", Reach::Hosts, Locks::Host, 17, true),
        ] {
            let mut config = with(line);
            config.settle(storage(reach, true)).unwrap();
            assert_eq!(config.passthrough.locks, locks, "{line} on {reach:?}");
            assert_eq!(config.device.thread_pool_size, threads, "{line}");
            assert_eq!(config.device.thread_pool_grows, grows, "{line}");
            assert!(config.device.max_threads >= device::Options::min_threads(threads));
            let decisions = config.storage.unwrap().decisions;
            assert!(decisions[0].starts_with("locks are kept"), "{decisions:?}");
        }
    }

    #[test]
    fn handles_that_do_not_last_cannot_be_mandatory() {
        let mut config = with("--inode-file-handles=mandatory");
        let error = config.settle(storage(Reach::Hosts, false)).unwrap_err();
        assert!(error.to_string().contains("fuse.some"), "{error}");
        config.settle(storage(Reach::Hosts, true)).unwrap();
        let mut config = with("");
        config.settle(storage(Reach::ThisHost, false)).unwrap();
        let decisions = config.storage.unwrap().decisions.join(", ");
        assert!(decisions.contains("not by handle"), "{decisions}");
    }

    #[test]
    fn each_option_reaches_its_layer() {
        let config = with(
            "--tag=t --num-request-queues 4 --queue-size 256 --thread-pool-size=8 --xattr \
             --busy-poll=30 --max-guest-memory=16G --max-memory-regions=32 --max-threads=20 \
             --readonly --no-announce-submounts --inode-file-handles=mandatory --cache metadata \
             --timeout 0.5 --negative-timeout=2 --allow-mmap --events --no-readdirplus --writeback \
             --allow-direct-io --killpriv-v2 --locks=host --preserve-noatime \
             --translate-uid=map:0:1000:1 --translate-gid squash-guest:0:7:4294967295 \
             --guest-arch=aarch64 \
             --exit-on-disconnect --sandbox=none --seccomp=log --modcaps=+sys_admin \
             --rlimit-nofile=4096 --max-inode-memory=64M --log-level=trace --syslog \
             --limit-iops=500 --limit-bps=50M --limit-bps-burst=1M \
             --quota-bytes=10G --quota-inodes=1000 \
             --socket-group=kvm",
        );
        assert_eq!(
            config.device,
            device::Options {
                tag: "t".to_owned(),
                num_request_queues: 4,
                max_queue_size: 256,
                thread_pool_size: 8,
                thread_pool_grows: false,
                max_threads: 20,
                busy_poll: Duration::from_micros(30),
                limits: device::Limits {
                    operations: Some(device::Rate {
                        per_second: 500,
                        burst: 50
                    }),
                    bytes: Some(device::Rate {
                        per_second: 50 << 20,
                        burst: 1 << 20
                    }),
                },
                max_guest_memory: 16 << 30,
                max_memory_regions: 32,
                has_slots_for_qemu: true,
            }
        );
        assert_eq!(
            config.passthrough,
            passthrough::Options {
                cache: CachePolicy::Metadata,
                timeout: Some(Duration::from_millis(500)),
                negative_timeout: Duration::from_secs(2),
                xattr: true,
                readonly: true,
                announce_submounts: false,
                inode_file_handles: InodeFileHandles::Mandatory,
                events: true,
                allow_mmap: true,
                readdirplus: false,
                writeback: true,
                allow_direct_io: true,
                killpriv_v2: true,
                locks: Locks::Host,
                preserve_noatime: true,
                id_map: IdMap::new(
                    &["map:0:1000:1".parse().unwrap()],
                    &["squash-guest:0:7:4294967295".parse().unwrap()]
                )
                .unwrap(),
                guest_arch: Some(GuestArch::Aarch64),
                max_inode_memory: 64 << 20,
                ..passthrough::Options::default()
            }
        );
        assert_eq!(
            config.sandbox,
            sandbox::Options {
                mode: Mode::None,
                events: true,
                seccomp: Seccomp::Log,
                modcaps: "+sys_admin".parse().unwrap(),
                rlimit_nofile: Some(4096),
                ..sandbox::Options::default()
            }
        );
        assert_eq!(
            config.quota,
            quota::Options {
                bytes: Some(10 << 30),
                inodes: Some(1000)
            }
        );
        assert_eq!(config.logging.level, LevelFilter::Trace);
        assert!(config.logging.syslog);
        assert!(config.exit_on_disconnect);
        assert_eq!(
            config.socket,
            socket::Source::Path {
                path: "/run/s".into(),
                group: Some("kvm".to_owned())
            }
        );
    }

    #[test]
    fn file_handles_need_no_check_of_paths() {
        for (mode, verify, confirm, refused) in [
            (MigrationMode::FindPaths, true, true, None),
            (MigrationMode::FileHandles, false, false, None),
            (
                MigrationMode::FileHandles,
                true,
                false,
                Some("verify-handles"),
            ),
            (
                MigrationMode::FileHandles,
                false,
                true,
                Some("confirm-paths"),
            ),
        ] {
            let checked = migration(&MigrationArgs {
                migration_mode: mode,
                migration_verify_handles: verify,
                migration_confirm_paths: confirm,
                ..MigrationArgs::default()
            });
            match (checked, refused) {
                (Ok(options), None) => {
                    let got = (options.mode, options.verify_handles, options.confirm_paths);
                    assert_eq!(got, (mode, verify, confirm));
                }
                (Err(error), Some(name)) => assert_eq!(
                    error.to_string(),
                    format!(
                        "--migration-{name} cannot be used together with \
                         --migration-mode=file-handles"
                    )
                ),
                (checked, _) => panic!("{checked:?}, {refused:?}"),
            }
        }
    }

    #[test]
    fn what_needs_extended_attributes_implies_them() {
        for line in [
            "--xattrmap=:map::user.virtiofs.:",
            "-o xattrmap=:map::user.virtiofs.:,no_xattr",
        ] {
            let options = with(line).passthrough;
            assert!(options.xattr && options.xattr_map.is_some(), "{line}");
        }
        for (line, acl, label) in [
            (
                "--posix-acl",
                NegotiationMode::Always,
                NegotiationMode::Never,
            ),
            (
                "--posix-acl=auto",
                NegotiationMode::Auto,
                NegotiationMode::Never,
            ),
            (
                "--security-label=auto --posix-acl=never",
                NegotiationMode::Never,
                NegotiationMode::Auto,
            ),
            (
                "-o security_label,posix_acl,no_posix_acl,no_xattr",
                NegotiationMode::Never,
                NegotiationMode::Always,
            ),
        ] {
            let options = with(line).passthrough;
            assert_eq!(
                (options.posix_acl, options.security_label),
                (acl, label),
                "{line}"
            );
            assert!(options.xattr, "{line}");
        }
        assert!(!with("--posix-acl=never").passthrough.xattr);
    }

    #[test]
    fn opposite_flags_take_the_last() {
        let table: [(&str, bool, bool); 4] = [
            ("--announce-submounts --no-announce-submounts", false, false),
            ("--no-announce-submounts --announce-submounts", true, false),
            ("--no-killpriv-v2 --killpriv-v2", true, true),
            ("--killpriv-v2 --no-killpriv-v2", true, false),
        ];
        for (line, announce_submounts, killpriv_v2) in table {
            let options = with(line).passthrough;
            assert_eq!(options.announce_submounts, announce_submounts, "{line}");
            assert_eq!(options.killpriv_v2, killpriv_v2, "{line}");
        }
    }

    #[test]
    fn a_level_that_is_given_in_any_way_is_known_to_be() {
        for (line, level) in [
            ("--log-level=warn", Some(LevelFilter::Warn)),
            ("-o loglevel=err", Some(LevelFilter::Error)),
            ("-o xattr,loglevel=debug", Some(LevelFilter::Debug)),
            ("-o xattr,debug", Some(LevelFilter::Debug)),
            ("-o log_level=err", Some(LevelFilter::Error)),
            ("-d", Some(LevelFilter::Debug)),
            ("--xattr", None),
        ] {
            let config = with(line);
            assert_eq!(config.is_log_level_given, level.is_some(), "{line}");
            assert_eq!(
                config.logging.level,
                level.unwrap_or(LevelFilter::Info),
                "{line}"
            );
        }
    }

    #[test]
    fn readdirplus_without_cache_is_off() {
        assert!(!with("--cache=never").passthrough.readdirplus);
        assert!(with("--cache=metadata").passthrough.readdirplus);
    }

    #[test]
    fn listening_descriptor_serves_one_guest() {
        let config = config("--shared-dir /srv --fd 3").unwrap();
        assert_eq!(config.socket, socket::Source::Fd(3));
        assert!(config.exit_on_disconnect);
    }

    #[test]
    fn deprecated_ways_work_and_are_noticed() {
        let config =
            config("--socket s -o source=/srv,cache=none -d -f --inode-file-handles=fallback")
                .unwrap();
        assert_eq!(config.shared_dir, PathBuf::from("/srv"));
        assert_eq!(config.passthrough.cache, CachePolicy::Never);
        assert_eq!(config.logging.level, LevelFilter::Debug);
        assert_eq!(
            config.passthrough.inode_file_handles,
            InodeFileHandles::Prefer
        );
        assert_eq!(config.deprecations.len(), 5);
    }

    #[test]
    fn contradictions_and_omissions_are_named() {
        let table = [
            ("--socket-path s", "--shared-dir"),
            ("--shared-dir /srv", "--socket-path"),
            (
                "--shared-dir /srv --socket-path s --fd 3",
                "--fd cannot be used together with --socket-path",
            ),
            (
                "--shared-dir /srv --socket s --fd 3",
                "--fd cannot be used together with --socket-path",
            ),
            (
                "--shared-dir /srv --socket s --events --readonly --cache=always",
                "--events cannot be used together with --readonly and --cache=always",
            ),
            (
                "--shared-dir /srv --fd 3 --socket-group kvm",
                "--socket-group cannot be used together with --fd",
            ),
            (
                "--shared-dir /srv --socket a --socket-path b",
                "different sockets",
            ),
            (
                "--shared-dir /srv --socket-path s --modcaps=-dac_read_search",
                "--inode-file-handles=never",
            ),
            (
                "--shared-dir /srv --socket-path s --thread-pool-size=8 --max-threads=10",
                "a guest needs 11",
            ),
            (
                "--shared-dir /srv --socket-path s --posix-acl=auto --translate-gid=map:0:1:1",
                "--translate-gid cannot be used together with --posix-acl",
            ),
            (
                "--shared-dir /srv --socket-path s --ownership=mapped --posix-acl=auto",
                "--posix-acl cannot be used together with --ownership=mapped",
            ),
            (
                "--shared-dir /srv --socket-path s --quota-inodes=9 --modcaps=+sys_resource",
                "sys_resource, which overrides --quota-inodes",
            ),
            (
                "--shared-dir /srv --socket-path s --sandbox=none --gid-map=:0:1:1:",
                "--gid-map cannot be used together with --sandbox=none",
            ),
            (
                "--shared-dir /srv --socket-path s --translate-gid=guest:0:1:9 \
                 --translate-gid=map:8:1:1",
                "--translate-gid: 'guest:0:1:9' and 'map:8:1:1' translate the same guest id",
            ),
        ];
        for (line, hint) in table {
            let message = config(line).expect_err(line).to_string();
            assert!(message.contains(hint), "{line}: {message}");
        }
        with("--modcaps=-dac_read_search --inode-file-handles=never");
    }
}
