use std::io::{Read, Write};
use std::path::PathBuf;

use gangplank_service::fd_store::FdStore;
use gangplank_service::fd_store::holder::{Client, Found};
use tempfile::TempDir;

use super::*;

struct Fixture {
    path: PathBuf,
    holder: Holder,
    _directory: TempDir,
}

impl Fixture {
    fn new(limit: usize, time: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("holder");
        let listener = OwnedListener::bind_packets(&path).unwrap();
        Self {
            path,
            holder: Holder::start(listener, Options { limit, time }).unwrap(),
            _directory: directory,
        }
    }

    fn connect(&self, owner: &str) -> (FdStore, Found) {
        let (client, found) = Client::connect(&self.path, owner.into()).unwrap();
        (FdStore::of_holder(client), found)
    }
}

/// A descriptor from which `text` can be read.
fn pipe(text: &[u8]) -> OwnedFd {
    let (from, mut to) = std::io::pipe().unwrap();
    to.write_all(text).unwrap();
    from.into()
}

fn names(found: &Found) -> Vec<&str> {
    found.iter().map(|(name, _)| name.as_str()).collect()
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_daemon_gets_what_it_had_held_and_another_does_not() {
    let fixture = Fixture::new(10, LONG);
    let (store, found) = fixture.connect("first");
    assert!(found.is_empty());
    for name in ["a", "b", "c"] {
        store.store(name, pipe(name.as_bytes()).as_fd()).unwrap();
    }
    store.remove("b").unwrap();
    store.store("c", pipe(b"replaced").as_fd()).unwrap();
    drop(store);
    assert!(fixture.connect("second").1.is_empty());
    for _ in 0..2 {
        let (_store, found) = fixture.connect("first");
        assert_eq!(names(&found), ["a", "c"]);
        assert!(fixture.connect("third").1.is_empty());
    }
    let mut found = fixture.connect("first").1;
    let mut text = [0; 8];
    let mut file = std::fs::File::from(found.remove(1).1);
    file.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"replaced");
}

#[test]
fn the_summary_tells_of_each_daemon_and_of_one_that_has_ended() {
    let fixture = Fixture::new(10, LONG);
    let summary = fixture.holder.summary().clone();
    assert_eq!((summary.limit(), summary.daemons()), (10, Vec::new()));
    let (first, _) = fixture.connect("/run/fs.sock\n/srv");
    let (second, _) = fixture.connect("another");
    first.store("a", pipe(b"").as_fd()).unwrap();
    first.store("b", pipe(b"").as_fd()).unwrap();
    second.store("a", pipe(b"").as_fd()).unwrap();
    drop(first);
    let end = Instant::now() + LONG;
    let told = loop {
        let told = summary.daemons();
        if told.iter().any(|daemon| daemon.until.is_some()) {
            break told;
        }
        assert!(Instant::now() < end, "{told:?}");
        thread::sleep(Duration::from_millis(1));
    };
    let [first, second] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(first.daemon, "\"/run/fs.sock\", which shares \"/srv\"");
    assert_eq!((first.count, second.count, second.until), (2, 1, None));
}

#[test]
fn more_than_the_limit_is_not_held() {
    let fixture = Fixture::new(2, LONG);
    let (one, _) = fixture.connect("one");
    let (other, _) = fixture.connect("other");
    one.store("a", pipe(b"").as_fd()).unwrap();
    other.store("a", pipe(b"").as_fd()).unwrap();
    let error = one.store("b", pipe(b"").as_fd()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    one.store("a", pipe(b"").as_fd()).unwrap();
    other.remove("a").unwrap();
    one.store("b", pipe(b"").as_fd()).unwrap();
}

#[test]
fn what_no_daemon_comes_for_is_closed_in_time() {
    let fixture = Fixture::new(10, Duration::from_millis(50));
    let (store, _) = fixture.connect("daemon");
    let (from, mut to) = std::io::pipe().unwrap();
    store.store("a", from.as_fd()).unwrap();
    drop(from);
    to.write_all(b"held").unwrap();
    drop(store);
    let end = Instant::now() + LONG;
    while to.write_all(b"x").is_ok() {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(5));
    }
    assert!(fixture.connect("daemon").1.is_empty());
}

#[test]
fn rubbish_ends_the_connection_and_nothing_else() {
    let fixture = Fixture::new(10, LONG);
    let (store, _) = fixture.connect("daemon");
    store.store("a", pipe(b"").as_fd()).unwrap();
    for text in [&b"rubbish"[..], b"FDSTORE=1\nFDNAME=a", &[0; 20_000]] {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(&fixture.path).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        let deadline = Some(Instant::now() + LONG);
        send(socket.as_fd(), text, None, deadline).unwrap();
        assert!(receive(socket.as_fd(), deadline).unwrap().is_none());
    }
    store.store("b", pipe(b"").as_fd()).unwrap();
    drop(store);
    assert_eq!(names(&fixture.connect("daemon").1), ["a", "b"]);
}

#[test]
fn a_second_daemon_of_the_same_name_is_told_so() {
    let fixture = Fixture::new(10, LONG);
    let first = fixture.connect("daemon");
    let path = fixture.path.clone();
    let second = thread::spawn(move || Client::connect(&path, "daemon".into()).map(drop));
    thread::sleep(Duration::from_millis(100));
    assert!(!second.is_finished());
    drop(first);
    second.join().unwrap().unwrap();
}
