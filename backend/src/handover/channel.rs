//! The sockets by which processes hand guests over: whole messages, with descriptors.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use gangplank_service::seqpacket::{self, Patience};
use gangplank_vhost_user::descriptors::SCM_MAX_FD;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair, sockopt};
use serde::{Deserialize, Serialize};

/// Bytes of the longest message: [`SCM_MAX_FD`] numbers, or the reason of a failure.
const MAX_MESSAGE: usize = 4096;

/// Bytes of a reason that are sent at most.
const MAX_REASON: usize = 2048;

/// How long a message may take to be sent. Receivers do nothing else.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What the processes say. The order of variants and fields belongs to the protocol's version,
/// except that the first two stay what they are: they tell programs of different versions so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// From the old acceptor to the new one, or from the supervisor in its place, first; with the
    /// listening socket and, if there is one, the user namespace.
    Hello {
        /// [`super::PROTOCOL`].
        protocol: u32,
        /// [`crate::state::arena::LAYOUT`].
        layout: u32,
        /// How many [`Message::Guest`] or [`Message::Keeper`] follow.
        guests: u32,
        /// Connections so far.
        connections: u64,
    },
    /// To whoever waits: it does not work, for this reason.
    Failed(String),
    /// From the old acceptor to the new one, with the socket to the guest's keeper.
    Guest {
        /// The guest's number in the log.
        number: u64,
        /// Whether the usual events of its connection are logged.
        is_logged: bool,
    },
    /// From the supervisor to its acceptor, with the socket to the new one; and from the acceptor
    /// to a keeper, with the socket to its successor.
    HandOver,
    /// From the old keeper to the new one, with the state's memory, the connection, the root and,
    /// if it has one of its own, the mount namespace.
    Offer,
    /// From the new keeper to its acceptor: it can read the state. From that to the supervisor: all
    /// keepers can.
    Prepared,
    /// From the new acceptor to its keepers, and from those to the old ones: stop the worker and
    /// hand its descriptors over.
    Take,
    /// From the old keeper to the new one: the worker has ended. All descriptors have numbers below
    /// this one.
    Stopped {
        /// The number.
        end: u32,
    },
    /// From the old keeper to the new one, in ascending order: the numbers of the descriptors that
    /// come with the next message.
    Numbers(Vec<u32>),
    /// From the old keeper to the new one, with the descriptors.
    Descriptors,
    /// After the last descriptors.
    End,
    /// From the new keeper to its acceptor: it holds everything. From that to the supervisor: all
    /// keepers do.
    Placed,
    /// From the supervisor to the new acceptor, and from that to its keepers: the old processes
    /// have ended, serve.
    Go,
    /// From the new program to the supervisor: its acceptor was started. With the program's file.
    Started {
        /// The acceptor's process id, as the supervisor sees it.
        acceptor: i32,
    },
    /// From the supervisor to the new acceptor: it knows that one, and waits for its messages.
    Known,
    /// From an acceptor to its supervisor: it accepts guests. With the listening socket and, if
    /// there is one, the user namespace.
    Serving,
    /// From an acceptor to its supervisor, before a keeper begins; and from the supervisor to the
    /// next acceptor, after the death of that one. With the acceptor's end of the channel between
    /// them, the keeper's pidfd and, to a supervisor that has descriptors held, its end of the
    /// channel by which the guest's processes say which ([`crate::holder`]).
    Keeper {
        /// The guest's number in the log.
        number: u64,
        /// Whether the usual events of its connection are logged.
        is_logged: bool,
        /// The keeper's process id, as the supervisor sees it.
        process: i32,
    },
    /// From a new keeper to its acceptor: the guest that it was to take over has gone. On the
    /// channel of [`Message::Inflight`]: nobody has the session, or gives it up.
    Gone,
    /// Instead of [`Message::End`]: there are no more descriptors, but not all that the guest had
    /// have arrived.
    Incomplete,
    /// From a guest's processes to the supervisor: hold the guest itself, which comes with this as
    /// with [`Message::Offer`]. The number of this and of the messages below is repeated in the
    /// answer.
    HoldGuest(u64),
    /// The same: hold the descriptors that come with this, by these numbers.
    Hold(u64, Vec<u32>),
    /// The same of files that are mapped: another open file of each will do.
    HoldMemory(u64, Vec<u32>),
    /// The same: hold these no more.
    Unhold(u64, Vec<u32>),
    /// The answer to the message of this number: whether they are held.
    Held(u64, bool),
    /// From the supervisor to its acceptor, which answers with [`Message::Pong`].
    Ping,
    /// From an acceptor to its supervisor: it is alive.
    Pong,
    /// To a keeper, with a socket to whoever wants to read the guest's state.
    Report,
    /// From a keeper on that socket, with the state's memory.
    State,
    /// From a guest's processes to their acceptor, with the memory in which the frontend keeps the
    /// requests in flight and, if they look for the session that had it before, a channel to them.
    Inflight,
    /// From a keeper to its acceptor: whether the guest's connection is lost, and its session kept.
    Disconnected(bool),
    /// From a guest's processes to the supervisor, as [`Message::Unhold`]: hold nothing of the
    /// guest any more.
    UnholdGuest(u64),
    /// From an acceptor to the keeper of such a session, with the channel to the processes that
    /// have the frontend's next connection.
    Reconnected {
        /// The number that the guest has got with that connection.
        number: u64,
    },
}

impl Message {
    /// A failure in words.
    pub fn failed(reason: &str) -> Self {
        let end = reason.floor_char_boundary(MAX_REASON);
        Self::Failed(reason[..end].to_owned())
    }
}

/// One end of a connection between two processes of this program or another version of it.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A message that has arrived.
#[derive(Debug)]
pub struct Arrived {
    /// What it says.
    pub message: Message,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Two ends.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// An end that another process has passed.
    pub const fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// An end that the process was started with.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn from_inherited(socket: OwnedFd) -> io::Result<Self> {
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        Ok(Self(socket))
    }

    /// The socket.
    pub fn into_inner(self) -> OwnedFd {
        self.0
    }

    /// Replaces the socket by what `change` makes of a copy of it.
    ///
    /// # Errors
    /// Those of `change`; no descriptor is left.
    pub fn replace(
        &mut self,
        change: impl FnOnce(OwnedFd) -> io::Result<OwnedFd>,
    ) -> io::Result<()> {
        self.0 = change(self.0.try_clone()?)?;
        Ok(())
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other end is closed or does not receive, or the process may not send descriptors.
    pub fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(
            self.as_fd(),
            message,
            descriptors,
            Instant::now() + SEND_TIMEOUT,
        )
    }

    /// Sends a message if the other end has room for it.
    ///
    /// # Errors
    /// `TimedOut` if it has none; those of [`Self::send`].
    pub fn send_at_once(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        send(self.as_fd(), message, descriptors, Instant::now())
    }

    /// Has the other end find the channel closed, also if other processes have copies of this one.
    pub fn shut_down(&self) {
        // If the other end has closed it, that is done.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }

    /// Receives a message. `None` if the other end is closed.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; `InvalidData` if it is no message, or descriptors were lost
    /// because this process may not have more.
    pub fn receive(&self, deadline: Option<Instant>) -> io::Result<Option<Arrived>> {
        let mut descriptors = Vec::new();
        let message = self.receive_into(&mut descriptors, deadline)?;
        Ok(message.map(|message| Arrived {
            message,
            descriptors,
        }))
    }

    /// The same, and appends what came with the message, also if that fails.
    ///
    /// # Errors
    /// Those of [`Channel::receive`].
    pub fn receive_into(
        &self,
        descriptors: &mut Vec<OwnedFd>,
        deadline: Option<Instant>,
    ) -> io::Result<Option<Message>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut bytes = [0; MAX_MESSAGE];
        let patience = deadline.map_or(Patience::Endless, Patience::Until);
        let received =
            seqpacket::receive(self.as_fd(), &mut bytes, descriptors, &mut space, patience)?;
        if received.len == 0 {
            return Ok(None);
        }
        if received.is_cut {
            let text = "descriptors were lost: the limit of open descriptors is too low";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let message = bytes.get(..received.len).map(postcard::from_bytes);
        let Some(Ok(message)) = message else {
            let text = "the other program speaks another protocol";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        };
        Ok(Some(message))
    }

    /// Receives the message that must come next, with its descriptors.
    ///
    /// # Errors
    /// Those of [`Channel::receive`]; that the other end is closed; the reason of a
    /// [`Message::Failed`].
    pub fn expect(&self, deadline: Option<Instant>) -> io::Result<Arrived> {
        match self.receive(deadline)? {
            None => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(Arrived {
                message: Message::Failed(reason),
                ..
            }) => Err(io::Error::other(reason)),
            Some(arrived) => Ok(arrived),
        }
    }
}

/// Sends a message to the other end of `socket` before `deadline`.
///
/// # Errors
/// `TimedOut` at the deadline; those of [`Channel::send`].
pub fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
    deadline: Instant,
) -> io::Result<()> {
    let bytes = postcard::to_allocvec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
    let patience = Patience::Until(deadline);
    seqpacket::send(socket, &bytes, descriptors, &mut space, patience)
}

/// Whether another process's socket is an end of such a connection.
pub fn is_end(socket: BorrowedFd<'_>) -> bool {
    // Not for what is no socket.
    let domain = sockopt::socket_domain(socket);
    let kind = sockopt::socket_type(socket);
    domain == Ok(AddressFamily::UNIX) && kind == Ok(SocketType::SEQPACKET)
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What came instead of the expected message.
pub fn unexpected(message: &Message) -> io::Error {
    let text = format!("the other program sent {message:?} out of turn");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (one, other) = Channel::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let full = Message::Numbers((0..253).map(|number| number + 1_000_000_000).collect());
        let beside = vec![file.as_fd(); SCM_MAX_FD];
        one.send(&full, &beside).unwrap();
        one.send(&Message::failed(&"é".repeat(MAX_MESSAGE)), &[])
            .unwrap();
        let arrived = other.receive(None).unwrap().unwrap();
        assert_eq!(arrived.message, full);
        assert_eq!(arrived.descriptors.len(), SCM_MAX_FD);
        let error = other.expect(None).unwrap_err().to_string();
        assert!(error.ends_with('é') && error.len() <= MAX_REASON, "{error}");
        let soon = Some(Instant::now());
        let late = other.receive(soon).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(one);
        assert!(other.receive(None).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused_and_what_came_with_it_is_the_receivers() {
        let (one, other) = Channel::pair().unwrap();
        rustix::io::write(&one, b"\xff\xff\xff").unwrap();
        let error = other.receive(None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let passed = [file.as_fd()];
        let sent = seqpacket::send(one.as_fd(), b"\xff", &passed, &mut space, Patience::None);
        sent.unwrap();
        let mut descriptors = Vec::new();
        assert!(other.receive_into(&mut descriptors, None).is_err());
        assert_eq!(descriptors.len(), 1);
    }

    #[test]
    fn only_a_socket_of_the_kind_of_a_channel_is_taken_for_one() {
        let (one, _other) = Channel::pair().unwrap();
        assert!(is_end(one.as_fd()));
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for other in [stream.as_fd(), udp.as_fd(), file.as_fd()] {
            assert!(!is_end(other));
        }
    }
}
