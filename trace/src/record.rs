//! One record: a request, what became of it, and how long that took.

use std::ffi::CStr;

use gangplank_fuse::{DecodeError, Dialect, InHeader, Opcode, Operation, Request};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::VERSION;

/// Bytes of a request's arguments that a record has at most. A whole block then fits into PIPE_BUF,
/// so that a FIFO takes it in one piece. Every request but BATCH_FORGET and SYMLINK with a target
/// of almost 4 KiB has fewer.
pub const MAX_ARGS: usize = 3800;

/// What a record tells.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Kind {
    /// A request and its result.
    #[default]
    Request,
    /// A worker begins to serve the guest. If another was before it that did not end, that one's
    /// last records may be missing.
    WorkerBegins,
    /// A worker ends: its guest has gone.
    WorkerEnds,
}

/// A record.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record {
    /// What it tells.
    pub kind: Kind,
    /// The guest's number, as in the log.
    pub guest: u32,
    /// The ring that the request came by: 0 is the high-priority queue.
    pub ring: u16,
    /// When a thread began to serve the request, in nanoseconds since the epoch.
    pub time: u64,
    /// How long it took until its reply was written, in nanoseconds.
    pub duration: u64,
    /// The error in the reply; 0 for success.
    pub errno: u32,
    /// Bytes of the reply, its header included; 0 for an operation without a reply.
    pub reply_len: u32,
    /// The first eight bytes of the reply's structures: see [`Record::told`].
    pub words: [u64; 2],
    /// How the session encodes requests.
    pub dialect: Dialect,
    /// The request's header.
    pub header: InHeader,
    /// Bytes of the arguments in the request, without file data.
    pub args_len: u32,
    /// The arguments, or their beginning. Values of extended attributes are left out.
    pub args: Vec<u8>,
}

/// The fixed part of a record.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Head {
    version: u8,
    kind: u8,
    ring: u16,
    guest: u32,
    duration: u64,
    errno: u32,
    reply_len: u32,
    minor: u32,
    flags: u32,
    words: [u64; 2],
    args_len: u32,
    padding: u32,
}

/// Bytes before the arguments.
pub(crate) const HEAD_LEN: usize = size_of::<Head>() + size_of::<InHeader>();

const _: () = assert!(HEAD_LEN == 56 + 40);

const SETXATTR_EXT: u32 = 1;
const SECURITY_CTX: u32 = 2;

/// What a successful reply told, beside its data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// Nothing of note.
    Nothing,
    /// An entry: the id of its node, 0 for a name that does not exist.
    Node(u64),
    /// A handle.
    Handle(u64),
    /// An entry that is open: node id and handle.
    Created(u64, u64),
    /// A count of bytes that were read, written or copied.
    Bytes(u64),
    /// A position.
    Offset(u64),
}

impl Record {
    /// Appends the record's packet. Cuts the arguments to [`MAX_ARGS`], and leaves out the value of
    /// an extended attribute.
    pub(crate) fn encode(&self, args: &[u8], out: &mut Vec<u8>) {
        let head = Head {
            version: VERSION,
            kind: match self.kind {
                Kind::Request => 0,
                Kind::WorkerBegins => 1,
                Kind::WorkerEnds => 2,
            },
            ring: self.ring,
            guest: self.guest,
            duration: self.duration,
            errno: self.errno,
            reply_len: self.reply_len,
            minor: self.dialect.minor,
            flags: if self.dialect.setxattr_ext {
                SETXATTR_EXT
            } else {
                0
            } | if self.dialect.security_ctx {
                SECURITY_CTX
            } else {
                0
            },
            words: self.words,
            args_len: u32::try_from(args.len()).unwrap_or(u32::MAX),
            padding: 0,
        };
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(self.header.as_bytes());
        let end = match self.header.opcode() {
            Ok(Opcode::Setxattr) => self.end_of_xattr_name(args),
            _ => args.len(),
        };
        out.extend_from_slice(args.get(..end.min(MAX_ARGS)).unwrap_or_default());
    }

    /// Where the value of an extended attribute begins.
    fn end_of_xattr_name(&self, args: &[u8]) -> usize {
        let fixed = if self.dialect.setxattr_ext { 16 } else { 8 };
        let name = args.get(fixed..).unwrap_or_default();
        let name = CStr::from_bytes_until_nul(name);
        name.map_or(args.len().min(fixed), |name| {
            fixed + name.to_bytes_with_nul().len()
        })
    }

    /// Reads a packet of the format's version; `None` if it has another, or is too short.
    pub(crate) fn decode(time: u64, packet: &[u8]) -> Option<Self> {
        let (head, rest) = Head::read_from_prefix(packet).ok()?;
        let (header, args) = InHeader::read_from_prefix(rest).ok()?;
        if head.version != VERSION {
            return None;
        }
        Some(Self {
            kind: match head.kind {
                0 => Kind::Request,
                1 => Kind::WorkerBegins,
                2 => Kind::WorkerEnds,
                _ => return None,
            },
            guest: head.guest,
            ring: head.ring,
            time,
            duration: head.duration,
            errno: head.errno,
            reply_len: head.reply_len,
            words: head.words,
            dialect: Dialect {
                minor: head.minor,
                setxattr_ext: head.flags & SETXATTR_EXT != 0,
                security_ctx: head.flags & SECURITY_CTX != 0,
            },
            header,
            args_len: head.args_len,
            args: args.to_vec(),
        })
    }

    /// Completes the arguments by zeros in place of what was left out, so that they can be decoded.
    pub fn complete(&mut self) {
        if self.header.opcode() == Ok(Opcode::Setxattr)
            && let Ok(len) = usize::try_from(self.args_len)
            && len <= 1 << 20
            && self.args.len() < len
        {
            self.args.resize(len, 0);
        }
    }

    /// The request.
    ///
    /// # Errors
    /// The guest sent none, or the record has not all of its arguments.
    pub fn request(&self) -> Result<Request<'_>, DecodeError> {
        Operation::decode(&self.header, &self.args, self.dialect)
    }

    /// What the reply told; nothing after an error.
    #[must_use]
    pub fn told(&self) -> Told {
        let [first, second] = self.words;
        let low = first & u64::from(u32::MAX);
        let data = u64::from(self.reply_len.saturating_sub(16));
        match self.header.opcode() {
            _ if self.errno != 0 => Told::Nothing,
            Ok(Opcode::Lookup | Opcode::Mknod | Opcode::Mkdir | Opcode::Symlink | Opcode::Link) => {
                Told::Node(first)
            }
            Ok(Opcode::Create | Opcode::Tmpfile) => Told::Created(first, second),
            Ok(Opcode::Open | Opcode::Opendir) => Told::Handle(first),
            Ok(Opcode::Write | Opcode::CopyFileRange) => Told::Bytes(low),
            Ok(Opcode::CopyFileRange64) => Told::Bytes(first),
            Ok(Opcode::Getxattr | Opcode::Listxattr) if data == 8 && self.asks_for_size() => {
                Told::Bytes(low)
            }
            Ok(
                Opcode::Read
                | Opcode::Readdir
                | Opcode::Readdirplus
                | Opcode::Readlink
                | Opcode::Getxattr
                | Opcode::Listxattr,
            ) => Told::Bytes(data),
            Ok(Opcode::Lseek) => Told::Offset(first),
            _ => Told::Nothing,
        }
    }

    fn asks_for_size(&self) -> bool {
        matches!(
            self.request().map(|request| request.operation),
            Ok(Operation::Getxattr { args, .. } | Operation::Listxattr(args)) if args.size == 0
        )
    }
}
