//! The arguments of each operation, by name.

use std::ffi::CStr;
use std::fmt;

use bitflags::Flags;
use gangplank_fuse::{
    FsyncFlags, LkIn, Operation, ReleaseFlags, SetattrIn, SetattrValid, WriteFlags,
};

/// The value of an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(u64),
    /// A mode, in octal.
    Mode(u32),
    Text(String),
    Name(&'a CStr),
}

/// Name and value of each argument, in the order of the structure.
pub(crate) type Arguments<'a> = Vec<(&'static str, Value<'a>)>;

/// Names of files; not those of extended attributes, nor the target of a symbolic link.
pub(crate) fn names<'a>(operation: &Operation<'a>) -> [Option<&'a CStr>; 2] {
    use Operation as Op;
    match operation {
        Op::Lookup { name }
        | Op::Symlink { name, .. }
        | Op::Mknod { name, .. }
        | Op::Mkdir { name, .. }
        | Op::Unlink { name }
        | Op::Rmdir { name }
        | Op::Link { name, .. }
        | Op::Create { name, .. } => [Some(name), None],
        Op::Rename { name, new_name, .. } | Op::Rename2 { name, new_name, .. } => {
            [Some(name), Some(new_name)]
        }
        _ => [None, None],
    }
}

/// The operation's arguments, without padding, lock owners and what is always the same.
pub(crate) fn arguments<'a>(operation: &Operation<'a>) -> Arguments<'a> {
    use Operation as Op;
    use Value::{Mode, Name, Number, Text};
    let number = |value: u32| Number(value.into());
    let flags = |value: u32| Text(open_flags(value));
    match *operation {
        Op::Lookup { name }
        | Op::Unlink { name }
        | Op::Rmdir { name }
        | Op::Removexattr { name } => vec![("name", Name(name))],
        Op::Forget(args) => vec![("nlookup", Number(args.nlookup))],
        Op::Getattr(args) => match args.getattr_flags & 1 {
            0 => vec![],
            _ => vec![("fh", Number(args.fh))],
        },
        Op::Setattr(args) => changes(&args),
        Op::Readlink | Op::Statfs | Op::Destroy => vec![],
        Op::Symlink { name, target } => vec![("name", Name(name)), ("target", Name(target))],
        Op::Mknod { args, name } => vec![
            ("name", Name(name)),
            ("mode", Mode(args.mode)),
            ("rdev", number(args.rdev)),
            ("umask", Mode(args.umask)),
        ],
        Op::Mkdir { args, name } => vec![
            ("name", Name(name)),
            ("mode", Mode(args.mode)),
            ("umask", Mode(args.umask)),
        ],
        Op::Rename {
            args,
            name,
            new_name,
        } => vec![
            ("name", Name(name)),
            ("newdir", Number(args.newdir)),
            ("new_name", Name(new_name)),
        ],
        Op::Rename2 {
            args,
            name,
            new_name,
        } => vec![
            ("name", Name(name)),
            ("newdir", Number(args.newdir)),
            ("new_name", Name(new_name)),
            ("flags", number(args.flags)),
        ],
        Op::Link { args, name } => {
            vec![("oldnodeid", Number(args.oldnodeid)), ("name", Name(name))]
        }
        Op::Open(args) | Op::Opendir(args) => vec![("flags", flags(args.flags))],
        Op::Read(args) | Op::Readdir(args) | Op::Readdirplus(args) => vec![
            ("fh", Number(args.fh)),
            ("offset", Number(args.offset)),
            ("size", number(args.size)),
        ],
        Op::Write(args) => {
            let mut arguments = vec![
                ("fh", Number(args.fh)),
                ("offset", Number(args.offset)),
                ("size", number(args.size)),
            ];
            let flags = WriteFlags::from_bits_retain(args.write_flags) - WriteFlags::LOCKOWNER;
            push_flags(&mut arguments, "write_flags", &flags);
            arguments
        }
        Op::Release(args) | Op::Releasedir(args) => {
            let mut arguments = vec![("fh", Number(args.fh)), ("flags", flags(args.flags))];
            let flags = ReleaseFlags::from_bits_retain(args.release_flags);
            push_flags(&mut arguments, "release_flags", &flags);
            arguments
        }
        Op::Fsync(args) | Op::Fsyncdir(args) => {
            let mut arguments = vec![("fh", Number(args.fh))];
            let flags = FsyncFlags::from_bits_retain(args.fsync_flags);
            push_flags(&mut arguments, "fsync_flags", &flags);
            arguments
        }
        Op::Setxattr { args, name, .. } => vec![
            ("name", Name(name)),
            ("size", number(args.size)),
            ("flags", number(args.flags)),
        ],
        Op::Getxattr { args, name } => vec![("name", Name(name)), ("size", number(args.size))],
        Op::Listxattr(args) => vec![("size", number(args.size))],
        Op::Flush(args) => vec![("fh", Number(args.fh))],
        Op::Init(args) => vec![
            ("version", Text(format!("{}.{}", args.major, args.minor))),
            ("max_readahead", number(args.max_readahead)),
            ("flags", Text(names_of(&args.features()))),
        ],
        Op::Getlk(args) | Op::Setlk(args) | Op::Setlkw(args) => lock(&args),
        Op::Access(args) => vec![("mask", Mode(args.mask))],
        Op::Create { args, name } => vec![
            ("name", Name(name)),
            ("flags", flags(args.flags)),
            ("mode", Mode(args.mode)),
            ("umask", Mode(args.umask)),
        ],
        Op::Tmpfile { args, .. } => vec![
            ("flags", flags(args.flags)),
            ("mode", Mode(args.mode)),
            ("umask", Mode(args.umask)),
        ],
        Op::Interrupt(args) => vec![("unique", Number(args.unique))],
        Op::Bmap(args) => vec![
            ("block", Number(args.block)),
            ("blocksize", number(args.blocksize)),
        ],
        Op::Ioctl(args) => vec![
            ("fh", Number(args.fh)),
            ("cmd", Text(format!("{:#x}", args.cmd))),
            ("in_size", number(args.in_size)),
            ("out_size", number(args.out_size)),
        ],
        Op::Poll(args) => vec![
            ("fh", Number(args.fh)),
            ("events", Text(format!("{:#x}", args.events))),
        ],
        Op::NotifyReply(args) => vec![("offset", Number(args.offset)), ("size", number(args.size))],
        Op::BatchForget(nodes) => {
            let list = nodes
                .iter()
                .map(|one| format!("{}:{}", one.nodeid, one.nlookup));
            vec![
                ("count", Number(nodes.len() as u64)),
                ("nodes", Text(list.collect::<Vec<_>>().join(","))),
            ]
        }
        Op::Fallocate(args) => vec![
            ("fh", Number(args.fh)),
            ("offset", Number(args.offset)),
            ("length", Number(args.length)),
            ("mode", number(args.mode)),
        ],
        Op::Lseek(args) => vec![
            ("fh", Number(args.fh)),
            ("offset", Number(args.offset)),
            ("whence", number(args.whence)),
        ],
        Op::CopyFileRange(args) | Op::CopyFileRange64(args) => vec![
            ("fh_in", Number(args.fh_in)),
            ("off_in", Number(args.off_in)),
            ("nodeid_out", Number(args.nodeid_out)),
            ("fh_out", Number(args.fh_out)),
            ("off_out", Number(args.off_out)),
            ("len", Number(args.len)),
        ],
        Op::Setupmapping(args) => vec![
            ("fh", Number(args.fh)),
            ("foffset", Number(args.foffset)),
            ("len", Number(args.len)),
            ("moffset", Number(args.moffset)),
        ],
        Op::Removemapping(mappings) => vec![("count", Number(mappings.len() as u64))],
        Op::Syncfs(_) | Op::CuseInit(_) => vec![],
        Op::Statx(args) => vec![("mask", Text(format!("{:#x}", args.sx_mask)))],
    }
}

fn changes(args: &SetattrIn) -> Arguments<'static> {
    use Value::{Mode, Number, Text};
    let valid = SetattrValid::from_bits_retain(args.valid);
    let time = |seconds: u64, nanoseconds| Text(format!("{seconds}.{nanoseconds:09}"));
    let now = || Text("now".to_owned());
    [
        (SetattrValid::FH, "fh", Number(args.fh)),
        (SetattrValid::MODE, "mode", Mode(args.mode)),
        (SetattrValid::UID, "uid", Number(args.uid.into())),
        (SetattrValid::GID, "gid", Number(args.gid.into())),
        (SetattrValid::SIZE, "size", Number(args.size)),
        (SetattrValid::ATIME_NOW, "atime", now()),
        (
            SetattrValid::ATIME,
            "atime",
            time(args.atime, args.atimensec),
        ),
        (SetattrValid::MTIME_NOW, "mtime", now()),
        (
            SetattrValid::MTIME,
            "mtime",
            time(args.mtime, args.mtimensec),
        ),
        (
            SetattrValid::CTIME,
            "ctime",
            time(args.ctime, args.ctimensec),
        ),
    ]
    .into_iter()
    .filter(|(field, name, value)| {
        let is_now = *value == Text("now".to_owned());
        let has_now = match *name {
            "atime" => valid.contains(SetattrValid::ATIME_NOW),
            "mtime" => valid.contains(SetattrValid::MTIME_NOW),
            _ => false,
        };
        valid.contains(*field) && (is_now || !has_now)
    })
    .map(|(_, name, value)| (name, value))
    .collect()
}

fn lock(args: &LkIn) -> Arguments<'static> {
    use Value::{Number, Text};
    let kind = match args.lk.r#type {
        0 => "F_RDLCK".to_owned(),
        1 => "F_WRLCK".to_owned(),
        2 => "F_UNLCK".to_owned(),
        other => other.to_string(),
    };
    vec![
        ("fh", Number(args.fh)),
        ("owner", Text(format!("{:#x}", args.owner))),
        ("start", Number(args.lk.start)),
        ("end", Number(args.lk.end)),
        ("type", Text(kind)),
        ("pid", Number(args.lk.pid.into())),
        ("flock", Number(u64::from(args.lk_flags & 1))),
    ]
}

fn push_flags<F: Flags<Bits = u32>>(arguments: &mut Arguments<'_>, name: &'static str, flags: &F) {
    if !flags.is_empty() {
        arguments.push((name, Value::Text(names_of(flags))));
    }
}

fn names_of<F: Flags>(flags: &F) -> String {
    let names: Vec<&str> = flags.iter_names().map(|(name, _)| name).collect();
    names.join("|")
}

/// The flags of open(2) that are the same on all architectures, by name, and the rest in octal: the
/// guest's architecture is not known.
fn open_flags(flags: u32) -> String {
    const NAMES: [(u32, &str); 11] = [
        (0o100, "O_CREAT"),
        (0o200, "O_EXCL"),
        (0o400, "O_NOCTTY"),
        (0o1000, "O_TRUNC"),
        (0o2000, "O_APPEND"),
        (0o4000, "O_NONBLOCK"),
        (0o4_010_000, "O_SYNC"),
        (0o10000, "O_DSYNC"),
        (0o1_000_000, "O_NOATIME"),
        (0o2_000_000, "O_CLOEXEC"),
        (0o10_000_000, "O_PATH"),
    ];
    let mut text = match flags & 0o3 {
        0 => "O_RDONLY",
        1 => "O_WRONLY",
        2 => "O_RDWR",
        _ => "O_ACCMODE",
    }
    .to_owned();
    let mut left = flags & !0o3;
    for (bits, name) in NAMES {
        if left & bits == bits {
            text = text + "|" + name;
            left &= !bits;
        }
    }
    if left != 0 {
        text = format!("{text}|{left:#o}").replace("0o", "0");
    }
    text
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Mode(mode) => write!(f, "0{mode:o}"),
            Self::Text(text) => f.write_str(text),
            // Escaped, so that a name can neither break a line nor send codes to a terminal.
            Self::Name(name) => write!(f, "\"{}\"", name.to_bytes().escape_ascii()),
        }
    }
}
