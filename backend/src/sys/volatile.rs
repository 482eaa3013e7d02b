//! Copies between guest memory and memory of this process.
//!
//! The guest changes its memory at any time, so an ordinary copy would be a data race, and the
//! compiler may read the source of an ordinary copy twice. Volatile accesses happen exactly once
//! each.
#![allow(unsafe_code)] // accesses guest memory by raw addresses

use vm_memory::volatile_memory::VolatileSlice;

/// Bytes of the accesses that a copy consists of, except at the ends of the guest's range.
const WORD: usize = size_of::<u64>();

/// Copies `len` bytes out of guest memory.
///
/// # Safety
/// `source` must be mapped and readable for `len` bytes, and `target` writable. They must not
/// overlap, and nobody else may use `target` meanwhile.
#[inline]
pub unsafe fn copy_from_guest(source: *const u8, target: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        let from = source.wrapping_add(done);
        let to = target.wrapping_add(done);
        if len - done >= WORD && from.addr().is_multiple_of(WORD) {
            // SAFETY: `from` is aligned, and `WORD` bytes from it on are readable.
            let word = unsafe { from.cast::<u64>().read_volatile() };
            // SAFETY: `WORD` bytes from `to` on are writable.
            unsafe { to.cast::<u64>().write_unaligned(word) };
            done += WORD;
        } else {
            // SAFETY: the byte is readable.
            let byte = unsafe { from.read_volatile() };
            // SAFETY: the byte is writable.
            unsafe { to.write(byte) };
            done += 1;
        }
    }
}

/// Copies `len` bytes into guest memory.
///
/// # Safety
/// `source` must be readable for `len` bytes, and `target` mapped and writable. They must not
/// overlap, nobody may change `source` meanwhile, and no Rust reference may point into `target`.
#[inline]
pub unsafe fn copy_to_guest(source: *const u8, target: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        let from = source.wrapping_add(done);
        let to = target.wrapping_add(done);
        if len - done >= WORD && to.addr().is_multiple_of(WORD) {
            // SAFETY: `WORD` bytes from `from` on are readable.
            let word = unsafe { from.cast::<u64>().read_unaligned() };
            // SAFETY: `to` is aligned, and `WORD` bytes from it on are writable.
            unsafe { to.cast::<u64>().write_volatile(word) };
            done += WORD;
        } else {
            // SAFETY: the byte is readable.
            let byte = unsafe { from.read() };
            // SAFETY: the byte is writable.
            unsafe { to.write_volatile(byte) };
            done += 1;
        }
    }
}

/// Copies as many bytes out of `slice` as both sides have, and returns their number.
pub fn read_slice(slice: &VolatileSlice<'_>, bytes: &mut [u8]) -> usize {
    let len = slice.len().min(bytes.len());
    let source = slice.ptr_guard();
    // SAFETY: the slice is mapped while it is borrowed and has `len` bytes; `bytes` has them too,
    // and as a Rust buffer does not overlap guest memory.
    unsafe { copy_from_guest(source.as_ptr(), bytes.as_mut_ptr(), len) };
    len
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;

    #[test]
    fn ranges_of_any_alignment_and_length_are_copied_both_ways() {
        let content: Vec<u8> = (0..64).collect();
        for start in 0..WORD {
            for len in 0..40 {
                let expected = &content[start..start + len];
                let mut out = vec![0xee; len];
                let source = content[start..].as_ptr();
                // SAFETY: both have `len` bytes, in allocations of their own.
                unsafe { copy_from_guest(source, out.as_mut_ptr(), len) };
                assert_eq!(out, expected);

                let mut guest = [0xee; 64];
                let target = guest[start..].as_mut_ptr();
                // SAFETY: as above.
                unsafe { copy_to_guest(out.as_ptr(), target, len) };
                assert_eq!(&guest[start..start + len], expected);
                assert!(guest[start + len..].iter().all(|byte| *byte == 0xee));
                assert!(guest[..start].iter().all(|byte| *byte == 0xee));
            }
        }
    }

    #[test]
    fn an_aligned_word_that_changes_meanwhile_is_read_whole() {
        let word = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    word.store(u64::MAX, Ordering::Relaxed);
                    word.store(0, Ordering::Relaxed);
                }
            });
            for _ in 0..100_000 {
                let mut copy = [0; WORD];
                // SAFETY: the word is mapped, and `copy` has as many bytes.
                unsafe { copy_from_guest(word.as_ptr().cast(), copy.as_mut_ptr(), WORD) };
                assert!(matches!(u64::from_ne_bytes(copy), 0 | u64::MAX));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
