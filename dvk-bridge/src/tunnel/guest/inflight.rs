//! What the next tunnel needs to go on for a guest, in memory that the guest's frontend keeps
//! (vhost-user, "Inflight I/O tracking").
//!
//! ```text
//!   version (4)  session (4)  generation (8)
//!   the last number of each slot (4)
//!   for each ring: is used (4)  last head (2)  used index (2)
//!     for each head: is in flight (2)  slot + 1 (2)  number (4)
//! ```
//!
//! "Is in flight" is 2 for a chain that was sent in a session that is lost, and 1 for any other.
//!
//! The file is read and written, and not mapped: the frontend may cut it at any time. What a system
//! call has written stays when the process is killed.
//!
//! A chain that is given back is noted as the last head first, then the used ring has it, then its
//! entry and at last the used index are noted. So if that index is not the used ring's, the last
//! head was given back, whatever its entry says.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

use super::job::Place;
use crate::tunnel::wire::MAX_SLOTS;

/// The version of the layout. A file without a session has 0.
const VERSION: u32 = 1;

const HEAD: usize = 16;
const HEAD_LEN: u64 = HEAD as u64;
const SLOT: usize = 4;
const SLOT_LEN: u64 = SLOT as u64;
const RINGS_AT: u64 = HEAD_LEN + SLOT_LEN * MAX_SLOTS as u64;
const RING_HEAD_LEN: u64 = 8;
const ENTRY: usize = 8;
const ENTRY_LEN: u64 = ENTRY as u64;

/// The entry of a chain that was sent in a session that is lost.
const LOST: [u8; ENTRY] = [2, 0, 0, 0, 0, 0, 0, 0];

/// The session that a tunnel before this one had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Former {
    /// The random number of the guest's device.
    pub(super) generation: u64,
    /// The session.
    pub(super) session: u32,
}

/// A chain in flight: its head, and how far it is.
pub(super) type InFlight = (u16, Progress);

/// How far a chain in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It was not sent yet.
    Taken,
    /// It was sent in this slot, with this number.
    Sent(u16, u32),
    /// It was sent in a session that is lost.
    Lost,
}

/// The notes about one guest.
#[derive(Debug)]
pub(super) struct Inflight {
    file: OwnedFd,
    offset: u64,
    rings: u16,
    ring_size: u16,
}

/// Bytes for this number of rings with this number of descriptors each.
const fn len(rings: u16, ring_size: u16) -> u64 {
    RINGS_AT + rings as u64 * ring_len(ring_size)
}

const fn ring_len(ring_size: u16) -> u64 {
    RING_HEAD_LEN + ring_size as u64 * ENTRY_LEN
}

impl Inflight {
    /// A new file for this number of rings with this number of descriptors each, and its length.
    pub(super) fn create(rings: u16, ring_size: u16) -> io::Result<(OwnedFd, u64)> {
        let file = memfd_create("gangplank-inflight", MemfdFlags::CLOEXEC)?;
        let len = len(rings, ring_size);
        ftruncate(&file, len)?;
        Ok((file, len))
    }

    /// The notes in `file` from `offset` on.
    pub(super) const fn new(file: OwnedFd, offset: u64, rings: u16, ring_size: u16) -> Self {
        Self {
            file,
            offset,
            rings,
            ring_size,
        }
    }

    /// Whether it has room for this ring.
    pub(super) const fn covers(&self, ring: usize, size: u16) -> bool {
        ring < self.rings as usize && size <= self.ring_size
    }

    /// The session, if there was one.
    pub(super) fn former(&self) -> io::Result<Option<Former>> {
        let [a, b, c, d, e, f, g, h, generation @ ..] = self.read::<HEAD>(0)?;
        let is_known = u32::from_le_bytes([a, b, c, d]) == VERSION;
        Ok(is_known.then_some(Former {
            generation: u64::from_le_bytes(generation),
            session: u32::from_le_bytes([e, f, g, h]),
        }))
    }

    /// A session begins, or its notes do, without a request in flight in any slot. The last number
    /// of slot `n` is `numbers[n]`, and 0 behind them. What was sent before was sent in a session
    /// that is lost.
    pub(super) fn begin(
        &self,
        generation: u64,
        session: u32,
        numbers: impl Iterator<Item = u32>,
    ) -> io::Result<()> {
        self.write(0, &[0; HEAD])?;
        let mut slots = [[0; SLOT]; MAX_SLOTS as usize];
        for (slot, number) in slots.iter_mut().zip(numbers) {
            *slot = number.to_le_bytes();
        }
        self.write(HEAD_LEN, slots.as_flattened())?;
        for ring in 0..usize::from(self.rings) {
            for (head, entry) in (0..).zip(self.entries(ring)?) {
                if matches!(progress(&entry), Some(Progress::Sent(..))) {
                    self.write(self.entry(ring, head), &LOST)?;
                }
            }
        }
        let mut head = VERSION.to_le_bytes().to_vec();
        head.extend_from_slice(&session.to_le_bytes());
        head.extend_from_slice(&generation.to_le_bytes());
        self.write(0, &head)
    }

    /// The last number of each slot.
    pub(super) fn numbers(&self) -> io::Result<Vec<u32>> {
        let slots = 0..u64::from(MAX_SLOTS);
        slots
            .map(|slot| Ok(u32::from_le_bytes(self.read(HEAD_LEN + slot * SLOT_LEN)?)))
            .collect()
    }

    /// The slots whose requests are in flight.
    pub(super) fn used_slots(&self) -> io::Result<Vec<u16>> {
        let mut slots = Vec::new();
        for ring in 0..usize::from(self.rings) {
            let entries = self.entries(ring)?;
            slots.extend(entries.iter().filter_map(|entry| match progress(entry) {
                Some(Progress::Sent(slot, _)) => Some(slot),
                Some(Progress::Taken | Progress::Lost) | None => None,
            }));
        }
        Ok(slots)
    }

    /// The chain with this head was taken off a ring.
    pub(super) fn take(&self, ring: usize, head: u16) -> io::Result<()> {
        self.write(self.entry(ring, head), &[1, 0, 0, 0, 0, 0, 0, 0])
    }

    /// It is about to be sent in this place.
    pub(super) fn place(&self, ring: usize, head: u16, place: Place) -> io::Result<()> {
        let number = place.number.to_le_bytes();
        let slot = u64::from(place.slot);
        self.write(HEAD_LEN + slot * SLOT_LEN, &number)?;
        let [a, b] = place.slot.wrapping_add(1).to_le_bytes();
        let [c, d, e, f] = number;
        self.write(self.entry(ring, head), &[1, 0, a, b, c, d, e, f])
    }

    /// It is about to be given back.
    pub(super) fn begin_return(&self, ring: usize, head: u16) -> io::Result<()> {
        self.write(self.ring(ring) + 4, &head.to_le_bytes())
    }

    /// It was given back, and the used ring's index is `used` since.
    pub(super) fn end_return(&self, ring: usize, head: u16, used: u16) -> io::Result<()> {
        self.write(self.entry(ring, head), &[0; ENTRY])?;
        self.write(self.ring(ring) + 6, &used.to_le_bytes())
    }

    /// The chains that are in flight in a ring whose used index is `used`. `None` if the notes are
    /// not about this ring: there are none yet, or the driver has begun anew. They begin then.
    pub(super) fn attach(
        &self,
        ring: usize,
        size: u16,
        used: u16,
    ) -> io::Result<Option<Vec<InFlight>>> {
        let at = self.ring(ring);
        let [is_used, _, _, _, last @ ..] = self.read::<8>(at)?;
        let [a, b, c, d] = last;
        let (last, noted) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        let is_same = is_used == 1 && [noted, noted.wrapping_add(1)].contains(&used);
        if !is_same {
            let [a, b] = used.to_le_bytes();
            let mut anew = vec![1, 0, 0, 0, 0, 0, a, b];
            anew.resize(anew.len() + usize::from(self.ring_size) * ENTRY, 0);
            self.write(at, &anew)?;
            return Ok(None);
        }
        if noted != used && last < self.ring_size {
            self.end_return(ring, last, used)?;
        }
        let mut found = Vec::new();
        for head in 0..size {
            let bytes = self.read(self.entry(ring, head))?;
            found.extend(progress(&bytes).map(|progress| (head, progress)));
        }
        Ok(Some(found))
    }

    fn ring(&self, ring: usize) -> u64 {
        let before = u64::try_from(ring).unwrap_or(u64::MAX);
        RINGS_AT + before.saturating_mul(ring_len(self.ring_size))
    }

    fn entry(&self, ring: usize, head: u16) -> u64 {
        self.ring(ring) + RING_HEAD_LEN + u64::from(head) * ENTRY_LEN
    }

    /// The entries of all heads of a ring.
    fn entries(&self, ring: usize) -> io::Result<Vec<[u8; ENTRY]>> {
        let mut entries = vec![[0; ENTRY]; self.ring_size.into()];
        self.fill(self.entry(ring, 0), entries.as_flattened_mut())?;
        Ok(entries)
    }

    fn read<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(at, &mut bytes)?;
        Ok(bytes)
    }

    fn fill(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let read = pread(&self.file, &mut *bytes, self.offset.saturating_add(at))?;
        match read == bytes.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let written = pwrite(&self.file, bytes, self.offset.saturating_add(at))?;
        match written == bytes.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// How far the chain of this entry is. None if it is not in flight.
fn progress(entry: &[u8; ENTRY]) -> Option<Progress> {
    let [is_in_flight, _, a, b, number @ ..] = *entry;
    let slot = u16::from_le_bytes([a, b]).checked_sub(1);
    let slot = slot.filter(|slot| *slot < MAX_SLOTS);
    match (is_in_flight, slot) {
        (1, Some(slot)) => Some(Progress::Sent(slot, u32::from_le_bytes(number))),
        (1, None) => Some(Progress::Taken),
        (2, _) => Some(Progress::Lost),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes() -> (Inflight, OwnedFd) {
        let (file, _) = Inflight::create(2, 8).unwrap();
        let again = file.try_clone().unwrap();
        (Inflight::new(file, 0, 2, 8), again)
    }

    fn place(slot: u16, number: u32) -> Place {
        Place {
            session: 5,
            slot,
            number,
        }
    }

    #[test]
    fn the_next_process_finds_session_numbers_and_chains_in_flight() {
        let (notes, file) = notes();
        assert_eq!(notes.former().unwrap(), None);
        assert_eq!(notes.attach(1, 8, 0).unwrap(), None);
        notes.begin(77, 5, std::iter::empty()).unwrap();
        for head in [3, 0, 6] {
            notes.take(1, head).unwrap();
        }
        notes.place(1, 3, place(2, 9)).unwrap();
        notes.place(1, 6, place(4, 1)).unwrap();
        notes.begin_return(1, 6).unwrap();
        notes.end_return(1, 6, 1).unwrap();
        drop(notes);
        let next = Inflight::new(file, 0, 2, 8);
        let former = Former {
            generation: 77,
            session: 5,
        };
        assert_eq!(next.former().unwrap(), Some(former));
        let numbers = next.numbers().unwrap();
        assert_eq!((numbers[2], numbers[4], numbers[1]), (9, 1, 0));
        assert_eq!(next.used_slots().unwrap(), [2]);
        let found = next.attach(1, 8, 1).unwrap();
        let expected = vec![(0, Progress::Taken), (3, Progress::Sent(2, 9))];
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn a_chain_that_the_used_ring_has_is_not_in_flight() {
        let (notes, _file) = notes();
        notes.attach(0, 8, 7).unwrap();
        notes.take(0, 2).unwrap();
        notes.take(0, 5).unwrap();
        notes.begin_return(0, 5).unwrap();
        // Killed before the used ring had it, or behind that.
        let before = notes.attach(0, 8, 7).unwrap();
        let one = || Some(vec![(2, Progress::Taken)]);
        let both = vec![(2, Progress::Taken), (5, Progress::Taken)];
        assert_eq!(before, Some(both));
        assert_eq!(notes.attach(0, 8, 8).unwrap(), one());
        // The next one may be killed as well, before it gives anything back.
        assert_eq!(notes.attach(0, 8, 8).unwrap(), one());
    }

    #[test]
    fn a_driver_that_has_begun_anew_has_nothing_in_flight() {
        let (notes, _file) = notes();
        notes.attach(0, 8, 100).unwrap();
        notes.take(0, 2).unwrap();
        assert_eq!(notes.attach(0, 8, 0).unwrap(), None);
        assert_eq!(notes.attach(0, 8, 0).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn a_file_that_the_frontend_has_cut_is_an_error() {
        let (notes, file) = notes();
        ftruncate(&file, 20).unwrap();
        assert!(notes.attach(0, 8, 0).is_err() && notes.numbers().is_err());
    }
}
