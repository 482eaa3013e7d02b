use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

#[test]
fn message_passes_with_payload_and_descriptors() {
    let (near, far) = pair();
    let sent = Message::new(FrontendReq::SET_VRING_KICK, payload::from_u64(3));
    let beside = [near.as_fd(), far.as_fd()];
    sent.with_need_reply()
        .send(near.as_fd(), &beside, soon())
        .unwrap();
    let received = Inbox::default().wait(far.as_fd(), soon()).unwrap();
    assert_eq!((received.request, received.u64()), (12, Some(3)));
    assert_eq!(
        received.frontend_request(),
        Some(FrontendReq::SET_VRING_KICK)
    );
    assert!(received.needs_reply() && received.check_request().is_ok());
    assert_eq!(received.descriptors.len(), 2);
    assert!(received.reply(Vec::new()).is_reply_to(12));
    assert!(received.reply(Vec::new()).check_request().is_err());
}

#[test]
fn header_has_the_layout_of_the_specification() {
    let message = Message::new(FrontendReq::SET_MEM_TABLE, vec![7, 8]).with_need_reply();
    let expected = [5u32, 9, 2].map(u32::to_ne_bytes).concat();
    assert_eq!(message.to_bytes(), [&expected[..], &[7, 8]].concat());
}

#[test]
fn message_that_arrives_byte_by_byte_is_whole_in_the_end() {
    let (mut near, far) = pair();
    let mut inbox = Inbox::default();
    let bytes = [5u8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 8];
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(inbox.has_begun(), at > 0);
        near.write_all(&[*byte]).unwrap();
        let message = inbox.receive(far.as_fd()).unwrap();
        assert_eq!(message.is_some(), at + 1 == bytes.len());
        if let Some(message) = message {
            assert_eq!((message.request, message.payload), (5, vec![7, 8]));
        }
    }
    assert!(!inbox.has_begun());
}

#[test]
fn hanging_up_within_a_message_is_told_from_hanging_up_after_one() {
    for (bytes, cut) in [(&[][..], false), (&[1, 0], true)] {
        let (mut near, far) = pair();
        near.write_all(bytes).unwrap();
        drop(near);
        let error = Inbox::default().wait(far.as_fd(), soon()).unwrap_err();
        assert_eq!(matches!(error, MessageError::Cut), cut, "{error}");
        assert!(error.is_end());
    }
}

#[test]
fn absurd_length_is_refused_before_anything_is_allocated() {
    let (mut near, far) = pair();
    near.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255])
        .unwrap();
    let error = Inbox::default().wait(far.as_fd(), soon()).unwrap_err();
    assert!(
        matches!(
            error,
            MessageError::TooLong {
                request: 1,
                len: 0xffff_ffff
            }
        ),
        "{error}"
    );
}

#[test]
fn peer_that_sends_or_takes_nothing_is_late() {
    let short = || Deadline::after(Duration::from_millis(20));
    let (near, far) = pair();
    let silent = Inbox::default().wait(far.as_fd(), short()).unwrap_err();
    assert!(matches!(silent, MessageError::Late(_)), "{silent}");
    let message = Message::new(1u32, vec![0; MAX_PAYLOAD_LEN]);
    let full = loop {
        if let Err(error) = message.send(near.as_fd(), &[], short()) {
            break error;
        }
    };
    assert!(matches!(full, MessageError::Late(_)), "{full}");
}

#[test]
fn peer_that_hangs_up_is_no_peer_to_send_to() {
    let (near, far) = pair();
    drop(far);
    let error = Message::new(1u32, Vec::new()).send(near.as_fd(), &[], Deadline::NONE);
    assert!(matches!(error, Err(MessageError::HungUp)), "{error:?}");
    let (near, far) = pair();
    let message = Message::new(1u32, Vec::new());
    message.send(near.as_fd(), &[], soon()).unwrap();
    drop(far);
    let error = Inbox::default().wait(near.as_fd(), Deadline::NONE);
    assert!(matches!(error, Err(MessageError::Reset)), "{error:?}");
}

/// No silent loss: a message with more descriptors than the receiver takes is an error, and none
/// of them stays open.
#[test]
fn message_with_too_many_descriptors_is_refused_and_they_are_closed() {
    for limit in [0, 16, MAX_DESCRIPTORS] {
        let (near, far) = pair();
        let (passed, mut other_end) = pair();
        let message = Message::new(FrontendReq::SET_BACKEND_REQ_FD, Vec::new());
        let send = |count| {
            let beside = vec![passed.as_fd(); count];
            message.send(near.as_fd(), &beside, soon()).unwrap();
        };
        let mut inbox = Inbox::new(limit);
        send(limit);
        let taken = inbox.receive(far.as_fd()).unwrap().unwrap();
        assert_eq!(taken.descriptors.len(), limit);
        drop(taken);
        send(limit + 1);
        let error = inbox.receive(far.as_fd()).unwrap_err();
        assert!(matches!(error, MessageError::TooManyDescriptors { limit: it } if it == limit));
        drop(passed);
        other_end.set_nonblocking(true).unwrap();
        assert_eq!(other_end.read(&mut [0]).unwrap(), 0);
    }
}

/// Too little room stands for a process that may not open more descriptors: the kernel drops the
/// rest, and sets the same flag.
#[test]
fn descriptors_that_the_kernel_drops_are_seen() {
    let (near, far) = pair();
    let beside = vec![near.as_fd(); 8];
    for (room, is_truncated) in [(4 * 8, true), (256, false)] {
        descriptors::send_all(near.as_fd(), b"x", &beside, soon()).unwrap();
        let mut space = vec![std::mem::MaybeUninit::uninit(); room];
        let mut kept = Vec::new();
        let received = descriptors::receive_with(far.as_fd(), &mut [0], &mut space, &mut kept);
        let received = received.unwrap();
        assert_eq!((received.len, received.is_truncated), (1, is_truncated));
        assert_eq!(kept.len() == 8, !is_truncated);
    }
}

#[test]
fn more_descriptors_than_the_kernel_passes_are_not_sent() {
    let (near, far) = pair();
    let beside = vec![near.as_fd(); descriptors::SCM_MAX_FD + 1];
    let message = Message::new(1u32, Vec::new());
    assert!(message.send(near.as_fd(), &beside, soon()).is_err());
    assert!(Inbox::default().receive(far.as_fd()).unwrap().is_none());
}

#[test]
fn wrong_flags_are_no_request() {
    for flags in [0, 2, VERSION | REPLY, VERSION | 16, u32::MAX] {
        let mut message = Message::new(1u32, Vec::new());
        message.flags = flags;
        assert!(message.check_request().is_err(), "{flags:#x}");
    }
}

#[test]
fn payloads_are_decoded_at_their_length_only() {
    let mut message = Message::new(FrontendReq::SET_VRING_NUM, payload::ring_state(1, 128));
    let state: VringState = message.payload_as().unwrap();
    assert_eq!(payload::encode(&state), message.payload);
    message.payload.push(0);
    assert!(message.payload_as::<VringState>().is_none() && message.u64().is_none());
    let region = MemoryRegion::new(0x1000, 0x2000, 0x3000, 0x4000);
    let table = payload::memory_table(&[region]);
    let words = [1u64, 0x1000, 0x2000, 0x3000, 0x4000];
    assert_eq!(table, words.map(u64::to_ne_bytes).concat());
}
