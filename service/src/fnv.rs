//! FNV-1a, a hash that is the same in every version of a program.
//!
//! The hashes of the standard library may change from version to version, and a program may leave a
//! hash to its successor. It is not for input that an adversary chooses.

/// The 64-bit hash of `bytes` (draft-eastlake-fnv, offset basis and prime of 64 bits).
#[must_use]
pub fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The hash folded to 32 bits, to tell a damaged record from a whole one. It is never 0, which
/// stands for a record without a checksum.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    let hash = fnv_1a(bytes);
    let folded = (hash >> 32) ^ (hash & u64::from(u32::MAX));
    u32::try_from(folded).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_published_one() {
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
