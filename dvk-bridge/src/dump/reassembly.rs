//! Puts the captured segments of one direction of a TCP connection in order.

use std::collections::BTreeMap;

/// Bytes that are kept while earlier ones are missing: more than any TCP window in use here.
const MAX_EARLY: usize = 8 << 20;

/// One direction of a connection.
#[derive(Default)]
pub(super) struct Reassembly {
    /// The next sequence number. `None` before the first segment.
    next: Option<u32>,
    /// Segments that came too early, keyed by their position in the stream.
    early: BTreeMap<u64, Vec<u8>>,
    kept: usize,
    /// Bytes that came in order or are missing: the position of `next`.
    base: u64,
}

/// A part of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// The next bytes.
    Bytes(&'a [u8]),
    /// This many bytes were not captured.
    Missing(u64),
}

impl Reassembly {
    /// Takes the segment that starts at `sequence` and passes what is in order to `emit`. `begins`
    /// marks the first segment of a connection.
    pub(super) fn take<E>(
        &mut self,
        sequence: u32,
        begins: bool,
        data: &[u8],
        mut emit: impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if begins {
            // The SYN of a new connection occupies one sequence number.
            *self = Self {
                next: Some(sequence.wrapping_add(1)),
                ..Self::default()
            };
            return Ok(());
        }
        let next = *self.next.get_or_insert(sequence);
        if data.is_empty() {
            // An acknowledgement. If the start of the connection was not captured, the first one
            // gives the position.
            return Ok(());
        }
        let ahead = sequence.wrapping_sub(next).cast_signed();
        match u64::try_from(ahead) {
            Ok(0) => self.emit(data, &mut emit)?,
            Ok(ahead) => {
                self.keep(self.base + ahead, data);
                return self.skip_gap_if_full(emit);
            }
            // A retransmission, which may end with new bytes.
            Err(_) => {
                let old = usize::try_from(ahead.unsigned_abs()).unwrap_or(usize::MAX);
                let new = data.get(old..).unwrap_or_default();
                self.emit(new, &mut emit)?;
            }
        }
        self.emit_early(emit)
    }

    fn emit<E>(
        &mut self,
        data: &[u8],
        emit: &mut impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if data.is_empty() {
            return Ok(());
        }
        self.advance(u64::try_from(data.len()).unwrap_or(0));
        emit(Part::Bytes(data))
    }

    fn advance(&mut self, bytes: u64) {
        self.base = self.base.saturating_add(bytes);
        let [a, b, c, d, ..] = bytes.to_le_bytes();
        let step = u32::from_le_bytes([a, b, c, d]);
        self.next = self.next.map(|next| next.wrapping_add(step));
    }

    fn keep(&mut self, at: u64, data: &[u8]) {
        let known = self.early.get(&at).map_or(0, Vec::len);
        if data.len() > known {
            self.kept += data.len() - known;
            self.early.insert(at, data.to_vec());
        }
    }

    /// Passes on early segments that are now in order.
    fn emit_early<E>(&mut self, mut emit: impl FnMut(Part<'_>) -> Result<(), E>) -> Result<(), E> {
        while let Some(entry) = self.early.first_entry()
            && *entry.key() <= self.base
        {
            let (at, data) = entry.remove_entry();
            self.kept -= data.len();
            let old = usize::try_from(self.base - at).unwrap_or(usize::MAX);
            self.emit(data.get(old..).unwrap_or_default(), &mut emit)?;
        }
        Ok(())
    }

    /// Gives up on missing bytes once the limit of early bytes is reached.
    fn skip_gap_if_full<E>(
        &mut self,
        emit: impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.kept <= MAX_EARLY {
            return Ok(());
        }
        self.skip_gap(emit)
    }

    fn skip_gap<E>(&mut self, mut emit: impl FnMut(Part<'_>) -> Result<(), E>) -> Result<(), E> {
        if let Some((&at, _)) = self.early.first_key_value() {
            let missing = at.saturating_sub(self.base);
            self.advance(missing);
            emit(Part::Missing(missing))?;
        }
        self.emit_early(emit)
    }

    /// Ends the capture. Passes on what follows the missing bytes.
    pub(super) fn end<E>(
        &mut self,
        mut emit: impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !self.early.is_empty() {
            self.skip_gap(&mut emit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reassembled text, with a question mark for each missing byte.
    fn ordered(segments: &[(u32, &[u8])]) -> String {
        let mut reassembly = Reassembly::default();
        let mut text = String::new();
        let mut emit = |part: Part<'_>| {
            match part {
                Part::Bytes(bytes) => text.push_str(str::from_utf8(bytes).unwrap()),
                Part::Missing(bytes) => (0..bytes).for_each(|_| text.push('?')),
            }
            Ok::<_, ()>(())
        };
        reassembly.take(u32::MAX - 2, true, &[], &mut emit).unwrap();
        for (sequence, data) in segments {
            let sequence = sequence.wrapping_sub(2);
            reassembly.take(sequence, false, data, &mut emit).unwrap();
        }
        reassembly.end(&mut emit).unwrap();
        text
    }

    #[test]
    fn segments_captured_in_any_order_come_in_order() {
        assert_eq!(ordered(&[(0, b"abc"), (3, b"def")]), "abcdef");
        assert_eq!(ordered(&[(3, b"def"), (0, b"abc")]), "abcdef");
        assert_eq!(ordered(&[(4, b"ef"), (2, b"cd"), (0, b"ab")]), "abcdef");
    }

    #[test]
    fn retransmitted_data_is_returned_once() {
        assert_eq!(ordered(&[(0, b"abc"), (0, b"abc"), (1, b"bcde")]), "abcde");
        assert_eq!(ordered(&[(2, b"c"), (2, b"cde"), (0, b"abcd")]), "abcde");
        assert_eq!(ordered(&[(0, b"abc"), (0, b""), (3, b"d")]), "abcd");
    }

    #[test]
    fn missing_bytes_are_reported() {
        assert_eq!(ordered(&[(0, b"ab"), (5, b"fg"), (9, b"j")]), "ab???fg??j");
    }

    #[test]
    fn the_stored_data_has_a_limit() {
        let mut reassembly = Reassembly::default();
        let mut missing = 0;
        let mut came = 0;
        let data = vec![0; 1 << 20];
        reassembly.take(0, true, &[], |_| Ok::<_, ()>(())).unwrap();
        for index in 0..32u32 {
            let given = reassembly.take(101 + (index << 20), false, &data, |part| {
                match part {
                    Part::Bytes(bytes) => came += bytes.len(),
                    Part::Missing(bytes) => missing += bytes,
                }
                Ok::<_, ()>(())
            });
            given.unwrap();
            assert!(reassembly.kept <= MAX_EARLY);
        }
        assert_eq!((missing, came), (100, 32 << 20));
    }
}
