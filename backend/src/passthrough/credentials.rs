//! Creating objects as the guest's process would: owner, group, umask.

use std::io;

use crate::rate_limited;
use crate::session::Creator;
use crate::sys::thread::{self, Capability, MAX_GROUPS};

/// What of a caller's credentials can and must be taken on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Impersonation {
    /// The process may change its threads' credentials.
    pub(super) change_ids: bool,
    /// The umask is ours to apply (`FUSE_DONT_MASK`).
    pub(super) apply_umask: bool,
}

impl Impersonation {
    /// Calls `create` with the mode to create with, as the caller as far as that is possible.
    ///
    /// The guest's kernel has checked permissions, with all of the caller's groups, of which the host knows but one.
    /// So where the host refuses permission, the call is made once more without permission bits in the way.
    ///
    /// # Errors
    /// Those of `create`; EINVAL for an id that does not exist on the host.
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

    /// Sets the umask; where a thread cannot have its own, applies it to the mode.
    fn prepare_mode(self, umask: u32, mode: u32) -> u32 {
        let umask = if self.apply_umask { umask } else { 0 };
        match thread::set_umask(umask) {
            Ok(()) => mode,
            Err(_) => mode & !(umask & 0o777),
        }
    }

    /// Takes on group and user; `None` where nothing had to change.
    fn assume(self, creator: &Creator<'_>) -> io::Result<Option<RestoreGuard>> {
        if !self.change_ids {
            return Ok(None);
        }
        let (uid, gid) = thread::initial_ids();
        let caller = creator.caller;
        let mut guard = RestoreGuard::default();
        if caller.uid != uid
            && caller.uid != 0
            && let Some(groups) = creator.groups
        {
            let mut list = [0; MAX_GROUPS];
            let mut count = 0;
            for (slot, group) in list.iter_mut().zip(groups.iter()) {
                *slot = group;
                count += 1;
            }
            // Without them the object is still made, by the second attempt, if not always with the parent's group.
            guard.groups = list
                .get(..count)
                .is_some_and(|list| !list.is_empty() && thread::set_groups(list).is_ok());
        }
        // The group first: without user id 0 the right to change it is gone.
        if caller.gid != gid && caller.gid != 0 {
            thread::set_effective_gid(caller.gid)?;
            guard.gid = Some(gid);
        }
        if caller.uid != uid && caller.uid != 0 {
            thread::set_effective_uid(caller.uid)?;
            guard.uid = Some(uid);
        }
        Ok((guard.uid.is_some() || guard.gid.is_some() || guard.groups).then_some(guard))
    }
}

/// Gives the thread its own credentials back.
#[derive(Debug, Default)]
struct RestoreGuard {
    uid: Option<u32>,
    gid: Option<u32>,
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
            // Going back to one's own ids is always allowed; should it fail, what follows fails safely, as a user
            // with fewer rights.
            rate_limited!(
                error,
                "a worker cannot take its own credentials back: {error}"
            );
        }
    }
}

/// Calls `change` so that the host takes set-user-ID and set-group-ID bits away as for an ordinary user.
///
/// # Errors
/// Those of `change`.
pub(super) fn without_set_id<T>(change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Ok(before) = thread::set_capability(Capability::Fsetid, false) else {
        // Without capabilities of its own the process cannot keep the bits anyway.
        return change();
    };
    let result = change();
    if before && let Err(error) = thread::set_capability(Capability::Fsetid, true) {
        rate_limited!(error, "a worker cannot take back CAP_FSETID: {error}");
    }
    result
}
