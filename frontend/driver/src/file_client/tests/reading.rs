use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::{FopenFlags, Opcode, ReadFlags};
use rustix::io::Errno;

use super::super::actions::FsAction;
use super::super::{Error, act};
use super::share::{Fixture, PIECE, State, output, pattern, text};
use crate::fake_daemon::ReplyOrder;

fn file_of(len: usize) -> State {
    State {
        data: pattern(len),
        ..State::default()
    }
}

/// No silent loss: a short READ is not the end of the file.
#[test]
fn short_reads_amid_a_file_lose_nothing() {
    let data = pattern(5 * PIECE + 100);
    let fixture = Fixture::new(State {
        most: vec![PIECE, 1000, 1, PIECE, 2000],
        ..file_of(data.len())
    });
    let (out, file) = output();
    fixture.share.cat(b"file", &out).unwrap();
    let mut copy = vec![0; data.len() + 1];
    assert_eq!(file.read_at(&mut copy, 0).unwrap(), data.len());
    assert!(copy.starts_with(&data));
}

/// No silent loss: data beyond the size that the daemon reported is read as well.
#[test]
fn file_longer_than_its_size_is_read_to_its_end() {
    let data = pattern(3 * PIECE);
    let fixture = Fixture::new(State {
        told_size: Some(10),
        ..file_of(data.len())
    });
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");
    let path = copy.as_os_str().as_bytes();
    fixture.share.copy(b":file", path).unwrap();
    assert_eq!(fs::read(&copy).unwrap(), data);
}

/// No silent loss: a failed READ is an error of the copy that names file and offset. What the name
/// had before stays, and nothing else is left behind.
#[test]
fn failed_read_is_told_by_file_and_offset_after_what_could_be_read() {
    let bad = 2 * PIECE + 512;
    let fixture = Fixture::new(State {
        fails_from: Some((bad as u64, Errno::IO)),
        ..file_of(6 * PIECE)
    });
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");
    let path = copy.as_os_str().as_bytes();
    fs::write(&copy, b"old").unwrap();
    let error = fixture.share.copy(b":file", path).unwrap_err();
    let expected = format!("cannot read file at offset {bad}: READ: ");
    assert!(text(&error).starts_with(&expected), "{}", text(&error));
    assert_eq!(error.status(), 1);
    assert_eq!(fs::read(&copy).unwrap(), b"old");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let (out, file) = output();
    let error = fixture.share.cat(b"file", &out).unwrap_err();
    assert!(text(&error).starts_with(&expected), "{}", text(&error));
    assert_eq!(file.metadata().unwrap().len(), bad as u64);
}

/// No silent loss: a daemon answers direct reads, and only those, with the data before an error.
#[test]
fn reads_are_direct_ones() {
    let fixture = Fixture::new(file_of(3 * PIECE));
    fixture.share.cat(b"file", &output().0).unwrap();
    let state = fixture.state();
    assert!(state.flags.len() >= 4);
    let direct = ReadFlags::LOCKOWNER.bits();
    assert!(state.flags.iter().all(|flags| *flags == direct));
}

/// A file is closed only after every request on it was answered.
#[test]
fn file_that_was_read_is_flushed_and_released_last() {
    let fixture = Fixture::new(State {
        order: ReplyOrder::Backward,
        // The file ends before the reported size, with reads beyond in flight.
        told_size: Some(20 * PIECE as u64),
        ..file_of(PIECE)
    });
    fixture.share.cat(b"file", &output().0).unwrap();
    let asked = &fixture.state().asked;
    assert!(asked.ends_with(&[Opcode::Flush, Opcode::Release]));
}

/// The copy has the holes of the file, also the one at its end, and the permissions of the file
/// that it replaces.
#[test]
fn copy_on_the_host_has_the_holes_of_the_file() {
    let len = 4 << 20;
    let mut state = file_of(0);
    state.data = vec![0; len];
    state.data[1 << 20..][..6].copy_from_slice(b"middle");
    let extent = (1 << 20)..(1 << 20) + 4096;
    state.extents = Some([extent].into());
    let data = state.data.clone();
    let fixture = Fixture::new(state);
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");
    fs::write(&copy, b"old").unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o604)).unwrap();
    fixture
        .share
        .copy(b":file", copy.as_os_str().as_bytes())
        .unwrap();
    assert_eq!(fs::read(&copy).unwrap(), data);
    let metadata = fs::metadata(&copy).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o604);
    assert!(metadata.blocks() * 512 < len as u64 / 2, "{metadata:?}");
}

/// A link on the host is followed: the file that it leads to is replaced, and the link stays.
#[test]
fn copy_to_a_link_replaces_what_it_leads_to() {
    let fixture = Fixture::new(file_of(10));
    let directory = tempfile::tempdir().unwrap();
    let (file, link) = (directory.path().join("file"), directory.path().join("link"));
    fs::write(&file, b"old").unwrap();
    symlink("file", &link).unwrap();
    fixture
        .share
        .copy(b":file", link.as_os_str().as_bytes())
        .unwrap();
    assert_eq!(fs::read(&file).unwrap(), pattern(10));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let new = format!("{}/new/", directory.path().display());
    let error = fixture.share.copy(b":file", new.as_bytes()).unwrap_err();
    assert!(text(&error).ends_with("new/: there is no such directory"));
}

/// A command goes on after the error of one file, and tells all of them: the first ones in full.
#[test]
fn errors_of_several_files_are_told_together() {
    let fixture = Fixture::new(State {
        failing: vec![(Opcode::Unlink, Errno::ACCESS)],
        ..file_of(1)
    });
    let paths = vec!["file".into(); 30];
    let action = FsAction::Rm {
        recursive: false,
        force: false,
        paths,
    };
    let error = act(&fixture.share, &action, &mut output().0).unwrap_err();
    assert_eq!(error.status(), 1);
    let Error::Several(failures) = error else {
        panic!("one error: {error}");
    };
    assert_eq!((failures.first().len(), failures.more()), (20, 10));
    let asked = &fixture.state().asked;
    assert_eq!(
        asked
            .iter()
            .filter(|asked| **asked == Opcode::Unlink)
            .count(),
        30
    );
}

/// No silent loss: a full local file system is an error with file and offset.
#[test]
fn local_file_that_cannot_be_written_is_told_by_file_and_offset() {
    let fixture = Fixture::new(file_of(PIECE));
    let error = fixture.share.copy(b":file", b"/dev/full").unwrap_err();
    let expected = "cannot write /dev/full at offset 0: No space left on device";
    assert!(text(&error).starts_with(expected), "{}", text(&error));
}

/// No silent loss: `stat` shows less only if the daemon does not know the operation.
#[test]
fn failed_statx_is_an_error_and_an_unknown_one_is_none() {
    let fixture = Fixture::new(file_of(1));
    let mut shown = Vec::new();
    fixture.share.stat(b"file", &mut shown).unwrap();
    fixture.state().failing.push((Opcode::Statx, Errno::IO));
    let error = fixture.share.stat(b"file", &mut shown).unwrap_err();
    let expected = "cannot look at file: STATX: ";
    assert!(text(&error).starts_with(expected), "{}", text(&error));
}

/// No silent loss: a file that was only read is closed as a kernel closes it. A daemon that asks
/// for no FLUSH gets none.
#[test]
fn close_of_a_file_that_was_read_is_heard() {
    let fixture = Fixture::new(State {
        failing: vec![(Opcode::Flush, Errno::IO)],
        ..file_of(1)
    });
    let error = fixture.share.cat(b"file", &output().0).unwrap_err();
    let expected = "cannot close file: FLUSH: ";
    assert!(text(&error).starts_with(expected), "{}", text(&error));
    fixture.state().open_flags = FopenFlags::NOFLUSH.bits();
    fixture.share.cat(b"file", &output().0).unwrap();
}

/// No silent loss: a malformed entry is an error, and not left out.
#[test]
fn listing_with_a_name_that_is_none_is_an_error() {
    for (name, is_good) in [(&b"file"[..], true), (b"", false), (b"a/b", false)] {
        let mut entries = vec![0; 256];
        let mut writer = DirentWriter::new(&mut entries);
        writer.push(2, 1, 8, b"first").unwrap();
        writer.push(3, 2, 8, name).unwrap();
        let written = writer.written();
        entries.truncate(written);
        let fixture = Fixture::new(State {
            entries,
            ..file_of(1)
        });
        let paths = [b"/".to_vec()];
        let listed = fixture.share.list(&paths, false, false, &mut Vec::new());
        assert_eq!(listed.is_ok(), is_good, "{name:?}: {listed:?}");
    }
}

/// No silent loss: a listing that ends in an error is not shown as complete.
#[test]
fn listing_that_fails_is_an_error() {
    let fixture = Fixture::new(State {
        failing: vec![(Opcode::Readdir, Errno::IO)],
        ..file_of(1)
    });
    let paths = [b"/".to_vec()];
    let error = fixture
        .share
        .list(&paths, false, false, &mut Vec::new())
        .unwrap_err();
    let expected = "cannot list /: READDIR: ";
    assert!(text(&error).starts_with(expected), "{}", text(&error));
}
