//! User and group ids of the host.

/// A user id in the host's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct HostUid(u32);

/// A group id in the host's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct HostGid(u32);

impl HostUid {
    /// The superuser.
    pub const ROOT: Self = Self(0);

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

impl HostGid {
    /// The superuser's group.
    pub const ROOT: Self = Self(0);

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
