//! The device's configuration space (virtio 1.2, 5.11.4).

use zerocopy::{Immutable, IntoBytes};

use super::options::Options;

/// `struct virtio_fs_config`.
#[repr(C)]
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
pub(super) struct ConfigSpace {
    /// The name to mount by, padded with NULs; a tag of 36 bytes has no NUL.
    tag: [u8; Options::MAX_TAG_LEN],
    /// Number of request queues, little-endian; the high-priority queue does not count.
    num_request_queues: [u8; 4],
    /// Bytes of a notification buffer: 0, because the device offers no notification queue.
    notify_buf_size: [u8; 4],
}

const _: () = assert!(size_of::<ConfigSpace>() == 44);

impl ConfigSpace {
    /// Cuts `tag` after [`Options::MAX_TAG_LEN`] bytes; the command line refuses longer ones.
    pub(super) fn new(tag: &str, num_request_queues: u32) -> Self {
        let mut padded = [0; Options::MAX_TAG_LEN];
        for (slot, byte) in padded.iter_mut().zip(tag.bytes()) {
            *slot = byte;
        }
        Self {
            tag: padded,
            num_request_queues: num_request_queues.to_le_bytes(),
            notify_buf_size: [0; 4],
        }
    }

    /// Returns `size` bytes from `offset` on, with zeroes past the end.
    ///
    /// The reply to GET_CONFIG has exactly the requested size, and User Mode Linux requests every
    /// size from 1 to 40.
    pub(super) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(0);
        let mut bytes: Vec<u8> = self
            .as_bytes()
            .iter()
            .skip(from)
            .take(size)
            .copied()
            .collect();
        bytes.resize(size, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_and_queue_count_are_at_the_specified_offsets() {
        let config = ConfigSpace::new("myfs", 2);
        assert_eq!(config.read(0, 5), b"myfs\0");
        assert_eq!(config.read(36, 4), [2, 0, 0, 0]);
        assert_eq!(config.read(0, 40).len(), 40);
    }

    #[test]
    fn a_read_past_the_end_is_filled_up_with_zeroes() {
        let config = ConfigSpace::new(&"x".repeat(36), 1);
        assert_eq!(config.read(35, 2), [b'x', 1]);
        assert_eq!(config.read(43, 3), [0; 3]);
        assert_eq!(config.read(u32::MAX, 2), [0; 2]);
    }
}
