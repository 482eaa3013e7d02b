//! Reads the stream. The module `check` checks what it says.

use serde::Deserialize;

use super::error::{Error, ExtensionProblem, InodeProblem, NameProblem, Part};
use super::extension::Extension;
use super::model::{FileHandle, GuestState, Handle, Inode, Location, NegotiatedOptions};
use super::{
    MAX_FILE_HANDLE_LEN, MAX_HANDLES, MAX_INODES, MAX_MOUNTS, MAX_NAME_LEN, MAX_PATH_LEN,
    MAX_STREAM_LEN, wire,
};

/// Reads a whole stream.
pub(super) fn decode(stream: &[u8]) -> Result<GuestState, Error> {
    if stream.len() > MAX_STREAM_LEN {
        return Err(Error::TooLong(stream.len()));
    }
    let mut reader = Reader(stream);
    let version: u32 = reader.named("version")?;
    if ![wire::VERSION_1, wire::VERSION_2].contains(&version) {
        return Err(Error::Version(version));
    }
    let mut state = GuestState::default();
    reader.list("inodes", MAX_INODES, |item| {
        state.inodes.push(inode(item)?);
        Ok(())
    })?;
    state.next_inode = reader.named("next inode id")?;
    reader.list("handles", MAX_HANDLES, |item: wire::Handle| {
        let wire::HandleSource::OpenInode { flags } = item.source;
        state.handles.push(Handle {
            id: item.id,
            inode: item.inode,
            flags,
        });
        Ok(())
    })?;
    state.next_handle = reader.named("next handle id")?;
    let options: wire::Options = reader.named("options")?;
    state.options = NegotiatedOptions {
        writeback: options.writeback,
        announce_submounts: options.announce_submounts,
        posix_acl: options.posix_acl,
        supplementary_group: options.supplementary_group,
    };
    if version == wire::VERSION_2 {
        reader.list("mounts", MAX_MOUNTS, |(id, path): wire::MountPath<'_>| {
            let problem = |problem| Error::MountPath { id, problem };
            let path = bounded(path, MAX_PATH_LEN).map_err(problem)?;
            match state.mount_paths.insert(id, path) {
                Some(_) => Err(Error::MountTwice(id)),
                None => Ok(()),
            }
        })?;
    }
    if !reader.0.is_empty() {
        let extension = Extension::decode(reader.0);
        state.extension = Some(extension.map_err(Error::Extension)?);
    }
    Ok(state)
}

fn inode(item: wire::Inode<'_>) -> Result<Inode, Error> {
    let id = item.id;
    let problem = |problem| Error::Inode { id, problem };
    let location = match item.location {
        wire::Location::Root => Location::Root,
        wire::Location::Child { parent, name } => {
            let name = bounded(name, MAX_NAME_LEN).map_err(InodeProblem::Name);
            Location::Child {
                parent,
                name: name.map_err(problem)?,
            }
        }
        wire::Location::Invalid => Location::Invalid,
        wire::Location::Path { path } => {
            let path = bounded(path, MAX_PATH_LEN).map_err(InodeProblem::Path);
            Location::Path(path.map_err(problem)?)
        }
        wire::Location::FileHandle { handle } => {
            Location::FileHandle(file_handle(&handle).map_err(problem)?)
        }
    };
    let handle = item.file_handle.as_ref().map(file_handle).transpose();
    Ok(Inode {
        id,
        references: item.references,
        location,
        file_handle: handle.map_err(problem)?,
    })
}

fn file_handle(item: &wire::FileHandle<'_>) -> Result<FileHandle, InodeProblem> {
    match item.bytes.len() {
        len if len > MAX_FILE_HANDLE_LEN => Err(InodeProblem::FileHandle(len)),
        _ => Ok(FileHandle {
            mount_id: item.mount_id,
            handle_type: item.handle_type,
            bytes: item.bytes.to_vec(),
        }),
    }
}

/// Copies a name or path if it is not too long.
fn bounded(text: &str, limit: usize) -> Result<String, NameProblem> {
    match text.len() {
        len if len > limit => Err(NameProblem::TooLong { len, limit }),
        _ => Ok(text.to_owned()),
    }
}

/// What is left of the stream.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn item<T: Deserialize<'a>>(&mut self, part: Part) -> Result<T, Error> {
        let (item, rest) =
            postcard::take_from_bytes(self.0).map_err(|reason| Error::Damaged { part, reason })?;
        self.0 = rest;
        Ok(item)
    }

    fn named<T: Deserialize<'a>>(&mut self, name: &'static str) -> Result<T, Error> {
        self.item(Part::Named(name))
    }

    /// Reads a list of at most `limit` items, and passes each on.
    fn list<T: Deserialize<'a>>(
        &mut self,
        name: &'static str,
        limit: u64,
        mut take: impl FnMut(T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let count: u64 = self.named(name)?;
        if count > limit {
            return Err(Error::TooMany {
                list: name,
                count,
                limit,
            });
        }
        for index in 0..count {
            take(self.item(Part::Item(name, index))?)?;
        }
        Ok(())
    }
}

/// Reads a whole field of gangplankd's part, of the kind `kind`.
pub(super) fn field<'a, T: Deserialize<'a>>(
    kind: u16,
    value: &'a [u8],
) -> Result<T, ExtensionProblem> {
    match postcard::take_from_bytes(value) {
        Ok((item, [])) => Ok(item),
        _ => Err(ExtensionProblem::Field(kind)),
    }
}
