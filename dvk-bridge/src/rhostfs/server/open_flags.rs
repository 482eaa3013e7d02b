//! Flags of open(2) on i386 (arch/x86 takes include/uapi/asm-generic/fcntl.h).

/// Access mode (`O_ACCMODE`).
pub(super) const ACCESS: u32 = 3;
pub(super) const WRITE_ONLY: u32 = 1;
pub(super) const READ_WRITE: u32 = 2;
pub(super) const CREATE: u32 = 0x40;
pub(super) const EXCLUSIVE: u32 = 0x80;
pub(super) const TRUNCATE: u32 = 0x200;
pub(super) const APPEND: u32 = 0x400;
pub(super) const DIRECTORY: u32 = 0x1_0000;
