//! What the operator chooses about the shared file system.

use std::str::FromStr;
use std::time::Duration;

/// Long enough to count as for ever: what a policy that trusts its cache gives the guest.
const TRUSTED_TIMEOUT: Duration = Duration::from_secs(86_400);

/// How much the guest may cache (`--cache`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Neither metadata nor data: every access reaches the host.
    Never,
    /// Metadata and directories for long, file data not at all.
    Metadata,
    /// Metadata for a second, data until the file is opened again (close-to-open consistency).
    #[default]
    Auto,
    /// Everything for long: the guest alone changes the directory.
    Always,
}

impl CachePolicy {
    /// Whether guests read and write files past their page cache (`FOPEN_DIRECT_IO`).
    #[must_use]
    pub fn bypasses_page_cache(self) -> bool {
        matches!(self, Self::Never | Self::Metadata)
    }

    /// How long an entry that exists and its attributes stay valid in the guest.
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

/// Whether inodes are remembered by file handle, which costs no descriptor
/// (`--inode-file-handles`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InodeFileHandles {
    /// By `O_PATH` descriptor only.
    Never,
    /// By handle where the file system and our capabilities allow it, else by descriptor.
    #[default]
    Prefer,
    /// By handle only: an inode without one is an error for the guest, and a host that cannot open
    /// handles at all is an error at start.
    Mandatory,
}

impl FromStr for InodeFileHandles {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "never" => Ok(Self::Never),
            // virtiofsd's older spelling of prefer.
            "prefer" | "fallback" => Ok(Self::Prefer),
            "mandatory" => Ok(Self::Mandatory),
            _ => Err("expected never, prefer or mandatory"),
        }
    }
}

/// Who keeps the guest's advisory locks, both POSIX and flock (`--locks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locks {
    /// Taken on the host's files: other guests and host programs see them.
    Host,
    /// Kept inside each guest: nobody else sees them.
    #[default]
    Guest,
}

impl FromStr for Locks {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "host" => Ok(Self::Host),
            "guest" => Ok(Self::Guest),
            _ => Err("expected host or guest"),
        }
    }
}

/// The architecture whose open flags a guest speaks (`--guest-arch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestArch {
    /// 64-bit x86, User Mode Linux included.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// How the host directory is presented to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How much the guest may cache.
    pub cache: CachePolicy,
    /// CacheTimeouts of entries and attributes; `None` takes the policy's. See [`Options::timeout`].
    pub timeout: Option<Duration>,
    /// CacheTimeouts of "no such file". Zero unless asked for, whatever the policy: a file that the host makes later would stay
    /// invisible to a guest that looked for it too early.
    pub negative_timeout: Duration,
    /// Extended attributes are offered.
    pub xattr: bool,
    /// The guest changes nothing: every modifying request is answered `EROFS`.
    pub readonly: bool,
    /// Mount points below the share are told to the guest (`FUSE_ATTR_SUBMOUNT`).
    pub announce_submounts: bool,
    /// Whether inodes are remembered by file handle.
    pub inode_file_handles: InodeFileHandles,
    /// Shared mappings of files opened with direct I/O are allowed
    /// (`FUSE_DIRECT_IO_ALLOW_MMAP`).
    pub allow_mmap: bool,
    /// READDIRPLUS is offered.
    pub readdirplus: bool,
    /// The guest may delay writes in its page cache (`FUSE_WRITEBACK_CACHE`).
    pub writeback: bool,
    /// The guest's `O_DIRECT` reaches the host's file.
    pub allow_direct_io: bool,
    /// Killing set-user-ID, set-group-ID and capabilities on write is ours
    /// (`FUSE_HANDLE_KILLPRIV_V2`).
    pub killpriv_v2: bool,
    /// Who keeps advisory locks.
    pub locks: Locks,
    /// The guests' architecture; `None` learns it from each guest.
    pub guest_arch: Option<GuestArch>,
    /// Descriptors the file system may hold for all guests together, files opened by guests
    /// included. Known once the process's limits are set.
    pub fd_budget: u64,
}

impl Options {
    /// CacheTimeouts of entries and attributes in force: the operator's, else the policy's.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or_else(|| self.cache.timeout())
    }
}

impl Default for Options {
    /// What a command line without options asks for, with a small descriptor budget.
    fn default() -> Self {
        Self {
            cache: CachePolicy::Auto,
            timeout: None,
            negative_timeout: Duration::ZERO,
            xattr: false,
            readonly: false,
            announce_submounts: true,
            inode_file_handles: InodeFileHandles::Prefer,
            allow_mmap: false,
            readdirplus: true,
            writeback: false,
            allow_direct_io: false,
            killpriv_v2: false,
            locks: Locks::Guest,
            guest_arch: None,
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
