//! Looks at the storage from a process of its own: a server that does not answer must not hold up
//! the daemon's start for ever.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gangplank_service::deadline_io;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use thiserror::Error;

use super::kind::{self, locks_reach_other_hosts, reach};
use super::probe::{self, Writing};
use super::{Below, Storage};
use crate::sys::process::{self, Forked};
use crate::sys::{file, mountinfo};

/// How long the storage may take for all questions together.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Most bytes of the child's report, which lists the mounts below the share.
const MAX_REPORT: usize = 4 << 20;

/// Most mounts below the share that are told.
const MAX_BELOW: usize = 1024;

/// Why the storage is not known.
#[derive(Debug, Error)]
pub enum Error {
    /// The process that looks at it cannot be started.
    #[error(
        "cannot start the process that looks at the file system of {path:?}: see the limits of \
         processes (ulimit -u, TasksMax= of a unit) and free memory"
    )]
    Start {
        /// The shared directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It hangs.
    #[error(
        "the file system of {} has not answered for {} seconds: its server is gone or out of \
         reach; start the daemon again when the directory can be listed",
        .path.display(),
        .limit.as_secs()
    )]
    Silent {
        /// The shared directory.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
}

/// Looks at the storage of a directory. `None` if it cannot be opened, which confinement reports.
///
/// The calling process must have a single thread.
///
/// # Errors
/// The storage does not answer within `limit`, or no process can be started.
pub fn find(path: &Path, writing: Writing, limit: Duration) -> Result<Option<Storage>, Error> {
    let cannot_start = |source| Error::Start {
        path: path.to_owned(),
        source,
    };
    let (ours, theirs) = UnixStream::pair().map_err(cannot_start)?;
    match process::fork().map_err(cannot_start)? {
        Forked::Child => {
            drop(ours);
            let found = look(path, writing);
            // If this fails, nobody waits any more.
            let text = serde_json::to_vec(&found).unwrap_or_default();
            let _ = deadline_io::write_all(theirs.as_fd(), &text, Instant::now() + limit);
            process::exit(0)
        }
        Forked::Parent(child) => {
            drop(theirs);
            let report = deadline_io::read_to_end(ours.as_fd(), MAX_REPORT, Instant::now() + limit);
            match report {
                Ok(report) => {
                    let _ = waitpid(Some(child), WaitOptions::empty());
                    Ok(serde_json::from_slice(&report).unwrap_or_default())
                }
                Err(_) => {
                    abandon(child);
                    let path = path.to_owned();
                    Err(Error::Silent { path, limit })
                }
            }
        }
    }
}

/// Ends the child, without waiting for what it waits for.
fn abandon(child: Pid) {
    let _ = kill_process(child, Signal::KILL);
    let _ = waitpid(Some(child), WaitOptions::NOHANG);
}

fn look(path: &Path, writing: Writing) -> Option<Storage> {
    let directory = probe::open(path).ok()?;
    let directory = directory.as_fd();
    let canonical = fs::canonicalize(path).ok()?;
    let list = mountinfo::read();
    let stat = file::stat_with(directory, libc::STATX_MNT_ID, 0).ok()?;
    let mount = list.iter().find(|entry| entry.id == stat.stx_mnt_id);
    let magic = probe::magic(directory);
    let name = mount.map_or_else(|| kind::name_of(magic), |mount| &mount.kind);
    let source = mount.map_or("", |mount| &mount.source);
    let options = mount.map_or("", |mount| &mount.options);
    let below = mountinfo::below(&list, &canonical).into_iter();
    let below = below.take(MAX_BELOW).map(|entry| Below {
        path: mountinfo::inside(&entry.point, &canonical),
        file_system: entry.kind.clone(),
        reach: reach(&entry.kind, &entry.source),
    });
    Some(Storage {
        file_system: name.to_owned(),
        source: source.to_owned(),
        reach: reach(name, source),
        locks_reach_other_hosts: locks_reach_other_hosts(name, options),
        abilities: probe::abilities(directory, writing),
        below: below.collect(),
        decisions: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // The process of unit tests has threads, so `find` is tested with the program.
    #[test]
    fn a_directory_and_the_mounts_below_it_are_found() {
        let root = look(Path::new("/"), Writing::Forbidden).unwrap();
        assert!(!root.file_system.is_empty());
        let proc = root.below.iter().find(|below| below.path == "proc");
        assert_eq!(proc.map(|below| below.file_system.as_str()), Some("proc"));
        assert_eq!(
            look(Path::new("/no/such/directory"), Writing::Allowed),
            None
        );
    }
}
