//! Daemons that are missing, slow or gone.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::*;
use crate::Deadline;
use crate::message::{HEADER_LEN, Inbox};

const LONG: Duration = Duration::from_secs(20);

const SHORT: Deadlines = Deadlines {
    connect: Duration::from_millis(50),
    answer: Duration::from_millis(50),
};

#[test]
fn a_missing_daemon_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs.sock");
    let error = Socket::connect(&path, SHORT).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.is_absence());
    assert!(error.to_string().contains("fs.sock"));
}

#[test]
fn a_listener_that_takes_no_connection_is_late() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs.sock");
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match Socket::connect(&path, SHORT) {
            Ok(connection) => waiting.push(connection),
            Err(error) => break error,
        }
        assert!(waiting.len() < 8, "the queue of connections never fills");
    };
    assert!(matches!(error, Error::LateConnect { .. }), "{error}");
}

#[test]
fn a_silent_daemon_is_late_and_named_with_the_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut socket = Socket::connect(&path, SHORT).unwrap();
    socket.set_owner().unwrap();
    let error = socket.features().unwrap_err();
    assert!(matches!(error, Error::Late { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("GET_FEATURES") && text.contains("fs.sock"),
        "{text}"
    );
}

#[test]
fn a_daemon_that_hangs_up_is_gone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut socket = Socket::from_stream(ours, Path::new("fs.sock"), LONG);
    drop(theirs);
    let error = socket.features().unwrap_err();
    assert!(error.is_absence(), "{error}");
}

#[test]
fn a_late_reply_ends_the_connection() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut socket = Socket::from_stream(ours, Path::new("fs.sock"), SHORT.answer);
    for _ in 0..2 {
        let error = socket.features().unwrap_err();
        assert!(matches!(error, Error::Late { .. }), "{error}");
    }
    let mut sent = Vec::new();
    theirs.read_to_end(&mut sent).unwrap();
    assert_eq!(sent.len(), HEADER_LEN);
}

/// Has a daemon send `replies`, one after each request, while `work` uses the connection. A
/// reply to the request itself has no number.
fn with_daemon(
    replies: Vec<(Option<FrontendReq>, Vec<u8>)>,
    work: impl FnOnce(&mut Socket),
) -> Vec<Message> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = std::thread::spawn(move || {
        let mut inbox = Inbox::default();
        let mut requests = Vec::new();
        for (number, payload) in replies {
            let request = inbox.wait(theirs.as_fd(), Deadline::NONE).unwrap();
            let mut reply = request.reply(payload);
            reply.request = number.map_or(reply.request, u32::from);
            reply.send(theirs.as_fd(), &[], Deadline::NONE).unwrap();
            requests.push(request);
        }
        requests
    });
    let mut socket = Socket::from_stream(ours, Path::new("fs.sock"), LONG);
    work(&mut socket);
    drop(socket);
    daemon.join().unwrap()
}

#[test]
fn replies_in_time_leave_the_connection_alone() {
    let replies = (0..50).map(|number| (None, payload::from_u64(number)));
    with_daemon(replies.collect(), |socket| {
        for number in 0..50 {
            assert_eq!(socket.features().unwrap(), number);
        }
    });
}

#[test]
fn the_configuration_is_asked_for_and_read_behind_its_head() {
    let reply = [
        [0u32, 4, 0].map(u32::to_ne_bytes).concat(),
        b"told".to_vec(),
    ]
    .concat();
    let mut config = [0; 4];
    let requests = with_daemon(vec![(None, reply.clone())], |socket| {
        socket.config(&mut config).unwrap();
    });
    assert_eq!(&config, b"told");
    let question = [&reply[..12], &[0; 4]].concat();
    assert_eq!(requests[0].payload, question);
}

#[test]
fn taken_over_connection_goes_on_as_agreed_without_a_message() {
    let requests = with_daemon(vec![(None, payload::from_u64(0))], |socket| {
        socket.resume(ProtocolFeatures::REPLY_ACK, Some(2));
        let beyond = socket.set_ring_size(2, 128).unwrap_err();
        assert!(matches!(beyond, Error::Misuse(_)), "{beyond}");
        socket.set_ring_size(1, 128).unwrap();
    });
    assert_eq!(requests[0].payload, payload::ring_state(1, 128));
    assert!(requests[0].needs_reply());
}

#[test]
fn refusals_and_wrong_replies_are_told_apart() {
    let replies = vec![
        (None, payload::from_u64(1)),
        (None, payload::from_u64(0)),
        (Some(FrontendReq::GET_FEATURES), payload::from_u64(0)),
    ];
    let requests = with_daemon(replies, |socket| {
        socket.need_reply = true;
        let refused = socket.set_owner().unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        socket.set_ring_size(255, 128).unwrap();
        let wrong = socket.set_ring_base(1, 0).unwrap_err();
        assert!(matches!(wrong, Error::Protocol { .. }), "{wrong}");
        let beyond = socket.set_ring_size(256, 128).unwrap_err();
        assert!(matches!(beyond, Error::Misuse(_)), "{beyond}");
    });
    assert!(requests.iter().all(Message::needs_reply));
    assert_eq!(requests[1].payload, payload::ring_state(255, 128));
}
