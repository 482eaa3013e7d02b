//! A guest whose server is not reached.

use std::os::fd::AsFd;
use std::thread::JoinHandle;

use gangplank_service::error_chain;
use gangplank_vhost_backend::{Device, RequestError};
use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::{FrontendReq, Inbox, Message, MessageError};

use super::*;
use crate::abi::{DcId, Endpoint};
use crate::carrier::local::{Local, LocalConfig};

/// Time that every step of a test has.
const LIMIT: Duration = Duration::from_secs(10);

/// VERSION_1, protocol features, EVENT_IDX, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;

/// A guest's frontend, and the tunnel that serves it, at a switch that does not run.
struct Frontend {
    socket: UnixStream,
    inbox: Inbox,
    served: JoinHandle<Result<(), GuestError<Fatal>>>,
}

fn options(tag: Option<&str>) -> Options {
    Options {
        dc: DcId::new(0).unwrap(),
        server: Endpoint::from_raw(4),
        server_name: "endpoint 4 of the switch at /nowhere".to_owned(),
        client: Endpoint::from_raw(100),
        queues: 2,
        tag: tag.map(str::to_owned),
        limit: LIMIT,
    }
}

impl Frontend {
    fn connect(tag: Option<&str>) -> Self {
        let (socket, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let options = options(tag);
        let served = std::thread::spawn(move || {
            let config = LocalConfig {
                answer: Duration::from_millis(50),
                ..LocalConfig::new("/nowhere/dvk.sock".into())
            };
            let carrier = Local::start(config).unwrap();
            let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let guest = Shared::new(1, 0, options).unwrap();
            guest.serve(far, &carrier, &stop)
        });
        Self {
            socket,
            inbox: Inbox::default(),
            served,
        }
    }

    fn send(&self, message: &Message) {
        let deadline = Deadline::after(LIMIT);
        message.send(self.socket.as_fd(), &[], deadline).unwrap();
    }

    fn receive(&mut self) -> Result<Message, MessageError> {
        let deadline = Deadline::after(LIMIT);
        self.inbox.wait(self.socket.as_fd(), deadline)
    }

    fn ask(&mut self, request: FrontendReq, payload: Vec<u8>) -> Vec<u8> {
        self.send(&Message::new(request, payload));
        self.receive().unwrap().payload
    }
}

/// GET_CONFIG's question for all of the configuration space.
fn config() -> Vec<u8> {
    let mut payload = [0, 40, 0].map(u32::to_le_bytes).concat();
    payload.resize(payload.len() + 40, 0);
    payload
}

#[test]
fn a_guest_whose_server_is_not_reached_can_negotiate_and_has_the_tag_of_the_command_line() {
    let mut frontend = Frontend::connect(Some("mine"));
    let features = frontend.ask(FrontendReq::GET_FEATURES, Vec::new());
    assert_eq!(features, FEATURES.to_le_bytes());
    let config = frontend.ask(FrontendReq::GET_CONFIG, config());
    assert_eq!(&config[12..17], b"mine\0");
    let asked = Instant::now();
    let rings = frontend.ask(FrontendReq::GET_QUEUE_NUM, Vec::new());
    assert_eq!(rings, 2_u64.to_le_bytes());
    assert!(asked.elapsed() < Duration::from_secs(1), "it waits again");
    frontend.send(
        &Message::new(FrontendReq::SET_FEATURES, FEATURES.to_le_bytes().to_vec()).with_need_reply(),
    );
    assert_eq!(frontend.receive().unwrap().u64(), Some(0));
    drop(frontend.socket);
    frontend.served.join().unwrap().unwrap();
}

#[test]
fn a_guest_that_asks_for_what_only_an_unreached_server_knows_is_hung_up_on_and_that_is_named() {
    let mut frontend = Frontend::connect(None);
    frontend.send(&Message::new(FrontendReq::GET_CONFIG, config()));
    let received = frontend.receive();
    let is_hung_up = matches!(received, Err(MessageError::HungUp | MessageError::Reset));
    assert!(is_hung_up, "{received:?}");
    let ended = frontend.served.join().unwrap().unwrap_err();
    let text = error_chain(&ended);
    assert!(
        text.contains("endpoint 4 of the switch at /nowhere"),
        "{text}"
    );
}

#[test]
fn a_guest_that_asks_after_a_fault_is_dropped_for_that_fault() {
    let guest = Shared::new(1, 0, options(None)).unwrap();
    guest.fail(Fatal::Server("breaks the protocol".to_owned()));
    let told = TunnelDevice::new(&guest).config();
    let Err(RequestError::Fatal(fatal)) = told else {
        panic!("{told:?}");
    };
    assert_eq!(fatal.to_string(), "the server breaks the protocol");
    assert!(guest.state.lock().is_ending);
}
