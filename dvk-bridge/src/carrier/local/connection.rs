//! The thread that keeps the connection to the switch: makes it, binds what is bound, reads, sends what is left.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gangplank_service::peer_cred::PeerCred;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{GENERATION, SWITCH, Shared, binding, name_bytes, no_node};
use crate::abi::{Code, Command, DcId, Endpoint, Header};
use crate::carrier::engine::lock;
use crate::carrier::stream::{Broken, FrameError, Frames, NAP, poll_for};
use crate::endpoint::Gone;

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Io(#[from] Errno),
    #[error("it runs as user {0}, who is not trusted")]
    User(u32),
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error("it breaks the rules: {0}")]
    Rules(#[from] FrameError),
}

/// Connects and serves until the program has no use for it any more.
pub(super) fn run(shared: &Shared) {
    let path = shared.config.socket.display();
    // Said once for each time that it goes away.
    let mut said = false;
    while !shared.is_stopping() {
        match connect_to_switch(shared) {
            Ok(socket) => {
                said = false;
                log::debug!("connected to the switch at {path}");
                if let Err(end) = serve(shared, &socket) {
                    log::warn!("the switch at {path} is lost: {end}");
                }
                shared.lost();
            }
            Err(end) if said => log::debug!("there is no switch at {path}: {end}"),
            Err(end) => {
                said = true;
                log::info!("there is no switch at {path}, and it will be tried again: {end}");
            }
        }
        let mut stop = [PollFd::new(&shared.stop, PollFlags::IN)];
        if let Err(error) = poll_for(&mut stop, shared.config.retry) {
            log::error!("cannot wait for the switch: {error}");
            return;
        }
    }
}

fn connect_to_switch(shared: &Shared) -> Result<OwnedFd, End> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(&shared.config.socket)?)?;
    let peer = PeerCred::of(&socket)?;
    if peer.is_root_or_own() || shared.config.switch_uid == Some(peer.user) {
        Ok(socket)
    } else {
        Err(End::User(peer.user))
    }
}

fn serve(shared: &Shared, socket: &OwnedFd) -> Result<(), End> {
    let outbox = &shared.outbox;
    let duplicate = rustix::io::fcntl_dupfd_cloexec(socket, 0)?;
    outbox.connect(duplicate);
    for (dc, endpoint, name) in shared.station.bound() {
        // If there is no connection any more, that is noticed below.
        let _ = outbox.tell(binding(dc, endpoint), name_bytes(&name));
    }
    outbox.set_heard(true);
    let mut frames = Frames::new(no_node(), no_node(), GENERATION);
    let mut progress = Instant::now();
    let mut taken = outbox.taken();
    let mut waiting = 0;
    while !shared.is_stopping() {
        let limit = if waiting > 0 {
            shared.config.answer.saturating_sub(progress.elapsed())
        } else {
            NAP
        };
        if limit.is_zero() {
            return Err(Broken::Slow(shared.config.answer).into());
        }
        let ready = wait(shared, socket, waiting > 0, limit)?;
        if ready.read {
            read(shared, socket, &mut frames)?;
        }
        // Most of what is sent goes at once, and by whom it is from.
        if ready.send || waiting > 0 {
            outbox.flush()?;
            let now = outbox.taken();
            if waiting == 0 || now != taken {
                taken = now;
                progress = Instant::now();
            }
            waiting = outbox.unsent();
        }
    }
    Ok(())
}

/// What there is to do.
struct Ready {
    /// There is something to read.
    read: bool,
    /// Something could not be sent at once, or the connection is given up.
    send: bool,
}

/// Waits until there is something to do.
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

fn read(shared: &Shared, socket: &OwnedFd, frames: &mut Frames) -> Result<(), End> {
    match frames.fill(|room| rustix::io::read(socket, room)) {
        Ok(0) => return Err(Broken::Closed.into()),
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

    /// All that was reached by the switch is gone for us.
    fn lost(&self) {
        self.outbox.set_heard(false);
        self.outbox.disconnect();
        lock(&self.verdicts).clear();
        self.decided.notify_all();
        self.station.peer_lost(SWITCH);
    }

    fn deliver(&self, header: &Header, payload: &[u8]) {
        match header.command {
            Command::PROCBIND_ACK if header.src == Endpoint::NONE => self.decide(header),
            Command::PROCUNBIND => {
                if let Some(dc) = DcId::new(header.dc) {
                    self.station.partner_gone(dc, header.src, Gone::Unbound);
                }
            }
            _ => self.station.deliver(SWITCH, header, payload),
        }
    }

    /// What the switch says to a binding.
    fn decide(&self, header: &Header) {
        let Some(dc) = DcId::new(header.dc) else {
            return;
        };
        let code = Code::from_result(header.rcode);
        let mut verdicts = lock(&self.verdicts);
        if let Some(verdict) = verdicts.get_mut(&(dc, header.dst.slot())) {
            *verdict = Some(code.map_or(Ok(()), Err));
            self.decided.notify_all();
            return;
        }
        drop(verdicts);
        // One that was bound before the switch was lost, and that another has bound since.
        if let Some(code) = code
            && self.station.give_up(dc, header.dst)
        {
            log::error!("cannot bind endpoint {} again: {code}", header.dst);
        }
    }
}
