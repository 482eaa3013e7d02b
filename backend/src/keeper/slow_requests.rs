//! Tells the operator of requests that the storage does not answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gangplank_fuse::Opcode;
use rustix::time::ClockId;

use crate::state::arena::Arena;
use crate::state::counters::{self, RUNNING_OPCODE};
use crate::storage::Storage;
use crate::sys::clock;

/// How long a request may take before the log says so.
const LIMIT: Duration = Duration::from_secs(10);

/// How often a worker looks, if the share's storage may hang.
const INTERVAL: Duration = Duration::from_secs(5);

/// How often it looks otherwise: a disk ends by an error, but other storage may be mounted below
/// the share. An idle guest should cost no processor time.
const LOCAL_INTERVAL: Duration = Duration::from_secs(60);

/// How long a request may take for the guest to be handed over at once: the worker, which is killed
/// for that, ends only when the storage has answered.
const HANDED_OVER: Duration = Duration::from_secs(3);

/// What the log was told of one guest's requests.
#[derive(Debug, Default)]
pub(super) struct SlowRequests {
    /// The age of the oldest request at the last look, while there is one beyond the limit.
    longest: Option<Duration>,
}

/// A request that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Running {
    age: Duration,
    opcode: u64,
}

/// The requests that run, whoever's process asks.
fn running(arena: &Arc<Arena>) -> Vec<Running> {
    let used = counters::used_blocks(&arena.header().counter_blocks);
    let now = clock::now(ClockId::MonotonicCoarse).max(0).cast_unsigned();
    let blocks = arena.counters();
    let words = (blocks.iter().take(used)).map(|block| block.running.load(Ordering::Relaxed));
    let running = words.filter(|word| *word != 0).map(|word| Running {
        age: Duration::from_nanos(now.saturating_sub(word & !RUNNING_OPCODE)),
        opcode: word & RUNNING_OPCODE,
    });
    running.collect()
}

/// Why the guest cannot be handed over now, if the storage does not answer one of its requests.
pub(super) fn obstacle(arena: &Arc<Arena>) -> Option<String> {
    let running = running(arena).into_iter();
    let slow = running.filter(|running| running.age >= HANDED_OVER).count();
    (slow > 0).then(|| {
        format!(
            "the storage has not answered {slow} of its requests for {} s: all guests stay where \
             they are; reload when it answers",
            HANDED_OVER.as_secs()
        )
    })
}

impl SlowRequests {
    /// How long to wait between two looks.
    pub(super) fn interval(storage: Option<&Storage>) -> Duration {
        match storage.is_some_and(Storage::may_hang) {
            true => INTERVAL,
            false => LOCAL_INTERVAL,
        }
    }

    /// Looks at the requests that the guest's worker serves, and logs a change.
    pub(super) fn look(&mut self, guest: u64, arena: &Arc<Arena>) {
        if let Some((level, text)) = self.change(guest, running(arena).into_iter()) {
            log::log!(level, "{text}");
        }
    }

    /// What to log.
    fn change(
        &mut self,
        guest: u64,
        running: impl Iterator<Item = Running>,
    ) -> Option<(log::Level, String)> {
        let slow: Vec<Running> = running.filter(|running| running.age >= LIMIT).collect();
        let oldest = slow.iter().max_by_key(|running| running.age);
        let before = std::mem::replace(&mut self.longest, oldest.map(|oldest| oldest.age));
        match (before, oldest) {
            (None, Some(oldest)) => {
                let opcode = u32::try_from(oldest.opcode).ok();
                let opcode = opcode.and_then(|opcode| Opcode::try_from(opcode).ok());
                let text = format!(
                    "{} requests of guest {guest} have waited for the storage for more than {} s, \
                     the oldest is {}; the others go on, as long as threads are left",
                    slow.len(),
                    LIMIT.as_secs(),
                    opcode.map_or("of an unknown kind", Opcode::name)
                );
                Some((log::Level::Warn, text))
            }
            (Some(before), None) => {
                let text = format!(
                    "the storage has answered guest {guest}, whose oldest request waited for more \
                     than {} s",
                    before.as_secs()
                );
                Some((log::Level::Info, text))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_waits_is_told_once_and_so_is_its_end() {
        let mut slow = SlowRequests::default();
        let opcode = Opcode::Lookup as u64;
        let mut look = |ages: &[u64]| {
            let running = ages.iter().map(|age| Running {
                age: Duration::from_secs(*age),
                opcode,
            });
            slow.change(7, running).map(|(_, text)| text)
        };
        assert_eq!(look(&[0, 9]), None);
        let told = look(&[3, 11, 14]).unwrap();
        assert!(told.starts_with("2 requests of guest 7"), "{told}");
        assert!(told.contains("LOOKUP"), "{told}");
        assert_eq!(look(&[16, 19]), None);
        assert!(look(&[2]).unwrap().contains("more than 19 s"));
        assert_eq!(look(&[]), None);
    }
}
