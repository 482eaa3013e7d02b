//! The thread that keeps the connection to the switch: it connects, binds, reads, and sends what
//! could not be sent at once.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gangplank_service::peer_cred::PeerCred;
use gangplank_service::rate_limited;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{GENERATION, SWITCH, Shared, binding, name_bytes, no_node};
use crate::abi::{Code, Command, DcId, Endpoint, Header};
use crate::carrier::stream::{FrameError, Frames, MAX_POLL_WAIT, SendError, poll_for};
use crate::endpoint::Gone;

/// Why the connection failed.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("{0}")]
    Io(#[from] Errno),
    #[error("the switch runs as user {0}, who is not trusted")]
    User(u32),
    #[error("{0}")]
    SendError(#[from] SendError),
    #[error("the switch violates the protocol: {0}")]
    Rules(#[from] FrameError),
}

/// Connects and serves until the program is done with the switch.
pub(super) fn run(shared: &Shared) {
    let path = shared.config.socket.display();
    // Reported once for each loss.
    let mut reported = false;
    while !shared.is_stopping() {
        match connect_to_switch(shared) {
            Ok(socket) => {
                reported = false;
                log::debug!("connected to the switch at {path}");
                if let Err(end) = serve(shared, &socket) {
                    rate_limited!(warn, "the switch at {path} is lost: {end}");
                }
                shared.lost();
            }
            Err(end) if reported => log::debug!("cannot connect to the switch at {path}: {end}"),
            Err(end) => {
                reported = true;
                rate_limited!(
                    info,
                    "cannot connect to the switch at {path}, retrying: {end}"
                );
            }
        }
        let mut stop = [PollFd::new(&shared.stop, PollFlags::IN)];
        if let Err(error) = poll_for(&mut stop, shared.config.retry) {
            log::error!("cannot wait for the switch: {error}");
            return;
        }
    }
}

fn connect_to_switch(shared: &Shared) -> Result<OwnedFd, ConnectionError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(&shared.config.socket)?)?;
    let peer = PeerCred::of(&socket)?;
    if peer.is_root_or_own() || shared.config.switch_uid == Some(peer.user) {
        Ok(socket)
    } else {
        Err(ConnectionError::User(peer.user))
    }
}

fn serve(shared: &Shared, socket: &OwnedFd) -> Result<(), ConnectionError> {
    let outbox = &shared.outbox;
    let duplicate = rustix::io::fcntl_dupfd_cloexec(socket, 0)?;
    outbox.connect(duplicate);
    for (dc, endpoint, name) in shared.table.bound() {
        // The loop below notices a lost connection.
        let _ = outbox.post_unanswered(binding(dc, endpoint), name_bytes(&name));
    }
    outbox.set_inbound_up(true);
    let mut frames = Frames::new(no_node(), no_node(), GENERATION);
    let mut progress = Instant::now();
    let mut sent_total = outbox.sent_total();
    let mut waiting = 0;
    while !shared.is_stopping() {
        let limit = if waiting > 0 {
            shared.config.answer.saturating_sub(progress.elapsed())
        } else {
            MAX_POLL_WAIT
        };
        if limit.is_zero() {
            return Err(SendError::Slow(shared.config.answer).into());
        }
        let ready = wait(shared, socket, waiting > 0, limit)?;
        if ready.read {
            read(shared, socket, &mut frames)?;
        }
        // Usually the sending thread has sent everything itself.
        if ready.send || waiting > 0 {
            outbox.flush()?;
            let now = outbox.sent_total();
            if waiting == 0 || now != sent_total {
                sent_total = now;
                progress = Instant::now();
            }
            waiting = outbox.unsent();
        }
    }
    Ok(())
}

/// The events that are ready.
struct Ready {
    /// The socket can be read.
    read: bool,
    /// Something could not be sent at once, or the connection is dropped.
    send: bool,
}

/// Waits for the next event.
fn wait(shared: &Shared, socket: &OwnedFd, sending: bool, limit: Duration) -> Result<Ready, Errno> {
    let room = if sending {
        PollFlags::OUT
    } else {
        PollFlags::empty()
    };
    let mut ready = [
        PollFd::new(&shared.stop, PollFlags::IN),
        PollFd::new(shared.outbox.wake(), PollFlags::IN),
        PollFd::new(socket, PollFlags::IN | room),
    ];
    poll_for(&mut ready, limit)?;
    let [_, wake, socket] = &ready;
    Ok(Ready {
        read: !socket.revents().difference(PollFlags::OUT).is_empty(),
        send: !wake.revents().is_empty(),
    })
}

fn read(shared: &Shared, socket: &OwnedFd, frames: &mut Frames) -> Result<(), ConnectionError> {
    match frames.fill(|room| rustix::io::read(socket, room)) {
        Ok(0) => return Err(SendError::Closed.into()),
        Ok(_) => {}
        Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    while frames.next(|header, payload| shared.deliver(header, payload))? {}
    Ok(())
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Handles the loss of the switch, and of every endpoint behind it.
    fn lost(&self) {
        self.outbox.set_inbound_up(false);
        self.outbox.disconnect();
        self.bind_results.lock().clear();
        self.bind_done.notify_all();
        self.table.peer_lost(SWITCH);
    }

    fn deliver(&self, header: &Header, payload: &[u8]) {
        match header.command {
            Command::PROCBIND_ACK if header.src == Endpoint::NONE => self.on_bind_result(header),
            Command::PROCUNBIND => {
                if let Some(dc) = DcId::new(header.dc) {
                    self.table.partner_gone(dc, header.src, Gone::Unbound);
                }
            }
            _ => self.table.deliver(SWITCH, header, payload),
        }
    }

    /// Handles the switch's answer to a bind.
    fn on_bind_result(&self, header: &Header) {
        let Some(dc) = DcId::new(header.dc) else {
            return;
        };
        let code = Code::from_result(header.rcode);
        let mut bind_results = self.bind_results.lock();
        if let Some(bind_result) = bind_results.get_mut(&(dc, header.dst.slot())) {
            *bind_result = Some(code.map_or(Ok(()), Err));
            self.bind_done.notify_all();
            return;
        }
        drop(bind_results);
        // The endpoint was bound before the switch was lost, and another program has bound it
        // since.
        if let Some(code) = code
            && self.table.release(dc, header.dst)
        {
            log::error!("cannot bind endpoint {} again: {code}", header.dst);
        }
    }
}
