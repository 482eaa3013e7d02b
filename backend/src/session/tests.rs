//! Tests of the session against a file system that records its calls.

mod init;
mod malformed;
mod operations;
mod waiting;

use std::ffi::CStr;
use std::sync::Mutex;

use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::ops::attr::AttrOut;
use gangplank_fuse::reply::Reply;
use gangplank_fuse::{
    BatchForget, CreateIn, Dialect, EntryOut, Extensions, FileLock, ForgetIn, ForgetOne,
    GetattrFlags, GetattrIn, GetxattrIn, Handle, InHeader, InitFlags, InitIn, InitOut, InterruptIn,
    Kstatfs, OpenIn, OpenOut, OutHeader, ReadIn, ReleaseIn, Request, RequestHeader, SetattrIn,
    SupplementaryGroups, WriteIn, WriteOut, reply,
};
use zerocopy::{FromBytes, IntoBytes};

use super::file_system::{
    Attributes, Changes, Directories, FileData, FileLocks, FileRanges, Files, Ioctls, Lookup,
    Migration, Namespace, SessionLifecycle, Superblock, Xattrs,
};
use super::*;
use crate::sys::buffers::Segments;

/// Records each call, and replies with numbers that tests can recognise.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
}

impl Recorder {
    fn note(&self, call: String) {
        self.calls.lock().expect("no panic before").push(call);
    }

    fn entry(&self, call: String) -> io::Result<EntryOut> {
        self.note(call);
        Ok(EntryOut {
            nodeid: 77,
            ..EntryOut::default()
        })
    }
}

fn text(name: Name<'_>) -> &str {
    name.as_c_str().to_str().unwrap_or("(bytes)")
}

impl SessionLifecycle for Recorder {
    fn init(&self, offered: InitFlags) -> io::Result<InitFlags> {
        self.note("init".into());
        Ok(offered & (InitFlags::DO_READDIRPLUS | InitFlags::SETXATTR_EXT))
    }

    fn destroy(&self) {
        self.note("destroy".into());
    }
}

impl Ioctls for Recorder {}

impl Migration for Recorder {}

impl Changes for Recorder {}

impl Lookup for Recorder {
    fn lookup(&self, parent: NodeId, name: Name<'_>) -> io::Result<EntryOut> {
        if name.as_c_str() == c"missing" {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        self.entry(format!("lookup {parent} {}", text(name)))
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.note(format!("forget {node} {count}"));
    }
}

impl Attributes for Recorder {
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> io::Result<AttrOut> {
        self.note(format!("getattr {node} {handle:?}"));
        Ok(AttrOut {
            attr_valid: 5,
            ..AttrOut::default()
        })
    }

    fn setattr(&self, caller: Caller, node: NodeId, _args: &SetattrIn) -> io::Result<AttrOut> {
        self.note(format!("setattr {node} by {}", caller.uid.get()));
        Ok(AttrOut::default())
    }
}

impl Namespace for Recorder {
    fn readlink(&self, _node: NodeId, target: &mut [u8]) -> io::Result<usize> {
        target[..6].copy_from_slice(b"target");
        Ok(6)
    }

    fn symlink(
        &self,
        _creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> io::Result<EntryOut> {
        self.entry(format!("symlink {parent} {} {target:?}", text(name)))
    }

    fn mknod(
        &self,
        _: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
    ) -> io::Result<EntryOut> {
        self.entry(format!("mknod {parent} {} {mode:o} {rdev}", text(name)))
    }

    fn mkdir(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
    ) -> io::Result<EntryOut> {
        self.entry(format!(
            "mkdir {parent} {} {mode:o} umask {:o}",
            text(name),
            creator.umask
        ))
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> io::Result<()> {
        self.note(format!("unlink {parent} {}", text(name)));
        Ok(())
    }

    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> io::Result<()> {
        self.note(format!("rmdir {parent} {}", text(name)));
        Ok(())
    }

    fn rename(
        &self,
        _creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> io::Result<()> {
        self.note(format!(
            "rename {parent} {} {new_parent} {} {flags}",
            text(name),
            text(new_name)
        ));
        Ok(())
    }

    fn link(&self, node: NodeId, new_parent: NodeId, new_name: Name<'_>) -> io::Result<EntryOut> {
        self.entry(format!("link {node} {new_parent} {}", text(new_name)))
    }
}

impl Files for Recorder {
    fn open(&self, node: NodeId, args: &OpenIn) -> io::Result<OpenOut> {
        self.note(format!("open {node} {:#x}", args.flags));
        Ok(OpenOut {
            fh: 9,
            ..OpenOut::default()
        })
    }

    fn create(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        let groups: Vec<u32> = creator
            .groups
            .iter()
            .flat_map(|groups| groups.iter())
            .collect();
        let entry = self.entry(format!(
            "create {parent} {} {:o} {groups:?}",
            text(name),
            args.mode
        ))?;
        Ok((
            entry,
            OpenOut {
                fh: 9,
                ..OpenOut::default()
            },
        ))
    }

    fn release(&self, _node: NodeId, args: &ReleaseIn) -> io::Result<()> {
        self.note(format!("release {}", args.fh));
        Ok(())
    }

    fn fsync(&self, _node: NodeId, _handle: Handle, data_only: bool) -> io::Result<()> {
        self.note(format!("fsync {data_only}"));
        Ok(())
    }
}

impl FileData for Recorder {
    fn read(
        &self,
        _node: NodeId,
        args: &ReadIn,
        data: &mut Writer<'_>,
        mode: IoMode,
    ) -> io::Result<usize> {
        if mode == IoMode::NonBlocking {
            let _ = data.write(b"file");
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        if args.offset > 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(data.write(b"file data"))
    }

    fn write(&self, _node: NodeId, args: &WriteIn, data: &mut Reader<'_>) -> io::Result<usize> {
        let mut bytes = vec![0; data.remaining()];
        data.read(&mut bytes);
        self.note(format!(
            "write {} {}",
            args.offset,
            String::from_utf8_lossy(&bytes)
        ));
        Ok(bytes.len())
    }
}

impl FileRanges for Recorder {}

impl Directories for Recorder {
    fn opendir(&self, _node: NodeId, _args: &OpenIn) -> io::Result<OpenOut> {
        Ok(OpenOut::default())
    }

    fn readdir(
        &self,
        _node: NodeId,
        _args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()> {
        let _ = entries
            .push(3, 1, 8, b"first")
            .and_then(|()| entries.push(4, 2, 8, b"second"));
        Ok(())
    }

    fn readdirplus(
        &self,
        _node: NodeId,
        _args: &ReadIn,
        _entries: &mut DirentWriter<'_>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn releasedir(&self, _node: NodeId, _args: &ReleaseIn) -> io::Result<()> {
        Ok(())
    }

    fn fsyncdir(&self, _node: NodeId, _handle: Handle, _data_only: bool) -> io::Result<()> {
        Ok(())
    }
}

impl Xattrs for Recorder {
    fn getxattr(&self, _node: NodeId, _name: &CStr, value: &mut [u8]) -> io::Result<usize> {
        match value.len() {
            0 => {}
            1..5 => return Err(io::Error::from_raw_os_error(libc::ERANGE)),
            _ => value[..5].copy_from_slice(b"value"),
        }
        Ok(5)
    }
}

impl FileLocks for Recorder {
    fn getlk(&self, _node: NodeId, _args: &LkIn) -> io::Result<FileLock> {
        Ok(FileLock::default())
    }

    /// Held by another for as long as nobody interrupts.
    fn setlk(&self, _node: NodeId, _args: &LkIn, wait: LockWait<'_>) -> io::Result<()> {
        match wait {
            LockWait::No => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            LockWait::UntilFree(interruption) => interruption.run(|| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                Err(io::Error::from_raw_os_error(libc::EINTR))
            }),
        }
    }
}

impl Superblock for Recorder {
    fn statfs(&self, _node: NodeId) -> io::Result<Kstatfs> {
        Ok(Kstatfs::default())
    }
}

/// A session under test, and a driver that sends it requests.
struct Guest {
    session: Session<Recorder>,
    scratch: Scratch,
    mode: IoMode,
}

impl Guest {
    fn before_init() -> Self {
        Self {
            session: Session::new(Recorder::default()),
            scratch: Scratch::default(),
            mode: IoMode::Blocking,
        }
    }

    fn new() -> Self {
        let mut guest = Self::before_init();
        guest.init(38, InitFlags::all()).expect("INIT");
        guest
    }

    fn init(&mut self, minor: u32, offered: InitFlags) -> Result<InitOut, i32> {
        let mut asked = InitIn {
            major: 7,
            minor,
            max_readahead: 0x20000,
            ..InitIn::default()
        };
        asked.set_features(offered);
        let answer = self.call(Operation::Init(asked))?;
        Ok(reply::decode_init(&answer).expect("an INIT reply"))
    }

    /// Sends bytes in segments of `cut` bytes, with `room` bytes for the reply.
    fn send(&mut self, bytes: &mut [u8], room: usize, cut: usize) -> (Served, Vec<u8>) {
        let mut reply = vec![0xee; room];
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        // Each segment is an allocation of its own, so that no two are adjacent.
        let mut gaps: Vec<Vec<u8>> = bytes.chunks(cut).map(<[u8]>::to_vec).collect();
        gaps.iter_mut()
            .for_each(|part| assert!(readable.push_slice(part)));
        assert!(writable.push_slice(&mut reply));
        let served = serve(
            &self.session,
            &mut readable,
            &mut writable,
            &mut self.scratch,
            self.mode,
        );
        if let Served::Replied(len) = served {
            reply.truncate(len);
        }
        (served, reply)
    }

    fn call(&mut self, operation: Operation<'_>) -> Result<Vec<u8>, i32> {
        self.call_with(operation, Extensions::default(), &[])
    }

    fn call_with(
        &mut self,
        operation: Operation<'_>,
        extensions: Extensions<'_>,
        data: &[u8],
    ) -> Result<Vec<u8>, i32> {
        let mut bytes = encode(operation, extensions, data);
        let (_, replied) = self.send(&mut bytes, 1 << 20, 1 << 20);
        let reply = Reply::decode(&replied).expect("a reply");
        assert_eq!(reply.unique, Unique::new(42));
        reply.result.map(<[u8]>::to_vec)
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(
            &mut self
                .session
                .file_system
                .calls
                .lock()
                .expect("no panic before"),
        )
    }
}

#[allow(unsafe_code)] // plays the device, which is responsible for the segments
fn serve(
    session: &Session<Recorder>,
    readable: &mut Segments,
    writable: &mut Segments,
    scratch: &mut Scratch,
    mode: IoMode,
) -> Served {
    // SAFETY: the callers' buffers outlive the call.
    let mut reader = unsafe { readable.reader() };
    // SAFETY: as above, and no reference into them is used meanwhile.
    let mut writer = unsafe { writable.writer() };
    session.serve(&mut reader, &mut writer, scratch, mode)
}

fn encode(operation: Operation<'_>, extensions: Extensions<'_>, data: &[u8]) -> Vec<u8> {
    let header = RequestHeader {
        unique: Unique::new(42),
        node: NodeId::ROOT,
        uid: 1000,
        gid: 100,
        pid: 7,
    };
    let dialect = Dialect {
        minor: 38,
        setxattr_ext: true,
        security_ctx: false,
    };
    let mut bytes = Vec::new();
    let request = Request {
        operation,
        extensions,
    };
    request
        .encode(&header, dialect, &mut bytes)
        .expect("encodable");
    bytes.extend_from_slice(data);
    let len = u32::try_from(bytes.len()).expect("short");
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes
}
