//! A hash that stays the same in every version of this program, as the standard library's need not: FNV-1a, 64 bits.

/// The hash of `bytes`. Not for what somebody may want to collide.
pub(crate) fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The hash in 32 bits for a record that is to be told from a damaged one; never 0, which stands
/// for a record without one.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
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
