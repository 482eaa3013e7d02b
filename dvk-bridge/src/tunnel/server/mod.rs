//! The server of tunnels: puts the requests of guests elsewhere on the queues of a driver.
//!
//! Each guest has a session, with a connection to the daemon of its own. A session outlives broken
//! connections between the nodes, and its tunnel if another one goes on with it. It ends when its
//! tunnel says so, when a request of another guest comes from the same endpoint, when the daemon is
//! lost, or when nothing was heard of it for a while.

mod init;
mod session;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gangplank_driver::{self as driver, Driver};
use gangplank_service::rate_limit::set_thread_peer;
use gangplank_service::{error_chain, rate_limited};
use log::debug;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use serde_json::{Value, json};

use self::session::Session;
use super::wire::{Answer, CONFIG_LEN, Call, MAX_SLOTS, WireError};
use crate::abi::{Endpoint, Message};
use crate::endpoint::{BoundEndpoint, Delivery, EndpointError, RequestId};
use crate::status::Report;

/// Time limit of one receive, after which the loop checks whether to stop.
const RECV_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed receive, so that an endpoint that keeps failing causes no busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// Entries of the driver's rings: all slots fit in one.
const QUEUE_SIZE: u16 = 128;

/// Bytes of memory that a session shares with the daemon: a request and the room for its reply in
/// each slot.
const BUFFERS: u64 = 192 << 20;

/// The options of a server of tunnels.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// The daemon's vhost-user socket.
    pub socket: PathBuf,
    /// Server endpoints for requests, behind the first.
    pub queues: u16,
    /// Limit of guests.
    pub guests: usize,
    /// Time without a sign of its tunnel after which a session is freed.
    pub idle: Duration,
}

impl Options {
    /// The share behind `socket`.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            queues: 4,
            guests: 8,
            idle: Duration::from_secs(120),
        }
    }
}

/// A server of tunnels at a range of endpoints.
pub struct Server {
    options: Options,
    endpoints: Vec<Arc<dyn BoundEndpoint>>,
    sessions: Mutex<HashMap<u32, Arc<Session>>>,
    guests_changed: Condvar,
    /// Held while a session is made, which connects to the daemon.
    opening: Mutex<()>,
    opened: AtomicU64,
    refused: AtomicU64,
}

impl Server {
    /// A server at `endpoints`: the first for what is urgent, the others for requests.
    #[must_use]
    pub fn new(endpoints: Vec<Arc<dyn BoundEndpoint>>, options: Options) -> Self {
        Self {
            options,
            endpoints,
            sessions: Mutex::default(),
            guests_changed: Condvar::new(),
            opening: Mutex::new(()),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Serves until `stop` is set or an endpoint is unbound.
    pub fn run(&self, stop: &AtomicBool) {
        let unbound = AtomicBool::new(false);
        thread::scope(|scope| {
            // A guest has one exchange at a time with each endpoint. So with a thread for each
            // guest, and one for the next, no guest waits for another.
            for endpoint in &self.endpoints {
                for number in 0..=self.options.guests {
                    let (endpoint, unbound) = (&**endpoint, &unbound);
                    let thread = thread::Builder::new().name("tunnel".to_owned());
                    let started = thread.spawn_scoped(scope, move || {
                        self.receive(endpoint, number, stop, unbound);
                    });
                    if let Err(error) = started {
                        rate_limited!(warn, "cannot start a thread for tunnels: {error}");
                    }
                }
            }
            while !stop.load(Ordering::Relaxed) && !unbound.load(Ordering::Relaxed) {
                thread::sleep(RECV_TIMEOUT);
                self.free_silent();
            }
            for session in self.sessions.lock().values() {
                session.end();
            }
            // This ends all exchanges.
            for endpoint in &self.endpoints {
                endpoint.unbind();
            }
        });
    }

    fn receive(
        &self,
        endpoint: &dyn BoundEndpoint,
        number: usize,
        stop: &AtomicBool,
        unbound: &AtomicBool,
    ) {
        while !stop.load(Ordering::Relaxed) {
            if !self.is_needed(number) {
                continue;
            }
            match endpoint.receive(RECV_TIMEOUT) {
                Ok(Delivery::Request {
                    request, message, ..
                }) => {
                    set_thread_peer(request.client().log_key());
                    let answer = self.answer(endpoint, request, &message);
                    if let Err(error) = endpoint.reply(request, &answer.encode(&message)) {
                        debug!("{}", error_chain(&error));
                    }
                }
                // A node may come back, and so may a tunnel, or another that goes on with its
                // guest.
                Ok(Delivery::Gone { .. } | Delivery::Notification { .. }) => {}
                Ok(Delivery::Message { client, .. }) => {
                    debug!("{client} sent a message without waiting for an answer");
                }
                Err(EndpointError::TimedOut { .. }) => {}
                Err(EndpointError::Unbound { .. }) => {
                    unbound.store(true, Ordering::Relaxed);
                    return;
                }
                Err(error) => {
                    // No client's.
                    rate_limited!(peer = 0, warn, "{}", error_chain(&error));
                    thread::sleep(FAILURE_PAUSE);
                }
            }
        }
    }

    /// Waits a moment if there are fewer guests than `number`. Returns whether there are not.
    fn is_needed(&self, number: usize) -> bool {
        let mut sessions = self.sessions.lock();
        if sessions.len() < number {
            // A change is found after the time as well.
            let _ = self.guests_changed.wait_for(&mut sessions, RECV_TIMEOUT);
        }
        sessions.len() >= number
    }

    fn answer(&self, endpoint: &dyn BoundEndpoint, id: RequestId, message: &Message) -> Answer {
        let answer = match Call::decode(message) {
            Ok(Call::Open {
                generation,
                slots,
                config,
            }) => self.open(endpoint, id, generation, slots, config),
            Ok(Call::Request(request)) => match self.session(request.session) {
                Some(session) => {
                    if session.is_first_request() {
                        self.free_others(&session);
                    }
                    let answer = session.serve(endpoint, id, &request);
                    if answer == Answer::Refused(Errno::NOTCONN) {
                        self.free(&session, "its daemon is lost");
                    }
                    answer
                }
                None => Answer::Refused(Errno::STALE),
            },
            Ok(Call::Ping { session }) => match self.session(session) {
                Some(session) => match session.broken() {
                    None => Answer::Done { written: 0 },
                    Some(why) => {
                        self.free(&session, &why);
                        Answer::Refused(Errno::NOTCONN)
                    }
                },
                None => Answer::Refused(Errno::STALE),
            },
            Ok(Call::Close { session }) => {
                if let Some(session) = self.session(session) {
                    self.free(&session, "its guest has gone");
                }
                Answer::Done { written: 0 }
            }
            Err(error) => {
                let client = id.client();
                rate_limited!(warn, "endpoint {client}: {}", error_chain(&error));
                if let WireError::Lengths { session, .. } = error
                    && let Some(session) = self.session(session)
                {
                    self.free(&session, "its tunnel breaks the protocol");
                }
                Answer::Refused(Errno::INVAL)
            }
        };
        if matches!(answer, Answer::Refused(_)) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// The session with this id. Its tunnel lives.
    fn session(&self, id: u32) -> Option<Arc<Session>> {
        let session = self.sessions.lock().get(&id).map(Arc::clone)?;
        session.touch();
        Some(session)
    }

    fn open(
        &self,
        endpoint: &dyn BoundEndpoint,
        id: RequestId,
        generation: u64,
        slots: u16,
        config: u32,
    ) -> Answer {
        let _opening = self.opening.lock();
        let found = self.session_of(id.client(), generation, slots);
        let told = match &found {
            Ok((session, _)) => Some(session.config()),
            // The tunnel may be about to go on with a session that has all that the daemon gives:
            // its frontend asks for the configuration before it tells of that one.
            Err(_) => self.config_for(id.client()),
        };
        if let Some(Err(error)) = told.map(|told| endpoint.copy_to(id, config, &told)) {
            debug!("{}", error_chain(&error));
        }
        let (session, resumed) = match found {
            Ok(found) => found,
            Err(errno) => return Answer::Refused(errno),
        };
        session.touch();
        Answer::Opened {
            session: session.id,
            queues: self.options.queues,
            slots: session.slots(),
            resumed,
        }
    }

    /// The session of this device, and whether it goes on: if there is none, or its daemon is
    /// lost, it is a new one.
    fn session_of(
        &self,
        client: Endpoint,
        generation: u64,
        slots: u16,
    ) -> Result<(Arc<Session>, bool), Errno> {
        match self.of(client, generation) {
            Some(session) if session.broken().is_none() => return Ok((session, true)),
            Some(session) => self.free(&session, "its daemon is lost"),
            None => {}
        }
        // One that has had requests stays until this one has: the tunnel may be about to go on with
        // it.
        self.free_if(|session| session.client == client && !session.has_begun());
        Ok((self.connect(client, generation, slots)?, false))
    }

    /// The device's configuration as a session of this endpoint has it.
    fn config_for(&self, client: Endpoint) -> Option<[u8; CONFIG_LEN as usize]> {
        let sessions = self.sessions.lock();
        let mut all = sessions.values();
        let found = all.find(|session| session.client == client && session.broken().is_none());
        found.map(|session| session.config())
    }

    /// A new session of a guest, connected to the daemon.
    fn connect(
        &self,
        client: Endpoint,
        generation: u64,
        slots: u16,
    ) -> Result<Arc<Session>, Errno> {
        if slots < 2 {
            return Err(Errno::INVAL);
        }
        let sessions = self.sessions.lock();
        let others = sessions.values().filter(|session| session.client != client);
        let is_full = others.count() >= self.options.guests;
        drop(sessions);
        if is_full {
            rate_limited!(warn, "endpoint {client} is refused: too many guests");
            return Err(Errno::USERS);
        }
        let options = driver::Options {
            queue_size: QUEUE_SIZE,
            buffers: BUFFERS,
            ..driver::Options::default()
        };
        let socket = self.options.socket.display();
        let driver = Driver::connect(&self.options.socket, &options).map_err(|error| {
            rate_limited!(warn, "{socket}: {}", error_chain(&error));
            Errno::NOTCONN
        })?;
        let depth = (0..driver.queues()).map(|queue| driver.depth(queue)).min();
        let depth = u16::try_from(depth.unwrap_or(0)).unwrap_or(u16::MAX);
        let slots = slots.min(depth).min(MAX_SLOTS);
        let mut sessions = self.sessions.lock();
        let number = loop {
            let number = getrandom::u32().map_err(|_| Errno::AGAIN)?;
            if number != 0 && !sessions.contains_key(&number) {
                break number;
            }
        };
        let session = Arc::new(Session::new(number, generation, client, driver, slots));
        sessions.insert(number, Arc::clone(&session));
        drop(sessions);
        self.guests_changed.notify_all();
        self.opened.fetch_add(1, Ordering::Relaxed);
        rate_limited!(info, "{socket}: a guest behind endpoint {client} is served");
        Ok(session)
    }

    /// The session of this device.
    fn of(&self, client: Endpoint, generation: u64) -> Option<Arc<Session>> {
        let sessions = self.sessions.lock();
        let mut all = sessions.values();
        let found =
            all.find(|session| session.client == client && session.generation == generation);
        found.map(Arc::clone)
    }

    fn free(&self, session: &Session, why: &str) {
        let removed = self.sessions.lock().remove(&session.id);
        if let Some(removed) = removed {
            removed.end();
            rate_limited!(
                peer = removed.client.log_key(),
                info,
                "the guest behind endpoint {} is freed: {why}",
                removed.client
            );
        }
    }

    /// Frees the other sessions of the endpoint of this one.
    fn free_others(&self, of: &Session) {
        self.free_if(|session| session.client == of.client && session.id != of.id);
    }

    fn free_if(&self, is_meant: impl Fn(&Session) -> bool) {
        let sessions: Vec<_> = self.sessions.lock().values().map(Arc::clone).collect();
        for session in sessions.iter().filter(|session| is_meant(session)) {
            self.free(session, "another guest has its endpoint");
        }
    }

    fn free_silent(&self) {
        let sessions: Vec<_> = self.sessions.lock().values().map(Arc::clone).collect();
        for session in sessions {
            if session.silence() > self.options.idle {
                self.free(&session, "nothing was heard of it for too long");
            }
        }
    }
}

impl Report for Server {
    fn report(&self, to: &mut String) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        to.push_str(&format!(
            "  {} guests so far, {} messages refused\n",
            count(&self.opened),
            count(&self.refused)
        ));
        for session in self.sessions.lock().values() {
            to.push_str(&format!(
                "  guest behind endpoint {}: {} requests, {} asked for again, heard of {:.1} s \
                 ago\n",
                session.client,
                count(&session.requests),
                count(&session.repeated),
                session.silence().as_secs_f64()
            ));
        }
    }

    fn json(&self) -> Value {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let sessions = self.sessions.lock();
        let guests = sessions.values().map(|session| {
            json!({
                "endpoint": session.client.raw(),
                "requests": count(&session.requests),
                "repeated": count(&session.repeated),
                "silence_seconds": session.silence().as_secs_f64(),
            })
        });
        json!({
            "opened": count(&self.opened),
            "refused": count(&self.refused),
            "guests": guests.collect::<Vec<_>>(),
        })
    }
}

/// The device's configuration space has the length that the messages say.
const _: () = assert!(gangplank_vhost_user::client::CONFIG_LEN == CONFIG_LEN as usize);

#[cfg(test)]
mod tests;
