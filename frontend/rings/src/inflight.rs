//! Which chains were in flight when a daemon was lost, as far as a ring tells.
//!
//! A ring tells their number: the available index less the used index. Which ones they are can be
//! seen only from entries that are not overwritten yet. Most daemons complete chains in the order
//! in which they took them; then the last ones are in flight. For others, [`Window`] counts for
//! each chain how often it was made available and how often it was used, from an entry on that no
//! request was in flight across. Where that leaves a doubt, the caller ends the
//! guest's device, because a wrong reply would break the guest's driver.

use std::collections::HashMap;

use crate::split_queue::{QueueError, SplitQueue};

/// Entries that have to contradict every other order before the ring's order counts as proven. A
/// daemon that completes chains in any order may follow the ring's order too, but hardly for 16.
const MIN_AGREEING_ENTRIES: usize = 16;

/// The entries that a ring still has: the last `size` available entries, and the used entries of
/// the same numbers.
#[derive(Debug)]
pub(crate) struct Window {
    /// Heads of available chains, oldest first.
    available: Vec<u16>,
    /// Heads of used chains from the same number on: shorter by the chains in flight.
    used: Vec<u16>,
}

/// Chains that are probably in flight.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Guess {
    /// Their heads, in the order in which they were made available.
    pub(crate) heads: Vec<u16>,
    /// Whether they are the last available ones.
    pub(crate) is_in_order: bool,
    /// Whether the ring rules out all others. Otherwise each chain has to look unanswered.
    pub(crate) is_certain: bool,
}

impl Window {
    /// Reads the ring. `used` is its used index, and `taken` the number of chains in flight.
    pub(crate) fn read(queue: &SplitQueue<'_>, used: u16, taken: u16) -> Result<Self, QueueError> {
        let end = used.wrapping_add(taken);
        let begin = end.wrapping_sub(queue.size());
        let back = queue.size().saturating_sub(taken);
        let available = (0..queue.size())
            .map(|offset| queue.available_head(begin.wrapping_add(offset)))
            .collect::<Result<_, _>>()?;
        let used = (0..back)
            .map(|offset| queue.used_head(begin.wrapping_add(offset)))
            .collect::<Result<_, _>>()?;
        Ok(Self { available, used })
    }

    /// The chains that are in flight; None if the ring contradicts every possibility.
    pub(crate) fn inflight(&self) -> Option<Guess> {
        (0..=self.used.len()).find_map(|from| self.from(from))
    }

    /// Counts from entry `from` on, as if no chain had been in flight across it.
    fn from(&self, from: usize) -> Option<Guess> {
        let (available, used) = (self.available.get(from..)?, self.used.get(from..)?);
        // For each head: how often it was available, less how often it was used.
        let mut counts: HashMap<u16, i64> = HashMap::new();
        for head in available {
            *counts.entry(*head).or_default() += 1;
        }
        for head in used {
            *counts.entry(*head).or_default() -= 1;
        }
        if counts.values().any(|count| !(0..=1).contains(count)) {
            return None;
        }
        let is_inflight = |head: &u16| counts.get(head) == Some(&1);
        // A chain in flight is the last available entry of its head.
        let mut heads: Vec<u16> = available
            .iter()
            .rev()
            .copied()
            .filter(is_inflight)
            .collect();
        let mut seen = std::collections::HashSet::new();
        heads.retain(|head| seen.insert(*head));
        heads.reverse();
        let taken = self.available.len() - self.used.len();
        let is_in_order =
            self.available.get(self.used.len()..) == Some(&*heads) && available.starts_with(used);
        // If `shift` chains had been in flight since before the window, each other chain would be
        // used that many entries earlier. Enough entries that contradict it rule it out, for every
        // `shift`.
        let contradicts = |shift: usize| {
            let shifted = available.get(shift..).unwrap_or_default();
            let pairs = used.iter().zip(shifted);
            pairs.filter(|(back, made)| back != made).count() >= MIN_AGREEING_ENTRIES
        };
        Some(Guess {
            heads,
            is_in_order,
            is_certain: from == 0
                && is_in_order
                && used.len() >= MIN_AGREEING_ENTRIES
                && (1..=taken).all(contradicts),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(available: &[u16], used: &[u16]) -> Option<Guess> {
        Window {
            available: available.to_vec(),
            used: used.to_vec(),
        }
        .inflight()
    }

    #[test]
    fn chains_given_back_in_order_leave_the_last() {
        let few = guess(&[0, 1, 2, 0, 1, 2, 3, 0], &[0, 1, 2, 0, 1, 2]).unwrap();
        assert_eq!(few.heads, [3, 0]);
        assert!(few.is_in_order && !few.is_certain);
        let heads: Vec<u16> = (0..64).map(|entry| entry % 7).collect();
        let many = guess(&heads, &heads[..61]).unwrap();
        assert_eq!(many.heads, heads[61..]);
        assert!(many.is_in_order && many.is_certain);
    }

    #[test]
    fn one_chain_alone_may_stand_for_another() {
        let guess = guess(&[4; 8], &[4; 7]).unwrap();
        assert_eq!(guess.heads, [4]);
        assert!(guess.is_in_order && !guess.is_certain);
    }

    #[test]
    fn chains_left_behind_are_found_by_counting() {
        let guess = guess(&[0, 1, 2, 3, 4, 5], &[0, 2, 4]).unwrap();
        assert_eq!(guess.heads, [1, 3, 5]);
        assert!(!guess.is_in_order && !guess.is_certain);
    }

    #[test]
    fn chains_in_flight_across_the_beginning_move_it() {
        // The first used chain was available before the window. From the second entry on it fits.
        let found = guess(&[1, 0, 1, 2], &[0, 0]).unwrap();
        assert!(!found.is_certain, "{found:?}");
        assert!(guess(&[3, 3, 3, 3], &[]).is_none());
    }

    #[test]
    fn whatever_order_they_come_back_in_the_count_is_right_or_none() {
        // Every order of using three of the six chains 0..6, each once.
        for a in 0..6u16 {
            for b in (0..6).filter(|b| *b != a) {
                for c in (0..6).filter(|c| ![a, b].contains(c)) {
                    let found = guess(&[0, 1, 2, 3, 4, 5], &[a, b, c]).unwrap();
                    let wanted: Vec<u16> =
                        (0..6).filter(|head| ![a, b, c].contains(head)).collect();
                    assert_eq!(found.heads, wanted);
                }
            }
        }
    }
}
