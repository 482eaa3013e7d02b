//! The programs on emulated aarch64 machines, the architecture of the Bao boards.

mod initramfs;
mod programs;
