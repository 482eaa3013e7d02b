//! Tests of calls that do a part of their work, or fail in the middle.

use super::super::super::directories::{Entry, MAX_ENTRIES};
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// An open file with 2.5 MB of numbers, which takes three reads or writes of the longest piece.
fn large(fixture: &mut Fixture) -> (u64, Vec<u8>) {
    let data: Vec<u8> = (0..2_500_001_u32).map(|at| at.to_le_bytes()[1]).collect();
    fs::write(fixture.host("file"), &data).unwrap();
    let (node, _) = fixture.look("file").unwrap();
    (fixture.ops.open(node, O_RDWR).unwrap(), data)
}

fn fail(fixture: &Fixture, call: i32, after: u32, errno: i32) {
    let mut state = fixture.server.state.lock();
    state.failing.insert(call, (after, errno));
}

fn count(fixture: &Fixture, call: i32) -> usize {
    let state = fixture.server.state.lock();
    state.asked.iter().filter(|asked| **asked == call).count()
}

/// Keeps the promise that a short count is never taken for the end of a file.
#[test]
fn a_short_read_before_the_end_is_continued() {
    let mut fixture = fixture(Dialect::Ours);
    let (fh, data) = large(&mut fixture);
    fixture.server.state.lock().most = Some(70_000);
    for extent in [Extent::Any, Extent::Whole] {
        let read = fixture.ops.read(fh, 5, 1 << 22, extent).unwrap();
        assert!(read == data[5..], "{} bytes", read.len());
    }
}

/// Keeps the promise that reading to the end of a file makes no unnecessary call.
#[test]
fn a_short_read_at_the_end_is_the_end() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "content").unwrap();
    let (node, _) = fixture.look("file").unwrap();
    let fh = fixture.ops.open(node, O_RDWR).unwrap();
    assert_eq!(
        fixture.ops.read(fh, 0, 4096, Extent::Whole).unwrap(),
        b"content"
    );
    assert_eq!(count(&fixture, syscall_nr::PREAD64), 1);
    fixture.ops.write(fh, 7, b" and more", Extent::Any).unwrap();
    fixture.server.state.lock().most = Some(9);
    let read = fixture.ops.read(fh, 0, 4096, Extent::Whole).unwrap();
    assert_eq!(read, b"content and more");
}

/// Keeps the promise that an error is never taken for the end of a file. The kernel's page cache
/// takes a short reply for the end.
#[test]
fn a_page_cache_read_that_fails_in_the_middle_is_an_error() {
    let mut fixture = fixture(Dialect::Ours);
    let (fh, data) = large(&mut fixture);
    fail(&fixture, syscall_nr::PREAD64, 1, EIO);
    assert_eq!(
        fixture.ops.read(fh, 0, 1 << 22, Extent::Whole),
        Err(Errno::IO)
    );
    fail(&fixture, syscall_nr::PREAD64, 1, EIO);
    let part = fixture.ops.read(fh, 0, 1 << 22, Extent::Any).unwrap();
    assert!(
        part == data[..1 << 20],
        "a process reads what comes before the error"
    );
    assert_eq!(
        fixture.ops.read(fh, 1 << 20, 9, Extent::Any),
        Err(Errno::IO)
    );
}

/// Keeps the promise that a page of a mapping is written whole or reported. The kernel ignores how
/// much of it was written.
#[test]
fn a_page_cache_write_that_fails_in_the_middle_is_an_error() {
    let mut fixture = fixture(Dialect::Ours);
    let (fh, data) = large(&mut fixture);
    fail(&fixture, syscall_nr::PWRITE64, 1, ENOSPC);
    let written = fixture.ops.write(fh, 0, &data, Extent::Whole);
    assert_eq!(written, Err(Errno::NOSPC));
    fail(&fixture, syscall_nr::PWRITE64, 1, ENOSPC);
    assert_eq!(fixture.ops.write(fh, 0, &data, Extent::Any), Ok(1 << 20));
    assert_eq!(
        fixture.ops.write(fh, 1 << 20, &data, Extent::Any),
        Err(Errno::NOSPC)
    );
}

/// Keeps the promise that the rest after a partial write is written too, or reported.
#[test]
fn a_short_write_is_continued_until_nothing_is_written() {
    let mut fixture = fixture(Dialect::Ours);
    let (fh, data) = large(&mut fixture);
    fixture.server.state.lock().most = Some(600_000);
    for extent in [Extent::Any, Extent::Whole] {
        let end = u64::try_from(data.len()).unwrap();
        assert_eq!(fixture.ops.write(fh, end, &data, extent), Ok(data.len()));
        assert!(fs::read(fixture.host("file")).unwrap()[data.len()..] == data);
    }
    fixture.server.state.lock().most = Some(0);
    for extent in [Extent::Any, Extent::Whole] {
        assert_eq!(fixture.ops.write(fh, 0, b"x", extent), Err(Errno::IO));
    }
    let past = u64::try_from(i64::MAX).unwrap() - 1;
    let written = fixture.ops.write(fh, past, b"xyz", Extent::Whole);
    assert_eq!(written, Err(Errno::FBIG), "a part of a page would be lost");
}

/// Keeps the promise that a page of a mapping is written at its position, although the file was
/// opened to append.
#[test]
fn a_page_of_an_appended_file_is_written_at_its_position() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "content").unwrap();
    let (node, _) = fixture.look("file").unwrap();
    let fh = fixture.ops.open(node, O_RDWR | 0o2000).unwrap();
    assert_eq!(fixture.ops.write(fh, 0, b"CON", Extent::Whole), Ok(3));
    assert_eq!(fixture.ops.write(fh, 7, b" and more", Extent::Any), Ok(9));
    let content = fs::read_to_string(fixture.host("file")).unwrap();
    assert_eq!(content, "CONtent and more");
    assert_eq!(fixture.server.state.lock().handles(), 1);
}

/// Keeps the promise that a close reports the server's write errors, and makes no call if nothing
/// was written.
#[test]
fn closing_asks_the_server_for_write_errors() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, fh) = fixture.create("file", O_RDWR).unwrap();
    fixture.ops.flush(fh).unwrap();
    assert_eq!(count(&fixture, syscall_nr::DUP2), 0);
    fixture.ops.write(fh, 0, b"x", Extent::Any).unwrap();
    fail(&fixture, syscall_nr::DUP2, 0, ENOSPC);
    assert_eq!(fixture.ops.flush(fh), Err(Errno::NOSPC));
    fixture.server.state.lock().failing.clear();
    fixture.ops.flush(fh).unwrap();
    fixture.ops.flush(fh).unwrap();
    assert_eq!(count(&fixture, syscall_nr::DUP2), 2);
    fixture.ops.write(fh, 0, b"x", Extent::Any).unwrap();
    fixture.ops.sync(fh, false).unwrap();
    fixture.ops.flush(fh).unwrap();
    assert_eq!(count(&fixture, syscall_nr::DUP2), 2, "it was told already");
}

/// Keeps the promise that acknowledged data which may be missing is reported: a lost server's
/// machine may have crashed.
#[test]
fn a_server_lost_with_unsynced_data_is_reported_by_close_and_fsync() {
    for reopened in [false, true] {
        let mut fixture = fixture(Dialect::Ours);
        let (_, _, written) = fixture.create("written", O_RDWR).unwrap();
        let (_, _, synced) = fixture.create("synced", O_RDWR).unwrap();
        for fh in [written, synced] {
            fixture.ops.write(fh, 0, b"x", Extent::Any).unwrap();
        }
        let (node, _, cut) = fixture.create("cut", O_RDWR).unwrap();
        let changes = Changes {
            size: Some(7),
            ..Changes::default()
        };
        fixture.ops.change(node, Some(cut), &changes).unwrap();
        fixture.ops.sync(synced, false).unwrap();
        fixture.server.state.lock().losses += 1;
        if reopened {
            fixture.ops.read(written, 0, 1, Extent::Any).unwrap();
        }
        assert_eq!(fixture.ops.flush(cut), Err(Errno::IO));
        assert_eq!(fixture.ops.flush(written), Err(Errno::IO));
        assert_eq!(fixture.ops.sync(written, true), Err(Errno::IO));
        assert_eq!(fixture.ops.sync(written, true), Ok(()), "it is said once");
        assert_eq!(fixture.ops.flush(written), Ok(()));
        assert_eq!(fixture.ops.flush(synced), Ok(()));
        assert_eq!(fixture.ops.sync(synced, true), Ok(()));
    }
}

/// Keeps the promise that a listing has all entries or ends in an error.
#[test]
fn an_error_in_a_listing_is_not_its_end() {
    let mut fixture = fixture(Dialect::Ours);
    for number in 0..9 {
        fs::write(fixture.host(&format!("file-{number}")), "").unwrap();
    }
    let fh = fixture.ops.open_directory(ROOT).unwrap();
    fail(&fixture, syscall_nr::READDIR, 5, EIO);
    for position in 0..5 {
        fixture.ops.entry(fh, position).unwrap();
    }
    assert_eq!(fixture.ops.entry(fh, 5), Err(Errno::IO));
    // The server does not rewind, so the entries so far must be kept.
    fail(&fixture, syscall_nr::SEEKDIR, 0, EIO);
    assert_eq!(fixture.ops.rewind(fh), Err(Errno::IO));
    assert_eq!(fixture.ops.rewind(fh), Err(Errno::IO));
    fixture.server.state.lock().failing.clear();
    assert_eq!(fixture.names(fh).len(), 11);
}

/// Keeps the promise that a listing is never cut short without an error.
#[test]
fn a_directory_with_too_many_entries_is_an_error() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "").unwrap();
    let fh = fixture.ops.open_directory(ROOT).unwrap();
    let entry = Entry {
        ino: 1,
        kind: 8,
        name: "entry".into(),
    };
    let directory = fixture.ops.directories.get_mut(fh).unwrap();
    directory.entries = vec![entry; MAX_ENTRIES];
    let behind = u64::try_from(MAX_ENTRIES).unwrap() + 2;
    assert_eq!(fixture.ops.entry(fh, behind), Err(Errno::OVERFLOW));
}

/// Keeps the promise that a link's text is never cut short without an error.
#[test]
fn a_link_with_more_text_than_fits_is_an_error() {
    let mut fixture = fixture(Dialect::Ours);
    std::os::unix::fs::symlink("target", fixture.host("link")).unwrap();
    let (node, _) = fixture.look("link").unwrap();
    fixture.server.state.lock().target = Some(vec![b'x'; 4096]);
    assert_eq!(fixture.ops.read_link(node), Err(Errno::NAMETOOLONG));
    fixture.server.state.lock().target = Some(vec![b'x'; 4095]);
    assert_eq!(fixture.ops.read_link(node).unwrap().len(), 4095);
}

/// Keeps the promise that a listing continues at its position when the server has closed the
/// directory.
#[test]
fn the_listing_of_a_directory_closed_by_the_server_continues() {
    let mut fixture = fixture(Dialect::Ours);
    for number in 0..9 {
        fs::write(fixture.host(&format!("file-{number}")), "").unwrap();
    }
    let fh = fixture.ops.open_directory(ROOT).unwrap();
    for position in 0..11 {
        fixture.server.state.lock().close_directories();
        assert!(fixture.ops.entry(fh, position).unwrap().is_some());
    }
    let mut expected: Vec<_> = (0..9).map(|number| format!("file-{number}")).collect();
    expected.splice(0..0, [".".to_owned(), "..".to_owned()]);
    assert_eq!(fixture.names(fh), expected);
}

/// Keeps the promise that a file has the requested attributes when another client created it first.
#[test]
fn create_truncates_a_file_of_another_client_if_requested() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "theirs").unwrap();
    let (_, stat, _) = fixture.create("file", O_RDWR | 0o1000).unwrap();
    assert_eq!(stat.size, 0);
}
