//! Both ends at once: a guest that sends what User Mode Linux sends, and a daemon that writes down what it is told.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::{FrontendReq, Inbox, Message, MessageError, VringState};
use rustix::event::{EventfdFlags, eventfd};

use super::control::{Command, GuestCommand};
use super::daemon::{Daemon, DaemonError, Limits};
use super::device::Files;
use super::device::{Device, DeviceOptions, Fatal};
use super::guest::{Guest, GuestError};
use super::memory::tests::file;

const LIMIT: Duration = Duration::from_secs(10);

fn soon() -> Deadline {
    Deadline::after(LIMIT)
}

const LIMITS: Limits = Limits {
    connect: LIMIT,
    answer: LIMIT,
    state: LIMIT,
};

/// VERSION_1, protocol features, EVENT_IDX, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;

/// How a daemon behaves.
#[derive(Clone, Copy, Debug, Default)]
struct Behaviour {
    /// Refuses this message.
    refuses: Option<FrontendReq>,
    /// Does not answer this one.
    ignores: Option<FrontendReq>,
    /// Answers this one late.
    delays: Option<(FrontendReq, Duration)>,
    /// Hangs up at this one.
    leaves_at: Option<FrontendReq>,
    /// So many of those messages it still takes well.
    well: usize,
    has_no_state: bool,
    /// Gives rings back as it got them.
    takes_nothing: bool,
}

/// What a daemon was told: each message's number and first bytes.
type Told = Arc<Mutex<Vec<(u32, Vec<u8>)>>>;

/// A daemon at a socket in a directory of its own.
struct FakeDaemon {
    path: PathBuf,
    told: Told,
    _dir: tempfile::TempDir,
}

impl FakeDaemon {
    fn new(behaviour: Behaviour) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let told = Told::default();
        let noted = Arc::clone(&told);
        // It ends with the test's process; nobody connects any more.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, noted) = (stream.unwrap(), Arc::clone(&noted));
                thread::spawn(move || serve(&stream, behaviour, &noted));
            }
        });
        Self {
            path,
            told,
            _dir: dir,
        }
    }

    fn connect(&self) -> Result<Daemon, DaemonError> {
        let limits = Limits {
            answer: Duration::from_millis(100),
            ..LIMITS
        };
        Daemon::connect(&self.path, limits)
    }

    fn requests(&self) -> Vec<FrontendReq> {
        let told = self.told.lock().unwrap();
        let requests = told.iter();
        requests
            .map(|(request, _)| FrontendReq::try_from(*request).unwrap())
            .collect()
    }
}

fn serve(stream: &UnixStream, behaviour: Behaviour, told: &Told) {
    let mut inbox = Inbox::default();
    let mut state: Option<(u32, OwnedFd)> = None;
    let mut well = behaviour.well;
    while let Ok(mut message) = inbox.wait(stream.as_fd(), Deadline::NONE) {
        let number = message.frontend_request().unwrap();
        told.lock()
            .unwrap()
            .push((message.request, message.payload.clone()));
        let befallen = [behaviour.leaves_at, behaviour.ignores].contains(&Some(number));
        if befallen && well > 0 {
            well -= 1;
        } else if behaviour.leaves_at == Some(number) {
            return;
        } else if behaviour.ignores == Some(number) {
            continue;
        }
        if let Some((_, delay)) = behaviour.delays.filter(|(late, _)| *late == number) {
            thread::sleep(delay);
        }
        let word = |value: u64| Some(value.to_le_bytes().to_vec());
        let refused = behaviour.refuses == Some(number);
        let payload = match number {
            FrontendReq::GET_FEATURES => word(FEATURES),
            // MQ, REPLY_ACK, CONFIG, RESET_DEVICE, DEVICE_STATE, and one that is not wanted.
            FrontendReq::GET_PROTOCOL_FEATURES if behaviour.has_no_state => word(0x2209),
            FrontendReq::GET_PROTOCOL_FEATURES => word(1 << 19 | 0x2209 | 1 << 15),
            FrontendReq::GET_QUEUE_NUM => word(3),
            FrontendReq::GET_CONFIG => {
                let mut payload = message.payload.clone();
                payload[12..16].copy_from_slice(b"told");
                payload[48] = 2;
                Some(payload)
            }
            FrontendReq::GET_VRING_BASE => {
                let ring = message.payload_as::<VringState>().unwrap().index;
                let base = if behaviour.takes_nothing {
                    0
                } else {
                    40 + ring
                };
                Some([ring.to_le_bytes(), base.to_le_bytes()].concat())
            }
            FrontendReq::SET_DEVICE_STATE_FD => {
                let pipe = message.descriptors.pop().unwrap();
                state = Some((message.payload_as::<VringState>().unwrap().index, pipe));
                word(if refused { 0x101 } else { 0x100 })
            }
            FrontendReq::CHECK_DEVICE_STATE => word(u64::from(refused)),
            _ if message.needs_reply() => word(u64::from(refused)),
            _ => None,
        };
        if let Some(payload) = payload {
            message
                .reply(payload)
                .send(stream.as_fd(), &[], soon())
                .unwrap();
        }
        match state.take() {
            Some((0, pipe)) if number == FrontendReq::SET_DEVICE_STATE_FD && !refused => {
                rustix::io::write(&pipe, b"what I know").unwrap();
            }
            Some((1, pipe)) if number == FrontendReq::SET_DEVICE_STATE_FD && !refused => {
                let mut bytes = [0; 64];
                let len = rustix::io::read(&pipe, &mut bytes).unwrap();
                told.lock().unwrap().push((0, bytes[..len].to_vec()));
            }
            _ => {}
        }
    }
}

/// A guest's end of a relay that runs in this process.
struct FakeGuest {
    socket: UnixStream,
    inbox: Inbox,
    commands: Sender<GuestCommand>,
    told: Arc<OwnedFd>,
    answers: Receiver<(u64, Result<String, String>)>,
    answer: Sender<(u64, Result<String, String>)>,
    served: JoinHandle<Result<(), GuestError>>,
}

impl FakeGuest {
    fn connect(backend: &Path, tag: Option<&str>) -> Self {
        let (socket, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let options = DeviceOptions {
            tag: tag.map(str::to_owned),
            num_request_queues: None,
            limits: Limits {
                answer: Duration::from_secs(1),
                ..LIMITS
            },
            tag_wait: Duration::from_millis(50),
        };
        let told = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let (commands, inbox) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let (heard, backend) = (Arc::clone(&told), backend.to_owned());
        let served = thread::spawn(move || {
            Guest::new(far, Device::new(1, Arc::new(options), backend)).serve(&inbox, &heard)
        });
        Self {
            socket,
            inbox: Inbox::default(),
            commands,
            told,
            answers,
            answer,
            served,
        }
    }

    fn ask(&mut self, request: FrontendReq, payload: Vec<u8>) -> Vec<u8> {
        Message::new(request, payload)
            .send(self.socket.as_fd(), &[], soon())
            .unwrap();
        let answer = self.inbox.wait(self.socket.as_fd(), soon()).unwrap();
        assert!(answer.is_reply_to(request.into()), "{answer:?}");
        answer.payload
    }

    /// Sends a message that has no answer of its own; what it is acknowledged by.
    fn tell(&mut self, request: impl Into<u32>, payload: Vec<u8>, beside: Option<&OwnedFd>) -> u64 {
        let message = Message::new(request, payload).with_need_reply();
        let beside: Vec<_> = beside.map(AsFd::as_fd).into_iter().collect();
        message.send(self.socket.as_fd(), &beside, soon()).unwrap();
        let answer = self.inbox.wait(self.socket.as_fd(), soon()).unwrap();
        answer.u64().unwrap()
    }

    fn command(&self, command: Command) -> Result<String, String> {
        let command = GuestCommand {
            guest: 1,
            command,
            answer: self.answer.clone(),
        };
        self.commands.send(command).unwrap();
        rustix::io::write(&*self.told, &1u64.to_ne_bytes()).unwrap();
        self.answers.recv_timeout(LIMIT).unwrap().1
    }

    /// What User Mode Linux says until its rings run; each is acknowledged by 0.
    fn set_up(&mut self) {
        assert_eq!(
            self.tell(
                FrontendReq::SET_FEATURES,
                FEATURES.to_le_bytes().to_vec(),
                None
            ),
            0
        );
        let memory = OwnedFd::from(file(0x10_0000));
        let table = [1, 0, 0x10_0000, 0, 0, 0, 0, 0, 0u64];
        let table = table.into_iter().flat_map(u64::to_le_bytes).collect();
        assert_eq!(
            self.tell(FrontendReq::SET_MEM_TABLE, table, Some(&memory)),
            0
        );
        for ring in 0..2u32 {
            let state = |value: u32| [ring.to_le_bytes(), value.to_le_bytes()].concat();
            let number = || u64::from(ring).to_le_bytes().to_vec();
            let at = u64::from(ring + 1) * 0x1_0000;
            let mut addresses = state(0);
            for address in [at, at + 0x2000, at + 0x1000, u64::MAX] {
                addresses.extend_from_slice(&address.to_le_bytes());
            }
            let (_far, call) = UnixStream::pair().unwrap();
            let kick = eventfd(0, EventfdFlags::empty()).unwrap();
            let call = OwnedFd::from(call);
            for (request, payload, beside) in [
                (FrontendReq::SET_VRING_CALL, number(), Some(&call)),
                (FrontendReq::SET_VRING_NUM, state(128), None),
                (FrontendReq::SET_VRING_BASE, state(0), None),
                (FrontendReq::SET_VRING_ADDR, addresses, None),
                (FrontendReq::SET_VRING_KICK, number(), Some(&kick)),
                (FrontendReq::SET_VRING_ENABLE, state(1), None),
            ] {
                assert_eq!(
                    self.tell(request, payload, beside),
                    0,
                    "message {request:?}"
                );
            }
        }
    }

    fn status(&self) -> String {
        self.command(Command::Status).unwrap()
    }

    fn hang_up(self) -> Result<(), GuestError> {
        drop(self.socket);
        self.served.join().unwrap()
    }
}

/// How every daemon wants a ring to be set up.
const RING: [FrontendReq; 6] = [
    FrontendReq::SET_VRING_NUM,
    FrontendReq::SET_VRING_ADDR,
    FrontendReq::SET_VRING_BASE,
    FrontendReq::SET_VRING_CALL,
    FrontendReq::SET_VRING_KICK,
    FrontendReq::SET_VRING_ENABLE,
];

const NEGOTIATION: [FrontendReq; 6] = [
    FrontendReq::SET_OWNER,
    FrontendReq::GET_FEATURES,
    FrontendReq::GET_PROTOCOL_FEATURES,
    FrontendReq::SET_PROTOCOL_FEATURES,
    FrontendReq::GET_QUEUE_NUM,
    FrontendReq::GET_CONFIG,
];

#[test]
fn guest_is_told_what_the_daemon_tells_and_its_rings_arrive_in_order() {
    let daemon = FakeDaemon::new(Behaviour::default());
    let mut guest = FakeGuest::connect(&daemon.path, None);
    let config = guest.ask(
        FrontendReq::GET_CONFIG,
        [0, 40, 0].map(u32::to_le_bytes).concat(),
    );
    assert_eq!((config.len(), &config[12..17]), (52, &b"told\0"[..]));
    assert_eq!(config[48], 2);
    let rings = guest.ask(FrontendReq::GET_QUEUE_NUM, Vec::new());
    assert_eq!(rings, 3u64.to_le_bytes());
    guest.set_up();
    assert!(guest.status().contains("served by"), "{}", guest.status());
    let base = guest.ask(FrontendReq::GET_VRING_BASE, 1u64.to_le_bytes().to_vec());
    assert_eq!(base, [1u32.to_le_bytes(), 41u32.to_le_bytes()].concat());
    guest.hang_up().unwrap();
    let mut expected = NEGOTIATION.to_vec();
    expected.extend([FrontendReq::SET_FEATURES, FrontendReq::SET_MEM_TABLE]);
    expected.extend(RING);
    expected.extend(RING);
    expected.extend([FrontendReq::SET_VRING_ENABLE, FrontendReq::GET_VRING_BASE]);
    assert_eq!(daemon.requests(), expected);
    // The slot that User Mode Linux leaves empty does not get there.
    let told = daemon.told.lock().unwrap();
    let table = told.iter().find(|(request, _)| *request == 5).unwrap();
    assert_eq!(table.1.len(), 40);
}

#[test]
fn guest_without_a_daemon_is_answered_and_served_when_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("fs.sock");
    let mut guest = FakeGuest::connect(&place, Some("mine"));
    assert_eq!(
        guest.ask(FrontendReq::GET_FEATURES, Vec::new()),
        FEATURES.to_le_bytes()
    );
    let config = guest.ask(
        FrontendReq::GET_CONFIG,
        [0, 5, 0].map(u32::to_le_bytes).concat(),
    );
    assert_eq!(&config[12..], b"mine\0");
    guest.set_up();
    assert!(guest.status().contains("waits"), "{}", guest.status());
    let daemon = FakeDaemon::new(Behaviour::default());
    std::os::unix::fs::symlink(&daemon.path, &place).unwrap();
    while !guest.status().contains("served") {
        thread::sleep(Duration::from_millis(5));
    }
    guest.hang_up().unwrap();
    let mut expected = NEGOTIATION.to_vec();
    expected.extend([FrontendReq::SET_FEATURES, FrontendReq::SET_MEM_TABLE]);
    expected.extend(RING);
    expected.extend(RING);
    assert_eq!(daemon.requests(), expected);
}

#[test]
fn guest_that_asks_what_nobody_knows_gets_an_empty_answer() {
    let mut guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), None);
    let payload = [0, 5, 0].map(u32::to_le_bytes).concat();
    assert!(guest.ask(FrontendReq::GET_CONFIG, payload).is_empty());
    guest.hang_up().unwrap();
}

#[test]
fn state_goes_from_one_daemon_to_the_next() {
    let (old, new) = (
        FakeDaemon::new(Behaviour::default()),
        FakeDaemon::new(Behaviour::default()),
    );
    let mut guest = FakeGuest::connect(&old.path, None);
    guest.set_up();
    // Rings of which the daemon took 40 entries and gave none back.
    let busy = guest.command(Command::Pause);
    assert!(busy.is_err_and(|text| text.contains("in flight")));
    assert!(guest.status().contains("served by"));
    drop(guest);
    let mut daemon = old.connect().unwrap();
    let state = daemon.save().unwrap();
    assert_eq!(state, b"what I know");
    new.connect().unwrap().load(&state).unwrap();
    let told = new.told.lock().unwrap();
    assert!(told.contains(&(0, b"what I know".to_vec())));
    assert_eq!(
        told.last().unwrap().0,
        u32::from(FrontendReq::CHECK_DEVICE_STATE)
    );
}

#[test]
fn daemon_without_state_is_not_left_unless_that_is_wanted() {
    let behaviour = Behaviour {
        has_no_state: true,
        ..Behaviour::default()
    };
    let (without, other) = (FakeDaemon::new(behaviour), FakeDaemon::new(behaviour));
    let guest = FakeGuest::connect(&without.path, None);
    let command = |files| Command::Switch {
        socket: other.path.clone(),
        files,
    };
    let refused = guest.command(command(Files::Kept)).unwrap_err();
    assert!(refused.contains("DEVICE_STATE"), "{refused}");
    assert!(guest.command(command(Files::Lost)).is_ok());
    assert!(guest.command(Command::Resume).is_err());
    guest.hang_up().unwrap();
}

#[test]
fn daemons_that_do_not_do_their_part_are_named_with_the_message() {
    for (behaviour, expected) in [
        (
            Behaviour {
                refuses: Some(FrontendReq::SET_PROTOCOL_FEATURES),
                ..Behaviour::default()
            },
            None,
        ),
        (
            Behaviour {
                ignores: Some(FrontendReq::GET_FEATURES),
                ..Behaviour::default()
            },
            Some("GET_FEATURES to the daemon at"),
        ),
        (
            Behaviour {
                leaves_at: Some(FrontendReq::GET_CONFIG),
                ..Behaviour::default()
            },
            Some("GET_CONFIG to the daemon at"),
        ),
    ] {
        let connected = FakeDaemon::new(behaviour).connect();
        let text = connected.err().map(|error| error.to_string());
        assert_eq!(
            text.is_some(),
            expected.is_some(),
            "{behaviour:?}: {text:?}"
        );
        let expected = expected.unwrap_or_default();
        assert!(text.unwrap_or_default().starts_with(expected), "{expected}");
    }
    for refused in [
        FrontendReq::SET_DEVICE_STATE_FD,
        FrontendReq::CHECK_DEVICE_STATE,
    ] {
        let daemon = FakeDaemon::new(Behaviour {
            refuses: Some(refused),
            ..Behaviour::default()
        });
        let mut daemon = daemon.connect().unwrap();
        let error = daemon.load(b"state").unwrap_err();
        assert!(matches!(error, DaemonError::Refused { .. }), "{error}");
        assert!(daemon.save().is_err());
    }
}

#[test]
fn refusal_of_a_daemon_reaches_the_guest() {
    let daemon = FakeDaemon::new(Behaviour {
        refuses: Some(FrontendReq::SET_MEM_TABLE),
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&daemon.path, None);
    let memory = OwnedFd::from(file(0x1000));
    let table = [1u64, 0, 0x1000, 0, 0];
    let table = table.into_iter().flat_map(u64::to_le_bytes).collect();
    assert_eq!(
        guest.tell(FrontendReq::SET_MEM_TABLE, table, Some(&memory)),
        1
    );
    guest.hang_up().unwrap();
}

#[test]
fn senseless_messages_are_refused_and_malformed_ones_cost_the_connection() {
    let mut guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), Some("mine"));
    let state = |ring: u32, value: u32| [ring.to_le_bytes(), value.to_le_bytes()].concat();
    for (request, payload) in [
        (FrontendReq::SET_FEATURES, u64::MAX.to_le_bytes().to_vec()),
        (
            FrontendReq::SET_FEATURES,
            (1u64 << 32).to_le_bytes().to_vec(),
        ),
        (
            FrontendReq::SET_PROTOCOL_FEATURES,
            u64::MAX.to_le_bytes().to_vec(),
        ),
        (FrontendReq::SET_MEM_TABLE, vec![0; 40]),
        (FrontendReq::SET_VRING_NUM, state(0, 3)),
        (FrontendReq::SET_VRING_NUM, state(2, 128)),
        (FrontendReq::SET_VRING_NUM, state(u32::MAX, 128)),
        (FrontendReq::SET_VRING_BASE, state(0, 65536)),
        (FrontendReq::SET_VRING_ENABLE, state(0, 2)),
        (FrontendReq::SET_VRING_ADDR, vec![0; 40]),
        (FrontendReq::SET_VRING_KICK, 0u64.to_le_bytes().to_vec()),
    ] {
        assert_eq!(guest.tell(request, payload, None), 1, "message {request:?}");
    }
    assert_eq!(guest.tell(4711u32, Vec::new(), None), 1);
    assert!(guest.hang_up().is_ok());
    for (request, payload) in [
        (FrontendReq::SET_FEATURES, vec![0; 7]),
        (FrontendReq::SET_VRING_NUM, vec![0; 9]),
        (FrontendReq::SET_VRING_ADDR, vec![0; 3]),
        (FrontendReq::SET_BACKEND_REQ_FD, Vec::new()),
        (FrontendReq::GET_CONFIG, vec![0; 12]),
        (
            FrontendReq::GET_CONFIG,
            [0, 257, 0].map(u32::to_le_bytes).concat(),
        ),
    ] {
        let guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), Some("mine"));
        Message::new(request, payload)
            .send(guest.socket.as_fd(), &[], soon())
            .unwrap();
        let ended = guest.served.join().unwrap();
        assert!(
            matches!(ended, Err(GuestError::Malformed(it)) if it == u32::from(request)),
            "{request:?}: {ended:?}"
        );
    }
    let guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), None);
    let answer = Message::new(FrontendReq::GET_FEATURES, Vec::new()).reply(Vec::new());
    answer.send(guest.socket.as_fd(), &[], soon()).unwrap();
    let ended = guest.served.join().unwrap();
    assert!(matches!(
        ended,
        Err(GuestError::Wire(MessageError::Flags { .. }))
    ));
}

#[test]
fn daemon_that_hangs_up_leaves_a_guest_whose_requests_are_refused() {
    let daemon = FakeDaemon::new(Behaviour {
        leaves_at: Some(FrontendReq::RESET_DEVICE),
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&daemon.path, None);
    guest.set_up();
    // It goes while it is told to reset: the device is as good as new, and the daemon is looked for again.
    assert_eq!(guest.tell(FrontendReq::RESET_DEVICE, Vec::new(), None), 0);
    assert!(!guest.status().contains("lost"), "{}", guest.status());
    guest.set_up();
    // And again, while the guest's rings are out.
    let base = guest.ask(FrontendReq::GET_VRING_BASE, 0u64.to_le_bytes().to_vec());
    assert_eq!(base.len(), 8);
    guest.hang_up().unwrap();
}

#[test]
fn daemon_that_is_late_to_stop_a_ring_is_waited_for_and_keeps_its_requests() {
    let daemon = FakeDaemon::new(Behaviour {
        delays: Some((FrontendReq::SET_VRING_ENABLE, Duration::from_millis(300))),
        ..Behaviour::default()
    });
    let mut daemon = daemon.connect().unwrap();
    assert_eq!(daemon.stop_ring(1).unwrap(), 41);
}

#[test]
fn daemon_that_has_rings_and_does_not_answer_costs_the_guest_its_connection() {
    let daemon = FakeDaemon::new(Behaviour {
        ignores: Some(FrontendReq::SET_VRING_CALL),
        well: 2,
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&daemon.path, None);
    guest.set_up();
    let message = Message::new(FrontendReq::SET_VRING_CALL, 0x100u64.to_le_bytes().to_vec());
    message.send(guest.socket.as_fd(), &[], soon()).unwrap();
    let ended = guest.served.join().unwrap();
    assert!(
        matches!(ended, Err(GuestError::Fatal(Fatal::BackendUnresponsive(_)))),
        "{ended:?}"
    );
}

#[test]
fn daemon_that_had_a_ring_for_a_moment_is_not_followed_by_the_one_before() {
    let old = FakeDaemon::new(Behaviour {
        takes_nothing: true,
        ..Behaviour::default()
    });
    // It takes the first ring, and goes when it is given the second.
    let new = FakeDaemon::new(Behaviour {
        leaves_at: Some(FrontendReq::SET_VRING_KICK),
        well: 1,
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&old.path, None);
    guest.set_up();
    let switched = guest.command(Command::Switch {
        socket: new.path.clone(),
        files: Files::Kept,
    });
    let text = switched.unwrap_err();
    assert!(text.contains("SET_VRING_KICK"), "{text}");
    assert!(guest.status().contains("lost"), "{}", guest.status());
    guest.hang_up().unwrap();
}

#[test]
fn paused_guest_stays_paused_where_the_other_daemon_fails() {
    let old = FakeDaemon::new(Behaviour {
        takes_nothing: true,
        ..Behaviour::default()
    });
    let new = FakeDaemon::new(Behaviour {
        refuses: Some(FrontendReq::CHECK_DEVICE_STATE),
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&old.path, None);
    guest.set_up();
    guest.command(Command::Pause).unwrap();
    let switched = guest.command(Command::Switch {
        socket: new.path.clone(),
        files: Files::Kept,
    });
    assert!(switched.is_err());
    assert!(guest.status().contains("paused"), "{}", guest.status());
    guest.command(Command::Resume).unwrap();
    assert!(guest.status().contains("served"), "{}", guest.status());
    guest.hang_up().unwrap();
}

#[test]
fn guest_is_not_moved_to_the_daemon_that_it_has() {
    let daemon = FakeDaemon::new(Behaviour::default());
    let mut guest = FakeGuest::connect(&daemon.path, None);
    guest.set_up();
    let command = Command::Switch {
        socket: daemon.path.clone(),
        files: Files::Kept,
    };
    let text = guest.command(command).unwrap();
    assert!(text.contains("already"), "{text}");
    guest.hang_up().unwrap();
}
