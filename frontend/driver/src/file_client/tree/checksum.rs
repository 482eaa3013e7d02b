//! Checksums of file data, block by block.

use twox_hash::XxHash3_128;

use crate::Data;

/// Bytes of one block: a resumed copy begins at a multiple of them.
pub(super) const BLOCK: u64 = 4 << 20;

/// Checksums of a file's blocks (XXH3, 128 bits: they find what was lost, and not what somebody
/// forged). Holes count as zeros.
pub(super) struct Checksums {
    blocks: Vec<u128>,
    current: XxHash3_128Hasher,
    position: u64,
    zeros: Option<u128>,
}

type XxHash3_128Hasher = twox_hash::xxhash3_128::Hasher;

impl Checksums {
    pub(super) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            current: XxHash3_128Hasher::new(),
            position: 0,
            zeros: None,
        }
    }

    /// Continues behind `bytes` bytes that are known already: a multiple of [`BLOCK`].
    pub(super) fn cut(&mut self, bytes: u64) {
        let blocks = usize::try_from(bytes / BLOCK).unwrap_or(usize::MAX);
        self.blocks.truncate(blocks);
        self.current = XxHash3_128Hasher::new();
        self.position = bytes;
    }

    /// Takes a piece at `offset`, behind the pieces before.
    pub(super) fn push(&mut self, offset: u64, data: &Data) {
        self.skip_to(offset);
        self.add(&data.to_vec());
    }

    /// The checksums of a file of `len` bytes.
    pub(super) fn finish(&mut self, len: u64) {
        self.skip_to(len);
        if !self.position.is_multiple_of(BLOCK) {
            let last = self.current.finish_128();
            self.blocks.push(last);
        }
    }

    /// Bytes at the beginning that are the same in both: a multiple of [`BLOCK`].
    pub(super) fn common(&self, other: &Self) -> u64 {
        let pairs = self.blocks.iter().zip(&other.blocks);
        let same = pairs.take_while(|(one, other)| one == other).count() as u64;
        let whole = self.position.min(other.position) / BLOCK;
        same.min(whole) * BLOCK
    }

    /// Whether both are of the same data.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.position == other.position && self.blocks == other.blocks
    }

    fn skip_to(&mut self, offset: u64) {
        static ZEROS: [u8; 65_536] = [0; 65_536];
        while self.position < offset {
            let left = offset - self.position;
            if left >= BLOCK && self.position.is_multiple_of(BLOCK) {
                let zeros = *self.zeros.get_or_insert_with(zero_block);
                self.blocks.push(zeros);
                self.position += BLOCK;
                continue;
            }
            let room = usize::try_from(left).unwrap_or(usize::MAX);
            self.add(&ZEROS[..room.min(ZEROS.len())]);
        }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK - self.position % BLOCK;
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.current.write(now);
            self.position += now.len() as u64;
            if self.position.is_multiple_of(BLOCK) {
                self.blocks.push(self.current.finish_128());
                self.current = XxHash3_128Hasher::new();
            }
            bytes = rest;
        }
    }
}

fn zero_block() -> u128 {
    XxHash3_128::oneshot(&vec![0; usize::try_from(BLOCK).unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[(u64, &[u8])], len: u64) -> Checksums {
        let mut sums = Checksums::new();
        for (offset, bytes) in parts {
            sums.skip_to(*offset);
            sums.add(bytes);
        }
        sums.finish(len);
        sums
    }

    #[test]
    fn holes_are_zeros() {
        let zeros = vec![0; 9 << 20];
        let with_hole = of(&[(0, b"begin"), (9 << 20, b"end")], 20 << 20);
        let mut written = zeros.clone();
        written[..5].copy_from_slice(b"begin");
        let without = of(&[(0, &written), (9 << 20, b"end")], 20 << 20);
        assert!(with_hole.is_same(&without));
        assert!(!with_hole.is_same(&of(&[(0, b"begin"), (9 << 20, b"enD")], 20 << 20)));
        assert!(!with_hole.is_same(&of(&[(0, b"begin"), (9 << 20, b"end")], (20 << 20) + 1)));
    }

    #[test]
    fn common_part_ends_before_the_first_block_that_differs() {
        let whole = vec![7; 10 << 20];
        let mut other = whole.clone();
        other[5 << 20] = 8;
        assert_eq!(
            of(&[(0, &whole)], 10 << 20).common(&of(&[(0, &other)], 10 << 20)),
            BLOCK
        );
        let short = of(&[(0, &whole[..(9 << 20)])], 9 << 20);
        assert_eq!(of(&[(0, &whole)], 10 << 20).common(&short), 2 * BLOCK);
    }

    #[test]
    fn checksums_continue_behind_a_common_part() {
        let whole = vec![7; 10 << 20];
        let mut continued = of(&[(0, &whole[..(9 << 20)])], 9 << 20);
        continued.cut(2 * BLOCK);
        continued.add(&whole[(8 << 20)..]);
        continued.finish(10 << 20);
        assert!(continued.is_same(&of(&[(0, &whole)], 10 << 20)));
    }
}
