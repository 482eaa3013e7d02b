//! The daemon's end of the connection to a holder, a program that holds descriptors for daemons as
//! the service manager does.
//!
//! A holder has whatever the descriptors give access to. So both ends talk only to root and to
//! processes of their own user.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::packet::{Answer, Packet, Request, receive, send};
use crate::peer_cred::PeerCred;
use crate::rate_limited;

/// How long a holder may take to answer. It does little else.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long the processes of the daemon before may take to end, and a holder to accept.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a busy holder is asked again.
const RETRY: Duration = Duration::from_millis(20);

/// Descriptors with the names by which they were held.
pub type Found = Vec<(String, OwnedFd)>;

/// A connection to a holder.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    owner: Vec<u8>,
    /// `None` after it was lost.
    socket: Option<OwnedFd>,
}

impl Client {
    /// Connects to the holder at `path`. Returns also what it holds for `owner`, which says which
    /// daemon this is.
    ///
    /// # Errors
    /// There is no holder at `path`, it is another user's, or it holds nothing for this daemon.
    pub fn connect(path: &Path, owner: Vec<u8>) -> io::Result<(Self, Found)> {
        let end = Instant::now() + BUSY_TIMEOUT;
        loop {
            match begin(path, &owner, end)? {
                Some((socket, found)) => {
                    let client = Self {
                        path: path.to_owned(),
                        owner,
                        socket: Some(socket),
                    };
                    return Ok((client, found));
                }
                None if Instant::now() < end => thread::sleep(RETRY),
                None => {
                    return Err(io::Error::other(
                        "another daemon with the same socket and directory is connected to it",
                    ));
                }
            }
        }
    }

    /// Goes on with the connection that another program of this process had, if there is one.
    #[must_use]
    pub fn resumed(path: &Path, owner: Vec<u8>, socket: Option<OwnedFd>) -> Self {
        Self {
            path: path.to_owned(),
            owner,
            socket,
        }
    }

    /// The connection.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Connects again if the holder was lost. Returns whether that was done.
    pub(super) fn reconnect(&mut self) -> bool {
        if self.socket.is_some() {
            return false;
        }
        match begin(&self.path, &self.owner, Instant::now() + RETRY) {
            Ok(Some((socket, _))) => {
                log::info!("{} holds descriptors again", self.path.display());
                self.socket = Some(socket);
                true
            }
            Ok(None) => false,
            Err(error) => {
                rate_limited!(error, "cannot reach {}: {error}", self.path.display());
                false
            }
        }
    }

    pub(super) fn store(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        match self.ask(&Request::Store(name), Some(descriptor))? {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "it holds no more; raise --holder-limit",
            )),
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        self.ask(&Request::Remove(name), None).map(drop)
    }

    fn ask(
        &mut self,
        request: &Request<'_>,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<bool> {
        let socket = self.socket().ok_or(io::ErrorKind::NotConnected)?;
        let deadline = Some(Instant::now() + TIMEOUT);
        let sent = send(socket, &request.encode(), descriptor, deadline);
        let answer = sent.and_then(|()| answer(socket, deadline));
        let done = answer.and_then(|packet| match Answer::decode(&packet.text) {
            Some(Answer::Done(done)) => Ok(done),
            _ => Err(no_answer()),
        });
        done.inspect_err(|error| {
            log::error!(
                "{} is lost, so the guests that are connected now end with the daemon: {error}",
                self.path.display()
            );
            self.socket = None;
        })
    }
}

/// Connects and begins. `None` if another daemon has begun as the same.
fn begin(path: &Path, owner: &[u8], end: Instant) -> io::Result<Option<(OwnedFd, Found)>> {
    let socket = open(path, end)?;
    let peer = PeerCred::of(&socket)?;
    if !peer.is_root_or_own() {
        let text = format!("user {} runs it, and not this user or root", peer.user);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let deadline = Some(Instant::now() + TIMEOUT);
    send(
        socket.as_fd(),
        &Request::Begin(owner).encode(),
        None,
        deadline,
    )?;
    let packet = answer(socket.as_fd(), deadline)?;
    let count = match Answer::decode(&packet.text) {
        Some(Answer::Begun(count)) => count,
        Some(Answer::Busy) => return Ok(None),
        Some(Answer::Refused(why)) => return Err(io::Error::other(why.to_owned())),
        _ => return Err(no_answer()),
    };
    let mut found = Vec::new();
    for _ in 0..count {
        let deadline = Some(Instant::now() + TIMEOUT);
        let packet = answer(socket.as_fd(), deadline)?;
        match (Answer::decode(&packet.text), packet.descriptor) {
            (Some(Answer::Found(name)), Some(descriptor)) => {
                found.push((name.to_owned(), descriptor));
            }
            _ => return Err(no_answer()),
        }
    }
    Ok(Some((socket, found)))
}

fn open(path: &Path, end: Instant) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            // Others wait to be accepted.
            Err(Errno::AGAIN) if Instant::now() < end => thread::sleep(RETRY),
            Err(Errno::PROTOTYPE) => {
                return Err(io::Error::other(
                    "it is a socket of another kind: pass the one of the relay's --holder",
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn answer(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<Packet> {
    receive(socket, deadline)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn no_answer() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it sent something else than an answer",
    )
}
