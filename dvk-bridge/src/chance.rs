//! Numbers to begin with that differ from one start to the next.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A number that nobody can expect.
pub(crate) fn anything() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
