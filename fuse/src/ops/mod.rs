//! One file per family of operations: what the operations are, their structures, their flags.

pub mod attr;
pub mod bmap;
pub mod cuse;
pub mod dax;
pub mod dir;
pub mod fs;
pub mod init;
pub mod io;
pub mod ioctl;
pub mod lock;
pub mod lookup;
pub mod notify;
pub mod open;
pub mod poll;
pub mod tree;
pub mod xattr;
