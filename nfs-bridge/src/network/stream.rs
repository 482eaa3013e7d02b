//! One TCP connection of a host's socket.
//!
//! Two threads read its calls in turn, one at a time. The one that reads a call alone lets the
//! other go on reading, executes the call itself, and writes the reply: a client that waits for
//! each of its calls has one thread to wake. Calls that come meanwhile, or several at once, go to
//! the server's workers, and another thread writes their replies, so that a client that does not
//! take its replies holds up nobody else.
//!
//! The kernel wakes one of the two: the socket is in an epoll instance that both wait for, which
//! reports it once (`EPOLLONESHOT`) until the thread that reads passes it on. A thread that has
//! executed a call polls for the next one for a moment if the client nearly always sends it soon.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_service::busy_poll::BusyPoll;
use gangplank_service::{error_chain, rate_limited};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::MAX_RECORD;
use super::admission::REPLY_TIME;
use super::connections::Activity;
use super::host::endpoints;
use crate::rpc::program::Endpoints;
use crate::rpc::record::Assembler;
use crate::rpc::replay::Responder;
use crate::rpc::reply::Reply;
use crate::rpc::reply_budget::{ReplyAccount, Reservation};
use crate::rpc::server::Server;

/// Bytes that are read at once, unless they are of one large record.
const READ_SIZE: usize = 64 << 10;

/// While a thread polls: only one of this many looks is a system call.
const SKIPPED_LOOKS: u32 = 8;

/// The reply to a call, if it has one.
type CallReply = Option<(Arc<Reply>, Reservation)>;

/// A call that the thread that has read it executes.
type OwnCall = (Vec<u8>, Responder);

/// Serves a connection until the client closes it, or breaks the rules.
pub(super) fn serve(
    server: &Server,
    stream: &Arc<TcpStream>,
    client: SocketAddr,
    activity: &Arc<Activity>,
    record_time: Duration,
    busy_poll: Duration,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(REPLY_TIME))?;
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&ready, &**stream, epoll::EventData::new_u64(0), once())?;
    let output = Arc::new(Output {
        stream: Arc::clone(stream),
        activity: Arc::clone(activity),
        writing: Mutex::new(()),
    });
    let (replies, queue) = mpsc::channel();
    let written = Arc::clone(&output);
    let writer = thread::Builder::new()
        .name("nfs_reply".to_owned())
        .spawn(move || written.send_all(&queue))?;
    let readers = Readers {
        server,
        endpoints: endpoints(client, stream.local_addr()),
        account: server.reply_account(),
        output,
        replies,
        record_time,
        ready,
        executes: AtomicBool::new(false),
        input: Mutex::new(Input {
            assembler: Assembler::with_pool(MAX_RECORD, server.records()),
            buffer: vec![0; READ_SIZE],
            found: None,
            has_limit: false,
            has_ended: false,
            busy_poll: BusyPoll::new(busy_poll),
            idle_since: None,
        }),
    };
    let served = thread::scope(|scope| {
        let other = thread::Builder::new().name("nfs_client".to_owned());
        let other = other.spawn_scoped(scope, || readers.run())?;
        let served = readers.run();
        // A thread panics only where it must not.
        served.and(other.join().unwrap_or(Ok(())))
    });
    // Replies that are still to come have nobody to receive them.
    let _ = stream.shutdown(Shutdown::Both);
    drop(readers);
    // The connection counts until its calls have run: otherwise one client could have any number of
    // them wait, with a connection after the other.
    let _ = writer.join();
    served
}

fn once() -> epoll::EventFlags {
    epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT
}

/// The two threads that read.
struct Readers<'a> {
    server: &'a Server,
    endpoints: Endpoints,
    account: ReplyAccount,
    output: Arc<Output>,
    /// To the thread that writes. It ends with the last of its senders, and not before.
    replies: Sender<CallReply>,
    record_time: Duration,
    /// Tells one of the threads that there is something to read.
    ready: OwnedFd,
    /// One of them executes a call.
    executes: AtomicBool,
    /// Of the thread that reads.
    input: Mutex<Input>,
}

struct Input {
    assembler: Assembler,
    buffer: Vec<u8>,
    /// Bytes at the beginning of `buffer` that a thread has found there while it polled.
    found: Option<usize>,
    /// Reading has a time limit.
    has_limit: bool,
    /// There is nothing to read any more.
    has_ended: bool,
    /// Whether a thread polls for the next call.
    busy_poll: BusyPoll,
    /// When a thread has executed a call, until the next one comes.
    idle_since: Option<Instant>,
}

/// What a thread has read.
enum Read {
    /// A call that it executes itself.
    Own(OwnCall),
    /// Nothing, or calls that the workers have by now.
    Nothing,
    /// The client has closed the connection.
    End,
}

impl Readers<'_> {
    /// Reads in turns with the other thread, and executes calls, until the connection ends.
    fn run(&self) -> io::Result<()> {
        let mut executed = None;
        loop {
            let polled = match executed.take() {
                Some(since) => self.poll(since)?,
                None => None,
            };
            let mut input = match polled {
                Some(input) => input,
                None => {
                    self.wait()?;
                    self.input.lock()
                }
            };
            if let Some(since) = input.idle_since.take() {
                input.busy_poll.record_sleep(since.elapsed());
            }
            let read = match input.has_ended {
                true => Ok(Read::End),
                false => self.read(&mut input),
            };
            if matches!(read, Ok(Read::End) | Err(_)) {
                input.has_ended = true;
                // The calls that are executed have nobody to receive their replies.
                let _ = self.output.stream.shutdown(Shutdown::Both);
            }
            drop(input);
            self.arm(once())?;
            match read? {
                Read::End => return Ok(()),
                Read::Nothing => {}
                Read::Own((record, respond)) => {
                    self.server
                        .execute_reserved(self.endpoints, record, respond);
                    self.executes.store(false, Ordering::Release);
                    executed = Some(Instant::now());
                }
            }
        }
    }

    /// Waits until there is something to read, and nobody reads it.
    fn wait(&self) -> io::Result<()> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        loop {
            match epoll::wait(&self.ready, &mut events, None) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sets the events of which one of the threads is told, once.
    fn arm(&self, events: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(0);
        Ok(epoll::modify(
            &self.ready,
            &*self.output.stream,
            data,
            events,
        )?)
    }

    /// Polls for the next call, after the thread has executed one that ended at `since`, if it is
    /// likely to come soon and nobody reads. Returns the right to read it.
    fn poll(&self, since: Instant) -> io::Result<Option<MutexGuard<'_, Input>>> {
        let Some(mut input) = self.input.try_lock() else {
            return Ok(None);
        };
        input.idle_since = Some(since);
        if input.has_ended || !input.busy_poll.is_likely() {
            return Ok(None);
        }
        // The other thread sleeps on.
        self.arm(epoll::EventFlags::ONESHOT)?;
        let Input {
            buffer,
            found,
            busy_poll,
            ..
        } = &mut *input;
        let mut looks = 0_u32;
        let has_come = || {
            looks += 1;
            if !looks.is_multiple_of(SKIPPED_LOOKS) {
                return false;
            }
            match recv(&*self.output.stream, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => *found = Some(len),
                Err(Errno::AGAIN | Errno::INTR) => return false,
                // This clears the error. The thread that reads then finds the connection's end.
                Err(_) => {}
            }
            true
        };
        if busy_poll.poll(|| since.elapsed(), has_come) {
            input.idle_since = None;
            return Ok(Some(input));
        }
        drop(input);
        self.arm(once())?;
        Ok(None)
    }

    /// Reads what there is, and waits for the rest of a record. Hands calls to the workers, until
    /// one comes that the thread executes itself.
    fn read(&self, input: &mut Input) -> io::Result<Read> {
        let stream = &*self.output.stream;
        let activity = &self.output.activity;
        loop {
            let Input {
                assembler,
                buffer,
                found,
                ..
            } = input;
            let mut bytes: &[u8] = &[];
            let mut whole = match assembler.room() {
                Some(room) => match self.receive(room, RecvFlags::WAITALL)? {
                    Some(0) => return Ok(Read::End),
                    len => assembler.filled(len.unwrap_or(0)),
                },
                None => {
                    let flags = match assembler.has_part() {
                        true => RecvFlags::empty(),
                        false => RecvFlags::DONTWAIT,
                    };
                    let received = match found.take() {
                        Some(len) => Some(len),
                        None => self.receive(buffer, flags)?,
                    };
                    match received {
                        None => return Ok(Read::Nothing),
                        Some(0) => return Ok(Read::End),
                        Some(len) => bytes = buffer.get(..len).unwrap_or_default(),
                    }
                    assembler.take(&mut bytes).map_err(io::Error::other)?
                }
            };
            let mut own = None;
            let mut is_first = true;
            while let Some(record) = whole {
                whole = assembler.take(&mut bytes).map_err(io::Error::other)?;
                let is_alone = is_first && whole.is_none() && !assembler.has_part();
                is_first = false;
                activity.begin(&self.account);
                let reserved = self.account.reserve(self.server.largest_reply(&record));
                if is_alone && self.takes(&record) {
                    own = Some((record, self.responder(reserved, true)));
                } else {
                    let respond = self.responder(reserved, false);
                    self.server.submit(self.endpoints, record, respond);
                }
            }
            // Between records a client may be silent, as long as nobody else needs its place.
            let left = match activity.received(assembler.has_part()) {
                None => None,
                Some(begun) => match self.record_time.checked_sub(begun.elapsed()) {
                    None | Some(Duration::ZERO) => return Err(self.late()),
                    left => left,
                },
            };
            if left.is_some() || input.has_limit {
                stream.set_read_timeout(left)?;
                input.has_limit = left.is_some();
            }
            if let Some(own) = own {
                return Ok(Read::Own(own));
            }
        }
    }

    /// Receives bytes: 0 at the end, and `None` if there are none and the caller does not wait.
    fn receive(&self, room: &mut [u8], flags: RecvFlags) -> io::Result<Option<usize>> {
        loop {
            match recv(&*self.output.stream, &mut *room, flags) {
                Ok((len, _)) => return Ok(Some(len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => return Ok(None),
                Err(Errno::AGAIN) => return Err(self.late()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn late(&self) -> io::Error {
        let message = format!("a record was not whole within {:?}", self.record_time);
        io::Error::new(ErrorKind::TimedOut, message)
    }

    /// Whether the thread executes a call itself, so that the other one reads. It has reserved the
    /// server's room for it then.
    fn takes(&self, record: &[u8]) -> bool {
        if self.executes.swap(true, Ordering::Acquire) {
            return false;
        }
        let has_room = self.server.reserve(record);
        if !has_room {
            self.executes.store(false, Ordering::Release);
        }
        has_room
    }

    /// What takes the reply to a call. `is_own`: this thread executes it and may write the reply,
    /// unless it turns out to be the repetition of a call that another thread executes.
    fn responder(&self, mut reserved: Reservation, is_own: bool) -> Responder {
        let writes = is_own.then(|| (thread::current().id(), Arc::clone(&self.output)));
        let to = self.replies.clone();
        Box::new(move |reply| {
            let reply = reply.map(|reply| {
                reserved.set(reply.len());
                (reply, reserved)
            });
            match writes {
                Some((own, output)) if thread::current().id() == own => output.send(reply),
                _ => drop(to.send(reply)),
            }
        })
    }
}

/// Where replies go.
struct Output {
    stream: Arc<TcpStream>,
    activity: Arc<Activity>,
    /// Locked while a reply is written.
    writing: Mutex<()>,
}

impl Output {
    /// Sends replies until no call can bring another.
    fn send_all(&self, queue: &Receiver<CallReply>) {
        for reply in queue {
            self.send(reply);
        }
    }

    /// Sends a reply. Waits while the client does not take it.
    fn send(&self, reply: CallReply) {
        if let Some((reply, _reserved)) = reply {
            let writing = self.writing.lock();
            if let Err(error) = reply.send(&self.stream) {
                rate_limited!(debug, "a reply: {}", error_chain(&error));
                // What follows a part of a reply would be misread.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
            drop(writing);
        }
        self.activity.finish();
    }
}

#[cfg(test)]
mod tests;
