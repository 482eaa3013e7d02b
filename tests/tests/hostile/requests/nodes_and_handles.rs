//! Node numbers and file handles that the daemon did not give to this session.

use std::ffi::CString;
use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{
    BatchForgetIn, FallocateIn, ForgetIn, ForgetOne, GetattrIn, Handle, LinkIn, LseekIn, NodeId,
    Opcode, Operation, ReadIn, ReleaseIn, Rename2In, WriteIn,
};
use gangplank_tests::driver::{NodeAndFile, Setup};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{LIMIT, all_on_node, errno, request, unique_in, with_guest};

#[test]
fn nodes_that_never_were_are_stale() -> Result<()> {
    with_guest(&[], |guest, fixture| {
        fs::write(fixture.share().join("good"), "good")?;
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
                // STATFS of node 0 is of the whole file system.
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
            fixture.share().join("good").exists() && !fixture.share().join("made").exists(),
            "something was changed"
        );
        Ok(())
    })
}

#[test]
fn forgotten_nodes_are_stale_and_never_somebody_else() -> Result<()> {
    with_guest(&[], |guest, fixture| {
        let mut seen = std::collections::HashSet::new();
        for index in 0..200 {
            let name = CString::new(format!("file{index}"))?;
            fs::write(fixture.share().join(name.to_str()?), "x")?;
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
    with_guest(&[], |guest, fixture| {
        let mut other = fixture.guest(&Setup::default())?;
        // More files than this guest has, so that the numbers differ.
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
    with_guest(&[], |guest, fixture| {
        fs::write(fixture.share().join("good"), "good")?;
        fs::create_dir(fixture.share().join("dir"))?;
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
            // Closing a handle that is not open is an error or has no effect.
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
        // The daemon must not mix up two nodes because of another node's handle.
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
    with_guest(&[], |guest, fixture| {
        fs::write(fixture.share().join("good"), "good")?;
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
        // Counts without the bytes for them.
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
        // With room the daemon may reply or not, but it has to return the chain.
        let _ = guest.finish_within(ticket, LIMIT);
        Ok(())
    })
}
