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

mod partial;

const O_RDWR: i32 = 2;
const O_EXCL: i32 = 0o200;

/// A view of a temporary directory, and the server in between.
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
        self.ops.create(ROOT, name.as_ref(), 0o640, flags, us())
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

/// Whoever runs the tests, so that files need not be given away.
fn us() -> Creator {
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
fn large_data_goes_in_pieces_of_the_longest_copy_there_is() {
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
fn create_opens_what_somebody_else_was_quicker_with_unless_that_is_excluded() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "theirs").unwrap();
    assert_eq!(fixture.create("file", O_RDWR | O_EXCL), Err(Errno::EXIST));
    let (_, stat, fh) = fixture.create("file", O_RDWR).unwrap();
    assert_eq!(stat.size, 6);
    assert_eq!(fixture.ops.read(fh, 0, 10, Extent::Any).unwrap(), b"theirs");
}

#[test]
fn sizes_beyond_the_originals_are_told_and_set() {
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
fn sizes_beyond_the_originals_are_refused_and_never_cut_by_it() {
    let mut fixture = fixture(Dialect::Original);
    fs::write(fixture.host("file"), "content").unwrap();
    let (node, _) = fixture.look("file").unwrap();
    let fh = fixture.ops.open(node, O_RDWR).unwrap();
    let to = |size| Changes {
        size: Some(size),
        ..Changes::default()
    };
    let refused = fixture.ops.change(node, None, &to(1 << 32));
    assert_eq!(refused, Err(Errno::FBIG));
    let grown = fixture.ops.change(node, Some(fh), &to(u64::from(u32::MAX)));
    assert_eq!(grown.unwrap().whole_size(), u64::from(u32::MAX));
    assert_eq!(
        fixture.ops.write(fh, (1 << 32) - 1, b"x", Extent::Any),
        Err(Errno::FBIG)
    );
    // One that was made larger elsewhere is told as what it is: too large.
    let host = fs::File::options().write(true).open(fixture.host("file"));
    host.unwrap().set_len(1 << 33).unwrap();
    assert_eq!(fixture.look("file"), Err(Errno::OVERFLOW));
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
fn an_unlinked_file_lives_on_in_its_handle() {
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
fn names_are_made_moved_and_removed() {
    let mut fixture = fixture(Dialect::Ours);
    let (dir, stat) = fixture
        .ops
        .make_directory(ROOT, "dir".as_ref(), 0o750, us())
        .unwrap();
    assert_eq!(stat.mode, 0o040_750);
    let (link, stat) = fixture
        .ops
        .make_link(dir, "link".as_ref(), b"../target", us())
        .unwrap();
    assert_eq!(stat.mode & S_IFMT, 0o120_000);
    assert_eq!(fixture.ops.read_link(link).unwrap(), b"../target");
    let (pipe, stat) = fixture
        .ops
        .make_node(ROOT, "pipe".as_ref(), 0o010_644, 0, us())
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
    // Made by somebody else.
    fs::hard_link(fixture.host("one"), fixture.host("three")).unwrap();
    assert_eq!(fixture.look("three").unwrap().0, node);
    fixture.ops.unlink(ROOT, "one".as_ref()).unwrap();
    fixture.ops.close(fh);
    assert_eq!(fixture.ops.stat(node, None).unwrap().nlink, 2);
}

#[test]
fn what_somebody_else_moved_keeps_its_node() {
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
fn what_somebody_else_replaced_is_stale_and_then_another_node() {
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
    // The double lists when a directory is opened, so its old list starts again, and a new one takes a new open.
    assert_eq!(fixture.names(fh), [".", "..", "a", "b", "c"]);
    fixture.server.state.lock().restart();
    fixture.ops.rewind(fh).unwrap();
    assert_eq!(fixture.names(fh), [".", "..", "b", "c", "d"]);
    fixture.ops.sync_directory(ROOT, false).unwrap();
    fixture.ops.close_directory(fh);
    assert_eq!(fixture.server.state.lock().handles(), 0);
}

#[test]
fn a_new_file_is_given_to_who_makes_it() {
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

    // A directory with the set-group-id bit gives its group itself.
    fs::set_permissions(fixture.dir.path(), fs::Permissions::from_mode(0o2755)).unwrap();
    fixture.ops.stat(ROOT, None).unwrap();
    let (_, stat) = fixture
        .ops
        .make_directory(ROOT, "dir".as_ref(), 0o755, creator)
        .unwrap();
    assert_eq!((stat.uid, stat.gid), (12, us().gid));
}

#[test]
fn a_server_that_was_lost_is_found_again_and_files_stay_open() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, fh) = fixture.create("file", O_RDWR).unwrap();
    fixture.ops.write(fh, 0, b"before", Extent::Any).unwrap();
    {
        let mut state = fixture.server.state.lock();
        state.silent = 1;
        state.restart();
    }
    assert!(fixture.ops.read(fh, 0, 9, Extent::Any).is_err());
    // For a moment nobody waits for a limit again.
    assert_eq!(fixture.ops.read(fh, 0, 9, Extent::Any), Err(Errno::NOTCONN));
    assert_eq!(fixture.look("file"), Err(Errno::NOTCONN));
    std::thread::sleep(Duration::from_millis(1050));
    assert_eq!(fixture.ops.read(fh, 0, 9, Extent::Any).unwrap(), b"before");
    fixture.ops.close(fh);
    assert_eq!(fixture.server.state.lock().handles(), 0);
}

#[test]
fn a_server_that_started_again_unnoticed_gets_files_opened_again() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, kept) = fixture.create("kept", O_RDWR).unwrap();
    let (_, _, gone) = fixture.create("gone", O_RDWR).unwrap();
    fs::remove_file(fixture.host("gone")).unwrap();
    fixture.server.state.lock().restart();
    assert_eq!(fixture.ops.write(kept, 0, b"x", Extent::Any), Ok(1));
    assert_eq!(
        fixture.ops.write(gone, 0, b"x", Extent::Any),
        Err(Errno::STALE)
    );
}

#[test]
fn a_new_server_gives_out_the_old_ones_handles_and_no_file_is_taken_for_another() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, one) = fixture.create("one", O_RDWR).unwrap();
    let (_, _, two) = fixture.create("two", O_RDWR).unwrap();
    {
        let mut state = fixture.server.state.lock();
        state.restart();
        state.losses += 1;
    }
    fixture.ops.write(two, 0, b"two", Extent::Any).unwrap();
    fixture.ops.write(one, 0, b"one", Extent::Any).unwrap();
    assert_eq!(fs::read(fixture.host("one")).unwrap(), b"one");
    assert_eq!(fs::read(fixture.host("two")).unwrap(), b"two");
}

#[test]
fn a_new_file_with_an_old_ones_number_is_not_taken_for_it() {
    let mut fixture = fixture(Dialect::Ours);
    fixture.server.state.lock().mark = 1;
    let (node, _, fh) = fixture.create("file", O_RDWR).unwrap();
    {
        let mut state = fixture.server.state.lock();
        state.restart();
        // As if the name were another file's by now, with the same number.
        state.mark = 2;
    }
    assert_eq!(
        fixture.ops.write(fh, 0, b"x", Extent::Any),
        Err(Errno::STALE)
    );
    assert_eq!(fs::read(fixture.host("file")).unwrap(), b"");
    let (new, _) = fixture.look("file").unwrap();
    assert!(new != node);
    let fh = fixture.ops.open(new, O_RDWR).unwrap();
    assert_eq!(fixture.ops.write(fh, 0, b"x", Extent::Any), Ok(1));
}

#[test]
fn a_server_that_was_thought_lost_keeps_no_file_open_twice() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, used) = fixture.create("used", O_RDWR).unwrap();
    let (_, _, closed) = fixture.create("closed", O_RDWR).unwrap();
    fixture.server.state.lock().losses += 1;
    fixture.ops.write(used, 0, b"x", Extent::Any).unwrap();
    assert_eq!(fixture.server.state.lock().handles(), 2);
    fixture.ops.close(closed);
    assert_eq!(fixture.server.state.lock().handles(), 1);
}

#[test]
fn a_question_without_an_answer_keeps_no_other_from_being_asked() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "").unwrap();
    fixture.look("file").unwrap();
    fixture.server.state.lock().silent = 1;
    assert_eq!(fixture.look("file"), Err(Errno::IO));
    std::thread::sleep(Duration::from_millis(1050));
    fixture.look("file").unwrap();
    let state = fixture.server.state.lock();
    assert_eq!((state.bound, state.given_up), (2, 1));
}

#[test]
fn an_answer_to_an_earlier_question_is_no_answer() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "").unwrap();
    fixture.look("file").unwrap();
    fixture.server.state.lock().late = true;
    assert_eq!(fixture.look("file"), Err(Errno::IO));
    assert_eq!(fixture.look("file"), Err(Errno::NOTCONN));
}

#[test]
fn d1_a_file_is_opened_for_writing_by_either_field() {
    for dialect in [Dialect::Ours, Dialect::Original] {
        let mut fixture = fixture(dialect);
        fs::write(fixture.host("file"), "").unwrap();
        let (node, _) = fixture.look("file").unwrap();
        let fh = fixture.ops.open(node, O_RDWR).unwrap();
        let changes = Changes {
            size: Some(7),
            ..Changes::default()
        };
        // Only a handle that can be written is of use here.
        fixture.ops.change(node, Some(fh), &changes).unwrap();
        assert_eq!(fs::metadata(fixture.host("file")).unwrap().len(), 7);
    }
}

#[test]
fn d2_the_originals_reads_end_where_the_file_does_and_its_lost_writes_are_errors() {
    let mut fixture = fixture(Dialect::Original);
    fs::write(fixture.host("file"), vec![b'x'; 5000]).unwrap();
    let (node, _) = fixture.look("file").unwrap();
    let fh = fixture.ops.open(node, O_RDWR).unwrap();
    assert_eq!(
        fixture.ops.read(fh, 0, 100_000, Extent::Any).unwrap(),
        vec![b'x'; 5000]
    );
    assert_eq!(fixture.ops.read(fh, 5000, 10, Extent::Any).unwrap(), b"");
    assert_eq!(fixture.server.state.lock().longest, 4096);
    assert_eq!(
        fixture.ops.write(fh, 0, b"lost", Extent::Any),
        Err(Errno::IO)
    );
}

#[test]
fn d4_the_originals_open_files_are_looked_at_by_name() {
    let mut fixture = fixture(Dialect::Original);
    let (node, _, fh) = fixture.create("file", O_RDWR).unwrap();
    assert!(fixture.ops.stat(node, Some(fh)).is_ok());
    fixture.ops.unlink(ROOT, "file".as_ref()).unwrap();
    assert_eq!(fixture.ops.stat(node, Some(fh)), Err(Errno::STALE));
    assert!(
        !fixture
            .server
            .state
            .lock()
            .asked
            .contains(&syscall_nr::FSTAT64)
    );
}

#[test]
fn d7_the_original_renames_by_the_call_that_takes_both_names() {
    let mut fixture = fixture(Dialect::Original);
    fs::write(fixture.host("one"), "").unwrap();
    fixture.look("one").unwrap();
    fixture
        .ops
        .rename((ROOT, "one".as_ref()), (ROOT, "two".as_ref()), 0)
        .unwrap();
    assert!(fixture.host("two").exists() && !fixture.host("one").exists());
}

#[test]
fn d9_d10_d13_links_state_and_lists_of_the_original_are_read() {
    let mut fixture = fixture(Dialect::Original);
    std::os::unix::fs::symlink("target", fixture.host("link")).unwrap();
    let (link, _) = fixture.look("link").unwrap();
    assert_eq!(fixture.ops.read_link(link).unwrap(), b"target");
    let state = fixture.ops.file_system(ROOT).unwrap();
    assert_eq!((state.bsize, state.namelen, state.flags), (4096, 255, 0));
    let fh = fixture.ops.open_directory(ROOT).unwrap();
    assert_eq!(fixture.names(fh), [".", "..", "link"]);
}

#[test]
fn d11_the_original_is_sent_no_times() {
    let mut fixture = fixture(Dialect::Original);
    fs::write(fixture.host("file"), "").unwrap();
    let (node, _) = fixture.look("file").unwrap();
    let changes = Changes {
        mtime: Some(TimeOrNow::Now),
        ..Changes::default()
    };
    assert_eq!(
        fixture.ops.change(node, None, &changes),
        Err(Errno::OPNOTSUPP)
    );
}
