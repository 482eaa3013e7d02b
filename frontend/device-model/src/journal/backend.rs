//! The state of the connection to the backend, for a successor that takes the connection over.

use gangplank_service::fnv::checksum;
use gangplank_vhost_user::client::{CONFIG_LEN, Facts};
use log::error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Journal;
use super::layout::{BACKEND, BACKEND_VALID};

/// Rings that vhost-user can number.
const RINGS: usize = 256;

/// Bits of `Saved::present`.
mod present {
    pub(super) const PROTOCOL: u32 = 1;
    pub(super) const CONFIG: u32 = 2;
    pub(super) const MAX_RINGS: u32 = 4;
    pub(super) const ACKNOWLEDGED: u32 = 8;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
struct Saved {
    daemon: u64,
    offered: u64,
    protocol: u64,
    max_rings: u64,
    acknowledged: u64,
    /// A bit for each ring.
    running: [u64; RINGS / 64],
    present: u32,
    /// Checksum of all other bytes. 0 in what older versions wrote.
    checksum: u32,
    config: [u8; CONFIG_LEN],
}

const _: () = assert!(size_of::<Saved>() == 120 && BACKEND + size_of::<Saved>() <= 1024);

impl Journal {
    /// Notes that a message is on its way: a successor could not tell its answer from others.
    pub fn invalidate_backend(&self) {
        self.store::<u64>(BACKEND_VALID, 0);
    }

    /// Notes that no backend is connected.
    pub fn clear_backend(&self) {
        self.invalidate_backend();
    }

    /// Saves the state of the connection, while no message is on its way.
    pub fn save_backend(&self, facts: &Facts) {
        self.write(BACKEND, to_saved(facts));
        self.store::<u64>(BACKEND_VALID, 1);
    }

    /// The saved state; `None` if no backend was connected, a message was on its way, or the state
    /// is damaged.
    pub fn saved_backend(&self) -> Option<Facts> {
        let valid = self.load(BACKEND_VALID);
        let saved: Saved = self.read(BACKEND);
        if valid == 0 {
            return None;
        }
        if valid != 1 || ![0, sum(saved)].contains(&saved.checksum) {
            error!("the journal is damaged: the state of the daemon's connection is lost");
            return None;
        }
        Some(from_saved(&saved))
    }
}

fn sum(saved: Saved) -> u32 {
    let without = Saved {
        checksum: 0,
        ..saved
    };
    checksum(without.as_bytes())
}

fn to_saved(facts: &Facts) -> Saved {
    let flag = |is_present, bit| if is_present { bit } else { 0 };
    let mut running = [0; RINGS / 64];
    for ring in &facts.running {
        if let Some(word) = running.get_mut(ring / 64) {
            *word |= 1 << (ring % 64);
        }
    }
    let saved = Saved {
        daemon: facts.daemon,
        offered: facts.offered,
        protocol: facts.protocol.unwrap_or(0),
        max_rings: facts.max_rings.unwrap_or(0),
        acknowledged: facts.acknowledged.unwrap_or(0),
        running,
        present: flag(facts.protocol.is_some(), present::PROTOCOL)
            | flag(facts.config.is_some(), present::CONFIG)
            | flag(facts.max_rings.is_some(), present::MAX_RINGS)
            | flag(facts.acknowledged.is_some(), present::ACKNOWLEDGED),
        checksum: 0,
        config: facts.config.unwrap_or([0; CONFIG_LEN]),
    };
    Saved {
        checksum: sum(saved),
        ..saved
    }
}

fn from_saved(saved: &Saved) -> Facts {
    let has = |bit| saved.present & bit != 0;
    let runs = |ring: &usize| {
        let word = saved.running.get(ring / 64);
        word.is_some_and(|word| word & 1 << (ring % 64) != 0)
    };
    Facts {
        daemon: saved.daemon,
        offered: saved.offered,
        protocol: has(present::PROTOCOL).then_some(saved.protocol),
        config: has(present::CONFIG).then_some(saved.config),
        max_rings: has(present::MAX_RINGS).then_some(saved.max_rings),
        acknowledged: has(present::ACKNOWLEDGED).then_some(saved.acknowledged),
        running: (0..RINGS).filter(runs).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    /// A damaged journal is noticed and never used in part.
    #[test]
    fn facts_with_a_damaged_bit_are_none() {
        let journal = Journal::new(0).unwrap();
        journal.save_backend(&Facts::default());
        let good: Saved = journal.read(BACKEND);
        let checksum = std::mem::offset_of!(Saved, checksum);
        for at in (0..size_of::<Saved>()).filter(|at| !(checksum..checksum + 4).contains(at)) {
            let mut bad = good;
            bad.as_mut_bytes()[at] ^= 0x10;
            journal.write(BACKEND, bad);
            assert_eq!(journal.saved_backend(), None, "{at}");
        }
        // Without a checksum, as older versions write them.
        journal.write(
            BACKEND,
            Saved {
                checksum: 0,
                ..good
            },
        );
        assert_eq!(journal.saved_backend(), Some(Facts::default()));
    }

    proptest! {
        #[test]
        fn successor_reads_what_was_agreed_on_unless_a_message_was_on_its_way(
            offered in any::<u64>(),
            words in any::<[Option<u64>; 3]>(),
            config in any::<Option<[u8; 8]>>(),
            running in btree_set(0..RINGS, 0..RINGS),
        ) {
            let config = config.map(|start| {
                let mut config = [7; CONFIG_LEN];
                config[..8].copy_from_slice(&start);
                config
            });
            let facts = Facts {
                daemon: !offered,
                offered,
                protocol: words[0],
                config,
                max_rings: words[1],
                acknowledged: words[2],
                running: running.into_iter().collect(),
            };
            let journal = Journal::new(0).unwrap();
            prop_assert_eq!(journal.saved_backend(), None);
            journal.save_backend(&facts);
            prop_assert_eq!(journal.saved_backend(), Some(facts));
            journal.invalidate_backend();
            prop_assert_eq!(journal.saved_backend(), None);
        }
    }
}
