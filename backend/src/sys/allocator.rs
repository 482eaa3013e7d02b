//! The C library's memory allocator.
#![allow(unsafe_code, reason = "malloc_trim has no safe wrapper")]

/// Gives memory that was freed back to the kernel. Takes about a millisecond, so the caller calls
/// it after it has freed much.
///
/// glibc keeps freed memory for later (malloc_trim(3)). musl's allocator gives it back by itself.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches no memory in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
