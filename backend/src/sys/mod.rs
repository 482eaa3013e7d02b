//! The only callers of libc and raw system calls: typed in, typed out.

pub mod allocator;
pub mod buffers;
pub mod clock;
pub mod dirty_bitmap;
pub mod fanotify;
pub mod file;
pub mod file_content;
pub mod file_handle;
pub mod file_ioctl;
pub mod file_lock;
pub mod guest_memory;
pub mod ids;
pub mod interrupt;
pub mod mount;
pub mod mountinfo;
pub mod namespace_ops;
pub mod process;
pub mod quota;
pub mod setattr;
pub mod shared_memory;
pub mod thread;
pub mod volatile;
pub mod xattr;
