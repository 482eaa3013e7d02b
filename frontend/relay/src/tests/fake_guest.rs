//! A guest that sends what User Mode Linux sends, and the relay that serves it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gangplank_vhost_user::message::{FrontendReq, Inbox, Message};
use rustix::event::{EventfdFlags, eventfd};

use super::{FEATURES, LIMIT, LIMITS, soon};
use crate::control::{Command, GuestCommand};
use crate::daemon::Limits;
use crate::device::{Device, DeviceOptions};
use crate::guest::{Guest, GuestError};
use crate::tests::file;

/// A guest's end of a relay that runs in this process.
pub(crate) struct FakeGuest {
    pub(crate) socket: UnixStream,
    pub(crate) inbox: Inbox,
    pub(crate) commands: Sender<GuestCommand>,
    pub(crate) wakeup: Arc<OwnedFd>,
    pub(crate) answers: Receiver<(u64, Result<String, String>)>,
    pub(crate) answer: Sender<(u64, Result<String, String>)>,
    pub(crate) served: JoinHandle<Result<(), GuestError>>,
    /// Where it hears that buffers of its rings are used.
    pub(crate) calls: Vec<UnixStream>,
    /// Its memory, once it is set up.
    pub(crate) memory: Option<File>,
}

impl FakeGuest {
    pub(crate) fn connect(backend: &Path, tag: Option<&str>) -> Self {
        Self::connect_returning(backend, tag, None)
    }

    /// As [`Self::connect`], where requests wait for `return_time` for a daemon's successor.
    pub(crate) fn connect_returning(
        backend: &Path,
        tag: Option<&str>,
        return_time: Option<Duration>,
    ) -> Self {
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
            return_time,
        };
        let wakeup = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let (commands, inbox) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let (woken, backend) = (Arc::clone(&wakeup), backend.to_owned());
        let served = thread::spawn(move || {
            Guest::new(far, Device::new(1, Arc::new(options), backend)).serve(&inbox, &woken)
        });
        Self {
            socket,
            inbox: Inbox::default(),
            commands,
            wakeup,
            answers,
            answer,
            served,
            calls: Vec::new(),
            memory: None,
        }
    }

    pub(crate) fn ask(&mut self, request: FrontendReq, payload: Vec<u8>) -> Vec<u8> {
        Message::new(request, payload)
            .send(self.socket.as_fd(), &[], soon())
            .unwrap();
        let answer = self.inbox.wait(self.socket.as_fd(), soon()).unwrap();
        assert!(answer.is_reply_to(request.into()), "{answer:?}");
        answer.payload
    }

    /// Sends a message that has no reply of its own. Returns the acknowledgement.
    pub(crate) fn tell(
        &mut self,
        request: impl Into<u32>,
        payload: Vec<u8>,
        beside: Option<&OwnedFd>,
    ) -> u64 {
        let message = Message::new(request, payload).with_need_reply();
        let beside: Vec<_> = beside.map(AsFd::as_fd).into_iter().collect();
        message.send(self.socket.as_fd(), &beside, soon()).unwrap();
        let answer = self.inbox.wait(self.socket.as_fd(), soon()).unwrap();
        answer.u64().unwrap()
    }

    pub(crate) fn command(&self, command: Command) -> Result<String, String> {
        let command = GuestCommand {
            guest: 1,
            command,
            answer: self.answer.clone(),
        };
        self.commands.send(command).unwrap();
        rustix::io::write(&*self.wakeup, &1u64.to_ne_bytes()).unwrap();
        self.answers.recv_timeout(LIMIT).unwrap().1
    }

    /// Sends what User Mode Linux sends until its rings run. The relay acknowledges each by 0.
    pub(crate) fn set_up(&mut self) {
        assert_eq!(
            self.tell(
                FrontendReq::SET_FEATURES,
                FEATURES.to_le_bytes().to_vec(),
                None
            ),
            0
        );
        let memory = file(0x10_0000);
        self.memory = Some(memory.try_clone().unwrap());
        let memory = OwnedFd::from(memory);
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
            let (far, call) = UnixStream::pair().unwrap();
            self.calls.push(far);
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

    pub(crate) fn status(&self) -> String {
        self.command(Command::Status).unwrap()
    }

    pub(crate) fn hang_up(self) -> Result<(), GuestError> {
        drop(self.socket);
        self.served.join().unwrap()
    }
}
