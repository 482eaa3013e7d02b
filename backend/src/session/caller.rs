//! Who makes a request: the credentials of a process of the guest.

use gangplank_fuse::{SecurityContext, SupplementaryGroups};

/// A user id in the guest's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct GuestUid(u32);

/// A group id in the guest's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct GuestGid(u32);

impl GuestUid {
    /// The guest's superuser.
    pub const ROOT: Self = Self(0);

    /// Not an id: the request does not tell its user. With
    /// [`gangplank_fuse::InitFlags::ALLOW_IDMAP`], only requests that create something do.
    pub const UNKNOWN: Self = Self(u32::MAX);

    /// The id with this number.
    #[must_use]
    pub const fn new(uid: u32) -> Self {
        Self(uid)
    }

    /// The number of the id.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl GuestGid {
    /// The id with this number.
    #[must_use]
    pub const fn new(gid: u32) -> Self {
        Self(gid)
    }

    /// The number of the id.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The credentials of the guest's process, from the request header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// File system user id, or [`GuestUid::UNKNOWN`].
    pub uid: GuestUid,
    /// File system group id, of no meaning if the user is unknown.
    pub gid: GuestGid,
    /// Process id in the guest; 0 for a request of the kernel itself.
    pub pid: u32,
}

/// The credentials and the umask for creating an object.
#[derive(Debug, Clone, Copy)]
pub struct Creator<'a> {
    /// The owner of the new object. The parent directory's setgid bit may override the group.
    pub caller: Caller,
    /// The caller's umask, to be applied if [`gangplank_fuse::InitFlags::DONT_MASK`] was
    /// negotiated. Otherwise the guest has applied it.
    pub umask: u32,
    /// The supplementary group, if any, that allows the caller to give the new object its parent's
    /// group ([`gangplank_fuse::InitFlags::CREATE_SUPP_GROUP`]).
    pub groups: Option<SupplementaryGroups<'a>>,
    /// The label that the new object is to get ([`gangplank_fuse::InitFlags::SECURITY_CTX`]).
    pub label: Option<SecurityContext<'a>>,
}
