//! The operator's options of the sandbox.

use std::str::FromStr;

use caps::{Capability, CapsHashSet};
pub use gangplank_sandbox::seccomp::Seccomp;

/// How the daemon is isolated from the rest of the host (`--sandbox`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// New mount, process and network namespaces with the share as root, inside a new user
    /// namespace for an ordinary user.
    #[default]
    Namespace,
    /// The share as root by `chroot`; needs root.
    Chroot,
    /// No isolation.
    None,
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_lowercase().as_str() {
            "namespace" => Ok(Self::Namespace),
            "chroot" => Ok(Self::Chroot),
            "none" => Ok(Self::None),
            _ => Err("expected namespace, chroot or none"),
        }
    }
}

/// Changes to the set of kept capabilities (`--modcaps=+sys_admin:-chown`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModCaps {
    /// Kept in addition to the default set.
    pub added: CapsHashSet,
    /// Dropped from the default set.
    pub removed: CapsHashSet,
}

impl FromStr for ModCaps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut changes = Self::default();
        for item in text.split(':') {
            let (add, name) = match item.split_at_checked(1) {
                Some(("+", name)) => (true, name),
                Some(("-", name)) => (false, name),
                _ => {
                    return Err(format!(
                        "'{item}' is not a change: expected +capability or -capability, \
                         separated by ':', such as +sys_admin:-chown"
                    ));
                }
            };
            let capability = caps::to_canonical(name)
                .parse::<Capability>()
                .map_err(|_| {
                    format!(
                        "'{name}' is not a capability: expected a name as in capabilities(7), \
                         such as chown or CAP_CHOWN"
                    )
                })?;
            // The last change to a capability counts.
            let (into, out_of) = if add {
                (&mut changes.added, &mut changes.removed)
            } else {
                (&mut changes.removed, &mut changes.added)
            };
            out_of.remove(&capability);
            into.insert(capability);
        }
        Ok(changes)
    }
}

/// How the daemon is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The mechanism that isolates the process.
    pub mode: Mode,
    /// The action on a system call outside the permitted list.
    pub seccomp: Seccomp,
    /// Changes to the set of kept capabilities.
    pub modcaps: ModCaps,
    /// Limit of open descriptors: `Some(0)` leaves it alone, `None` raises it to the default.
    pub rlimit_nofile: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modcaps_valid_gives_both_sets_and_the_last_change_counts() {
        let changes: ModCaps = "+sys_admin:-CAP_CHOWN:-Mknod:+mknod".parse().unwrap();
        assert_eq!(
            changes.added,
            CapsHashSet::from([Capability::CAP_SYS_ADMIN, Capability::CAP_MKNOD])
        );
        assert_eq!(changes.removed, CapsHashSet::from([Capability::CAP_CHOWN]));
    }

    #[test]
    fn modcaps_malformed_names_the_item() {
        for (text, culprit) in [
            ("", "''"),
            ("+chown:", "''"),
            ("chown", "'chown'"),
            ("*chown", "'*chown'"),
            ("+", "''"),
            ("+fly", "'fly'"),
            ("é", "'é'"),
        ] {
            let message = text.parse::<ModCaps>().unwrap_err();
            assert!(message.contains(culprit), "{text}: {message}");
        }
    }
}
