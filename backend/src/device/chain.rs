//! From a descriptor chain to memory segments.

use std::sync::Arc;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::sys::buffers::Segments;

/// Why a chain cannot be served. A guest's driver that makes one is broken or hostile, so its ring is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MalformedChain {
    /// The chain goes on for ever, leaves its table, or its table cannot be read.
    #[error("it loops, leaves its table or lies outside guest memory")]
    Unterminated,
    /// A descriptor names memory that the guest does not have.
    #[error("a descriptor names {len} bytes at {address:#x}, outside guest memory")]
    OutsideMemory {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A device-readable descriptor follows a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
}

/// Translates the chain's descriptors into `readable` and `writable` segments of this process's memory.
///
/// # Errors
/// The chain is malformed; the segment lists then hold what came before the fault.
pub(super) fn translate(
    chain: DescriptorChain<Arc<GuestMemoryMmap>>,
    memory: &GuestMemoryMmap,
    readable: &mut Segments,
    writable: &mut Segments,
) -> Result<(), MalformedChain> {
    let mut ended = false;
    for descriptor in chain {
        ended = !descriptor.has_next();
        let side = if descriptor.is_write_only() {
            &mut *writable
        } else if writable.total() > 0 {
            return Err(MalformedChain::ReadableAfterWritable);
        } else {
            &mut *readable
        };
        append(memory, descriptor.addr(), descriptor.len(), side)?;
    }
    if ended {
        Ok(())
    } else {
        Err(MalformedChain::Unterminated)
    }
}

/// Appends `len` bytes at guest address `address`, which may span several memory regions.
fn append(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    len: u32,
    segments: &mut Segments,
) -> Result<(), MalformedChain> {
    let outside = MalformedChain::OutsideMemory {
        address: address.0,
        len,
    };
    let count = usize::try_from(len).map_err(|_| outside)?;
    for slice in memory.get_slices(address, count) {
        let slice = slice.map_err(|_| outside)?;
        if !segments.push(slice.ptr_guard_mut().as_ptr(), slice.len()) {
            return Err(outside);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::{Queue, QueueT};
    use vm_memory::Bytes;

    use super::*;

    #[allow(clippy::cast_possible_truncation)] // bindgen gives 16-bit flags as u32
    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    #[allow(clippy::cast_possible_truncation)]
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;

    /// Puts the descriptors into a ring of a guest with two adjacent regions of 64 KiB and translates the chain.
    fn translated(descriptors: &[(u64, u32, u16, u16)]) -> Result<(usize, usize), MalformedChain> {
        let regions = [(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).expect("memory"));
        for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
            let raw = RawDescriptor::from(Descriptor::new(*address, *len, *flags, *next));
            memory
                .write_obj(raw, GuestAddress(16 * index as u64))
                .expect("in memory");
        }
        let mut queue = Queue::new(16).expect("a power of two");
        queue
            .try_set_avail_ring_address(GuestAddress(0x1000))
            .expect("aligned");
        queue
            .try_set_used_ring_address(GuestAddress(0x2000))
            .expect("aligned");
        queue.set_ready(true);
        memory
            .write_obj(1u16, GuestAddress(0x1002))
            .expect("in memory");
        let chain = queue
            .pop_descriptor_chain(Arc::clone(&memory))
            .expect("one is available");
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        translate(chain, &memory, &mut readable, &mut writable)?;
        Ok((readable.total(), writable.total()))
    }

    #[test]
    fn a_chain_is_split_into_what_is_read_and_what_is_written() {
        let chain = [
            (0x3000, 40, NEXT, 1),
            (0x4000, 8, NEXT, 2),
            (0x5000, 16, NEXT | WRITE, 3),
            (0x6000, 4096, WRITE, 0),
        ];
        assert_eq!(translated(&chain), Ok((48, 4112)));
    }

    #[test]
    fn a_descriptor_may_span_two_regions() {
        assert_eq!(translated(&[(0xff00, 0x200, 0, 0)]), Ok((0x200, 0)));
    }

    #[test]
    fn a_looped_chain_is_refused() {
        let chain = [(0x3000, 40, NEXT, 1), (0x4000, 8, NEXT, 0)];
        assert_eq!(translated(&chain), Err(MalformedChain::Unterminated));
    }

    #[test]
    fn a_chain_that_leaves_its_table_is_refused() {
        assert_eq!(
            translated(&[(0x3000, 40, NEXT, 16)]),
            Err(MalformedChain::Unterminated)
        );
    }

    #[test]
    fn memory_the_guest_does_not_have_is_refused() {
        for (address, len) in [(0x1ffff, 2), (0x20000, 1), (u64::MAX, 2), (0, u32::MAX)] {
            let refused = translated(&[(address, len, WRITE, 0)]);
            assert_eq!(refused, Err(MalformedChain::OutsideMemory { address, len }));
        }
    }

    #[test]
    fn readable_after_writable_is_refused() {
        let chain = [(0x3000, 40, NEXT | WRITE, 1), (0x4000, 8, 0, 0)];
        assert_eq!(
            translated(&chain),
            Err(MalformedChain::ReadableAfterWritable)
        );
    }
}
