//! One guest's connection, from accept to hang-up.
//!
//! ```text
//! frontend ── socket ── forwarder ── private socket ── vhost-user-backend ── ring threads
//!                       (quirks)
//! ```
//!
//! The forwarder passes on vhost-user messages, a few dozen when a guest starts, and corrects
//! `super::quirks`. Requests and file data go through the rings.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::{Inbox, Message, MessageError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::backend::FsBackend;
use super::memory_limits::{LimitExceeded, MemoryCheck, MemoryLimits};
use super::options::Options;
use super::quirks::trim_memory_table;
use super::request::Handler;
use super::wake_blocked::WakeBlocked;

/// Why a connection ended, other than by the frontend's hang-up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device's threads or events could not be created.
    #[error("cannot start the threads of a guest's device")]
    Threads(#[source] io::Error),
    /// The socket between forwarder and device could not be created.
    #[error("cannot create the private socket of a guest's device")]
    PrivateSocket(#[source] io::Error),
    /// vhost-user-backend could not start.
    #[error("cannot start the vhost-user service: {0}")]
    Start(DaemonError),
    /// The frontend broke the protocol, or the socket failed.
    #[error("the vhost-user connection failed")]
    Receive(#[from] MessageError),
    /// The guest has more memory than permitted.
    #[error(transparent)]
    Memory(#[from] LimitExceeded),
    /// vhost-user-backend refused a message.
    #[error("the frontend violated the vhost-user protocol: {0}")]
    Protocol(DaemonError),
}

/// Serves the guest on `frontend` until the frontend hangs up or the socket is shut down. Then
/// frees everything the guest held.
///
/// # Errors
/// The device could not be created, or the frontend violated the protocol.
pub fn serve(
    frontend: &UnixStream,
    options: &Options,
    handler: &Arc<dyn Handler>,
) -> Result<(), Error> {
    let backend = Arc::new(FsBackend::new(options, Arc::clone(handler)).map_err(Error::Threads)?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("vhost_user".into(), Arc::clone(&backend), memory)
        .map_err(|error| {
            backend.stop_threads();
            Error::Start(error)
        })?;
    let (private, listener) = private_socket().map_err(Error::PrivateSocket)?;
    daemon
        .start(&mut Listener::from(listener))
        .map_err(Error::Start)?;

    let mut memory = MemoryCheck::new(MemoryLimits::from(options));
    let forwarded = forward_messages(frontend, &private, &mut memory);
    // vhost-user-backend ends when it reads the end of its socket. If it hung up first, `wait`
    // returns why.
    drop(private);
    // A request that waits for a lock would keep its ring's thread from ending. All other requests
    // run to their end before the guest's state is freed.
    handler.end_waits();
    // A thread that signals a frontend without room for the signal would not end either.
    let waking = WakeBlocked::start(backend.rings());
    if let Err(error) = &waking {
        log::warn!("cannot start a thread that wakes a guest's blocked threads: {error}");
    }
    let served = daemon.wait();
    backend.stop();
    drop(daemon);
    drop(backend);
    drop(waking);
    handler.reset();
    match (forwarded, served) {
        (_, Err(error)) if !is_hang_up(&error) => Err(Error::Protocol(error)),
        (forwarded, _) => forwarded,
    }
}

/// Whether vhost-user-backend ended because the forwarder closed its socket.
fn is_hang_up(error: &DaemonError) -> bool {
    matches!(
        error,
        DaemonError::HandleRequest(
            ProtocolError::Disconnected
                | ProtocolError::PartialMessage
                | ProtocolError::SocketBroken(_)
        )
    )
}

/// Creates a connected socket, and a listener whose only pending connection is its other end.
///
/// vhost-user-backend accepts nothing but a listener. The kernel picks the address. With a backlog
/// of zero, connect succeeds only while no other connection is pending, so the listener cannot
/// accept a foreign one.
fn private_socket() -> io::Result<(OwnedFd, UnixListener)> {
    let new = || {
        rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
    };
    let listener = new()?;
    rustix::net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
    rustix::net::listen(&listener, 0)?;
    let near = new()?;
    rustix::io::ioctl_fionbio(&near, true)?;
    rustix::net::connect(
        &near,
        &SocketAddrUnix::try_from(rustix::net::getsockname(&listener)?)?,
    )?;
    rustix::io::ioctl_fionbio(&near, false)?;
    Ok((near, UnixListener::from(listener)))
}

/// Forwards messages both ways until either end closes.
///
/// Reads a message from one side only when the other has room for it, so a frontend that does not
/// read its replies blocks only itself.
fn forward_messages(
    frontend: &UnixStream,
    backend: &OwnedFd,
    memory: &mut MemoryCheck,
) -> Result<(), Error> {
    let (frontend, backend) = (frontend.as_fd(), backend.as_fd());
    let (mut from_frontend, mut from_backend) = (PollFlags::IN, PollFlags::IN);
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(frontend, from_frontend),
            PollFd::from_borrowed_fd(backend, from_backend),
        ];
        wait(&mut ready, None)?;
        let [frontend_ready, backend_ready] = ready.map(|ready| ready.revents());
        (from_frontend, from_backend) = (PollFlags::IN, PollFlags::IN);
        if is_readable(frontend_ready) {
            if has_room(backend)? {
                let forwarded = forward_one(frontend, backend, |message| {
                    trim_memory_table(message);
                    memory.check(message.request, &message.payload)
                });
                if !forwarded? {
                    return Ok(());
                }
            } else if is_closed(frontend_ready) {
                // The frontend has gone, and vhost-user-backend may wait for it.
                return Ok(());
            } else {
                (from_frontend, from_backend) =
                    (PollFlags::empty(), PollFlags::IN | PollFlags::OUT);
            }
        }
        if is_readable(backend_ready) {
            if has_room(frontend)? {
                let forwarded = forward_one(backend, frontend, |message| {
                    memory.limit_slots(message.request, &mut message.payload);
                    Ok(())
                });
                if !forwarded? {
                    return Ok(());
                }
            } else if is_closed(frontend_ready) {
                return Ok(());
            } else {
                from_backend -= PollFlags::IN;
                from_frontend |= PollFlags::OUT;
            }
        }
    }
}

/// Forwards one message, checked and corrected by `correct`. Returns false if `from` or `to` has
/// hung up.
fn forward_one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    correct: impl FnOnce(&mut Message) -> Result<(), LimitExceeded>,
) -> Result<bool, Error> {
    let mut message = match Inbox::default().wait(from, Deadline::NONE) {
        Err(MessageError::HungUp) => return Ok(false),
        message => message?,
    };
    correct(&mut message)?;
    let descriptors = message.borrowed_descriptors();
    match message.send(to, &descriptors, Deadline::NONE) {
        Err(MessageError::HungUp) => Ok(false),
        sent => Ok(sent.map(|()| true)?),
    }
}

fn has_room(socket: BorrowedFd<'_>) -> Result<bool, MessageError> {
    let mut ready = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    wait(&mut ready, Some(&Timespec::default()))?;
    Ok(!ready[0].revents().is_empty())
}

fn is_readable(ready: PollFlags) -> bool {
    ready.contains(PollFlags::IN) || is_closed(ready)
}

fn is_closed(ready: PollFlags) -> bool {
    ready.intersects(PollFlags::HUP | PollFlags::ERR)
}

fn wait(descriptors: &mut [PollFd<'_>], limit: Option<&Timespec>) -> Result<(), MessageError> {
    match poll(descriptors, limit) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(MessageError::Socket(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread::{self, JoinHandle};

    use gangplank_vhost_user::message::FrontendReq;

    use super::*;
    use crate::device::request::{Handled, IoMode, Request};

    /// Returns every request at once, with an empty reply.
    struct Idle;

    impl Handler for Idle {
        fn handle(&self, request: Box<Request>, _mode: IoMode) -> Handled {
            Handled::Replied(request)
        }

        fn end_waits(&self) {}

        fn reset(&self) {}
    }

    fn connect() -> (UnixStream, JoinHandle<Result<(), Error>>) {
        connect_with(Options::default())
    }

    fn connect_with(options: Options) -> (UnixStream, JoinHandle<Result<(), Error>>) {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let handler: Arc<dyn Handler> = Arc::new(Idle);
        let served = thread::spawn(move || serve(&far, &options, &handler));
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
        // VERSION_1, protocol features, EVENT_IDX, INDIRECT_DESC.
        assert_eq!(features, 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28);
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
}
