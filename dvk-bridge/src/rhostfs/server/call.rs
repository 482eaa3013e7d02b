//! Decodes a request's message as a call with its arguments.
//!
//! Call numbers are those of Linux on SuperH, with which both ends of rhostfs were compiled, and of
//! i386 where they differ. Fields that a call does not use are uninitialised in the message and are
//! not read.

use crate::abi::rhostfs::WHOLE_SIZES;
use crate::abi::{M1, M2, M7, Message};

/// The call that a client sends when it mounts.
const ROOT_PATH: i32 = 0x1004;

/// A path name in the client's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Name {
    /// Length in bytes with the NUL, not checked.
    pub(super) len: i32,
    pub(super) address: u32,
}

/// A file by name or by handle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum File {
    Name(Name),
    Handle(i32),
}

/// The part of a size that a client reads and sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sizes {
    /// 32 bits, as the original client.
    Half,
    /// 64 bits, as our client.
    Whole,
}

/// A call with its arguments as sent. Addresses are the client's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Call {
    Open {
        name: Name,
        flags: u32,
        mode: u32,
    },
    Close {
        handle: i32,
    },
    Dup2 {
        old: i32,
        new: i32,
    },
    Stat {
        file: File,
        buffer: u32,
        sizes: Sizes,
    },
    Access {
        name: Name,
        mask: u32,
    },
    Chmod {
        file: File,
        mode: u32,
    },
    Chown {
        file: File,
        uid: i32,
        gid: i32,
    },
    Truncate {
        file: File,
        length: u64,
    },
    Utimes {
        file: File,
        times: u32,
    },
    Statfs {
        name: Name,
        buffer: u32,
    },
    Sync {
        handle: i32,
        data_only: bool,
    },
    Pread {
        handle: i32,
        count: i32,
        position: u64,
        buffer: u32,
    },
    Pwrite {
        handle: i32,
        count: i32,
        position: u64,
        buffer: u32,
    },
    Link {
        old: Name,
        new: Name,
    },
    Unlink {
        name: Name,
    },
    Mknod {
        name: Name,
        mode: u32,
        device: u32,
    },
    Mkdir {
        name: Name,
        mode: u32,
    },
    Rmdir {
        name: Name,
    },
    Symlink {
        target: Name,
        link: Name,
    },
    Readlink {
        name: Name,
        size: i32,
        buffer: u32,
    },
    Rename {
        old: Name,
        new: Name,
        flags: u32,
    },
    Opendir {
        name: Name,
    },
    Seekdir {
        dir_handle: u32,
        cookie: i32,
    },
    Readdir {
        dir_handle: u32,
        buffer: u32,
    },
    Closedir {
        dir_handle: u32,
    },
    RootPath {
        buffer: u32,
    },
}

/// Why a message is not a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DecodeError {
    /// The number is zero: the request was interrupted after its answer had arrived, and was sent
    /// again with the answer in it.
    Again,
    /// The number is negative, which no call's is.
    Negative,
    /// The call is unknown, or cannot be served.
    Unknown,
}

impl Call {
    /// Decodes a request.
    pub(super) fn decode(message: &Message) -> Result<Self, DecodeError> {
        let M1 {
            i1, i2, i3, p1, p2, ..
        } = message.arm();
        let m2: M2 = message.arm();
        let (first, second) = (i2.cast_unsigned(), i3.cast_unsigned());
        let name = Name {
            len: i1,
            address: p1,
        };
        let second_name = Name {
            len: i2,
            address: p2,
        };
        let by_name = File::Name(name);
        let by_handle = File::Handle(i1);
        let sizes = if i2 == WHOLE_SIZES {
            Sizes::Whole
        } else {
            Sizes::Half
        };
        let upper = match sizes {
            Sizes::Whole => m2.l2.cast_unsigned(),
            Sizes::Half => 0,
        };
        let length = u64::from(upper) << 32 | u64::from(m2.l1.cast_unsigned());
        Ok(match message.kind {
            0 => return Err(DecodeError::Again),
            ..0 => return Err(DecodeError::Negative),
            5 => Self::Open {
                name,
                flags: first,
                mode: second,
            },
            6 => Self::Close { handle: i1 },
            9 => Self::Link {
                old: name,
                new: second_name,
            },
            10 => Self::Unlink { name },
            14 => Self::Mknod {
                name,
                mode: first,
                device: second,
            },
            15 => Self::Chmod {
                file: by_name,
                mode: first,
            },
            33 => Self::Access { name, mask: first },
            38 => Self::Rename {
                old: name,
                new: second_name,
                flags: 0,
            },
            39 => Self::Mkdir { name, mode: first },
            40 => Self::Rmdir { name },
            63 => Self::Dup2 { old: i1, new: i2 },
            83 => Self::Symlink {
                target: name,
                link: second_name,
            },
            85 => Self::Readlink {
                name,
                size: i2,
                buffer: p2,
            },
            92 => {
                // In this call the name is where M2 has it.
                let name = Name {
                    len: m2.i1,
                    address: m2.p1,
                };
                Self::Truncate {
                    file: File::Name(name),
                    length,
                }
            }
            93 => Self::Truncate {
                file: File::Handle(m2.i1),
                length,
            },
            94 => Self::Chmod {
                file: by_handle,
                mode: first,
            },
            95 => Self::Chown {
                file: by_handle,
                uid: i2,
                gid: i3,
            },
            107 | 196 => Self::Stat {
                file: by_name,
                buffer: p2,
                sizes,
            },
            108 | 197 => Self::Stat {
                file: by_handle,
                buffer: p1,
                sizes,
            },
            118 => Self::Sync {
                handle: i1,
                data_only: false,
            },
            148 => Self::Sync {
                handle: i1,
                data_only: true,
            },
            180 => {
                let (handle, count, position, buffer) = transfer(&m2);
                Self::Pread {
                    handle,
                    count,
                    position,
                    buffer,
                }
            }
            181 => {
                let (handle, count, position, buffer) = transfer(&m2);
                Self::Pwrite {
                    handle,
                    count,
                    position,
                    buffer,
                }
            }
            182 => Self::Chown {
                file: by_name,
                uid: i2,
                gid: i3,
            },
            268 => Self::Statfs { name, buffer: p2 },
            271 => Self::Utimes {
                file: by_name,
                times: p2,
            },
            299 => Self::Utimes {
                file: by_handle,
                times: p1,
            },
            353 | 371 => {
                let m7: M7 = message.arm();
                Self::Rename {
                    old: Name {
                        len: m7.i1,
                        address: m7.p1,
                    },
                    new: Name {
                        len: m7.i2,
                        address: m7.p2,
                    },
                    flags: m7.i4.cast_unsigned(),
                }
            }
            0x1000 => Self::Opendir { name },
            0x1001 => Self::Seekdir {
                dir_handle: m2.p1,
                cookie: m2.l1,
            },
            0x1002 => Self::Readdir {
                dir_handle: p1,
                buffer: p2,
            },
            0x1003 => Self::Closedir { dir_handle: p1 },
            ROOT_PATH => Self::RootPath { buffer: p1 },
            _ => return Err(DecodeError::Unknown),
        })
    }

    /// Whether a client sends this request when it mounts.
    pub(super) const fn begins(message: &Message) -> bool {
        message.kind == ROOT_PATH
    }

    /// Whether the call can change the share. A read-only server refuses it then.
    pub(super) const fn changes(&self) -> bool {
        match self {
            Self::Chmod { .. }
            | Self::Chown { .. }
            | Self::Truncate { .. }
            | Self::Utimes { .. }
            | Self::Pwrite { .. }
            | Self::Link { .. }
            | Self::Unlink { .. }
            | Self::Mknod { .. }
            | Self::Mkdir { .. }
            | Self::Rmdir { .. }
            | Self::Symlink { .. }
            | Self::Rename { .. } => true,
            // Depends on the flags of the open.
            Self::Open { .. }
            | Self::Close { .. }
            | Self::Dup2 { .. }
            | Self::Stat { .. }
            | Self::Access { .. }
            | Self::Statfs { .. }
            | Self::Sync { .. }
            | Self::Pread { .. }
            | Self::Readlink { .. }
            | Self::Opendir { .. }
            | Self::Seekdir { .. }
            | Self::Readdir { .. }
            | Self::Closedir { .. }
            | Self::RootPath { .. } => false,
        }
    }
}

/// Handle, count, position and buffer of pread and pwrite.
fn transfer(m2: &M2) -> (i32, i32, u64, u32) {
    let low = u64::from(m2.l1.cast_unsigned());
    let high = u64::from(m2.l2.cast_unsigned());
    (m2.i1, m2.i2, high << 32 | low, m2.p1)
}

#[cfg(test)]
mod tests;
