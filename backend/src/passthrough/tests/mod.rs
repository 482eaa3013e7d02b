//! Whole requests over a temporary directory, through the [`FileSystem`] trait.

mod attributes;
mod credentials;
mod crowd;
mod eviction;
mod hostile;
mod identity;
mod listing;
mod locks;
mod reopening;
mod submounts;
mod transfer;
mod tree;
mod unopened;

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
use crate::session::{Caller, Creator, FileSystem, IoMode, Name};
use crate::sys::buffers::Segments;

/// Root in the guest.
const ROOT_USER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// What a guest of the host's architecture adds to every open.
const LARGE_FILE: u32 = if cfg!(target_arch = "aarch64") {
    0x2_0000
} else {
    0x8000
};

/// A directory, a share of it, and a guest that has said INIT.
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
        fs.init(InitFlags::all());
        Self { fs, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn lookup(&self, parent: NodeId, name: &CStr) -> io::Result<EntryOut> {
        self.fs.lookup(parent, checked(name))
    }

    /// Looks up what must be there.
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
        // SAFETY: the buffer is borrowed mutably for the whole function.
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
        // SAFETY: the copy lives to the end of the function and is not used otherwise.
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
    let open = |path: &Path| OwnedFd::from(File::open(path).expect("opened"));
    Share::new(
        open(directory),
        open("/proc/self/fd".as_ref()),
        options,
        abilities,
    )
    .expect("shared")
}

/// What the test process may do.
fn abilities() -> Abilities {
    Abilities {
        can_change_credentials: is_root(),
        can_open_by_handle: is_root(),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says why a test is not run; true where it has to be skipped.
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
        caller: Caller { uid, gid, pid: 1 },
        umask: 0o022,
        groups: None,
    }
}

/// The errno of a failure.
fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}
