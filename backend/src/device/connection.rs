//! One guest's connection, from accept to hang-up.
//!
//! ```text
//! frontend ── socket ── forwarder ── private socket ── vhost-user-backend ── ring threads
//!                       (quirks)
//! ```
//!
//! The forwarder passes on vhost-user messages, a few dozen when a guest starts, and corrects
//! `super::quirks`. Requests and file data go through the rings.
//!
//! It records what the frontend sets up (`super::recorder`). A worker that follows one that died
//! sets its own device up by that record (`super::replay`), waits until the rings' threads have
//! found out which requests are left to them, and goes on forwarding where the other ended.
//! While the frontend waits for a reply, its next message stays in the socket.

mod inflight;
mod replies;
mod sockets;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::{FrontendReq, Message, MessageError};
use rustix::event::{PollFd, PollFlags, Timespec};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserBackend, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

pub use self::inflight::InflightError;
use self::replies::own_reply;
use self::sockets::{has_room, hung_up, is_closed, is_readable, private_socket, receive, wait};
use super::backend::FsBackend;
use super::memory_limits::{LimitExceeded, MemoryCheck, MemoryLimits};
use super::options::Options;
use super::peek;
use super::private_memory::{self, NotShared};
use super::quirks::trim_memory_table;
use super::reconnect::{self, KeptSession};
use super::recorder::{Author, Recorder, log_area};
use super::replay;
use super::reply_pipe::ReplyPipe;
use super::request::Handler;
use super::wake_blocked::WakeBlocked;
use crate::state::arena::Arena;
use crate::state::recovery;
use crate::state::requests::RingRequests;
use crate::sys::dirty_bitmap::DirtyBitmap;

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
    /// What the worker before has left cannot be used.
    #[error("cannot go on where the worker before has ended")]
    Record(#[source] io::Error),
    /// The frontend broke the protocol, or the socket failed.
    #[error("the vhost-user connection failed")]
    Receive(#[from] MessageError),
    /// The guest has more memory than permitted.
    #[error(transparent)]
    Memory(#[from] LimitExceeded),
    /// The daemon does not see the guest's memory.
    #[error(transparent)]
    NotShared(#[from] NotShared),
    /// The memory for requests in flight cannot be used.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The bitmap of dirty pages cannot be mapped.
    #[error("cannot map the bitmap of SET_LOG_BASE")]
    Log(#[source] io::Error),
    /// vhost-user-backend refused a message.
    #[error("the frontend violated the vhost-user protocol: {0}")]
    Protocol(DaemonError),
}

impl Error {
    /// Whether the daemon or the host is the reason, and not the frontend.
    #[must_use]
    pub const fn is_own(&self) -> bool {
        matches!(
            self,
            Self::Threads(_) | Self::PrivateSocket(_) | Self::Start(_)
        )
    }
}

/// The guest that is served.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    /// The guest's number in the log.
    pub number: u64,
    /// The guest's state, which outlives the process.
    pub arena: &'a Arc<Arena>,
    /// By what replies go to the frontend.
    pub replies: &'a ReplyPipe,
    /// How the session outlives the connection; `None` if it does not.
    pub kept: Option<&'a dyn KeptSession>,
}

/// Serves the guest on `frontend` until the frontend hangs up or the socket is shut down. Then
/// frees everything the guest held, or leaves it to the next worker ([`KeptSession::leave`]).
///
/// # Errors
/// The device could not be created, or the frontend violated the protocol.
pub fn serve(
    frontend: &UnixStream,
    options: &Options,
    handler: &Arc<dyn Handler>,
    guest: Guest<'_>,
) -> Result<(), Error> {
    let backend = FsBackend::new(options, Arc::clone(handler), guest.arena);
    let backend = Arc::new(backend.map_err(Error::Threads)?);
    let recorder = Recorder::load(guest.arena, backend.num_queues()).map_err(Error::Record)?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("vhost_user".into(), Arc::clone(&backend), memory)
        .map_err(|error| {
            backend.stop_threads();
            Error::Start(error)
        })?;
    backend.watch_timers(&daemon).map_err(Error::Threads)?;
    let (private, listener) = private_socket().map_err(Error::PrivateSocket)?;
    daemon
        .start(&mut Listener::from(listener))
        .map_err(Error::Start)?;

    let mut forwarder = Forwarder {
        frontend,
        backend: &private,
        device: &backend,
        memory: MemoryCheck::new(MemoryLimits::from(options)),
        recorder,
        is_qemu: false,
        has_slots_for_qemu: options.has_slots_for_qemu,
        ring_limits: (options.rings(), options.max_queue_size),
        guest,
    };
    let forwarded = match recovery::is_after_death(guest.arena) {
        true => go_on(&mut forwarder),
        false => Ok(true),
    };
    let forwarded = match forwarded {
        Ok(true) => forwarder.forward_messages(),
        ended => ended.map(drop),
    };
    if let Some(kept) = guest.kept
        && forwarder.has_lost_frontend(&forwarded)
        && kept.is_kept()
    {
        recovery::note_leaving(guest.arena);
        backend.stop();
        reconnect::wait_for_running(guest.arena);
        kept.leave();
    }
    recovery::note_end(guest.arena);
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

/// How long the threads of a device's rings may take to find out what is left to do. They only have
/// to wake up.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets the device up as the worker before has left it. Returns false if vhost-user-backend has
/// ended meanwhile.
fn go_on(forwarder: &mut Forwarder<'_>) -> Result<bool, Error> {
    let (device, guest) = (forwarder.device, forwarder.guest);
    if !forwarder.settle_reply()? {
        return Ok(false);
    }
    forwarder.continue_inflight()?;
    match forwarder.replay(guest.arena) {
        Err(Error::Receive(MessageError::HungUp)) => return Ok(false),
        replayed => replayed?,
    }
    let running = replay::running_rings(forwarder.recorder.state());
    if !device.wait_until_begun(&running, BEGIN_TIMEOUT) {
        log::warn!("a ring of guest {} does not start again", guest.number);
    }
    for message in replay::disabling(forwarder.recorder.state()) {
        if !forwarder.send(&message, &[])? {
            return Ok(false);
        }
    }
    let pause = recovery::note_recovered(guest.arena);
    let (number, pause) = (guest.number, pause.as_secs_f64() * 1000.0);
    if recovery::is_after_stop(guest.arena) {
        log::info!("guest {number} is served by the new program after {pause:.1} ms");
    } else if recovery::is_after_disconnection(guest.arena) {
        log::info!("guest {number} is served on its new connection after {pause:.1} ms");
    } else {
        let deaths = guest.arena.header().deaths.load(Ordering::Relaxed);
        log::info!("guest {number} is served again after {pause:.1} ms, death {deaths}");
    }
    forwarder.repeat_pending()
}

/// What passes messages on.
struct Forwarder<'a> {
    frontend: &'a UnixStream,
    backend: &'a OwnedFd,
    device: &'a FsBackend,
    memory: MemoryCheck,
    recorder: Recorder,
    /// Whether the frontend is QEMU, as far as that is known: see [`super::quirks`].
    is_qemu: bool,
    /// See [`Options`].
    has_slots_for_qemu: bool,
    /// Number of rings, and most descriptors of each.
    ring_limits: (u64, u16),
    guest: Guest<'a>,
}

impl Forwarder<'_> {
    /// Sets vhost-user-backend up by the record.
    fn replay(&mut self, arena: &Arc<Arena>) -> Result<(), Error> {
        let next = |ring| {
            let requests = RingRequests::new(arena, ring);
            requests.map_or(0, |requests| requests.next_available())
        };
        if let Some(log) = self.recorder.state().log
            && let Some(file) = self.recorder.descriptor(log.file)
        {
            let bitmap = DirtyBitmap::map(file, log.offset, log.size).map_err(Error::Log)?;
            self.device.log().set_bitmap(bitmap);
        }
        let memory = &mut self.memory;
        replay::replay(&self.recorder, next, self.backend, |message| {
            Ok(memory.check(message.request, &message.payload)?)
        })
    }

    /// Sets vhost-user-backend up for a frontend that had its handshake on an earlier connection.
    fn assume_handshake(&mut self) -> Result<(), Error> {
        log::info!(
            "guest {} has reconnected in the middle of a session, as QEMU does (reconnect=): its \
             mounts are lost until it has rebooted",
            self.guest.number
        );
        self.recorder.assume(reconnect::handshake());
        replay::replay(&self.recorder, |_| 0, self.backend, |_| Ok::<_, Error>(()))
    }

    /// Whether only the connection is lost, and the frontend may come back for the session.
    fn has_lost_frontend(&self, forwarded: &Result<(), Error>) -> bool {
        use MessageError::{Cut, HungUp, Reset};

        let is_lost = matches!(
            forwarded,
            Ok(()) | Err(Error::Receive(HungUp | Reset | Cut))
        );
        // vhost-user-backend closes its end when it refuses a message.
        let mut ready = [PollFd::from_borrowed_fd(
            self.backend.as_fd(),
            PollFlags::IN,
        )];
        let is_refused =
            wait(&mut ready, Some(&Timespec::default())).is_err() || is_closed(ready[0].revents());
        is_lost && !is_refused && reconnect::may_come_back(self.recorder.state(), self.guest.arena)
    }

    /// Passes the message on again whose reply the frontend waits for.
    fn repeat_pending(&mut self) -> Result<bool, Error> {
        if let Some(arriving) = &self.recorder.state().arriving {
            peek::take_out_if_there(self.frontend.as_fd(), arriving)?;
            self.recorder.taken_out();
        }
        let Some(pending) = self.recorder.state().pending.clone() else {
            return Ok(true);
        };
        self.carry_out(&replay::pending(&pending), &pending.descriptors)
    }

    /// Forwards messages both ways until either end closes.
    ///
    /// Reads a message from one side only when the other has room for it, so a frontend that does
    /// not read its replies blocks only itself.
    fn forward_messages(&mut self) -> Result<(), Error> {
        let (frontend, backend) = (self.frontend.as_fd(), self.backend.as_fd());
        let (mut from_frontend, mut from_backend) = (self.frontend_events(), PollFlags::IN);
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(frontend, from_frontend),
                PollFd::from_borrowed_fd(backend, from_backend),
            ];
            wait(&mut ready, None)?;
            let [frontend_ready, backend_ready] = ready.map(|ready| ready.revents());
            from_backend = PollFlags::IN;
            if is_readable(frontend_ready) {
                if self.recorder.is_pending() {
                    if is_closed(frontend_ready) {
                        return Ok(());
                    }
                } else if has_room(backend)? {
                    if !self.forward_request()? {
                        return Ok(());
                    }
                } else if is_closed(frontend_ready) {
                    // The frontend has gone, and vhost-user-backend may wait for it.
                    return Ok(());
                } else {
                    from_backend = PollFlags::IN | PollFlags::OUT;
                }
            }
            from_frontend = match from_backend.contains(PollFlags::OUT) {
                true => PollFlags::empty(),
                false => self.frontend_events(),
            };
            if is_readable(backend_ready) {
                if has_room(frontend)? {
                    if !self.forward_reply()? {
                        return Ok(());
                    }
                    from_frontend = self.frontend_events();
                } else if is_closed(frontend_ready) {
                    return Ok(());
                } else {
                    from_backend -= PollFlags::IN;
                    from_frontend |= PollFlags::OUT;
                }
            }
        }
    }

    /// What to wait for from the frontend: no message while it waits for a reply.
    const fn frontend_events(&self) -> PollFlags {
        match self.recorder.is_pending() {
            true => PollFlags::empty(),
            false => PollFlags::IN,
        }
    }

    /// Forwards a message of the frontend, corrected, checked and recorded. Returns false if either
    /// side has hung up.
    fn forward_request(&mut self) -> Result<bool, Error> {
        let frontend = self.frontend.as_fd();
        let peeked = peek::message(frontend);
        let arriving = peeked.as_ref().map(Message::to_bytes);
        let Some(mut message) =
            peeked.map_or_else(|| receive(frontend), |peeked| Ok(Some(peeked)))?
        else {
            return Ok(false);
        };
        if reconnect::goes_on(self.recorder.state(), &message) {
            self.assume_handshake()?;
        }
        trim_memory_table(&mut message);
        let len = arriving.as_ref().map_or(0, Vec::len);
        if let Err(refused) = self.memory.check(message.request, &message.payload) {
            // A socket that is closed with bytes in it is reset.
            peek::take_out(frontend, len)?;
            return Err(refused.into());
        }
        if self.is_qemu
            && let Err(refused) = private_memory::check(&message)
        {
            peek::take_out(frontend, len)?;
            return Err(refused.into());
        }
        if let Err(refused) = self.set_log(&message) {
            peek::take_out(frontend, len)?;
            return Err(refused);
        }
        let descriptors = self.recorder.begin(&mut message, arriving);
        peek::take_out(frontend, len)?;
        self.recorder.taken_out();
        let is_sent = self.carry_out(&message, &descriptors)?;
        self.recorder.close_unused();
        Ok(is_sent)
    }

    /// Maps the bitmap that comes with SET_LOG_BASE.
    fn set_log(&self, message: &Message) -> Result<(), Error> {
        if message.frontend_request() == Some(FrontendReq::SET_LOG_BASE)
            && let Some([size, offset]) = log_area(&message.payload)
            && let Some(file) = message.descriptors.first()
        {
            let bitmap = DirtyBitmap::map(file.as_fd(), offset, size).map_err(Error::Log)?;
            self.device.log().set_bitmap(bitmap);
        }
        Ok(())
    }

    /// Carries a message out that is recorded. Returns false if either side has hung up.
    fn carry_out(&mut self, message: &Message, descriptors: &[RawFd]) -> Result<bool, Error> {
        if let Some(reply) = own_reply(message) {
            return match self.recorder.is_pending() {
                true => self.reply(&reply, Author::Forwarder),
                false => Ok(true),
            };
        }
        match self.is_inflight(message) {
            true => self.answer_inflight(message, descriptors),
            false => self.send(message, descriptors),
        }
    }

    /// Sends a message to vhost-user-backend. Returns false if that has hung up.
    fn send(&self, message: &Message, descriptors: &[RawFd]) -> Result<bool, Error> {
        let descriptors = descriptors.iter();
        let descriptors: Vec<BorrowedFd<'_>> = descriptors
            .filter_map(|number| self.recorder.descriptor(*number))
            .collect();
        hung_up(message.send(self.backend.as_fd(), &descriptors, Deadline::NONE))
    }
}

#[cfg(test)]
mod tests;
