//! The operator's options of the sandbox.

use std::fmt;
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

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Namespace => "namespace",
            Self::Chroot => "chroot",
            Self::None => "none",
        })
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

/// A range of ids of the host, and where it lies in a user namespace (`--uid-map`, `--gid-map`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapping {
    /// First id in the namespace.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// Number of ids, not 0.
    pub count: u32,
}

impl IdMapping {
    /// In the order of `/proc/PID/uid_map` and newuidmap(1).
    pub(super) fn numbers(&self) -> [u32; 3] {
        [self.inside, self.outside, self.count]
    }
}

impl FromStr for IdMapping {
    type Err = String;

    /// Reads `:INSIDE:OUTSIDE:COUNT:`. The separator may be any character that is no letter and no
    /// digit.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected :namespace-id:host-id:count:, such as :0:100000:65536:";
        let separator = text
            .chars()
            .next_back()
            .filter(|last| !last.is_alphanumeric());
        let fields = separator.and_then(|separator| {
            let fields = text.strip_prefix(separator)?.strip_suffix(separator)?;
            Some(fields.split(separator).map(str::parse::<u32>))
        });
        let numbers = fields.and_then(|fields| fields.collect::<Result<Vec<_>, _>>().ok());
        match numbers.as_deref() {
            Some([_, _, 0]) => Err("a count of 0 maps no id".to_owned()),
            Some(&[inside, outside, count]) => Ok(Self {
                inside,
                outside,
                count,
            }),
            _ => Err(EXPECTED.to_owned()),
        }
    }
}

/// How the daemon is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The mechanism that isolates the process.
    pub mode: Mode,
    /// The action on a system call outside the permitted list.
    pub seccomp: Seccomp,
    /// Workers watch directories (`--events`).
    pub events: bool,
    /// Changes to the set of kept capabilities.
    pub modcaps: ModCaps,
    /// Limit of open descriptors: `Some(0)` leaves it alone, `None` raises it to the default.
    pub rlimit_nofile: Option<u64>,
    /// The users of an ordinary user's namespace; if empty, only that user.
    pub uid_map: Vec<IdMapping>,
    /// The groups of an ordinary user's namespace; if empty, only that user's group.
    pub gid_map: Vec<IdMapping>,
}

impl Options {
    /// The option that maps ids into a user namespace, if one does.
    #[must_use]
    pub fn mapped_ids(&self) -> Option<&'static str> {
        match (self.uid_map.is_empty(), self.gid_map.is_empty()) {
            (true, true) => None,
            (true, false) => Some("--gid-map"),
            (false, _) => Some("--uid-map"),
        }
    }
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
    fn id_mapping_is_three_numbers_between_four_separators() {
        for text in [":0:100000:65536:", "/0/100000/65536/", " 0 100000 65536 "] {
            let mapping: IdMapping = text.parse().unwrap();
            assert_eq!(mapping.numbers(), [0, 100_000, 65_536]);
        }
        for text in [
            "",
            ":",
            "0:1:1",
            ":0:1:1",
            "0:1:1:",
            ":0:1:1:1:",
            ":0:1:",
            ":0:1:x:",
            ":0:1:0:",
            ":0:1:4294967296:",
            ":0/1:1:",
            "a0a1a1a",
        ] {
            assert!(text.parse::<IdMapping>().is_err(), "{text}");
        }
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
