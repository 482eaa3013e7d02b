//! Tests of segments, readers and writers.

use std::io::{Read, Seek, Write as _};
use std::os::fd::AsFd;

use super::*;

#[test]
fn adjacent_segments_are_joined() {
    let mut memory = [0u8; 8];
    let mut segments = Segments::default();
    let base = memory.as_mut_ptr();
    assert!(segments.push(base, 3) && segments.push(base.wrapping_add(3), 2));
    assert!(segments.push(base.wrapping_add(6), 2) && segments.push(base, 0));
    assert_eq!((segments.count(), segments.total()), (2, 7));
}

#[test]
fn a_total_beyond_the_address_space_is_refused() {
    let mut segments = Segments::default();
    let base = std::ptr::without_provenance_mut(4096);
    assert!(segments.push(base, isize::MAX as usize));
    assert!(!segments.push(base, 1));
}

#[test]
fn reading_crosses_segments_and_stops_at_the_end() {
    let (mut a, mut b) = (*b"abc", *b"defg");
    let mut segments = Segments::default();
    assert!(segments.push_slice(&mut a) && segments.push_slice(&mut b));
    // SAFETY: both arrays live to the end of the test.
    let mut reader = unsafe { segments.reader() };
    let mut five = [0; 5];
    assert_eq!(reader.read(&mut five), 5);
    assert_eq!(&five, b"abcde");
    assert_eq!(reader.remaining(), 2);
    assert_eq!(reader.read_value::<u32>(), None);
    assert_eq!(reader.read(&mut five), 2);
    assert_eq!(&five[..2], b"fg");
}

#[test]
fn a_reserved_front_may_be_cut_anywhere() {
    let (mut a, mut b, mut c) = ([0u8; 3], [0u8; 4], [0u8; 3]);
    let mut segments = Segments::default();
    assert!(
        segments.push_slice(&mut a) && segments.push_slice(&mut b) && segments.push_slice(&mut c)
    );
    // SAFETY: the arrays live to the end of the test.
    let mut writer = unsafe { segments.writer() };
    let front = writer.reserve::<4>().expect("ten bytes are there");
    assert_eq!(writer.write(b"567890"), 6);
    assert!(writer.reserve::<1>().is_none());
    front.fill(*b"1234");
    assert_eq!((&a, &b, &c), (b"123", b"4567", b"890"));
}

#[test]
fn file_transfers_move_no_more_than_asked_and_go_on_from_there() {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(b"0123456789").expect("written");
    let (mut a, mut b) = ([0u8; 3], [0u8; 6]);
    let mut segments = Segments::default();
    assert!(segments.push_slice(&mut a) && segments.push_slice(&mut b));
    // SAFETY: the arrays live to the end of the test.
    let mut writer = unsafe { segments.writer() };
    assert_eq!(writer.read_from(file.as_fd(), 5, 2, 0).expect("read"), 5);
    assert_eq!(writer.remaining(), 4);
    assert_eq!(writer.read_from(file.as_fd(), 100, 9, 0).expect("read"), 1);
    assert_eq!((&a, &b), (b"234", b"569\0\0\0"));

    segments.clear();
    assert!(segments.push_slice(&mut a) && segments.push_slice(&mut b));
    // SAFETY: the arrays live to the end of the test.
    let mut reader = unsafe { segments.reader() };
    assert_eq!(reader.write_to(file.as_fd(), 4, 0, 0).expect("written"), 4);
    assert_eq!(reader.remaining(), 5);
    let mut content = String::new();
    file.rewind().expect("rewound");
    file.read_to_string(&mut content).expect("read");
    assert_eq!(content, "2345456789");
}

#[test]
fn transfers_by_way_of_a_copy_move_the_same_bytes() {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(b"0123456789").expect("written");
    let (mut a, mut b) = ([0u8; 3], [0u8; 6]);
    let mut segments = Segments::default();
    segments.set_copied(true);
    assert!(segments.push_slice(&mut a) && segments.push_slice(&mut b));
    // SAFETY: the arrays live to the end of the test.
    let mut writer = unsafe { segments.writer() };
    assert_eq!(writer.read_from(file.as_fd(), 5, 2, 0).expect("read"), 5);
    assert_eq!(writer.read_from(file.as_fd(), 100, 9, 0).expect("read"), 1);
    assert_eq!(writer.remaining(), 3);
    assert_eq!((&a, &b), (b"234", b"569\0\0\0"));

    segments.clear();
    assert!(segments.push_slice(&mut a) && segments.push_slice(&mut b));
    // SAFETY: the arrays live to the end of the test.
    let mut reader = unsafe { segments.reader() };
    assert_eq!(reader.write_to(file.as_fd(), 4, 0, 0).expect("written"), 4);
    assert_eq!(
        reader.write_to(file.as_fd(), 100, 10, 0).expect("written"),
        5
    );
    let mut content = String::new();
    file.rewind().expect("rewound");
    file.read_to_string(&mut content).expect("read");
    assert_eq!(content, "234545678969\0\0\0");
}

#[test]
fn a_copy_is_aligned_for_direct_transfers_and_limited() {
    let mut memory = vec![1; 3 << 20];
    let mut segments = Segments::default();
    segments.set_copied(true);
    assert!(segments.push_slice(&mut memory[1..]));
    let file = tempfile::tempfile().expect("a temporary file");
    // Some file systems have no direct I/O. Others refuse memory that is not aligned.
    let is_direct = crate::sys::file::set_direct(file.as_fd(), true).is_ok();
    // SAFETY: the memory lives to the end of the test.
    let mut reader = unsafe { segments.reader() };
    let written = reader.write_to(file.as_fd(), 2 << 20, 0, 0);
    assert_eq!(written.expect("written"), 1 << 20, "direct: {is_direct}");
    // SAFETY: as above.
    let writer = unsafe { segments.writer() };
    assert_eq!(writer.max_per_call(2 << 20), 1 << 20);
}
