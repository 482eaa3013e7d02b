//! Opens the guest's session at the server, keeps it, and closes it.

use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use gangplank_vhost_user::client::FsConfig;
use log::debug;
use rustix::io::Errno;

use super::serve::Shared;
use super::state::{Fatal, Session};
use crate::abi::Code;
use crate::endpoint::{BoundEndpoint, EndpointError, SharedBuffers};
use crate::tunnel::wire::{Answer, CONFIG_LEN, Call, MAX_SLOTS};

/// Time between two signs of life.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Wait before the next attempt to open a session.
const RETRY_INTERVAL: Duration = Duration::from_millis(300);

/// Time that the server has to open a session, for which it connects to the daemon.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Time that the server has to close a session when the guest has gone.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Works until the guest has gone. `endpoint` is the first one.
pub(super) fn run(shared: &Shared, endpoint: &dyn BoundEndpoint) {
    let mut generation = random();
    loop {
        let mut state = shared.state.lock();
        if state.is_ending || state.fatal.is_some() {
            state.leave_session();
            let unused = std::mem::take(&mut state.unused);
            drop(state);
            for session in unused {
                close(shared, endpoint, session);
            }
            return;
        }
        let unused = std::mem::take(&mut state.unused);
        let session = state.session;
        let former = state.former;
        if unused.is_empty() && session == Session::Lost {
            shared.changed.wait(&mut state);
            continue;
        }
        drop(state);
        for session in unused {
            close(shared, endpoint, session);
        }
        match session {
            Session::Closed => {
                // That of the tunnel before this one, if its session is to go on.
                let asked = former.map_or(generation, |former| former.generation);
                if open(shared, endpoint, asked) {
                    generation = random();
                } else {
                    sleep(shared, session, RETRY_INTERVAL);
                }
            }
            Session::Open(open) => {
                sleep(shared, session, PING_INTERVAL);
                ping(shared, endpoint, open);
            }
            Session::Lost => {}
        }
    }
}

/// Sleeps while the session is `session`.
pub(super) fn sleep(shared: &Shared, session: Session, limit: Duration) {
    let until = Instant::now() + limit;
    let mut state = shared.state.lock();
    let is_idle = |state: &super::state::State| {
        let is_ending = state.is_ending || state.fatal.is_some();
        !is_ending && state.session == session && state.unused.is_empty()
    };
    while is_idle(&state) && !shared.changed.wait_until(&mut state, until).timed_out() {}
}

/// A number that no other device has.
fn random() -> u64 {
    // Without randomness, the process and the time differ from those of other devices.
    getrandom::u64().unwrap_or_else(|_| {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        u64::from(std::process::id()) << 32 ^ u64::from(since.subsec_nanos())
    })
}

/// Tries to open a session. Returns whether it is open.
fn open(shared: &Shared, endpoint: &dyn BoundEndpoint, generation: u64) -> bool {
    let mut config = [0; CONFIG_LEN as usize];
    let mut buffers = SharedBuffers::new();
    let call = Call::Open {
        generation,
        slots: MAX_SLOTS,
        config: buffers.writable(&mut config),
    };
    let asked = ask(shared, endpoint, &call, &mut buffers, OPEN_LIMIT);
    drop(buffers);
    let config = FsConfig::new(config);
    if asked.is_ok() && !config.tag().is_empty() {
        // A server that refuses another session tells it as well, if it has one to go on with.
        shared.state.lock().config = Some(config);
    }
    let why = match asked {
        Ok(Some(Answer::Opened {
            session,
            queues,
            slots,
            resumed,
        })) => {
            debug!("session {session:#x} has {slots} slots, resumed: {resumed}");
            let mut state = shared.state.lock();
            state.unreached = None;
            let queues = queues.min(shared.options.queues);
            state.opened((session, generation, resumed), slots, queues);
            drop(state);
            shared.notify_all();
            return true;
        }
        Ok(Some(Answer::Refused(errno))) => refusal(errno),
        Ok(answer) => {
            shared.fail(Fatal::Server(format!("answers {answer:?} to a new guest")));
            return false;
        }
        Err(error) => format!("{}{}", error_chain(&error), advice(&error)),
    };
    shared.missed(why);
    false
}

/// Why a server refuses a session.
fn refusal(errno: Errno) -> String {
    let why = match errno {
        Errno::USERS => "the server has as many guests as its vq_guests allows",
        Errno::NOTCONN => "the server does not reach its daemon",
        Errno::IO => "gangplank-dvk forward does not reach the server",
        Errno::NOSYS => {
            "the server serves no tunnels: set --endpoint to the vq_ep of a block virtqueue"
        }
        _ => return format!("the server refuses: {errno}"),
    };
    why.to_owned()
}

/// What to look at after an error.
const fn advice(error: &EndpointError) -> &'static str {
    match error {
        EndpointError::NotConnected { .. } => {
            "; does the server run, and has its configuration this node as a peer?"
        }
        EndpointError::Refused {
            code: Code::EDVSDSTDIED | Code::EDVSDEADSRCDST,
            ..
        } => "; is --endpoint the vq_ep of a block virtqueue there?",
        _ => "",
    }
}

fn ping(shared: &Shared, endpoint: &dyn BoundEndpoint, session: u32) {
    let call = Call::Ping { session };
    let asked = ask(
        shared,
        endpoint,
        &call,
        &mut SharedBuffers::new(),
        PING_INTERVAL,
    );
    if let Ok(Some(Answer::Refused(Errno::STALE | Errno::NOTCONN))) = asked {
        shared.state.lock().lose(session);
        shared.notify_all();
    }
}

fn close(shared: &Shared, endpoint: &dyn BoundEndpoint, session: u32) {
    let call = Call::Close { session };
    if let Err(error) = ask(
        shared,
        endpoint,
        &call,
        &mut SharedBuffers::new(),
        CLOSE_LIMIT,
    ) {
        // The server frees the session when nothing was heard of it for a while.
        debug!("{}", error_chain(&error));
    }
}

fn ask(
    shared: &Shared,
    endpoint: &dyn BoundEndpoint,
    call: &Call,
    buffers: &mut SharedBuffers<'_>,
    limit: Duration,
) -> Result<Option<Answer>, EndpointError> {
    let message = endpoint.sendrec(shared.options.server, &call.encode(), buffers, limit)?;
    Ok(Answer::decode(&message, call))
}
