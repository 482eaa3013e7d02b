//! Why a stream cannot be read, or a guest cannot be written as one.

use thiserror::Error;

use super::{MAX_DEPTH, MAX_FILE_HANDLE_LEN, MAX_STREAM_LEN, ROOT_ID};

/// Why a stream cannot be read, or a guest cannot be written as one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The stream exceeds [`MAX_STREAM_LEN`].
    #[error("the migration stream has {0} bytes, and {MAX_STREAM_LEN} are the limit")]
    TooLong(usize),
    /// The first number is not that of a known version.
    #[error("the migration stream has the unknown version {}: use a daemon that reads it", .0 + 1)]
    Version(u32),
    /// The stream ends early, or has bytes that are no such item.
    #[error("the migration stream is cut or damaged in {part}: {reason}")]
    Damaged {
        /// The item.
        part: Part,
        /// The decoder's reason.
        reason: postcard::Error,
    },
    /// A list that is too long.
    #[error("the migration stream lists {count} {list}, and {limit} are the limit")]
    TooMany {
        /// The list.
        list: &'static str,
        /// Its length.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// There are inodes, but not the root.
    #[error("the migration stream has inodes, but not the root, which is inode {ROOT_ID}")]
    NoRoot,
    /// One inode is wrong.
    #[error("inode {id} of the migration stream {problem}")]
    Inode {
        /// Its id.
        id: u64,
        /// What is wrong.
        problem: InodeProblem,
    },
    /// One handle is wrong.
    #[error("handle {id} of the migration stream {problem}")]
    Handle {
        /// Its id.
        id: u64,
        /// What is wrong.
        problem: HandleProblem,
    },
    /// The path of one mount is wrong.
    #[error("mount {id} of the migration stream has a path that {problem}")]
    MountPath {
        /// Its id on the source.
        id: u64,
        /// What is wrong.
        problem: NameProblem,
    },
    /// One mount has two paths.
    #[error("mount {0} of the migration stream is listed twice")]
    MountTwice(u64),
    /// Gangplank's part is wrong.
    #[error("gangplankd's part of the migration stream {0}")]
    Extension(ExtensionProblem),
}

/// An item of the stream. The index counts from 0.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Part {
    /// An item of a list.
    #[error("item {1} of the {0}")]
    Item(&'static str, u64),
    /// Another item.
    #[error("the {0}")]
    Named(&'static str),
}

/// What is wrong with an inode. The text continues "inode 5".
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InodeProblem {
    /// FUSE has no node 0.
    #[error("has an id that FUSE does not permit")]
    ZeroId,
    /// Two inodes have the id.
    #[error("is listed twice")]
    Twice,
    /// The next id is not above this one.
    #[error("is not below the next id, {0}")]
    NotBelowNext(u64),
    /// Another inode is the root.
    #[error("is given as the root, which is inode {ROOT_ID}")]
    NotRoot,
    /// The root is not given as such.
    #[error("is the root, but has another location")]
    RootElsewhere,
    /// No one refers to it.
    #[error("has no references")]
    NoReferences,
    /// Its children hold more references than it has.
    #[error("has {references} references, but {children} inodes below it hold one each")]
    TooFewReferences {
        /// Its references.
        references: u64,
        /// Inodes whose parent it is.
        children: u64,
    },
    /// Its parent is missing.
    #[error("has a parent, inode {0}, that the stream does not list")]
    NoParent(u64),
    /// It is its own ancestor.
    #[error("is among its own parents")]
    Cycle,
    /// It exceeds [`MAX_DEPTH`].
    #[error("has more than {MAX_DEPTH} parents above it")]
    TooDeep,
    /// Its name is wrong.
    #[error("has a name that {0}")]
    Name(NameProblem),
    /// Its path is wrong.
    #[error("has a path that {0}")]
    Path(NameProblem),
    /// Its file handle exceeds [`MAX_FILE_HANDLE_LEN`].
    #[error("has a file handle of {0} bytes, and {MAX_FILE_HANDLE_LEN} are the limit")]
    FileHandle(usize),
}

/// What is wrong with a name or path. The text continues "a name that".
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NameProblem {
    /// It is empty.
    #[error("is empty")]
    Empty,
    /// It is too long.
    #[error("has {len} bytes, and {limit} are the limit")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// It has a NUL byte.
    #[error("contains a NUL byte")]
    Nul,
    /// It is a path, not a name.
    #[error("contains a slash")]
    Slash,
    /// It is a path from the host's root.
    #[error("begins with a slash")]
    Absolute,
    /// It is "." or "..", which is no entry of a directory.
    #[error("is '.' or '..'")]
    Dots,
    /// A component is "..", which may lead out of the share.
    #[error("contains '..'")]
    Upwards,
}

/// What is wrong with a handle. The text continues "handle 5".
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HandleProblem {
    /// Two handles have the id.
    #[error("is listed twice")]
    Twice,
    /// The next id is not above this one.
    #[error("is not below the next id, {0}")]
    NotBelowNext(u64),
    /// Its inode is missing.
    #[error("refers to inode {0}, which the stream does not list")]
    NoInode(u64),
}

/// What is wrong with gangplankd's part. The text continues "gangplankd's part".
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ExtensionProblem {
    /// It does not begin with "GANG".
    #[error("does not begin with 'GANG'")]
    Magic,
    /// It ends within its first bytes or a field.
    #[error("is cut")]
    Cut,
    /// It has another version.
    #[error("has the unknown version {0}: use a daemon that reads it")]
    Version(u32),
    /// A field does not hold what its kind says.
    #[error("has a damaged field of kind {0}")]
    Field(u16),
    /// A field is there twice.
    #[error("has two fields of kind {0}")]
    FieldTwice(u16),
    /// A lock's inode is missing.
    #[error("has a lock on inode {0}, which the stream does not list")]
    LockInode(u64),
    /// A lock's handle is missing, or refers to another inode.
    #[error("has a lock through handle {0}, which is not open on the lock's inode")]
    LockHandle(u64),
    /// A lock's range ends before it starts.
    #[error("has a lock of bytes {start} to {end}")]
    LockRange {
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
    },
    /// The name of the session is too long.
    #[error("has a session name of {0} bytes")]
    SessionName(usize),
}
