//! A daemon that records what it receives, and fails where a test wants it to.

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::{FrontendReq, Inbox, VringState};

use super::{FEATURES, LIMITS, soon};
use crate::daemon::{Daemon, DaemonError, Limits};

/// How a daemon behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behaviour {
    /// Refuses this message.
    pub(crate) refuses: Option<FrontendReq>,
    /// Does not reply to this message.
    pub(crate) ignores: Option<FrontendReq>,
    /// Replies to this message late.
    pub(crate) delays: Option<(FrontendReq, Duration)>,
    /// Hangs up at this message.
    pub(crate) hangs_up_at: Option<FrontendReq>,
    /// Handles that many of those messages before.
    pub(crate) successes: usize,
    pub(crate) has_no_state: bool,
    /// Stops rings where they started.
    pub(crate) consumes_nothing: bool,
    /// Notes its requests in flight (INFLIGHT_SHMFD).
    pub(crate) has_inflight: bool,
}

/// What a daemon has received: each message's number and payload. A state has number 0.
pub(crate) type Received = Arc<Mutex<Vec<(u32, Vec<u8>)>>>;

/// A daemon at a socket in a directory of its own.
pub(crate) struct FakeDaemon {
    pub(crate) path: PathBuf,
    pub(crate) received: Received,
    connections: Arc<Mutex<Vec<Weak<UnixStream>>>>,
    pub(crate) _dir: tempfile::TempDir,
}

impl FakeDaemon {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let received = Received::default();
        let recorded = Arc::clone(&received);
        let connections = Arc::<Mutex<Vec<Weak<UnixStream>>>>::default();
        let accepted = Arc::clone(&connections);
        // The thread ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, recorded) = (Arc::new(stream.unwrap()), Arc::clone(&recorded));
                accepted.lock().unwrap().push(Arc::downgrade(&stream));
                thread::spawn(move || serve(&stream, behaviour, &recorded));
            }
        });
        Self {
            path,
            received,
            connections,
            _dir: dir,
        }
    }

    /// Hangs up all connections.
    pub(crate) fn hang_up(&self) {
        let connections = self.connections.lock().unwrap();
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.shutdown(Shutdown::Both).unwrap();
        }
    }

    pub(crate) fn connect(&self) -> Result<Daemon, DaemonError> {
        let limits = Limits {
            // On a busy machine, the daemon's thread may have to wait.
            answer: Duration::from_secs(1),
            ..LIMITS
        };
        Daemon::connect(&self.path, limits)
    }

    pub(crate) fn requests(&self) -> Vec<FrontendReq> {
        let received = self.received.lock().unwrap();
        let requests = received.iter();
        requests
            .map(|(request, _)| FrontendReq::try_from(*request).unwrap())
            .collect()
    }
}

fn serve(stream: &UnixStream, behaviour: Behaviour, received: &Received) {
    let mut inbox = Inbox::default();
    let mut state: Option<(u32, OwnedFd)> = None;
    let mut successes = behaviour.successes;
    while let Ok(mut message) = inbox.wait(stream.as_fd(), Deadline::NONE) {
        let number = message.frontend_request().unwrap();
        received
            .lock()
            .unwrap()
            .push((message.request, message.payload.clone()));
        let is_special = [behaviour.hangs_up_at, behaviour.ignores].contains(&Some(number));
        if is_special && successes > 0 {
            successes -= 1;
        } else if behaviour.hangs_up_at == Some(number) {
            return;
        } else if behaviour.ignores == Some(number) {
            continue;
        }
        if let Some((_, delay)) = behaviour.delays.filter(|(late, _)| *late == number) {
            thread::sleep(delay);
        }
        let word = |value: u64| Some(value.to_le_bytes().to_vec());
        let mut beside = None;
        let refused = behaviour.refuses == Some(number);
        let payload = match number {
            FrontendReq::GET_FEATURES => word(FEATURES),
            // MQ, REPLY_ACK, CONFIG, RESET_DEVICE, DEVICE_STATE, and one that is not wanted.
            FrontendReq::GET_PROTOCOL_FEATURES => {
                let state = u64::from(!behaviour.has_no_state) << 19;
                let inflight = u64::from(behaviour.has_inflight) << 12;
                word(state | inflight | 0x2209 | 1 << 15)
            }
            FrontendReq::GET_INFLIGHT_FD => {
                beside = Some(super::file(0x1000));
                let mut payload = message.payload.clone();
                payload[..8].copy_from_slice(&0x1000_u64.to_le_bytes());
                Some(payload)
            }
            FrontendReq::GET_QUEUE_NUM => word(3),
            FrontendReq::GET_CONFIG => {
                let mut payload = message.payload.clone();
                payload[12..16].copy_from_slice(b"told");
                payload[48] = 2;
                Some(payload)
            }
            FrontendReq::GET_VRING_BASE => {
                let ring = message.payload_as::<VringState>().unwrap().index;
                let base = if behaviour.consumes_nothing {
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
            let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
            message
                .reply(payload)
                .send(stream.as_fd(), &beside, soon())
                .unwrap();
        }
        match state.take() {
            Some((0, pipe)) if number == FrontendReq::SET_DEVICE_STATE_FD && !refused => {
                rustix::io::write(&pipe, b"what I know").unwrap();
            }
            Some((1, pipe)) if number == FrontendReq::SET_DEVICE_STATE_FD && !refused => {
                let mut bytes = [0; 64];
                let len = rustix::io::read(&pipe, &mut bytes).unwrap();
                received.lock().unwrap().push((0, bytes[..len].to_vec()));
            }
            _ => {}
        }
    }
}
