//! Addresses for what is lent.

#[cfg(target_pointer_width = "32")]
pub(super) use pointer::handle;
#[cfg(not(target_pointer_width = "32"))]
pub(super) use ring::handle;

/// Where addresses have 32 bits, and the kernel's DVK copies by them.
#[cfg(target_pointer_width = "32")]
mod pointer {
    /// The address of what begins at `first`. It is for the kernel, which will read and write there.
    pub(in crate::endpoint) fn handle(first: *const u8, _: usize) -> u32 {
        // A pointer of this machine is no wider.
        u32::try_from(first.expose_provenance()).unwrap_or(u32::MAX)
    }
}

/// Where they have more: labels, each given out again only after all others were.
#[cfg(not(target_pointer_width = "32"))]
mod ring {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// First label.
    const FIRST: u64 = 0x1000_0000;
    /// Labels there are: all others but the last page, so that no address in a loan overflows.
    pub(super) const ROOM: u64 = 0xffff_f000 - FIRST;
    /// What labels are a multiple of, and what lies unused between two loans at least.
    pub(super) const PAGE: u64 = 4096;

    /// How much of the room is given out. It is the process's, as true addresses are.
    static USED: AtomicU64 = AtomicU64::new(0);

    /// A label for `bytes` bytes, wherever they are: behind all that was given out, or at the beginning again if there is no room left. What is
    /// larger than all the room cannot be addressed, and copies of it fail.
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
                Ok(_) => return u32::try_from(FIRST + start).unwrap_or(u32::MAX),
                Err(now) => used = now,
            }
        }
    }

    /// Of the room, what a loan of so many bytes takes.
    pub(super) fn size(bytes: usize) -> Option<u64> {
        let bytes = u64::try_from(bytes).ok()?;
        let size = bytes.checked_next_multiple_of(PAGE)?.checked_add(PAGE)?;
        (size <= ROOM).then_some(size)
    }

    /// Where it is put when so much is given out.
    pub(super) fn start(used: u64, size: u64) -> u64 {
        if used + size > ROOM { 0 } else { used }
    }
}

#[cfg(all(test, not(target_pointer_width = "32")))]
mod tests {
    use super::ring::{PAGE, ROOM, size, start};

    #[test]
    fn room_that_is_used_up_is_used_again_from_its_beginning() {
        assert_eq!(start(ROOM - 2 * PAGE, 2 * PAGE), ROOM - 2 * PAGE);
        assert_eq!(start(ROOM - PAGE, 2 * PAGE), 0);
    }

    #[test]
    fn a_loan_takes_its_pages_and_one_more() {
        assert_eq!(size(0), Some(PAGE));
        assert_eq!(size(4097), Some(3 * PAGE));
        assert_eq!(size(usize::MAX), None);
    }
}
