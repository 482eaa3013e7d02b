//! Reduces the process's capabilities to those that a file server needs.

use caps::{CapSet, Capability, CapsHashSet};

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

/// The capability that the supervisor needs to remove the socket from another user's directory.
const SUPERVISOR: Capability = Capability::CAP_DAC_OVERRIDE;

/// Reduces all capability sets of the calling process and returns the capabilities kept.
///
/// A needed capability that the process does not have is no error: an ordinary user serves with
/// fewer.
pub(super) fn reduce(changes: &ModCaps, keep_handles: bool) -> Result<CapsHashSet, Error> {
    let permitted = read(CapSet::Permitted, "permitted")?;
    let keep = selection(&permitted, changes, keep_handles)?;
    apply(&keep)?;
    Ok(keep)
}

/// Reduces the capability sets of the supervisor.
pub(super) fn reduce_supervisor() -> Result<(), Error> {
    let permitted = read(CapSet::Permitted, "permitted")?;
    let keep = permitted
        .intersection(&CapsHashSet::from([SUPERVISOR]))
        .copied()
        .collect();
    apply(&keep)
}

/// Whether these capabilities suffice to take on a caller's user and group.
pub(super) fn can_change_credentials(kept: &CapsHashSet) -> bool {
    kept.contains(&Capability::CAP_SETUID) && kept.contains(&Capability::CAP_SETGID)
}

/// Whether the process may set its supplementary groups.
pub(super) fn can_set_groups() -> Result<bool, Error> {
    Ok(read(CapSet::Effective, "effective")?.contains(&Capability::CAP_SETGID))
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

fn apply(keep: &CapsHashSet) -> Result<(), Error> {
    // First the sets whose change needs a capability that the later steps drop.
    drop_bounding(keep)?;
    let failed = |set| move |source| Error::Capabilities { set, source };
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    caps::set(None, CapSet::Effective, keep).map_err(failed("effective"))?;
    caps::set(None, CapSet::Permitted, keep).map_err(failed("permitted"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))
}

/// Reduces the bounding set. It limits executed programs only and the daemon executes none, so a
/// process without CAP_SETPCAP leaves it alone.
fn drop_bounding(keep: &CapsHashSet) -> Result<(), Error> {
    if !read(CapSet::Effective, "effective")?.contains(&Capability::CAP_SETPCAP) {
        return Ok(());
    }
    for capability in read(CapSet::Bounding, "bounding")?.difference(keep) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(|source| Error::Capabilities {
            set: "bounding",
            source,
        })?;
    }
    Ok(())
}

fn read(set: CapSet, name: &'static str) -> Result<CapsHashSet, Error> {
    caps::read(None, set).map_err(|source| Error::Capabilities { set: name, source })
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
