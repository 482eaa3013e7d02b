//! The relay as a program: its sockets, a thread for each guest, orders from an operator.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gangplank_service::logging;
use gangplank_service::signals::{Signal, Signals};
use gangplank_service::unix_listener::OwnedListener;
use log::{debug, error, info, warn};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::control::{self, Command, Order};
use super::guest::{self, Guest};
use super::replace::Files;
use super::session::{Plan, Session};

/// Guests that are served at a time. Each has a thread and some ten descriptors.
const MAX_GUESTS: usize = 256;

/// How long to wait before accepting again when descriptors or memory have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the relay cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket cannot be made.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nothing can be waited for.
    #[error("cannot wait for guests")]
    Wait(#[source] io::Error),
    /// A running relay cannot be told.
    #[error("cannot tell the relay at {}", path.display())]
    Control {
        /// Where it is told.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What a running relay says cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// A running relay did not do what it was told.
    #[error("{0}")]
    Refused(String),
    /// Logging cannot be started.
    #[error(transparent)]
    Logging(#[from] logging::Error),
}

/// A guest that is served.
struct Served {
    number: u64,
    orders: Sender<Order>,
    told: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// The relay.
pub(super) struct Relay {
    plan: Arc<Plan>,
    /// Where the next guest's daemon is looked for. An order that has been obeyed changes it.
    backend: Arc<Mutex<PathBuf>>,
    guests: Vec<Served>,
    /// Guests so far.
    count: u64,
}

impl Relay {
    pub(super) fn new(plan: Plan, backend: PathBuf) -> Self {
        Self {
            plan: Arc::new(plan),
            backend: Arc::new(Mutex::new(backend)),
            guests: Vec::new(),
            count: 0,
        }
    }

    /// Serves guests that connect at `listener`, and operators at `control`, until it is told to end.
    pub(super) fn serve(
        &mut self,
        listener: &OwnedListener,
        control: Option<&OwnedListener>,
        signals: &Signals,
    ) -> Result<(), Error> {
        loop {
            let mut awaited = vec![
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            awaited.extend(control.map(|control| PollFd::new(control, PollFlags::IN)));
            match poll(&mut awaited, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::Wait(errno.into())),
            }
            self.guests.retain(|guest| !guest.thread.is_finished());
            match signals.take().map_err(Error::Wait)? {
                Some(Signal::SIGUSR1) => self.report(),
                Some(_) => return Ok(()),
                None => {}
            }
            if let Some(stream) = accept(listener) {
                self.take(stream);
            }
            if let Some(stream) = control.and_then(accept) {
                self.obey(stream);
            }
        }
    }

    fn report(&mut self) {
        self.order(Command::Status, |answer| {
            let (Ok(text) | Err(text)) = answer;
            info!("status: {}", text.trim_end());
        });
    }

    fn take(&mut self, stream: UnixStream) {
        if self.guests.len() >= MAX_GUESTS {
            error!("a guest is refused: {MAX_GUESTS} are served already");
            return;
        }
        self.count += 1;
        let number = self.count;
        match self.start(number, stream) {
            Ok(served) => self.guests.push(served),
            Err(error) => error!("cannot serve guest {number}: {error}"),
        }
    }

    fn start(&self, number: u64, stream: UnixStream) -> io::Result<Served> {
        stream.set_nonblocking(true)?;
        let told = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, inbox) = mpsc::channel();
        let heard = Arc::clone(&told);
        let plan = Arc::clone(&self.plan);
        let backend = self.backend.lock();
        let backend = backend.unwrap_or_else(PoisonError::into_inner).clone();
        let thread = thread::Builder::new()
            .name(format!("guest_{number}"))
            .spawn(move || {
                // The guest is answered once its daemon is, or is not there.
                info!("guest {number} has connected");
                let mut guest = Guest::new(stream, Session::new(number, plan, backend));
                guest::run(&mut guest, &inbox, &heard);
            })?;
        Ok(Served {
            number,
            orders,
            told,
            thread,
        })
    }

    /// Does what an operator wants, for all guests at once.
    fn obey(&mut self, stream: UnixStream) {
        let command = match stream
            .set_nonblocking(false)
            .and_then(|()| control::receive(&stream))
        {
            Ok(Some(command)) => command,
            Ok(None) => return answer(&stream, Err("there is no such command".to_owned())),
            Err(error) => {
                warn!("an order cannot be read: {error}");
                return;
            }
        };
        self.order(command, move |told| answer(&stream, told));
    }

    /// Has every guest obey `command`, and `then` hear what came of it, on a thread of its own: guests may take their time.
    fn order(
        &mut self,
        command: Command,
        then: impl FnOnce(Result<String, String>) + Send + 'static,
    ) {
        debug!("told: {command:?}");
        let (answer, answers) = mpsc::channel();
        for guest in &self.guests {
            // One that has just gone does not answer.
            let _ = guest.orders.send(Order {
                guest: guest.number,
                command: command.clone(),
                answer: answer.clone(),
            });
            let _ = rustix::io::write(&*guest.told, &1u64.to_ne_bytes());
        }
        let count = self.guests.len();
        let patience = self.patience();
        let backend = Arc::clone(&self.backend);
        let started = thread::Builder::new()
            .name("order".to_owned())
            .spawn(move || {
                then(collect(&answers, count, patience).map(|mut text| {
                    if let Command::Switch { socket, .. } = command {
                        text.push_str(&format!("new guests go to {}\n", socket.display()));
                        *backend.lock().unwrap_or_else(PoisonError::into_inner) = socket;
                    }
                    text
                }));
            });
        if let Err(error) = started {
            error!("nobody can wait for the guests' answers: {error}");
        }
    }

    /// How long guests may take to do as they are told, but for requests that take longer.
    fn patience(&self) -> Duration {
        let limits = self.plan.limits;
        limits.connect + limits.state * 2 + limits.answer * 4
    }
}

/// What `count` guests answer within `patience`.
fn collect(
    answers: &Receiver<(u64, Result<String, String>)>,
    count: usize,
    patience: Duration,
) -> Result<String, String> {
    let until = Instant::now() + patience;
    let (mut lines, mut is_done) = (Vec::new(), true);
    while lines.len() < count {
        let left = until.saturating_duration_since(Instant::now());
        match answers.recv_timeout(left) {
            Ok((guest, Ok(text))) => lines.push((guest, text)),
            Ok((guest, Err(text))) => {
                is_done = false;
                lines.push((guest, text));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                is_done = false;
                let text =
                    "some guests have not answered yet, and do as they are told when they can";
                lines.push((0, text.to_owned()));
                break;
            }
        }
    }
    lines.sort();
    let text: String = match lines.is_empty() {
        true => "no guest is connected\n".to_owned(),
        false => lines
            .iter()
            .map(|(guest, text)| format!("guest {guest}: {text}\n"))
            .collect(),
    };
    match is_done {
        true => Ok(text),
        false => Err(text),
    }
}

/// Tells an operator what came of an order.
fn answer(mut stream: &UnixStream, told: Result<String, String>) {
    let (word, text) = match told {
        Ok(text) => ("ok", text),
        Err(text) => ("error", text),
    };
    // By one call: what is cut off between two of them may look whole.
    let answer = format!("{word}\n{}\n", text.trim_end());
    if let Err(error) = stream.write_all(answer.as_bytes()) {
        warn!("an order cannot be answered: {error}");
    }
}

fn accept(listener: &OwnedListener) -> Option<UnixStream> {
    use io::ErrorKind::{ConnectionAborted, WouldBlock};
    match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) if matches!(error.kind(), WouldBlock | ConnectionAborted) => None,
        Err(error) => {
            error!("cannot accept a connection: {error}");
            thread::sleep(ACCEPT_RETRY);
            None
        }
    }
}

/// Tells a relay that runs what to do, and returns what it says.
pub(super) fn tell(path: &Path, command: &Command, limit: Duration) -> Result<String, Error> {
    let answer = control::send(path, command, limit);
    let (is_done, text) = answer.map_err(|source| Error::Control {
        path: path.to_owned(),
        source,
    })?;
    match is_done {
        true => Ok(text),
        false => Err(Error::Refused(text.trim_end().to_owned())),
    }
}

/// The command for replacing a daemon.
pub(super) fn switch(socket: &Path, without_state: bool) -> io::Result<Command> {
    Ok(Command::Switch {
        // The relay may run in another directory.
        socket: std::path::absolute(socket)?,
        files: match without_state {
            true => Files::Lost,
            false => Files::Kept,
        },
    })
}
