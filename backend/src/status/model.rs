//! What is told of a running daemon, as plain data. Its JSON is what `gangplankd status --json`
//! prints.

use serde::{Deserialize, Serialize};

use crate::state::counters::{FIRST_BUCKET, SAMPLING};
use crate::storage::Storage;

/// Version of the JSON: it changes when a field is removed or gets another meaning. New fields do
/// not change it.
pub const VERSION: u32 = 1;

/// A daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The daemon's version.
    pub program: String,
    /// When the numbers were read (`CLOCK_MONOTONIC`), in nanoseconds.
    pub time_ns: u64,
    /// The shared directory.
    pub shared_dir: String,
    /// The name by which guests mount it.
    pub tag: String,
    /// Most guests at a time.
    pub max_guests: u64,
    /// Connections so far, refused ones included.
    pub connections: u64,
    /// One request of so many of an operation and thread is measured.
    pub sampling: u64,
    /// What the shared directory is stored on; `None` if that was not found out.
    pub storage: Option<Storage>,
    /// The guests that are connected, and those whose sessions are kept, by number.
    pub guests: Vec<Guest>,
    /// With several shares, the status of each. All numbers above are zero then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<Status>>,
    /// Why there are no numbers of this share of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
}

/// A guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its number, as in the log.
    pub number: u64,
    /// Why there are no numbers of it. All others are zero then.
    pub unavailable: Option<String>,
    /// When it connected, in seconds since the epoch.
    pub connected: u64,
    /// Its FUSE session; `None` before INIT.
    pub session: Option<Session>,
    /// Inodes that its kernel knows.
    pub inodes: u64,
    /// Files and directories that it has open.
    pub open_files: u64,
    /// Descriptors for its locks on the host.
    pub locks: u64,
    /// Descriptors of inodes, open files and locks.
    pub descriptors: u64,
    /// Its rings: the first one is the high-priority queue.
    pub rings: Vec<Ring>,
    /// The oldest request that a thread is serving.
    pub oldest: Option<Oldest>,
    /// Deaths of its workers.
    pub restarts: Restarts,
    /// For how long its connection has been lost while its session is kept for its frontend; `None`
    /// if it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnected_ns: Option<u64>,
    /// What it has asked for, by opcode. Operations that it never used are left out.
    pub operations: Vec<Operation>,
}

/// What INIT negotiated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The guest's FUSE version.
    pub offered: (u32, u32),
    /// The version that is spoken.
    pub spoken: (u32, u32),
    /// What the guest offers, as bits of `fuse_init_in`'s `flags` and, above them, `flags2`.
    pub flags: u64,
    /// What follows of the guest's kernel from its FUSE version: the oldest Linux that has it.
    pub kernel_at_least: Option<String>,
}

/// A virtqueue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Requests taken and not yet returned.
    pub in_flight: u64,
    /// Those that a thread is serving. The others wait for a thread or a lock.
    pub running: u64,
}

/// A request that takes time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oldest {
    /// Its operation.
    pub opcode: String,
    /// For how long it has been served, to a tick of the host's kernel.
    pub age_ns: u64,
}

/// Deaths of a guest's workers, and the pauses that the guest saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// Workers that died.
    pub count: u64,
    /// Why the last one did.
    pub last_reason: Option<String>,
    /// Whether the guest is waiting for the next worker.
    pub is_paused: bool,
    /// The length of the last pause. A reload is one as well.
    pub last_pause_ns: u64,
    /// The longest one.
    pub longest_pause_ns: u64,
    /// All of them together.
    pub paused_ns: u64,
}

/// Requests of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The kernel's name without `FUSE_`; `INVALID` for requests without a valid header.
    pub opcode: String,
    /// Requests that were answered, or carried out without a reply.
    pub requests: u64,
    /// Those whose reply was an error. Errors that guests cause as a matter of course are among
    /// them, such as ENOENT of a LOOKUP.
    pub errors: u64,
    /// Bytes of requests, headers included.
    pub bytes_in: u64,
    /// Bytes of replies, headers included.
    pub bytes_out: u64,
    /// How long the measured ones took.
    pub latency: Latency,
}

/// Durations of measured requests, from the decoded header to the complete reply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Their number.
    pub measured: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// Requests that took up to 256 ns, more than that and up to 512 ns, and so on. The last number
    /// is of those that took longer than all limits.
    pub buckets: Vec<u64>,
}

impl Latency {
    /// The upper limits of the buckets in nanoseconds; of the last one, `None`.
    pub fn limits(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let limited = self.buckets.len().saturating_sub(1);
        let limit = move |index: usize| (index < limited).then(|| FIRST_BUCKET << index.min(48));
        let buckets = self.buckets.iter().enumerate();
        buckets.map(move |(index, count)| (limit(index), *count))
    }

    /// The limit in nanoseconds that `percent` of the requests did not exceed; `None` if nothing
    /// was measured, or that is the last bucket, which has no limit.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let total: u64 = self
            .buckets
            .iter()
            .fold(0, |sum, one| sum.saturating_add(*one));
        let wanted = u128::from(total) * u128::from(percent);
        let mut sum = 0_u128;
        let reached = self.limits().find(|(_, count)| {
            sum += u128::from(*count) * 100;
            total > 0 && sum >= wanted
        });
        reached?.0
    }
}

impl Status {
    /// How many guests are connected, and of how many the connection is lost and the session kept.
    #[must_use]
    pub fn connected_and_lost(&self) -> (u64, u64) {
        let guests = self.guests.iter();
        guests.fold((0, 0), |(connected, lost), guest| {
            match guest.disconnected_ns {
                None => (connected + 1, lost),
                Some(_) => (connected, lost + 1),
            }
        })
    }

    /// A status without guests.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            sampling: SAMPLING,
            ..Self::default()
        }
    }
}

impl Guest {
    /// A guest of which nothing else is known.
    #[must_use]
    pub fn unavailable(number: u64, reason: impl Into<String>) -> Self {
        Self {
            number,
            unavailable: Some(reason.into()),
            ..Self::default()
        }
    }

    /// A number of all operations together.
    pub fn total(&self, of: impl Fn(&Operation) -> u64) -> u64 {
        let operations = self.operations.iter();
        operations.fold(0, |sum, one| sum.saturating_add(of(one)))
    }

    /// Requests taken and not yet returned, of all rings.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let rings = self.rings.iter();
        rings.fold(0, |sum, ring| sum.saturating_add(ring.in_flight))
    }
}

/// The oldest release of Linux whose FUSE has this minor version, or one before it
/// (`include/uapi/linux/fuse.h`). Stable releases get later versions too: 6.1.176 has 7.38.
#[must_use]
pub fn kernel_of_minor(minor: u32) -> Option<&'static str> {
    let releases = [
        (45, "6.18"),
        (40, "6.9"),
        (39, "6.6"),
        (37, "6.1"),
        (36, "5.17"),
        (34, "5.14"),
        (28, "4.20"),
        (27, "4.18"),
    ];
    let known = releases.into_iter().find(|(begun, _)| minor >= *begun);
    known.map(|(_, release)| release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_limit_of_the_bucket_that_reaches_it() {
        let latency = Latency {
            measured: 100,
            sum_ns: 0,
            buckets: vec![50, 40, 9, 0, 1],
        };
        assert_eq!(latency.percentile(50), Some(256));
        assert_eq!(latency.percentile(90), Some(512));
        assert_eq!(latency.percentile(99), Some(1024));
        assert_eq!(latency.percentile(100), None);
        assert_eq!(Latency::default().percentile(50), None);
        let hostile = Latency {
            buckets: vec![u64::MAX; 25],
            ..Latency::default()
        };
        assert!(hostile.percentile(99).is_some());
    }

    #[test]
    fn the_json_is_read_as_what_it_was() {
        let status = Status {
            guests: vec![Guest::unavailable(3, "it waits")],
            ..Status::empty()
        };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }
}
