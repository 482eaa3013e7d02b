//! Which chains a daemon had in hand when it was lost, as far as a ring tells.
//!
//! A ring tells how many they are: what was made available less what came back. Which ones is told only by the entries that have not
//! been overwritten yet. Mostly a daemon gives chains back in the order in which it took them, and it is the last ones. Where it
//! did not, the chains are counted, from a place in the ring on that no request was in flight across.

use std::collections::HashMap;

use super::split_queue::{QueueError, SplitQueue};

/// Entries that have to agree before chance is ruled out: a daemon that gives back in any order does so in this order, too, but
/// not for long.
const MIN_AGREEING_ENTRIES: usize = 16;

/// The entries of a ring that are still there: the last `size` that were made available, and as many of those that came back.
#[derive(Debug)]
pub(super) struct Window {
    /// Heads made available, oldest first.
    available: Vec<u16>,
    /// Heads that came back, from the same number on: shorter by what is outstanding.
    used: Vec<u16>,
}

/// Chains that are probably outstanding.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Guess {
    /// Their heads, in the order in which they were made available.
    pub(super) heads: Vec<u16>,
    /// Whether they are the last that were made available.
    pub(super) is_in_order: bool,
    /// Whether there is no doubt. Else each of them has to be looked at.
    pub(super) is_certain: bool,
}

impl Window {
    /// Reads the ring, of which `used` is the index of what came back, and `taken` the number of chains outstanding.
    pub(super) fn read(queue: &SplitQueue<'_>, used: u16, taken: u16) -> Result<Self, QueueError> {
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

    /// The chains that are outstanding; None where the ring contradicts every possibility.
    pub(super) fn outstanding(&self) -> Option<Guess> {
        (0..=self.used.len()).find_map(|from| self.from(from))
    }

    /// Counts from entry `from` on, as if nothing had been in flight across it.
    fn from(&self, from: usize) -> Option<Guess> {
        let (available, used) = (self.available.get(from..)?, self.used.get(from..)?);
        // Each head: made available less come back.
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
        // A chain that is out was made available last of all its times.
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
        // Had `shift` chains been outstanding since before all this, each of the others would have come back that many
        // entries earlier. If entries enough contradict that for every number, it was not so.
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
        .outstanding()
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
        // What came back first was made available before; from the second entry on it fits.
        let found = guess(&[1, 0, 1, 2], &[0, 0]).unwrap();
        assert!(!found.is_certain, "{found:?}");
        assert!(guess(&[3, 3, 3, 3], &[]).is_none());
    }

    #[test]
    fn whatever_order_they_come_back_in_the_count_is_right_or_none() {
        // Every way of giving back three of the six chains 0..6, each used once.
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
