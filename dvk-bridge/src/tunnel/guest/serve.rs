//! One guest, from its connection to its end.

use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use gangplank_service::rate_limit::{self, set_thread_peer};
use gangplank_service::rate_limited;
use gangplank_vhost_backend::{Connection, GuestError};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use serde_json::{Value, json};

use super::device::TunnelDevice;
use super::state::{Fatal, Session, State};
use super::{Options, behind, link, worker};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError};
use crate::status::Report;

/// Wait before the next bind of an endpoint whose carrier is not available yet.
const BIND_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// One guest, as its threads share it.
pub(super) struct Shared {
    /// The guest's number, for logs.
    pub(super) number: u64,
    /// The peer whose messages a rate limit counts.
    pub(super) log_key: rate_limit::Peer,
    pub(super) options: Options,
    pub(super) state: Mutex<State>,
    /// The session, the number of requests in flight, or the end has changed.
    pub(super) changed: Condvar,
    /// What each worker waits for, by its number.
    workers: Vec<Condvar>,
    /// What the workers exchange requests with, once it is bound.
    endpoints: Mutex<Vec<Arc<dyn BoundEndpoint>>>,
    /// Readable after a fault, for the guest's thread.
    wakeup: OwnedFd,
}

impl Shared {
    pub(super) fn new(
        number: u64,
        log_key: rate_limit::Peer,
        options: Options,
    ) -> std::io::Result<Self> {
        let workers = (0..=options.queues).map(|_| Condvar::new()).collect();
        Ok(Self {
            number,
            log_key,
            state: Mutex::new(State::new(options.limit)),
            options,
            changed: Condvar::new(),
            workers,
            endpoints: Mutex::default(),
            wakeup: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Lets worker number `index` wait until it is woken or `until` has come.
    pub(super) fn wait(
        &self,
        state: &mut MutexGuard<'_, State>,
        index: u16,
        until: Option<Instant>,
    ) {
        let Some(worker) = self.workers.get(usize::from(index)) else {
            return;
        };
        state.idle.push(index);
        match until {
            Some(until) => {
                // A time that has passed is found again.
                let _ = worker.wait_until(state, until);
            }
            None => worker.wait(state),
        }
        state.idle.retain(|idle| *idle != index);
    }

    /// Wakes a worker for each of `count` requests, those that have worked last first: their memory
    /// is warm.
    fn notify_requests(&self, state: &mut MutexGuard<'_, State>, count: usize) {
        for _ in 0..count {
            let Some(at) = state
                .idle
                .iter()
                .rposition(|index| state.sends_requests(*index))
            else {
                return;
            };
            self.notify_worker(state.idle.remove(at));
        }
    }

    fn notify_worker(&self, index: u16) {
        if let Some(worker) = self.workers.get(usize::from(index)) {
            worker.notify_one();
        }
    }

    pub(super) fn notify_workers(&self) {
        for worker in &self.workers {
            worker.notify_one();
        }
    }

    pub(super) fn notify_all(&self) {
        self.notify_workers();
        self.changed.notify_all();
    }

    /// A worker has finished with a request, or found a fault.
    pub(super) fn finished(&self, state: &mut MutexGuard<'_, State>) {
        if state.fatal.is_some() || state.session == Session::Lost {
            self.notify_all();
            // A full counter wakes the thread as well.
            let _ = rustix::io::write(&self.wakeup, &1u64.to_ne_bytes());
        } else if state.stopping.is_some() || state.session == Session::Closed {
            self.notify_all();
        } else if state.waiting() > 0 {
            // A slot has become free.
            self.notify_requests(state, 1);
        }
    }

    /// Serves the guest until it hangs up or `stop` is readable.
    pub(super) fn serve(
        &self,
        socket: UnixStream,
        carrier: &dyn Carrier,
        stop: &OwnedFd,
    ) -> Result<(), GuestError<Fatal>> {
        let mut open = Some(Connection::new(socket));
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("tunnel_link".to_owned());
            let started = thread.spawn_scoped(scope, move || {
                set_thread_peer(self.log_key);
                self.exchange(scope, carrier);
            });
            self.must_start(started);
            let served = match &mut open {
                Some(connection) => self.serve_connection(connection, stop),
                None => Ok(()),
            };
            let mut state = self.state.lock();
            state.is_ending = true;
            // If the guest has rings, it stays open until no thread touches them any more: the
            // frontend may give them to another process then.
            open.take_if(|_| !state.rings.iter().any(|ring| ring.is_started));
            if !state.has_session_to_close() {
                // No exchange has to end well, so the next guest need not wait for one.
                self.unbind();
            }
            drop(state);
            self.notify_all();
            served
        })
    }

    /// Binds the endpoints, starts a worker for each in `scope`, and keeps the session until the
    /// guest has gone.
    fn exchange<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, carrier: &dyn Carrier) {
        let endpoints = self.bind(carrier).unwrap_or_default();
        self.endpoints.lock().clone_from(&endpoints);
        for (index, endpoint) in (0..).zip(&endpoints) {
            let endpoint = Arc::clone(endpoint);
            let thread = thread::Builder::new().name(format!("tunnel_{index}"));
            let started = thread.spawn_scoped(scope, move || {
                set_thread_peer(self.log_key);
                worker::run(self, index, &*endpoint);
            });
            self.must_start(started);
        }
        if let Some(first) = endpoints.first() {
            link::run(self, &**first);
        }
        self.unbind();
    }

    /// Gives the endpoints back, which ends all exchanges.
    fn unbind(&self) {
        for endpoint in self.endpoints.lock().iter() {
            endpoint.unbind();
        }
    }

    fn must_start<T>(&self, started: std::io::Result<T>) {
        if let Err(source) = started {
            let what = "start a thread for a guest";
            self.fail(Fatal::System { what, source });
        }
    }

    /// Closes the guest's connection.
    pub(super) fn fail(&self, fatal: Fatal) {
        let mut state = self.state.lock();
        state.fail(fatal);
        self.finished(&mut state);
    }

    /// Binds the tunnel's endpoints. `None` if the guest has gone before, or they cannot be bound.
    fn bind(&self, carrier: &dyn Carrier) -> Option<Vec<Arc<dyn BoundEndpoint>>> {
        let mut endpoints = Vec::new();
        while endpoints.len() <= usize::from(self.options.queues) {
            let index = u16::try_from(endpoints.len()).unwrap_or(u16::MAX);
            let endpoint = behind(self.options.client, index);
            match carrier.bind(self.options.dc, endpoint, "tunnel") {
                Ok(bound) => endpoints.push(bound),
                Err(
                    error @ (EndpointError::NotConnected { .. } | EndpointError::TimedOut { .. }),
                ) => {
                    self.missed(error.to_string());
                    link::sleep(self, Session::Closed, BIND_RETRY_INTERVAL);
                    let state = self.state.lock();
                    if state.is_ending || state.fatal.is_some() {
                        return None;
                    }
                }
                Err(error) => {
                    self.fail(Fatal::Server(format!("cannot be asked: {error}")));
                    return None;
                }
            }
        }
        Some(endpoints)
    }

    /// The server cannot be asked for a session: notes why, and logs it the first time.
    pub(super) fn missed(&self, why: String) {
        let mut state = self.state.lock();
        if state.unreached.is_none() {
            let server = &self.options.server_name;
            rate_limited!(warn, "no session at the server, {server}, retrying: {why}");
        }
        state.unreached = Some(why);
        drop(state);
        self.changed.notify_all();
    }

    fn serve_connection(
        &self,
        connection: &mut Connection,
        stop: &OwnedFd,
    ) -> Result<(), GuestError<Fatal>> {
        let mut device = TunnelDevice::new(self);
        let mut kicks = Vec::new();
        let mut setup = None;
        loop {
            let mut awaited = vec![
                PollFd::new(&*connection, PollFlags::IN),
                PollFd::new(&self.wakeup, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            awaited.extend(kicks.iter().map(|kick| PollFd::new(kick, PollFlags::IN)));
            connection.wait(&mut awaited, None)?;
            let is_ready = |at: usize| {
                let ready = awaited.get(at).map(|ready| ready.revents());
                ready.is_some_and(|ready| !ready.is_empty())
            };
            let (has_message, is_woken, is_stopped) = (is_ready(0), is_ready(1), is_ready(2));
            if is_stopped {
                self.state.lock().leave();
                return Ok(());
            }
            if is_woken {
                // It resets the counter, and fails only if that is 0.
                let _ = rustix::io::read(&self.wakeup, &mut [0; 8]);
            }
            if has_message && !connection.take_messages(&mut device)? {
                return Ok(());
            }
            connection.check_pace()?;
            let mut state = self.state.lock();
            let taken = state.take_requests();
            if let Some(fatal) = state.take_fatal() {
                return Err(GuestError::Fatal(fatal));
            }
            if setup != Some(state.setup) {
                setup = Some(state.setup);
                let started = state.rings.iter().filter(|ring| ring.is_started);
                kicks = started
                    .filter_map(|ring| ring.kick.as_ref()?.try_clone().ok())
                    .collect();
            }
            if matches!(state.session, Session::Open(_)) {
                self.notify_requests(&mut state, taken.requests);
                if taken.urgent > 0 {
                    self.notify_worker(0);
                }
            } else if taken.urgent + taken.requests > 0 {
                // The link has to open a session, and workers to watch the requests' time.
                self.notify_all();
            }
        }
    }
}

impl Report for Shared {
    fn report(&self, to: &mut String) {
        let state = self.state.lock();
        let session = match state.session {
            Session::Closed => "no session yet".to_owned(),
            Session::Open(session) => format!("session {session:#x}"),
            Session::Lost => "session lost; requests are refused until it mounts anew".to_owned(),
        };
        let in_flight: usize = state.in_flight.iter().sum();
        let counters = state.counters;
        // Writing to a string does not fail.
        let _ = writeln!(
            to,
            "  guest {}: {session}; {in_flight} requests in flight, {} replied, {} refused, \
             {} exchanges failed, {} sent again, {} sessions lost",
            self.number,
            counters.replied,
            counters.refused,
            counters.unreached,
            counters.resent,
            counters.losses
        );
    }

    fn json(&self) -> Value {
        let state = self.state.lock();
        let counters = state.counters;
        json!({
            "guest": self.number,
            "session": match state.session {
                Session::Closed => "closed",
                Session::Open(_) => "open",
                Session::Lost => "lost",
            },
            "in_flight": state.in_flight.iter().sum::<usize>(),
            "replied": counters.replied,
            "refused": counters.refused,
            "exchanges_failed": counters.unreached,
            "sent_again": counters.resent,
            "sessions_lost": counters.losses,
        })
    }
}

#[cfg(test)]
mod tests;
