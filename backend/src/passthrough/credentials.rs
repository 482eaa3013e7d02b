//! Creating objects with the owner, group and umask of the guest's process.

use std::io;

use gangplank_service::rate_limited;

use super::id_map::IdMap;
use crate::session::Creator;
use crate::session::file_system::GuestGid;
use crate::sys::ids::{HostGid, HostUid};
use crate::sys::thread::{self, Capability, MAX_GROUPS};

/// Which of a caller's credentials the daemon assumes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Impersonation<'a> {
    /// Converts the caller's ids.
    pub(super) id_map: &'a IdMap,
    /// Change the thread's user and group ids.
    pub(super) change_ids: bool,
    /// Apply the caller's umask (`FUSE_DONT_MASK`).
    pub(super) apply_umask: bool,
}

impl Impersonation<'_> {
    /// Calls `create` with the mode to use, under the caller's credentials where possible.
    ///
    /// The guest's kernel has checked permissions with all of the caller's groups; the host knows
    /// at most one supplementary group. So if the host answers EACCES, `create` is called again
    /// with `CAP_DAC_OVERRIDE`.
    ///
    /// # Errors
    /// Those of `create`; EINVAL for an invalid id, EPERM for a forbidden one.
    pub(super) fn create<T>(
        self,
        creator: &Creator<'_>,
        mode: u32,
        mut create: impl FnMut(u32) -> io::Result<T>,
    ) -> io::Result<T> {
        let mode = self.prepare_mode(creator.umask, mode);
        let Some(guard) = self.assume(creator)? else {
            return create(mode);
        };
        match create(mode) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) && guard.uid.is_some() => {
                match thread::set_capability(Capability::DacOverride, true) {
                    Ok(_) => create(mode),
                    Err(_) => Err(error),
                }
            }
            result => result,
        }
    }

    /// Sets the thread's umask. If the thread cannot have its own, applies the umask to the mode.
    fn prepare_mode(self, umask: u32, mode: u32) -> u32 {
        let umask = if self.apply_umask { umask } else { 0 };
        match thread::set_umask(umask) {
            Ok(()) => mode,
            Err(_) => mode & !(umask & 0o777),
        }
    }

    /// Assumes the caller's group and user; `None` if nothing had to change.
    fn assume(self, creator: &Creator<'_>) -> io::Result<Option<RestoreGuard>> {
        let uid = self.id_map.host_uid(creator.caller.uid)?;
        let gid = self.id_map.host_gid(creator.caller.gid)?;
        if !self.change_ids {
            return Ok(None);
        }
        let (own_uid, own_gid) = thread::initial_ids();
        let changes_uid = uid != own_uid && uid != HostUid::ROOT;
        let mut guard = RestoreGuard::default();
        if changes_uid && let Some(groups) = creator.groups {
            let mut list = [HostGid::ROOT; MAX_GROUPS];
            let mut count = 0;
            for (slot, group) in list.iter_mut().zip(groups.iter()) {
                *slot = self.id_map.host_gid(GuestGid::new(group))?;
                count += 1;
            }
            // If this fails, the second attempt still creates the object, perhaps without the
            // parent's group.
            guard.groups = list
                .get(..count)
                .is_some_and(|list| !list.is_empty() && thread::set_groups(list).is_ok());
        }
        // The group comes first, because the thread may not change it once its user id is not 0.
        if gid != own_gid && gid != HostGid::ROOT {
            thread::set_effective_gid(gid)?;
            guard.gid = Some(own_gid);
        }
        if changes_uid {
            thread::set_effective_uid(uid)?;
            guard.uid = Some(own_uid);
        }
        Ok((guard.uid.is_some() || guard.gid.is_some() || guard.groups).then_some(guard))
    }
}

/// Restores the thread's own credentials when dropped.
#[derive(Debug, Default)]
struct RestoreGuard {
    uid: Option<HostUid>,
    gid: Option<HostGid>,
    groups: bool,
}

impl Drop for RestoreGuard {
    fn drop(&mut self) {
        let mut results = [Ok(()), Ok(()), Ok(())];
        if let Some(uid) = self.uid {
            results[0] = thread::set_effective_uid(uid);
        }
        if let Some(gid) = self.gid {
            results[1] = thread::set_effective_gid(gid);
        }
        if self.groups {
            results[2] = thread::set_groups(&[]);
        }
        for error in results.into_iter().filter_map(Result::err) {
            // A thread may always return to its own ids. If this fails, later requests fail safely,
            // because they run with fewer rights.
            rate_limited!(
                error,
                "cannot restore a thread's own user and group ids: {error}; later requests of this \
                 thread may fail"
            );
        }
    }
}

/// Calls `change` so that the host clears set-user-ID and set-group-ID bits as for an ordinary
/// user.
///
/// # Errors
/// Those of `change`.
pub(super) fn without_set_id<T>(change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Ok(before) = thread::set_capability(Capability::Fsetid, false) else {
        // Without CAP_FSETID the kernel clears the bits anyway.
        return change();
    };
    let result = change();
    if before && let Err(error) = thread::set_capability(Capability::Fsetid, true) {
        rate_limited!(error, "cannot restore CAP_FSETID for a thread: {error}");
    }
    result
}
