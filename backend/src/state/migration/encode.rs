//! Writes the stream, always in version 2.

use serde::Serialize;

use super::error::Error;
use super::model::{FileHandle, GuestState, Location};
use super::{MAX_STREAM_LEN, wire};

/// Writes a whole stream. The state was checked; the order of its inodes does not matter.
pub(super) fn encode(state: &GuestState) -> Result<Vec<u8>, Error> {
    let mut stream = Vec::new();
    put(&mut stream, &wire::VERSION_2);

    let mut inodes: Vec<_> = state.inodes.iter().collect();
    inodes.sort_by_key(|inode| inode.id);
    put(&mut stream, &(inodes.len() as u64));
    for inode in inodes {
        let item = wire::Inode {
            id: inode.id,
            references: inode.references,
            location: location(&inode.location),
            file_handle: inode.file_handle.as_ref().map(file_handle),
        };
        put(&mut stream, &item);
    }
    put(&mut stream, &state.next_inode);

    put(&mut stream, &(state.handles.len() as u64));
    for handle in &state.handles {
        let item = wire::Handle {
            id: handle.id,
            inode: handle.inode,
            source: wire::HandleSource::OpenInode {
                flags: handle.flags,
            },
        };
        put(&mut stream, &item);
    }
    put(&mut stream, &state.next_handle);

    let options = wire::Options {
        writeback: state.options.writeback,
        announce_submounts: state.options.announce_submounts,
        posix_acl: state.options.posix_acl,
        supplementary_group: state.options.supplementary_group,
    };
    put(&mut stream, &options);

    put(&mut stream, &(state.mount_paths.len() as u64));
    for (id, path) in &state.mount_paths {
        let item: wire::MountPath<'_> = (*id, path);
        put(&mut stream, &item);
    }
    if let Some(extension) = &state.extension {
        extension.encode(&mut stream);
    }
    match stream.len() {
        len if len > MAX_STREAM_LEN => Err(Error::TooLong(len)),
        _ => Ok(stream),
    }
}

fn location(location: &Location) -> wire::Location<'_> {
    match location {
        Location::Root => wire::Location::Root,
        Location::Child { parent, name } => wire::Location::Child {
            parent: *parent,
            name,
        },
        Location::Invalid => wire::Location::Invalid,
        Location::Path(path) => wire::Location::Path { path },
        Location::FileHandle(handle) => wire::Location::FileHandle {
            handle: file_handle(handle),
        },
    }
}

fn file_handle(handle: &FileHandle) -> wire::FileHandle<'_> {
    wire::FileHandle {
        mount_id: handle.mount_id,
        handle_type: handle.handle_type,
        bytes: &handle.bytes,
    }
}

/// Appends an item.
pub(super) fn put(stream: &mut Vec<u8>, item: &impl Serialize) {
    // A vector takes any number of bytes, and the items have no lists of unknown length, which are
    // postcard's only errors.
    let whole = postcard::to_extend(item, std::mem::take(stream));
    *stream = whole.expect("the items of the stream have an encoding");
}
