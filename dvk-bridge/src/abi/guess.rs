//! Finds out by which layouts bytes can be read.

use super::endpoint::NodeId;
use super::generation::Generation;
use super::header::{Header, HeaderError};

/// Bytes from a header's first to the last that [`Header::check`] looks at, batches aside; the same in every generation.
const EXAMINED: usize = 32;

impl Generation {
    /// The generations by which `bytes`, from node `peer` to node `here`, begin with something that can be a header and
    /// are followed by another that can.
    pub fn guess(bytes: &[u8], peer: NodeId, here: NodeId) -> Vec<Self> {
        // Much that is no header passes for a sign of life, so those are examined as all others here.
        let can_be = |bytes: &[u8], generation| {
            let header = Header::decode(bytes, generation)?;
            header.check(generation, peer, here)?;
            header.check_addresses(peer, here)?;
            Ok::<_, HeaderError>(header)
        };
        let fits = |generation: &Self| {
            let Ok(first) = can_be(bytes, *generation) else {
                return false;
            };
            let behind = generation.header_size() + first.payload(*generation).unwrap_or(0);
            match bytes.get(behind..) {
                Some(rest) if rest.len() >= EXAMINED => {
                    let mut second = rest.to_vec();
                    second.resize(generation.header_size().max(rest.len()), 0);
                    can_be(&second, *generation).is_ok()
                }
                _ => true,
            }
        };
        Self::ALL.into_iter().filter(fits).collect()
    }
}
