//! When a file was made: what tells it from a later one that has its inode number.

use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_driver::{self as driver, Pending, Session, call};
use gangplank_fuse::{NodeId, StatxIn, StatxOut};
use rustix::io::Errno;

/// A statx is about, and has, the time of birth (`STATX_BTIME`).
const STATX_BTIME: u32 = 0x800;

/// A time of birth: seconds and nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BirthTime(i64, u32);

/// Whether a daemon tells.
#[derive(Debug)]
pub(super) struct BirthTimes(AtomicBool);

/// An answer on its way.
pub(super) struct PendingBirthTime<'a> {
    birth_times: &'a BirthTimes,
    pending: Option<Pending<StatxOut>>,
}

impl BirthTime {
    /// 32 bits of it, none of them zero: for a client that only looks whether it is the same.
    pub(super) fn mark(self) -> u32 {
        let mixed = self.0.cast_unsigned() ^ u64::from(self.1) << 32;
        let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let [a, b, c, d, ..] = mixed;
        u32::from_be_bytes([a, b, c, d]).max(1)
    }

    /// Whether a file born at `one` can be one born at `other`; where nobody knows, it can.
    pub(super) fn may_be_same(one: Option<Self>, other: Option<Self>) -> bool {
        one.zip(other).is_none_or(|(one, other)| one == other)
    }
}

impl BirthTimes {
    /// Of a daemon that was not asked yet.
    pub(super) const fn new() -> Self {
        Self(AtomicBool::new(true))
    }

    /// Asks when `node` was made. Other requests can be made meanwhile.
    pub(super) fn ask(&self, session: &Session, node: NodeId) -> PendingBirthTime<'_> {
        let args = StatxIn {
            sx_mask: STATX_BTIME,
            ..StatxIn::default()
        };
        let tells = self.0.load(Ordering::Relaxed);
        // Without an answer nobody knows; whatever is wrong shows in what is asked besides.
        let pending = tells.then(|| session.submit(call::statx(node, args)).ok());
        PendingBirthTime {
            birth_times: self,
            pending: pending.flatten(),
        }
    }
}

impl PendingBirthTime<'_> {
    /// The answer; none if the daemon or its file system does not know.
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
    /// One that has no such request is not asked again.
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
    fn only_two_times_that_are_known_tell_files_apart() {
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
