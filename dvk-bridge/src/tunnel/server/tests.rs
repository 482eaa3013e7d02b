//! Sessions at a daemon that answers GET_FEATURES and no request.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use gangplank_vhost_user::message::{FrontendReq, Inbox};
use gangplank_vhost_user::{Deadline, feature};

use super::*;

/// Time that every step of a test has.
const LIMIT: Duration = Duration::from_secs(10);

/// A server whose daemon takes `connections` connections.
fn server(connections: usize) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fs.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // The thread ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            thread::spawn(move || converse(&stream.unwrap()));
        }
    });
    (Server::new(Vec::new(), Options::new(socket)), dir)
}

fn converse(stream: &UnixStream) {
    let mut inbox = Inbox::default();
    while let Ok(message) = inbox.wait(stream.as_fd(), Deadline::NONE) {
        let request = message.frontend_request();
        if request.is_some_and(|request| request == FrontendReq::GET_FEATURES) {
            let reply = message.reply(feature::VERSION_1.to_le_bytes().to_vec());
            let sent = reply.send(stream.as_fd(), &[], Deadline::after(LIMIT));
            sent.unwrap();
        }
    }
}

const CLIENT: Endpoint = Endpoint::from_raw(100);

#[test]
fn a_session_whose_daemon_is_lost_makes_way_for_the_next_one_of_its_device() {
    let (server, _dir) = server(2);
    let (lost, resumed) = server.session_of(CLIENT, 99, 4).unwrap();
    assert!(!resumed && lost.is_first_request());
    let (again, resumed) = server.session_of(CLIENT, 99, 4).unwrap();
    assert!(resumed && again.id == lost.id);
    lost.end();
    let (next, resumed) = server.session_of(CLIENT, 99, 4).unwrap();
    assert!(!resumed && next.id != lost.id);
    let ids: Vec<u32> = server.sessions.lock().keys().copied().collect();
    assert_eq!(ids, [next.id]);
}

#[test]
fn a_session_in_use_stays_when_the_daemon_takes_no_other_and_tells_its_configuration() {
    let (server, _dir) = server(1);
    assert!(server.config_for(CLIENT).is_none());
    let (first, _) = server.session_of(CLIENT, 99, 4).unwrap();
    assert!(first.is_first_request());
    assert_eq!(
        server.session_of(CLIENT, 5, 4).err(),
        Some(Errno::NOTCONN),
        "the daemon takes one guest"
    );
    assert!(server.config_for(CLIENT).is_some());
    let (again, resumed) = server.session_of(CLIENT, 99, 4).unwrap();
    assert!(resumed && again.id == first.id);
}
