//! Tests of whole operations over a temporary directory, through the `FileSystem` trait.

mod attributes;
mod concurrency;
mod credentials;
mod eviction;
mod fd_cache;
mod hostile;
mod identity;
mod ioctl;
mod keep_cache;
mod killed_tables;
mod locks;
mod lost_descriptors;
pub(in crate::passthrough) mod memory;
mod namespace_ops;
mod no_open;
mod ownership;
mod read_write;
mod readdir;
mod recovery;
mod remembered;
mod repeat;
mod set_id_bits;
mod submounts;
mod xattr;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gangplank_fuse::{
    CreateIn, EntryOut, Handle, InitFlags, NodeId, OpenIn, OpenOut, ReadIn, ReleaseIn, WriteIn,
};
use tempfile::TempDir;

use super::{Abilities, Options, PassthroughFs, Share};
use crate::session::file_system::{
    Attributes, Directories, FileData, FileLocks, FileRanges, Files, GuestGid, GuestUid, Lookup,
    Namespace, SessionLifecycle, Superblock, Xattrs,
};
use crate::session::{Caller, Creator, IoMode, Name};
use crate::state::arena::{Arena, Limits};
use crate::sys::buffers::Segments;

/// The guest's root user.
const ROOT_USER: Caller = Caller {
    uid: GuestUid::ROOT,
    gid: GuestGid::new(0),
    pid: 1,
};

/// `O_LARGEFILE`, which a guest of the host's architecture sets at each open.
const LARGE_FILE: u32 = if cfg!(target_arch = "aarch64") {
    0x2_0000
} else {
    0x8000
};

/// A guest after INIT, on a share of a temporary directory.
struct Guest {
    fs: PassthroughFs,
    directory: Arc<TempDir>,
}

impl Guest {
    fn new() -> Self {
        Self::with(Options {
            fd_budget: 100_000,
            ..Options::default()
        })
    }

    fn with(options: Options) -> Self {
        Self::in_directory(Arc::new(tempfile::tempdir().expect("a directory")), options)
    }

    fn in_directory(directory: Arc<TempDir>, options: Options) -> Self {
        Self::able(directory, options, abilities())
    }

    fn able(directory: Arc<TempDir>, options: Options, abilities: Abilities) -> Self {
        let fs = PassthroughFs::new(share(directory.path(), options, abilities));
        fs.init(InitFlags::all()).expect("agreed");
        Self { fs, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn lookup(&self, parent: NodeId, name: &CStr) -> io::Result<EntryOut> {
        self.fs.lookup(parent, checked(name))
    }

    /// Looks up a name that must exist.
    fn find(&self, parent: NodeId, name: &CStr) -> NodeId {
        NodeId::new(self.lookup(parent, name).expect("found").nodeid)
    }

    fn mkdir(&self, parent: NodeId, name: &CStr) -> NodeId {
        let made = self
            .fs
            .mkdir(&root_creator(), parent, checked(name), 0o755)
            .expect("made");
        NodeId::new(made.nodeid)
    }

    fn create(&self, parent: NodeId, name: &CStr, flags: i32) -> io::Result<(EntryOut, OpenOut)> {
        self.create_as(&root_creator(), parent, name, flags, 0o644)
    }

    fn create_as(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: &CStr,
        flags: i32,
        mode: u32,
    ) -> io::Result<(EntryOut, OpenOut)> {
        let args = CreateIn {
            flags: flags.cast_unsigned() | LARGE_FILE,
            mode: mode | libc::S_IFREG,
            umask: creator.umask,
            ..CreateIn::default()
        };
        self.fs.create(creator, parent, checked(name), &args)
    }

    fn open(&self, node: NodeId, flags: i32) -> io::Result<Handle> {
        let args = OpenIn {
            flags: flags.cast_unsigned() | LARGE_FILE,
            ..OpenIn::default()
        };
        Ok(Handle::new(self.fs.open(node, &args)?.fh))
    }

    fn read(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        self.read_as(node, handle, offset, buffer, IoMode::Blocking)
    }

    /// Reads in the given mode.
    fn read_as(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        buffer: &mut [u8],
        mode: IoMode,
    ) -> io::Result<usize> {
        let args = ReadIn {
            fh: handle.get(),
            offset,
            size: u32::try_from(buffer.len()).expect("small"),
            ..ReadIn::default()
        };
        let mut segments = Segments::default();
        assert!(segments.push_slice(buffer));
        #[allow(unsafe_code)]
        // SAFETY: the buffer is mutably borrowed for the whole function.
        let mut writer = unsafe { segments.writer() };
        self.fs.read(node, &args, &mut writer, mode)
    }

    fn write(&self, node: NodeId, handle: Handle, offset: u64, data: &[u8]) -> io::Result<usize> {
        self.write_with(
            node,
            &WriteIn {
                fh: handle.get(),
                offset,
                ..WriteIn::default()
            },
            data,
        )
    }

    fn write_with(&self, node: NodeId, args: &WriteIn, data: &[u8]) -> io::Result<usize> {
        let args = WriteIn {
            size: u32::try_from(data.len()).expect("small"),
            ..*args
        };
        let mut copy = data.to_vec();
        let mut segments = Segments::default();
        assert!(segments.push_slice(&mut copy));
        #[allow(unsafe_code)]
        // SAFETY: the copy outlives the reader and is not used otherwise.
        let mut reader = unsafe { segments.reader() };
        self.fs.write(node, &args, &mut reader)
    }

    fn release(&self, node: NodeId, handle: Handle) {
        let args = ReleaseIn {
            fh: handle.get(),
            ..ReleaseIn::default()
        };
        self.fs.release(node, &args).expect("released");
    }
}

fn share(directory: &Path, options: Options, abilities: Abilities) -> Arc<Share> {
    share_in(arena(), directory, options, abilities)
}

/// The share of a guest whose state is in `arena`.
fn share_in(
    arena: Arc<Arena>,
    directory: &Path,
    options: Options,
    abilities: Abilities,
) -> Arc<Share> {
    let open = |path: &Path| OwnedFd::from(File::open(path).expect("opened"));
    Share::new(
        open(directory),
        open("/proc/self/fd".as_ref()),
        options,
        abilities,
        arena,
    )
    .expect("shared")
}

/// Memory for the state of a guest that holds nothing.
fn arena() -> Arc<Arena> {
    let limits = Limits {
        inode_bytes: 2 << 30,
        descriptors: 1 << 17,
        rings: 1,
        ring_size: 64,
    };
    Arena::new(limits).expect("an arena")
}

/// The test process's privileges.
fn abilities() -> Abilities {
    Abilities {
        can_change_credentials: is_root(),
        can_open_by_handle: is_root(),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a test has to be skipped because it needs root; if so, prints that.
fn skipped_without_root(test: &str) -> bool {
    if is_root() {
        return false;
    }
    eprintln!("SKIPPED: {test} needs root");
    true
}

fn checked(name: &CStr) -> Name<'_> {
    Name::new(name).expect("a valid name")
}

fn c_string(name: impl Into<Vec<u8>>) -> CString {
    CString::new(name).expect("no NUL")
}

fn root_creator() -> Creator<'static> {
    creator(0, 0)
}

fn creator(uid: u32, gid: u32) -> Creator<'static> {
    Creator {
        caller: Caller {
            uid: GuestUid::new(uid),
            gid: GuestGid::new(gid),
            pid: 1,
        },
        umask: 0o022,
        groups: None,
        label: None,
    }
}

/// The errno of an error.
fn errno<T>(result: io::Result<T>) -> Option<i32> {
    let error = result.err()?;
    match crate::session::is_not_offered(&error) {
        true => Some(libc::ENOSYS),
        false => error.raw_os_error(),
    }
}
