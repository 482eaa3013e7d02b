//! Payloads as bytes (vhost-user, "Message payload"). Numbers are in the host's byte order.

use vm_memory::ByteValued;

use super::{MemoryRegion, MemoryTableHead, VringState};

/// SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR: the bits that tell the ring's number.
pub const VRING_INDEX_MASK: u64 = 0xff;

/// SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, and the reply to SET_DEVICE_STATE_FD: no
/// descriptor comes with the message.
pub const NO_DESCRIPTOR: u64 = 1 << 8;

/// Rings of a device at most: [`VRING_INDEX_MASK`] has 8 bits.
pub const MAX_RINGS: usize = 256;

/// The bytes of a payload structure.
pub fn encode<T: ByteValued>(payload: &T) -> Vec<u8> {
    payload.as_slice().to_vec()
}

/// The structure, if `bytes` has exactly its length.
#[must_use]
pub fn decode<T: ByteValued>(bytes: &[u8]) -> Option<T> {
    let mut payload = T::zeroed();
    let place = payload.as_mut_slice();
    (place.len() == bytes.len()).then(|| place.copy_from_slice(bytes))?;
    Some(payload)
}

/// A payload of one number.
#[must_use]
pub fn from_u64(number: u64) -> Vec<u8> {
    number.to_ne_bytes().to_vec()
}

/// The number, if the payload is one of 8 bytes.
#[must_use]
pub fn to_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

/// SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE: a ring's number and a value.
#[must_use]
pub fn ring_state(ring: u32, value: u32) -> Vec<u8> {
    encode(&VringState::new(ring, value))
}

/// SET_MEM_TABLE: the count of regions, padding, the regions. A descriptor goes with each region.
#[must_use]
pub fn memory_table(regions: &[MemoryRegion]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    let mut bytes = encode(&MemoryTableHead::new(count));
    for region in regions {
        bytes.extend_from_slice(region.as_slice());
    }
    bytes
}
