//! The only callers of libc and raw system calls: typed in, typed out.

pub mod buffers;
pub mod file_handle;
pub mod guest_memory;
pub mod interrupt;
pub mod process;
pub mod signal;
