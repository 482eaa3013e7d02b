//! Notifications: messages that a server sends by itself, and NOTIFY_REPLY.
//!
//! A notification is an [`crate::OutHeader`] with `unique` zero and a [`NotifyCode`] in `error`.
//! Linux's virtio-fs driver has no queue for them.

use bitflags::bitflags;

/// What a notification is about (`enum fuse_notify_code`), as it stands in `OutHeader::error`.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotifyCode {
    /// A polled file became ready: [`NotifyPollWakeupOut`].
    Poll = 1,
    /// Drop an inode's cached attributes and pages: [`NotifyInvalInodeOut`].
    InvalInode = 2,
    /// Drop a cached name: [`NotifyInvalEntryOut`].
    InvalEntry = 3,
    /// Put data into the client's cache: [`NotifyStoreOut`].
    Store = 4,
    /// Read data from the client's cache: [`NotifyRetrieveOut`].
    Retrieve = 5,
    /// A name was removed: [`NotifyDeleteOut`].
    Delete = 6,
    /// Send requests in flight again (7.40).
    Resend = 7,
    /// Names cached so far are no longer trusted (7.44).
    IncEpoch = 8,
    /// Drop nodes from the client's memory where unused: [`NotifyPruneOut`] (7.45).
    Prune = 9,
}

impl NotifyCode {
    /// The notification a header's `error` stands for, if 7.45 defines it.
    #[must_use]
    pub const fn from_error(error: i32) -> Option<Self> {
        Some(match error {
            1 => Self::Poll,
            2 => Self::InvalInode,
            3 => Self::InvalEntry,
            4 => Self::Store,
            5 => Self::Retrieve,
            6 => Self::Delete,
            7 => Self::Resend,
            8 => Self::IncEpoch,
            9 => Self::Prune,
            _ => return None,
        })
    }
}

wire_struct! {
    /// A polled file became ready.
    NotifyPollWakeupOut = "fuse_notify_poll_wakeup_out", 8 bytes {
        /// `PollIn::kh`.
        kh: u64 => 0,
    }
}

wire_struct! {
    /// Drop an inode's cached attributes, and pages of a range.
    NotifyInvalInodeOut = "fuse_notify_inval_inode_out", 24 bytes {
        /// The node.
        ino: u64 => 0,
        /// First byte; negative leaves the pages alone.
        off: i64 => 8,
        /// Bytes; zero or less means to the end.
        len: i64 => 16,
    }
}

wire_struct! {
    /// Drop a cached name; it follows, with its NUL.
    NotifyInvalEntryOut = "fuse_notify_inval_entry_out", 16 bytes {
        /// The directory.
        parent: u64 => 0,
        /// Length of the name, without NUL.
        namelen: u32 => 8,
        /// [`NotifyInvalEntryFlags`] (7.38; zero before).
        flags: u32 => 12,
    }
}

bitflags! {
    /// How a name is dropped (`notify_inval_entry` flags).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct NotifyInvalEntryFlags: u32 {
        /// It only expires, and is looked up again when used (`FUSE_EXPIRE_ONLY`).
        const EXPIRE_ONLY = 1 << 0;
    }
}

wire_struct! {
    /// A name was removed; it follows, with its NUL (7.18).
    NotifyDeleteOut = "fuse_notify_delete_out", 24 bytes {
        /// The directory.
        parent: u64 => 0,
        /// What the name stood for.
        child: u64 => 8,
        /// Length of the name, without NUL.
        namelen: u32 => 16,
        /// Zero.
        padding: u32 => 20,
    }
}

wire_struct! {
    /// Put data into the client's cache; it follows (7.15).
    NotifyStoreOut = "fuse_notify_store_out", 24 bytes {
        /// The node.
        nodeid: u64 => 0,
        /// Where, in bytes.
        offset: u64 => 8,
        /// Bytes that follow.
        size: u32 => 16,
        /// Zero.
        padding: u32 => 20,
    }
}

wire_struct! {
    /// Read data from the client's cache (7.15).
    NotifyRetrieveOut = "fuse_notify_retrieve_out", 32 bytes {
        /// `unique` of the NOTIFY_REPLY that will answer.
        notify_unique: u64 => 0,
        /// The node.
        nodeid: u64 => 8,
        /// Where, in bytes.
        offset: u64 => 16,
        /// Most bytes wanted.
        size: u32 => 24,
        /// Zero.
        padding: u32 => 28,
    }
}

wire_struct! {
    /// NOTIFY_REPLY: data from the client's cache follows, left in the transport. As long as
    /// `WriteIn`.
    NotifyRetrieveIn = "fuse_notify_retrieve_in", 40 bytes {
        /// Zero.
        dummy1: u64 => 0,
        /// Where the data is from, in bytes.
        offset: u64 => 8,
        /// Bytes that follow.
        size: u32 => 16,
        /// Zero.
        dummy2: u32 => 20,
        /// Zero.
        dummy3: u64 => 24,
        /// Zero.
        dummy4: u64 => 32,
    }
}

wire_struct! {
    /// Drop nodes where unused; `count` node ids of 8 bytes follow (7.45).
    NotifyPruneOut = "fuse_notify_prune_out", 16 bytes {
        /// Node ids that follow.
        count: u32 => 0,
        /// Zero.
        padding: u32 => 4,
        /// Zero.
        spare: u64 => 8,
    }
}
