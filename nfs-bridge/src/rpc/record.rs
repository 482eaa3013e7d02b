//! Record marking (RFC 5531, 11): messages on a stream.
//!
//! A message is a record of fragments. Each has a header of 4 bytes, big-endian: the length of the
//! fragment, and in the highest bit whether it is the last one of its record.
//!
//! Most of a large record is read to where it stays, and into memory that was used before: the
//! kernel takes longer to clear new pages than to fill them.

use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes of a fragment's header.
const HEADER: usize = 4;

/// Set in the header of a record's last fragment.
const LAST: u32 = 1 << 31;

/// Most fragments of one record. Clients send one; a limit keeps a peer from sending empty ones
/// for ever.
const MAX_FRAGMENTS: usize = 64;

/// Bytes of a fragment beyond which they are read to where they stay.
const MIN_DIRECT: usize = 16 << 10;

/// Bytes of a record whose memory is used again.
const MIN_POOLED: usize = 64 << 10;

/// Most records whose memory waits to be used again.
const MAX_POOLED: usize = 8;

/// Bytes of a record for which there is memory before any has come.
const FIRST_ROOM: usize = 64 << 10;

/// Memory of large records, which is used again.
#[derive(Debug, Default)]
pub struct RecordPool(Mutex<Vec<Vec<u8>>>);

impl RecordPool {
    /// Takes the memory of a record that was executed, if it is worth it.
    pub fn give(&self, record: Vec<u8>) {
        if record.len() < MIN_POOLED {
            return;
        }
        let mut pooled = self.0.lock();
        if pooled.len() < MAX_POOLED {
            pooled.push(record);
        }
    }

    fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_default()
    }
}

/// What a peer did to lose its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The record is too long.
    #[error("a record of more than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The record has too many fragments.
    #[error("a record of more than {MAX_FRAGMENTS} fragments")]
    Fragments,
}

/// Assembles records from the bytes of a stream, in pieces of any size. Memory grows with the bytes
/// that have come, not with the length that a header claims.
#[derive(Debug)]
pub struct Assembler {
    limit: usize,
    header: Vec<u8>,
    /// Bytes that the current fragment still lacks; `None` before its header is complete.
    missing: Option<usize>,
    is_last: bool,
    fragments: usize,
    /// Memory of the record, of which the first `len` bytes have come.
    record: Vec<u8>,
    len: usize,
    pool: Arc<RecordPool>,
}

impl Assembler {
    /// Accepts records of up to `limit` bytes, in memory of their own.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with_pool(limit, Arc::default())
    }

    /// As [`Self::new`], with memory of `pool` for the large ones.
    #[must_use]
    pub fn with_pool(limit: usize, pool: Arc<RecordPool>) -> Self {
        Self {
            limit,
            header: Vec::with_capacity(HEADER),
            missing: None,
            is_last: false,
            fragments: 0,
            record: Vec::new(),
            len: 0,
            pool,
        }
    }

    /// Consumes bytes from the front of `bytes`, up to the end of the first record in it. Returns
    /// that record, or `None` when all bytes are consumed.
    ///
    /// # Errors
    /// [`RecordError`]: the stream cannot be read any further.
    pub fn take(&mut self, bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, RecordError> {
        loop {
            let Some(missing) = self.missing else {
                let wanted = HEADER - self.header.len();
                let (some, rest) = bytes.split_at(wanted.min(bytes.len()));
                self.header.extend_from_slice(some);
                *bytes = rest;
                let Some(header) = self.header.first_chunk() else {
                    return Ok(None);
                };
                self.begin(u32::from_be_bytes(*header))?;
                continue;
            };
            let (some, rest) = bytes.split_at(missing.min(bytes.len()));
            let end = self.len + some.len();
            match self.record.get_mut(self.len..end) {
                Some(place) => place.copy_from_slice(some),
                None => {
                    self.record.truncate(self.len);
                    self.record.extend_from_slice(some);
                }
            }
            *bytes = rest;
            if let Some(record) = self.filled(some.len()) {
                return Ok(Some(record));
            }
            if self.missing.is_some() {
                return Ok(None);
            }
        }
    }

    /// Where the next bytes of the stream belong, if they are all of one large fragment. The caller
    /// tells by [`Self::filled`] how many it has put there.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        let missing = self.missing.filter(|missing| *missing >= MIN_DIRECT)?;
        // No more than what has come already, unless the memory is there.
        let allowed = self.record.len().max(self.len.saturating_mul(2));
        let end = (self.len + missing).min(allowed.max(FIRST_ROOM));
        if self.record.len() < end {
            self.record.resize(end, 0);
        }
        self.record.get_mut(self.len..end)
    }

    /// Notes that the next `len` bytes of the current fragment are in their place. Returns the
    /// record if it is whole now.
    pub fn filled(&mut self, len: usize) -> Option<Vec<u8>> {
        self.len += len;
        let missing = self.missing?.saturating_sub(len);
        if missing > 0 {
            self.missing = Some(missing);
            return None;
        }
        self.missing = None;
        self.header.clear();
        if !self.is_last {
            return None;
        }
        self.fragments = 0;
        let mut record = std::mem::take(&mut self.record);
        record.truncate(std::mem::take(&mut self.len));
        Some(record)
    }

    /// Whether a part of a record has come.
    #[must_use]
    pub fn has_part(&self) -> bool {
        self.fragments > 0 || !self.header.is_empty()
    }

    fn begin(&mut self, header: u32) -> Result<(), RecordError> {
        let too_long = RecordError::TooLong { limit: self.limit };
        let len = usize::try_from(header & !LAST).map_err(|_| too_long)?;
        if len > self.limit - self.len {
            return Err(too_long);
        }
        self.fragments += 1;
        if self.fragments > MAX_FRAGMENTS {
            return Err(RecordError::Fragments);
        }
        self.is_last = header & LAST != 0;
        self.missing = Some(len);
        if len >= MIN_POOLED && self.record.is_empty() {
            self.record = self.pool.take();
        }
        Ok(())
    }
}

/// The header before a message of `len` bytes that is sent as one fragment.
#[must_use]
pub fn header(len: usize) -> [u8; HEADER] {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    (len | LAST).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take_all(assembler: &mut Assembler, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while let Some(record) = assembler.take(&mut bytes).unwrap() {
            records.push(record);
        }
        records
    }

    proptest! {
        #[test]
        fn records_survive_any_division(records: Vec<Vec<u8>>, cut in 1_usize..9) {
            let mut stream = Vec::new();
            for record in &records {
                let (first, second) = record.split_at(record.len() / 2);
                stream.extend(u32::try_from(first.len()).unwrap().to_be_bytes());
                stream.extend(first);
                stream.extend(header(second.len()));
                stream.extend(second);
            }
            let mut assembler = Assembler::new(1 << 20);
            let mut found = Vec::new();
            for piece in stream.chunks(cut) {
                found.extend(take_all(&mut assembler, piece));
            }
            prop_assert_eq!(found, records);
            prop_assert!(!assembler.has_part());
            take_all(&mut assembler, &[0]);
            prop_assert!(assembler.has_part());
        }
    }

    /// Large records in memory that others have used, read to their places and by the way.
    #[test]
    fn a_large_record_keeps_nothing_of_the_one_before() {
        let pool = Arc::new(RecordPool::default());
        let mut assembler = Assembler::with_pool(1 << 20, Arc::clone(&pool));
        for (number, len) in [(1, 1 << 20), (2, 100), (3, 700_000), (4, 900_001)] {
            let sent = vec![number; len];
            let stream = [&header(len)[..], &sent].concat();
            let mut rest = &stream[..];
            let (mut by_the_way, mut found) = (true, None);
            while found.is_none() {
                match assembler.room().filter(|_| !by_the_way) {
                    Some(room) => {
                        let some = room.len().min(rest.len());
                        room[..some].copy_from_slice(&rest[..some]);
                        rest = &rest[some..];
                        found = assembler.filled(some);
                    }
                    None => {
                        let (mut some, after) = rest.split_at(rest.len().min(70_000));
                        found = assembler.take(&mut some).unwrap();
                        rest = after;
                    }
                }
                by_the_way = !by_the_way;
            }
            let record = found.unwrap();
            assert!(record == sent && rest.is_empty(), "{number}");
            pool.give(record);
        }
        assert_eq!(pool.0.lock().len(), 1);
    }

    #[test]
    fn room_grows_with_what_has_come() {
        let mut assembler = Assembler::new(1 << 20);
        assembler.take(&mut &header(1 << 20)[..]).unwrap();
        let mut before = 0;
        while let Some(room) = assembler.room() {
            let len = room.len();
            assert!(len <= before.max(FIRST_ROOM), "{len} after {before}");
            before += len;
            assembler.filled(len);
        }
        assert_eq!(before, 1 << 20);
    }

    #[test]
    fn a_record_beyond_the_limit_is_refused_by_its_header() {
        let mut assembler = Assembler::new(100);
        let error = assembler.take(&mut &(101 | LAST).to_be_bytes()[..]);
        assert_eq!(error, Err(RecordError::TooLong { limit: 100 }));
        let mut assembler = Assembler::new(100);
        let halves = [&60_u32.to_be_bytes()[..], &[0; 60], &60_u32.to_be_bytes()].concat();
        assert!(assembler.take(&mut &*halves).is_err());
    }

    #[test]
    fn empty_fragments_without_end_are_refused() {
        let mut assembler = Assembler::new(100);
        let error = assembler.take(&mut &[0; 4 * (MAX_FRAGMENTS + 1)][..]);
        assert_eq!(error, Err(RecordError::Fragments));
    }
}
