//! File types.

use crate::sys::file::Statx;

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO. The daemon never opens one.
    Fifo,
    /// A socket. The daemon never opens one.
    Socket,
    /// A character device. The daemon never opens one.
    CharacterDevice,
    /// A block device, or a type that this daemon does not know. The daemon never opens one.
    BlockDevice,
}

impl FileType {
    /// Decodes the type bits of `st_mode`.
    pub(super) fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFCHR => Self::CharacterDevice,
            _ => Self::BlockDevice,
        }
    }

    /// The type as a number below 16: the type bits of `st_mode`, shifted right by 12.
    pub(super) fn number(self) -> u8 {
        let mode = match self {
            Self::Regular => libc::S_IFREG,
            Self::Directory => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::CharacterDevice => libc::S_IFCHR,
            Self::BlockDevice => libc::S_IFBLK,
        };
        // The type bits are the upper 4 of 16.
        u8::try_from(mode >> 12).unwrap_or(0)
    }

    /// The type of a number that [`FileType::number`] returned.
    pub(super) fn from_number(number: u8) -> Self {
        Self::from_mode(u32::from(number) << 12)
    }

    /// The type in the attributes of a file.
    pub(super) fn of(stat: &Statx) -> Self {
        Self::from_mode(stat.stx_mode.into())
    }

    /// Whether opening a file of this type has no side effect.
    pub(super) fn can_be_opened(self) -> bool {
        matches!(self, Self::Regular | Self::Directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_survives_as_a_number() {
        for file_type in [
            FileType::Regular,
            FileType::Directory,
            FileType::Symlink,
            FileType::Fifo,
            FileType::Socket,
            FileType::CharacterDevice,
            FileType::BlockDevice,
        ] {
            assert_eq!(FileType::from_number(file_type.number()), file_type);
        }
    }
}
