//! Tests of the file operations against the fake server.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use fuser::TimeOrNow;
use tempfile::TempDir;

use super::super::fake_server::FakeServer;
use super::super::syscall_nr;
use super::*;
use crate::rhostfs::mount::Dialect;

mod original;
mod partial;
mod recovery;

const O_RDWR: i32 = 2;
const O_EXCL: i32 = 0o200;

/// Operations on a temporary directory behind the fake server.
struct Fixture {
    ops: InodeOps,
    server: FakeServer,
    dir: TempDir,
}

fn fixture(dialect: Dialect) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeServer::new(dir.path().to_owned(), dialect);
    let ops = InodeOps::new(Calls::new(server.rpc(), dialect), Owner::Caller);
    Fixture { ops, server, dir }
}

impl Fixture {
    fn host(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn look(&mut self, name: &str) -> Result<(u64, UsrStat)> {
        self.ops.look_up(ROOT, name.as_ref())
    }

    fn create(&mut self, name: &str, flags: i32) -> Result<(u64, UsrStat, u64)> {
        self.ops
            .create(ROOT, name.as_ref(), 0o640, flags, test_user())
    }

    fn names(&mut self, fh: u64) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(entry) = self.ops.entry(fh, names.len() as u64).unwrap() {
            names.push(entry.name.into_string().unwrap());
        }
        names[2..].sort();
        names
    }
}

/// The user of the test run, so that no owner has to change.
fn test_user() -> Creator {
    Creator {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

#[test]
fn files_are_created_written_read_and_found_again() {
    let mut fixture = fixture(Dialect::Ours);
    let (node, stat, fh) = fixture.create("file", O_RDWR).unwrap();
    assert_eq!((stat.mode, stat.size), (0o100_640, 0));
    assert_eq!(fixture.ops.write(fh, 3, b"ahoy", Extent::Any).unwrap(), 4);
    assert_eq!(
        fixture.ops.read(fh, 0, 100, Extent::Any).unwrap(),
        b"\0\0\0ahoy"
    );
    assert_eq!(fixture.ops.read(fh, 7, 100, Extent::Any).unwrap(), b"");
    fixture.ops.sync(fh, true).unwrap();
    assert_eq!(fs::read(fixture.host("file")).unwrap(), b"\0\0\0ahoy");
    let (again, stat) = fixture.look("file").unwrap();
    assert_eq!((again, stat.size), (node, 7));
    assert_eq!(node, fs::metadata(fixture.host("file")).unwrap().ino());
    fixture.ops.close(fh);
    assert_eq!(fixture.server.state.lock().handles(), 0);
}

#[test]
fn large_data_is_split_into_pieces_of_the_longest_copy() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, fh) = fixture.create("file", O_RDWR).unwrap();
    let data: Vec<u8> = (0..2_500_001_u32).map(|at| at.to_le_bytes()[1]).collect();
    assert_eq!(
        fixture.ops.write(fh, 10, &data, Extent::Any).unwrap(),
        data.len()
    );
    assert_eq!(
        fixture.ops.read(fh, 10, 1 << 24, Extent::Any).unwrap(),
        data
    );
    assert_eq!(fixture.server.state.lock().longest, 1 << 20);
}

#[test]
fn create_opens_a_file_of_another_client_unless_exclusive() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "theirs").unwrap();
    assert_eq!(fixture.create("file", O_RDWR | O_EXCL), Err(Errno::EXIST));
    let (_, stat, fh) = fixture.create("file", O_RDWR).unwrap();
    assert_eq!(stat.size, 6);
    assert_eq!(fixture.ops.read(fh, 0, 10, Extent::Any).unwrap(), b"theirs");
}

#[test]
fn sizes_beyond_the_originals_are_reported_and_set() {
    let mut fixture = fixture(Dialect::Ours);
    let (node, _, fh) = fixture.create("file", O_RDWR).unwrap();
    let to = |size| Changes {
        size: Some(size),
        ..Changes::default()
    };
    let large = (5 << 32) + 7;
    for with in [None, Some(fh)] {
        let grown = fixture.ops.change(node, with, &to(large)).unwrap();
        assert_eq!(grown.whole_size(), large);
        assert_eq!(fs::metadata(fixture.host("file")).unwrap().len(), large);
        fixture.ops.change(node, with, &to(0)).unwrap();
    }
    assert_eq!(
        fixture.ops.write(fh, large - 3, b"abcdef", Extent::Any),
        Ok(6)
    );
    assert_eq!(
        fixture.ops.read(fh, large - 3, 10, Extent::Any).unwrap(),
        b"abcdef"
    );
    let (_, seen) = fixture.look("file").unwrap();
    assert_eq!(seen.whole_size(), large + 3);
    fixture.ops.unlink(ROOT, "file".as_ref()).unwrap();
}

#[test]
fn attributes_change_by_name_and_by_handle() {
    let mut fixture = fixture(Dialect::Ours);
    let (node, _, fh) = fixture.create("file", O_RDWR).unwrap();
    for (with, mode) in [(None, 0o604), (Some(fh), 0o4711)] {
        let seconds = u64::from(mode);
        let changes = Changes {
            mode: Some(mode),
            mtime: Some(TimeOrNow::SpecificTime(
                UNIX_EPOCH + Duration::from_secs(seconds),
            )),
            ..Changes::default()
        };
        let stat = fixture.ops.change(node, with, &changes).unwrap();
        assert_eq!(
            (stat.mode & 0o7777, stat.mtime.get()),
            (mode, i64::from(mode))
        );
        let host = fs::metadata(fixture.host("file")).unwrap();
        assert_eq!(
            (host.mode() & 0o7777, host.mtime()),
            (mode, i64::from(mode))
        );
        assert!(host.atime() > 1_000_000_000, "the time of access stays");
    }
}

#[test]
fn an_unlinked_file_stays_usable_by_its_handle() {
    let mut fixture = fixture(Dialect::Ours);
    let (node, _, fh) = fixture.create("file", O_RDWR).unwrap();
    fixture.ops.unlink(ROOT, "file".as_ref()).unwrap();
    fixture.ops.write(fh, 0, b"still", Extent::Any).unwrap();
    let stat = fixture.ops.stat(node, None).unwrap();
    assert_eq!((stat.size, stat.nlink), (5, 0));
    let changes = Changes {
        mode: Some(0o600),
        ..Changes::default()
    };
    assert_eq!(
        fixture.ops.change(node, None, &changes).unwrap().mode & 0o777,
        0o600
    );
    fixture.ops.close(fh);
    assert_eq!(fixture.ops.stat(node, None), Err(Errno::STALE));
}

#[test]
fn names_are_created_renamed_and_removed() {
    let mut fixture = fixture(Dialect::Ours);
    let (dir, stat) = fixture
        .ops
        .make_directory(ROOT, "dir".as_ref(), 0o750, test_user())
        .unwrap();
    assert_eq!(stat.mode, 0o040_750);
    let (link, stat) = fixture
        .ops
        .make_link(dir, "link".as_ref(), b"../target", test_user())
        .unwrap();
    assert_eq!(stat.mode & S_IFMT, 0o120_000);
    assert_eq!(fixture.ops.read_link(link).unwrap(), b"../target");
    let (pipe, stat) = fixture
        .ops
        .make_node(ROOT, "pipe".as_ref(), 0o010_644, 0, test_user())
        .unwrap();
    assert_eq!(stat.mode, 0o010_644);

    fixture
        .ops
        .rename((ROOT, "dir".as_ref()), (ROOT, "moved".as_ref()), 0)
        .unwrap();
    assert_eq!(fixture.ops.read_link(link).unwrap(), b"../target");
    let onto = fixture
        .ops
        .rename((ROOT, "pipe".as_ref()), (ROOT, "moved".as_ref()), 1);
    assert_eq!(onto, Err(Errno::EXIST));
    fixture
        .ops
        .rename((ROOT, "pipe".as_ref()), (dir, "link".as_ref()), 2)
        .unwrap();
    assert_eq!(fixture.look("pipe").unwrap().0, link);
    assert_eq!(fixture.ops.look_up(dir, "link".as_ref()).unwrap().0, pipe);
    assert_eq!(
        fixture
            .ops
            .rename((ROOT, "pipe".as_ref()), (ROOT, "x".as_ref()), 4),
        Err(Errno::INVAL)
    );

    assert_eq!(
        fixture.ops.remove_directory(ROOT, "moved".as_ref()),
        Err(Errno::NOTEMPTY)
    );
    fixture.ops.unlink(dir, "link".as_ref()).unwrap();
    fixture
        .ops
        .remove_directory(ROOT, "moved".as_ref())
        .unwrap();
    fixture.ops.unlink(ROOT, "pipe".as_ref()).unwrap();
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 0);
    assert_eq!(fixture.look("pipe"), Err(Errno::NOENT));
}

#[test]
fn two_names_of_a_file_are_one_node() {
    let mut fixture = fixture(Dialect::Ours);
    let (node, _, fh) = fixture.create("one", O_RDWR).unwrap();
    let (linked, stat) = fixture.ops.link(node, ROOT, "two".as_ref()).unwrap();
    assert_eq!((linked, stat.nlink), (node, 2));
    // Another client creates it.
    fs::hard_link(fixture.host("one"), fixture.host("three")).unwrap();
    assert_eq!(fixture.look("three").unwrap().0, node);
    fixture.ops.unlink(ROOT, "one".as_ref()).unwrap();
    fixture.ops.close(fh);
    assert_eq!(fixture.ops.stat(node, None).unwrap().nlink, 2);
}

#[test]
fn a_file_moved_by_another_client_keeps_its_node() {
    let mut fixture = fixture(Dialect::Ours);
    fs::create_dir(fixture.host("dir")).unwrap();
    fs::write(fixture.host("dir/file"), "").unwrap();
    let (dir, _) = fixture.look("dir").unwrap();
    let (file, _) = fixture.ops.look_up(dir, "file".as_ref()).unwrap();
    fs::rename(fixture.host("dir"), fixture.host("moved")).unwrap();
    assert_eq!(fixture.ops.stat(file, None), Err(Errno::STALE));
    assert_eq!(fixture.look("moved").unwrap().0, dir);
    assert_eq!(fixture.ops.look_up(dir, "file".as_ref()).unwrap().0, file);
    assert!(fixture.ops.stat(file, None).is_ok());
}

#[test]
fn a_file_replaced_by_another_client_is_stale_and_then_another_node() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "old").unwrap();
    fs::write(fixture.host("new"), "newer").unwrap();
    let (old, _) = fixture.look("file").unwrap();
    fs::rename(fixture.host("new"), fixture.host("file")).unwrap();
    assert_eq!(fixture.ops.open(old, 0), Err(Errno::STALE));
    let (new, _) = fixture.look("file").unwrap();
    assert_ne!(new, old);
    let fh = fixture.ops.open(new, 0).unwrap();
    assert_eq!(fixture.ops.read(fh, 0, 9, Extent::Any).unwrap(), b"newer");
}

#[test]
fn a_directory_lists_once_and_anew_after_a_rewind() {
    let mut fixture = fixture(Dialect::Ours);
    for name in ["a", "b", "c"] {
        fs::write(fixture.host(name), "").unwrap();
    }
    let fh = fixture.ops.open_directory(ROOT).unwrap();
    assert_eq!(fixture.names(fh), [".", "..", "a", "b", "c"]);
    fs::remove_file(fixture.host("a")).unwrap();
    fs::create_dir(fixture.host("d")).unwrap();
    assert_eq!(fixture.names(fh), [".", "..", "a", "b", "c"]);
    fixture.ops.rewind(fh).unwrap();
    // The fake server lists a directory when it is opened, so the old list repeats, and only a new
    // open shows new entries.
    assert_eq!(fixture.names(fh), [".", "..", "a", "b", "c"]);
    fixture.server.state.lock().restart();
    fixture.ops.rewind(fh).unwrap();
    assert_eq!(fixture.names(fh), [".", "..", "b", "c", "d"]);
    fixture.ops.sync_directory(ROOT, false).unwrap();
    fixture.ops.close_directory(fh);
    assert_eq!(fixture.server.state.lock().handles(), 0);
}

#[test]
fn a_new_file_belongs_to_its_creator() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut fixture = fixture(Dialect::Ours);
    let creator = Creator { uid: 12, gid: 34 };
    let (_, stat, _) = fixture
        .ops
        .create(ROOT, "file".as_ref(), 0o4755, O_RDWR, creator)
        .unwrap();
    assert_eq!((stat.uid, stat.gid), (12, 34));
    let host = fs::metadata(fixture.host("file")).unwrap();
    assert_eq!((host.uid(), host.gid(), host.mode()), (12, 34, 0o104_755));
    let (_, stat) = fixture
        .ops
        .make_link(ROOT, "link".as_ref(), b"nowhere", creator)
        .unwrap();
    assert_eq!((stat.uid, stat.gid), (12, 34));

    // A directory with the set-group-id bit passes on its own group.
    fs::set_permissions(fixture.dir.path(), fs::Permissions::from_mode(0o2755)).unwrap();
    fixture.ops.stat(ROOT, None).unwrap();
    let (_, stat) = fixture
        .ops
        .make_directory(ROOT, "dir".as_ref(), 0o755, creator)
        .unwrap();
    assert_eq!((stat.uid, stat.gid), (12, test_user().gid));
}
