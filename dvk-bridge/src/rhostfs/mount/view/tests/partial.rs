//! Calls that do a part of their work, or fail in the middle of it.

use super::super::super::directories::{Entry, MOST_ENTRIES};
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A file with 2.5 MB of numbers, open, so that it takes three reads or writes of the longest piece.
fn large(bench: &mut Bench) -> (u64, Vec<u8>) {
    let data: Vec<u8> = (0..2_500_001_u32).map(|at| at.to_le_bytes()[1]).collect();
    fs::write(bench.host("file"), &data).unwrap();
    let (node, _) = bench.look("file").unwrap();
    (bench.view.open(node, O_RDWR).unwrap(), data)
}

fn fail(bench: &Bench, call: i32, after: u32, errno: i32) {
    let mut state = bench.server.state.lock().unwrap();
    state.failing.insert(call, (after, errno));
}

fn count(bench: &Bench, call: i32) -> usize {
    let state = bench.server.state.lock().unwrap();
    state.asked.iter().filter(|asked| **asked == call).count()
}

/// Keeps the promise that a short count is never taken for the end of a file.
#[test]
fn a_short_read_before_the_end_is_gone_on_with() {
    let mut bench = bench(Dialect::Ours);
    let (fh, data) = large(&mut bench);
    bench.server.state.lock().unwrap().most = Some(70_000);
    for extent in [Extent::Any, Extent::Whole] {
        let read = bench.view.read(fh, 5, 1 << 22, extent).unwrap();
        assert!(read == data[5..], "{} bytes", read.len());
    }
}

/// Keeps the promise that reading to the end of a file costs no call more than it must.
#[test]
fn a_short_read_at_the_end_is_the_end() {
    let mut bench = bench(Dialect::Ours);
    fs::write(bench.host("file"), "content").unwrap();
    let (node, _) = bench.look("file").unwrap();
    let fh = bench.view.open(node, O_RDWR).unwrap();
    assert_eq!(
        bench.view.read(fh, 0, 4096, Extent::Whole).unwrap(),
        b"content"
    );
    assert_eq!(count(&bench, number::PREAD64), 1);
    bench.view.write(fh, 7, b" and more", Extent::Any).unwrap();
    bench.server.state.lock().unwrap().most = Some(9);
    let read = bench.view.read(fh, 0, 4096, Extent::Whole).unwrap();
    assert_eq!(read, b"content and more");
}

/// Keeps the promise that an error is never taken for the end of a file: the kernel's page cache
/// takes a short reply for that.
#[test]
fn a_page_cache_read_that_fails_in_the_middle_is_an_error() {
    let mut bench = bench(Dialect::Ours);
    let (fh, data) = large(&mut bench);
    fail(&bench, number::PREAD64, 1, EIO);
    assert_eq!(
        bench.view.read(fh, 0, 1 << 22, Extent::Whole),
        Err(Errno::IO)
    );
    fail(&bench, number::PREAD64, 1, EIO);
    let part = bench.view.read(fh, 0, 1 << 22, Extent::Any).unwrap();
    assert!(
        part == data[..1 << 20],
        "a process reads what comes before the error"
    );
    assert_eq!(bench.view.read(fh, 1 << 20, 9, Extent::Any), Err(Errno::IO));
}

/// Keeps the promise that a page of a mapping is written whole or reported: the kernel does not look
/// at how much of it was.
#[test]
fn a_page_cache_write_that_fails_in_the_middle_is_an_error() {
    let mut bench = bench(Dialect::Ours);
    let (fh, data) = large(&mut bench);
    fail(&bench, number::PWRITE64, 1, ENOSPC);
    let written = bench.view.write(fh, 0, &data, Extent::Whole);
    assert_eq!(written, Err(Errno::NOSPC));
    fail(&bench, number::PWRITE64, 1, ENOSPC);
    assert_eq!(bench.view.write(fh, 0, &data, Extent::Any), Ok(1 << 20));
    assert_eq!(
        bench.view.write(fh, 1 << 20, &data, Extent::Any),
        Err(Errno::NOSPC)
    );
}

/// Keeps the promise that what the server leaves of a write is written as well, or reported.
#[test]
fn a_short_write_is_gone_on_with_until_nothing_is_taken() {
    let mut bench = bench(Dialect::Ours);
    let (fh, data) = large(&mut bench);
    bench.server.state.lock().unwrap().most = Some(600_000);
    for extent in [Extent::Any, Extent::Whole] {
        let end = u64::try_from(data.len()).unwrap();
        assert_eq!(bench.view.write(fh, end, &data, extent), Ok(data.len()));
        assert!(fs::read(bench.host("file")).unwrap()[data.len()..] == data);
    }
    bench.server.state.lock().unwrap().most = Some(0);
    for extent in [Extent::Any, Extent::Whole] {
        assert_eq!(bench.view.write(fh, 0, b"x", extent), Err(Errno::IO));
    }
    let past = u64::try_from(i64::MAX).unwrap() - 1;
    let written = bench.view.write(fh, past, b"xyz", Extent::Whole);
    assert_eq!(written, Err(Errno::FBIG), "a part of a page would be lost");
}

/// Keeps the promise that a page of a mapping is written where it belongs, although the file was
/// opened to append.
#[test]
fn a_page_of_a_file_that_is_appended_to_stays_in_its_place() {
    let mut bench = bench(Dialect::Ours);
    fs::write(bench.host("file"), "content").unwrap();
    let (node, _) = bench.look("file").unwrap();
    let fh = bench.view.open(node, O_RDWR | 0o2000).unwrap();
    assert_eq!(bench.view.write(fh, 0, b"CON", Extent::Whole), Ok(3));
    assert_eq!(bench.view.write(fh, 7, b" and more", Extent::Any), Ok(9));
    let content = fs::read_to_string(bench.host("file")).unwrap();
    assert_eq!(content, "CONtent and more");
    assert_eq!(bench.server.state.lock().unwrap().handles(), 1);
}

/// Keeps the promise that close reports what the server could not write, and costs nothing where
/// nothing was written.
#[test]
fn closing_asks_the_server_what_it_could_not_write() {
    let mut bench = bench(Dialect::Ours);
    let (_, _, fh) = bench.create("file", O_RDWR).unwrap();
    bench.view.flush(fh).unwrap();
    assert_eq!(count(&bench, number::DUP2), 0);
    bench.view.write(fh, 0, b"x", Extent::Any).unwrap();
    fail(&bench, number::DUP2, 0, ENOSPC);
    assert_eq!(bench.view.flush(fh), Err(Errno::NOSPC));
    bench.server.state.lock().unwrap().failing.clear();
    bench.view.flush(fh).unwrap();
    bench.view.flush(fh).unwrap();
    assert_eq!(count(&bench, number::DUP2), 2);
    bench.view.write(fh, 0, b"x", Extent::Any).unwrap();
    bench.view.sync(fh, false).unwrap();
    bench.view.flush(fh).unwrap();
    assert_eq!(count(&bench, number::DUP2), 2, "it was told already");
}

/// Keeps the promise that data which was acknowledged and may be missing is reported: a server that
/// was lost may have been so with its machine.
#[test]
fn a_server_lost_with_unsynced_data_is_reported_by_close_and_fsync() {
    for reopened in [false, true] {
        let mut bench = bench(Dialect::Ours);
        let (_, _, written) = bench.create("written", O_RDWR).unwrap();
        let (_, _, synced) = bench.create("synced", O_RDWR).unwrap();
        for fh in [written, synced] {
            bench.view.write(fh, 0, b"x", Extent::Any).unwrap();
        }
        let (node, _, cut) = bench.create("cut", O_RDWR).unwrap();
        let changes = Changes {
            size: Some(7),
            ..Changes::default()
        };
        bench.view.change(node, Some(cut), &changes).unwrap();
        bench.view.sync(synced, false).unwrap();
        bench.server.state.lock().unwrap().losses += 1;
        if reopened {
            bench.view.read(written, 0, 1, Extent::Any).unwrap();
        }
        assert_eq!(bench.view.flush(cut), Err(Errno::IO));
        assert_eq!(bench.view.flush(written), Err(Errno::IO));
        assert_eq!(bench.view.sync(written, true), Err(Errno::IO));
        assert_eq!(bench.view.sync(written, true), Ok(()), "it is said once");
        assert_eq!(bench.view.flush(written), Ok(()));
        assert_eq!(bench.view.flush(synced), Ok(()));
        assert_eq!(bench.view.sync(synced, true), Ok(()));
    }
}

/// Keeps the promise that a listing has all entries or ends in an error.
#[test]
fn an_error_in_a_listing_is_no_end_of_it() {
    let mut bench = bench(Dialect::Ours);
    for number in 0..9 {
        fs::write(bench.host(&format!("file-{number}")), "").unwrap();
    }
    let fh = bench.view.open_directory(ROOT).unwrap();
    fail(&bench, number::READDIR, 5, EIO);
    for position in 0..5 {
        bench.view.entry(fh, position).unwrap();
    }
    assert_eq!(bench.view.entry(fh, 5), Err(Errno::IO));
    // The server goes nowhere, so that what it has told must not be forgotten.
    fail(&bench, number::SEEKDIR, 0, EIO);
    assert_eq!(bench.view.rewind(fh), Err(Errno::IO));
    assert_eq!(bench.view.rewind(fh), Err(Errno::IO));
    bench.server.state.lock().unwrap().failing.clear();
    assert_eq!(bench.names(fh).len(), 11);
}

/// Keeps the promise that a listing is never cut short without an error.
#[test]
fn a_directory_with_too_many_entries_is_an_error() {
    let mut bench = bench(Dialect::Ours);
    fs::write(bench.host("file"), "").unwrap();
    let fh = bench.view.open_directory(ROOT).unwrap();
    let entry = Entry {
        ino: 1,
        kind: 8,
        name: "entry".into(),
    };
    let directory = bench.view.directories.get_mut(fh).unwrap();
    directory.entries = vec![entry; MOST_ENTRIES];
    let behind = u64::try_from(MOST_ENTRIES).unwrap() + 2;
    assert_eq!(bench.view.entry(fh, behind), Err(Errno::OVERFLOW));
}

/// Keeps the promise that a link's text is never cut short without an error.
#[test]
fn a_link_with_more_text_than_fits_is_an_error() {
    let mut bench = bench(Dialect::Ours);
    std::os::unix::fs::symlink("target", bench.host("link")).unwrap();
    let (node, _) = bench.look("link").unwrap();
    bench.server.state.lock().unwrap().target = Some(vec![b'x'; 4096]);
    assert_eq!(bench.view.read_link(node), Err(Errno::NAMETOOLONG));
    bench.server.state.lock().unwrap().target = Some(vec![b'x'; 4095]);
    assert_eq!(bench.view.read_link(node).unwrap().len(), 4095);
}

/// Keeps the promise that a listing goes on where it was when the server has closed the directory.
#[test]
fn a_directory_that_the_server_has_closed_is_listed_on() {
    let mut bench = bench(Dialect::Ours);
    for number in 0..9 {
        fs::write(bench.host(&format!("file-{number}")), "").unwrap();
    }
    let fh = bench.view.open_directory(ROOT).unwrap();
    for position in 0..11 {
        bench.server.state.lock().unwrap().close_directories();
        assert!(bench.view.entry(fh, position).unwrap().is_some());
    }
    let mut expected: Vec<_> = (0..9).map(|number| format!("file-{number}")).collect();
    expected.splice(0..0, [".".to_owned(), "..".to_owned()]);
    assert_eq!(bench.names(fh), expected);
}

/// Keeps the promise that a file is as it was asked for when somebody else was quicker to make it.
#[test]
fn create_empties_what_somebody_else_was_quicker_with_if_asked_to() {
    let mut bench = bench(Dialect::Ours);
    fs::write(bench.host("file"), "theirs").unwrap();
    let (_, stat, _) = bench.create("file", O_RDWR | 0o1000).unwrap();
    assert_eq!(stat.size, 0);
}
