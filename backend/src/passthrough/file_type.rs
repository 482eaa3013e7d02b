//! File types.

/// The type of a file, as far as the daemon treats types differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device node, FIFO or socket. The daemon never opens one.
    Special,
}

impl FileType {
    /// Decodes the type bits of `st_mode`.
    pub(super) fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            _ => Self::Special,
        }
    }

    /// Whether opening a file of this type has no side effect.
    pub(super) fn can_be_opened(self) -> bool {
        matches!(self, Self::Regular | Self::Directory)
    }
}
