//! What a request asks for, by number.

use core::fmt;

macro_rules! opcodes {
    ($( $(#[$meta:meta])* $variant:ident = $number:literal, $name:literal; )*) => {
        /// What a request asks for (`enum fuse_opcode`). The variants are the kernel's names
        /// without `FUSE_`.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Opcode {
            $( $(#[$meta])* $variant = $number, )*
        }

        impl Opcode {
            /// Every opcode, in ascending order.
            pub const ALL: &'static [Opcode] = &[ $( Opcode::$variant, )* ];

            /// The kernel's name without `FUSE_`, for messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Opcode::$variant => $name, )* }
            }
        }

        impl TryFrom<u32> for Opcode {
            type Error = UnknownOpcode;

            fn try_from(number: u32) -> Result<Self, UnknownOpcode> {
                match number {
                    $( $number => Ok(Opcode::$variant), )*
                    _ => Err(UnknownOpcode(number)),
                }
            }
        }
    };
}

opcodes! {
    /// Finds a name in a directory.
    Lookup = 1, "LOOKUP";
    /// Gives back references to a node. No reply.
    Forget = 2, "FORGET";
    /// Reads attributes.
    Getattr = 3, "GETATTR";
    /// Changes attributes.
    Setattr = 4, "SETATTR";
    /// Reads a symbolic link's target.
    Readlink = 5, "READLINK";
    /// Makes a symbolic link.
    Symlink = 6, "SYMLINK";
    /// Makes a file, device, FIFO or socket.
    Mknod = 8, "MKNOD";
    /// Makes a directory.
    Mkdir = 9, "MKDIR";
    /// Removes a name that is not a directory.
    Unlink = 10, "UNLINK";
    /// Removes an empty directory.
    Rmdir = 11, "RMDIR";
    /// Moves a name.
    Rename = 12, "RENAME";
    /// Makes a hard link.
    Link = 13, "LINK";
    /// Opens a file.
    Open = 14, "OPEN";
    /// Reads from an open file.
    Read = 15, "READ";
    /// Writes to an open file.
    Write = 16, "WRITE";
    /// Reads the file system's figures.
    Statfs = 17, "STATFS";
    /// Closes a file for the last time.
    Release = 18, "RELEASE";
    /// Makes a file's data durable.
    Fsync = 20, "FSYNC";
    /// Sets an extended attribute.
    Setxattr = 21, "SETXATTR";
    /// Reads an extended attribute.
    Getxattr = 22, "GETXATTR";
    /// Lists extended attributes.
    Listxattr = 23, "LISTXATTR";
    /// Removes an extended attribute.
    Removexattr = 24, "REMOVEXATTR";
    /// Tells that one descriptor of an open file was closed.
    Flush = 25, "FLUSH";
    /// Opens the session.
    Init = 26, "INIT";
    /// Opens a directory.
    Opendir = 27, "OPENDIR";
    /// Reads directory entries.
    Readdir = 28, "READDIR";
    /// Closes a directory.
    Releasedir = 29, "RELEASEDIR";
    /// Makes a directory durable.
    Fsyncdir = 30, "FSYNCDIR";
    /// Asks who holds a conflicting POSIX lock.
    Getlk = 31, "GETLK";
    /// Takes or drops a lock without waiting.
    Setlk = 32, "SETLK";
    /// Takes a lock and waits for it.
    Setlkw = 33, "SETLKW";
    /// Checks access as access(2) does.
    Access = 34, "ACCESS";
    /// Makes and opens a file.
    Create = 35, "CREATE";
    /// Asks to abandon a request in flight. Normally no reply.
    Interrupt = 36, "INTERRUPT";
    /// Maps a file's block to the device's.
    Bmap = 37, "BMAP";
    /// Ends the session.
    Destroy = 38, "DESTROY";
    /// Passes an ioctl on.
    Ioctl = 39, "IOCTL";
    /// Asks for readiness.
    Poll = 40, "POLL";
    /// Answers a RETRIEVE notification. No reply.
    NotifyReply = 41, "NOTIFY_REPLY";
    /// Gives back references to many nodes (7.16). No reply.
    BatchForget = 42, "BATCH_FORGET";
    /// Reserves or frees space (7.19).
    Fallocate = 43, "FALLOCATE";
    /// Reads directory entries and looks each up (7.21).
    Readdirplus = 44, "READDIRPLUS";
    /// Moves a name, with flags (7.23).
    Rename2 = 45, "RENAME2";
    /// Finds data or a hole (7.24).
    Lseek = 46, "LSEEK";
    /// Copies between files on the server (7.28).
    CopyFileRange = 47, "COPY_FILE_RANGE";
    /// Maps file contents into the DAX window (7.31).
    Setupmapping = 48, "SETUPMAPPING";
    /// Unmaps parts of the DAX window (7.31).
    Removemapping = 49, "REMOVEMAPPING";
    /// Makes the whole file system durable (7.34).
    Syncfs = 50, "SYNCFS";
    /// Makes and opens a file without a name (7.37).
    Tmpfile = 51, "TMPFILE";
    /// Reads attributes as statx(2) does (7.39).
    Statx = 52, "STATX";
    /// Copies between files on the server; the reply counts in 64 bits (7.45).
    CopyFileRange64 = 53, "COPY_FILE_RANGE_64";
    /// Opens the session of a character device in user space (7.12).
    CuseInit = 4096, "CUSE_INIT";
}

impl Opcode {
    /// Where bulk data begins, counted in bytes from the end of the request header, for operations
    /// whose data is left in the transport; `None` for all others. Only these first bytes are
    /// handed to the decoder.
    #[must_use]
    pub const fn bulk_offset(self) -> Option<usize> {
        match self {
            Opcode::Write => Some(size_of::<crate::WriteIn>()),
            Opcode::NotifyReply => Some(size_of::<crate::NotifyRetrieveIn>()),
            Opcode::Ioctl => Some(size_of::<crate::IoctlIn>()),
            _ => None,
        }
    }

    /// Whether the client waits for a reply.
    ///
    /// False for INTERRUPT too: the server may answer it with EAGAIN, to be asked again, and
    /// otherwise does not.
    #[must_use]
    pub const fn expects_reply(self) -> bool {
        !matches!(
            self,
            Opcode::Forget | Opcode::BatchForget | Opcode::NotifyReply | Opcode::Interrupt
        )
    }

    /// Whether a new inode is made, and so a security context or supplementary group may follow the
    /// names.
    #[must_use]
    pub const fn creates(self) -> bool {
        matches!(
            self,
            Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Create | Opcode::Tmpfile
        )
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A number that 7.45 does not define as an opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("opcode {0} is not known in FUSE 7.45")]
pub struct UnknownOpcode(pub u32);

impl UnknownOpcode {
    /// Whether this is an INIT from a peer of the other byte order (`FUSE_INIT_BSWAP_RESERVED`,
    /// `CUSE_INIT_BSWAP_RESERVED`).
    #[must_use]
    pub const fn is_byte_swapped_init(self) -> bool {
        self.0 == 26 << 24 || self.0 == 4096 << 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_survives_its_number() {
        for &opcode in Opcode::ALL {
            assert_eq!(Opcode::try_from(opcode as u32), Ok(opcode));
        }
    }

    #[test]
    fn undefined_numbers_survive_as_unknown() {
        for number in [0, 7, 19, 54, 4095, 4097, u32::MAX] {
            assert_eq!(Opcode::try_from(number), Err(UnknownOpcode(number)));
        }
    }

    #[test]
    fn other_byte_order_is_recognised_by_its_init() {
        assert!(UnknownOpcode(26_u32.swap_bytes()).is_byte_swapped_init());
        assert!(UnknownOpcode(4096_u32.swap_bytes()).is_byte_swapped_init());
        assert!(!UnknownOpcode(54).is_byte_swapped_init());
    }
}
