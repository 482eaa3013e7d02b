//! Tests of the differences for the original server.

use super::*;

#[test]
fn sizes_beyond_the_originals_are_refused_and_never_cut() {
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
    // A file that grew beyond the limit elsewhere is reported as too large.
    let host = fs::File::options().write(true).open(fixture.host("file"));
    host.unwrap().set_len(1 << 33).unwrap();
    assert_eq!(fixture.look("file"), Err(Errno::OVERFLOW));
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
        // Only a writable handle can do this.
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
fn d4_the_originals_open_files_are_examined_by_name() {
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
fn d11_times_are_not_sent_to_the_original() {
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
