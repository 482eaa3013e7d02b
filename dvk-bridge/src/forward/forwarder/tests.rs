//! Clients at one switch, a server at another.

use std::thread::JoinHandle;

use tempfile::TempDir;

use super::super::context::EIO_RESULT;
use super::*;
use crate::abi::{Code, DcId, M1, Message};
use crate::carrier::local::{Local, LocalConfig};
use crate::endpoint::{Gone, SharedBuffers};
use crate::switch::{Stop, Switch, SwitchConfig};

const LIMIT: Duration = Duration::from_secs(20);
const SERVER: Endpoint = Endpoint::from_raw(1);
const OTHER: Endpoint = Endpoint::from_raw(2);
const LENGTH: usize = 70_000;

/// A switch that stops when it is dropped.
struct RunningSwitch {
    directory: TempDir,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl RunningSwitch {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let switch = Switch::new(SwitchConfig::new(directory.path().join("switch"))).unwrap();
        Self {
            directory,
            stop: switch.stopper(),
            thread: Some(thread::spawn(move || switch.run().unwrap())),
        }
    }

    fn program(&self) -> Arc<Local> {
        let mut config = LocalConfig::new(self.directory.path().join("switch"));
        config.retry = Duration::from_millis(20);
        Arc::new(Local::start(config).unwrap())
    }

    fn bind(&self, endpoint: Endpoint) -> Bound {
        let program = self.program();
        let bound = program.bind(DcId::FIRST, endpoint, "test").unwrap();
        Bound(bound, program)
    }
}

impl Drop for RunningSwitch {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_some_and(|it| it.is_ok()) || thread::panicking());
    }
}

/// An endpoint and its program.
struct Bound(Arc<dyn BoundEndpoint>, Arc<Local>);

/// Two switches and a forwarder of two endpoints between them, which stops when this is dropped.
struct Fixture {
    here: RunningSwitch,
    there: RunningSwitch,
    stop: Arc<AtomicBool>,
    forward: Arc<Forward>,
    thread: Option<JoinHandle<()>>,
}

impl Fixture {
    fn start() -> Self {
        let (here, there) = (RunningSwitch::start(), RunningSwitch::start());
        let (near, programs): (Vec<_>, Vec<_>) = [SERVER, OTHER]
            .into_iter()
            .map(|endpoint| here.bind(endpoint))
            .map(|Bound(near, program)| (near, program))
            .unzip();
        let forward = Arc::new(Forward::new(
            DcId::FIRST,
            "1:2".parse().unwrap(),
            near,
            there.program(),
            LIMIT,
        ));
        let stop = Arc::new(AtomicBool::new(false));
        let (running, stopped) = (forward.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let _programs = programs;
            running.run(&stopped).unwrap();
        });
        Self {
            here,
            there,
            stop,
            forward,
            thread: Some(thread),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_some_and(|it| it.is_ok()) || thread::panicking());
    }
}

/// Answers `count` requests with their data reversed, each in a thread of its own.
fn serve(server: &dyn BoundEndpoint, count: usize) {
    thread::scope(|scope| {
        for _ in 0..count {
            let Delivery::Request {
                request, message, ..
            } = server.receive(LIMIT).unwrap()
            else {
                panic!("no request");
            };
            scope.spawn(move || {
                let M1 { p1, p2, .. } = message.arm();
                let mut data = vec![0; LENGTH];
                server.copy_from(request, p1, &mut data).unwrap();
                data.reverse();
                server.copy_to(request, p2, &data).unwrap();
                let answer = message.answer(request.client().raw());
                server.reply(request, &answer).unwrap();
            });
        }
    });
}

/// Sends data to be reversed. Returns the result.
fn ask(client: &dyn BoundEndpoint, seed: usize) -> i32 {
    ask_at(SERVER, client, seed)
}

/// As [`ask`], at the server with this endpoint.
fn ask_at(server: Endpoint, client: &dyn BoundEndpoint, seed: usize) -> i32 {
    let data: Vec<u8> = (seed..seed + LENGTH)
        .map(|byte| u8::try_from(byte % 251).unwrap())
        .collect();
    let mut back = vec![0; LENGTH];
    let mut buffers = SharedBuffers::new();
    let arm = M1 {
        p1: buffers.read_only(&data),
        p2: buffers.writable(&mut back),
        ..M1::default()
    };
    let answer = client.sendrec(server, &Message::new(33, &arm), &mut buffers, LIMIT);
    let result = answer.unwrap().kind;
    drop(buffers);
    back.reverse();
    assert!(result < 0 || back == data);
    result
}

#[test]
fn clients_are_served_by_a_remote_server_under_their_own_endpoints() {
    let fixture = Fixture::start();
    let Bound(server, _program) = fixture.there.bind(SERVER);
    let clients: Vec<_> = (10..14)
        .map(|slot| fixture.here.bind(Endpoint::from_raw(slot)))
        .collect();
    thread::scope(|scope| {
        scope.spawn(|| serve(&*server, 12));
        for (seed, Bound(client, _)) in clients.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..3 {
                    assert_eq!(ask(&**client, seed + round), client.endpoint().raw());
                }
            });
        }
    });
    let mut text = String::new();
    fixture.forward.report(&mut text);
    assert!(
        text.contains("4 clients, 12 requests answered, 0 not"),
        "{text}"
    );
}

#[test]
fn a_client_reaches_the_server_of_each_endpoint() {
    let fixture = Fixture::start();
    let Bound(first, _program) = fixture.there.bind(SERVER);
    let Bound(other, _program) = fixture.there.bind(OTHER);
    let Bound(client, _own) = fixture.here.bind(Endpoint::from_raw(10));
    thread::scope(|scope| {
        for (endpoint, server) in [(SERVER, &first), (OTHER, &other), (SERVER, &first)] {
            let serving = scope.spawn(|| serve(&**server, 1));
            assert_eq!(ask_at(endpoint, &*client, 1), 10);
            serving.join().unwrap();
        }
    });
    let mut text = String::new();
    fixture.forward.report(&mut text);
    assert!(
        text.contains("endpoints 1 to 2 of container 0 are passed on: 1 clients"),
        "{text}"
    );
}

#[test]
fn a_copy_outside_the_clients_memory_fails() {
    let fixture = Fixture::start();
    let Bound(server, _program) = fixture.there.bind(SERVER);
    let Bound(client, _own) = fixture.here.bind(Endpoint::from_raw(10));
    thread::scope(|scope| {
        scope.spawn(|| {
            let Delivery::Request {
                request, message, ..
            } = server.receive(LIMIT).unwrap()
            else {
                panic!("no request");
            };
            let copied = server.copy_from(request, 0x40, &mut [0; 8]).unwrap_err();
            assert_eq!(copied.code(), Code::EFAULT);
            server.reply(request, &message.answer(-14)).unwrap();
        });
        let message = Message::new(33, &M1::default());
        let answer = client.sendrec(SERVER, &message, &mut SharedBuffers::new(), LIMIT);
        assert_eq!(answer.unwrap().kind, -14);
    });
}

#[test]
fn the_exit_of_a_client_reaches_the_server_and_the_client_can_return() {
    let fixture = Fixture::start();
    let Bound(server, _program) = fixture.there.bind(SERVER);
    let endpoint = Endpoint::from_raw(10);
    for _ in 0..3 {
        let client = fixture.here.bind(endpoint);
        thread::scope(|scope| {
            scope.spawn(|| serve(&*server, 1));
            assert_eq!(ask(&*client.0, 1), 10);
        });
        drop(client);
        let gone = server.receive(LIMIT).unwrap();
        let expected = Delivery::Gone {
            client: endpoint,
            reason: Gone::Unbound,
        };
        assert_eq!(gone, expected);
    }
}

#[test]
fn without_a_server_clients_get_errors_and_are_served_once_it_starts() {
    let fixture = Fixture::start();
    let Bound(client, _own) = fixture.here.bind(Endpoint::from_raw(10));
    assert_eq!(ask(&*client, 1), EIO_RESULT);
    let Bound(server, program) = fixture.there.bind(SERVER);
    thread::scope(|scope| {
        scope.spawn(|| serve(&*server, 1));
        assert_eq!(ask(&*client, 1), 10);
    });
    drop((server, program));
    assert_eq!(ask(&*client, 1), EIO_RESULT);
}

#[test]
fn the_forwarder_ends_during_a_request() {
    let fixture = Fixture::start();
    let Bound(server, _program) = fixture.there.bind(SERVER);
    let Bound(client, _own) = fixture.here.bind(Endpoint::from_raw(10));
    thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&*client, 1));
        let asked = server.receive(LIMIT).unwrap();
        assert!(matches!(asked, Delivery::Request { .. }));
        let before = std::time::Instant::now();
        fixture.stop.store(true, Ordering::Relaxed);
        assert_eq!(asking.join().unwrap(), EIO_RESULT);
        assert!(before.elapsed() < Duration::from_secs(5));
    });
}
