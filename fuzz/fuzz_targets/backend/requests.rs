//! A guest that sends the fuzzer's requests, mostly on nodes and handles from earlier replies.

use std::ffi::CStr;

use gangplank_fuse::reply::{self, Reply};
use gangplank_fuse::*;
use zerocopy::IntoBytes;

use crate::input::Input;

/// Valid names, some of which exist, and invalid ones.
const NAMES: [&CStr; 14] = [
    c"f", c"d", c"l", c"a", c"b", c"c", c"", c".", c"..", c"/", c"a/b", c"../secret", c"/etc/passwd",
    c"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
];

/// Names of extended attributes.
const ATTRIBUTES: [&CStr; 4] = [c"user.a", c"user.", c"security.capability", c""];

/// The nodes and handles that the guest has, and its protocol state.
#[derive(Default)]
pub struct Guest {
    nodes: Vec<u64>,
    handles: Vec<u64>,
    dialect: Dialect,
    unique: u64,
}

impl Guest {
    /// A well-formed INIT that offers everything.
    pub fn init(&mut self) -> Vec<u8> {
        self.encode(0, Operation::Init(offer(45)), &[])
    }

    /// The next request.
    pub fn request(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let kind = input.byte();
        let node = self.node(input);
        let operation = match kind % 48 {
            0 => return self.raw(node, input),
            1 => Operation::Init(offer(u32::from(input.byte() % 46))),
            2 => Operation::Destroy,
            3..6 => Operation::Lookup { name: name(input) },
            6 => Operation::Forget(ForgetIn {
                nlookup: input.offset(),
            }),
            7 => Operation::Getattr(GetattrIn {
                getattr_flags: input.byte().into(),
                dummy: 0,
                fh: self.handle(input),
            }),
            8 | 9 => Operation::Setattr(self.setattr(input)),
            10 => Operation::Readlink,
            11 => Operation::Symlink {
                name: name(input),
                target: name(input),
            },
            12 => Operation::Mknod {
                args: MknodIn {
                    mode: mknod_mode(input),
                    umask: input.u16().into(),
                    ..Default::default()
                },
                name: name(input),
            },
            13 => Operation::Mkdir {
                args: MkdirIn {
                    mode: input.u16().into(),
                    umask: input.u16().into(),
                },
                name: name(input),
            },
            14 => Operation::Unlink { name: name(input) },
            15 => Operation::Rmdir { name: name(input) },
            16 => Operation::Rename {
                args: RenameIn {
                    newdir: self.node(input),
                },
                name: name(input),
                new_name: name(input),
            },
            17 => Operation::Rename2 {
                args: Rename2In {
                    newdir: self.node(input),
                    flags: input.byte().into(),
                    padding: 0,
                },
                name: name(input),
                new_name: name(input),
            },
            18 => Operation::Link {
                args: LinkIn {
                    oldnodeid: self.node(input),
                },
                name: name(input),
            },
            19 | 20 => Operation::Open(OpenIn {
                flags: input.u32(),
                open_flags: input.byte().into(),
            }),
            21 | 22 => Operation::Read(self.read(input)),
            23..26 => return self.write(node, input),
            26 => Operation::Statfs,
            27 => Operation::Release(ReleaseIn {
                fh: self.handle(input),
                release_flags: input.byte().into(),
                ..Default::default()
            }),
            28 => Operation::Fsync(FsyncIn {
                fh: self.handle(input),
                fsync_flags: 1,
                padding: 0,
            }),
            29 => Operation::Setxattr {
                args: SetxattrIn {
                    flags: input.byte().into(),
                    ..Default::default()
                },
                name: attribute(input),
                value: b"value",
            },
            30 => Operation::Getxattr {
                args: GetxattrIn {
                    size: input.u32(),
                    padding: 0,
                },
                name: attribute(input),
            },
            31 => Operation::Listxattr(GetxattrIn {
                size: input.u32(),
                padding: 0,
            }),
            32 => Operation::Removexattr {
                name: attribute(input),
            },
            33 => Operation::Flush(FlushIn {
                fh: self.handle(input),
                lock_owner: input.byte().into(),
                ..Default::default()
            }),
            34 => Operation::Opendir(OpenIn {
                flags: input.u32(),
                open_flags: 0,
            }),
            35 => Operation::Readdir(self.read(input)),
            36 => Operation::Readdirplus(self.read(input)),
            37 => Operation::Releasedir(ReleaseIn {
                fh: self.handle(input),
                ..Default::default()
            }),
            38 => Operation::Getlk(self.lock(input)),
            39 => Operation::Setlk(self.lock(input)),
            40 => Operation::Setlkw(self.lock(input)),
            41 => Operation::Create {
                args: CreateIn {
                    flags: input.u32(),
                    mode: u32::from(input.u16()),
                    umask: input.u16().into(),
                    open_flags: input.byte().into(),
                },
                name: name(input),
            },
            42 => Operation::Fallocate(FallocateIn {
                fh: self.handle(input),
                offset: input.offset(),
                length: input.offset(),
                mode: input.byte().into(),
                padding: 0,
            }),
            43 => Operation::Lseek(LseekIn {
                fh: self.handle(input),
                offset: input.offset(),
                whence: input.byte().into(),
                padding: 0,
            }),
            44 => Operation::CopyFileRange(CopyFileRangeIn {
                fh_in: self.handle(input),
                off_in: input.offset(),
                nodeid_out: self.node(input),
                fh_out: self.handle(input),
                off_out: input.offset(),
                len: input.offset(),
                flags: 0,
            }),
            45 => Operation::Statx(StatxIn {
                sx_mask: input.u32(),
                sx_flags: input.u32(),
                fh: self.handle(input),
                ..Default::default()
            }),
            46 => Operation::Tmpfile {
                args: CreateIn {
                    flags: input.u32(),
                    mode: input.u16().into(),
                    ..Default::default()
                },
                name: c"/",
            },
            _ => return self.batch_forget(input),
        };
        self.encode(node, operation, &[])
    }

    /// Checks the form of a reply and takes its nodes and handles.
    pub fn reply(&mut self, request: &[u8], bytes: &[u8]) {
        let Some(header) = header_of(request) else {
            return;
        };
        if bytes.is_empty() {
            return;
        }
        let reply = Reply::decode(bytes).expect("a reply that can be decoded");
        let stated = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        assert_eq!(
            stated as usize,
            bytes.len(),
            "the reply's length differs from the bytes written"
        );
        assert_eq!(
            reply.unique.get(),
            header.unique,
            "the reply belongs to another request"
        );
        let (Ok(payload), Ok(opcode)) = (reply.result, header.opcode()) else {
            return;
        };
        match opcode {
            Opcode::Init => {
                let answer = reply::decode_init(payload).expect("an INIT reply");
                self.dialect = answer.dialect(&offer(answer.minor));
            }
            Opcode::Lookup | Opcode::Mknod | Opcode::Mkdir | Opcode::Symlink | Opcode::Link => {
                self.nodes
                    .push(reply::decode_entry(payload).expect("an entry").nodeid);
            }
            Opcode::Open | Opcode::Opendir => {
                self.handles
                    .push(reply::decode_open(payload).expect("an open reply").fh);
            }
            Opcode::Create | Opcode::Tmpfile => {
                let (entry, opened) = reply::decode_create(payload).expect("a create reply");
                self.nodes.push(entry.nodeid);
                self.handles.push(opened.fh);
            }
            Opcode::Readdirplus => {
                for entry in gangplank_fuse::dir::Direntplusses::new(payload) {
                    self.nodes.push(entry.expect("an entry").entry_out.nodeid);
                }
            }
            Opcode::Readdir => {
                for entry in gangplank_fuse::dir::Dirents::new(payload) {
                    let name = entry.expect("an entry").name;
                    assert!(!name.is_empty() && !name.contains(&b'/'));
                }
            }
            _ => {}
        }
    }

    fn node(&self, input: &mut Input<'_>) -> u64 {
        pick(&self.nodes, input, 1)
    }

    fn handle(&self, input: &mut Input<'_>) -> u64 {
        pick(&self.handles, input, 0)
    }

    fn read(&self, input: &mut Input<'_>) -> ReadIn {
        ReadIn {
            fh: self.handle(input),
            offset: input.offset(),
            size: input.offset() as u32,
            ..Default::default()
        }
    }

    fn lock(&self, input: &mut Input<'_>) -> LkIn {
        LkIn {
            fh: self.handle(input),
            owner: (input.byte() % 4).into(),
            lk: FileLock {
                start: input.offset(),
                end: input.offset(),
                r#type: (input.byte() % 4).into(),
                pid: 1,
            },
            lk_flags: (input.byte() & 1).into(),
            padding: 0,
        }
    }

    fn setattr(&self, input: &mut Input<'_>) -> SetattrIn {
        SetattrIn {
            // Without owners: an ordinary user could not remove a file of another owner.
            valid: u32::from(input.u16()) & !(SetattrValid::UID | SetattrValid::GID).bits(),
            fh: self.handle(input),
            size: input.offset(),
            atime: input.offset(),
            mtime: input.offset(),
            atimensec: input.u32(),
            mtimensec: input.u32(),
            mode: input.u16().into(),
            ..Default::default()
        }
    }

    fn write(&mut self, node: u64, input: &mut Input<'_>) -> Vec<u8> {
        let len = usize::from(input.byte());
        let data = vec![7; len];
        let args = WriteIn {
            fh: self.handle(input),
            offset: input.offset(),
            size: len as u32,
            write_flags: input.byte().into(),
            flags: input.u32(),
            ..Default::default()
        };
        self.encode(node, Operation::Write(args), &data)
    }

    fn batch_forget(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let nodes: Vec<ForgetOne> = (0..input.byte() % 8)
            .map(|_| ForgetOne {
                nodeid: self.node(input),
                nlookup: input.offset(),
            })
            .collect();
        self.encode(0, Operation::BatchForget(BatchForget::new(&nodes)), &[])
    }

    /// A valid or invalid header, with any bytes behind it.
    fn raw(&mut self, node: u64, input: &mut Input<'_>) -> Vec<u8> {
        self.unique += 2;
        let opcode = u32::from(input.byte() % 64);
        let len = usize::from(input.byte());
        let arguments = input.bytes(len);
        let right = input.byte() & 7 != 0;
        let header = InHeader {
            len: if right {
                40 + arguments.len() as u32
            } else {
                input.u32()
            },
            opcode: if opcode == 63 { input.u32() } else { opcode },
            unique: self.unique,
            nodeid: node,
            total_extlen: if right { 0 } else { input.u16() },
            ..Default::default()
        };
        [header.as_bytes(), arguments].concat()
    }

    fn encode(&mut self, node: u64, operation: Operation<'_>, data: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let header = RequestHeader {
            unique: Unique::new(self.unique),
            node: NodeId::new(node),
            ..Default::default()
        };
        let mut bytes = Vec::new();
        Request::from(operation)
            .encode(&header, self.dialect, &mut bytes)
            .expect("short requests can be encoded");
        bytes.extend_from_slice(data);
        bytes
    }
}

fn header_of(request: &[u8]) -> Option<InHeader> {
    let (header, _) = <InHeader as zerocopy::FromBytes>::read_from_prefix(request).ok()?;
    Some(header)
}

/// Mostly one of `known`, sometimes `first` or any number.
fn pick(known: &[u64], input: &mut Input<'_>, first: u64) -> u64 {
    match input.byte() {
        250..=255 => input.u64(),
        choice => match usize::from(choice) % (known.len() + 1) {
            0 => first,
            index => known[index - 1],
        },
    }
}

fn name(input: &mut Input<'_>) -> &'static CStr {
    NAMES[usize::from(input.byte()) % NAMES.len()]
}

fn attribute(input: &mut Input<'_>) -> &'static CStr {
    ATTRIBUTES[usize::from(input.byte()) % ATTRIBUTES.len()]
}

/// Any type of file except devices, which would be the host's.
fn mknod_mode(input: &mut Input<'_>) -> u32 {
    let kinds = [0o100_000, 0o010_000, 0o140_000, 0o120_000, 0o040_000, 0];
    kinds[usize::from(input.byte()) % kinds.len()] | u32::from(input.u16() & 0o7777)
}

fn offer(minor: u32) -> InitIn {
    let mut offer = InitIn {
        major: 7,
        minor,
        max_readahead: 131_072,
        ..Default::default()
    };
    offer.set_features(InitFlags::all() - InitFlags::INIT_RESERVED);
    offer
}
