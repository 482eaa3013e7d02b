//! LOOKUP, FORGET, BATCH_FORGET: how a client comes to know nodes and lets them go.
//!
//! Each successful LOOKUP (and each other reply with an [`EntryOut`], READDIRPLUS entries included)
//! gives the client one reference to the node; FORGET returns them. A node without references may
//! be dropped by the server.

use crate::{Attr, NodeId, Records};

wire_struct! {
    /// A node made known: reply of LOOKUP, SYMLINK, MKNOD, MKDIR, LINK, and the first part of
    /// CREATE's and TMPFILE's.
    EntryOut = "fuse_entry_out", 128 bytes {
        /// The node's number. Zero with no error tells that the name does not exist and for how
        /// long to believe it.
        nodeid: u64 => 0,
        /// Tells apart nodes that get the same number one after another.
        generation: u64 => 8,
        /// How long the name may be cached, in seconds.
        entry_valid: u64 => 16,
        /// How long the attributes may be cached, in seconds.
        attr_valid: u64 => 24,
        /// Nanoseconds of `entry_valid`.
        entry_valid_nsec: u32 => 32,
        /// Nanoseconds of `attr_valid`.
        attr_valid_nsec: u32 => 36,
        /// The node's attributes.
        attr: Attr => 40,
    }
}

wire_struct! {
    /// FORGET of the header's node.
    ForgetIn = "fuse_forget_in", 8 bytes {
        /// References given back.
        nlookup: u64 => 0,
    }
}

wire_struct! {
    /// One node of a BATCH_FORGET.
    ForgetOne = "fuse_forget_one", 16 bytes {
        /// The node.
        nodeid: u64 => 0,
        /// References given back.
        nlookup: u64 => 8,
    }
}

impl ForgetOne {
    /// The node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        NodeId::new(self.nodeid)
    }
}

wire_struct! {
    /// Opens a BATCH_FORGET; `count` times [`ForgetOne`] follow.
    BatchForgetIn = "fuse_batch_forget_in", 8 bytes {
        /// Nodes that follow.
        count: u32 => 0,
        /// Zero.
        dummy: u32 => 4,
    }
}

/// The nodes of a BATCH_FORGET.
pub type BatchForget<'a> = Records<'a, ForgetOne>;
