//! The FUSE session: what the guest's kernel offered in the INIT that was accepted.
//!
//! Everything that INIT negotiates follows from the offer and the options, so the offer is enough:
//! the next worker negotiates again and comes to the same result. `is_open` is stored last when a
//! session begins, and cleared first when it ends.

use std::sync::atomic::{AtomicU32, Ordering};

use gangplank_fuse::InitIn;

use super::change::Place;
use crate::sys::shared_memory::shared_struct;

shared_struct! {
    /// The offer of the open session. The fields have their names in `struct fuse_init_in`
    /// (`include/uapi/linux/fuse.h`).
    #[derive(Debug, Default)]
    pub struct SessionRecord {
        is_open: AtomicU32,
        major: AtomicU32,
        minor: AtomicU32,
        max_readahead: AtomicU32,
        flags: AtomicU32,
        flags2: AtomicU32,
        reserved: [AtomicU32; 2],
    }
}

impl SessionRecord {
    /// A session has begun with this offer.
    pub fn open(&self, offer: &InitIn) {
        self.close();
        for (field, value) in [
            (&self.major, offer.major),
            (&self.minor, offer.minor),
            (&self.max_readahead, offer.max_readahead),
            (&self.flags, offer.flags),
            (&self.flags2, offer.flags2),
            (&self.is_open, 1),
        ] {
            field.set(value);
        }
    }

    /// The session has ended.
    pub fn close(&self) {
        self.is_open.set(0);
    }

    /// The offer of the open session; `None` if no session is open.
    pub fn offer(&self) -> Option<InitIn> {
        if self.is_open.load(Ordering::Acquire) == 0 {
            return None;
        }
        let load = |field: &AtomicU32| field.load(Ordering::Relaxed);
        Some(InitIn {
            major: load(&self.major),
            minor: load(&self.minor),
            max_readahead: load(&self.max_readahead),
            flags: load(&self.flags),
            flags2: load(&self.flags2),
            ..InitIn::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_session_keeps_its_offer_until_it_ends() {
        let record = SessionRecord::default();
        assert!(record.offer().is_none());
        let offer = InitIn {
            major: 7,
            minor: 38,
            max_readahead: 4096,
            flags: 1,
            flags2: 2,
            ..InitIn::default()
        };
        record.open(&offer);
        let kept = record.offer().expect("an offer");
        assert_eq!((kept.minor, kept.flags, kept.flags2), (38, 1, 2));
        record.close();
        assert!(record.offer().is_none());
    }

    #[test]
    fn a_kill_at_any_time_leaves_the_offer_before_or_after_or_none() {
        use super::super::change::killing;

        let offer = |number| InitIn {
            major: 7,
            minor: number,
            max_readahead: number,
            flags: number,
            flags2: number,
            ..InitIn::default()
        };
        let changes: [fn(&SessionRecord, &InitIn); 2] =
            [SessionRecord::open, |record, _| record.close()];
        let mut kills = 0;
        for change in changes {
            for kill_at in 0.. {
                let record = SessionRecord::default();
                record.open(&offer(1));
                let finished = killing::until(kill_at, || change(&record, &offer(2)));
                let kept = record.offer();
                let is_whole =
                    kept.is_none_or(|kept| [1, 2].iter().any(|number| kept == offer(*number)));
                assert!(is_whole, "killed at {kill_at}: {kept:?}");
                kills += 1;
                if finished.is_some() {
                    break;
                }
            }
        }
        assert!(kills > 7, "{kills} kills");
    }
}
