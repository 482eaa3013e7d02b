//! Landlock: the kernel checks each access of a process to a file against the files that it may
//! reach (Linux 5.13, `Documentation/userspace-api/landlock.rst`).
//!
//! It adds to the other mechanisms and replaces none, so a kernel without it is no error.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::Error;

/// The newest rights that are restricted; a kernel that knows fewer restricts those.
const ABI_USED: ABI = ABI::V6;

/// Whether the kernel has Landlock, and it is not disabled.
#[must_use]
pub fn is_supported() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create)
        .is_ok()
}

/// Restricts the calling thread, and those that it starts later, to the files below `share`; to no
/// file at all without one. Descriptors that are open stay usable.
///
/// With a share, the process can signal itself alone. Without one signals are not restricted, since
/// the kernel sends the one that ends a worker with its keeper in the keeper's name.
///
/// # Errors
/// [`Error::Landlock`].
pub fn restrict(share: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let all = AccessFs::from_all(ABI_USED);
    let scope = match share {
        Some(_) => Scope::from_all(ABI_USED),
        None => Scope::AbstractUnixSocket.into(),
    };
    let ruleset = Ruleset::default()
        .handle_access(all)
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI_USED)))
        .and_then(|ruleset| ruleset.scope(scope));
    apply(ruleset, share.map(|share| (share, all)))
}

fn apply<'a>(
    ruleset: Result<Ruleset, RulesetError>,
    rules: impl IntoIterator<Item = (BorrowedFd<'a>, BitFlags<AccessFs>)>,
) -> Result<(), Error> {
    let rules = rules
        .into_iter()
        .map(|(below, rights)| Ok(PathBeneath::new(below, rights)));
    let restricted = ruleset
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(rules))
        .and_then(|ruleset: RulesetCreated| ruleset.restrict_self())
        .map_err(Error::Landlock)?;
    if restricted.ruleset == RulesetStatus::NotEnforced {
        log::debug!("the kernel enforces no Landlock rules");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, Mode, OFlags, openat};
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_restricted_thread_opens_what_is_below_the_share_and_nothing_else() {
        if !is_supported() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        std::fs::create_dir(path.join("share")).unwrap();
        std::fs::write(path.join("share/f"), "x").unwrap();
        std::fs::write(path.join("secret"), "x").unwrap();
        let share = std::fs::File::open(path.join("share")).unwrap();
        let read = |path| openat(CWD, path, OFlags::RDONLY, Mode::empty()).map(drop);
        std::thread::spawn(move || {
            restrict(Some(share.as_fd())).unwrap();
            assert_eq!(read(path.join("share/f")), Ok(()));
            assert_eq!(read(path.join("secret")), Err(Errno::ACCESS));
            restrict(None).unwrap();
            assert_eq!(read(path.join("share/f")), Err(Errno::ACCESS));
        })
        .join()
        .unwrap();
    }
}
