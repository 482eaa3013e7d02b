//! The birth time of a file, which tells it from a later file with the same inode number.

use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_driver::{self as driver, FuseSession, Pending, call};
use gangplank_fuse::{NodeId, StatxIn, StatxOut};
use rustix::io::Errno;

/// The bit of a statx for the time of birth (`STATX_BTIME`).
const STATX_BTIME: u32 = 0x800;

/// A time of birth: seconds and nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BirthTime(i64, u32);

/// Whether a daemon reports birth times.
#[derive(Debug)]
pub(super) struct BirthTimes(AtomicBool);

/// A request in progress.
pub(super) struct PendingBirthTime<'a> {
    birth_times: &'a BirthTimes,
    pending: Option<Pending<StatxOut>>,
}

impl BirthTime {
    /// A 32-bit mark that is never zero, for a client that only compares it.
    pub(super) fn mark(self) -> u32 {
        let mixed = self.0.cast_unsigned() ^ u64::from(self.1) << 32;
        let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let [a, b, c, d, ..] = mixed;
        u32::from_be_bytes([a, b, c, d]).max(1)
    }

    /// Whether a file with the birth time `one` can be one with `other`. An unknown birth time
    /// matches any.
    pub(super) fn may_be_same(one: Option<Self>, other: Option<Self>) -> bool {
        one.zip(other).is_none_or(|(one, other)| one == other)
    }
}

impl BirthTimes {
    /// For a daemon that was not asked yet.
    pub(super) const fn new() -> Self {
        Self(AtomicBool::new(true))
    }

    /// Asks for the birth time of `node`. The caller can send other requests meanwhile.
    pub(super) fn ask(&self, session: &FuseSession, node: NodeId) -> PendingBirthTime<'_> {
        let args = StatxIn {
            sx_mask: STATX_BTIME,
            ..StatxIn::default()
        };
        let tells = self.0.load(Ordering::Relaxed);
        // Without an answer the birth time is unknown. The other requests report an error of the
        // daemon.
        let pending = tells.then(|| session.submit(call::statx(node, args)).ok());
        PendingBirthTime {
            birth_times: self,
            pending: pending.flatten(),
        }
    }
}

impl PendingBirthTime<'_> {
    /// The birth time. `None` if the daemon or its file system does not know it.
    pub(super) fn wait(self) -> Option<BirthTime> {
        match self.pending?.wait() {
            Ok(told) if told.stat.mask & STATX_BTIME != 0 => {
                Some(BirthTime(told.stat.btime.tv_sec, told.stat.btime.tv_nsec))
            }
            Ok(_) => None,
            Err(error) => {
                self.birth_times.note(&error);
                None
            }
        }
    }
}

impl BirthTimes {
    /// A daemon without STATX is not asked again.
    fn note(&self, error: &driver::Error) {
        if error.errno() == Some(Errno::NOSYS) {
            self.0.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_times_tell_files_apart() {
        let (one, other) = (Some(BirthTime(5, 6)), Some(BirthTime(5, 7)));
        assert!(!BirthTime::may_be_same(one, other));
        for (then, now) in [(one, one), (one, None), (None, other), (None, None)] {
            assert!(BirthTime::may_be_same(then, now));
        }
    }

    #[test]
    fn marks_differ_with_a_nanosecond_and_are_never_zero() {
        let marks: std::collections::HashSet<_> = (0..1000)
            .flat_map(|step| {
                [
                    BirthTime(1_700_000_000, step),
                    BirthTime(1_700_000_000 + i64::from(step) + 1, 0),
                ]
            })
            .map(BirthTime::mark)
            .collect();
        assert_eq!(marks.len(), 2000);
        assert!(BirthTime(0, 0).mark() != 0);
    }
}
