//! The only callers of libc and raw system calls: typed in, typed out.

pub mod buffers;
pub mod guest_memory;
pub mod interrupt;
