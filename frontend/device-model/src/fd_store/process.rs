//! The fd store's process: accepts connections and answers requests.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use gangplank_sandbox::seccomp::Seccomp;
use gangplank_service::peer_cred::PeerCred;
use gangplank_service::rlimit::raise_descriptor_limit;
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_acceptconn, socket_type};
use rustix::net::{SocketFlags, SocketType, accept_with};

use super::channel::{Received, receive, send};
use super::message::{Answer, Request};
use super::store::{Client, Store};
use crate::sandbox;

/// Most connections; further ones wait.
const MAX_CLIENTS: usize = 64;

/// How long a client may take to send a request or receive an answer.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause when this process has no descriptor or memory left for a connection.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What ps(1) shows: at most fifteen bytes.
const THREAD_NAME: &std::ffi::CStr = c"gangplank-hold";

/// Why the fd store does not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It was started by hand.
    #[error("standard input is not a listening socket: the device model starts this, not a person")]
    NotStarted,
    /// It cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// The host refused a resource.
    #[error("cannot {doing}")]
    System {
        /// The verb.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

struct Connection {
    client: Client,
    socket: OwnedFd,
}

/// Runs the fd store on the listening socket at standard input, until nothing is kept and no client
/// is connected.
///
/// # Errors
/// [`RunError`], before anything is kept.
pub fn run(seccomp: Seccomp) -> Result<(), RunError> {
    let failed = |doing| {
        move |errno: Errno| RunError::System {
            doing,
            source: errno.into(),
        }
    };
    // A signal that ends this process would crash the hypervisor's driver, and the machine with it.
    SigSet::all()
        .thread_block()
        .map_err(|errno| RunError::System {
            doing: "block signals",
            source: errno.into(),
        })?;
    let input = io::stdin();
    let input = input.as_fd();
    let listens = socket_acceptconn(input).unwrap_or(false)
        && socket_type(input).is_ok_and(|kind| kind == SocketType::SEQPACKET);
    if !listens {
        return Err(RunError::NotStarted);
    }
    let listener =
        rustix::io::fcntl_dupfd_cloexec(input, 0).map_err(failed("duplicate the socket"))?;
    prepare();
    sandbox::confine_fd_store(seccomp)?;
    serve(&listener).map_err(failed("wait for connections"))
}

/// Names this process, and lets it keep as many descriptors as its user may.
fn prepare() {
    let _ = rustix::thread::set_name(THREAD_NAME);
    raise_descriptor_limit();
}

/// Serves until nothing is kept and no client is connected.
pub(super) fn serve(listener: &OwnedFd) -> Result<(), Errno> {
    let mut store = Store::default();
    let mut connections: Vec<Connection> = Vec::new();
    let mut met = 0;
    loop {
        let mut awaited: Vec<PollFd<'_>> = Vec::with_capacity(connections.len() + 1);
        for connection in &connections {
            awaited.push(PollFd::new(&connection.socket, PollFlags::IN));
        }
        if connections.len() < MAX_CLIENTS {
            awaited.push(PollFd::new(listener, PollFlags::IN));
        }
        match poll(&mut awaited, None) {
            Ok(_) | Err(Errno::INTR) => {}
            // Memory becomes free again; descriptors that are lost do not come back.
            Err(Errno::NOMEM | Errno::AGAIN) => {
                thread::sleep(RETRY_INTERVAL);
                continue;
            }
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = awaited.iter().map(|at| !at.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        connections.retain(|connection| {
            let stays = !ready.next().unwrap_or(false) || answer(&mut store, connection);
            if !stays {
                store.leave(connection.client);
            }
            stays
        });
        if ready.next().unwrap_or(false) {
            met += 1;
            connections.extend(accept(listener.as_fd(), met));
        } else if met > 0 && connections.is_empty() && store.is_empty() {
            return Ok(());
        }
    }
}

/// The next connection, if its process runs as this user or root.
fn accept(listener: BorrowedFd<'_>, number: u64) -> Option<Connection> {
    let socket = match accept_with(listener, SocketFlags::CLOEXEC) {
        Ok(socket) => socket,
        Err(errno) => {
            if matches!(
                errno,
                Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS
            ) {
                thread::sleep(RETRY_INTERVAL);
            }
            return None;
        }
    };
    let peer = PeerCred::of(&socket)
        .ok()
        .filter(PeerCred::is_root_or_own)?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, direction, Some(MESSAGE_TIMEOUT)).ok()?;
    }
    let process = peer.process.map_or(0, NonZeroU32::get);
    let client = Client { number, process };
    Some(Connection { client, socket })
}

/// Answers one request. Returns whether the client is still connected.
fn answer(store: &mut Store, connection: &Connection) -> bool {
    let Ok(Received::Message { wire, descriptor }) = receive(&connection.socket) else {
        return false;
    };
    let (answer, given) = match Request::from_wire(wire) {
        Some(request) => store.answer(connection.client, request, descriptor),
        None => (Answer::Unknown, None),
    };
    send(&connection.socket, answer.to_wire(), given).is_ok()
}
