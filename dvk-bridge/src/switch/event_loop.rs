//! The switch's thread: it waits for all connections and routes the commands of the programs.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use gangplank_service::signals::Signals;
use gangplank_service::unix_listener::OwnedListener;
use gangplank_service::{logging, rate_limited};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde_json::{Value, json};

use super::bindings::Table;
use super::config::{SwitchConfig, SwitchError};
use super::program::{DropReason, Pause, Program};
use super::queue::Pair;
use crate::abi::{Code, Command, Endpoint, Header};
use crate::carrier::stream::{AcceptBackoff, MAX_POLL_WAIT, poll_for};
use crate::status::{self, Form};

/// Programs at a time.
const MAX_PROGRAMS: usize = 512;

/// Programs of one user other than the switch's own, so that no user takes all connections.
const MAX_PROGRAMS_PER_USER: usize = 128;

/// A listening switch.
pub struct Switch {
    config: SwitchConfig,
    listener: OwnedListener,
    status: Option<OwnedListener>,
    /// Each signal that arrives here writes the state to the log.
    signals: Option<Signals>,
    backoff: AcceptBackoff,
    stop: Arc<OwnedFd>,
    programs: BTreeMap<u64, Program>,
    next: u64,
    table: Table,
}

/// Stops a switch from another thread.
#[derive(Clone, Debug)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// Makes [`Switch::run`] return.
    pub fn stop(&self) {
        // An eventfd whose counter is full wakes the switch as well.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Switch {
    /// Listens at the sockets. Replaces a socket without a listener.
    pub fn new(config: SwitchConfig) -> Result<Self, SwitchError> {
        let listener = listen(&config)?;
        let status = config.status.as_deref().map(status::listen).transpose()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = stop.map_err(|error| SwitchError::Wait(error.into()))?;
        Ok(Self {
            table: Table::new(config.dcs.clone()),
            config,
            listener,
            status,
            signals: None,
            backoff: AcceptBackoff::default(),
            stop: Arc::new(stop),
            programs: BTreeMap::new(),
            next: 0,
        })
    }

    /// A handle that stops the switch.
    pub fn stopper(&self) -> Stop {
        Stop(self.stop.clone())
    }

    /// Writes the state to the log at each of `signals`.
    pub(super) fn log_state_at(&mut self, signals: Signals) {
        self.signals = Some(signals);
    }

    /// Serves programs until the switch is stopped.
    pub fn run(mut self) -> Result<(), SwitchError> {
        loop {
            let ready = self
                .wait()
                .map_err(|error| SwitchError::Wait(error.into()))?;
            if ready.stop {
                return Ok(());
            }
            for (id, events) in ready.programs {
                self.serve(id, events);
            }
            // The end of a program may let others continue that no event would wake, and is
            // announced to all.
            while self.drop_slow() || self.resume() {}
            if ready.listener {
                self.accept();
            }
            if ready.status {
                self.report_status();
            }
            if let Some(signals) = &self.signals
                && ready.signals
                && let Ok(Some(_)) = signals.take()
            {
                logging::log_status(&self.report());
            }
        }
    }

    fn wait(&self) -> Result<Ready, Errno> {
        let mut descriptors = vec![
            PollFd::new(&*self.stop, PollFlags::IN),
            PollFd::new(&self.listener, self.backoff.interest()),
        ];
        // Without a status socket, the program socket takes its place in the list.
        let status = self.status.as_ref().unwrap_or(&self.listener);
        descriptors.push(PollFd::new(status, self.backoff.interest()));
        // The same without signals.
        descriptors.push(match &self.signals {
            Some(signals) => PollFd::new(signals, PollFlags::IN),
            None => PollFd::new(&self.listener, self.backoff.interest()),
        });
        let ids: Vec<u64> = self.programs.keys().copied().collect();
        for program in self.programs.values() {
            descriptors.push(PollFd::new(program.socket(), program.interest()));
        }
        let programs = self.programs.values();
        let deadlines = programs.filter_map(|it| it.queue.deadline(self.config.read_timeout));
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        let limit = deadlines.min().map_or(MAX_POLL_WAIT, left);
        let limit = self
            .backoff
            .paused_for()
            .map_or(limit, |shut| limit.min(shut));
        poll_for(&mut descriptors, limit)?;
        let mut events = descriptors.iter().map(PollFd::revents);
        let mut is_ready = || events.next().is_some_and(|it| !it.is_empty());
        Ok(Ready {
            stop: is_ready(),
            listener: is_ready(),
            status: is_ready(),
            signals: is_ready(),
            programs: ids
                .into_iter()
                .zip(events)
                .filter(|(_, events)| !events.is_empty())
                .collect(),
        })
    }

    /// Sends the state to a program at the status socket.
    fn report_status(&mut self) {
        if let Some(listener) = &self.status
            && let Err(error) = status::tell(listener, |form| match form {
                Form::Text => self.report(),
                Form::Json => status::json(vec![self.json()]),
            })
            && self.backoff.failed(&error)
        {
            log::warn!("cannot report the status: {error}");
        }
    }

    fn accept(&mut self) {
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                if self.backoff.failed(&error) {
                    log::warn!("cannot accept a program: {error}");
                }
                return;
            }
        };
        match Program::new(socket.into()) {
            Ok(program) => match self.refusal_reason(program.uid()) {
                None => {
                    rate_limited!(peer = program.uid().into(), info, "{program} has connected");
                    self.programs.insert(self.next, program);
                    self.next += 1;
                }
                Some(why) => {
                    rate_limited!(
                        peer = program.uid().into(),
                        warn,
                        "{program} is refused: {why}"
                    );
                }
            },
            Err(error) => rate_limited!(warn, "a program is refused: {error}"),
        }
    }

    /// Why another program of user `uid` is refused, if it is.
    fn refusal_reason(&self, uid: u32) -> Option<String> {
        if !self.config.admission.admits(uid) {
            return Some("its user may bind nothing (--allow)".to_owned());
        }
        let programs = self.programs.values();
        let most = max_programs(uid, geteuid().as_raw());
        let (of, count) = if most < MAX_PROGRAMS {
            (
                " of its user",
                programs.filter(|it| it.uid() == uid).count(),
            )
        } else {
            ("", programs.count())
        };
        let full = self.programs.len() >= MAX_PROGRAMS || count >= most;
        full.then(|| format!("there are {count} programs{of} already"))
    }

    /// Reads and routes the commands of program `id`, and sends what waits for it.
    fn serve(&mut self, id: u64, events: PollFlags) {
        let Some(program) = self.programs.get_mut(&id) else {
            return;
        };
        let done = program.send().and_then(|()| program.read(events));
        if let Err(end) = done.and_then(|()| self.forward(id)) {
            self.remove(id, &end);
        }
    }

    /// Routes the complete commands of program `id`, until too much of them waits for one
    /// destination.
    fn forward(&mut self, id: u64) -> Result<(), DropReason> {
        loop {
            let Some(program) = self.programs.get_mut(&id) else {
                return Ok(());
            };
            let Some((header, payload)) = program.next()? else {
                return Ok(());
            };
            if let Some(pause) = self.route(id, header, &payload)? {
                if let Some(program) = self.programs.get_mut(&id) {
                    program.pause(pause);
                }
                return Ok(());
            }
        }
    }

    /// Handles a command of program `id`. Returns a pause if the program must not be read for now.
    fn route(
        &mut self,
        id: u64,
        header: Header,
        payload: &[u8],
    ) -> Result<Option<Pause>, DropReason> {
        let Some(program) = self.programs.get(&id) else {
            return Ok(None);
        };
        let header = Header {
            pid: program.pid(),
            len: 0,
            ..header
        };
        Ok(match header.command {
            Command::NONE => None,
            Command::PROCBIND => {
                let verdict = self.bind(id, &header, payload);
                let ack = Header {
                    dc: header.dc,
                    src: Endpoint::NONE,
                    dst: header.src,
                    rcode: verdict.err().map_or(0, Code::result),
                    ..Header::new(Command::PROCBIND_ACK)
                };
                self.put(id, None, ack, &[])
            }
            Command::PROCUNBIND => {
                if self.table.unbind(id, header.dc, header.src) {
                    self.announce_unbound(&[(header.dc, header.src)]);
                }
                let pair = (header.dc, header.src, Endpoint::NONE);
                let mut programs = self.programs.iter();
                let full = programs.find(|(_, it)| it.queue.is_pair_full(&pair));
                full.map(|(&full, _)| Pause { full, pair })
            }
            command if !command.is_between_processes() => return Err(DropReason::Command(command)),
            command => match self.table.receiver(id, &header) {
                Ok(receiver) => {
                    let pair = (header.dc, header.src, header.dst);
                    self.put(receiver, Some(pair), header, payload)
                }
                Err(code) => {
                    log::debug!(
                        "{} from {} to {}: {code}",
                        header.command,
                        header.src,
                        header.dst
                    );
                    let Some(command) = command.failure() else {
                        return Ok(None);
                    };
                    let reply = header.answer(command, code.result());
                    self.put(id, None, reply, &[])
                }
            },
        })
    }

    fn bind(&mut self, id: u64, header: &Header, name: &[u8]) -> Result<(), Code> {
        let program = self.programs.get(&id).ok_or(Code::EDVSNOTBIND)?;
        if !self.config.admission.allows(program.uid(), header.src) {
            rate_limited!(
                peer = program.uid().into(),
                warn,
                "{program} may not bind endpoint {}",
                header.src
            );
            return Err(Code::EACCES);
        }
        let name = String::from_utf8_lossy(name.get(..15).unwrap_or(name)).into_owned();
        self.table.bind(id, header.dc, header.src, &name)?;
        log::debug!(
            "{program} has bound endpoint {} of container {} as {name:?}",
            header.src,
            header.dc
        );
        Ok(())
    }

    /// Queues a command for program `full`, counted for `pair` if it belongs to one. Returns a
    /// pause if the sender must not be read for now.
    fn put(
        &mut self,
        full: u64,
        pair: Option<Pair>,
        header: Header,
        payload: &[u8],
    ) -> Option<Pause> {
        let program = self.programs.get_mut(&full)?;
        let Some(pair) = pair else {
            program.put(None, header, payload);
            return None;
        };
        if !header.command.is_ack() {
            program.put(Some(pair), header, payload);
            let enough = program.queue.is_pair_full(&pair);
            return enough.then_some(Pause { full, pair });
        }
        // A server must not wait for a client that requests copies and does not read them.
        if program.queue.is_pair_full(&pair) {
            log::debug!(
                "{} from {} to {} is lost: {program} has not read the ones before",
                header.command,
                header.src,
                header.dst
            );
        } else {
            program.put(Some(pair), header, payload);
        }
        None
    }

    /// Continues with the programs whose partners have read enough or are gone. Returns whether one
    /// was dropped.
    fn resume(&mut self) -> bool {
        let before = self.programs.len();
        let paused: Vec<(u64, Pause)> = self
            .programs
            .iter()
            .filter_map(|(&id, it)| Some((id, it.paused_for()?)))
            .collect();
        for (id, Pause { full, pair }) in paused {
            let full = self.programs.get(&full);
            if full.is_some_and(|it| it.queue.is_pair_full(&pair)) {
                continue;
            }
            if let Some(program) = self.programs.get_mut(&id) {
                program.unpause();
            }
            if let Err(end) = self.forward(id) {
                self.remove(id, &end);
            }
        }
        self.programs.len() < before
    }

    /// Drops the programs that have not read in time. Returns whether there were any.
    fn drop_slow(&mut self) -> bool {
        let read_timeout = self.config.read_timeout;
        let programs = self.programs.iter();
        let slow: Vec<_> = programs
            .filter_map(|(&id, program)| Some((id, program.queue.overdue(read_timeout)?)))
            .collect();
        for &(id, overdue) in &slow {
            self.remove(id, &overdue.into());
        }
        !slow.is_empty()
    }

    fn remove(&mut self, id: u64, end: &DropReason) {
        let Some(program) = self.programs.remove(&id) else {
            return;
        };
        match end {
            DropReason::Closed => {
                rate_limited!(peer = program.uid().into(), info, "{program} has gone");
            }
            end => {
                rate_limited!(
                    peer = program.uid().into(),
                    warn,
                    "{program} is dropped: {end}"
                );
            }
        }
        let gone = self.table.unbind_all(id);
        self.announce_unbound(&gone);
    }

    /// Describes programs and endpoints.
    fn report(&self) -> String {
        let mut text = format!("switch {}\n", self.config.socket.display());
        for (id, program) in &self.programs {
            text.push_str(&format!("  {program}: {}\n", program.state()));
            for (dc, endpoint, _, name) in self.table.entries().filter(|it| it.2 == *id) {
                text.push_str(&format!(
                    "    endpoint {endpoint} of container {dc}, {name:?}\n"
                ));
            }
        }
        text
    }

    /// The same as an object.
    fn json(&self) -> Value {
        let programs = self.programs.iter().map(|(id, program)| {
            let bound = self.table.entries().filter(|it| it.2 == *id);
            let endpoints = bound.map(|(dc, endpoint, _, name)| {
                json!({ "dc": dc, "endpoint": endpoint.raw(), "name": name })
            });
            let mut object = program.json();
            if let Some(fields) = object.as_object_mut() {
                fields.insert("endpoints".to_owned(), endpoints.collect());
            }
            object
        });
        json!({
            "kind": "switch",
            "socket": self.config.socket.to_string_lossy(),
            "programs": programs.collect::<Vec<_>>(),
        })
    }

    /// Tells every program which endpoints were unbound.
    fn announce_unbound(&mut self, gone: &[(i32, Endpoint)]) {
        for &(dc, src) in gone {
            for program in self.programs.values_mut() {
                let header = Header {
                    dc,
                    src,
                    dst: Endpoint::NONE,
                    ..Header::new(Command::PROCUNBIND)
                };
                program.put(Some((dc, src, Endpoint::NONE)), header, &[]);
            }
        }
    }
}

/// The limit for programs of user `uid` at a switch of user `own`.
fn max_programs(uid: u32, own: u32) -> usize {
    if uid == own {
        MAX_PROGRAMS
    } else {
        MAX_PROGRAMS_PER_USER
    }
}

/// The events that are ready.
struct Ready {
    stop: bool,
    listener: bool,
    status: bool,
    signals: bool,
    programs: Vec<(u64, PollFlags)>,
}

fn listen(config: &SwitchConfig) -> Result<OwnedListener, SwitchError> {
    let mode = Mode::from_raw_mode(config.mode);
    Ok(OwnedListener::bind(&config.socket, Some(mode))?)
}

#[cfg(test)]
mod tests;
