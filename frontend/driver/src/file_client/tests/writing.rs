use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use gangplank_fuse::{CopyFileRangeIn, NodeId, Opcode};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::Result;
use super::super::host::HostReader;
use super::super::transfer::Holes;
use super::share::{Fixture, PIECE, State, pattern, text};
use crate as driver;
use crate::fake_daemon::ReplyOrder;

/// Copies `data` to the share's file.
fn copy_in(fixture: &Fixture, data: &[u8]) -> Result<()> {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::write(&source, data).unwrap();
    fixture.share.copy(source.as_os_str().as_bytes(), b":file")
}

/// No silent loss: data that a WRITE did not take is sent again, and arrives.
#[test]
fn short_writes_are_gone_on_with() {
    let fixture = Fixture::new(State {
        most: vec![PIECE, 1, 100, PIECE, 5],
        ..State::default()
    });
    let data = pattern(4 * PIECE + 17);
    copy_in(&fixture, &data).unwrap();
    assert_eq!(fixture.state().data, data);
}

/// The same errors as on the host: a full file system takes a part, and reports why it takes no
/// more with the next request.
#[test]
fn reason_for_a_short_write_is_told_by_file_and_offset() {
    let full = PIECE + 300;
    let fixture = Fixture::new(State {
        data: b"old".to_vec(),
        fails_from: Some((full as u64, Errno::NOSPC)),
        ..State::default()
    });
    let error = copy_in(&fixture, &pattern(3 * PIECE)).unwrap_err();
    let expected = format!("cannot write file at offset {full}: WRITE: No space left");
    assert!(text(&error).starts_with(&expected), "{}", text(&error));
    let state = fixture.state();
    assert_eq!(state.data, b"old");
    assert_eq!(state.made, pattern(3 * PIECE)[..full]);
    assert!(
        state
            .asked
            .ends_with(&[Opcode::Write, Opcode::Release, Opcode::Unlink])
    );
}

/// A file is replaced when its new data is complete, and not before.
#[test]
fn file_gets_its_new_data_in_one_step() {
    let fixture = Fixture::new(State {
        data: b"old".to_vec(),
        ..State::default()
    });
    let data = pattern(2 * PIECE);
    copy_in(&fixture, &data).unwrap();
    let state = fixture.state();
    assert_eq!(state.data, data);
    assert!(
        state
            .asked
            .ends_with(&[Opcode::Flush, Opcode::Release, Opcode::Rename])
    );
    let written = state.asked.iter().filter(|asked| **asked == Opcode::Write);
    assert_eq!(written.count(), 2);
}

/// A hole of the source is none of the requests, and is in the copy: also one at the end.
#[test]
fn holes_of_the_source_are_not_written() {
    let fixture = Fixture::new(State::default());
    let source = tempfile::NamedTempFile::new().unwrap();
    let file = source.as_file();
    let (hole, len) = (1 << 20, 4 << 20);
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", hole).unwrap();
    file.set_len(len).unwrap();
    fixture
        .share
        .copy(source.path().as_os_str().as_bytes(), b":file")
        .unwrap();
    let state = fixture.state();
    assert_eq!(state.data, fs::read(source.path()).unwrap());
    let written = state.asked.iter().filter(|asked| **asked == Opcode::Write);
    assert!(written.count() <= 4, "{:?}", state.asked);
}

/// A copy within the share finds the holes by LSEEK. A daemon that does not know it has none.
#[test]
fn holes_within_the_share_are_found_by_lseek() {
    for extents in [Some(vec![0..5, 40_960..40_970]), None] {
        let whole = extents.is_none();
        let mut data = vec![0; 20 * PIECE];
        data[40_960..40_970].copy_from_slice(b"0123456789");
        let fixture = Fixture::new(State {
            data: data.clone(),
            extents,
            ..State::default()
        });
        fixture.state().missing = usize::MAX;
        fixture.state().found = Some("source");
        fixture.share.copy(b":source", b":new").unwrap();
        let state = fixture.state();
        assert_eq!(state.data, data);
        let read = state.asked.iter().filter(|asked| **asked == Opcode::Read);
        assert_eq!(read.count() > 4, whole, "{:?}", state.asked);
    }
}

/// A name with a slash behind it is a directory's.
#[test]
fn file_is_not_made_where_a_directory_was_meant() {
    let fixture = Fixture::new(State {
        missing: usize::MAX,
        ..State::default()
    });
    let source = tempfile::NamedTempFile::new().unwrap();
    let error = fixture
        .share
        .copy(source.path().as_os_str().as_bytes(), b":new/");
    assert_eq!(
        text(&error.unwrap_err()),
        "new/: there is no such directory"
    );
    assert!(!fixture.state().asked.contains(&Opcode::Create));
}

/// No silent loss: success without a byte written is an error, as is a count beyond what was sent.
#[test]
fn counts_that_cannot_be_are_errors() {
    let fixture = Fixture::new(State {
        most: vec![PIECE, 0],
        ..State::default()
    });
    let error = copy_in(&fixture, &pattern(2 * PIECE)).unwrap_err();
    let expected = "cannot write file at offset 4096: the daemon took none of 4096 bytes";
    assert_eq!(text(&error), expected);
    fixture.state().exaggerates = true;
    let error = copy_in(&fixture, &pattern(10)).unwrap_err();
    assert!(
        text(&error).contains("counts 11 bytes where 10 were asked for"),
        "{}",
        text(&error)
    );
}

/// No silent loss: FLUSH reports what the daemon could not write of the data that it had accepted.
#[test]
fn delayed_write_error_that_closing_tells_is_an_error_of_the_copy() {
    for (opcode, name) in [(Opcode::Flush, "FLUSH"), (Opcode::Release, "RELEASE")] {
        let fixture = Fixture::new(State {
            failing: vec![(opcode, Errno::NOSPC)],
            ..State::default()
        });
        let error = copy_in(&fixture, &pattern(3 * PIECE)).unwrap_err();
        let expected = format!("cannot close file: {name}: No space left");
        assert!(text(&error).starts_with(&expected), "{}", text(&error));
        let state = fixture.state();
        let end = [Opcode::Flush, Opcode::Release, Opcode::Unlink];
        assert!(state.asked.ends_with(&end), "{:?}", state.asked);
        assert_eq!(state.data, b"");
    }
}

/// A daemon without FLUSH works as well.
#[test]
fn daemon_that_knows_no_flush_takes_files_all_the_same() {
    let fixture = Fixture::new(State {
        failing: vec![(Opcode::Flush, Errno::NOSYS)],
        ..State::default()
    });
    copy_in(&fixture, b"data").unwrap();
    assert_eq!(fixture.state().data, b"data");
}

/// Appending overwrites nothing that others append meanwhile: the daemon finds the end of the file.
#[test]
fn appended_data_goes_to_wherever_the_file_ends() {
    let fixture = Fixture::new(State::default());
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(&path, pattern(2 * PIECE)).unwrap();
    let source = HostReader::new(
        File::open(&path).unwrap(),
        path.path().to_owned(),
        Holes::Read,
    );
    fixture.share.write_from(source, b"file", true).unwrap();
    let state = fixture.state();
    let appends = OFlags::APPEND.bits();
    assert_eq!(state.flags.len(), 2);
    assert!(state.flags.iter().all(|flags| flags & appends != 0));
}

/// No silent loss: if a source fails after some bytes, these are written and the error is reported.
#[test]
fn source_that_fails_midway_is_an_error_after_what_could_be_read() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut far = theirs.try_clone().unwrap();
    far.write_all(b"what came before").unwrap();
    // A peer that leaves without reading resets the connection. The reset is reported once.
    ours.write_all(b"never read").unwrap();
    drop((theirs, far));
    let fixture = Fixture::new(State {
        order: ReplyOrder::Backward,
        ..State::default()
    });
    let source = HostReader::new(
        OwnedFd::from(ours).into(),
        PathBuf::from("source"),
        Holes::Read,
    );
    let error = fixture
        .share
        .write_from(source, b"file", false)
        .unwrap_err();
    let expected = "cannot read source at offset 16: Connection reset by peer";
    assert!(text(&error).starts_with(expected), "{}", text(&error));
    let state = fixture.state();
    assert_eq!(state.data, b"what came before");
    // A daemon might close the file before it writes data that nobody has waited for.
    assert!(state.asked.ends_with(&[Opcode::Write, Opcode::Release]));
}

/// A file that appears where a directory is being made is an error.
#[test]
fn directory_whose_name_a_file_takes_meanwhile_is_not_made() {
    let fixture = Fixture::new(State {
        missing: 1,
        failing: vec![(Opcode::Mkdir, Errno::EXIST)],
        ..State::default()
    });
    let error = fixture.share.make(b"file", true).unwrap_err();
    assert_eq!(text(&error), "not a directory: file");
}

/// No silent loss: a copy within the daemon that counts more than was asked for is an error.
#[test]
fn copies_that_count_more_than_was_asked_are_errors() {
    let fixture = Fixture::new(State::default());
    let args = CopyFileRangeIn {
        len: 10,
        ..CopyFileRangeIn::default()
    };
    let session = &fixture.share.session;
    fixture.state().copied = 10;
    assert_eq!(session.copy_file_range(NodeId::new(2), args).unwrap(), 10);
    fixture.state().copied = 11;
    let error = session.copy_file_range(NodeId::new(2), args).unwrap_err();
    assert!(matches!(error, driver::Error::Reply { .. }), "{error}");
}
