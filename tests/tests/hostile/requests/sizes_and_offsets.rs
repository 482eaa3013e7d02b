//! Sizes and offsets at the limits of their types.

use std::fs;

use anyhow::{Result, ensure};
use gangplank_fuse::{
    CopyFileRangeIn, FallocateIn, GetxattrIn, LseekIn, NodeId, Opcode, Operation, ReadIn,
    SetattrIn, SetattrValid, SetxattrIn, WriteIn,
};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{LIMIT, errno, request, send, with_guest};

#[test]
fn counts_of_4_gib_give_what_there_is_room_for() -> Result<()> {
    with_guest(&[], |guest, fixture| {
        fs::write(fixture.share().join("good"), vec![7; 100_000])?;
        fs::create_dir(fixture.share().join("dir"))?;
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
            // Sizes without the bytes for them.
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
            fs::metadata(fixture.share().join("good"))?.len() == 100_000,
            "the file was changed"
        );
        Ok(())
    })
}

#[test]
fn offsets_at_the_end_of_the_world_are_errors_or_empty() -> Result<()> {
    with_guest(&[], |guest, fixture| {
        fs::write(fixture.share().join("good"), "good")?;
        fs::create_dir(fixture.share().join("dir"))?;
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
                // A file of 2^63 - 1 bytes is correct on a file system that supports it, such as
                // tmpfs.
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
            fs::read(fixture.share().join("good"))? == b"good",
            "the file holds something else"
        );
        Ok(())
    })
}
