//! A place between a guest and a daemon: the guest keeps its device, whatever becomes of the daemon.
//!
//! ```text
//!   guest ── vhost-user ── relay ── vhost-user ── daemon
//!     └────── memory, kicks, calls, as descriptors ──┘
//! ```
//!
//! Only messages pass through the relay, a few dozen when a guest starts; requests and data go between guest and daemon directly. The
//! guest's end is `guest`, the daemon's `daemon`; `session` is what the guest has set up, from which any daemon can be set up
//! at any time. Stopping the rings and starting them elsewhere is `replace`. When a daemon dies, `refusal` answers what it left.

mod args;
mod control;
mod daemon;
mod guest;
mod memory;
mod message;
mod outstanding;
mod refusal;
mod replace;
mod ring;
mod serve;
mod session;
mod split;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

pub use args::{RelayAction, RelayArgs};
use gangplank_service::logging;
use gangplank_service::logging::LinePrefix;
use gangplank_service::output::Output;
use gangplank_service::rlimit::raise_descriptor_limit;
use gangplank_service::signals::{Signal, Signals, TERMINATION};
use gangplank_service::unix_listener::OwnedListener;
use log::info;
use rustix::fs::Mode;
pub use serve::Error;

use self::control::Command;
use self::daemon::Limits;
use self::serve::Relay;
use self::session::Plan;

/// How long a daemon may take to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long a guest that asks for the tag is kept waiting for a daemon that tells it.
const GUEST_PATIENCE: Duration = Duration::from_secs(10);

/// How long a relay may take to do as it is told.
const ORDER_LIMIT: Duration = Duration::from_secs(600);

/// Runs a relay until it is told to end by SIGTERM, SIGINT or SIGHUP; or tells one that runs what to do, and writes its answer to
/// `out`. A `filter` in env_logger's form says what to log in place of the options.
///
/// # Errors
/// The sockets cannot be made; or the running relay cannot be told, or does not do it.
pub fn run(args: &RelayArgs, filter: Option<&str>, mut out: Output) -> Result<(), Error> {
    let Some(action) = &args.action else {
        return serve(args, filter);
    };
    let (control, command) = match action {
        RelayAction::Status { control } => (control, Ok(Command::Status)),
        RelayAction::Pause { control } => (control, Ok(Command::Pause)),
        RelayAction::Resume { control } => (control, Ok(Command::Resume)),
        RelayAction::Switch {
            control,
            without_state,
            socket,
        } => (control, serve::switch(socket, *without_state)),
    };
    let failed = |source| Error::Control {
        path: control.clone(),
        source,
    };
    let text = serve::tell(control, &command.map_err(failed)?, ORDER_LIMIT)?;
    let written = out.write_all(text.as_bytes());
    written.and_then(|()| out.close()).map_err(Error::Output)
}

fn serve(args: &RelayArgs, filter: Option<&str>) -> Result<(), Error> {
    let (Some(listen), Some(backend)) = (&args.listen, &args.backend) else {
        return Err(Error::Refused(
            "both --listen and --backend are needed".into(),
        ));
    };
    let plan = Plan {
        tag: args.tag.clone(),
        num_request_queues: args.num_request_queues,
        limits: Limits {
            connect: CONNECT_LIMIT,
            answer: args.limit,
            state: args.state_limit,
        },
        patience: GUEST_PATIENCE,
    };
    let listening = |path: &Path, mode| {
        OwnedListener::bind(path, mode).map_err(|source| Error::Listen {
            path: path.to_owned(),
            source,
        })
    };
    logging::start(&logging::Options {
        filter: filter.map(str::to_owned),
        // A guest's thread is named after it.
        prefix: LinePrefix::Thread,
        ..logging::Options::new("gangplank-frontend", args.log_level)
    })?;
    raise_descriptor_limit();
    let signals =
        Signals::block(TERMINATION.into_iter().chain([Signal::SIGUSR1])).map_err(Error::Wait)?;
    let control = args.control.as_deref();
    let control = control.map(|path| listening(path, Some(Mode::RUSR | Mode::WUSR)));
    let control = control.transpose()?;
    let listener = listening(listen, None)?;
    info!(
        "guests connect at {}, to the daemon at {}",
        listen.display(),
        backend.display()
    );
    Relay::new(plan, backend.clone()).serve(&listener, control.as_ref(), &signals)
}

#[cfg(test)]
mod tests;
