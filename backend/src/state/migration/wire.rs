//! The items of the stream as postcard encodes them. [`super`] describes the format.
//!
//! An item borrows its strings and bytes from the stream, so that limits hold before a copy is
//! made. Lists are read and written item by item, with their length as a `u64` before them.

use serde::{Deserialize, Serialize};

/// Variant of version 1.
pub(super) const VERSION_1: u32 = 0;

/// Variant of version 2.
pub(super) const VERSION_2: u32 = 1;

#[derive(Deserialize, Serialize)]
pub(super) struct Inode<'a> {
    pub(super) id: u64,
    pub(super) references: u64,
    #[serde(borrow)]
    pub(super) location: Location<'a>,
    #[serde(borrow)]
    pub(super) file_handle: Option<FileHandle<'a>>,
}

/// The order of the variants is part of the format.
#[derive(Deserialize, Serialize)]
pub(super) enum Location<'a> {
    Root,
    Child {
        parent: u64,
        name: &'a str,
    },
    Invalid,
    Path {
        path: &'a str,
    },
    FileHandle {
        #[serde(borrow)]
        handle: FileHandle<'a>,
    },
}

#[derive(Deserialize, Serialize)]
pub(super) struct FileHandle<'a> {
    pub(super) mount_id: u64,
    pub(super) handle_type: i32,
    pub(super) bytes: &'a [u8],
}

#[derive(Deserialize, Serialize)]
pub(super) struct Handle {
    pub(super) id: u64,
    pub(super) inode: u64,
    pub(super) source: HandleSource,
}

/// The order of the variants is part of the format.
#[derive(Deserialize, Serialize)]
pub(super) enum HandleSource {
    OpenInode { flags: i32 },
}

#[derive(Deserialize, Serialize)]
pub(super) struct Options {
    pub(super) writeback: bool,
    pub(super) announce_submounts: bool,
    pub(super) posix_acl: bool,
    pub(super) supplementary_group: bool,
}

/// An entry of the map of mounts.
pub(super) type MountPath<'a> = (u64, &'a str);
