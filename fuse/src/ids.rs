//! The numbers that name things on the wire: nodes, open handles, requests.

use core::fmt;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name(u64);

        impl $name {
            /// Wraps the number found on the wire; any value is possible.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The number as it goes on the wire.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// An inode as the client knows it: given out by LOOKUP and its kin, given back by FORGET
    /// (`nodeid`).
    NodeId
}

id! {
    /// An open file or directory, given out by OPEN, OPENDIR and CREATE (`fh`). Opaque to the
    /// client.
    Handle
}

id! {
    /// A request's number, unique among those in flight; its reply carries the same (`unique`).
    Unique
}

impl NodeId {
    /// The root of the file system, known without LOOKUP and never forgotten (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

impl Unique {
    /// Set in a request that is sent again after NOTIFY_RESEND (`FUSE_UNIQUE_RESEND`, 7.40).
    pub const RESEND: u64 = 1 << 63;

    /// Whether the request was sent before and perhaps already carried out.
    #[must_use]
    pub const fn is_resend(self) -> bool {
        self.0 & Self::RESEND != 0
    }
}
