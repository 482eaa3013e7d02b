//! A device's registers, saved so that a complete copy is valid at any time.

use std::mem::offset_of;

use gangplank_service::fnv::checksum;
use log::error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::layout::{CURRENT, REGISTERS, REGISTERS_LEN, UNREADABLE};
use super::{Journal, SavedRegisters};
use crate::mmio::{QueueRegisters, Registers, Status};

/// Bytes of the largest configuration space.
const CONFIG: usize = 64;

/// The part before the queues.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
struct Saved {
    features: u64,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    interrupt_status: u32,
    config_generation: u32,
    activated: u32,
    queue_count: u32,
    config_len: u32,
    /// Checksum of all other bytes, the queues included. 0 in what older versions wrote.
    checksum: u32,
    config: [u8; CONFIG],
}

/// The checksum's bytes.
const CHECKSUM: std::ops::Range<usize> = {
    let start = offset_of!(Saved, checksum);
    start..start + size_of::<u32>()
};

/// One queue.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
struct SavedQueue {
    descriptors: u64,
    available: u64,
    used: u64,
    size: u32,
    /// [`READY`], [`REFUSED`] or neither.
    state: u32,
}

const READY: u32 = 1;
const REFUSED: u32 = 2;

const _: () = assert!(size_of::<Saved>() == 112 && size_of::<SavedQueue>() == 32);

/// Most queues of a device: vhost-user numbers them by a byte.
const MAX_QUEUES: usize = 256;

const _: () = {
    assert!(size_of::<Saved>() + MAX_QUEUES * size_of::<SavedQueue>() <= REGISTERS_LEN);
};

impl Journal {
    /// Saves the registers. Registers that do not fit, which no device has, are unreadable for a
    /// successor: it must not take the previous ones for them.
    pub fn save(&self, registers: &Registers) {
        let bytes = to_bytes(registers);
        let mut last = self.last.lock();
        if *last == bytes {
            return;
        }
        if bytes.len() > REGISTERS_LEN {
            self.store::<u64>(CURRENT, UNREADABLE);
            error!(
                "a device's registers take {} bytes, too many for the journal",
                bytes.len()
            );
            *last = bytes;
            return;
        }
        let (at, word) = match self.load(CURRENT) {
            1 => (REGISTERS[1], 2),
            _ => (REGISTERS[0], 1),
        };
        self.slice(at, bytes.len()).copy_from(&bytes);
        self.store::<u64>(CURRENT, word);
        *last = bytes;
    }

    /// The registers that a predecessor saved last.
    pub fn saved_registers(&self) -> SavedRegisters {
        let at = match self.load(CURRENT) {
            0 => return SavedRegisters::None,
            1 => REGISTERS[0],
            2 => REGISTERS[1],
            _ => return SavedRegisters::Unreadable,
        };
        let mut bytes = vec![0; REGISTERS_LEN];
        self.slice(at, REGISTERS_LEN).copy_to(&mut bytes);
        match from_bytes(&bytes) {
            Some(registers) => SavedRegisters::Valid(Box::new(registers)),
            None => SavedRegisters::Unreadable,
        }
    }

    pub(super) fn forget_registers(&self) {
        self.store::<u64>(CURRENT, 0);
    }
}

fn to_bytes(registers: &Registers) -> Vec<u8> {
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let mut config = [0; CONFIG];
    for (to, from) in config.iter_mut().zip(&registers.config) {
        *to = *from;
    }
    let saved = Saved {
        features: registers.features,
        status: registers.status.bits(),
        device_features_sel: registers.device_features_sel,
        driver_features_sel: registers.driver_features_sel,
        queue_sel: registers.queue_sel,
        interrupt_status: registers.interrupt_status,
        config_generation: registers.config_generation,
        activated: registers.activated.into(),
        queue_count: count(registers.queues.len()),
        config_len: count(registers.config.len()),
        checksum: 0,
        config,
    };
    let mut bytes = saved.as_bytes().to_vec();
    for queue in &registers.queues {
        let saved = SavedQueue {
            descriptors: queue.descriptors,
            available: queue.available,
            used: queue.used,
            size: queue.size,
            state: match (queue.ready, queue.refused) {
                (true, _) => READY,
                (false, true) => REFUSED,
                (false, false) => 0,
            },
        };
        bytes.extend_from_slice(saved.as_bytes());
    }
    let sum = checksum(&bytes);
    if let Some(field) = bytes.get_mut(CHECKSUM) {
        field.copy_from_slice(&sum.to_ne_bytes());
    }
    bytes
}

/// Whether the first `len` bytes agree with their checksum, if they have one.
fn is_whole(bytes: &[u8], len: usize, sum: u32) -> bool {
    let Some(mut bytes) = bytes.get(..len).map(<[u8]>::to_vec) else {
        return false;
    };
    if let Some(field) = bytes.get_mut(CHECKSUM) {
        field.fill(0);
    }
    sum == 0 || sum == checksum(&bytes)
}

/// `None` if [`to_bytes`] cannot have written them.
fn from_bytes(bytes: &[u8]) -> Option<Registers> {
    let (saved, rest) = Saved::read_from_prefix(bytes).ok()?;
    let count = usize::try_from(saved.queue_count).ok()?;
    if count > MAX_QUEUES {
        return None;
    }
    let config_len = usize::try_from(saved.config_len).ok()?;
    let len = count.checked_mul(size_of::<SavedQueue>())?;
    if !is_whole(bytes, size_of::<Saved>().checked_add(len)?, saved.checksum) {
        return None;
    }
    let chunks = rest.get(..len)?.chunks_exact(size_of::<SavedQueue>());
    let queues = chunks.map(|bytes| to_queue(SavedQueue::read_from_bytes(bytes).ok()?));
    Some(Registers {
        status: Status::from_bits(saved.status)?,
        device_features_sel: saved.device_features_sel,
        driver_features_sel: saved.driver_features_sel,
        features: saved.features,
        queue_sel: saved.queue_sel,
        interrupt_status: saved.interrupt_status,
        config_generation: saved.config_generation,
        activated: to_bool(saved.activated)?,
        queues: queues.collect::<Option<_>>()?,
        config: saved.config.get(..config_len)?.to_vec(),
    })
}

fn to_queue(saved: SavedQueue) -> Option<QueueRegisters> {
    (saved.state <= REFUSED).then_some(QueueRegisters {
        size: saved.size,
        descriptors: saved.descriptors,
        available: saved.available,
        used: saved.used,
        ready: saved.state == READY,
        refused: saved.state == REFUSED,
    })
}

fn to_bool(word: u32) -> Option<bool> {
    match word {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue() -> impl Strategy<Value = QueueRegisters> {
        (any::<[u64; 3]>(), any::<u32>(), 0..3u8).prop_map(|(areas, size, state)| {
            let [descriptors, available, used] = areas;
            QueueRegisters {
                size,
                descriptors,
                available,
                used,
                ready: state == 1,
                refused: state == 2,
            }
        })
    }

    prop_compose! {
        fn registers()(
            words in any::<[u32; 5]>(),
            features in any::<u64>(),
            status in prop::sample::select(vec![0, 1, 3, 0xb, 0xf, 0x4f, 0x83]),
            activated in any::<bool>(),
            queues in prop::collection::vec(queue(), 0..=MAX_QUEUES),
            config in prop::collection::vec(any::<u8>(), 0..=CONFIG),
        ) -> Registers {
            Registers {
                status: Status::from_bits_truncate(status),
                device_features_sel: words[0],
                driver_features_sel: words[1],
                features,
                queue_sel: words[2],
                interrupt_status: words[3],
                config_generation: words[4],
                activated,
                queues,
                config,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn successor_reads_what_was_written_last(all in prop::collection::vec(registers(), 1..4)) {
            let journal = Journal::new(0).unwrap();
            prop_assert_eq!(journal.saved_registers(), SavedRegisters::None);
            for registers in &all {
                journal.save(registers);
            }
            let last = all.last().unwrap().clone();
            prop_assert_eq!(journal.saved_registers(), SavedRegisters::Valid(Box::new(last)));
        }

        #[test]
        fn half_written_registers_do_not_count(
            whole in registers(), half in registers(), cut in 0usize..200,
        ) {
            let journal = Journal::new(0).unwrap();
            journal.save(&whole);
            let bytes = to_bytes(&half);
            let cut = cut.min(bytes.len());
            journal.slice(REGISTERS[1], cut).copy_from(&bytes[..cut]);
            prop_assert_eq!(journal.saved_registers(), SavedRegisters::Valid(Box::new(whole)));
        }

        #[test]
        fn noise_is_unreadable_or_something_that_could_have_been_written(
            noise in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            if let Some(registers) = from_bytes(&noise) {
                prop_assert_eq!(from_bytes(&to_bytes(&registers)), Some(registers));
            }
        }
    }

    #[test]
    fn registers_that_no_device_has_are_unreadable() {
        let mut good = to_bytes(&Registers::default());
        // Without a checksum, as older versions write them.
        good[CHECKSUM].fill(0);
        assert!(from_bytes(&good).is_some());
        // Status, activated, queue count, length of the configuration space.
        for (offset, value) in [(8, 0x10), (32, 2), (36, 0xff), (37, 2), (40, 65)] {
            let mut bad = good.clone();
            bad[offset] = value;
            assert_eq!(from_bytes(&bad), None, "{offset}");
        }
    }

    /// A damaged journal is noticed and never used in part.
    #[test]
    fn registers_with_a_damaged_bit_are_unreadable() {
        let registers = Registers {
            queues: vec![QueueRegisters::default(); 2],
            config: b"tag".to_vec(),
            ..Registers::default()
        };
        let good = to_bytes(&registers);
        assert_eq!(from_bytes(&good), Some(registers));
        for at in (0..good.len()).filter(|at| !CHECKSUM.contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(from_bytes(&bad), None, "{at}");
        }
    }

    /// Registers that do not fit leave none behind that a successor would take for them.
    #[test]
    fn registers_that_do_not_fit_are_unreadable() {
        let journal = Journal::new(0).unwrap();
        journal.save(&Registers::default());
        journal.save(&Registers {
            queues: vec![QueueRegisters::default(); 1000],
            ..Registers::default()
        });
        assert_eq!(journal.saved_registers(), SavedRegisters::Unreadable);
        journal.save(&Registers::default());
        assert!(matches!(
            journal.saved_registers(),
            SavedRegisters::Valid(_)
        ));
    }
}
