//! What the shared directory is stored on, and what follows from it.
//!
//! A share on a network or cluster file system differs from one on a local disk: other hosts change
//! the files, locks concern them, a file handle may end with the host's cached inode, and a server
//! may not answer. So the daemon looks before it serves ([`child`]): it asks the directory's file
//! system ([`probe`]), and the host's list of mounts ([`crate::sys::mountinfo`]) what it is
//! ([`kind`]). What nobody can find out is judged so that no data is at risk: a file system that
//! may be shared between hosts is treated as one that is.
//!
//! A worker looks at each further mount below the share when its guest comes to it.

pub mod child;
pub mod kind;
pub mod probe;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::child::{Error, find};
use self::kind::Reach;

/// The mount of a share's directory, and those below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// The file system's type as mountinfo has it, such as `ext4` or `fuse.glusterfs`.
    pub file_system: String,
    /// What is mounted, such as `server:/export`.
    pub source: String,
    /// Who has the files.
    pub reach: Reach,
    /// Whether locks reach the other hosts: `false` if a mount option keeps them on this one.
    pub locks_reach_other_hosts: bool,
    /// What the file system can do.
    pub abilities: Abilities,
    /// Mounts below the directory, when the daemon started.
    pub below: Vec<Below>,
    /// What the daemon does about all that. Empty until it has decided.
    pub decisions: Vec<String>,
}

/// A mount below the share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// Its mount point in the share.
    pub path: String,
    /// The file system's type.
    pub file_system: String,
    /// Who has the files.
    pub reach: Reach,
}

/// What a file system can do. `None`: not found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// File handles lead to an inode that the host has dropped from memory.
    pub lasting_handles: Option<bool>,
    /// Advisory locks can be taken.
    pub locks: Option<bool>,
    /// Files have a time of birth.
    pub birth_times: Option<bool>,
    /// Files without a name can be made (`O_TMPFILE`).
    pub tmpfile: Option<bool>,
    /// Room can be reserved (fallocate(2)).
    pub fallocate: Option<bool>,
    /// There are extended attributes.
    pub xattrs: Option<bool>,
    /// Inode numbers are the server's, not made up by the host as it meets files.
    pub inode_numbers: Option<bool>,
    /// Bytes to which direct I/O must be aligned; 0 without direct I/O.
    pub direct_io_bytes: Option<u32>,
}

impl Storage {
    /// Whether locks of guests belong on the host's files, if the operator leaves it open
    /// (`--locks=auto`): other hosts have the files, or may have them.
    #[must_use]
    pub fn wants_host_locks(&self) -> bool {
        let is_cluster = |below: &Below| below.reach == Reach::Hosts;
        let is_shared = self.reach != Reach::ThisHost || self.below.iter().any(is_cluster);
        is_shared && self.abilities.locks != Some(false)
    }

    /// Whether a server may fail to answer for long.
    #[must_use]
    pub fn may_hang(&self) -> bool {
        let may = |reach: Reach| reach != Reach::ThisHost;
        may(self.reach) || self.below.iter().any(|below| below.reach == Reach::Hosts)
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} from {:?}, ", self.file_system, self.source)?;
        out.write_str(match (self.reach, self.locks_reach_other_hosts) {
            (Reach::ThisHost, _) => "on this host alone",
            (Reach::Hosts, true) => "shared between hosts, locks included",
            (Reach::Hosts, false) => "shared between hosts, without locks",
            (Reach::Unknown, _) => "perhaps shared between hosts",
        })?;
        write!(out, "; {}", self.abilities)?;
        for below in &self.below {
            if below.reach != Reach::ThisHost {
                write!(out, "; below it: {} on {:?}", below.file_system, below.path)?;
            }
        }
        if !self.decisions.is_empty() {
            write!(out, "; so: {}", self.decisions.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Abilities {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct_io = match self.direct_io_bytes {
            Some(bytes) if bytes > 0 => format!("direct I/O in units of {bytes} bytes"),
            _ => "direct I/O".to_owned(),
        };
        let named = [
            ("lasting file handles", self.lasting_handles),
            ("locks", self.locks),
            ("birth times", self.birth_times),
            ("O_TMPFILE", self.tmpfile),
            ("fallocate", self.fallocate),
            ("extended attributes", self.xattrs),
            ("inode numbers of its own", self.inode_numbers),
            (&direct_io, self.direct_io_bytes.map(|bytes| bytes > 0)),
        ];
        let list = |wanted: Option<bool>| {
            let chosen = named.iter().filter(|(_, known)| *known == wanted);
            let names: Vec<_> = chosen.map(|(name, _)| *name).collect();
            names.join(", ")
        };
        let mut separator = "";
        for (word, names) in [
            ("has", list(Some(true))),
            ("lacks", list(Some(false))),
            ("not found out:", list(None)),
        ] {
            if !names.is_empty() {
                write!(out, "{separator}{word} {names}")?;
                separator = "; ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_the_hosts_where_other_hosts_may_have_the_files() {
        let storage = |reach, locks, below: &[Reach]| Storage {
            reach,
            abilities: Abilities {
                locks,
                ..Abilities::default()
            },
            below: below
                .iter()
                .map(|reach| Below {
                    reach: *reach,
                    ..Below::default()
                })
                .collect(),
            ..Storage::default()
        };
        for (reach, locks, below, expected) in [
            (Reach::ThisHost, Some(true), &[][..], false),
            (Reach::ThisHost, Some(true), &[Reach::Unknown], false),
            (Reach::ThisHost, None, &[Reach::Hosts], true),
            (Reach::Hosts, None, &[], true),
            (Reach::Hosts, Some(false), &[], false),
            (Reach::Unknown, Some(true), &[], true),
        ] {
            let storage = storage(reach, locks, below);
            assert_eq!(storage.wants_host_locks(), expected, "{storage:?}");
        }
    }

    #[test]
    fn it_is_told_in_one_line() {
        let storage = Storage {
            file_system: "nfs4".to_owned(),
            source: "server:/home".to_owned(),
            reach: Reach::Hosts,
            locks_reach_other_hosts: true,
            abilities: Abilities {
                birth_times: Some(false),
                xattrs: Some(true),
                direct_io_bytes: Some(512),
                ..Abilities::default()
            },
            below: Vec::new(),
            decisions: vec!["locks are the host's".to_owned()],
        };
        assert_eq!(
            storage.to_string(),
            "nfs4 from \"server:/home\", shared between hosts, locks included; has extended \
             attributes, direct I/O in units of 512 bytes; lacks birth times; not found out: \
             lasting file handles, locks, O_TMPFILE, fallocate, inode numbers of its own; so: \
             locks are the host's"
        );
    }

    #[test]
    fn direct_io_is_listed_where_it_belongs() {
        for (bytes, expected) in [
            (
                Some(4096),
                "has direct I/O in units of 4096 bytes; not found out",
            ),
            (Some(0), "lacks direct I/O; not found out"),
            (None, "inode numbers of its own, direct I/O"),
        ] {
            let abilities = Abilities {
                direct_io_bytes: bytes,
                ..Abilities::default()
            };
            let told = abilities.to_string();
            assert!(told.contains(expected), "{bytes:?}: {told}");
        }
    }
}
