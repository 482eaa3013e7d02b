//! Record marking (RFC 5531, 11): messages on a stream.
//!
//! A message is a record of fragments. Each has a header of 4 bytes, big-endian: the length of the
//! fragment, and in the highest bit whether it is the last one of its record.

/// Bytes of a fragment's header.
const HEADER: usize = 4;

/// Set in the header of a record's last fragment.
const LAST: u32 = 1 << 31;

/// Most fragments of one record. Clients send one; a limit keeps a peer from sending empty ones
/// for ever.
const MAX_FRAGMENTS: usize = 64;

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
    record: Vec<u8>,
}

impl Assembler {
    /// Accepts records of up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            header: Vec::with_capacity(HEADER),
            missing: None,
            is_last: false,
            fragments: 0,
            record: Vec::new(),
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
            self.record.extend_from_slice(some);
            *bytes = rest;
            let missing = missing - some.len();
            if missing > 0 {
                self.missing = Some(missing);
                return Ok(None);
            }
            self.missing = None;
            self.header.clear();
            if self.is_last {
                self.fragments = 0;
                return Ok(Some(std::mem::take(&mut self.record)));
            }
        }
    }

    /// Whether a part of a record has come.
    #[must_use]
    pub fn has_part(&self) -> bool {
        self.fragments > 0 || !self.header.is_empty()
    }

    fn begin(&mut self, header: u32) -> Result<(), RecordError> {
        let too_long = RecordError::TooLong { limit: self.limit };
        let len = usize::try_from(header & !LAST).map_err(|_| too_long)?;
        if len > self.limit - self.record.len() {
            return Err(too_long);
        }
        self.fragments += 1;
        if self.fragments > MAX_FRAGMENTS {
            return Err(RecordError::Fragments);
        }
        self.is_last = header & LAST != 0;
        self.missing = Some(len);
        Ok(())
    }
}

/// The header before a message that is sent as one fragment.
#[must_use]
pub fn header(message: &[u8]) -> [u8; HEADER] {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
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
                stream.extend(header(second));
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
