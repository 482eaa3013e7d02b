//! Tests of the session against a file system that records its calls.

use std::ffi::CStr;
use std::sync::Mutex;

use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::ops::attr::AttrOut;
use gangplank_fuse::reply::Reply;
use gangplank_fuse::{
    BatchForget, CreateIn, EntryOut, Extensions, FileLock, ForgetIn, ForgetOne, GetattrFlags,
    GetattrIn, GetxattrIn, Handle, InHeader, InitFlags, InitIn, InitOut, InterruptIn, Kstatfs,
    OpenIn, OpenOut, OutHeader, ReadIn, ReleaseIn, Request, RequestHeader, SetattrIn,
    SupplementaryGroups, WriteIn, WriteOut, reply,
};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

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

impl FileSystem for Recorder {
    fn init(&self, offered: InitFlags) -> InitFlags {
        self.note("init".into());
        offered & (InitFlags::DO_READDIRPLUS | InitFlags::SETXATTR_EXT)
    }

    fn destroy(&self) {
        self.note("destroy".into());
    }

    fn lookup(&self, parent: NodeId, name: Name<'_>) -> io::Result<EntryOut> {
        if name.as_c_str() == c"missing" {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        self.entry(format!("lookup {parent} {}", text(name)))
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.note(format!("forget {node} {count}"));
    }

    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> io::Result<AttrOut> {
        self.note(format!("getattr {node} {handle:?}"));
        Ok(AttrOut {
            attr_valid: 5,
            ..AttrOut::default()
        })
    }

    fn setattr(&self, caller: Caller, node: NodeId, _args: &SetattrIn) -> io::Result<AttrOut> {
        self.note(format!("setattr {node} by {}", caller.uid));
        Ok(AttrOut::default())
    }

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

    fn statfs(&self, _node: NodeId) -> io::Result<Kstatfs> {
        Ok(Kstatfs::default())
    }

    fn release(&self, _node: NodeId, args: &ReleaseIn) -> io::Result<()> {
        self.note(format!("release {}", args.fh));
        Ok(())
    }

    fn fsync(&self, _node: NodeId, _handle: Handle, data_only: bool) -> io::Result<()> {
        self.note(format!("fsync {data_only}"));
        Ok(())
    }

    fn getxattr(&self, _node: NodeId, _name: &CStr, value: &mut [u8]) -> io::Result<usize> {
        match value.len() {
            0 => {}
            1..5 => return Err(io::Error::from_raw_os_error(libc::ERANGE)),
            _ => value[..5].copy_from_slice(b"value"),
        }
        Ok(5)
    }

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

    fn getlk(&self, _node: NodeId, _args: &LkIn) -> io::Result<FileLock> {
        Ok(FileLock::default())
    }

    /// Behaves as if another owner held the lock for ever.
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

#[test]
fn init_accepts_the_flags_that_both_sides_want_from_kernels_of_all_ages() {
    for minor in [27, 31, 36, 38, 41, 45, 99] {
        let mut guest = Guest::before_init();
        let offered = InitFlags::ASYNC_READ
            | InitFlags::MAX_PAGES
            | InitFlags::DO_READDIRPLUS
            | InitFlags::EXPORT_SUPPORT;
        let answer = guest.init(minor, offered).expect("INIT");
        assert_eq!((answer.major, answer.minor), (7, minor.min(45)));
        let taken = InitFlags::ASYNC_READ | InitFlags::MAX_PAGES | InitFlags::DO_READDIRPLUS;
        assert_eq!(answer.features(), taken);
        assert_eq!((answer.max_write, answer.max_pages), (1 << 20, 256));
    }
}

#[test]
fn init_of_a_newer_major_is_answered_with_ours_and_of_an_old_kernel_refused() {
    let mut guest = Guest::before_init();
    let newer = guest.call(Operation::Init(InitIn {
        major: 8,
        minor: 1,
        ..InitIn::default()
    }));
    let newer = reply::decode_init(&newer.expect("answered")).expect("an INIT reply");
    assert_eq!((newer.major, newer.minor), (7, 45));
    assert_eq!(guest.init(26, InitFlags::empty()), Err(libc::EPROTO));
    assert_eq!(guest.calls(), [""; 0]);
}

#[test]
fn nothing_is_served_before_init_and_after_destroy() {
    let mut guest = Guest::before_init();
    assert_eq!(guest.call(Operation::Statfs), Err(libc::EIO));
    guest.init(38, InitFlags::empty()).expect("INIT");
    assert!(guest.call(Operation::Statfs).is_ok());
    assert!(guest.call(Operation::Destroy).is_ok());
    assert_eq!(guest.call(Operation::Statfs), Err(libc::EIO));
    assert_eq!(guest.calls(), ["init", "destroy"]);
}

#[test]
fn a_second_init_frees_the_state_of_the_session_before() {
    let mut guest = Guest::new();
    guest.init(38, InitFlags::empty()).expect("INIT");
    assert_eq!(guest.calls(), ["init", "destroy", "init"]);
}

#[test]
fn operations_reach_the_file_system_with_their_arguments() {
    let mut guest = Guest::new();
    guest.calls();
    let name = c"name";
    let create = Operation::Create {
        args: CreateIn {
            mode: 0o640,
            ..CreateIn::default()
        },
        name,
    };
    let groups = Extensions {
        groups: Some(SupplementaryGroups::new(&[5, 6])),
        ..Extensions::default()
    };
    assert!(guest.call(Operation::Lookup { name }).is_ok());
    assert!(guest.call_with(create, groups, &[]).is_ok());
    let rename = gangplank_fuse::Rename2In {
        newdir: 3,
        flags: 2,
        padding: 0,
    };
    assert!(
        guest
            .call(Operation::Rename2 {
                args: rename,
                name,
                new_name: c"new"
            })
            .is_ok()
    );
    let getattr = GetattrIn {
        getattr_flags: GetattrFlags::FH.bits(),
        fh: 8,
        ..GetattrIn::default()
    };
    assert!(guest.call(Operation::Getattr(getattr)).is_ok());
    assert!(
        guest
            .call(Operation::Getattr(GetattrIn {
                fh: 8,
                ..GetattrIn::default()
            }))
            .is_ok()
    );
    assert_eq!(
        guest.calls(),
        [
            "lookup 1 name",
            "create 1 name 640 [5, 6]",
            "rename 1 name 3 new 2",
            "getattr 1 Some(Handle(8))",
            "getattr 1 None"
        ]
    );
}

#[test]
fn names_that_lead_out_of_their_directory_never_reach_the_file_system() {
    let mut guest = Guest::new();
    guest.calls();
    for name in [c"..", c".", c"", c"a/b", c"/etc/passwd"] {
        assert_eq!(guest.call(Operation::Lookup { name }), Err(libc::EINVAL));
        assert_eq!(guest.call(Operation::Unlink { name }), Err(libc::EINVAL));
        let rename = gangplank_fuse::RenameIn { newdir: 1 };
        assert_eq!(
            guest.call(Operation::Rename {
                args: rename,
                name: c"ok",
                new_name: name
            }),
            Err(libc::EINVAL)
        );
    }
    assert_eq!(guest.calls(), [""; 0]);
}

#[test]
fn reads_and_writes_move_data_whatever_the_segments() {
    let mut guest = Guest::new();
    guest.calls();
    for cut in [1, 7, 40, 4096] {
        let read = Operation::Read(ReadIn {
            size: 9,
            ..ReadIn::default()
        });
        let (_, reply) = guest.send(&mut encode(read, Extensions::default(), &[]), 16 + 9, cut);
        assert_eq!(&reply[16..], b"file data");
        let write = Operation::Write(WriteIn {
            offset: 3,
            size: 5,
            ..WriteIn::default()
        });
        let (_, reply) = guest.send(&mut encode(write, Extensions::default(), b"hello"), 24, cut);
        let written = WriteOut::read_from_bytes(&reply[16..]).expect("a write reply");
        assert_eq!(written.size, 5);
        assert_eq!(guest.calls(), ["write 3 hello"]);
    }
}

#[test]
fn a_write_that_announces_another_size_than_it_brings_is_refused() {
    let mut guest = Guest::new();
    guest.calls();
    for size in [4, 6, 1 << 20] {
        let write = Operation::Write(WriteIn {
            size,
            ..WriteIn::default()
        });
        assert_eq!(
            guest.call_with(write, Extensions::default(), b"hello"),
            Err(libc::EINVAL)
        );
    }
    assert_eq!(guest.calls(), [""; 0]);
}

#[test]
fn attribute_values_come_whole_or_by_length_alone() {
    let mut guest = Guest::new();
    let get = |size| Operation::Getxattr {
        args: GetxattrIn { size, padding: 0 },
        name: c"user.a",
    };
    assert_eq!(
        guest.call(get(0)).expect("length"),
        [5, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(guest.call(get(4)), Err(libc::ERANGE));
    assert_eq!(guest.call(get(u32::MAX)).expect("value"), b"value");
}

#[test]
fn directory_entries_stop_where_the_guest_s_room_ends() {
    let mut guest = Guest::new();
    let list = |size| {
        Operation::Readdir(ReadIn {
            size,
            ..ReadIn::default()
        })
    };
    let all = guest.call(list(4096)).expect("entries");
    let some = guest.call(list(40)).expect("entries");
    assert_eq!(gangplank_fuse::dir::Dirents::new(&all).count(), 2);
    assert_eq!(gangplank_fuse::dir::Dirents::new(&some).count(), 1);
    assert_eq!(guest.call(list(3)).expect("none"), b"");
}

#[test]
fn forgets_have_no_reply() {
    let mut guest = Guest::new();
    guest.calls();
    let nodes = [
        ForgetOne {
            nodeid: 5,
            nlookup: 1,
        },
        ForgetOne {
            nodeid: 6,
            nlookup: 2,
        },
    ];
    for operation in [
        Operation::Forget(ForgetIn { nlookup: 3 }),
        Operation::BatchForget(BatchForget::new(&nodes)),
    ] {
        let (served, _) = guest.send(&mut encode(operation, Extensions::default(), &[]), 0, 4096);
        assert!(matches!(served, Served::Replied(0)));
    }
    assert_eq!(guest.calls(), ["forget 1 3", "forget 5 1", "forget 6 2"]);
}

#[test]
fn a_reply_that_does_not_fit_is_an_error_or_nothing() {
    let mut guest = Guest::new();
    for room in 0..150 {
        let lookup = Operation::Lookup { name: c"x" };
        let (_, reply) = guest.send(&mut encode(lookup, Extensions::default(), &[]), room, 4096);
        match room {
            0..16 => assert_eq!(reply.len(), 0),
            16..144 => assert_eq!(
                OutHeader::read_from_prefix(&reply)
                    .expect("a header")
                    .0
                    .error,
                -libc::EIO
            ),
            _ => assert_eq!(reply.len(), 144),
        }
    }
}

#[test]
fn unknown_and_unsupported_operations_get_enosys() {
    let mut guest = Guest::new();
    let mut bytes = InHeader {
        len: 40,
        opcode: 4711,
        unique: 9,
        ..InHeader::default()
    }
    .as_bytes()
    .to_vec();
    let (_, reply) = guest.send(&mut bytes, 64, 4096);
    assert_eq!(
        OutHeader::read_from_bytes(&reply).expect("a header"),
        OutHeader::error(Unique::new(9), libc::ENOSYS)
    );
    assert_eq!(
        guest.call(Operation::Bmap(gangplank_fuse::BmapIn::default())),
        Err(libc::ENOSYS)
    );
}

#[test]
fn a_header_that_lies_about_the_length_is_refused() {
    let mut guest = Guest::new();
    for len in [0, 39, 41, u32::MAX] {
        let mut bytes = InHeader {
            len,
            opcode: 17,
            unique: 9,
            ..InHeader::default()
        }
        .as_bytes()
        .to_vec();
        let (_, reply) = guest.send(&mut bytes, 128, 4096);
        assert_eq!(
            OutHeader::read_from_bytes(&reply).expect("a header").error,
            -libc::EINVAL
        );
    }
}

#[test]
fn a_lock_that_is_held_waits_until_interrupted() {
    let mut guest = Guest::new();
    let (served, _) = guest.send(
        &mut encode(
            Operation::Setlkw(LkIn::default()),
            Extensions::default(),
            &[],
        ),
        16,
        4096,
    );
    let Served::WaitsForLock(lock) = served else {
        panic!("the request does not wait: {served:?}")
    };
    let session = &guest.session;
    let mut reply = [0; 16];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut interrupt = encode(
                Operation::Interrupt(InterruptIn { unique: 42 }),
                Extensions::default(),
                &[],
            );
            let (mut readable, mut writable) = (Segments::default(), Segments::default());
            assert!(readable.push_slice(&mut interrupt));
            serve(
                session,
                &mut readable,
                &mut writable,
                &mut Scratch::default(),
                IoMode::Blocking,
            )
        });
        let mut segments = Segments::default();
        assert!(segments.push_slice(&mut reply));
        #[allow(unsafe_code)]
        // SAFETY: `reply` outlives the scope.
        let mut writer = unsafe { segments.writer() };
        assert_eq!(session.wait_for_lock(&lock, &mut writer), 16);
    });
    let header = OutHeader::read_from_bytes(&reply[..]).expect("a header");
    assert_eq!(header, OutHeader::error(Unique::new(42), libc::EINTR));
}

#[test]
fn an_interrupt_of_a_request_that_has_not_come_yet_is_asked_for_again() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.call(Operation::Interrupt(InterruptIn { unique: 4242 })),
        Err(libc::EAGAIN)
    );
}

#[test]
fn no_more_requests_wait_than_there_are_threads_for() {
    let mut guest = Guest::new();
    let mut waiting = 0;
    for unique in 0..300u64 {
        let mut bytes = encode(
            Operation::Setlkw(LkIn::default()),
            Extensions::default(),
            &[],
        );
        bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        match guest.send(&mut bytes, 16, 4096).0 {
            Served::WaitsForLock(_) => waiting += 1,
            Served::Replied(len) => assert_eq!(len, 16),
            Served::WouldBlock => panic!("the request may block"),
        }
    }
    assert_eq!(waiting, 256);
}

#[test]
fn a_request_s_number_waits_only_once() {
    let mut guest = Guest::new();
    let wait = encode(
        Operation::Setlkw(LkIn::default()),
        Extensions::default(),
        &[],
    );
    assert!(matches!(
        guest.send(&mut wait.clone(), 16, 4096).0,
        Served::WaitsForLock(_)
    ));
    let (_, reply) = guest.send(&mut wait.clone(), 16, 4096);
    let header = OutHeader::read_from_bytes(&reply).expect("a header");
    assert_eq!(header, OutHeader::error(Unique::new(42), libc::EINVAL));
}

#[test]
fn requests_that_would_wait_for_a_disk_are_not_started_in_non_blocking_mode() {
    let mut guest = Guest::new();
    guest.calls();
    guest.mode = IoMode::NonBlocking;
    let read = Operation::Read(ReadIn {
        size: 9,
        ..ReadIn::default()
    });
    for operation in [Operation::Fsync(gangplank_fuse::FsyncIn::default()), read] {
        let mut bytes = encode(operation, Extensions::default(), &[]);
        let (served, _) = guest.send(&mut bytes, 64, 4096);
        assert!(matches!(served, Served::WouldBlock), "{served:?}");
    }
    assert!(guest.calls().is_empty());
    // Requests that do not wait are served.
    guest
        .call(Operation::Getattr(GetattrIn::default()))
        .expect("attributes");
}

proptest! {
    #[test]
    fn any_bytes_get_a_reply_that_fits_and_harm_nothing(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        opcode in 0u32..60,
        room in 0usize..300,
        cut in 1usize..200,
        honest in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        let len = u32::try_from(bytes.len()).expect("short");
        if honest && bytes.len() >= 8 {
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        }
        let (served, reply) = guest.send(&mut bytes, room, cut);
        if let Served::Replied(len) = served {
            prop_assert!(len <= room && (len == 0 || len >= 16));
            if len > 0 {
                prop_assert!(Reply::decode(&reply).is_ok());
            }
        }
    }
}
