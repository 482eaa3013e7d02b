//! The 32-bit handles by which partners address shared buffers.

#[cfg(target_pointer_width = "32")]
pub(super) use pointer::handle;
#[cfg(not(target_pointer_width = "32"))]
pub(super) use ring::handle;

/// 32-bit machines: the handle is the buffer's address, because the kernel's DVK copies by address.
#[cfg(target_pointer_width = "32")]
mod pointer {
    /// The address `first`. The kernel reads and writes there.
    pub(in crate::endpoint) fn handle(first: *const u8, _: usize) -> u32 {
        // A pointer of this machine has 32 bits.
        u32::try_from(first.expose_provenance()).unwrap_or(u32::MAX)
    }
}

/// Other machines: handles from a ring, each used again only after all others.
#[cfg(not(target_pointer_width = "32"))]
mod ring {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The first handle.
    const FIRST_ADDRESS: u64 = 0x1000_0000;
    /// The number of handles: all but those of the last page, so that no address in a buffer
    /// overflows.
    pub(super) const ADDRESS_SPACE: u64 = 0xffff_f000 - FIRST_ADDRESS;
    /// The alignment of handles, and the minimum gap between two buffers.
    pub(super) const PAGE_SIZE: u64 = 4096;

    /// The handles that are used in this round of the ring. All threads of the process share the
    /// ring, as they would share addresses.
    static USED: AtomicU64 = AtomicU64::new(0);

    /// A handle for `bytes` bytes: behind the last one, or at the start of the ring if there is no
    /// room left. A buffer larger than the ring cannot be addressed, and copies of it fail.
    pub(in crate::endpoint) fn handle(_: *const u8, bytes: usize) -> u32 {
        let Some(size) = size(bytes) else {
            return u32::MAX;
        };
        let mut used = USED.load(Ordering::Relaxed);
        loop {
            let start = start(used, size);
            match USED.compare_exchange_weak(
                used,
                start + size,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return u32::try_from(FIRST_ADDRESS + start).unwrap_or(u32::MAX),
                Err(now) => used = now,
            }
        }
    }

    /// The handles that a buffer of `bytes` bytes occupies.
    pub(super) fn size(bytes: usize) -> Option<u64> {
        let bytes = u64::try_from(bytes).ok()?;
        let size = bytes
            .checked_next_multiple_of(PAGE_SIZE)?
            .checked_add(PAGE_SIZE)?;
        (size <= ADDRESS_SPACE).then_some(size)
    }

    /// The position of a buffer that occupies `size` handles when `used` are taken.
    pub(super) fn start(used: u64, size: u64) -> u64 {
        if used + size > ADDRESS_SPACE { 0 } else { used }
    }
}

#[cfg(all(test, not(target_pointer_width = "32")))]
mod tests {
    use super::ring::{ADDRESS_SPACE, PAGE_SIZE, size, start};

    #[test]
    fn addresses_are_reused_from_the_start() {
        assert_eq!(
            start(ADDRESS_SPACE - 2 * PAGE_SIZE, 2 * PAGE_SIZE),
            ADDRESS_SPACE - 2 * PAGE_SIZE
        );
        assert_eq!(start(ADDRESS_SPACE - PAGE_SIZE, 2 * PAGE_SIZE), 0);
    }

    #[test]
    fn a_buffer_takes_its_pages_and_a_guard_page() {
        assert_eq!(size(0), Some(PAGE_SIZE));
        assert_eq!(size(4097), Some(3 * PAGE_SIZE));
        assert_eq!(size(usize::MAX), None);
    }
}
