//! Guesses the generation of a peer from its bytes.

use super::endpoint::NodeId;
use super::generation::Generation;
use super::header::{Header, HeaderError};

/// Bytes of a header that [`Header::check`] examines, batches aside. The same in every generation.
const EXAMINED_SIZE: usize = 32;

impl Generation {
    /// The generations in which `bytes`, from node `peer` to node `here`, start with a valid header
    /// and continue with another.
    pub fn guess(bytes: &[u8], peer: NodeId, here: NodeId) -> Vec<Self> {
        // Many invalid headers pass for a hello, so hellos are checked like other commands here.
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
                Some(rest) if rest.len() >= EXAMINED_SIZE => {
                    let mut second = rest.to_vec();
                    second.resize(generation.header_size().max(rest.len()), 0);
                    can_be(&second, *generation).is_ok()
                }
                _ => true,
            }
        };
        Self::ALL.into_iter().filter(fits).collect()
    }

    /// Whether `bytes`, from node `peer` to node `here`, are whole commands in this generation.
    pub fn ends_at_a_command(self, mut bytes: &[u8], peer: NodeId, here: NodeId) -> bool {
        while !bytes.is_empty() {
            let Some((head, behind)) = bytes.split_at_checked(self.header_size()) else {
                return false;
            };
            let length = Header::decode(head, self).and_then(|header| {
                header.check(self, peer, here)?;
                header.check_addresses(peer, here)?;
                header.payload(self)
            });
            let Some(rest) = length.ok().and_then(|length| behind.get(length..)) else {
                return false;
            };
            bytes = rest;
        }
        true
    }
}
