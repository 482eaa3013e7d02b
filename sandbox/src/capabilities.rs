//! Reduces the calling thread's capabilities (capabilities(7)).

use caps::{CapSet, CapsHashSet};

use crate::Error;

/// The permitted capabilities.
///
/// # Errors
/// [`Error::Capabilities`].
pub fn permitted() -> Result<CapsHashSet, Error> {
    read(CapSet::Permitted, "permitted")
}

/// The effective capabilities.
///
/// # Errors
/// [`Error::Capabilities`].
pub fn effective() -> Result<CapsHashSet, Error> {
    read(CapSet::Effective, "effective")
}

/// Makes `keep`, which must be permitted, the effective and permitted capabilities, and gives up
/// all ambient and inheritable ones. The bounding set is reduced to `keep` as well, if the thread
/// may.
///
/// # Errors
/// [`Error::Capabilities`].
pub fn reduce(keep: &CapsHashSet) -> Result<(), Error> {
    // First the sets whose change needs a capability that the later steps drop.
    drop_bounding(keep)?;
    let failed = |set| move |source| Error::Capabilities { set, source };
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    restrict(keep)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))
}

/// As [`reduce`], but a capability of `keep` that is not permitted is no error: an ordinary user
/// has none.
///
/// # Errors
/// [`Error::Capabilities`].
pub fn reduce_to_permitted(keep: &[caps::Capability]) -> Result<(), Error> {
    let permitted = permitted()?;
    let keep = keep.iter().copied();
    reduce(&keep.filter(|one| permitted.contains(one)).collect())
}

/// Makes no capability effective, and keeps the permitted ones.
///
/// # Errors
/// [`Error::Capabilities`].
pub fn suspend() -> Result<(), Error> {
    set_effective(&CapsHashSet::new())
}

/// Makes every permitted capability effective.
///
/// # Errors
/// [`Error::Capabilities`].
pub fn resume() -> Result<(), Error> {
    set_effective(&permitted()?)
}

/// Gives up every effective and permitted capability except `kept`, which must be permitted.
///
/// # Errors
/// [`Error::Capabilities`].
pub fn restrict(kept: &CapsHashSet) -> Result<(), Error> {
    set_effective(kept)?;
    caps::set(None, CapSet::Permitted, kept).map_err(|source| Error::Capabilities {
        set: "permitted",
        source,
    })
}

/// Makes these capabilities, which must be permitted, the effective ones.
///
/// # Errors
/// [`Error::Capabilities`].
pub fn set_effective(capabilities: &CapsHashSet) -> Result<(), Error> {
    caps::set(None, CapSet::Effective, capabilities).map_err(|source| Error::Capabilities {
        set: "effective",
        source,
    })
}

/// Reduces the bounding set, which limits executed programs only. A process without CAP_SETPCAP
/// leaves it alone.
fn drop_bounding(keep: &CapsHashSet) -> Result<(), Error> {
    if !effective()?.contains(&caps::Capability::CAP_SETPCAP) {
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
