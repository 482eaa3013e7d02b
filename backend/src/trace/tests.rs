use super::capture::{begin, end};
use super::*;

#[test]
fn notes_are_taken_of_the_request_that_the_thread_serves_alone() {
    let header = InHeader {
        opcode: 1,
        nodeid: 7,
        ..InHeader::default()
    };
    note_header(&header);
    assert_eq!(end().header, InHeader::default());
    begin(Capture::default());
    note_header(&header);
    note_reply(&[5, 0, 0, 0, 0, 0, 0, 0, 9, 9]);
    note_reply(&[6]);
    note_reply(&[7; 16]);
    note_errno(2);
    let capture = end();
    assert_eq!((capture.header, capture.words), (header, [5, 6]));
    assert_eq!(capture.errno, 2);
    note_errno(3);
    assert_eq!(end().errno, 0);
}
