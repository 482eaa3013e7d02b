//! One guest's connection, from accept to hang-up.
//!
//! ```text
//! frontend ── socket ── forwarder (quirks put right) ── private socket ── vhost-user-backend ── rings' threads
//! ```
//!
//! Only messages go through the forwarder, a few dozen when a guest starts. Requests and data go through the rings.

pub(super) mod message;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

#[cfg(test)]
use self::message::HEADER_LEN;
use self::message::{Message, ReceiveError};
use super::Options;
use super::backend::FsBackend;
use super::quirks::trim_memory_table;
use super::request::Handler;

/// Why a connection ended other than by the frontend hanging up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The device could not be made.
    #[error("cannot start the threads of a guest's device")]
    Threads(#[source] io::Error),
    /// The socket between forwarder and device could not be made.
    #[error("cannot make a private socket")]
    PrivateSocket(#[source] io::Error),
    /// vhost-user-backend could not start.
    #[error("cannot start the vhost-user service: {0}")]
    Start(DaemonError),
    /// The frontend broke the protocol, or the socket failed.
    #[error("the vhost-user connection failed")]
    Receive(#[source] ReceiveError),
    /// A message was refused.
    #[error("the frontend sent what the vhost-user protocol does not allow: {0}")]
    Protocol(DaemonError),
}

/// Serves the guest on `frontend` until it hangs up, or until that socket is shut down. Then all that the guest held is freed.
///
/// # Errors
/// The device could not be made, or the frontend did what the protocol does not allow.
pub(super) fn serve(
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

    let forwarded = forward_messages(frontend, &private);
    // The service reads the end of its socket, unless it was the one that hung up, and then tells why.
    drop(private);
    // Requests that wait for a lock hold their rings, and so would keep the threads from ending. All others are served
    // to their end before anything that the guest held is freed.
    handler.end_waits();
    let served = daemon.wait();
    backend.stop();
    drop(daemon);
    drop(backend);
    handler.reset();
    match (forwarded, served) {
        (_, Err(error)) if !is_hang_up(&error) => Err(Error::Protocol(error)),
        (Err(error), _) => Err(Error::Receive(error)),
        _ => Ok(()),
    }
}

/// Whether the service ended because the forwarder closed its socket.
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

/// A connected socket, and a listener whose first and only connection is that socket's other end.
///
/// vhost-user-backend takes nothing but a listener. The address is one that the kernel picks; with a backlog of zero the
/// connection succeeds only while no other is waiting, so nobody else's can be the one that is accepted.
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

/// Carries messages both ways until either end closes. A message is taken from one side only once the other has room
/// for it, so a frontend that does not read its replies blocks nothing but itself.
fn forward_messages(frontend: &UnixStream, backend: &OwnedFd) -> Result<(), ReceiveError> {
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
                if !forward_one(frontend, backend, trim_memory_table)? {
                    return Ok(());
                }
            } else {
                (from_frontend, from_backend) =
                    (PollFlags::empty(), PollFlags::IN | PollFlags::OUT);
            }
        }
        if is_readable(backend_ready) {
            if has_room(frontend)? {
                if !forward_one(backend, frontend, |_| ())? {
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

/// Carries one message; false when there will be no more.
fn forward_one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    fix: impl FnOnce(&mut Message),
) -> Result<bool, ReceiveError> {
    let mut message = match Message::receive(from) {
        Err(ReceiveError::HungUp) => return Ok(false),
        message => message?,
    };
    fix(&mut message);
    match message.send(to) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        sent => Ok(sent.map(|()| true)?),
    }
}

fn has_room(socket: BorrowedFd<'_>) -> io::Result<bool> {
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

fn wait(descriptors: &mut [PollFd<'_>], limit: Option<&Timespec>) -> io::Result<()> {
    match poll(descriptors, limit) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::device::request::Request;

    /// `VHOST_USER_GET_FEATURES`, `VHOST_USER_SET_OWNER`.
    const GET_FEATURES: u32 = 1;
    const SET_OWNER: u32 = 3;

    /// Hands every request straight back.
    struct Idle;

    impl Handler for Idle {
        fn handle(&self, request: Box<Request>) -> Option<Box<Request>> {
            Some(request)
        }

        fn end_waits(&self) {}

        fn reset(&self) {}
    }

    fn connect() -> (UnixStream, JoinHandle<Result<(), Error>>) {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let handler: Arc<dyn Handler> = Arc::new(Idle);
        let served = thread::spawn(move || serve(&far, &Options::default(), &handler));
        (near, served)
    }

    #[test]
    fn a_frontend_is_answered_and_may_hang_up() {
        let (frontend, served) = connect();
        Message::new(SET_OWNER, b"")
            .send(frontend.as_fd())
            .expect("sent");
        Message::new(GET_FEATURES, b"")
            .send(frontend.as_fd())
            .expect("sent");
        let answer = Message::receive(frontend.as_fd()).expect("answered");
        assert_eq!(answer.request(), GET_FEATURES);
        let features = u64::from_le_bytes(answer.bytes[HEADER_LEN..].try_into().expect("8 bytes"));
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
            &Message::new(4711, b"x").bytes,
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
        let ask = Message::new(GET_FEATURES, b"").bytes.repeat(64);
        // Until all buffers on the way are full of answers nobody takes.
        while frontend.write_all(&ask).is_ok() {}
        drop(frontend);
        assert!(!matches!(
            served.join().expect("no panic"),
            Err(Error::Threads(_) | Error::PrivateSocket(_))
        ));
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
