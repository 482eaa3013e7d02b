//! Why a guest cannot leave or arrive.

use std::io;

use super::Error;

/// Why a guest's state cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The device has no state.
    #[error("this device cannot migrate")]
    Unsupported,
    /// The stream is wrong, or would be.
    #[error(transparent)]
    Stream(#[from] Error),
    /// The source has negotiated what the options of this daemon exclude.
    #[error("the guest uses {0}, which this daemon does not offer; start it with the same options")]
    Option(&'static str),
    /// The options of this daemon ask for what the guest has not negotiated.
    #[error(
        "the guest does not use what this daemon requires (--posix-acl=always, \
         --security-label=always); start it with the same options"
    )]
    Refused,
    /// The guest's kernel speaks another version of FUSE.
    #[error("the guest speaks FUSE 7.{0}, which this daemon does not support")]
    Version(u32),
    /// There is no room for the guest's inodes or handles.
    #[error("the guest's {count} {list} do not fit; raise {option}")]
    NoRoom {
        /// What is too many.
        list: &'static str,
        /// How many there are.
        count: usize,
        /// The option that limits them.
        option: &'static str,
    },
    /// The guest holds locks on the host's files.
    #[error(
        "the guest has locks of {0} owners on the host's files, which cannot be handed on; it can \
         migrate when it has released them, or with --locks=guest"
    )]
    Locks(usize),
    /// The source does not know where an inode is.
    #[error("the source of the guest has lost inode {0}")]
    Lost(u64),
    /// An inode cannot be opened.
    #[error("cannot open inode {id} at {place}")]
    Inode {
        /// The inode's id.
        id: u64,
        /// Where it was sought.
        place: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// A file was replaced.
    #[error("inode {0} is not the same inode as at the source of the guest: its handle differs")]
    OtherInode(u64),
    /// The stream refers to inodes by file handle.
    #[error(
        "inode {0} is given by its file handle, which this daemon opens only with \
         --migration-mode=file-handles"
    )]
    HandleNotAllowed(u64),
    /// A file handle's mount is unknown.
    #[error("inode {id} is on mount {mount} of the source, which is not found here")]
    Mount {
        /// The inode's id.
        id: u64,
        /// The mount's id at the source.
        mount: u64,
    },
    /// An open file cannot be opened again.
    #[error("cannot open inode {inode} as handle {id}")]
    Handle {
        /// The handle.
        id: u64,
        /// The inode's id.
        inode: u64,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}
