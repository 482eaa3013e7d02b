//! What the options of each layer are, and which combinations are refused.

use std::path::Path;

use super::Error;
use crate::args::{Args, MigrationArgs, StatusOptions};
use crate::passthrough::id_map::IdMap;
use crate::passthrough::options::{CachePolicy, Locks, NegotiationMode, Ownership};
use crate::sandbox::options::Mode;
use crate::state::migration::{MigrationMode, MigrationOptions};
use crate::{device, quota, sandbox, socket, status};

/// Refuses a holder at the guests' socket.
pub(super) fn check_holder(holder: Option<&Path>, socket: &socket::Source) -> Result<(), Error> {
    match holder.is_some() && holder == socket.path() {
        true => Err(Error::Conflict(
            "--holder",
            "a --socket-path of the same name",
        )),
        false => Ok(()),
    }
}

/// Seconds for which the session of a guest is kept whose connection was lost, unless the operator
/// says otherwise. Cloud Hypervisor connects again every 100 ms. Locks that a guest holds on the
/// host's files keep others waiting for as long after the guest has died.
const KEEP_SESSION: u32 = 10;

/// Refuses to keep sessions in a daemon that ends with its guests.
pub(super) fn keep_session(given: Option<u32>, exits: bool) -> Result<u32, Error> {
    match given {
        Some(1..) if exits => Err(Error::Conflict(
            "--keep-session",
            "--exit-on-disconnect or --fd",
        )),
        given => Ok(given.unwrap_or(KEEP_SESSION)),
    }
}

/// Refuses a quota that the file system would not keep a guest to.
pub(super) fn quota_options(args: &Args) -> Result<quota::Options, Error> {
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

pub(super) fn status_options(
    args: StatusOptions,
    socket: &socket::Source,
) -> Result<status::options::Options, Error> {
    use status::options::MetricsAddress;

    let is_guests = |path: &Path| socket.path() == Some(path);
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
pub(super) fn check_events(args: &Args) -> Result<(), Error> {
    let may_need_no_open =
        args.readonly && args.cache == CachePolicy::Always && args.locks.0 != Some(Locks::Host);
    match args.events && may_need_no_open {
        true => Err(Error::Conflict("--events", "--readonly and --cache=always")),
        false => Ok(()),
    }
}

pub(super) fn max_threads(args: &Args) -> Result<usize, Error> {
    let pool = args.thread_pool_size.unwrap_or(0);
    let least = device::Options::min_threads(pool);
    match args.max_threads {
        Some(given) if given < least => Err(Error::TooFewThreads { given, pool, least }),
        Some(given) => Ok(given),
        None => Ok(device::Options::default_threads(pool)),
    }
}

pub(super) fn socket_source(args: &Args) -> Result<socket::Source, Error> {
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
pub(super) fn check_handles(args: &Args) -> Result<(), Error> {
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
pub(super) fn migration(args: &MigrationArgs) -> Result<MigrationOptions, Error> {
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
pub(super) fn check_mapped_ids(options: &sandbox::Options) -> Result<(), Error> {
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
pub(super) fn check_ownership(args: &Args) -> Result<(), Error> {
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
pub(super) fn id_map(args: &Args) -> Result<IdMap, Error> {
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

pub(super) fn deprecations(args: &Args) -> Vec<&'static str> {
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
