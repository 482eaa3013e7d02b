//! A guest that sends requests as bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use gangplank_fuse::reply::{self, Reply};
use gangplank_fuse::{Dialect, Extensions, InitIn, Operation, Request, RequestHeader, Unique};

use super::*;
use crate::device::request::Scratch;
use crate::session::{Served, Session};

/// A guest that sends bytes, and what it found out before the request that is interrupted.
pub(super) struct Player {
    pub(super) session: Session<PassthroughFs>,
    scratch: Scratch,
    pub(super) directory: TempDir,
}

/// A reply: its payload, or the errno.
pub(super) type Answer = Result<Vec<u8>, i32>;

/// A request as bytes.
pub(super) type Bytes = Vec<u8>;

impl Player {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let permit = |path: &Path, mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, permissions).expect("changed");
        };
        for name in ["old", "other", "gone"] {
            let path = directory.path().join(name);
            std::fs::write(&path, name).expect("written");
            permit(&path, 0o644);
        }
        let empty = directory.path().join("empty");
        std::fs::create_dir(&empty).expect("made");
        permit(&empty, 0o755);
        let options = Options {
            xattr: true,
            ..Options::default()
        };
        let fs = PassthroughFs::new(share(directory.path(), options, abilities()));
        let mut player = Self {
            session: Session::new(fs),
            scratch: Scratch::default(),
            directory,
        };
        let mut init = InitIn {
            major: 7,
            minor: 38,
            ..InitIn::default()
        };
        init.set_features(InitFlags::all() - InitFlags::NO_OPEN_SUPPORT);
        player.ask(ROOT, Operation::Init(init)).expect("INIT");
        player
    }

    pub(super) fn serve(&mut self, bytes: &Bytes, earlier: Option<Interrupted>) -> Answer {
        let (mut bytes, mut room) = (bytes.clone(), vec![0; 1 << 16]);
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        assert!(readable.push_slice(&mut bytes) && writable.push_slice(&mut room));
        #[allow(unsafe_code)]
        // SAFETY: the bytes outlive the call and are not used otherwise meanwhile.
        let mut reader = unsafe { readable.reader() };
        #[allow(unsafe_code)]
        // SAFETY: the same holds for the room.
        let mut writer = unsafe { writable.writer() };
        let scratch = &mut self.scratch;
        let served = match earlier {
            None => {
                let mode = IoMode::Blocking;
                self.session.serve(&mut reader, &mut writer, scratch, mode)
            }
            Some(earlier) => self
                .session
                .repeat(&mut reader, &mut writer, scratch, earlier),
        };
        let Served::Replied(len) = served else {
            panic!("{served:?}");
        };
        if len == 0 {
            return Ok(Vec::new());
        }
        let reply = Reply::decode(&room[..len]).expect("a reply");
        reply.result.map(<[u8]>::to_vec)
    }

    pub(super) fn ask(&mut self, node: NodeId, operation: Operation<'_>) -> Answer {
        self.serve(&encode(node, operation, &[]), None)
    }

    pub(super) fn find(&mut self, name: &CStr) -> NodeId {
        let entry = self.ask(ROOT, Operation::Lookup { name }).expect("found");
        let entry = reply::decode_entry(&entry).expect("an entry");
        NodeId::new(entry.nodeid)
    }

    pub(super) fn open(&mut self, node: NodeId, flags: i32) -> u64 {
        let args = OpenIn {
            flags: flags.cast_unsigned() | LARGE_FILE,
            ..OpenIn::default()
        };
        let opened = self.ask(node, Operation::Open(args)).expect("opened");
        reply::decode_open(&opened).expect("an open reply").fh
    }

    /// What is in the share: for each path its type and permissions, number of links, and content.
    pub(super) fn tree(&self) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
        let entries = std::fs::read_dir(self.directory.path()).expect("listed");
        let described = entries.map(|entry| {
            let entry = entry.expect("an entry");
            let stat = entry.path().symlink_metadata().expect("attributes");
            let content = match stat.file_type() {
                kind if kind.is_file() => std::fs::read(entry.path()).expect("read"),
                kind if kind.is_symlink() => {
                    let target = std::fs::read_link(entry.path()).expect("read");
                    target.into_os_string().into_encoded_bytes()
                }
                _ => Vec::new(),
            };
            let name = entry.file_name().into_string().expect("text");
            (name, (stat.permissions().mode(), stat.nlink(), content))
        });
        described.collect()
    }
}

pub(super) fn encode(node: NodeId, operation: Operation<'_>, data: &[u8]) -> Bytes {
    let header = RequestHeader {
        unique: Unique::new(42),
        node,
        uid: 0,
        gid: 0,
        pid: 7,
    };
    let dialect = Dialect {
        minor: 38,
        setxattr_ext: false,
        security_ctx: false,
    };
    let request = Request {
        operation,
        extensions: Extensions::default(),
    };
    let mut bytes = Vec::new();
    request
        .encode(&header, dialect, &mut bytes)
        .expect("encodable");
    bytes.extend_from_slice(data);
    let len = u32::try_from(bytes.len()).expect("short");
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes
}
