//! Reduces the process's capabilities to those that a file server needs.

use caps::{Capability, CapsHashSet};
use gangplank_sandbox::capabilities;

use super::error::Error;
use super::options::ModCaps;

/// The capabilities needed to act for a guest's users: virtiofsd's set.
const FILE_SERVER: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
];

/// The capability needed to open a file by its handle (open_by_handle_at(2)).
const OPEN_BY_HANDLE: Capability = Capability::CAP_DAC_READ_SEARCH;

/// The capability by which a worker detaches its `/proc/self/fd`, and a keeper leaves the
/// acceptor's mount namespace.
const DETACH: Capability = Capability::CAP_SYS_ADMIN;

/// The capability by which a keeper makes the share its root.
const CHANGE_ROOT: Capability = Capability::CAP_SYS_CHROOT;

/// The capability that the supervisor needs to remove the socket from another user's directory.
const SUPERVISOR: Capability = Capability::CAP_DAC_OVERRIDE;

/// Reduces all capability sets of the acceptor and returns the capabilities that workers keep.
///
/// The acceptor stays permitted to raise the workers' capabilities, [`DETACH`] and, if
/// `keepers_change_root`, [`CHANGE_ROOT`], which its keepers and workers inherit by fork.
/// [`capabilities::suspend`] makes none of them effective.
///
/// A needed capability that the process does not have is no error: an ordinary user serves with
/// fewer.
pub(super) fn reduce(
    changes: &ModCaps,
    keep_handles: bool,
    keepers_change_root: bool,
) -> Result<CapsHashSet, Error> {
    let permitted = capabilities::permitted()?;
    let keep = selection(&permitted, changes, keep_handles)?;
    let acceptor: CapsHashSet = keep
        .iter()
        .chain(permitted.get(&DETACH))
        .chain(permitted.get(&CHANGE_ROOT).filter(|_| keepers_change_root))
        .copied()
        .collect();
    capabilities::reduce(&acceptor)?;
    Ok(keep)
}

/// Reduces the capabilities of a keeper: it stays permitted to hand `kept` and [`DETACH`] down to
/// its workers, and none is effective.
pub(super) fn restrict_keeper(kept: &CapsHashSet) -> Result<(), Error> {
    let permitted = capabilities::permitted()?;
    let handed_down: CapsHashSet = kept.iter().chain(permitted.get(&DETACH)).copied().collect();
    capabilities::restrict(&handed_down)?;
    Ok(capabilities::suspend()?)
}

/// Reduces the effective capabilities of the supervisor. It stays permitted what it was started
/// with, because a reload starts the next program with that.
pub(super) fn reduce_supervisor() -> Result<(), Error> {
    let permitted = capabilities::permitted()?;
    let effective = permitted.get(&SUPERVISOR).copied().into_iter().collect();
    Ok(capabilities::set_effective(&effective)?)
}

/// Whether these capabilities suffice to take on a caller's user and group.
pub(super) fn can_change_credentials(kept: &CapsHashSet) -> bool {
    kept.contains(&Capability::CAP_SETUID) && kept.contains(&Capability::CAP_SETGID)
}

/// Whether the process may set its supplementary groups.
pub(super) fn can_set_groups() -> Result<bool, Error> {
    Ok(capabilities::effective()?.contains(&Capability::CAP_SETGID))
}

fn selection(
    permitted: &CapsHashSet,
    changes: &ModCaps,
    keep_handles: bool,
) -> Result<CapsHashSet, Error> {
    if let Some(missing) = changes.added.difference(permitted).next() {
        return Err(Error::CapabilityMissing(*missing));
    }
    Ok(FILE_SERVER
        .into_iter()
        .chain(keep_handles.then_some(OPEN_BY_HANDLE))
        .filter(|capability| permitted.contains(capability))
        .filter(|capability| !changes.removed.contains(capability))
        .chain(changes.added.iter().copied())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(text: &str) -> ModCaps {
        text.parse().expect("well-formed changes")
    }

    #[test]
    fn selection_of_root_is_the_needed_set_and_the_changes() {
        let all = caps::all();
        let needed = CapsHashSet::from(FILE_SERVER);
        let none = ModCaps::default();
        assert_eq!(selection(&all, &none, false).unwrap(), needed);

        let with_handles = selection(&all, &none, true).unwrap();
        assert!(with_handles.contains(&OPEN_BY_HANDLE));
        assert_eq!(with_handles.len(), needed.len() + 1);

        let changed = selection(&all, &changes("+sys_admin:-mknod"), false).unwrap();
        assert!(changed.contains(&Capability::CAP_SYS_ADMIN));
        assert!(!changed.contains(&Capability::CAP_MKNOD));
        assert!(!can_change_credentials(
            &selection(&all, &changes("-setuid"), false).unwrap()
        ));
    }

    #[test]
    fn selection_without_capabilities_keeps_none_but_refuses_to_add() {
        let nothing = CapsHashSet::new();
        let kept = selection(&nothing, &changes("-chown"), true).unwrap();
        assert!(kept.is_empty());
        let error = selection(&nothing, &changes("+sys_admin"), true).unwrap_err();
        assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
    }
}
