//! How guests migrate: virtiofsd's options `--migration-*`.

use std::str::FromStr;

/// How guests migrate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationOptions {
    /// How a source says where inodes are. A destination ignores it: the stream says which.
    pub mode: MigrationMode,
    /// What a destination does about an inode or handle that it cannot open.
    pub on_error: MigrationOnError,
    /// Whether a source adds each inode's file handle, which the destination compares.
    pub verify_handles: bool,
    /// Whether a source checks each path again at the switch-over.
    pub confirm_paths: bool,
}

/// How a source says where inodes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MigrationMode {
    /// By parent and name.
    #[default]
    FindPaths,
    /// By file handle. Both daemons need the same file system and CAP_DAC_READ_SEARCH.
    FileHandles,
}

impl FromStr for MigrationMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "find-paths" => Ok(Self::FindPaths),
            "file-handles" => Ok(Self::FileHandles),
            _ => Err("expected find-paths or file-handles"),
        }
    }
}

/// What a destination does about an inode or handle that it cannot open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MigrationOnError {
    /// It refuses the guest.
    #[default]
    Abort,
    /// It takes the guest, which gets an error whenever it uses that inode or handle.
    GuestError,
}

impl FromStr for MigrationOnError {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "abort" => Ok(Self::Abort),
            "guest-error" => Ok(Self::GuestError),
            _ => Err("expected abort or guest-error"),
        }
    }
}
