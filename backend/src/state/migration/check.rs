//! Makes sure that a guest's state is complete, and orders its inodes for loading.

use std::ops::Deref;

use super::error::{Error, HandleProblem, InodeProblem, NameProblem};
use super::model::{GuestState, Handle, Inode, Location};
use super::{
    MAX_DEPTH, MAX_FILE_HANDLE_LEN, MAX_HANDLES, MAX_INODES, MAX_MOUNTS, MAX_NAME_LEN,
    MAX_PATH_LEN, ROOT_ID, decode, encode,
};

/// Flags of open(2) that matter only while a file is opened first.
const FIRST_OPEN: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;

/// The state of a guest, checked.
///
/// Every inode comes behind its parent, the root first, so that a loader can open one after
/// another. The handles are sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigratedGuest(GuestState);

impl Deref for MigratedGuest {
    type Target = GuestState;

    fn deref(&self) -> &GuestState {
        &self.0
    }
}

impl MigratedGuest {
    /// Checks a guest's state, sorts it, and removes O_CREAT, O_EXCL and O_TRUNC from the handles'
    /// flags.
    ///
    /// # Errors
    /// [`Error`] names the first item that is wrong.
    pub fn new(mut state: GuestState) -> Result<Self, Error> {
        limit("inodes", state.inodes.len(), MAX_INODES)?;
        limit("handles", state.handles.len(), MAX_HANDLES)?;
        limit("mounts", state.mount_paths.len(), MAX_MOUNTS)?;
        state.inodes.sort_by_key(|inode| inode.id);
        state.handles.sort_by_key(|handle| handle.id);

        check_inodes(&state.inodes, state.next_inode)?;
        check_references(&state.inodes)?;
        check_handles(&state.handles, &state.inodes, state.next_handle)?;
        for (id, path) in &state.mount_paths {
            check_path(path).map_err(|problem| Error::MountPath { id: *id, problem })?;
        }
        if let Some(extension) = &state.extension {
            let checked = extension.check(&state.inodes, &state.handles);
            checked.map_err(Error::Extension)?;
        }
        for handle in &mut state.handles {
            handle.flags &= !FIRST_OPEN;
        }
        state.inodes = parents_first(state.inodes)?;
        Ok(Self(state))
    }

    /// Reads a stream of virtiofsd 1.14 or of gangplankd.
    ///
    /// # Errors
    /// [`Error`] names the first item that is wrong.
    pub fn decode(stream: &[u8]) -> Result<Self, Error> {
        Self::new(decode::decode(stream)?)
    }

    /// Writes a stream that virtiofsd 1.14 and gangplankd read.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        encode::encode(&self.0)
    }

    /// The state itself, in the same order.
    #[must_use]
    pub fn into_state(self) -> GuestState {
        self.0
    }
}

fn limit(list: &'static str, len: usize, limit: u64) -> Result<(), Error> {
    let count = len as u64;
    match count > limit {
        true => Err(Error::TooMany { list, count, limit }),
        false => Ok(()),
    }
}

/// Finds an inode among inodes that are sorted by id.
pub(super) fn find(inodes: &[Inode], id: u64) -> Option<usize> {
    inodes.binary_search_by_key(&id, |inode| inode.id).ok()
}

/// Finds a handle among handles that are sorted by id.
pub(super) fn find_handle(handles: &[Handle], id: u64) -> Option<&Handle> {
    let found = handles.binary_search_by_key(&id, |handle| handle.id);
    found.ok().and_then(|index| handles.get(index))
}

const fn wrong(inode: &Inode, problem: InodeProblem) -> Error {
    Error::Inode {
        id: inode.id,
        problem,
    }
}

fn check_inodes(inodes: &[Inode], next: u64) -> Result<(), Error> {
    let mut previous = None;
    for inode in inodes {
        let checked = match inode.id {
            0 => Err(InodeProblem::ZeroId),
            id if previous == Some(id) => Err(InodeProblem::Twice),
            id if id >= next => Err(InodeProblem::NotBelowNext(next)),
            _ => check_inode(inode),
        };
        checked.map_err(|problem| wrong(inode, problem))?;
        previous = Some(inode.id);
    }
    match inodes.first() {
        Some(first) if first.id != ROOT_ID => Err(Error::NoRoot),
        _ => Ok(()),
    }
}

fn check_inode(inode: &Inode) -> Result<(), InodeProblem> {
    match (&inode.location, inode.id) {
        (Location::Root, ROOT_ID) => {}
        (Location::Root, _) => return Err(InodeProblem::NotRoot),
        (_, ROOT_ID) => return Err(InodeProblem::RootElsewhere),
        (Location::Child { name, .. }, _) => check_name(name).map_err(InodeProblem::Name)?,
        (Location::Path(path), _) => check_path(path).map_err(InodeProblem::Path)?,
        (Location::Invalid | Location::FileHandle(_), _) => {}
    }
    if inode.references == 0 {
        return Err(InodeProblem::NoReferences);
    }
    let located = match &inode.location {
        Location::FileHandle(handle) => Some(handle),
        _ => None,
    };
    for handle in inode.file_handle.iter().chain(located) {
        if handle.bytes.len() > MAX_FILE_HANDLE_LEN {
            return Err(InodeProblem::FileHandle(handle.bytes.len()));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), NameProblem> {
    match name {
        "" => Err(NameProblem::Empty),
        "." | ".." => Err(NameProblem::Dots),
        _ if name.contains('/') => Err(NameProblem::Slash),
        _ => check_text(name, MAX_NAME_LEN),
    }
}

fn check_path(path: &str) -> Result<(), NameProblem> {
    match path {
        "" => Err(NameProblem::Empty),
        _ if path.starts_with('/') => Err(NameProblem::Absolute),
        _ if path.split('/').any(|component| component == "..") => Err(NameProblem::Upwards),
        _ => check_text(path, MAX_PATH_LEN),
    }
}

fn check_text(text: &str, limit: usize) -> Result<(), NameProblem> {
    match text.len() {
        len if len > limit => Err(NameProblem::TooLong { len, limit }),
        _ if text.contains('\0') => Err(NameProblem::Nul),
        _ => Ok(()),
    }
}

/// Makes sure that every parent exists, and has a reference for each of its children.
fn check_references(inodes: &[Inode]) -> Result<(), Error> {
    let mut children = vec![0_u64; inodes.len()];
    for inode in inodes {
        if let Location::Child { parent, .. } = inode.location {
            let missing = || wrong(inode, InodeProblem::NoParent(parent));
            children[find(inodes, parent).ok_or_else(missing)?] += 1;
        }
    }
    for (inode, children) in inodes.iter().zip(children) {
        let references = inode.references;
        if references < children {
            let problem = InodeProblem::TooFewReferences {
                references,
                children,
            };
            return Err(wrong(inode, problem));
        }
    }
    Ok(())
}

fn check_handles(handles: &[Handle], inodes: &[Inode], next: u64) -> Result<(), Error> {
    let mut previous = None;
    for handle in handles {
        let problem = match handle.id {
            id if previous == Some(id) => HandleProblem::Twice,
            id if id >= next => HandleProblem::NotBelowNext(next),
            _ if find(inodes, handle.inode).is_none() => HandleProblem::NoInode(handle.inode),
            id => {
                previous = Some(id);
                continue;
            }
        };
        return Err(Error::Handle {
            id: handle.id,
            problem,
        });
    }
    Ok(())
}

/// Sorts inodes by the number of parents above them, then by id. Takes inodes sorted by id, whose
/// parents exist.
fn parents_first(inodes: Vec<Inode>) -> Result<Vec<Inode>, Error> {
    /// The depth of the inode is not known yet.
    const UNKNOWN: u32 = u32::MAX;
    /// The inode is on the way up from the one whose depth is being found.
    const ON_THE_WAY: u32 = u32::MAX - 1;

    let mut depths = vec![UNKNOWN; inodes.len()];
    let mut way = Vec::new();
    for start in 0..inodes.len() {
        let mut at = start;
        // Go up to an inode of known depth, or without a parent.
        let mut depth = loop {
            match depths[at] {
                UNKNOWN => {}
                ON_THE_WAY => return Err(wrong(&inodes[at], InodeProblem::Cycle)),
                known => break known,
            }
            let parent = match inodes[at].location {
                Location::Child { parent, .. } => find(&inodes, parent),
                _ => None,
            };
            let Some(parent) = parent else {
                depths[at] = u32::from(inodes[at].id != ROOT_ID);
                break depths[at];
            };
            depths[at] = ON_THE_WAY;
            way.push(at);
            at = parent;
        };
        // And down again.
        while let Some(below) = way.pop() {
            depth += 1;
            if depth > MAX_DEPTH {
                return Err(wrong(&inodes[below], InodeProblem::TooDeep));
            }
            depths[below] = depth;
        }
    }
    let mut sorted: Vec<_> = depths.into_iter().zip(inodes).collect();
    sorted.sort_by_key(|(depth, inode)| (*depth, inode.id));
    Ok(sorted.into_iter().map(|(_, inode)| inode).collect())
}
