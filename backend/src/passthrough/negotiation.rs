//! INIT and DESTROY: the flags of a session.

use std::io;

use gangplank_fuse::{Handle, InitFlags};
use gangplank_service::rate_limited;

use super::fs::PassthroughFs;
use super::inode_table::OpenChange;
use super::no_open::{NO_OPEN_FLAGS, allows_no_open};
use super::options::{CachePolicy, Locks, NegotiationMode, Options};
use crate::session::file_system::{GuestUid, SessionLifecycle};
use crate::sys::thread;

/// What the guest's kernel must support for ACLs: it checks them, leaves the umask to the daemon,
/// whose host knows of default ACLs, and says when an ACL takes the set-group-ID bit away.
const ACL_FLAGS: InitFlags = InitFlags::POSIX_ACL
    .union(InitFlags::DONT_MASK)
    .union(InitFlags::SETXATTR_EXT);

impl SessionLifecycle for PassthroughFs {
    fn init(&self, offered: InitFlags) -> io::Result<InitFlags> {
        self.state.clear();
        self.state.guest_arch.reset();
        self.negotiate(offered)
    }

    fn resume(&self, offered: InitFlags) -> io::Result<InitFlags> {
        self.negotiate(offered)
    }

    fn destroy(&self) {
        self.state.clear();
        self.state.negotiated.clear();
    }

    fn possible_owners(&self, caller: GuestUid) -> [GuestUid; 2] {
        if self.maps_ownership() {
            // Root owns what has no record yet.
            return [caller, GuestUid::ROOT];
        }
        let id_map = &self.share.options.id_map;
        // The thread's ids are those of the process between two requests.
        let own = id_map.guest_uid(thread::initial_ids().0);
        let owner = id_map.host_uid(caller).map(|uid| id_map.guest_uid(uid));
        [owner.unwrap_or(own), own]
    }

    fn abandon(&self, handle: Handle) {
        if let Some(node) = self.state.files.node_of(handle)
            && self.state.files.remove(handle, node).is_ok()
        {
            self.state.inodes.count_open(node, OpenChange::Closed);
        }
    }
}

impl PassthroughFs {
    /// Selects from the offered flags those that the options ask for.
    ///
    /// # Errors
    /// EPROTO: the guest's kernel does not offer what the operator requires.
    pub(super) fn negotiate(&self, offered: InitFlags) -> io::Result<InitFlags> {
        let mut wanted = wanted(&self.share.options);
        if self.share.abilities.can_change_credentials {
            wanted |= InitFlags::CREATE_SUPP_GROUP;
        }
        if thread::set_umask(0).is_err() {
            // Then the guest applies the umask, and the host's default ACLs have less effect.
            wanted -= InitFlags::DONT_MASK;
        }
        if allows_no_open(&self.share.options) && offered.contains(NO_OPEN_FLAGS) {
            // With ATOMIC_O_TRUNC and without OPEN, the guest would treat the file as empty
            // although the truncation never reaches the host.
            wanted = (wanted | NO_OPEN_FLAGS) - InitFlags::ATOMIC_O_TRUNC;
        }
        let options = &self.share.options;
        for (mode, flags, option) in [
            (options.posix_acl, ACL_FLAGS, "--posix-acl"),
            (
                options.security_label,
                InitFlags::SECURITY_CTX,
                "--security-label",
            ),
        ] {
            // Without umasks of its own for each thread, the daemon cannot have DONT_MASK.
            let can_have = offered.contains(flags)
                && (wanted.contains(InitFlags::DONT_MASK) || !flags.contains(InitFlags::DONT_MASK));
            match mode {
                NegotiationMode::Never => {}
                _ if can_have => wanted |= flags,
                NegotiationMode::Auto => rate_limited!(
                    warn,
                    "{option}=auto has no effect: the guest's kernel does not support it"
                ),
                NegotiationMode::Always => {
                    rate_limited!(
                        error,
                        "a guest cannot mount: its kernel does not support {option}=always; use \
                         {option}=auto"
                    );
                    return Err(io::Error::from_raw_os_error(libc::EPROTO));
                }
            }
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
                    "{option} has no effect: the guest's kernel does not support it"
                );
            }
        }
        self.state.negotiated.set(agreed);
        Ok(agreed)
    }
}

/// The flags that the options ask for. The session negotiates message sizes itself.
fn wanted(options: &Options) -> InitFlags {
    let mut wanted = InitFlags::ATOMIC_O_TRUNC
        | InitFlags::DONT_MASK
        | InitFlags::AUTO_INVAL_DATA
        | InitFlags::ASYNC_DIO
        | InitFlags::PARALLEL_DIROPS
        // The guest's kernel maps the ids of such a mount, and this file system has the rest.
        | InitFlags::ALLOW_IDMAP
        // Node ids change at a restart, so the guest must not export them as NFS file handles.
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
