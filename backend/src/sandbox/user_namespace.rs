//! The user namespace that an ordinary user needs for `--sandbox=namespace`, and the ids in it
//! (`--uid-map`, `--gid-map`).
//!
//! A user may map its own id to any other. All other ids are mapped by newuidmap(1) and
//! newgidmap(1), which know the ids that the administrator has given to the user (subuid(5)). They
//! run as a process that is still outside, because a program in a new user namespace gains no
//! rights by its set-user-ID bit.

use std::io::{self, Read, Write};
use std::process::Command;

use rustix::process::{Gid, Pid, Uid, WaitOptions, waitpid};
use rustix::thread::UnshareFlags;

use super::error::Error;
use super::options::{IdMapping, Options};
use crate::sys::process::{self, Forked, unshare};

/// Moves the calling process, which must have a single thread, into a new user namespace with the
/// ids of `options`: by default only its user and its group, each with the same id.
///
/// # Errors
/// The kernel refuses the namespace or the ids, or a program that maps them fails.
pub(super) fn enter(options: &Options) -> Result<(), Error> {
    let users = Ids::new(
        &options.uid_map,
        rustix::process::geteuid().as_raw(),
        Kind::Users,
    );
    let groups = Ids::new(
        &options.gid_map,
        rustix::process::getegid().as_raw(),
        Kind::Groups,
    );
    let failed = |what| move |source: io::Error| Error::UserNamespace { what, source };
    if users.needs_program() || groups.needs_program() {
        return enter_with_programs(&users, &groups);
    }
    unshare(UnshareFlags::NEWUSER).map_err(failed("create"))?;
    let own = rustix::process::getpid();
    for ids in [groups, users] {
        ids.write(own).map_err(failed("map the user in"))?;
    }
    Ok(())
}

/// Becomes user and group 0 of the namespace, as far as it maps them.
///
/// # Errors
/// The kernel refuses an id that is mapped.
pub(super) fn become_root(options: &Options) -> Result<(), Error> {
    let is_mapped = |map: &[IdMapping]| map.iter().any(|mapping| mapping.inside == 0);
    let failed = |source: rustix::io::Errno| Error::UserNamespace {
        what: "become root in",
        source: source.into(),
    };
    // The process is single-threaded, so the thread's ids are the process's.
    if is_mapped(&options.gid_map) {
        let root = Some(Gid::ROOT);
        rustix::thread::set_thread_res_gid(root, root, root).map_err(failed)?;
    }
    if is_mapped(&options.uid_map) {
        let root = Some(Uid::ROOT);
        rustix::thread::set_thread_res_uid(root, root, root).map_err(failed)?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Users,
    Groups,
}

impl Kind {
    /// The file in a process's directory of `/proc`, the program, and the option.
    const fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Users => ("uid_map", "newuidmap", "--uid-map"),
            Self::Groups => ("gid_map", "newgidmap", "--gid-map"),
        }
    }
}

/// The users or the groups of the namespace.
#[derive(Debug)]
struct Ids {
    kind: Kind,
    mappings: Vec<IdMapping>,
    /// The process's own id, outside.
    own: u32,
}

impl Ids {
    fn new(given: &[IdMapping], own: u32, kind: Kind) -> Self {
        let mappings = match given {
            [] => vec![IdMapping {
                inside: own,
                outside: own,
                count: 1,
            }],
            given => given.to_vec(),
        };
        Self {
            kind,
            mappings,
            own,
        }
    }

    /// Whether they are more than the process's own id.
    fn needs_program(&self) -> bool {
        !matches!(self.mappings[..], [one] if one.outside == self.own && one.count == 1)
    }

    /// Maps them for the process `target`, by the program if necessary. The calling process is the
    /// target, or outside of its namespace.
    fn map(&self, target: Pid) -> Result<(), String> {
        let (_, program, option) = self.kind.names();
        if !self.needs_program() {
            return self
                .write(target)
                .map_err(|error| format!("{option}: {error}"));
        }
        let ran = Command::new(program)
            .arg(target.as_raw_nonzero().to_string())
            .args(
                self.mappings
                    .iter()
                    .flat_map(IdMapping::numbers)
                    .map(|number| number.to_string()),
            )
            .output()
            .map_err(|error| {
                format!("{option} needs the program {program}, which cannot be run: {error}")
            })?;
        match ran.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&ran.stderr);
                Err(format!("{option}: {program} has failed: {}", said.trim()))
            }
        }
    }

    /// Maps the process's own id.
    fn write(&self, target: Pid) -> io::Result<()> {
        let process = format!("/proc/{}", target.as_raw_nonzero());
        if self.kind == Kind::Groups {
            // An ordinary user may map its group only after giving up setgroups
            // (user_namespaces(7)).
            std::fs::write(format!("{process}/setgroups"), "deny")?;
        }
        let (file, ..) = self.kind.names();
        let lines = self.mappings.iter().map(|mapping| {
            let [inside, outside, count] = mapping.numbers();
            format!("{inside} {outside} {count}\n")
        });
        std::fs::write(format!("{process}/{file}"), lines.collect::<String>())
    }
}

/// Moves the calling process into a new user namespace, whose ids a copy of the process maps that
/// stays outside.
fn enter_with_programs(users: &Ids, groups: &Ids) -> Result<(), Error> {
    let failed = |what| move |source: io::Error| Error::UserNamespace { what, source };
    let (mut entered, enter) = io::pipe().map_err(failed("prepare"))?;
    let (mut failure, fail) = io::pipe().map_err(failed("prepare"))?;
    let target = rustix::process::getpid();
    let mapper = match process::fork().map_err(failed("prepare"))? {
        Forked::Parent(mapper) => mapper,
        Forked::Child => {
            drop((enter, failure));
            let mut byte = [0];
            // Without the byte, there is no namespace.
            if entered.read_exact(&mut byte).is_ok() {
                let mapped = users.map(target).and_then(|()| groups.map(target));
                // If the target is gone, nobody reads it.
                let _ = { fail }.write_all(mapped.err().unwrap_or_default().as_bytes());
            }
            process::exit(0)
        }
    };
    drop((entered, fail));
    let moved = unshare(UnshareFlags::NEWUSER).map_err(failed("create"));
    if moved.is_ok() {
        // If this fails, the mapper has ended, and says nothing.
        let _ = { &enter }.write_all(&[1]);
    }
    drop(enter);
    let mut reason = String::new();
    let read = failure.read_to_string(&mut reason);
    let ended = waitpid(Some(mapper), WaitOptions::empty());
    moved?;
    read.map_err(failed("map the ids in"))?;
    let status = ended.map_err(|error| failed("map the ids in")(error.into()))?;
    if !reason.is_empty() {
        return Err(Error::MapIds(reason));
    }
    match status.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        _ => Err(Error::MapIds(
            "the process that maps the ids was killed".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(text: &str) -> IdMapping {
        text.parse().expect("a mapping")
    }

    #[test]
    fn a_program_is_needed_for_all_but_the_own_id() {
        for (given, is_needed) in [
            (vec![], false),
            (vec![":0:1000:1:"], false),
            (vec![":0:1001:1:"], true),
            (vec![":0:1000:2:"], true),
            (vec![":0:1000:1:", ":1:100000:65536:"], true),
        ] {
            let given: Vec<_> = given.into_iter().map(mapping).collect();
            let ids = Ids::new(&given, 1000, Kind::Users);
            assert_eq!(ids.needs_program(), is_needed, "{given:?}");
        }
    }
}
