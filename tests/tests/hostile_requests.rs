//! Requests that no kernel would send: each is answered with an error, costs the daemon nothing, and the session goes on.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{
    BatchForgetIn, CopyFileRangeIn, CreateIn, FallocateIn, ForgetIn, ForgetOne, GetattrIn,
    GetxattrIn, Handle, InHeader, InitIn, LinkIn, LseekIn, MkdirIn, MknodIn, NodeId, Opcode,
    OpenIn, Operation, ReadIn, ReleaseIn, Rename2In, RenameIn, SetattrIn, SetattrValid, SetxattrIn,
    Unique, WriteIn, reply,
};
use gangplank_tests::driver::arena::Arena;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// How long any of these requests may take: none has a reason to wait.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends the bytes as a request with 4 KiB of room for the reply; returns the errno of the answer.
fn send(guest: &mut Driver, request: &[u8]) -> Result<Option<Errno>> {
    let unique = unique_in(request);
    let ticket = guest.submit_bytes(1, unique, request, 4096)?;
    match guest.finish_within(ticket, LIMIT) {
        Ok(_) => Ok(None),
        Err(error) => match error.errno() {
            Some(errno) => Ok(Some(errno)),
            None => Err(error.into()),
        },
    }
}

/// The number that the daemon must answer with: the header's, or none where the header is not whole.
fn unique_in(request: &[u8]) -> Unique {
    let header = request.len() >= size_of::<InHeader>();
    let number = request.get(8..).and_then(|rest| rest.first_chunk());
    Unique::new(
        number
            .filter(|_| header)
            .map_or(0, |number| u64::from_le_bytes(*number)),
    )
}

/// A request with a header that is right and any arguments.
fn request(opcode: u32, node: u64, arguments: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + arguments.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    bytes.extend_from_slice(&0x1234_5678u64.to_le_bytes());
    bytes.extend_from_slice(&node.to_le_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(arguments);
    bytes
}

/// The errno that an operation is answered with, or none.
fn errno(
    guest: &mut Driver,
    node: NodeId,
    operation: Operation<'_>,
    data: &[u8],
    room: usize,
) -> Result<Option<Errno>> {
    let ticket = guest.submit(1, node, operation, data, room)?;
    match guest.finish_within(ticket, LIMIT) {
        Ok(_) => Ok(None),
        Err(error) => match error.errno() {
            Some(errno) => Ok(Some(errno)),
            None => Err(error).with_context(|| format!("{operation:?}")),
        },
    }
}

/// A hostile guest beside a neighbour; the session must still work at the end.
fn with_guest(told: &[&str], test: impl FnOnce(&mut Driver, &Arena) -> Result<()>) -> Result<()> {
    let arena = Arena::new(&[])?;
    let mut guest = arena.guest(&Setup::default())?;
    test(&mut guest, &arena).with_context(|| arena.log())?;
    guest.getattr(NodeId::ROOT, None).context("afterwards")?;
    drop(guest);
    arena.survive(told)
}

#[test]
fn unknown_opcodes_are_not_implemented() -> Result<()> {
    with_guest(&["unknown request"], |guest, _| {
        for opcode in [0, 7, 19, 54, 55, 100, 4095, 4097, 0x1a00_0000, u32::MAX] {
            let answer = send(guest, &request(opcode, 1, &[0; 64]))?;
            ensure!(answer == Some(Errno::NOSYS), "opcode {opcode}: {answer:?}");
        }
        let cuse_init = send(guest, &request(4096, 1, &[0; 16]))?;
        ensure!(cuse_init == Some(Errno::NOSYS), "CUSE_INIT: {cuse_init:?}");
        Ok(())
    })
}

#[test]
fn a_length_that_is_not_the_request_s_is_invalid() -> Result<()> {
    with_guest(&["whose header claims"], |guest, _| {
        let good = request(Opcode::Getattr as u32, 1, &[0; 16]);
        ensure!(
            send(guest, &good)?.is_none(),
            "the request is good as it is"
        );
        for len in [0, 1, 39, 40, 55, 57, 4096, u32::MAX] {
            let mut bad = good.clone();
            bad[..4].copy_from_slice(&len.to_le_bytes());
            let answer = send(guest, &bad)?;
            ensure!(answer == Some(Errno::INVAL), "len {len}: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn arguments_cut_anywhere_are_invalid() -> Result<()> {
    with_guest(&["malformed request"], |guest, _| {
        for opcode in Opcode::ALL.iter().filter(|opcode| opcode.expects_reply()) {
            // These have no argument, or one that may be left out.
            if matches!(opcode, Opcode::Readlink | Opcode::Statfs | Opcode::Destroy) {
                continue;
            }
            let answer = send(guest, &request(*opcode as u32, 1, &[]))?;
            ensure!(answer == Some(Errno::INVAL), "{opcode:?}: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn random_requests_hurt_nobody() -> Result<()> {
    let arena = Arena::new(&[])?;
    let mut guest = arena.guest(&Setup::default())?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let len = usize::try_from(random.next() % 200)?;
        let arguments: Vec<u8> = (0..len).map(|_| random.byte()).collect();
        let opcode = u32::try_from(random.next() % 55)?;
        // Nodes from a small range, so that the root and what was just made are hit.
        let bytes = request(opcode, random.next() % 6, &arguments);
        let room = usize::try_from(random.next() % 600)?;
        let ticket = guest.submit_bytes(1, unique_in(&bytes), &bytes, room)?;
        // Whatever the answer is: one has to come.
        let answered = guest.finish_within(ticket, LIMIT);
        if let Err(gangplank_tests::driver::Error::Late { .. }) = answered {
            answered.with_context(|| format!("{bytes:?}\n{}", arena.log()))?;
        }
    }
    drop(guest);
    arena.survive(&[])
}

/// xorshift64: the same requests each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// Every operation that takes a name, with this one.
fn all_with_name(name: &CStr) -> Vec<Operation<'_>> {
    let good = c"good";
    vec![
        Operation::Lookup { name },
        Operation::Create {
            args: CreateIn {
                flags: 2,
                mode: 0o100_644,
                ..CreateIn::default()
            },
            name,
        },
        Operation::Mkdir {
            args: MkdirIn {
                mode: 0o755,
                umask: 0,
            },
            name,
        },
        Operation::Mknod {
            args: MknodIn {
                mode: 0o100_644,
                ..MknodIn::default()
            },
            name,
        },
        Operation::Symlink {
            name,
            target: c"/etc/passwd",
        },
        Operation::Unlink { name },
        Operation::Rmdir { name },
        Operation::Link {
            args: LinkIn { oldnodeid: 1 },
            name,
        },
        Operation::Rename {
            args: RenameIn { newdir: 1 },
            name,
            new_name: good,
        },
        Operation::Rename {
            args: RenameIn { newdir: 1 },
            name: good,
            new_name: name,
        },
        Operation::Rename2 {
            args: Rename2In {
                newdir: 1,
                flags: 2,
                padding: 0,
            },
            name,
            new_name: good,
        },
        Operation::Rename2 {
            args: Rename2In {
                newdir: 1,
                flags: 2,
                padding: 0,
            },
            name: good,
            new_name: name,
        },
    ]
}

#[test]
fn names_that_are_not_one_component_are_refused() -> Result<()> {
    with_guest(&[], |guest, arena| {
        fs::write(arena.share().join("good"), "good")?;
        fs::write(arena.outside().join("secret"), "secret")?;
        let before = listing(arena)?;
        for name in [
            c"",
            c".",
            c"..",
            c"/",
            c"a/b",
            c"../outside/secret",
            c"/etc/passwd",
            c"good/",
            c"./good",
            c"//",
            c"..//",
        ] {
            for operation in all_with_name(name) {
                let answer = errno(guest, NodeId::ROOT, operation, &[], 512)?;
                ensure!(answer == Some(Errno::INVAL), "{operation:?}: {answer:?}");
            }
        }
        for len in [256, 1000, 4095, 4096, 64 * 1024] {
            let name = CString::new(vec![b'n'; len])?;
            for operation in all_with_name(&name) {
                let answer = errno(guest, NodeId::ROOT, operation, &[], 512)?;
                ensure!(
                    answer == Some(Errno::NAMETOOLONG),
                    "{len} bytes of name: {answer:?}"
                );
            }
        }
        ensure!(
            listing(arena)? == before,
            "a bad name has made or removed something"
        );
        Ok(())
    })
}

/// What there is in and beside the share, apart from the neighbour's.
fn listing(arena: &Arena) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for dir in [arena.share(), arena.outside()] {
        for entry in fs::read_dir(dir)? {
            names.push(entry?.path().display().to_string());
        }
    }
    names.sort();
    Ok(names)
}

#[test]
fn names_without_or_with_inner_nul_are_invalid() -> Result<()> {
    with_guest(&["malformed request"], |guest, arena| {
        fs::write(arena.share().join("good"), "good")?;
        let bad: [&[u8]; 6] = [b"good", b"", b"go\0od\0", b"\0", b"good\0\0", b"\0good\0"];
        for name in bad {
            for opcode in [
                Opcode::Lookup,
                Opcode::Unlink,
                Opcode::Rmdir,
                Opcode::Removexattr,
            ] {
                let answer = send(guest, &request(opcode as u32, 1, name))?;
                ensure!(
                    matches!(
                        answer,
                        Some(
                            Errno::INVAL
                                | Errno::NOENT
                                | Errno::NODATA
                                | Errno::NOSYS
                                | Errno::RANGE
                        )
                    ),
                    "{opcode:?} {name:?}: {answer:?}"
                );
            }
        }
        let long = vec![b'x'; 64 * 1024];
        let answer = send(guest, &request(Opcode::Lookup as u32, 1, &long))?;
        ensure!(
            answer == Some(Errno::INVAL),
            "64 KiB without a NUL: {answer:?}"
        );
        ensure!(
            arena.share().join("good").exists(),
            "a bad name has removed a good one"
        );
        Ok(())
    })
}

#[test]
fn a_request_longer_than_any_is_refused_before_it_is_copied() -> Result<()> {
    with_guest(&["bytes of arguments"], |guest, _| {
        let answer = send(
            guest,
            &request(Opcode::Lookup as u32, 1, &vec![b'x'; 4 << 20]),
        )?;
        ensure!(answer == Some(Errno::TOOBIG), "{answer:?}");
        Ok(())
    })
}

/// Operations on a node that must exist.
fn all_on_node() -> Vec<Operation<'static>> {
    vec![
        Operation::Lookup { name: c"good" },
        Operation::Getattr(GetattrIn::default()),
        Operation::Setattr(SetattrIn {
            valid: SetattrValid::MODE.bits(),
            mode: 0o777,
            ..SetattrIn::default()
        }),
        Operation::Readlink,
        Operation::Mkdir {
            args: MkdirIn {
                mode: 0o755,
                umask: 0,
            },
            name: c"made",
        },
        Operation::Unlink { name: c"good" },
        Operation::Open(OpenIn::default()),
        Operation::Opendir(OpenIn::default()),
        Operation::Statfs,
        Operation::Create {
            args: CreateIn {
                flags: 2,
                mode: 0o100_644,
                ..CreateIn::default()
            },
            name: c"made",
        },
        Operation::Rename2 {
            args: Rename2In {
                newdir: 1,
                ..Rename2In::default()
            },
            name: c"good",
            new_name: c"made",
        },
    ]
}

#[test]
fn nodes_that_never_were_are_stale() -> Result<()> {
    with_guest(&[], |guest, arena| {
        fs::write(arena.share().join("good"), "good")?;
        let entry = guest.lookup(NodeId::ROOT, c"good")?;
        for number in [
            0,
            2 + entry.nodeid,
            entry.nodeid ^ (1 << 32),
            entry.nodeid | (1 << 63),
            1 << 32,
            u64::MAX - 1,
            u64::MAX,
        ] {
            for operation in all_on_node() {
                // STATFS of no node is of the whole file system.
                if number == 0 && matches!(operation, Operation::Statfs) {
                    continue;
                }
                let answer = errno(guest, NodeId::new(number), operation, &[], 512)?;
                ensure!(
                    answer == Some(Errno::STALE),
                    "node {number:#x}, {operation:?}: {answer:?}"
                );
            }
            let link = Operation::Link {
                args: LinkIn { oldnodeid: number },
                name: c"made",
            };
            let answer = errno(guest, NodeId::ROOT, link, &[], 512)?;
            ensure!(
                answer == Some(Errno::STALE),
                "LINK of {number:#x}: {answer:?}"
            );
            let args = Rename2In {
                newdir: number,
                ..Rename2In::default()
            };
            let rename = Operation::Rename2 {
                args,
                name: c"good",
                new_name: c"made",
            };
            let answer = errno(guest, NodeId::ROOT, rename, &[], 512)?;
            ensure!(
                answer == Some(Errno::STALE),
                "RENAME2 to {number:#x}: {answer:?}"
            );
        }
        ensure!(
            arena.share().join("good").exists() && !arena.share().join("made").exists(),
            "something was changed"
        );
        Ok(())
    })
}

#[test]
fn forgotten_nodes_are_stale_and_never_somebody_else() -> Result<()> {
    with_guest(&[], |guest, arena| {
        let mut seen = std::collections::HashSet::new();
        for index in 0..200 {
            let name = CString::new(format!("file{index}"))?;
            fs::write(arena.share().join(name.to_str()?), "x")?;
            let node = guest.lookup(NodeId::ROOT, &name)?.nodeid;
            ensure!(seen.insert(node), "node id {node:#x} was given out before");
            guest.forget(NodeId::new(node), 1)?;
            let answer = errno(
                guest,
                NodeId::new(node),
                Operation::Getattr(GetattrIn::default()),
                &[],
                512,
            )?;
            ensure!(answer == Some(Errno::STALE), "a forgotten node: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn another_session_s_nodes_and_handles_are_not_this_one_s() -> Result<()> {
    with_guest(&[], |guest, arena| {
        let mut other = arena.guest(&Setup::default())?;
        // More of them than this guest has, so that the numbers are not by chance the same.
        let mut theirs = Vec::new();
        for index in 0..50 {
            let name = CString::new(format!("theirs{index}"))?;
            theirs.push(other.create(NodeId::ROOT, &name, 0o600)?);
        }
        let ours = guest.create(NodeId::ROOT, c"ours", 0o600)?;
        for their in theirs.iter().filter(|their| their.node != ours.node) {
            let answer = errno(
                guest,
                their.node,
                Operation::Getattr(GetattrIn::default()),
                &[],
                512,
            )?;
            ensure!(
                answer == Some(Errno::STALE),
                "another session's node: {answer:?}"
            );
        }
        for their in theirs.iter().filter(|their| their.file != ours.file) {
            let mixed = NodeAndFile {
                node: ours.node,
                file: their.file,
            };
            let answer = guest
                .write(mixed, 0, b"stolen")
                .err()
                .and_then(|error| error.errno());
            ensure!(
                answer == Some(Errno::BADF),
                "another session's handle: {answer:?}"
            );
        }
        drop(other);
        Ok(())
    })
}

#[test]
fn handles_that_never_were_are_bad() -> Result<()> {
    with_guest(&[], |guest, arena| {
        fs::write(arena.share().join("good"), "good")?;
        fs::create_dir(arena.share().join("dir"))?;
        let file = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
        let dir = NodeId::new(guest.lookup(NodeId::ROOT, c"dir")?.nodeid);
        let released = guest.open(file, OFlags::RDWR)?;
        guest.release(NodeAndFile {
            node: file,
            file: released,
        })?;
        let open_dir = guest.opendir(dir)?;
        let open_file = guest.open(file, OFlags::RDWR)?;
        let read = |fh: Handle| ReadIn {
            fh: fh.get(),
            size: 4096,
            ..ReadIn::default()
        };
        let write = |fh: Handle| WriteIn {
            fh: fh.get(),
            size: 1,
            ..WriteIn::default()
        };
        let never = [0, 1, 77, 1 << 32, u64::MAX].map(Handle::new);
        for handle in never
            .into_iter()
            .chain([released])
            .filter(|handle| ![open_dir, open_file].contains(handle))
        {
            for (node, operation, data) in [
                (file, Operation::Read(read(handle)), &b""[..]),
                (file, Operation::Write(write(handle)), b"x"),
                (
                    file,
                    Operation::Lseek(LseekIn {
                        fh: handle.get(),
                        whence: 3,
                        ..LseekIn::default()
                    }),
                    b"",
                ),
                (
                    file,
                    Operation::Fallocate(FallocateIn {
                        fh: handle.get(),
                        length: 1,
                        ..FallocateIn::default()
                    }),
                    b"",
                ),
                (dir, Operation::Readdir(read(handle)), b""),
                (dir, Operation::Readdirplus(read(handle)), b""),
            ] {
                let answer = errno(guest, node, operation, data, 4096)?;
                ensure!(
                    answer == Some(Errno::BADF),
                    "handle {handle}, {operation:?}: {answer:?}"
                );
            }
            // Closing what is not open is an error or nothing at all, but harmless.
            let args = ReleaseIn {
                fh: handle.get(),
                ..ReleaseIn::default()
            };
            errno(guest, file, Operation::Release(args), &[], 512)?;
            errno(guest, dir, Operation::Releasedir(args), &[], 512)?;
        }
        for (node, operation) in [
            (dir, Operation::Read(read(open_dir))),
            (file, Operation::Readdir(read(open_file))),
            (file, Operation::Readdirplus(read(open_file))),
        ] {
            let answer = errno(guest, node, operation, &[], 4096)?;
            ensure!(
                answer.is_some(),
                "{operation:?} with a handle of the other kind succeeded"
            );
        }
        // Another node's handle must not be an invitation to mix the two up.
        let answer = errno(guest, dir, Operation::Readdir(read(open_dir)), &[], 4096)?;
        ensure!(
            answer.is_none(),
            "the directory can still be read: {answer:?}"
        );
        Ok(())
    })
}

#[test]
fn forgetting_too_much_is_harmless() -> Result<()> {
    with_guest(&[], |guest, arena| {
        fs::write(arena.share().join("good"), "good")?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
        guest.forget(node, 0)?;
        guest.getattr(node, None).context("forgotten no times")?;
        guest.forget(node, u64::MAX)?;
        for count in [1, u64::MAX, 0] {
            guest.forget(node, count)?;
            guest.forget(NodeId::ROOT, count)?;
            guest.forget(NodeId::new(0), count)?;
            guest.forget(NodeId::new(u64::MAX), count)?;
        }
        let many: Vec<ForgetOne> = (0..2000)
            .map(|nodeid| ForgetOne {
                nodeid,
                nlookup: u64::MAX,
            })
            .collect();
        guest.batch_forget(&many)?;
        guest
            .lookup(NodeId::ROOT, c"good")
            .context("after all was forgotten")?;
        // Counts that no bytes stand behind.
        for count in [1u32, 1000, 0x1000_0000, u32::MAX] {
            let mut arguments = count.to_le_bytes().to_vec();
            arguments.extend_from_slice(&[0; 4]);
            ensure!(arguments.len() == size_of::<BatchForgetIn>());
            let bytes = request(Opcode::BatchForget as u32, 0, &arguments);
            let ticket = guest.submit_bytes(0, unique_in(&bytes), &bytes, 0)?;
            guest.finish_within(ticket, LIMIT)?;
        }
        // FORGET has no reply, even if there is room for one.
        let forget = request(Opcode::Forget as u32, 99, &7u64.to_le_bytes());
        ensure!(forget.len() == 40 + size_of::<ForgetIn>());
        let ticket = guest.submit_bytes(0, unique_in(&forget), &forget, 64)?;
        // With room the daemon may answer or not; it has to give the chain back.
        let _ = guest.finish_within(ticket, LIMIT);
        Ok(())
    })
}

#[test]
fn counts_of_4_gib_give_what_there_is_room_for() -> Result<()> {
    with_guest(&[], |guest, arena| {
        fs::write(arena.share().join("good"), vec![7; 100_000])?;
        fs::create_dir(arena.share().join("dir"))?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
        let dir = NodeId::new(guest.lookup(NodeId::ROOT, c"dir")?.nodeid);
        let file = guest.open(node, OFlags::RDWR)?;
        let open_dir = guest.opendir(dir)?;
        for size in [u32::MAX, 1 << 31, 4097] {
            let read = ReadIn {
                fh: file.get(),
                size,
                ..ReadIn::default()
            };
            let ticket = guest.submit(1, node, Operation::Read(read), &[], 4096)?;
            match guest.finish_within(ticket, LIMIT) {
                Ok(data) => ensure!(
                    data.len() <= 4096 && data.iter().all(|byte| *byte == 7),
                    "{} bytes",
                    data.len()
                ),
                Err(error) => ensure!(error.errno().is_some(), "READ of {size} bytes: {error}"),
            }
            let list = ReadIn {
                fh: open_dir.get(),
                size,
                ..ReadIn::default()
            };
            for operation in [Operation::Readdir(list), Operation::Readdirplus(list)] {
                errno(guest, dir, operation, &[], 4096)?;
            }
            let args = GetxattrIn { size, padding: 0 };
            errno(
                guest,
                node,
                Operation::Getxattr {
                    args,
                    name: c"user.none",
                },
                &[],
                4096,
            )?;
            errno(guest, node, Operation::Listxattr(args), &[], 4096)?;
            // Sizes that no bytes stand behind.
            let write = WriteIn {
                fh: file.get(),
                size,
                ..WriteIn::default()
            };
            let header = guest.next_header(node);
            let mut bytes = Vec::new();
            gangplank_fuse::Request::from(Operation::Write(write))
                .encode(&header, guest.dialect(), &mut bytes)
                .or_else(|_| {
                    gangplank_fuse::Request::from(Operation::Write(WriteIn {
                        size: 4097,
                        ..write
                    }))
                    .encode(&header, guest.dialect(), &mut bytes)
                })?;
            let len = u32::try_from(bytes.len())?;
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            let ticket = guest.submit_bytes(1, header.unique, &bytes, 512)?;
            let answer = guest
                .finish_within(ticket, LIMIT)
                .err()
                .and_then(|error| error.errno());
            ensure!(
                answer == Some(Errno::INVAL),
                "WRITE of {size} bytes that are not there: {answer:?}"
            );
            let mut setxattr = Vec::new();
            setxattr.extend_from_slice(&size.to_le_bytes());
            setxattr.extend_from_slice(&[0; 12]);
            setxattr.extend_from_slice(b"user.name\0value");
            ensure!(setxattr.len() > size_of::<SetxattrIn>());
            let answer = send(
                guest,
                &request(Opcode::Setxattr as u32, node.get(), &setxattr),
            )?;
            ensure!(
                answer == Some(Errno::INVAL),
                "SETXATTR of {size} bytes that are not there: {answer:?}"
            );
        }
        ensure!(
            fs::metadata(arena.share().join("good"))?.len() == 100_000,
            "the file was changed"
        );
        Ok(())
    })
}

#[test]
fn offsets_at_the_end_of_the_world_are_errors_or_empty() -> Result<()> {
    with_guest(&[], |guest, arena| {
        fs::write(arena.share().join("good"), "good")?;
        fs::create_dir(arena.share().join("dir"))?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
        let dir = NodeId::new(guest.lookup(NodeId::ROOT, c"dir")?.nodeid);
        let file = guest.open(node, OFlags::RDWR)?;
        let open_dir = guest.opendir(dir)?;
        let max = i64::MAX.unsigned_abs();
        for offset in [max - 1, max, max + 1, u64::MAX - 4096, u64::MAX] {
            let read = ReadIn {
                fh: file.get(),
                offset,
                size: 4096,
                ..ReadIn::default()
            };
            let ticket = guest.submit(1, node, Operation::Read(read), &[], 4096)?;
            match guest.finish_within(ticket, LIMIT) {
                Ok(data) => ensure!(data.is_empty(), "READ at {offset:#x} gave {data:?}"),
                Err(error) => ensure!(error.errno().is_some(), "{error}"),
            }
            let refused = [
                Operation::Write(WriteIn {
                    fh: file.get(),
                    offset,
                    size: 4,
                    ..WriteIn::default()
                }),
                Operation::Fallocate(FallocateIn {
                    fh: file.get(),
                    offset,
                    length: 4096,
                    ..FallocateIn::default()
                }),
                Operation::Fallocate(FallocateIn {
                    fh: file.get(),
                    offset: 0,
                    length: offset,
                    ..FallocateIn::default()
                }),
                Operation::Lseek(LseekIn {
                    fh: file.get(),
                    offset,
                    whence: 3,
                    padding: 0,
                }),
                Operation::Lseek(LseekIn {
                    fh: file.get(),
                    offset,
                    whence: 77,
                    padding: 0,
                }),
                Operation::Setattr(SetattrIn {
                    valid: SetattrValid::SIZE.bits(),
                    size: offset,
                    ..SetattrIn::default()
                }),
            ];
            for operation in refused {
                let data: &[u8] = if matches!(operation, Operation::Write(_)) {
                    b"evil"
                } else {
                    b""
                };
                let answer = errno(guest, node, operation, data, 512)?;
                // A file system may hold a file of 2^63 - 1 bytes, as tmpfs does: nothing is wrong with that.
                if !matches!(operation, Operation::Setattr(_)) || offset > max {
                    ensure!(answer.is_some(), "{operation:?} succeeded");
                }
            }
            let copy = CopyFileRangeIn {
                fh_in: file.get(),
                off_in: offset,
                nodeid_out: node.get(),
                fh_out: file.get(),
                off_out: offset,
                len: u64::MAX,
                flags: 0,
            };
            for operation in [
                Operation::CopyFileRange(copy),
                Operation::CopyFileRange64(copy),
            ] {
                errno(guest, node, operation, &[], 512)?;
            }
            let list = ReadIn {
                fh: open_dir.get(),
                offset,
                size: 4096,
                ..ReadIn::default()
            };
            for operation in [Operation::Readdir(list), Operation::Readdirplus(list)] {
                errno(guest, dir, operation, &[], 4096)?;
            }
        }
        let size = SetattrIn {
            valid: SetattrValid::SIZE.bits(),
            size: 4,
            ..SetattrIn::default()
        };
        guest.setattr(node, size)?;
        ensure!(
            fs::read(arena.share().join("good"))? == b"good",
            "the file holds something else"
        );
        Ok(())
    })
}

#[test]
fn flags_that_a_kernel_never_sends_open_nothing_strange() -> Result<()> {
    with_guest(&[], |guest, arena| {
        fs::write(arena.share().join("good"), "good")?;
        let secret = arena.outside().join("secret");
        fs::write(&secret, "secret")?;
        symlink(&secret, arena.share().join("link"))?;
        let link = NodeId::new(guest.lookup(NodeId::ROOT, c"link")?.nodeid);
        for flags in [
            0,
            2,
            0o1000,
            0o2,
            0o400_000,
            0o200_000,
            0o10_000_000,
            0o20_000_000,
            u32::MAX,
        ] {
            for node in [link, NodeId::ROOT] {
                let answer = errno(
                    guest,
                    node,
                    Operation::Open(OpenIn {
                        flags,
                        open_flags: 0,
                    }),
                    &[],
                    512,
                )?;
                if node == link {
                    ensure!(
                        answer.is_some(),
                        "OPEN of a symbolic link with {flags:#o} succeeded"
                    );
                }
            }
            let good = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
            errno(
                guest,
                good,
                Operation::Open(OpenIn {
                    flags,
                    open_flags: u32::MAX,
                }),
                &[],
                512,
            )?;
            let args = CreateIn {
                flags,
                mode: u32::MAX,
                umask: u32::MAX,
                open_flags: u32::MAX,
            };
            let created = errno(
                guest,
                NodeId::ROOT,
                Operation::Create {
                    args,
                    name: c"link",
                },
                &[],
                512,
            )?;
            ensure!(
                created.is_some(),
                "CREATE of a symbolic link's name with {flags:#o} succeeded"
            );
        }
        let through = errno(guest, link, Operation::Lookup { name: c"secret" }, &[], 512)?;
        ensure!(
            through == Some(Errno::NOTDIR),
            "LOOKUP in a symbolic link: {through:?}"
        );
        ensure!(
            fs::read(&secret)? == b"secret",
            "a file outside the share was changed"
        );
        Ok(())
    })
}

#[test]
fn opening_what_blocks_does_not_block() -> Result<()> {
    with_guest(&[], |guest, _| {
        for (name, kind) in [(c"fifo", 0o010_000), (c"socket", 0o140_000)] {
            let args = MknodIn {
                mode: kind | 0o666,
                ..MknodIn::default()
            };
            let payload = guest.call(NodeId::ROOT, Operation::Mknod { args, name }, &[], 512)?;
            let node = NodeId::new(reply::decode_entry(&payload)?.nodeid);
            for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
                // A guest's kernel opens these itself: success would do no good, but waiting for a peer would do harm.
                errno(
                    guest,
                    node,
                    Operation::Open(OpenIn {
                        flags: flags.bits(),
                        open_flags: 0,
                    }),
                    &[],
                    512,
                )?;
                let args = CreateIn {
                    flags: flags.bits(),
                    mode: 0o100_666,
                    ..CreateIn::default()
                };
                errno(
                    guest,
                    NodeId::ROOT,
                    Operation::Create { args, name },
                    &[],
                    512,
                )?;
            }
            let size = SetattrIn {
                valid: SetattrValid::SIZE.bits(),
                size: 1,
                ..SetattrIn::default()
            };
            errno(guest, node, Operation::Setattr(size), &[], 512)?;
        }
        Ok(())
    })
}

#[test]
fn before_init_and_after_destroy_nothing_works() -> Result<()> {
    let arena = Arena::new(&[])?;
    fs::write(arena.share().join("good"), "good")?;
    let mut guest = Driver::connect(arena.socket(), &Setup::default())?;
    let refused = |guest: &mut Driver, when: &str| -> Result<()> {
        for operation in all_on_node() {
            let answer = errno(guest, NodeId::ROOT, operation, &[], 512)?;
            ensure!(
                answer == Some(Errno::IO),
                "{when}, {operation:?}: {answer:?}"
            );
        }
        Ok(())
    };
    refused(&mut guest, "before INIT")?;
    guest.forget(NodeId::ROOT, u64::MAX)?;
    guest.init()?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
    let file = guest.open(node, OFlags::RDONLY)?;
    guest.destroy()?;
    refused(&mut guest, "after DESTROY")?;
    guest.destroy().err();
    guest.init()?;
    let answer = errno(
        &mut guest,
        node,
        Operation::Getattr(GetattrIn::default()),
        &[],
        512,
    )?;
    ensure!(
        answer == Some(Errno::STALE),
        "a node of the session before: {answer:?}"
    );
    let read = ReadIn {
        fh: file.get(),
        size: 4,
        ..ReadIn::default()
    };
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
    let answer = errno(&mut guest, node, Operation::Read(read), &[], 512)?;
    ensure!(
        answer == Some(Errno::BADF),
        "a handle of the session before: {answer:?}"
    );
    // INIT again, without DESTROY: a guest that was reset.
    guest.init()?;
    let answer = errno(
        &mut guest,
        node,
        Operation::Getattr(GetattrIn::default()),
        &[],
        512,
    )?;
    ensure!(
        answer == Some(Errno::STALE),
        "a node of before the second INIT: {answer:?}"
    );
    guest.getattr(NodeId::ROOT, None)?;
    drop(guest);
    arena.survive(&[])
}

#[test]
fn init_of_other_versions_is_answered_as_the_protocol_says() -> Result<()> {
    let arena = Arena::new(&[])?;
    let mut guest = Driver::connect(arena.socket(), &Setup::default())?;
    let init = |major, minor| {
        Operation::Init(InitIn {
            major,
            minor,
            ..InitIn::default()
        })
    };
    for (major, minor) in [(0, 0), (6, 99), (7, 0), (7, 26)] {
        let answer = errno(&mut guest, NodeId::default(), init(major, minor), &[], 512)?;
        ensure!(
            answer == Some(Errno::PROTO),
            "INIT {major}.{minor}: {answer:?}"
        );
    }
    for major in [8, u32::MAX] {
        let payload = guest.call(NodeId::default(), init(major, 0), &[], 512)?;
        ensure!(reply::decode_init(&payload)?.major == 7, "INIT {major}.0");
    }
    let answer = errno(
        &mut guest,
        NodeId::ROOT,
        Operation::Getattr(GetattrIn::default()),
        &[],
        512,
    )?;
    ensure!(
        answer == Some(Errno::IO),
        "no INIT has succeeded: {answer:?}"
    );
    let payload = guest.call(NodeId::default(), init(7, u32::MAX), &[], 512)?;
    ensure!(reply::decode_init(&payload)?.minor <= 45);
    guest.init()?;
    drop(guest);
    arena.survive(&[])
}
#[test]
fn many_open_files_run_into_a_limit_and_not_into_the_neighbour() -> Result<()> {
    let arena = Arena::new(&["--rlimit-nofile=1024"])?;
    fs::write(arena.share().join("good"), "good")?;
    let mut guest = arena.guest(&Setup::default())?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
    let mut opened = 0;
    let refused = loop {
        match guest.open(node, OFlags::RDONLY) {
            Ok(_) => opened += 1,
            Err(error) => break error.errno(),
        }
        ensure!(
            opened < 4096,
            "{opened} files are open although 1024 are the limit"
        );
    };
    ensure!(
        matches!(refused, Some(Errno::NFILE | Errno::MFILE)),
        "{refused:?} after {opened}"
    );
    let mut arena = arena;
    arena.neighbour_goes_on()?;
    // Somebody else can still come.
    arena
        .guest(&Setup::default())?
        .getattr(NodeId::ROOT, None)?;
    drop(guest);
    arena.survive(&[])
}
