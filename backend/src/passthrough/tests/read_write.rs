//! Tests of file content: reading, writing, allocating, copying.

use std::os::fd::AsFd;

use gangplank_fuse::{
    CopyFileRangeIn, FallocateIn, FopenFlags, LseekIn, OpenIn, SetattrIn, SetattrValid, WriteFlags,
};

use super::*;
use crate::passthrough::options::{CachePolicy, GuestArch, Locks};

const ROOT: NodeId = NodeId::ROOT;

pub(super) fn file(guest: &Guest, content: &[u8], flags: i32) -> (NodeId, Handle) {
    std::fs::write(guest.path("file"), content).expect("written");
    let node = guest.find(ROOT, c"file");
    (node, guest.open(node, flags).expect("opened"))
}

/// The status flags of a handle's descriptor on the host.
fn status_flags(guest: &Guest, node: NodeId, handle: Handle) -> i32 {
    let file = guest.fs.state.files.get(handle, node).expect("open");
    let flags = rustix::fs::fcntl_getfl(file.as_fd()).expect("flags");
    flags.bits().cast_signed()
}

#[test]
fn reads_end_where_the_file_ends() {
    let guest = Guest::new();
    let (node, handle) = file(&guest, b"0123456789", libc::O_RDONLY);
    let mut buffer = [0xaa; 16];
    assert_eq!(guest.read(node, handle, 4, &mut buffer).expect("read"), 6);
    assert_eq!(&buffer[..7], b"456789\xaa");
    assert_eq!(guest.read(node, handle, 10, &mut buffer).expect("read"), 0);
    assert_eq!(
        guest
            .read(node, handle, 1 << 40, &mut buffer)
            .expect("read"),
        0
    );
    assert_eq!(errno(guest.write(node, handle, 0, b"x")), Some(libc::EBADF));
}

/// If only a part of the file is in the page cache, the guest would take a short count for the end
/// of the file.
#[test]
fn a_read_that_may_not_wait_is_whole_or_refused() {
    const LEN: usize = 1 << 20;
    let guest = Guest::new();
    let (node, handle) = file(&guest, &vec![7; LEN], libc::O_RDONLY);
    let host = std::fs::File::open(guest.path("file")).expect("opened");
    for resident in [0, 1, LEN / 2, LEN - 1, LEN] {
        host.sync_all().expect("written");
        let rest = resident as u64;
        rustix::fs::fadvise(&host, rest, None, rustix::fs::Advice::DontNeed).expect("dropped");
        let mut buffer = vec![0; LEN + 4096];
        match guest.read_as(node, handle, 0, &mut buffer, IoMode::NonBlocking) {
            Ok(read) => assert_eq!(read, LEN),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert_eq!(guest.read(node, handle, 0, &mut buffer).expect("read"), LEN);
        assert!(buffer[..LEN].iter().all(|byte| *byte == 7));
    }
    let mut buffer = vec![0; LEN];
    match guest.read_as(node, handle, 0, &mut buffer, IoMode::NonBlocking) {
        Ok(read) => assert_eq!(read, LEN),
        Err(error) => panic!("what is in memory needs no waiting: {error}"),
    }
}

#[test]
fn more_segments_than_one_call_takes_are_all_read_and_written() {
    let guest = Guest::new();
    let content: Vec<u8> = (0..3000u32).map(|n| n.to_le_bytes()[0]).collect();
    let (node, handle) = file(&guest, &content, libc::O_RDWR);
    let mut memory = vec![0u8; 6000];
    let mut segments = Segments::default();
    for byte in memory.iter_mut().step_by(2) {
        assert!(segments.push_slice(std::slice::from_mut(byte)));
    }
    let args = ReadIn {
        fh: handle.get(),
        size: u32::MAX,
        ..ReadIn::default()
    };
    #[allow(unsafe_code)]
    // SAFETY: the memory outlives the writer and is not used while the writer exists.
    let read = guest.fs.read(
        node,
        &args,
        &mut unsafe { segments.writer() },
        IoMode::Blocking,
    );
    assert_eq!(read.expect("read"), 3000);
    assert!(memory.iter().step_by(2).eq(&content));
}

#[test]
fn appending_writes_go_to_the_end_unless_they_come_from_the_cache() {
    let guest = Guest::new();
    let (node, handle) = file(&guest, b"0123", libc::O_WRONLY | libc::O_APPEND);
    let mut args = WriteIn {
        fh: handle.get(),
        flags: (libc::O_WRONLY | libc::O_APPEND).cast_unsigned(),
        ..WriteIn::default()
    };
    assert_eq!(guest.write_with(node, &args, b"45").expect("written"), 2);
    args.write_flags = WriteFlags::CACHE.bits();
    assert_eq!(guest.write_with(node, &args, b"x").expect("written"), 1);
    assert_eq!(std::fs::read(guest.path("file")).expect("read"), b"x12345");
}

#[test]
fn direct_io_is_stripped_unless_allowed() {
    let guest = Guest::new();
    let (node, handle) = file(&guest, b"0123", libc::O_RDWR | libc::O_DIRECT);
    assert_eq!(status_flags(&guest, node, handle) & libc::O_DIRECT, 0);
    let (entry, open) = guest
        .create(ROOT, c"new", libc::O_RDWR | libc::O_DIRECT)
        .expect("made");
    let flags = status_flags(&guest, NodeId::new(entry.nodeid), Handle::new(open.fh));
    assert_eq!(flags & libc::O_DIRECT, 0);
}

#[test]
fn direct_io_falls_back_where_memory_does_not_suit() {
    let guest = Guest::with(Options {
        allow_direct_io: true,
        ..Options::default()
    });
    let (node, handle) = file(&guest, &[7; 8192], libc::O_RDWR | libc::O_DIRECT);
    if status_flags(&guest, node, handle) & libc::O_DIRECT == 0 {
        eprintln!("SKIPPED: the temporary directory has no direct I/O");
        return;
    }
    let mut buffer = [0; 1001];
    assert_eq!(
        guest.read(node, handle, 3, &mut buffer[1..]).expect("read"),
        1000
    );
    assert_eq!(buffer[1..], [7; 1000]);
    assert_eq!(guest.write(node, handle, 1, b"odd").expect("written"), 3);
}

#[test]
fn an_arm_guests_flags_are_understood() {
    let guest = Guest::with(Options {
        guest_arch: Some(GuestArch::Aarch64),
        allow_direct_io: true,
        ..Options::default()
    });
    std::fs::write(guest.path("file"), b"0123").expect("written");
    let node = guest.find(ROOT, c"file");
    // arm64's O_LARGEFILE, and O_LARGEFILE with O_NOFOLLOW.
    for raw in [0x2_0000, 0x2_8000] {
        let open = guest
            .fs
            .open(
                node,
                &OpenIn {
                    flags: raw,
                    ..OpenIn::default()
                },
            )
            .expect("opened");
        let flags = status_flags(&guest, node, Handle::new(open.fh));
        assert_eq!(flags & (libc::O_DIRECT | libc::O_DIRECTORY), 0);
    }
}

#[test]
fn cache_policies_show_in_the_open_flags() {
    for (cache, expected) in [
        (
            CachePolicy::Never,
            FopenFlags::DIRECT_IO | FopenFlags::PARALLEL_DIRECT_WRITES,
        ),
        (
            CachePolicy::Metadata,
            FopenFlags::DIRECT_IO | FopenFlags::PARALLEL_DIRECT_WRITES,
        ),
        (CachePolicy::Auto, FopenFlags::empty()),
        (CachePolicy::Always, FopenFlags::KEEP_CACHE),
    ] {
        let guest = Guest::with(Options {
            cache,
            ..Options::default()
        });
        let (_, open) = guest.create(ROOT, c"file", libc::O_RDWR).expect("made");
        let flags = FopenFlags::from_bits_retain(open.open_flags) - FopenFlags::NOFLUSH;
        assert_eq!(flags, expected, "{cache:?}");
    }
}

#[test]
fn writeback_opens_write_only_files_for_reading_too() {
    let guest = Guest::with(Options {
        writeback: true,
        ..Options::default()
    });
    let (node, handle) = file(&guest, b"0123", libc::O_WRONLY);
    assert_eq!(guest.read(node, handle, 0, &mut [0; 4]).expect("read"), 4);
}

#[test]
fn ranges_are_allocated_sought_and_copied() {
    let guest = Guest::new();
    let (node, handle) = file(&guest, &[1; 65_536], libc::O_RDWR);
    let fh = handle.get();
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned();
    let hole = FallocateIn {
        fh,
        offset: 16_384,
        length: 16_384,
        mode: punch,
        padding: 0,
    };
    guest.fs.fallocate(ROOT_USER, node, &hole).expect("punched");
    let seek = |offset, whence: i32| {
        let whence = whence.cast_unsigned();
        guest.fs.lseek(
            node,
            &LseekIn {
                fh,
                offset,
                whence,
                padding: 0,
            },
        )
    };
    assert_eq!(seek(0, libc::SEEK_HOLE).expect("found"), 16_384);
    assert_eq!(seek(16_384, libc::SEEK_DATA).expect("found"), 32_768);
    assert_eq!(errno(seek(1 << 40, libc::SEEK_DATA)), Some(libc::ENXIO));
    assert_eq!(errno(seek(u64::MAX, libc::SEEK_DATA)), Some(libc::ENXIO));
    assert_eq!(errno(seek(0, libc::SEEK_END)), Some(libc::EINVAL));
    let (entry, open) = guest.create(ROOT, c"copy", libc::O_RDWR).expect("made");
    let copy = CopyFileRangeIn {
        fh_in: fh,
        off_in: 32_768,
        nodeid_out: entry.nodeid,
        fh_out: open.fh,
        off_out: 0,
        len: u64::MAX,
        flags: 0,
    };
    assert_eq!(
        guest
            .fs
            .copy_file_range(ROOT_USER, node, &copy)
            .expect("copied"),
        32_768
    );
    assert_eq!(
        std::fs::read(guest.path("copy")).expect("read"),
        [1; 32_768]
    );
}

#[test]
fn flush_is_not_asked_for_where_nothing_depends_on_it() {
    for locks in [Locks::Guest, Locks::Host] {
        let guest = Guest::with(Options {
            locks,
            ..Options::default()
        });
        let (node, handle) = file(&guest, b"", libc::O_RDWR);
        let args = OpenIn::default();
        let opened = guest.fs.open(node, &args).expect("opened");
        let spared = FopenFlags::from_bits_retain(opened.open_flags).contains(FopenFlags::NOFLUSH);
        let reports = guest
            .fs
            .state
            .files
            .get(handle, node)
            .expect("open")
            .close_reports_errors;
        assert_eq!(spared, locks == Locks::Guest && !reports);
        guest
            .fs
            .flush(node, handle, 1)
            .expect("flushed all the same");
        guest.fs.fsync(node, handle, true).expect("synced");
        guest.fs.fsync(node, handle, false).expect("synced");
        guest.fs.syncfs(ROOT).expect("synced");
    }
}

/// At close, the guest's kernel writes back dirty pages of mappings and reports errors only for
/// files that were opened without NOFLUSH.
#[test]
fn a_file_that_may_be_changed_through_a_mapping_is_flushed_at_close() {
    for (cache, allow_mmap, is_flushed) in [
        (CachePolicy::Auto, false, true),
        (CachePolicy::Always, false, true),
        (CachePolicy::Never, false, false),
        (CachePolicy::Never, true, true),
    ] {
        let guest = Guest::with(Options {
            cache,
            allow_mmap,
            ..Options::default()
        });
        let (node, _) = file(&guest, b"", libc::O_RDONLY);
        for (mode, is_flushed) in [
            (libc::O_RDONLY, false),
            (libc::O_WRONLY, false),
            (libc::O_RDWR, is_flushed),
        ] {
            let args = OpenIn {
                flags: mode.cast_unsigned(),
                ..OpenIn::default()
            };
            let flags = guest.fs.open(node, &args).expect("opened").open_flags;
            let spared = FopenFlags::from_bits_retain(flags).contains(FopenFlags::NOFLUSH);
            assert_eq!(spared, !is_flushed, "{cache:?} {allow_mmap} {mode}");
        }
    }
}

/// A short read that ends at the known size is not continued. Attributes and the guest's own writes
/// update the known size.
#[test]
fn the_known_size_follows_attributes_and_writes() {
    let guest = Guest::new();
    let (node, handle) = file(&guest, &[1; 100], libc::O_RDWR);
    let known = || {
        let known = guest
            .fs
            .state
            .inodes
            .with_known_size(node, |known| known.get());
        known.expect("the inode is known")
    };
    assert_eq!(known(), Some(100));
    guest.write(node, handle, 50, &[2; 10]).expect("written");
    assert_eq!(known(), Some(100));
    guest.write(node, handle, 95, &[2; 10]).expect("written");
    assert_eq!(known(), Some(105));
    std::fs::write(guest.path("file"), [3; 40]).expect("written");
    assert_eq!(known(), Some(105), "the guest has not heard of it");
    let mut buffer = [0; 200];
    assert_eq!(guest.read(node, handle, 0, &mut buffer).expect("read"), 40);
    guest.fs.getattr(node, None).expect("attributes");
    assert_eq!(known(), Some(105), "attributes may be older than a write");
    let truncate = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        size: 40,
        ..SetattrIn::default()
    };
    guest
        .fs
        .setattr(ROOT_USER, node, &truncate)
        .expect("truncated");
    assert_eq!(known(), Some(40));
    let allocate = FallocateIn {
        fh: handle.get(),
        length: 4096,
        ..FallocateIn::default()
    };
    guest
        .fs
        .fallocate(ROOT_USER, node, &allocate)
        .expect("allocated");
    assert_eq!(known(), Some(4096));
    guest.find(ROOT, c"file");
    assert_eq!(known(), Some(4096));
    let append = WriteIn {
        fh: handle.get(),
        flags: (libc::O_RDWR | libc::O_APPEND).cast_unsigned(),
        ..WriteIn::default()
    };
    guest.write_with(node, &append, b"more").expect("written");
    assert_eq!(known(), None);
}

/// Attributes that were read before a write of another thread do not make the guest's size too
/// small after it: a read error at the old end would be taken for the end of the file.
#[test]
fn attributes_that_race_with_a_write_never_lower_the_known_size() {
    let guest = Guest::new();
    let (node, handle) = file(&guest, b"", libc::O_RDWR);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    guest.fs.getattr(node, None).expect("attributes");
                    guest.find(ROOT, c"file");
                }
            });
        }
        let mut worst = None;
        for end in 1..=20_000u64 {
            guest.write(node, handle, end - 1, b"x").expect("written");
            let known = guest
                .fs
                .state
                .inodes
                .with_known_size(node, |known| known.get());
            if known.flatten().is_some_and(|known| known < end) {
                worst = known.flatten().map(|known| (known, end));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(worst, None, "known size and written end");
    });
}

#[test]
fn appends_go_to_the_offset_the_guest_says_where_it_collects_writes() {
    for (writeback, expected) in [(false, &b"0123x"[..]), (true, b"01x3")] {
        let guest = Guest::with(Options {
            writeback,
            ..Options::default()
        });
        let (node, handle) = file(&guest, b"0123", libc::O_RDWR);
        let args = WriteIn {
            fh: handle.get(),
            offset: 2,
            flags: libc::O_APPEND.cast_unsigned(),
            ..WriteIn::default()
        };
        assert_eq!(guest.write_with(node, &args, b"x").expect("written"), 1);
        assert_eq!(std::fs::read(guest.path("file")).expect("read"), expected);
    }
}

#[test]
fn a_new_file_gets_direct_io_where_there_is_any_and_is_made_in_any_case() {
    let guest = Guest::with(Options {
        allow_direct_io: true,
        ..Options::default()
    });
    let (node, handle) = file(&guest, b"", libc::O_RDWR | libc::O_DIRECT);
    let expected = status_flags(&guest, node, handle) & libc::O_DIRECT;
    let (entry, open) = guest
        .create(ROOT, c"new", libc::O_RDWR | libc::O_DIRECT)
        .expect("made");
    let flags = status_flags(&guest, NodeId::new(entry.nodeid), Handle::new(open.fh));
    assert_eq!(flags & libc::O_DIRECT, expected);
}

#[test]
fn o_noatime_reaches_the_host_only_if_the_operator_says_so() {
    for preserve_noatime in [false, true] {
        let guest = Guest::with(Options {
            preserve_noatime,
            ..Options::default()
        });
        let (node, handle) = file(&guest, b"x", libc::O_NOATIME);
        let flags = status_flags(&guest, node, handle);
        assert_eq!(flags & libc::O_NOATIME != 0, preserve_noatime);
    }
}
