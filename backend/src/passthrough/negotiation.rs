//! What a session's INIT agrees on.

use std::sync::atomic::{AtomicU64, Ordering};

use gangplank_fuse::InitFlags;

use super::credentials::Impersonation;
use super::fs::PassthroughFs;
use super::no_open::{NO_OPEN_FLAGS, allows_no_open};
use super::options::{CachePolicy, Locks, Options};
use crate::rate_limited;
use crate::sys::thread;

/// The flags in force, once agreed on.
#[derive(Debug, Default)]
pub(super) struct NegotiatedFlags {
    flags: AtomicU64,
}

impl NegotiatedFlags {
    /// Whether all of `flags` were agreed on.
    pub(super) fn has(&self, flags: InitFlags) -> bool {
        InitFlags::from_bits_retain(self.flags.load(Ordering::Relaxed)).contains(flags)
    }

    /// Nothing is agreed on any more.
    pub(super) fn clear(&self) {
        self.flags.store(0, Ordering::Relaxed);
    }
}

impl PassthroughFs {
    /// Takes of what is offered what the options ask for.
    pub(super) fn negotiate(&self, offered: InitFlags) -> InitFlags {
        let mut wanted = wanted(&self.share.options);
        if self.share.abilities.can_change_credentials {
            wanted |= InitFlags::CREATE_SUPP_GROUP;
        }
        if thread::set_umask(0).is_err() {
            // The guest then applies the umask, and default ACLs of the host come second.
            wanted -= InitFlags::DONT_MASK;
        }
        if allows_no_open(&self.share.options) && offered.contains(NO_OPEN_FLAGS) {
            // A guest that opens by itself would take a file for empty that it has only asked to be emptied.
            wanted = (wanted | NO_OPEN_FLAGS) - InitFlags::ATOMIC_O_TRUNC;
        }
        let agreed = wanted & offered;
        for (wanted_by_option, flag, option) in [
            (
                self.share.options.writeback,
                InitFlags::WRITEBACK_CACHE,
                "--writeback",
            ),
            (
                self.share.options.killpriv_v2,
                InitFlags::HANDLE_KILLPRIV_V2,
                "--killpriv-v2",
            ),
            (
                self.share.options.announce_submounts,
                InitFlags::SUBMOUNTS,
                "--announce-submounts",
            ),
            (
                self.share.options.allow_mmap,
                InitFlags::DIRECT_IO_ALLOW_MMAP,
                "--allow-mmap",
            ),
        ] {
            if wanted_by_option && !offered.contains(flag) {
                rate_limited!(
                    info,
                    "{option} has no effect: the guest's kernel does not know it"
                );
            }
        }
        self.negotiated
            .flags
            .store(agreed.bits(), Ordering::Relaxed);
        agreed
    }

    /// How objects are created in this session.
    pub(super) fn impersonation(&self) -> Impersonation {
        Impersonation {
            change_ids: self.share.abilities.can_change_credentials,
            apply_umask: self.negotiated.has(InitFlags::DONT_MASK),
        }
    }
}

/// What the options ask for. Message sizes and the like are the session's to agree on.
fn wanted(options: &Options) -> InitFlags {
    let mut wanted = InitFlags::ATOMIC_O_TRUNC
        | InitFlags::DONT_MASK
        | InitFlags::AUTO_INVAL_DATA
        | InitFlags::ASYNC_DIO
        | InitFlags::PARALLEL_DIROPS
        // Node ids mean nothing after a restart, so a guest must not hand them out as file handles.
        | InitFlags::NO_EXPORT_SUPPORT;
    let choices = [
        (
            options.readdirplus,
            InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO,
        ),
        (
            options.cache != CachePolicy::Never,
            InitFlags::CACHE_SYMLINKS,
        ),
        (options.writeback, InitFlags::WRITEBACK_CACHE),
        (options.killpriv_v2, InitFlags::HANDLE_KILLPRIV_V2),
        (options.announce_submounts, InitFlags::SUBMOUNTS),
        (options.allow_mmap, InitFlags::DIRECT_IO_ALLOW_MMAP),
        (
            options.locks == Locks::Host,
            InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS,
        ),
    ];
    for (chosen, flags) in choices {
        if chosen {
            wanted |= flags;
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_choose_the_flags() {
        let plain = wanted(&Options::default());
        assert!(plain.contains(InitFlags::AUTO_INVAL_DATA | InitFlags::SUBMOUNTS));
        assert!(!plain.intersects(
            InitFlags::POSIX_LOCKS | InitFlags::WRITEBACK_CACHE | InitFlags::HANDLE_KILLPRIV_V2
        ));
        let other = wanted(&Options {
            cache: CachePolicy::Never,
            locks: Locks::Host,
            writeback: true,
            readdirplus: false,
            announce_submounts: false,
            ..Options::default()
        });
        assert!(other.contains(
            InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS | InitFlags::WRITEBACK_CACHE
        ));
        assert!(!other.intersects(InitFlags::SUBMOUNTS | InitFlags::DO_READDIRPLUS));
    }
}
