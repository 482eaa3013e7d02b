//! The operator's options for the shared file system.

use std::str::FromStr;
use std::time::Duration;

use super::id_map::IdMap;
use super::xattr_map::XattrMap;
use crate::state::migration::MigrationOptions;

/// Timeout of the policies that trust the guest's cache: one day.
const TRUSTED_TIMEOUT: Duration = Duration::from_secs(86_400);

/// How much the guest may cache (`--cache`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Neither metadata nor data: each access reaches the host.
    Never,
    /// Metadata and directories for a day; no file data.
    Metadata,
    /// Metadata for a second; data until the next open (close-to-open consistency).
    #[default]
    Auto,
    /// Everything for a day: only this guest changes the directory.
    Always,
}

impl CachePolicy {
    /// Whether guests bypass their page cache (`FOPEN_DIRECT_IO`).
    #[must_use]
    pub fn bypasses_page_cache(self) -> bool {
        matches!(self, Self::Never | Self::Metadata)
    }

    /// Timeout of positive entries and attributes in the guest.
    #[must_use]
    pub fn timeout(self) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::Auto => Duration::from_secs(1),
            Self::Metadata | Self::Always => TRUSTED_TIMEOUT,
        }
    }
}

impl FromStr for CachePolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_lowercase().as_str() {
            "never" => Ok(Self::Never),
            "metadata" => Ok(Self::Metadata),
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            _ => Err("expected never, metadata, auto or always"),
        }
    }
}

/// Whether inodes are kept by file handle, which needs no descriptor (`--inode-file-handles`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InodeFileHandles {
    /// By `O_PATH` descriptor only.
    Never,
    /// By handle if the file system and the daemon's capabilities allow it, else by descriptor.
    #[default]
    Prefer,
    /// By handle only. An inode without a handle is an error for the guest; a host without working
    /// handles is an error at start.
    Mandatory,
}

impl FromStr for InodeFileHandles {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "never" => Ok(Self::Never),
            // virtiofsd's older name of prefer.
            "prefer" | "fallback" => Ok(Self::Prefer),
            "mandatory" => Ok(Self::Mandatory),
            _ => Err("expected never, prefer or mandatory"),
        }
    }
}

/// Whether a feature of the guest's kernel is used (`--posix-acl`, `--security-label`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NegotiationMode {
    /// It is not.
    #[default]
    Never,
    /// It is if the kernel supports it.
    Auto,
    /// It is, and a guest whose kernel does not support it cannot mount.
    Always,
}

impl FromStr for NegotiationMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_lowercase().as_str() {
            "never" => Ok(Self::Never),
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            _ => Err("expected never, auto or always"),
        }
    }
}

/// Where owners, modes and types of files are kept (`--ownership`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// They are those of the host's files.
    #[default]
    Host,
    /// In attributes of the host's files, which all belong to the daemon's user.
    Mapped,
}

impl FromStr for Ownership {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "host" => Ok(Self::Host),
            "mapped" => Ok(Self::Mapped),
            _ => Err("expected host or mapped"),
        }
    }
}

/// Where the guest's POSIX and flock locks are kept (`--locks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locks {
    /// On the host's files: other guests and host programs see them.
    Host,
    /// In the guest's kernel: no one else sees them.
    #[default]
    Guest,
}

impl FromStr for Locks {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "host" => Ok(Self::Host),
            "guest" => Ok(Self::Guest),
            // The daemon itself chooses with auto.
            _ => Err("expected auto, host or guest"),
        }
    }
}

/// The architecture that defines a guest's open flags (`--guest-arch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestArch {
    /// 64-bit x86, including User Mode Linux.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// How a guest sees the host directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How much the guest may cache.
    pub cache: CachePolicy,
    /// Timeout of entries and attributes; `None` selects the policy's. See [`Options::timeout`].
    pub timeout: Option<Duration>,
    /// Timeout of negative entries. Zero by default for each policy, because a guest that looked up
    /// a file too early would not see it when the host creates it.
    pub negative_timeout: Duration,
    /// Extended attributes are supported.
    pub xattr: bool,
    /// Whether guests have access control lists.
    pub posix_acl: NegotiationMode,
    /// Whether guests label the objects that they create.
    pub security_label: NegotiationMode,
    /// The names of extended attributes on the host; `None`: those in the guest.
    pub xattr_map: Option<XattrMap>,
    /// The guest may not change anything: modifying requests give `EROFS`.
    pub readonly: bool,
    /// Mount points below the share are announced to the guest (`FUSE_ATTR_SUBMOUNT`).
    pub announce_submounts: bool,
    /// Whether inodes are kept by file handle.
    pub inode_file_handles: InodeFileHandles,
    /// Shared mappings are allowed on files opened with direct I/O (`FUSE_DIRECT_IO_ALLOW_MMAP`).
    pub allow_mmap: bool,
    /// READDIRPLUS is supported.
    pub readdirplus: bool,
    /// The guest may delay writes in its page cache (`FUSE_WRITEBACK_CACHE`).
    pub writeback: bool,
    /// The guest's `O_DIRECT` applies to the host's file.
    pub allow_direct_io: bool,
    /// The daemon clears set-user-ID, set-group-ID and capabilities on write
    /// (`FUSE_HANDLE_KILLPRIV_V2`).
    pub killpriv_v2: bool,
    /// The guest's `O_NOATIME` applies to the host's file. Only the file's owner and
    /// `CAP_FOWNER` may use it there.
    pub preserve_noatime: bool,
    /// Where owners, modes and types of files are kept.
    pub ownership: Ownership,
    /// Converts the ids of guests.
    pub id_map: IdMap,
    /// Where advisory locks are kept.
    pub locks: Locks,
    /// The guests' architecture; `None` detects it for each guest.
    pub guest_arch: Option<GuestArch>,
    /// Guests hear of changes that others make.
    pub events: bool,
    /// How guests migrate.
    pub migration: MigrationOptions,
    /// Limit of the memory in bytes that the guest's inodes take, those without a descriptor
    /// included.
    pub max_inode_memory: u64,
    /// Limit of descriptors held for the guest, including open files. Set after the process limits
    /// are set.
    pub fd_budget: u64,
}

impl Options {
    /// Default limit of the memory of a guest's inodes, in bytes: 11 million inodes.
    pub const DEFAULT_MAX_INODE_MEMORY: u64 = 2 << 30;

    /// The timeout in force for entries and attributes: the operator's, else the policy's.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or_else(|| self.cache.timeout())
    }
}

impl Default for Options {
    /// The options of a command line without options, with a small descriptor budget.
    fn default() -> Self {
        Self {
            cache: CachePolicy::Auto,
            timeout: None,
            negative_timeout: Duration::ZERO,
            xattr: false,
            posix_acl: NegotiationMode::Never,
            security_label: NegotiationMode::Never,
            xattr_map: None,
            readonly: false,
            announce_submounts: true,
            inode_file_handles: InodeFileHandles::Prefer,
            allow_mmap: false,
            readdirplus: true,
            writeback: false,
            allow_direct_io: false,
            killpriv_v2: false,
            preserve_noatime: false,
            ownership: Ownership::Host,
            id_map: IdMap::default(),
            locks: Locks::Guest,
            guest_arch: None,
            events: false,
            migration: MigrationOptions::default(),
            max_inode_memory: Self::DEFAULT_MAX_INODE_MEMORY,
            fd_budget: 512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_unset_follows_the_policy() {
        let table = [
            (CachePolicy::Never, 0),
            (CachePolicy::Metadata, 86_400),
            (CachePolicy::Auto, 1),
            (CachePolicy::Always, 86_400),
        ];
        for (cache, positive) in table {
            let options = Options {
                cache,
                ..Options::default()
            };
            assert_eq!(
                options.timeout(),
                Duration::from_secs(positive),
                "{cache:?}"
            );
            assert_eq!(options.negative_timeout, Duration::ZERO);
        }
    }

    #[test]
    fn timeout_set_overrides_the_policy() {
        let options = Options {
            cache: CachePolicy::Always,
            timeout: Some(Duration::from_millis(250)),
            ..Options::default()
        };
        assert_eq!(options.timeout(), Duration::from_millis(250));
    }
}
