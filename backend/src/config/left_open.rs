//! Options that the daemon chooses when it knows what the directory is stored on.

use super::{Config, Error};
use crate::device;
use crate::passthrough::options::{InodeFileHandles, Locks};
use crate::storage::Storage;

/// Most threads that serve the requests of a guest whose files have a server.
const SERVER_THREADS: usize = 32;

/// Options that the daemon chooses when it knows what the directory is stored on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOpen {
    /// Where locks are kept (`--locks=auto`).
    pub locks: bool,
    /// How many threads serve requests (no `--thread-pool-size`).
    pub threads: bool,
}

impl Config {
    /// Chooses what the operator has left open, now that it is known what the directory is stored
    /// on, and adds the decisions to that.
    ///
    /// # Errors
    /// File handles are mandatory, and end with the host's cached inode.
    pub fn settle(&mut self, mut storage: Storage) -> Result<(), Error> {
        let handles_last = storage.abilities.lasting_handles != Some(false);
        let mode = self.passthrough.inode_file_handles;
        if mode == InodeFileHandles::Mandatory && !handles_last {
            return Err(Error::HandlesDoNotLast(storage.file_system));
        }
        if self.left_open.locks && storage.wants_host_locks() {
            self.passthrough.locks = Locks::Host;
        }
        if self.left_open.threads && storage.may_hang() {
            let room = device::Options::pool_room(self.device.max_threads);
            self.device.thread_pool_size = SERVER_THREADS.min(room);
            self.device.thread_pool_grows = true;
        }
        let mut decisions = vec![match (self.left_open.locks, self.passthrough.locks) {
            (true, Locks::Host) => "locks are kept on the host".to_owned(),
            (true, Locks::Guest) => "locks are kept in each guest".to_owned(),
            (false, Locks::Host) => "locks are kept on the host, as --locks says".to_owned(),
            (false, Locks::Guest) => "locks are kept in each guest, as --locks says".to_owned(),
        }];
        if mode == InodeFileHandles::Prefer && !handles_last {
            let decision = match storage.abilities.birth_times {
                Some(false) => "a descriptor is kept for each file that a guest knows",
                _ => "files are found again by name, not by handle",
            };
            decisions.push(decision.to_owned());
        }
        if self.device.thread_pool_grows {
            let threads = self.device.thread_pool_size;
            decisions.push(format!(
                "up to {threads} threads serve a guest, so that those wait alone whose server does \
                 not answer"
            ));
        }
        storage.decisions = decisions;
        self.storage = Some(storage);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;
    use crate::storage::Abilities;
    use crate::storage::kind::Reach;

    fn storage(reach: Reach, lasting_handles: bool) -> Storage {
        Storage {
            file_system: "fuse.some".to_owned(),
            reach,
            locks_reach_other_hosts: true,
            abilities: Abilities {
                lasting_handles: Some(lasting_handles),
                ..Abilities::default()
            },
            ..Storage::default()
        }
    }

    #[test]
    fn what_is_left_open_follows_from_the_storage() {
        for (line, reach, locks, threads, grows) in [
            ("", Reach::ThisHost, Locks::Guest, 0, false),
            ("", Reach::Hosts, Locks::Host, 32, true),
            ("", Reach::Unknown, Locks::Host, 32, true),
            ("--locks=guest", Reach::Hosts, Locks::Guest, 32, true),
            ("--locks=host", Reach::ThisHost, Locks::Host, 0, false),
            ("--thread-pool-size=0", Reach::Hosts, Locks::Host, 0, false),
            ("--thread-pool-size=4", Reach::Hosts, Locks::Host, 4, false),
            ("--max-threads=20", Reach::Hosts, Locks::Host, 17, true),
        ] {
            let mut config = with(line);
            config.settle(storage(reach, true)).unwrap();
            assert_eq!(config.passthrough.locks, locks, "{line} on {reach:?}");
            assert_eq!(config.device.thread_pool_size, threads, "{line}");
            assert_eq!(config.device.thread_pool_grows, grows, "{line}");
            assert!(config.device.max_threads >= device::Options::min_threads(threads));
            let decisions = config.storage.unwrap().decisions;
            assert!(decisions[0].starts_with("locks are kept"), "{decisions:?}");
        }
    }

    #[test]
    fn handles_that_do_not_last_cannot_be_mandatory() {
        let mut config = with("--inode-file-handles=mandatory");
        let error = config.settle(storage(Reach::Hosts, false)).unwrap_err();
        assert!(error.to_string().contains("fuse.some"), "{error}");
        config.settle(storage(Reach::Hosts, true)).unwrap();
        let mut config = with("");
        config.settle(storage(Reach::ThisHost, false)).unwrap();
        let decisions = config.storage.unwrap().decisions.join(", ");
        assert!(decisions.contains("not by handle"), "{decisions}");
    }
}
