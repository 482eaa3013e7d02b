use std::io::Write;
use std::thread::{self, JoinHandle};

use gangplank_vhost_user::message::{FrontendReq, Inbox};

use super::*;
use crate::device::request::{Handled, IoMode, Request};
use crate::state::arena::Limits;

/// Returns every request at once, with an empty reply.
struct Idle;

impl Handler for Idle {
    fn handle(&self, request: Box<Request>, _mode: IoMode) -> Handled {
        Handled::Replied(request)
    }

    fn end_waits(&self) {}

    fn reset(&self) {}
}

fn arena() -> Arc<Arena> {
    let limits = Limits {
        rings: 9,
        ring_size: 1024,
        ..Limits::SMALL
    };
    Arena::new(limits).expect("an arena")
}

fn connect() -> (UnixStream, JoinHandle<Result<(), Error>>) {
    connect_with(Options::default())
}

fn connect_with(options: Options) -> (UnixStream, JoinHandle<Result<(), Error>>) {
    let (near, far) = UnixStream::pair().expect("a socket pair");
    let handler: Arc<dyn Handler> = Arc::new(Idle);
    let served = thread::spawn(move || {
        let guest = Guest {
            number: 1,
            arena: &arena(),
            replies: &ReplyPipe::new().expect("a pipe"),
            kept: None,
        };
        serve(&far, &options, &handler, guest)
    });
    (near, served)
}

#[test]
fn a_frontend_is_answered_and_may_hang_up() {
    let (frontend, served) = connect();
    for request in [FrontendReq::SET_OWNER, FrontendReq::GET_FEATURES] {
        Message::new(request, Vec::new())
            .send(frontend.as_fd(), &[], Deadline::NONE)
            .expect("sent");
    }
    let answer = Inbox::default().wait(frontend.as_fd(), Deadline::NONE);
    let answer = answer.expect("answered");
    assert_eq!(answer.frontend_request(), Some(FrontendReq::GET_FEATURES));
    let features = answer.u64().expect("8 bytes");
    // VERSION_1, protocol features, EVENT_IDX, INDIRECT_DESC, LOG_ALL.
    assert_eq!(features, 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 26);
    drop(frontend);
    assert!(served.join().expect("no panic").is_ok());
}

#[test]
fn a_frontend_that_sends_rubbish_is_dropped() {
    for rubbish in [
        &[0xff; 64][..],
        b"GET / HTTP/1.1\r\n\r\n",
        &Message::new(4711u32, b"x".to_vec()).to_bytes(),
    ] {
        let (mut frontend, served) = connect();
        frontend.write_all(rubbish).expect("written");
        assert!(served.join().expect("no panic").is_err());
    }
}

#[test]
fn a_frontend_that_never_reads_does_not_keep_its_connection_alive() {
    let (mut frontend, served) = connect();
    frontend
        .set_write_timeout(Some(std::time::Duration::from_millis(100)))
        .expect("set");
    let ask = Message::new(FrontendReq::GET_FEATURES, Vec::new())
        .to_bytes()
        .repeat(64);
    // Until all buffers on the path are full of replies that this side does not read.
    while frontend.write_all(&ask).is_ok() {}
    drop(frontend);
    assert!(!matches!(
        served.join().expect("no panic"),
        Err(Error::Threads(_) | Error::PrivateSocket(_))
    ));
}

#[test]
fn a_frontend_with_more_memory_than_permitted_is_dropped_before_it_is_mapped() {
    // Guest address, size, user address, file offset.
    let regions = |regions: &[[u64; 4]]| -> Vec<u8> {
        let words = regions.iter().flatten();
        words.flat_map(|word| word.to_le_bytes()).collect()
    };
    let table = |count: u64| {
        let list: Vec<_> = (0..count).map(|at| [at << 32, 1 << 32, 0, 0]).collect();
        [count.to_le_bytes().to_vec(), regions(&list)].concat()
    };
    let much = [vec![0; 8], regions(&[[0, (8 << 40) + 1, 0, 0]])].concat();
    // No message has a descriptor, so vhost-user-backend would refuse each for that.
    for (request, payload, option) in [
        (5_u32, table(9), "--max-memory-regions"),
        (
            5,
            [vec![1, 0, 0, 0, 0, 0, 0, 0], much[8..].to_vec()].concat(),
            "--max-guest-memory",
        ),
        (37, much, "--max-guest-memory"),
    ] {
        let options = Options {
            max_memory_regions: 8,
            ..Options::default()
        };
        let (frontend, served) = connect_with(options);
        let message = Message::new(request, payload);
        let sent = message.send(frontend.as_fd(), &[], Deadline::NONE);
        sent.expect("sent");
        let error = served.join().expect("no panic").expect_err("dropped");
        assert!(error.to_string().contains(option), "{error}");
    }
}

#[test]
fn the_private_socket_leads_to_its_own_listener() {
    let (near, listener) = private_socket().expect("made");
    let (mut far, _) = listener.accept().expect("accepted");
    far.write_all(b"x").expect("written");
    let mut byte = [0];
    assert_eq!(rustix::io::read(&near, &mut byte).expect("read"), 1);
    assert_eq!(&byte, b"x");
}
